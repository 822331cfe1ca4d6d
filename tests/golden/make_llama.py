"""Writes the tiny decoders of this folder and what `transformers` and PyTorch compute with them.

    python tests/golden/make_llama.py [CASE ...]

As in make.py: numbers in f32 from a seed per case, expected values in f64 rounded once, and the same checks; norms and the
sines of positions are in f32 whatever the model's type. Every sequence is run alone, so that nothing of another can reach it;
the loss is the mean over the labels of all. Answers are those of `generate`, greedy and without a cache; every choice in them
is clear by a margin far above what f32 could change.
"""

import json
import sys

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from make import GRAD_TOLERANCE, HERE, LOGIT_TOLERANCE, check, difference, gradients, weights

ANSWER = 12
MARGIN = 1e-3

SMALL = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40,
             vocab_size=37, max_position_embeddings=32, eos_token_id=1, bos_token_id=None, pad_token_id=None)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=8, rope_theta=100.0)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16,
              rope_theta=500.0)

# name: (family, configuration, tokens of the sequences, whether to answer)
CASES = {
    "llama": ("llama", dict(num_key_value_heads=4, attention_bias=True, mlp_bias=True), [7, 12, 2, 25], True),
    "llama3": ("llama", dict(rope_parameters=LLAMA3, tie_word_embeddings=True), [9, 20], True),
    "linear": ("llama", dict(rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=50.0)), [11, 5], True),
    # longer than its positions
    "dynamic": ("llama", dict(max_position_embeddings=8, head_dim=8,
                              rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=100.0)), [5, 20, 30], False),
    # more rows than an attention tile
    "mistral": ("mistral", dict(sliding_window=4, hidden_size=16, num_attention_heads=6, head_dim=4), [90, 3], True),
    "qwen2": ("qwen2", dict(rope_parameters=YARN, tie_word_embeddings=True), [6, 17], True),
    "qwen2-window": ("qwen2", dict(use_sliding_window=True, sliding_window=5, max_window_layers=1, num_hidden_layers=3), [15, 8], True),
    "qwen3": ("qwen3", dict(head_dim=10, attention_bias=True), [8, 13], True),
    "smollm3": ("smollm3", dict(no_rope_layer_interval=2, num_hidden_layers=4, hidden_size=16), [10, 4], True),
}


def build(config, random):
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            values = random.standard_normal(tuple(weight.shape))
            scale = 0.3 if name.endswith("norm.weight") else 0.4 if "embed" in name else 0.2
            weight.copy_(torch.from_numpy(scale * values + (1.0 if name.endswith("norm.weight") else 0.0)))
    return model.eval()


def passes(model, sequences, labels):
    """Logits of all tokens, the loss and gradients, from every sequence alone."""
    model.zero_grad()
    count = sum(sum(row[1:]) for row in labels)
    logits, loss = [], 0.0
    for ids, counted in zip(sequences, labels):
        out = model(input_ids=torch.tensor([ids]), use_cache=False)
        logits.append(out.logits.detach()[0])
        rows = [i for i in range(1, len(ids)) if counted[i]]
        if rows:
            predicted = out.logits[0, [i - 1 for i in rows]]
            part = torch.nn.functional.cross_entropy(predicted, torch.tensor([ids[i] for i in rows]), reduction="sum") / count
            part.backward()
            loss = loss + part.detach()
    return torch.cat(logits), loss, gradients(model)


def answers(model, sequences):
    texts, margin = [], float("inf")
    for ids in sequences:
        out = model.generate(input_ids=torch.tensor([ids]), do_sample=False, num_beams=1, output_logits=True, use_cache=False,
                             max_new_tokens=ANSWER, return_dict_in_generate=True)
        text = out.sequences[0, len(ids):].tolist()
        texts.append(text[: text.index(1)] if 1 in text else text)
        margin = min([margin] + [(b[0] - b[1]).item() for b in (row[0].topk(2).values for row in out.logits)])
    return texts, margin


def make(case):
    family, settings, lengths, answers_too = CASES[case]
    config = AutoConfig.for_model(family, **(SMALL | settings))
    seed = 1
    while True:
        random = np.random.RandomState(seed)
        model = build(config, random)
        sequences = [random.randint(2, config.vocab_size, size=n).tolist() for n in lengths]
        labels = [(random.random_sample(n) < 0.6).astype(int).tolist() for n in lengths]
        labels[-1] = [1] * lengths[-1]
        start = weights(model)
        logits32, _, grads32 = passes(model, sequences, labels)
        model.double()
        greedy, margin = answers(model, sequences) if answers_too else ([], float("inf"))
        if margin > MARGIN and (not answers_too or max(len(set(g)) for g in greedy) > 2):
            break
        seed += 1
    logits, loss, grads = passes(model, sequences, labels)

    def relative(found):
        return max(difference(found[n], g) / g.abs().max().item() for n, g in grads.items())

    check(f"{case}: logits in f32", difference(logits32, logits), LOGIT_TOLERANCE)
    check(f"{case}: gradients in f32", relative(grads32), GRAD_TOLERANCE)
    folder = HERE / f"llama-{case}"
    folder.mkdir(exist_ok=True)
    model.load_state_dict(start, strict=False)
    model.float().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    with open(folder / "inputs.json", "w") as file:
        json.dump({"sequences": sequences, "labels": labels, "longest": ANSWER, "answers": greedy}, file)
        file.write("\n")
    expected = {"logits": logits, "loss": loss.reshape(1)} | {f"grad.{name}": g for name, g in grads.items()}
    save_file({name: t.float().contiguous() for name, t in expected.items()}, folder / "expected.safetensors")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{folder.name}: seed {seed}, {size / 1000:.0f} kB, loss {loss:.4f}, margin {margin:.1e}; f32 against f64: logits "
          f"{difference(logits32, logits):.1e}, gradients {relative(grads32):.1e}; {greedy}")


def frequencies():
    """The frequencies and factors of every kind of stretched positions, at several lengths."""
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    kinds = [LLAMA3, YARN, YARN | dict(truncate=False, beta_fast=16.0, beta_slow=2.0), YARN | dict(mscale=0.7, mscale_all_dim=0.9),
             YARN | dict(attention_factor=1.7), dict(rope_type="linear", factor=4.0, rope_theta=50.0),
             dict(rope_type="dynamic", factor=3.0, rope_theta=100.0)]
    found = []
    for kind in kinds:
        for length in [10, 90]:
            config = LlamaConfig(**(SMALL | dict(rope_parameters=dict(kind), head_dim=16)))
            of, factor = ROPE_INIT_FUNCTIONS[kind["rope_type"]](config, torch.device("cpu"), seq_len=length)
            found.append({"rope": kind, "length": length, "factor": factor, "frequencies": of.double().tolist()})
    with open(HERE / "llama-frequencies.json", "w") as file:
        json.dump(found, file)
        file.write("\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for case in sys.argv[1:] or CASES:
        if case not in CASES:
            sys.exit(f"{case}: expected one of {', '.join(CASES)}")
        make(case)
    frequencies()
