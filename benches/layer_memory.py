"""Bytes that one more encoder layer keeps for the backward pass, a token and column, of colrow and of PyTorch.

    python3 benches/layer_memory.py --python VENV/bin/python --model-config benches/bert-base.json --batch 8 --seq 128 \\
        exact paper@0.3 lean@0.3 torch "torch bf16" --out benches/results/bert-layer-memory.json

Runs a step with 2 and one with 4 layers of each: half of the difference is what a layer keeps, without embeddings, head and, in T5, the
decoder's own layers (the k and v that these keep of every source token are no part of it either). Under autocast the bf16 copy of a layer's weights is in it.
"""

import argparse
import json
import tempfile
from pathlib import Path

import methods
from side_by_side import add_programs, add_python, changed, machine, machine_line, mib, positive, run, script, table, write

LAYERS = {"bert": "num_hidden_layers", "t5": "num_layers"}
WIDTH = {"bert": "hidden_size", "t5": "d_model"}


def kept_and_tokens(args, name, layers, folder):
    family = json.loads(Path(args.model_config).read_text())["model_type"]
    config = changed(args.model_config, folder, **{LAYERS[family]: layers}, **({"num_decoder_layers": 2} if family == "t5" else {}))
    sizes = ["--model-config", config, "--batch", args.batch, "--seq", args.seq, "--steps", 1, "--warmup", 0]
    if methods.is_torch(name):
        command = [args.python, script("pytorch_step.py"), *sizes, "--threads", args.threads, *methods.torch_arguments(name)]
    else:
        command = [args.colrow, "bench", *sizes, "--json", *methods.bench_arguments(name)]
    found = run(name, command, args.threads)
    return found["kept_bytes"], found["tokens"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=["exact", "torch"], metavar="NAME", help="what runs (methods.py; default: exact torch)")
    parser.add_argument("--model-config", required=True, help="config.json of a BERT or T5")
    parser.add_argument("--batch", type=positive, default=8, help="sequences a step")
    parser.add_argument("--seq", type=positive, default=128, help="tokens of each sequence")
    add_programs(parser)
    add_python(parser)
    args = parser.parse_args()
    methods.checked(args.names)

    settings = json.loads(Path(args.model_config).read_text())
    width = settings[WIDTH[settings["model_type"]]]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.names:
            (two, tokens), (four, _) = (kept_and_tokens(args, name, layers, folder) for layers in (2, 4))
            found[name] = {"layer_bytes": (four - two) // 2, "bytes_per_token_and_column": (four - two) / 2 / tokens / width}
    most = max(one["layer_bytes"] for one in found.values())
    rows = [[name, mib(one["layer_bytes"]), f"{one['bytes_per_token_and_column']:.2f} d", f"{most / one['layer_bytes']:.2f}"]
            for name, one in found.items()]
    result = {**machine(args.threads), "batch": args.batch, "seq": args.seq, "width": width, "layers": found}
    text = "\n".join([
        f"{machine_line(result)}. {args.model_config}, {args.batch} × {args.seq} tokens: what one encoder layer keeps for the backward pass; "
        f"d = {width} columns.", "",
        *table(["", "MiB", "bytes a token", "times less than the most"], rows), "", f"    {result['command']}", ""])
    write(args.out, result, text)
    print(text)


if __name__ == "__main__":
    main()
