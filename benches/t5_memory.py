#!/usr/bin/env python3
"""Kept bytes and peak of T5 at batch 100 × 128 tokens by `colrow plan`, beside the published figures (Liu et al. 2023, table 2).

    python3 benches/t5_setup.py --glue DIR --out DIR
    python3 benches/t5_memory.py --models DIR --out benches/results/NAME.md
"""

import argparse
import json
import subprocess
import time
from pathlib import Path

LORA = ["train.method=lora", "lora.rank=32", "lora.alpha=32", "lora.dropout=0.1"]
PAPER = ["keep.policy=paper", "keep.estimator=wta"]
SETTINGS = {
    "full": [],
    "LoRA": LORA,
    "wta@0.3": [*PAPER, "keep.ratio=0.3"],
    "wta@0.1": [*PAPER, "keep.ratio=0.1"],
    "LoRA wta@0.3": [*PAPER, *LORA, "keep.ratio=0.3"],
    "LoRA wta@0.1": [*PAPER, *LORA, "keep.ratio=0.1"],
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
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--colrow", default="target/release/colrow")
    args = parser.parse_args()
    recipe = args.models / "memory.toml"
    recipe.write_text(RECIPE)
    lines = [f"Date: {time.strftime('%Y-%m-%d')}. Plans for the CPU back end, two threads, f32.", "",
             "# T5 at batch 100 × 128 tokens", "",
             "`python3 benches/t5_setup.py …; python3 benches/t5_memory.py …`. Kept: bytes for the backward pass. GB are 10⁹ bytes.", ""]
    for size in ("small", "base", "large", "3b"):
        lines += [f"## T5-{size}", "", "| | kept | peak | weights | gradients | optimizer | workspace | times less than full | published | times less |",
                  "|---|---|---|---|---|---|---|---|---|---|"]
        first = None
        for i, (name, sets) in enumerate(SETTINGS.items()):
            data = args.models / "long.tsv"
            sets = [f"model.path={args.models}/t5-{size}", f"data.train={data}", f"data.dev={data}", *sets]
            out = subprocess.run([args.colrow, "plan", recipe, "--json", *(f"--set={s}" for s in sets)], check=True,
                                 stdout=subprocess.PIPE).stdout
            plan = json.loads(out)
            assert plan["tokens"] == 12800, plan["tokens"]
            gb = lambda n: f"{n / 1e9:.2f}"
            by = plan["peak_bytes_by_class"]
            first = first or plan["peak_bytes"]
            published = PUBLISHED.get(size)
            theirs = [f"{published[i]:.2f}", f"{published[0] / published[i]:.2f}"] if published else ["", ""]
            row = [name, gb(plan["kept_bytes"]), gb(plan["peak_bytes"]), *(gb(by[c]) for c in ("weights", "gradients", "optimizer", "workspace")),
                   f"{first / plan['peak_bytes']:.2f}", *theirs]
            lines.append("| " + " | ".join(row) + " |")
        lines.append("")
    args.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
