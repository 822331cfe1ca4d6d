#!/usr/bin/env python3
"""Matrix products of BERT-base: ours and PyTorch's (oneDNN), bf16 and f32, in turns.

    python3 benches/gemm_bf16.py --threads 2 --rounds 20

Ours takes and gives f32 and rounds while it packs. PyTorch's is timed on bf16 tensors, and with the casts from and to f32 that its
autocast would make. Each figure is the fastest call of all rounds, in GFLOP/s (2·m·k·n a product).
"""

import argparse
import os
import subprocess
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
# m, k, n, which operands are stored transposed, and what it is in a layer
SHAPES = [
    (4096, 768, 2304, "nt", "q, k, v"),
    (4096, 768, 768, "nt", "attention output"),
    (4096, 768, 3072, "nt", "feed-forward up"),
    (4096, 3072, 768, "nt", "feed-forward down"),
    (4096, 3072, 768, "nn", "dx of up"),
    (3072, 4096, 768, "tn", "dW of up"),
    (3072, 1229, 768, "tn", "dW of up, 30 % of the rows"),
    (768, 1229, 3072, "tn", "dW of down, 30 % of the rows"),
    (64, 768, 3072, "nt", "64 rows"),
    (32, 768, 768, "nt", "pooler"),
]
COLUMNS = ["ours bf16", "PyTorch bf16", "PyTorch f32 → bf16 → f32", "ours f32", "PyTorch f32"]
CALLS = 3


def fastest(call):
    call()
    times = []
    for _ in range(CALLS):
        clock = time.perf_counter()
        call()
        times.append(time.perf_counter() - clock)
    return min(times)


def theirs(m, k, n, op):
    a = torch.randn(k, m).t() if op[0] == "t" else torch.randn(m, k)
    b = torch.randn(n, k).t() if op[1] == "t" else torch.randn(k, n)
    low = a.bfloat16(), b.bfloat16()  # keep their strides
    return [
        fastest(lambda: low[0] @ low[1]),
        fastest(lambda: (a.bfloat16() @ b.bfloat16()).float()),
        fastest(lambda: a @ b),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    command = ["cargo", "bench", "--quiet", "--package", "colrow-tensor", "--bench", "products"]
    env = dict(os.environ, RAYON_NUM_THREADS=str(args.threads))
    ours = subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(*words):
        print(*words, file=ours.stdin, flush=True)
        return float(ours.stdout.readline())

    roof = float("inf")
    best = [[float("inf")] * len(COLUMNS) for _ in SHAPES]
    for _ in range(args.rounds):
        roof = min(roof, ask("roof"))
        for row, (m, k, n, op, _) in zip(best, SHAPES):
            bf16 = ask(m, k, n, op, "bf16")
            low, cast, full = theirs(m, k, n, op)
            # PyTorch's threads wait actively for a while
            time.sleep(0.01)
            for i, seconds in enumerate([bf16, low, cast, ask(m, k, n, op, "f32"), full]):
                row[i] = min(row[i], seconds)
    ours.stdin.close()
    print(f"PyTorch {torch.__version__}, {args.threads} threads, {args.rounds} rounds; roof of bf16 {10 / roof:.0f} GFLOP/s\n")
    print("| (m × k)·(k × n) | | " + " | ".join(COLUMNS) + " | ours / PyTorch bf16 | share of the roof |")
    print("|---" * (len(COLUMNS) + 4) + "|")
    for (m, k, n, op, what), row in zip(SHAPES, best):
        rates = [2e-9 * m * k * n / seconds for seconds in row]
        figures = " | ".join(f"{rate:.0f}" for rate in rates)
        print(f"| ({m} × {k})·({k} × {n}) {op} | {what} | {figures} | {rates[0] / rates[1]:.2f} | {rates[0] * roof / 10:.2f} |")


if __name__ == "__main__":
    main()
