"""The largest batch that fits in a given memory, found by the plan and then really run, of every model and way to train.

    cargo build --release
    python3 benches/scale.py --model-config benches/bert-large.json --model-config benches/t5-large.json exact lean@0.3 --memory 16GiB \\
        --out benches/results/scale.json

`colrow bench --plan --memory` finds the batch, `colrow bench` runs `--steps` steps of it, each in its own process. The table has the ratio of each
batch to the first name's, and whether the process stayed within the memory. Steps of large models take minutes: what `--out` holds of the same
sizes and memory is not run again, so take another file for another build. Needs nothing but Python's own library.
"""

import argparse
import json
import re
import shlex
import sys
from pathlib import Path

import methods
from side_by_side import add_programs, machine, machine_line, positive, run, stop, table, write

GIB = 2**30


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=["exact", "lean@0.3"], metavar="NAME", help="what runs (methods.py; default: exact lean@0.3)")
    parser.add_argument("--model-config", action="append", type=Path, required=True, help="config.json of a BERT or T5; may be repeated")
    parser.add_argument("--memory", default="16GiB", help="whole MiB or GiB")
    parser.add_argument("--seq", type=positive, default=128, help="tokens of each sequence")
    parser.add_argument("--target", type=positive, default=8, help="tokens of each target, for T5")
    parser.add_argument("--steps", type=positive, default=3)
    add_programs(parser)
    args = parser.parse_args()
    methods.checked(args.names)
    if any(map(methods.is_torch, args.names)):
        stop("expected ways to train with colrow, found torch")
    found = re.fullmatch(r"(\d+)(MiB|GiB)", args.memory)
    if not found:
        stop(f"--memory: expected whole MiB or GiB as in 16GiB, found {args.memory!r}")
    args.memory_bytes = int(found[1]) * {"MiB": 2**20, "GiB": GIB}[found[2]]
    return args


def commands(args, name, config, batch):
    """The plan and the run of a batch; `None` stands for the plan's answer."""
    both = [args.colrow, "bench", "--model-config", config, "--seq", args.seq, "--target", args.target, *methods.bench_arguments(name), "--json"]
    plan = [*both, "--plan", "--memory", args.memory]
    # the first step allocates what later ones use again: it counts too
    return plan, [*both, "--batch", batch, "--steps", args.steps, "--warmup", 0]


def measured(args, name, config):
    plan = run(name, commands(args, name, config, None)[0], args.threads)
    if not isinstance(plan.get("batch"), int):
        stop(f"{name}: expected `batch` in what the plan printed, found {', '.join(plan)}")
    batch = plan["batch"]
    print(f"{config.stem}, {name}: a batch of {batch} fits in {args.memory}", file=sys.stderr, flush=True)
    if batch < 1:
        return {"batch": 0}
    found = run(name, commands(args, name, config, batch)[1], args.threads)
    keys = ("tokens", "kept_bytes", "peak_bytes", "planned_peak_bytes", "peak_rss_bytes", "step_seconds_min", "step_seconds_median", "step_seconds")
    return {"batch": batch, **{key: found[key] for key in keys}}


def markdown(args, result):
    lines = [f"{machine_line(result)}. Batches of {args.seq} tokens a sequence in {args.memory}, {args.steps} steps each. Sizes in GiB.", ""]
    gib = lambda size: f"{size / GIB:.2f}"
    for model, sides in result["models"].items():
        rows = []
        first = next(iter(sides.values()))["batch"]
        for name, one in sides.items():
            if one["batch"] == 0:
                rows.append([name, "0", "", "", "", "", "", "does not fit", ""])
                continue
            within = "yes" if one["peak_rss_bytes"] <= args.memory_bytes else "NO"
            rows.append([name, str(one["batch"]), f"{one['batch'] / first:.2f}" if first else "–", gib(one["kept_bytes"]), gib(one["planned_peak_bytes"]),
                         gib(one["peak_bytes"]), gib(one["peak_rss_bytes"]), within, f"{one['tokens'] / one['step_seconds_median']:.0f}"])
        lines += [f"## {model}", "", *table(["", "batch", "times the first", "kept", "planned peak", "peak on the meter", "peak RSS", "within", "tokens a second"],
                                            rows), ""]
    lines += [f"    {result['command']}"]
    lines += [f"    {shlex.join(map(str, one))}" for one in commands(args, args.names[0], args.model_config[0], "BATCH")]
    return "\n".join([*lines, ""])


def earlier(args):
    """What `--out` holds of the same sizes and memory."""
    same = {"memory": args.memory, "seq": args.seq, "target": args.target, "steps": args.steps, "threads": args.threads}
    found = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    return same, found.get("models", {}) if all(found.get(key) == value for key, value in same.items()) else {}


def main():
    args = arguments()
    same, known = earlier(args)
    result = {**machine(args.threads), **same, "models": {}}
    for config in args.model_config:
        sides = result["models"][config.stem] = {}
        for name in args.names:
            sides[name] = known.get(config.stem, {}).get(name) or measured(args, name, config)
            write(args.out, result, markdown(args, result))
    print(markdown(args, result))
    over = [f"{model}, {name}" for model, sides in result["models"].items() for name, one in sides.items()
            if one.get("peak_rss_bytes", 0) > args.memory_bytes]
    if over:
        stop(f"more than {args.memory} of the process in: {'; '.join(over)}")


if __name__ == "__main__":
    main()
