"""Accuracy, kept bytes and time of exact training and of what saves memory, on GLUE's SST-2 and RTE, several seeds each.

    cargo build --release
    python3 benches/sampling_accuracy.py --model DIR --glue DIR --out benches/results/NAME.json main ingredients

Runs `colrow train recipes/{sst2,rte}.toml` for every method of the groups below, or that is named (methods.py), one after another, and
writes the results and a table of what has been run so far. Stop it when you like: started again, it goes on with the run that was
stopped, and runs nothing twice whose summary is in `--runs` (so take another folder for another build or other settings). Differences to
exact are taken seed by seed. Needs nothing but Python's own library.
"""

import argparse
import json
import shlex
import statistics
from pathlib import Path

import methods
from side_by_side import add_programs, cached_model, machine, machine_line, mean_and_deviation, mib, run, script, stop, table, write

# Liu et al. (2023) on q, k, v, with a learning rate for the fewer steps that these tasks take here
LORA = "lora lora.rank=32 lora.alpha=32 lora.dropout=0.1 optim.lr=2e-3"
GROUPS = {
    "main": ["exact", "paper@0.3", "lean@0.3", "lean@0.1"],
    # one at a time beside exact training: which of lean's parts costs what
    "ingredients": [
        *(f"exact {part}" for part in ("int8-norms", "int8-attention", "bf16-attention", "int8-activations", "int4-activations")),
        # rows drawn late, by the true norms, and in the forward pass, by each source of norms there is then
        *(f"rows@0.3 {norms}" for norms in ("current", "cached", "running", "uniform")),
    ],
    "estimators": [f"paper@0.3 {estimator}" for estimator in ("wta", "crs", "topk", "pps")],
    "adapters": [f"exact {LORA}", f"paper@0.3 {LORA}", f"lean@0.3 {LORA}"],
}
TASKS = {
    "sst2": ("SST-2", ["data.limit=8000", "train.epochs=2"]),
    "rte": ("RTE", []),
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=["main"], metavar="NAME", help=f"methods, or groups of them: {', '.join(GROUPS)} (default: main)")
    parser.add_argument("--model", type=Path, default=cached_model(), help="model folder (default: quickstart's)")
    parser.add_argument("--glue", required=True, type=Path, help="folder with SST-2/ and RTE/")
    parser.add_argument("--runs", type=Path, default="runs/sampling_accuracy", help="run folders")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every run, after the method's own; may be repeated")
    add_programs(parser)
    args = parser.parse_args()
    # exact is what the others are compared with
    named = [method for name in ["exact", *args.names] for method in GROUPS.get(name, [name])]
    args.names = methods.checked(list(dict.fromkeys(named)))
    if any(map(methods.is_torch, args.names)):
        stop("expected ways to train with colrow, found torch")
    return args


def command(args, task, name, seed, model, glue, output):
    folder, changes = TASKS[task]
    sets = [f"model.path={model}", f"data.train={glue}/{folder}", f"seed={seed}", f"output={output}", *changes,
            *methods.recipe_sets(name), *args.set]
    return [args.colrow, "train", script(f"../recipes/{task}.toml"), "--json", *(f"--set={pair}" for pair in sets)]


def run_folder(args, task, name, seed):
    return args.runs / task / f"{name.replace(' ', '_')}-{seed}"


def summary(args, task, name, seed):
    """The run's summary, from its folder if it has ended."""
    folder = run_folder(args, task, name, seed)
    done = folder / "summary.json"
    if done.exists():
        return json.loads(done.read_text())
    again = ["--resume"] if (folder / "recipe.toml").exists() else []
    return run(name, [*command(args, task, name, seed, args.model, args.glue, folder), *again], args.threads)


def figures(task, name, seed, summary):
    keys = ("kept_bytes", "peak_bytes", "peak_rss_bytes", "step_seconds_median", "steps")
    final = summary["final"]
    return {"task": task, "name": name, "seed": seed, "accuracy": final["accuracy"], "loss": final["loss"], **{key: summary[key] for key in keys}}


def percent(mean, deviation, sign=""):
    return f"{100 * mean:{sign}.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")


def row(name, runs, exact):
    """A method's line of the table; `exact` has the exact runs by seed."""
    mean = lambda key: statistics.mean(r[key] for r in runs)
    differences = [r["accuracy"] - exact[r["seed"]]["accuracy"] for r in runs if r["seed"] in exact]
    return [name, str(len(runs)), percent(*mean_and_deviation([r["accuracy"] for r in runs])),
            percent(*mean_and_deviation(differences), sign="+") if name != "exact" and differences else "", f"{mean('loss'):.4f}",
            mib(mean("kept_bytes")), mib(mean("peak_bytes")), f"{mean('step_seconds_median'):.3f} s"]


def markdown(args, result):
    lines = [f"{machine_line(result)}. Accuracy in % after the last step, mean ± standard deviation over seeds {args.seeds}; to exact: of the "
             "differences seed by seed. Sizes in MiB: kept in the largest step, peak on the meter.", ""]
    for task in args.tasks:
        of_task = [r for r in result["runs"] if r["task"] == task]
        exact = {r["seed"]: r for r in of_task if r["name"] == "exact"}
        rows = [row(name, some, exact) for name in args.names if (some := [r for r in of_task if r["name"] == name])]
        example = shlex.join(map(str, command(args, task, "exact", args.seeds[0], "MODEL", "GLUE", "RUN")))
        lines += [f"## {TASKS[task][0]}", "",
                  *table(["", "seeds", "accuracy", "to exact", "dev loss", "kept", "peak", "median step"], rows), "", f"    {example}", ""]
    return "\n".join([*lines, f"    {result['command']}", ""])


def main():
    args = arguments()
    result = {**machine(args.threads), "runs": []}
    # seeds outermost: whatever slows the machine meets every method alike
    for task in args.tasks:
        for seed in args.seeds:
            for name in args.names:
                result["runs"].append(figures(task, name, seed, summary(args, task, name, seed)))
                print(result["runs"][-1], flush=True)
                write(args.out, result, markdown(args, result))
    print(markdown(args, result))


if __name__ == "__main__":
    main()
