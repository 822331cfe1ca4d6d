"""One epoch of fine-tuning on real sentences: colrow against a plain `transformers` loop that pads each batch to its longest sentence.

    cargo build --release
    python3 benches/epoch.py --python VENV/bin/python --data GLUE/SST-2 --limit 8000 exact lean@0.3 torch --rounds 2 \\
        --out benches/results/epoch-sst2.json

All start from one checkpoint (`--model`, else the one that `colrow quickstart` fetched) and train on the same rows with the same settings: AdamW,
batch 32, a linear schedule, clipping to norm 1; methods.py says how names are made. Every round runs each once, in its own process;
the one that goes first changes from round to round. Seconds are those of the epoch alone: reading, tokenising, evaluation and saving are outside.
"""

import argparse
import random
import shlex
import shutil
import statistics
import tempfile
from pathlib import Path

import methods
from side_by_side import (add_programs, add_python, cached_model, in_turns, machine, machine_line, mib, positive, script, stop,
                          table, write)

BATCH, LR, WARMUP, MAX_LENGTH = 32, 5e-5, 0.1, 128


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=["exact", "torch"], metavar="NAME", help="what runs (default: exact torch)")
    parser.add_argument("--reference", metavar="NAME", help="what the others are compared with (default: the first of PyTorch)")
    parser.add_argument("--data", type=Path, required=True, help="SST-2's folder: train.tsv and dev.tsv")
    parser.add_argument("--limit", type=positive, help="so many training rows, drawn once for all")
    parser.add_argument("--model", type=Path, default=cached_model(), help="model folder (default: quickstart's)")
    parser.add_argument("--rounds", type=positive, default=2)
    parser.add_argument("--seed", type=int, default=0)
    add_programs(parser)
    add_python(parser)
    args = parser.parse_args()
    methods.checked(args.names)
    args.reference = args.reference or next(filter(methods.is_torch, args.names), args.names[0])
    if args.reference not in args.names:
        stop(f"--reference: expected one of {', '.join(args.names)}, found {args.reference!r}")
    if not (args.model / "config.json").exists():
        stop(f"--model: expected a model folder, found none at {args.model}\n  hint: `colrow quickstart --quick` fetches one there")
    return args


def limited(data, limit, folder):
    """A folder with all development rows of `data` and `limit` of its training rows, in file order."""
    with open(data / "train.tsv", encoding="utf-8", newline="\n") as file:
        head, *rows = file
    chosen = sorted(random.Random(0).sample(range(len(rows)), min(limit, len(rows))))
    folder.mkdir()
    (folder / "train.tsv").write_text(head + "".join(rows[i] for i in chosen), encoding="utf-8", newline="\n")
    shutil.copy(data / "dev.tsv", folder)
    return folder


def command(args, name, model, data, runs):
    if methods.is_torch(name):
        return [args.python, script("pytorch_epoch.py"), "--model", model, "--data", data, "--batch", BATCH, "--lr", LR,
                "--warmup", WARMUP, "--max-length", MAX_LENGTH, "--seed", args.seed, "--threads", args.threads,
                *methods.torch_arguments(name)]
    sets = [f"model.path={model}", f"data.train={data}", f"data.max_length={MAX_LENGTH}", f"seed={args.seed}", f"output={runs}",
            "train.epochs=1", f"train.batch={BATCH}", f"optim.lr={LR}", f"optim.warmup={WARMUP}", *methods.recipe_sets(name)]
    return [args.colrow, "train", script("../recipes/sst2.toml"), "--json", *(f"--set={pair}" for pair in sets)]


def figures(run):
    """A run's numbers, without its ledger and other tables."""
    return {key: value for key, value in run.items() if isinstance(value, (int, float)) or key == "final"}


def summary(rounds):
    """The figures of one over its rounds."""
    first = rounds[0]
    accuracy = first["accuracy"] if "accuracy" in first else first["final"]["accuracy"]
    return {
        "seconds_min": min(r["seconds"] for r in rounds),
        "seconds_median": statistics.median(r["seconds"] for r in rounds),
        "step_seconds_median": statistics.median(r["step_seconds_median"] for r in rounds),
        "steps": first["steps"],
        "tokens": first["tokens"],
        "accuracy": accuracy,
        "peak_rss_bytes": max(r["peak_rss_bytes"] for r in rounds),
        "own_rss_bytes": max(r["peak_rss_bytes"] - r.get("import_rss_bytes", 0) for r in rounds),
    }


def markdown(result):
    sides = result["summary"]
    reference = sides[result["reference"]]
    one = next(iter(sides.values()))
    rows = [[name, f"{s['seconds_min']:.1f} s", f"{s['seconds_median']:.1f} s", f"{reference['seconds_min'] / s['seconds_min']:.2f}",
             f"{s['step_seconds_median']:.3f} s", mib(s["own_rss_bytes"]), f"{100 * s['accuracy']:.1f} %"] for name, s in sides.items()]
    return "\n".join([
        f"{machine_line(result)}, {result['rounds']} rounds in turns. One epoch of {one['steps']} steps, {one['tokens']:,} tokens without padding.",
        "",
        *table(["", "epoch, min", "median", f"times faster than {result['reference']}", "median step", "MiB above imports",
                "accuracy of the first"], rows),
        "", f"    {result['command']}", *(f"    {line}" for line in result["commands"].values()), ""])


def main():
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        data = limited(args.data, args.limit, folder / "data") if args.limit else args.data
        run_folder = folder / "run"
        commands = {name: command(args, name, args.model, data, run_folder) for name in args.names}
        recorded = {name: shlex.join(map(str, command(args, name, "MODEL", "DATA", "RUN"))) for name in args.names}
        described = machine(args.threads)
        text = ""
        # a run folder is for one run
        fresh = lambda name, index: shutil.rmtree(run_folder, ignore_errors=True)
        for runs in in_turns(commands, args.rounds, args.threads, "seconds", prepare=fresh):
            sides = {name: summary(found) for name, found in runs.items()}
            for key in ("steps", "tokens"):
                if len({side[key] for side in sides.values()}) > 1:
                    stop(f"expected the same {key} of all, found { {name: side[key] for name, side in sides.items()} }")
            result = {
                **described,
                "rounds": len(runs[args.names[0]]),
                "reference": args.reference,
                "commands": recorded,
                "summary": sides,
                "runs": {name: [figures(run) for run in found] for name, found in runs.items()},
            }
            text = markdown(result)
            write(args.out, result, text)
    print(text)


if __name__ == "__main__":
    main()
