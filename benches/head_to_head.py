"""colrow and PyTorch side by side: the same training step in every way that is named, each in its own process, in turns.

    cargo build --release
    python3 benches/head_to_head.py --python VENV/bin/python --model-config benches/bert-base.json --batch 32 --seq 128 \\
        exact lean@0.3 "lean@0.3 bf16" torch "torch bf16" "torch checkpointing" --reference torch --reference "torch bf16" \\
        --rounds 3 --out benches/results/bert-base.json

methods.py says how names are made. Every round runs each once; the one that goes first changes from round to round. The minimum
is the least over all rounds, the median is the median of the rounds' medians, bytes are the most over all rounds. Prints a
Markdown table and one of ratios for each reference, and writes them beside the JSON of `--out`, anew after every round. Needs
nothing but Python's own library; what runs PyTorch is said by `--python`.
"""

import argparse
import random
import shlex
import statistics
import tempfile
from pathlib import Path

import methods
from side_by_side import add_programs, add_python, changed, in_turns, machine, machine_line, mib, positive, script, stop, table, write

NO_DROPOUT = {key: 0.0 for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "dropout_rate")}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=["exact", "torch"], metavar="NAME", help="what runs (default: exact torch)")
    parser.add_argument("--reference", action="append", metavar="NAME",
                        help="what the others are compared with; may be repeated (default: the first of PyTorch)")
    parser.add_argument("--model-config", required=True, help="config.json of a BERT, a T5 or a decoder")
    parser.add_argument("--batch", type=positive, required=True, help="sequences a step")
    parser.add_argument("--seq", type=positive, required=True, help="tokens of the longest sequence")
    parser.add_argument("--target", type=positive, default=8, help="tokens of each target, for T5")
    parser.add_argument("--lengths", choices=["equal", "uniform"], default="equal",
                        help="uniform: drawn from 16..SEQ, the same for all; PyTorch pads them to the longest")
    parser.add_argument("--steps", type=positive, default=3, help="timed steps of each process")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--dropout", choices=["on", "off"], default="on", help="on: as config.json says; off: all get a copy without dropout")
    add_programs(parser)
    add_python(parser)
    args = parser.parse_args()
    methods.checked(args.names)
    args.reference = args.reference or [name for name in args.names if methods.is_torch(name)][:1] or args.names[:1]
    for name in args.reference:
        if name not in args.names:
            stop(f"--reference: expected one of {', '.join(args.names)}, found {name!r}")
    if args.lengths == "uniform" and args.seq < 16:
        stop(f"--lengths uniform: expected --seq of at least 16, found {args.seq}")
    return args


def draw_lengths(args):
    draws = random.Random(0)
    return [draws.randint(16, args.seq) for _ in range(args.batch)]


def command(args, name, config, lengths_file):
    sizes = ["--lengths-file", lengths_file] if lengths_file else ["--batch", args.batch, "--seq", args.seq]
    sizes = ["--model-config", config, *sizes, "--target", args.target, "--steps", args.steps]
    if methods.is_torch(name):
        return [args.python, script("pytorch_step.py"), *sizes, "--threads", args.threads, *methods.torch_arguments(name)]
    return [args.colrow, "bench", *sizes, "--json", *methods.bench_arguments(name)]


def summary(rounds):
    """The figures of one over its rounds."""
    found = {
        "step_seconds_min": min(r["step_seconds_min"] for r in rounds),
        "step_seconds_median": statistics.median(r["step_seconds_median"] for r in rounds),
    }
    for key in ("tokens", "padded_tokens", "kept_bytes", "peak_rss_bytes", "import_rss_bytes", "trainable_parameters", "frozen_parameters"):
        if key in rounds[0]:
            found[key] = max(r[key] for r in rounds)
    found["own_rss_bytes"] = found["peak_rss_bytes"] - found.get("import_rss_bytes", 0)
    # weight, gradient and two moments in f32; the rule is one for all, whatever a method makes of them
    states = 16 * found["trainable_parameters"] + 4 * found["frozen_parameters"]
    found["beyond_states_bytes"] = found["own_rss_bytes"] - states
    return found


FIGURES = (
    ("step, min", "step_seconds_min", lambda s: f"{s:.3f} s"),
    ("step, median", "step_seconds_median", lambda s: f"{s:.3f} s"),
    ("kept", "kept_bytes", mib),
    ("peak RSS", "peak_rss_bytes", mib),
    ("above imports", "own_rss_bytes", mib),
    ("beyond states", "beyond_states_bytes", mib),
    ("trained", "trainable_parameters", lambda n: f"{n:,}"),
)
RATIOS = (
    ("times faster, by min", "step_seconds_min"),
    ("by median", "step_seconds_median"),
    ("times less kept", "kept_bytes"),
    ("above imports", "own_rss_bytes"),
    ("beyond states", "beyond_states_bytes"),
)


def ratio(reference, one):
    """How many times less than the reference; meaningless if nothing is left."""
    return f"{reference / one:.2f}" if reference > 0 and one > 0 else "–"


def markdown(result):
    sides = result["summary"]
    tokens = next(iter(sides.values()))["tokens"]
    lines = [
        f"{machine_line(result)}, {result['rounds']} rounds in turns; "
        f"{''.join(f'{name} {version}, ' for name, version in result['versions'].items())}"
        f"{tokens} tokens a step, dropout {'as in the configuration' if result['dropout'] == 'on' else 'off'}.",
        "",
        "Sizes in MiB. Kept: for the backward pass. Above imports: peak RSS without that of Python and its libraries before a model exists. "
        "Beyond states: without 16 bytes a trained and 4 a frozen parameter either.",
        "",
        *table(["", *(title for title, _, _ in FIGURES)],
               [[name, *(form(side[key]) for _, key, form in FIGURES)] for name, side in sides.items()]),
    ]
    for reference in result["reference"]:
        rows = [[name, *(ratio(sides[reference][key], side[key]) for _, key in RATIOS)] for name, side in sides.items()]
        lines += ["", f"Against {reference}:", "", *table(["", *(title for title, _ in RATIOS)], rows)]
    lines += ["", f"    {result['command']}", *(f"    {line}" for line in result["commands"].values()), ""]
    return "\n".join(lines)


def versions(runs):
    """Of PyTorch and transformers, if they ran."""
    for found in runs.values():
        if "torch" in found[0]:
            return {key: found[0][key] for key in ("torch", "transformers")}
    return {}


def main():
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        config = args.model_config if args.dropout == "on" else changed(args.model_config, folder, **NO_DROPOUT)
        lengths, lengths_file = None, None
        if args.lengths == "uniform":
            lengths = draw_lengths(args)
            lengths_file = args.out.with_suffix(".lengths") if args.out else Path(folder) / "lengths"
            lengths_file.parent.mkdir(parents=True, exist_ok=True)
            lengths_file.write_text(" ".join(map(str, lengths)) + "\n")
        commands = {name: command(args, name, config, lengths_file) for name in args.names}
        # a copy of the configuration is gone afterwards: the record names the original
        recorded = {name: shlex.join(map(str, command(args, name, args.model_config, lengths_file))) for name in args.names}
        described = machine(args.threads)
        text = ""
        for runs in in_turns(commands, args.rounds, args.threads, "step_seconds_min"):
            counts = {name: found[0]["tokens"] for name, found in runs.items()}
            if len(set(counts.values())) > 1:
                stop(f"expected the same tokens a step from all, found {counts}")
            result = {
                **described,
                "rounds": len(runs[args.names[0]]),
                "dropout": args.dropout,
                "lengths": lengths,
                "commands": recorded,
                "versions": versions(runs),
                "reference": args.reference,
                "summary": {name: summary(found) for name, found in runs.items()},
                "runs": runs,
            }
            text = markdown(result)
            write(args.out, result, text)
    print(text)


if __name__ == "__main__":
    main()
