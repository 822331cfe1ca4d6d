"""colrow and PyTorch side by side: the same training step, each in its own process, in turns.

    cargo build --release
    python3 benches/head_to_head.py --python VENV/bin/python --model-config benches/bert-base.json \\
        --batch 32 --seq 128 --rounds 3 --out benches/results/bert-base.json

Every round runs `colrow bench` and `pytorch_step.py` once; the one that goes first changes from round to round. The
minimum is the least over all rounds, the median is the median of the rounds' medians, bytes are the most over all rounds.
Prints a Markdown table and writes it beside the JSON of `--out`. Needs nothing but Python's own library.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BENCHES = Path(__file__).resolve().parent


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model-config", required=True, help="a BERT config.json")
    parser.add_argument("--batch", type=int, required=True, help="sequences a step")
    parser.add_argument("--seq", type=int, required=True, help="tokens of the longest sequence")
    parser.add_argument("--lengths", choices=["full", "uniform"], default="full",
                        help="uniform: drawn from 16..SEQ; each side draws its own, so compare the time per token")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side; colrow gets them as RAYON_NUM_THREADS")
    parser.add_argument("--dropout", choices=["on", "off"], default="on",
                        help="on: as config.json says; off: both sides get a copy of it without dropout")
    parser.add_argument("--keep", default="exact", help="policy of colrow")
    parser.add_argument("--colrow", default=os.path.relpath(BENCHES.parent / "target/release/colrow"), help="the program")
    parser.add_argument("--colrow-args", default="", help="further arguments of colrow bench, as one string")
    parser.add_argument("--python", default=sys.executable, help="an interpreter with torch and transformers")
    parser.add_argument("--pytorch-args", default="", help="further arguments of pytorch_step.py, as one string")
    parser.add_argument("--out", help="JSON file to write; the table goes beside it as .md")
    return parser.parse_args()


def without_dropout(config, folder):
    """A copy of a config.json in `folder` with all dropout probabilities 0."""
    with open(config) as file:
        settings = json.load(file)
    for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
        settings[key] = 0.0
    path = Path(folder) / Path(config).name
    path.write_text(json.dumps(settings))
    return str(path)


def commands(args, config):
    sizes = ["--model-config", config, "--batch", str(args.batch), "--seq", str(args.seq)]
    if args.lengths != "full":
        sizes += ["--lengths", args.lengths]
    sizes += ["--method", "full", "--steps", str(args.steps)]
    return {
        "colrow": [args.colrow, "bench", *sizes, "--keep", args.keep, "--json", *shlex.split(args.colrow_args)],
        "pytorch": [args.python, os.path.relpath(BENCHES / "pytorch_step.py"), *sizes, "--threads", str(args.threads),
                    *shlex.split(args.pytorch_args)],
    }


def run(name, command, threads):
    """The JSON object that a command prints."""
    environment = dict(os.environ, RAYON_NUM_THREADS=str(threads))
    try:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    except OSError as error:
        sys.exit(f"error: cannot start {name}: {error}\n  command: {shlex.join(command)}")
    if done.returncode != 0:
        sys.exit(f"error: {name} ended with exit code {done.returncode}\n  command: {shlex.join(command)}")
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError as error:
        sys.exit(f"error: {name} printed no JSON object: {error}\n  command: {shlex.join(command)}")


def cpu_model():
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def summary(rounds):
    """One side's figures over its rounds."""
    found = {
        "step_seconds_min": min(r["step_seconds_min"] for r in rounds),
        "step_seconds_median": statistics.median(r["step_seconds_median"] for r in rounds),
    }
    for key in ("tokens", "padded_tokens", "kept_bytes", "peak_rss_bytes", "import_rss_bytes"):
        if key in rounds[0]:
            found[key] = max(r[key] for r in rounds)
    found["token_seconds_min"] = found["step_seconds_min"] / found["tokens"]
    found["own_rss_bytes"] = found["peak_rss_bytes"] - found.get("import_rss_bytes", 0)
    return found


ROWS = (
    ("seconds per step, minimum", "step_seconds_min", "{:.3f}", 1),
    ("seconds per step, median", "step_seconds_median", "{:.3f}", 1),
    ("tokens per step, without padding", "tokens", "{:.0f}", 1),
    ("microseconds per such token, minimum", "token_seconds_min", "{:.2f}", 1e-6),
    ("kept for the backward pass, MiB", "kept_bytes", "{:.1f}", 2**20),
    ("peak RSS, MiB", "peak_rss_bytes", "{:.1f}", 2**20),
    ("peak RSS above that of Python and its imports, MiB", "own_rss_bytes", "{:.1f}", 2**20),
)


def markdown(result):
    colrow, pytorch, ratios = result["colrow"], result["pytorch"], result["ratios"]
    lines = [
        f"{result['date']}, {result['cpu']}, {result['threads']} threads, {result['rounds']} rounds in turns; "
        f"torch {result['torch']}, transformers {result['transformers']}, attention {result['attention']}, "
        f"dropout {'as in the configuration' if result['dropout'] == 'on' else 'off in a copy of the configuration'}",
        "",
        "| | colrow | PyTorch | colrow / PyTorch |",
        "|---|---:|---:|---:|",
    ]
    for title, key, form, unit in ROWS:
        cells = [form.format(side[key] / unit) for side in (colrow, pytorch)]
        lines.append(f"| {title} | {cells[0]} | {cells[1]} | {ratios[key]:.3f} |")
    lines += ["", *(f"    {line}" for line in (result["command"], *result["commands"].values())), ""]
    return "\n".join(lines)


def main():
    args = arguments()
    if args.rounds < 1:
        sys.exit(f"error: --rounds: expected at least 1, found {args.rounds}")
    rounds = {"colrow": [], "pytorch": []}
    with tempfile.TemporaryDirectory() as folder:
        config = args.model_config if args.dropout == "on" else without_dropout(args.model_config, folder)
        each = commands(args, config)
        for index in range(args.rounds):
            order = ["colrow", "pytorch"] if index % 2 == 0 else ["pytorch", "colrow"]
            for name in order:
                found = run(name, each[name], args.threads)
                rounds[name].append(found)
                print(f"round {index + 1} of {args.rounds}: {name} {found['step_seconds_min']:.3f} s", file=sys.stderr)

    sides = {name: summary(found) for name, found in rounds.items()}
    result = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "threads": args.threads,
        "rounds": args.rounds,
        "dropout": args.dropout,
        "command": shlex.join(["python3", *sys.argv]),
        # A copy of the configuration is gone by now: the record names the original.
        "commands": {name: shlex.join(c) for name, c in commands(args, args.model_config).items()},
        **{key: rounds["pytorch"][0][key] for key in ("torch", "transformers", "attention")},
        **sides,
        "ratios": {key: sides["colrow"][key] / sides["pytorch"][key] for _, key, _, _ in ROWS},
        "runs": rounds,
    }
    table = markdown(result)
    print(table)
    if args.out:
        out = Path(args.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
        out.with_suffix(".md").write_text(table)


if __name__ == "__main__":
    main()
