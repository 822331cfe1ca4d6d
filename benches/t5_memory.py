#!/usr/bin/env python3
"""Kept bytes and peak of T5 at batch 100 × 128 tokens by `colrow plan`, beside the published figures (Liu et al. 2023, table 2).

    python3 benches/t5_setup.py --glue DIR --out DIR
    python3 benches/t5_memory.py --models DIR --out benches/results/NAME.json
"""

import argparse
from pathlib import Path

import methods
from side_by_side import add_programs, machine, machine_line, run, table, write

LORA = "lora lora.rank=32 lora.alpha=32 lora.dropout=0.1"
SETTINGS = {
    "full": "exact",
    "LoRA": f"exact {LORA}",
    "wta@0.3": "paper@0.3 wta",
    "wta@0.1": "paper@0.1 wta",
    "LoRA wta@0.3": f"paper@0.3 wta {LORA}",
    "LoRA wta@0.1": f"paper@0.1 wta {LORA}",
}
# GB on the GPU
PUBLISHED = {
    "base": [17.66, 13.84, 8.44, 7.30, 6.50, 5.44],
    "large": [45.85, 36.83, 21.58, 18.46, 17.44, 14.64],
}
RECIPE = """task = "sst2"
[data]
max_length = 128
max_target_length = 8
[train]
batch = 100
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", required=True, type=Path, help="what t5_setup.py made")
    add_programs(parser)
    args = parser.parse_args()
    recipe = args.models / "memory.toml"
    recipe.write_text(RECIPE)
    data = args.models / "long.tsv"
    result = {**machine(args.threads), "plans": {}}
    lines = [f"{machine_line(result)}. Plans for the CPU back end.", "", "# T5 at batch 100 × 128 tokens", "",
             "Kept: bytes for the backward pass. GB are 10⁹ bytes.", ""]
    gb = lambda size: f"{size / 1e9:.2f}"
    for size in ("small", "base", "large", "3b"):
        plans, rows = result["plans"].setdefault(size, {}), []
        for i, (name, words) in enumerate(SETTINGS.items()):
            sets = [f"model.path={args.models}/t5-{size}", f"data.train={data}", f"data.dev={data}", *methods.recipe_sets(words)]
            plan = run(name, [args.colrow, "plan", recipe, "--json", *(f"--set={pair}" for pair in sets)], args.threads)
            assert plan["tokens"] == 12800, plan["tokens"]
            plans[name] = {key: plan[key] for key in ("kept_bytes", "peak_bytes", "peak_bytes_by_class")}
            published = PUBLISHED.get(size)
            theirs = [gb(1e9 * published[i]), f"{published[0] / published[i]:.2f}"] if published else ["", ""]
            by_class = [gb(plan["peak_bytes_by_class"][c]) for c in ("weights", "gradients", "optimizer", "workspace")]
            rows.append([name, gb(plan["kept_bytes"]), gb(plan["peak_bytes"]), *by_class, f"{plans['full']['peak_bytes'] / plan['peak_bytes']:.2f}", *theirs])
        head = ["", "kept", "peak", "weights", "gradients", "optimizer", "workspace", "times less than full", "published", "times less"]
        lines += [f"## T5-{size}", "", *table(head, rows), ""]
    text = "\n".join([*lines, f"    {result['command']}", ""])
    write(args.out, result, text)
    print(text)


if __name__ == "__main__":
    main()
