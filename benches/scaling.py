"""Time and kept bytes of a step against the batch and against the length: a table and a picture.

    cargo build --release
    python3 benches/scaling.py --model-config benches/minilm.json exact lean@0.3 --out benches/results/scaling.json

Runs `colrow bench` with the configuration's positions raised to the longest length: sequences of `--seq` tokens in batches of 8 to 256,
and batches of `--batch` sequences of 64 to 2,048 tokens. All points are run in turns, `--rounds` times; seconds are the least. To the seconds
of each method a cost is fitted that is constant, plus one a token, plus one a pair of tokens in a sequence, which is attention's; the table says how
far measured and fitted are apart, and what share attention has. Needs nothing but Python's own library.
"""

import argparse
import json
import shlex
import tempfile
from pathlib import Path

import charts
import methods
from side_by_side import add_programs, changed, in_turns, machine, machine_line, mib, positive, stop, table, write


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=["exact"], metavar="NAME", help="what runs (methods.py; default: exact)")
    parser.add_argument("--model-config", required=True, type=Path, help="a BERT config.json")
    parser.add_argument("--batches", type=positive, nargs="+", default=[8, 16, 32, 64, 128, 256])
    parser.add_argument("--lengths", type=positive, nargs="+", default=[64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--seq", type=positive, default=128, help="length where the batch changes")
    parser.add_argument("--batch", type=positive, default=8, help="batch where the length changes")
    parser.add_argument("--layers", type=positive, help="in place of the configuration's")
    parser.add_argument("--steps", type=positive, default=2, help="timed steps of each process")
    parser.add_argument("--rounds", type=positive, default=2)
    add_programs(parser)
    args = parser.parse_args()
    methods.checked(args.names)
    if any(map(methods.is_torch, args.names)):
        stop("expected ways to train with colrow, found torch")
    return args


def fitted(shapes, seconds):
    """The least-squares cost of shapes (batch, length) relative to their seconds: (constant, a token, a pair of tokens), none below 0."""
    columns = [lambda b, s: 1.0, lambda b, s: b * s, lambda b, s: b * s * s]
    used = list(range(3))
    while True:
        # relative errors count, so that small shapes weigh as much as large ones
        rows = [[columns[c](*shape) / time for c in used] for shape, time in zip(shapes, seconds)]
        solution = solved([[sum(r[i] * r[j] for r in rows) for j in range(len(used))] for i in range(len(used))],
                          [sum(r[i] for r in rows) for i in range(len(used))])
        if min(solution) >= 0 or len(used) == 1:
            found = [0.0, 0.0, 0.0]
            for c, cost in zip(used, solution):
                found[c] = cost
            return found
        # a cost below 0 is noise: without it, once more
        del used[solution.index(min(solution))]


def solved(matrix, right):
    """Gauss with pivots, for a few unknowns."""
    n = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(i + 1, n):
            factor = rows[r][i] / rows[i][i]
            rows[r] = [a - factor * b for a, b in zip(rows[r], rows[i])]
    found = [0.0] * n
    for i in reversed(range(n)):
        found[i] = (rows[i][n] - sum(rows[i][j] * found[j] for j in range(i + 1, n))) / rows[i][i]
    return found


def markdown(result, shapes):
    lines = [
        f"{machine_line(result)}, {result['rounds']} rounds in turns, the least of {result['steps']} steps each. {result['model']}.", "",
    ]
    for name, points in result["points"].items():
        cost = result["costs"][name]
        rows = []
        for shape in shapes:
            point = points[str(shape)]
            batch, seq = shape
            tokens = batch * seq
            fit = cost[0] + cost[1] * tokens + cost[2] * tokens * seq
            rows.append([f"{batch} × {seq}", f"{tokens:,}", f"{point['seconds']:.3f} s", f"{1e6 * point['seconds'] / tokens:.1f} µs",
                         f"{100 * (point['seconds'] / fit - 1):+.0f} %", f"{100 * cost[2] * tokens * seq / fit:.0f} %",
                         mib(point["kept_bytes"]), f"{point['kept_bytes'] / tokens:,.0f}", mib(point["peak_bytes"])])
        lines += [f"## {name}", "",
                  f"Fitted: {1e3 * cost[0]:.0f} ms + {1e6 * cost[1]:.1f} µs a token + {1e9 * cost[2]:.2f} ns a pair of tokens in a sequence.", "",
                  *table(["batch × length", "tokens", "step", "a token", "from fit", "attention, by fit", "kept, MiB", "kept bytes a token", "peak, MiB"],
                         rows), ""]
    return "\n".join([*lines, f"    {result['command']}", f"    {result['example']}", ""])


def picture(args, points):
    """Seconds and kept bytes, against batch and length."""
    def panel(title, key, scale, shapes, axis, across):
        curves = {name: [(shape[axis], points[name][str(shape)][key] / scale) for shape in shapes] for name in args.names}
        return title, across, curves

    by_batch, by_length = shapes_of(args)
    sides = ((by_batch, 0, f"sequences of {args.seq} tokens in a batch"), (by_length, 1, f"tokens a sequence, {args.batch} in a batch"))
    return charts.rows_of_panels(args.names, [
        [panel("Seconds a step", "seconds", 1, *side) for side in sides],
        [panel("Kept for the backward pass, MiB", "kept_bytes", 2**20, *side) for side in sides],
    ])


def shapes_of(args):
    return [(batch, args.seq) for batch in sorted(args.batches)], [(args.batch, seq) for seq in sorted(args.lengths)]


def main():
    args = arguments()
    settings = json.loads(args.model_config.read_text())
    layers = args.layers or settings["num_hidden_layers"]
    longest = max([*args.lengths, args.seq])
    shapes = list(dict.fromkeys(sum(shapes_of(args), [])))
    with tempfile.TemporaryDirectory() as folder:
        config = changed(args.model_config, folder, max_position_embeddings=longest, num_hidden_layers=layers)
        command = lambda name, shape, config: [args.colrow, "bench", "--model-config", config, "--batch", shape[0], "--seq", shape[1],
                                               "--steps", args.steps, "--json", *methods.bench_arguments(name)]
        commands = {f"{name}, {b} × {s}": command(name, (b, s), config) for b, s in shapes for name in args.names}
        described = machine(args.threads)
        for runs in in_turns(commands, args.rounds, args.threads, "step_seconds_min"):
            point = lambda found: {"seconds": min(r["step_seconds_min"] for r in found),
                                   "kept_bytes": found[0]["kept_bytes"], "peak_bytes": found[0]["peak_bytes"]}
            # a first round that is not complete yields nothing, so that every shape has a run here
            points = {name: {str((b, s)): point(runs[f"{name}, {b} × {s}"]) for b, s in shapes} for name in args.names}
            seconds = {name: [points[name][str(shape)]["seconds"] for shape in shapes] for name in args.names}
            result = {
                **described,
                "rounds": len(next(iter(runs.values()))),
                "steps": args.steps,
                "model": f"{args.model_config.name}: {settings['hidden_size']} columns, {layers} layers, positions up to {longest}",
                "example": shlex.join(map(str, command(args.names[0], shapes[0], args.model_config))),
                "costs": {name: fitted(shapes, seconds[name]) for name in args.names},
                "points": points,
            }
            text = markdown(result, shapes)
            write(args.out, result, text)
            if args.out:
                args.out.with_suffix(".svg").write_text(picture(args, points))
    print(text)


if __name__ == "__main__":
    main()
