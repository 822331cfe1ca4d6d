"""Held-out loss of a decoder tuned on conversations: exact training and what saves memory, several seeds each.

    cargo build --release
    python3 benches/chat_accuracy.py --model DIR --data DIR --out benches/results/NAME.json exact lean@0.3 lean@1.0 recompute

`--data` holds train.jsonl and valid.jsonl; `colrow quickstart --chat` fetches such a model and such conversations. Runs `colrow train`
one after another; what has a summary in `--runs` is not run again. Differences to exact are taken seed by seed. Needs nothing but Python's
own library.
"""

import argparse
import json
import statistics
from pathlib import Path

import methods
from side_by_side import add_programs, machine, machine_line, mean_and_deviation, mib, positive, run, stop, table, write

RECIPE = """task = "chat"
[data]
max_length = 256
[train]
batch_tokens = 512
log_every = 1
[optim]
lr = 2e-5
warmup = 0.1
"""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=["exact", "lean@0.3", "lean@1.0", "recompute"], metavar="NAME", help="methods (methods.py)")
    parser.add_argument("--model", required=True, type=Path, help="model folder")
    parser.add_argument("--data", required=True, type=Path, help="folder with train.jsonl and valid.jsonl")
    parser.add_argument("--steps", type=positive, default=30)
    parser.add_argument("--held-out", type=positive, default=40, help="conversations of valid.jsonl")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default="runs/chat_accuracy", help="run folders")
    add_programs(parser)
    args = parser.parse_args()
    args.names = methods.checked(list(dict.fromkeys(["exact", *args.names])))
    if any(map(methods.is_torch, args.names)):
        stop("expected ways to train with colrow, found torch")
    return args


def summary(args, name, seed):
    folder = args.runs / f"{name.replace(' ', '_')}-{seed}"
    done = folder / "summary.json"
    if not done.exists():
        sets = [f"model.path={args.model.resolve()}", f"data.train={(args.data / 'train.jsonl').resolve()}",
                f"data.dev={(args.runs / 'held-out.jsonl').resolve()}", f"seed={seed}", f"train.steps={args.steps}", f"output={folder}",
                *methods.recipe_sets(name)]
        run(name, [args.colrow, "train", str(args.runs / "recipe.toml"), "--json", *(f"--set={pair}" for pair in sets)], args.threads)
    return json.loads(done.read_text())


def figures(name, seed, summary):
    final = summary["final"]
    return {"name": name, "seed": seed, "loss": final["loss"], "token_accuracy": final["token_accuracy"], "labels": final["labels"],
            **{key: summary[key] for key in ("kept_bytes", "peak_bytes", "peak_rss_bytes", "step_seconds_median", "steps")}}


def row(name, runs, exact):
    mean = lambda key: statistics.mean(r[key] for r in runs)
    loss, spread = mean_and_deviation([r["loss"] for r in runs])
    differences = [r["loss"] - exact[r["seed"]] for r in runs if r["seed"] in exact]
    far, far_spread = mean_and_deviation(differences)
    number = lambda x, of, sign="": f"{x:{sign}.4f}" + (f" ± {of:.4f}" if of is not None else "")
    return [name, str(len(runs)), number(loss, spread), "" if name == "exact" else number(far, far_spread, "+"), f"{100 * mean('token_accuracy'):.2f}",
            mib(mean("kept_bytes")), mib(mean("peak_bytes"))]


def markdown(args, result):
    exact = {r["seed"]: r["loss"] for r in result["runs"] if r["name"] == "exact"}
    rows = [row(name, some, exact) for name in args.names if (some := [r for r in result["runs"] if r["name"] == name])]
    return "\n".join([
        f"{machine_line(result)}. Cross-entropy of {result['runs'][0]['labels']} held-out tokens after {args.steps} steps of at most 512 tokens, mean ± standard "
        f"deviation over seeds {args.seeds}; to exact: of the differences seed by seed. Accuracy: tokens guessed right, in %. Sizes in MiB, of the largest step.", "",
        *table(["", "seeds", "held-out loss", "to exact", "accuracy", "kept", "peak"], rows), "", f"    {result['command']}", ""])


def main():
    args = arguments()
    args.runs.mkdir(parents=True, exist_ok=True)
    (args.runs / "recipe.toml").write_text(RECIPE)
    lines = (args.data / "valid.jsonl").read_text().splitlines(keepends=True)
    (args.runs / "held-out.jsonl").write_text("".join(lines[: args.held_out]))
    result = {**machine(args.threads), "runs": []}
    for seed in args.seeds:
        for name in args.names:
            result["runs"].append(figures(name, seed, summary(args, name, seed)))
            print(result["runs"][-1], flush=True)
            write(args.out, result, markdown(args, result))
    print(markdown(args, result))


if __name__ == "__main__":
    main()
