"""Writes nf4.txt: what bitsandbytes 0.50.2 makes of a few matrices in NF4 with scales that are quantised again.

The 16 levels and the 256 numbers of the dynamic map first; then for each matrix its size and kind (the numbers are those of a generator,
as crates/tensor/src/cpu/nf4.rs makes them), its codes, the codes of its scales, the scales of their blocks of 256 and the mean, and
every seventh number of what they mean. Bytes are in hexadecimal, floats little-endian.

Where columns are no multiple of 64, bitsandbytes' blocks run on from row to row; such matrices here have one row.
"""

from pathlib import Path

import numpy as np
import torch
from bitsandbytes import functional as F

CASES = [
    (1, 64, "uniform"),
    (1, 129, "uniform"),
    (1, 1, "uniform"),
    (4, 128, "cubes"),
    (3, 192, "zeros"),
    (6, 192, "some zeros"),
    (2, 128, "equal"),
    (4, 192, "negative"),
    (8, 256, "outliers"),
    (13, 1344, "cubes"),
    (9, 2048, "outliers"),
]


def numbers(kind, n):
    state, out = 12345, np.empty(n, np.float32)
    for i in range(n):
        state = (state * 1664525 + 1013904223) % 2**32
        x = np.float32(state >> 8) / np.float32(16777216) - np.float32(0.5)
        out[i] = {
            "uniform": lambda: x,
            "cubes": lambda: x * x * x,
            "zeros": lambda: 0,
            "some zeros": lambda: x * np.float32(i // 64 % 3 != 1 and i % 5 != 0),
            "equal": lambda: 0.75,
            "negative": lambda: -abs(x) - np.float32(0.125),
            "outliers": lambda: x * np.float32(1024 if i % 211 == 7 else 1),
        }[kind]()
    return out


def hexed(tensor, dtype):
    return np.asarray(tensor.detach().cpu().numpy().reshape(-1), dtype).tobytes().hex()


lines = [
    "levels " + hexed(F.get_4bit_type("nf4", device="cpu"), "<f4"),
    "dynamic " + hexed(F.create_dynamic_map(), "<f4"),
]
for rows, cols, kind in CASES:
    x = torch.tensor(numbers(kind, rows * cols)).reshape(rows, cols)
    codes, state = F.quantize_4bit(x, blocksize=64, compress_statistics=True, quant_type="nf4")
    back = F.dequantize_4bit(codes, state)
    assert state.nested and state.state2.blocksize == 256
    blocks = torch.cat([state.state2.absmax.reshape(-1), state.offset.reshape(1)])
    lines += [
        f"{rows}x{cols} {kind}",
        "codes " + hexed(codes, np.uint8),
        "scales " + hexed(state.absmax, np.uint8),
        "blocks " + hexed(blocks, "<f4"),
        "numbers " + hexed(back.reshape(-1)[::7], "<f4"),
    ]
Path(__file__).with_name("nf4.txt").write_text("\n".join(lines) + "\n")
