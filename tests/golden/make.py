"""Writes the tiny BERTs of this folder and what `transformers` and PyTorch compute with them.

    python tests/golden/make.py [CASE ...]

Weights and inputs are drawn in f32 from a seed per case. Everything that is expected is computed in f64 and rounded to
f32 once, so that the reference carries no rounding noise of its own. Before a case is written, the script checks that

- the padded batch gives the logits, loss and gradients of its sequences run one by one,
- PyTorch in f32 stays within the tolerances that colrow is held to, so that an f32 program can meet them,
- no gradient is so near zero that f32 noise in it shows in the AdamW steps (the seeds are chosen for this; see
  `adamw_noise`).
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification, get_linear_schedule_with_warmup
from transformers.utils import logging

HERE = Path(__file__).resolve().parent

# PyTorch's own f32 run has to be this close to f64. Gradients: largest difference over the largest entry of a tensor.
LOGIT_TOLERANCE = 1e-5
GRAD_TOLERANCE = 1e-4
WEIGHT_TOLERANCE = 1e-6

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
MAX_NORM = 1.0
EPSILON = 1e-8
SCHEDULE_STEPS = 10
STEPS = 3


def sequence(random, vocab, first, second=0):
    """Token ids without id 0 (padding); `first` tokens of type 0, then `second` of type 1."""
    ids = random.randint(1, vocab, size=first + second).tolist()
    return {"ids": ids, "types": [0] * first + [1] * second}


# name: (seed, configuration, [(tokens of type 0, tokens of type 1)], labels)
CASES = {
    "gelu": (
        3,
        dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50,
             max_position_embeddings=16, hidden_act="gelu"),
        [(7, 0), (12, 0), (3, 0), (16, 0)],
        [0, 1, 1, 0],
    ),
    "tanh": (
        218,
        dict(hidden_size=36, num_hidden_layers=1, num_attention_heads=3, intermediate_size=40, vocab_size=23,
             max_position_embeddings=12, hidden_act="gelu_new"),
        [(5, 0), (11, 0), (8, 0)],
        [1, 0, 1],
    ),
    "one-layer": (
        38,
        dict(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20, vocab_size=19,
             max_position_embeddings=64, hidden_act="gelu"),
        [(1, 0), (2, 0), (60, 0)],
        [0, 1, 0],
    ),
    "pairs": (
        6,
        dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=29,
             max_position_embeddings=20, hidden_act="gelu", num_labels=3),
        [(4, 5), (9, 2), (3, 14), (6, 6)],
        [2, 0, 1, 2],
    ),
    "regression": (
        3,
        dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32, vocab_size=17,
             max_position_embeddings=10, hidden_act="gelu", num_labels=1, problem_type="regression"),
        [(6, 0), (10, 0), (2, 0)],
        [0.75, -1.5, 2.25],
    ),
    "pytorch-tanh": (
        75,
        dict(hidden_size=40, num_hidden_layers=1, num_attention_heads=5, intermediate_size=16, vocab_size=13,
             max_position_embeddings=9, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-5),
        [(9, 0), (4, 0), (6, 0)],
        [1, 1, 0],
    ),
}


def build(config, random):
    """A model with f32 weights from `random`: all entries matter, also biases and the scales of layer norms."""
    model = BertForSequenceClassification._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            values = random.standard_normal(tuple(weight.shape))
            if name.endswith("LayerNorm.weight"):
                values = 1.0 + 0.3 * values
            elif "embeddings" in name:
                values = 0.5 * values
            else:
                values = 0.25 * values
            weight.copy_(torch.from_numpy(values))
    return model.eval()


def tensors(sequences, labels, dtype):
    """The padded batch that a user of transformers passes: ids, types and mask are (sequences, longest)."""
    longest = max(len(s["ids"]) for s in sequences)

    def padded(rows):
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])

    return {
        "input_ids": padded([s["ids"] for s in sequences]),
        "token_type_ids": padded([s["types"] for s in sequences]),
        "attention_mask": padded([[1] * len(s["ids"]) for s in sequences]),
        "labels": torch.tensor(labels, dtype=dtype if isinstance(labels[0], float) else torch.long),
    }


def gradients(model):
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def padded_pass(model, sequences, labels):
    """Logits, loss and gradients of the padded batch."""
    model.zero_grad()
    out = model(**tensors(sequences, labels, model.dtype))
    out.loss.backward()
    return out.logits.detach(), out.loss.detach(), gradients(model)


def single_passes(model, sequences, labels):
    """The same from every sequence alone, without a mask."""
    model.zero_grad()
    logits, losses = [], []
    for one, label in zip(sequences, labels):
        batch = tensors([one], [label], model.dtype)
        del batch["attention_mask"]
        out = model(**batch)
        (out.loss / len(sequences)).backward()
        logits.append(out.logits.detach())
        losses.append(out.loss.detach())
    return torch.cat(logits), torch.stack(losses).mean(), gradients(model)


def train(model, sequences, labels):
    """The weights after each of `STEPS` steps on the batch."""
    named = list(model.named_parameters())
    plain = [w for n, w in named if n.endswith(".bias") or "LayerNorm" in n]
    decayed = [w for n, w in named if not (n.endswith(".bias") or "LayerNorm" in n)]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.999), eps=EPSILON)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, SCHEDULE_STEPS)
    after = []
    for _ in range(STEPS):
        padded_pass(model, sequences, labels)
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        schedule.step()
        after.append(weights(model))
    return after


def difference(a, b):
    return (a.double() - b.double()).abs().max().item()


def largest_gradient_difference(found, expected):
    """Over all parameters, relative to the largest entry of each.

    A bias of the keys shifts all scores of a query alike, which the softmax ignores: its gradient is zero and what a
    program finds is rounding noise. It is compared with the gradient of the key weights.
    """
    worst = 0.0
    for name, gradient in expected.items():
        scale = expected[name.replace("key.bias", "key.weight")].abs().max().item()
        worst = max(worst, difference(found[name], gradient) / scale)
    return worst


def largest_weight_difference(found, expected):
    """Over all parameters but the biases of the keys: AdamW turns the noise in their gradients into whole steps."""
    return max(difference(found[name], w) for name, w in expected.items() if not name.endswith("key.bias"))


def adamw_noise(grads, norm):
    """By how much f32 noise in a gradient may move a weight in the first step.

    That step is lr·g/(|g| + ε): noise δ moves it by lr·ε·δ/(|g| + ε)², which is nothing unless |g| is near ε. δ is taken
    as 3e-7 of the largest entry of the tensor.
    """
    scale = min(1.0, MAX_NORM / norm.item())
    worst = 0.0
    for name, gradient in grads.items():
        size = scale * gradient.abs()
        noise = LEARNING_RATE * EPSILON * 3e-7 * size.max() / (size[size > 0] + EPSILON) ** 2
        if not name.endswith("key.bias"):
            worst = max(worst, noise.max().item())
    return worst


def check(what, found, limit):
    if not found <= limit:
        sys.exit(f"{what}: expected at most {limit:g}, found {found:g}")


def make(case):
    seed, settings, lengths, labels = CASES[case]
    random = np.random.RandomState(seed)
    config = BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **settings)
    model = build(config, random)
    sequences = [sequence(random, config.vocab_size, *pair) for pair in lengths]

    folder = HERE / f"bert-{case}"
    folder.mkdir(exist_ok=True)
    model.save_pretrained(folder)
    with open(folder / "inputs.json", "w") as file:
        json.dump({"sequences": sequences, "labels": labels}, file)
        file.write("\n")

    # The f32 run first: it works on a copy of the weights that the f64 run starts from.
    start = weights(model)
    logits32, _, grads32 = padded_pass(model, sequences, labels)
    steps32 = train(model, sequences, labels)
    model.load_state_dict(start)
    model.double()

    logits1, loss1, grads1 = single_passes(model, sequences, labels)
    logits, loss, grads = padded_pass(model, sequences, labels)
    norm = torch.nn.utils.get_total_norm(list(grads.values()))
    steps = train(model, sequences, labels)

    check(f"{case}: logits, padded against alone", difference(logits1, logits), 1e-12)
    check(f"{case}: loss, padded against alone", difference(loss1, loss), 1e-12)
    check(f"{case}: gradients, padded against alone", largest_gradient_difference(grads1, grads), 1e-12)
    check(f"{case}: logits in f32", difference(logits32, logits), LOGIT_TOLERANCE)
    grad_error = largest_gradient_difference(grads32, grads)
    check(f"{case}: gradients in f32", grad_error, GRAD_TOLERANCE)
    check(f"{case}: noise in the first step", adamw_noise(grads, norm), WEIGHT_TOLERANCE)
    step_errors = [largest_weight_difference(a, b) for a, b in zip(steps32, steps)]
    for index in (0, STEPS - 1):
        check(f"{case}: weights in f32 after step {index + 1}", step_errors[index], WEIGHT_TOLERANCE)

    expected = {"logits": logits, "loss": loss.reshape(1), "grad_norm": norm.reshape(1)}
    expected |= {f"grad.{name}": g for name, g in grads.items()}
    expected |= {f"adamw.{name}": w for name, w in steps[0].items()}
    expected |= {f"adamw3.{name}": w for name, w in steps[-1].items()}
    expected = {name: t.float().contiguous() for name, t in expected.items()}
    save_file(expected, folder / "expected.safetensors")

    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{folder.name}: {size / 1000:.0f} kB, loss {loss:.4f}, gradient norm {norm:.3f}; f32 against f64: logits "
          f"{difference(logits32, logits):.1e}, gradients {grad_error:.1e}, weights {step_errors[0]:.1e} after one "
          f"step, {step_errors[-1]:.1e} after {STEPS}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for case in sys.argv[1:] or CASES:
        if case not in CASES:
            sys.exit(f"{case}: expected one of {', '.join(CASES)}")
        make(case)
