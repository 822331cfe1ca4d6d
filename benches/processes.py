#!/usr/bin/env python3
"""Steps of one process with all threads, and of several with a thread each, in turns: seconds, bytes sent, seconds waited.

    python3 benches/processes.py --launcher PREFIX/bin/mpirun recipe.toml --processes 2 --rounds 2 --set train.method=lora

The recipe says the steps; each run's first is left out. It needs `train.accumulate` of at least the processes, `train.log_every = 1`.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path


def run(colrow, launcher, processes, threads, recipe, sets, out):
    """The logged steps of a run but the first."""
    start = [launcher, "-n", str(processes)] if processes > 1 else []
    command = [*start, colrow, "--threads", str(threads), "train", recipe, "--set", f"output={out}", *sets]
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"][1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--launcher", required=True, help="mpirun")
    parser.add_argument("--colrow", default="target/release/colrow")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes the recipe")
    args = parser.parse_args()
    kinds = {1: os.cpu_count(), args.processes: max(os.cpu_count() // args.processes, 1)}
    sets = [argument for change in args.set for argument in ("--set", change)]
    steps = {processes: [] for processes in kinds}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(args.rounds):
            for processes, threads in kinds.items():
                out = Path(folder) / f"{processes}-{turn}"
                steps[processes] += run(args.colrow, args.launcher, processes, threads, args.recipe, sets, out)
    print("| processes | threads of each | step, min | step, median | sent a step | waited, median |")
    print("|---:|---:|---:|---:|---:|---:|")
    for processes, lines in steps.items():
        seconds = [line["step_seconds"] for line in lines]
        sent, waited = lines[0].get("sent_bytes", 0) / 2**20, statistics.median(line.get("waited_seconds", 0) for line in lines)
        print(f"| {processes} | {kinds[processes]} | {min(seconds):.3f} s | {statistics.median(seconds):.3f} s | {sent:,.1f} MiB | {waited:.3f} s |")


if __name__ == "__main__":
    main()
