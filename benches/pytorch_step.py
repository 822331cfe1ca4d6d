"""One training step of a BERT classifier in PyTorch: seconds, bytes kept for the backward pass, peak memory.

    python benches/pytorch_step.py --model-config benches/bert-base.json --batch 32 --seq 128 --steps 5

The PyTorch side of `colrow bench`. Weights, tokens and labels are random. A step is forward, backward, clipping the gradient
to norm 1 and AdamW, as the `transformers` trainer runs it. Prints one JSON object; times are seconds, sizes bytes:

`kept_bytes` is what autograd holds after the forward pass, every storage once; the parameters are not in it, their bf16
copies under autocast are. `import_rss_bytes` is the peak before a model exists: a PyTorch built for GPUs maps large libraries.
"""

import argparse
import json
import os
import resource
import statistics
import time

import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification, BertModel


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model-config", required=True, help="a BERT config.json")
    parser.add_argument("--batch", type=int, required=True, help="sequences a step")
    parser.add_argument("--seq", type=int, required=True, help="tokens of the longest sequence")
    parser.add_argument("--lengths", choices=["full", "uniform"], default="full",
                        help="full: every sequence has SEQ tokens; uniform: drawn from 16..SEQ, padded to the longest")
    parser.add_argument("--method", choices=["full"], default="full", help="all weights are trained")
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them, not timed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dropout", choices=["on", "off"], default="on", help="on: as config.json says")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32", help="bf16: autocast over f32 weights")
    parser.add_argument("--attention", choices=["default", "eager", "sdpa"], default="default",
                        help="default: what transformers picks")
    parser.add_argument("--optimizer", choices=["fused", "foreach", "loop"], default="fused",
                        help="implementation of AdamW; the transformers trainer uses the fused one")
    parser.add_argument("--layers-only", action="store_true",
                        help="forward and backward of the encoder layers alone: no embedding, head or optimizer")
    parser.add_argument("--layers", type=int, help="in place of num_hidden_layers")
    parser.add_argument("--seed", type=int, default=0)
    found = parser.parse_args()
    for name, least in (("batch", 1), ("seq", 1), ("steps", 1), ("warmup", 0), ("threads", 1)):
        if getattr(found, name) < least:
            parser.error(f"--{name}: expected at least {least}, found {getattr(found, name)}")
    if found.lengths == "uniform" and found.seq < 16:
        parser.error(f"--lengths uniform: expected --seq of at least 16, found {found.seq}")
    return found


def draw_batch(args, config):
    """Ids and mask (batch, longest), labels (batch) and the number of tokens that are not padding.

    They depend on the seed and the sizes alone. There is no mask if nothing is padded.
    """
    random = torch.Generator().manual_seed(args.seed)
    if args.lengths == "uniform":
        lengths = torch.randint(16, args.seq + 1, (args.batch,), generator=random)
    else:
        lengths = torch.full((args.batch,), args.seq)
    real = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
    ids = torch.randint(1, config.vocab_size, real.shape, generator=random) * real
    labels = torch.randint(config.num_labels, (args.batch,), generator=random)
    return ids, None if real.all() else real.long(), labels, int(real.sum())


class Given(torch.nn.Module):
    """Takes the place of the embeddings where the hidden states are given."""

    def forward(self, inputs_embeds, **_):
        return inputs_embeds


def classifier_step(args, config, attention):
    """The model, the two halves of a whole step, the padded and the real tokens of its batch."""
    model = BertForSequenceClassification._from_config(config, **attention).train()
    ids, mask, labels, tokens = draw_batch(args, config)
    plain = [w for n, w in model.named_parameters() if n.endswith(".bias") or "LayerNorm" in n]
    decayed = [w for n, w in model.named_parameters() if not (n.endswith(".bias") or "LayerNorm" in n)]
    how = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}[args.optimizer]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}], lr=2e-5, **how
    )

    def forward():
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss

    def backward(loss):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return model, forward, backward, ids.numel(), tokens


def layers_step(args, config, attention):
    """Forward and backward of the encoder layers, from given hidden states and a given gradient of the output."""
    model = BertModel._from_config(config, add_pooling_layer=False, **attention).train()
    ids, mask, _, tokens = draw_batch(args, config)
    model.embeddings = Given()
    hidden = torch.randn(*ids.shape, config.hidden_size, requires_grad=True)
    gradient = torch.randn(*ids.shape, config.hidden_size)

    def forward():
        return model(inputs_embeds=hidden, attention_mask=mask).last_hidden_state

    def backward(out):
        out.backward(gradient.to(out.dtype))
        model.zero_grad()
        hidden.grad = None

    return model, forward, backward, ids.numel(), tokens


def kept_by(forward, model):
    """The output of `forward` and `kept_bytes`."""
    parameters = {w.untyped_storage().data_ptr() for w in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward()
    return out, sum(kept.values())


def peak_rss():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    config = BertConfig.from_json_file(args.model_config)
    if args.layers is not None:
        config.num_hidden_layers = args.layers
    if args.dropout == "off":
        config.hidden_dropout_prob = 0.0
        config.attention_probs_dropout_prob = 0.0
        config.classifier_dropout = 0.0
    attention = {} if args.attention == "default" else {"attn_implementation": args.attention}

    imports = peak_rss()
    build = layers_step if args.layers_only else classifier_step
    model, plain_forward, backward, padded, tokens = build(args, config, attention)

    def forward():
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            return plain_forward()

    # Counting is a step of its own: its hooks cost time.
    out, kept = kept_by(forward, model)
    backward(out)
    del out
    seconds = []
    for step in range(args.warmup + args.steps):
        start = time.perf_counter()
        backward(forward())
        if step >= args.warmup:
            seconds.append(time.perf_counter() - start)

    print(json.dumps({
        "step_seconds_min": min(seconds),
        "step_seconds_median": statistics.median(seconds),
        "step_seconds": seconds,
        "tokens": tokens,
        "padded_tokens": padded,
        "kept_bytes": kept,
        "peak_rss_bytes": peak_rss(),
        "import_rss_bytes": imports,
        "attention": model.config._attn_implementation,
        "optimizer": None if args.layers_only else args.optimizer,
        "precision": args.precision,
        "threads": args.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }))


if __name__ == "__main__":
    main()
