"""Names of ways to train, as the measuring scripts, their command lines and their tables use them.

A name is one or more words: `exact`, `paper@0.3 wta`, `lean@0.3 bf16`, `exact keep.uniform=0.2`. A word is one of `WORDS`, where
`@` brings the share of rows that are drawn, or a key of a recipe with its value. A name that begins with `torch` is PyTorch's side:
`torch` (with the attention that transformers picks), `torch eager`, `torch bf16`, `torch checkpointing`,
`torch compile`, `torch lora`.
"""

import sys



def _site(pattern, keep):
    return f"keep.sites.'{pattern}'.keep={keep}"


# docs/recipe.md says what each key does
WORDS = {
    **{policy: [f"keep.policy={policy}"] for policy in ("exact", "paper", "lean", "leanest", "recompute")},
    **{estimator: [f"keep.estimator={estimator}"] for estimator in ("topk", "crs", "wta", "pps")},
    **{norms: [f"keep.norms={norms}"] for norms in ("current", "cached", "running", "uniform")},
    **{method: [f"train.method={method}"] for method in ("lora", "lora-fa", "bitfit")},
    "bf16": ["train.precision=bf16"],
    # lean's parts one at a time: what an op keeps, and the linears that then rebuild their input from it (BERT's site names)
    "int8-norms": [_site("*LayerNorm", "int8"), *(_site(f"encoder.layer.*.{linear}", "rebuild") for linear in ("qkv", "kv", "intermediate.dense"))],
    "int8-attention": [_site("*attention.self", "int8"), _site("*attention.output.dense", "rebuild")],
    "bf16-attention": [_site("*attention.self", "bf16"), _site("*attention.output.dense", "rebuild")],
    **{f"int{bits}-activations": [_site("*activation", f"int{bits}"), _site("encoder.layer.?.output.dense", "rebuild")] for bits in (8, 4)},
    # rows of every linear, and nothing else in fewer bits
    "rows": ["keep.policy=lean", *(_site(op, "exact") for op in ("*LayerNorm", "*attention.self", "*activation"))],
}

# what `colrow bench` calls a recipe's keys
BENCH_FLAGS = {
    "keep.policy": "--keep",
    "keep.estimator": "--estimator",
    "keep.ratio": "--ratio",
    "keep.norms": "--norms",
    "train.method": "--method",
    "train.precision": "--precision",
    "lora.rank": "--lora-rank",
    "optim.states": "--optimizer-states",
    "optim.update": "--update",
    "model.base": "--base",
}

# arguments that pytorch_step.py and pytorch_epoch.py share
TORCH_WORDS = {
    "eager": ["--attention", "eager"],
    "sdpa": ["--attention", "sdpa"],
    "bf16": ["--precision", "bf16"],
    "checkpointing": ["--checkpointing"],
    "compile": ["--compile"],
    "lora": ["--method", "lora"],
}


def is_torch(name):
    return name.split()[0] == "torch"


def recipe_sets(name):
    """A name as a recipe's `key=value` pairs."""
    found = []
    for word in name.split():
        known, at, ratio = word.partition("@")
        if known in WORDS:
            found += WORDS[known] + ([f"keep.ratio={ratio}"] if at else [])
        elif "." in word.partition("=")[0] and "=" in word:
            found.append(word)
        else:
            sys.exit(f"error: {name!r}: expected a recipe's key=value or one of torch, {', '.join(WORDS)}, found {word!r}")
    return found


def bench_arguments(name):
    """A name as arguments of `colrow bench`."""
    found = []
    for key, _, value in (pair.partition("=") for pair in recipe_sets(name)):
        if key not in BENCH_FLAGS:
            sys.exit(f"error: {name!r}: expected a key that colrow bench has a flag for ({', '.join(BENCH_FLAGS)}), found {key}")
        found += [BENCH_FLAGS[key], value]
    return found


def torch_arguments(name):
    """A name that begins with `torch` as arguments of the PyTorch scripts."""
    found = []
    for word in name.split()[1:]:
        if word not in TORCH_WORDS:
            sys.exit(f"error: {name!r}: expected, after torch, one of {', '.join(TORCH_WORDS)}, found {word!r}")
        found += TORCH_WORDS[word]
    return found


def checked(names):
    """The names, if each is one that is known and none comes twice."""
    for name in names:
        torch_arguments(name) if is_torch(name) else recipe_sets(name)
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        sys.exit(f"error: named twice: {', '.join(sorted(twice))}")
    return names
