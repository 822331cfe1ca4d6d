#!/usr/bin/env python3
"""Accuracy, kept bytes and time of exact and sampled training on GLUE's SST-2 and RTE, several seeds each.

    python3 benches/sampling_accuracy.py --model DIR --glue DIR --out benches/results/NAME

Runs `colrow train recipes/{sst2,rte}.toml` with the settings below, one after another, and writes NAME.json and NAME.md.
Runs that are there already are not run again. Needs nothing but Python 3.
"""

import argparse
import json
import platform
import statistics
import subprocess
import time
from pathlib import Path

# rank, alpha and dropout of Liu et al. (2023), on q, k, v; their learning rate (2e-4) is for many more steps than these tasks take here
LORA = ["train.method=lora", "lora.rank=32", "lora.alpha=32", "lora.dropout=0.1", "optim.lr=2e-3"]
SETTINGS = {
    "exact": ["keep.policy=exact"],
    "wta@0.3": ["keep.policy=paper", "keep.estimator=wta", "keep.ratio=0.3"],
    "crs@0.3": ["keep.policy=paper", "keep.estimator=crs", "keep.ratio=0.3"],
    "topk@0.3": ["keep.policy=paper", "keep.estimator=topk", "keep.ratio=0.3"],
    "pps@0.3": ["keep.policy=paper", "keep.estimator=pps", "keep.ratio=0.3"],
    # drawn in the backward pass by the true norms, the input rebuilt from the norm or GELU before it where there is one
    "pps@0.3 current": ["keep.policy=paper", "keep.estimator=pps", "keep.ratio=0.3", "keep.norms=current"],
    "pps@0.1": ["keep.policy=paper", "keep.estimator=pps", "keep.ratio=0.1"],
    "LoRA": ["keep.policy=exact", *LORA],
    "LoRA pps@0.3": ["keep.policy=paper", "keep.estimator=pps", "keep.ratio=0.3", *LORA],
}
TASKS = {
    "sst2": ("SST-2", ["data.limit=8000", "train.epochs=2"]),
    "rte": ("RTE", []),
}


def command(args, task, name, seed):
    folder, changes = TASKS[task]
    sets = [
        f"model.path={args.model}",
        f"data.train={args.glue}/{folder}",
        f"seed={seed}",
        f"output={args.runs}/{task}/{name}-{seed}",
        *changes,
        *SETTINGS[name],
    ]
    return [args.colrow, "train", f"recipes/{task}.toml", "--json", *(f"--set={s}" for s in sets)]


def run(args, task, name, seed):
    summary = Path(args.runs) / task / f"{name}-{seed}" / "summary.json"
    if not summary.exists():
        subprocess.run(command(args, task, name, seed), check=True, stdout=subprocess.DEVNULL)
    return json.loads(summary.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--glue", required=True, help="folder with SST-2/ and RTE/")
    parser.add_argument("--out", required=True, help="results, without extension")
    parser.add_argument("--runs", default="runs/sampling_accuracy", help="run folders")
    parser.add_argument("--colrow", default="target/release/colrow")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()

    rows = []
    # seeds outermost: whatever slows the machine meets every setting alike
    for task in args.tasks:
        for seed in args.seeds:
            for name in SETTINGS:
                s = run(args, task, name, seed)
                rows.append({"task": task, "name": name, "seed": seed, "accuracy": s["final"]["accuracy"],
                             "loss": s["final"]["loss"], "kept_bytes": s["kept_bytes"], "peak_bytes": s["peak_bytes"],
                             "peak_rss_bytes": s["peak_rss_bytes"], "step_seconds_median": s["step_seconds_median"],
                             "steps": s["steps"]})
                print(rows[-1], flush=True)

    lines = [f"Date: {time.strftime('%Y-%m-%d')}. {platform.processor() or platform.machine()}, "
             f"{len(args.seeds)} seeds ({args.seeds}). Accuracy after the last step, mean ± standard deviation over seeds.", ""]
    for task in args.tasks:
        lines += [f"## {TASKS[task][0]}", "", "Command, here for exact and the first seed:", "",
                  "    " + " ".join(command(args, task, "exact", args.seeds[0])), ""]
        lines += [f"Others add: " + "; ".join(f"{n}: " + " ".join(f"--set={s}" for s in v)
                                              for n, v in SETTINGS.items() if v) + ".", ""]
        lines += ["| | accuracy | dev loss | kept (largest step) | peak | median step |", "|---|---|---|---|---|---|"]
        for name in SETTINGS:
            some = [r for r in rows if r["task"] == task and r["name"] == name]
            mean = lambda key: statistics.mean(r[key] for r in some)
            spread = statistics.stdev(r["accuracy"] for r in some) if len(some) > 1 else 0.0
            lines.append(f"| {name} | {100 * mean('accuracy'):.2f} ± {100 * spread:.2f} % | {mean('loss'):.4f} "
                         f"| {mean('kept_bytes') / 2**20:.1f} MiB | {mean('peak_bytes') / 2**20:.1f} MiB "
                         f"| {mean('step_seconds_median'):.3f} s |")
        lines.append("")
    Path(args.out + ".json").write_text(json.dumps(rows, indent=1) + "\n")
    Path(args.out + ".md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
