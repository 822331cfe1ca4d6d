"""Writes the tiny T5s of this folder and what `transformers` and PyTorch compute with them.

    python tests/golden/make_t5.py [CASE ...]

As in make.py: numbers in f32 from a seed per case, expected values in f64 rounded once, and the same checks. A model of
v1.1 is given a head of its own, as the published ones have. Answers are those of `generate`, greedy; every choice
in them is clear by a margin far above what f32 could change. Also `t5-buckets.json`: the bucket of every relative position.
"""

import json
import shutil
import sys
import tempfile

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.utils import logging

from make import (EPSILON, GRAD_TOLERANCE, HERE, LEARNING_RATE, LOGIT_TOLERANCE, MAX_NORM, WEIGHT_DECAY, WEIGHT_TOLERANCE,
                  adamw_noise, check, difference, gradients, weights)

LONGEST_ANSWER = 12
MARGIN = 1e-3

# name: (seed, configuration, tokens of the sources, tokens of the targets)
CASES = {
    "relu": (
        1,
        dict(d_model=24, d_kv=5, num_heads=3, d_ff=40, num_layers=2, vocab_size=37, feed_forward_proj="relu",
             relative_attention_num_buckets=8, relative_attention_max_distance=20),
        [7, 12, 2, 25],
        [3, 1, 6, 2],
    ),
    "gated": (
        1,
        dict(d_model=16, d_kv=8, num_heads=2, d_ff=24, num_layers=1, num_decoder_layers=3, vocab_size=29,
             feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        [9, 4, 11],
        [2, 5, 3],
    ),
    # more rows than an attention tile, and distances beyond the last bucket
    "long": (
        1,
        dict(d_model=12, d_kv=4, num_heads=2, d_ff=16, num_layers=1, vocab_size=23, feed_forward_proj="relu"),
        [150, 3],
        [70, 2],
    ),
}
BUCKETS = [(True, 32, 128), (False, 32, 128), (True, 8, 20), (False, 8, 20)]


def build(config, random):
    model = T5ForConditionalGeneration._from_config(config, attn_implementation="eager")
    if not config.scale_decoder_outputs:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            values = random.standard_normal(tuple(weight.shape))
            if name.endswith("layer_norm.weight"):
                values = 1.0 + 0.3 * values
            elif name.endswith(("relative_attention_bias.weight", "shared.weight", "lm_head.weight")):
                values = 0.5 * values
            else:
                values = 0.2 * values
            weight.copy_(torch.from_numpy(values))
    return model.eval()


def tensors(sources, targets):
    """The padded batch that a user of transformers passes."""
    def padded(rows, value):
        longest = max(len(row) for row in rows)
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    mask = padded([[1] * len(row) for row in sources], 0)
    return {"input_ids": padded(sources, 0), "attention_mask": mask, "labels": padded(targets, -100)}


def padded_pass(model, sources, targets):
    """Logits of the targets' tokens one after another, loss and gradients of the padded batch."""
    model.zero_grad()
    out = model(**tensors(sources, targets))
    out.loss.backward()
    logits = torch.cat([row[: len(t)] for row, t in zip(out.logits.detach(), targets)])
    return logits, out.loss.detach(), gradients(model)


def single_passes(model, sources, targets):
    """The same from every pair alone; the loss is a mean over all tokens of all targets."""
    model.zero_grad()
    tokens = sum(len(t) for t in targets)
    logits, loss = [], 0.0
    for source, target in zip(sources, targets):
        out = model(**tensors([source], [target]))
        (out.loss * len(target) / tokens).backward()
        logits.append(out.logits.detach()[0])
        loss = loss + out.loss.detach() * len(target) / tokens
    return torch.cat(logits), loss, gradients(model)


def step(model, sources, targets):
    """The weights after an AdamW step."""
    named = list(model.named_parameters())
    groups = [{"params": [w for n, w in named if "layer_norm" not in n], "weight_decay": WEIGHT_DECAY},
              {"params": [w for n, w in named if "layer_norm" in n], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.999), eps=EPSILON)
    padded_pass(model, sources, targets)
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    optimizer.step()
    return weights(model)


def answers(model, sources):
    """Greedy answers without start and end tokens, and the least margin of a choice."""
    texts, margin = [], float("inf")
    for source in sources:
        # its cache has room for as many decoder layers as the encoder has
        out = model.generate(input_ids=torch.tensor([source]), do_sample=False, num_beams=1, output_logits=True, use_cache=False,
                             max_new_tokens=LONGEST_ANSWER, return_dict_in_generate=True)
        ids = out.sequences[0, 1:].tolist()
        texts.append(ids[: ids.index(1)] if 1 in ids else ids)
        best = [row[0].topk(2).values for row in out.logits]
        margin = min([margin] + [(b[0] - b[1]).item() for b in best])
    return texts, margin


def make(case):
    seed, settings, source_lengths, target_lengths = CASES[case]
    config = T5Config(dropout_rate=0.0, decoder_start_token_id=0, **settings)
    while True:
        random = np.random.RandomState(seed)
        model = build(config, random)
        text = lambda n: random.randint(2, config.vocab_size, size=n - 1).tolist() + [1]
        sources, targets = [text(n) for n in source_lengths], [text(n) for n in target_lengths]
        start = weights(model)
        logits32, _, grads32 = padded_pass(model, sources, targets)
        step32 = step(model, sources, targets)
        model.load_state_dict(start, strict=False)
        model.double()
        greedy, margin = answers(model, sources)
        logits1, loss1, grads1 = single_passes(model, sources, targets)
        logits, loss, grads = padded_pass(model, sources, targets)
        norm = torch.nn.utils.get_total_norm(list(grads.values()))
        noise = adamw_noise(grads, norm)
        varied = len({tuple(g) for g in greedy}) > 1 and max(len(set(g)) for g in greedy) > 2
        ended = any(len(g) < LONGEST_ANSWER for g in greedy)
        if margin > MARGIN and noise < WEIGHT_TOLERANCE and (case == "long" or varied and ended):
            break
        seed += 1
    after = step(model, sources, targets)

    def relative(found):
        return max(difference(found[n], g) / g.abs().max().item() for n, g in grads.items())

    check(f"{case}: logits, padded against alone", difference(logits1, logits), 1e-12)
    check(f"{case}: loss, padded against alone", difference(loss1, loss), 1e-12)
    check(f"{case}: gradients, padded against alone", relative(grads1), 1e-12)
    check(f"{case}: logits in f32", difference(logits32, logits), LOGIT_TOLERANCE)
    check(f"{case}: gradients in f32", relative(grads32), GRAD_TOLERANCE)
    check(f"{case}: weights in f32", max(difference(step32[n], w) for n, w in after.items()), WEIGHT_TOLERANCE)

    folder = HERE / f"t5-{case}"
    folder.mkdir(exist_ok=True)
    model.load_state_dict(start, strict=False)
    model.float().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    with open(folder / "inputs.json", "w") as file:
        json.dump({"sources": sources, "targets": targets, "longest": LONGEST_ANSWER, "answers": greedy}, file)
        file.write("\n")
    expected = {"logits": logits, "loss": loss.reshape(1), "grad_norm": norm.reshape(1)}
    expected |= {f"grad.{name}": g for name, g in grads.items()}
    expected |= {f"adamw.{name}": w for name, w in after.items()}
    save_file({name: t.float().contiguous() for name, t in expected.items()}, folder / "expected.safetensors")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{folder.name}: seed {seed}, {size / 1000:.0f} kB, loss {loss:.4f}, margin {margin:.1e}, answers {greedy}; f32 against "
          f"f64: logits {difference(logits32, logits):.1e}, gradients {relative(grads32):.1e}")


def buckets():
    positions = list(range(-300, 301))
    cases = [{"bidirectional": b, "buckets": n, "max_distance": m, "of": T5Attention._relative_position_bucket(
        torch.tensor(positions), bidirectional=b, num_buckets=n, max_distance=m).tolist()} for b, n, m in BUCKETS]
    with open(HERE / "t5-buckets.json", "w") as file:
        json.dump({"first": positions[0], "cases": cases}, file)
        file.write("\n")


def names():
    """Losses of a model whose head and embedding are in one tensor of the file, under the name of one of them."""
    case = HERE / "t5-gated"
    inputs = json.loads((case / "inputs.json").read_text())
    losses = {}
    for key in ["lm_head.weight", "shared.weight"]:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(case / "config.json", folder)
            stored = {name: tensor for name, tensor in load_file(case / "model.safetensors").items() if name != key}
            save_file(stored, f"{folder}/model.safetensors", metadata={"format": "pt"})
            model = T5ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval().double()
        losses[key] = model(**tensors(inputs["sources"], inputs["targets"])).loss.item()
    with open(HERE / "t5-names.json", "w") as file:
        json.dump(losses, file)
        file.write("\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for case in sys.argv[1:] or CASES:
        if case not in CASES:
            sys.exit(f"{case}: expected one of {', '.join(CASES)}")
        make(case)
    buckets()
    names()
