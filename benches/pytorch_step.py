"""One training step of a BERT classifier, a T5 or a decoder in PyTorch: seconds, bytes kept for the backward pass, peak memory.

    python benches/pytorch_step.py --model-config benches/bert-base.json --batch 32 --seq 128 --steps 5

The PyTorch side of `colrow bench`. Weights, tokens and labels are random. A step is forward, backward, clipping the gradient
to norm 1 and AdamW, as the `transformers` trainer runs it. Prints one JSON object; times are seconds, sizes bytes:

`kept_bytes` is what autograd holds after the forward pass, every storage once; the parameters are not in it, their bf16
copies under autocast are. `import_rss_bytes` is the peak before a model exists: a PyTorch built for GPUs maps large libraries.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, BertForSequenceClassification, BertModel, T5ForConditionalGeneration

import pytorch_common as common


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model-config", required=True, help="config.json of a BERT, a T5 or a decoder")
    parser.add_argument("--batch", type=int, default=32, help="sequences a step")
    parser.add_argument("--seq", type=int, default=128, help="tokens of each sequence")
    parser.add_argument("--target", type=int, default=8, help="tokens of each target, for T5")
    parser.add_argument("--lengths-file", type=Path, help="the length of each sequence, numbers with white space between them, instead "
                        "of --batch and --seq; they are padded to the longest")
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them, not timed")
    parser.add_argument("--dropout", choices=["on", "off"], default="on", help="on: as config.json says")
    parser.add_argument("--layers-only", action="store_true",
                        help="forward and backward of BERT's encoder layers alone: no embedding, head or optimizer")
    parser.add_argument("--layers", type=int, help="in place of num_hidden_layers")
    common.add_arguments(parser)
    found = parser.parse_args()
    for name, least in (("batch", 1), ("seq", 1), ("target", 1), ("steps", 1), ("warmup", 0), ("threads", 1)):
        if getattr(found, name) < least:
            parser.error(f"--{name}: expected at least {least}, found {getattr(found, name)}")
    return found


def draw_batch(args, config):
    """Ids and mask (batch, longest) and the number of tokens that are not padding.

    They depend on the seed and the lengths alone. There is no mask if nothing is padded.
    """
    lengths = [int(word) for word in args.lengths_file.read_text().split()] if args.lengths_file else [args.seq] * args.batch
    real = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, config.vocab_size, real.shape) * real
    return ids, None if real.all() else real.long(), int(real.sum())


class Given(torch.nn.Module):
    """Takes the place of the embeddings where the hidden states are given."""

    def forward(self, inputs_embeds, **_):
        return inputs_embeds


def whole_step(args, config):
    """The model, the two halves of a whole step, the padded and the real tokens of its batch."""
    family = {"bert": BertForSequenceClassification, "t5": T5ForConditionalGeneration}.get(config.model_type)
    built = family._from_config if family else AutoModelForCausalLM.from_config
    if family is None:
        # a cache of keys and values is of no use to a training step
        config.use_cache = False
    model = common.prepared(built(config, **common.attention(args)), args)
    ids, mask, tokens = draw_batch(args, config)
    if config.model_type == "t5":
        labels = torch.randint(2, config.vocab_size, (len(ids), args.target))
    elif family is None:
        # every token is a label, padding is none
        labels = ids if mask is None else ids.masked_fill(mask == 0, -100)
    else:
        labels = torch.randint(config.num_labels, (len(ids),))
    optimizer = common.adamw(model, args, lr=2e-5)

    def forward():
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss

    def backward(loss):
        loss.backward()
        common.update(model, optimizer)

    return model, forward, backward, ids.numel(), tokens


def layers_step(args, config):
    """Forward and backward of the encoder layers, from given hidden states and a given gradient of the output."""
    model = common.prepared(BertModel._from_config(config, add_pooling_layer=False, **common.attention(args)), args)
    ids, mask, tokens = draw_batch(args, config)
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


def main():
    args = arguments()
    common.import_what_is_needed(args)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    config = AutoConfig.for_model(**json.loads(Path(args.model_config).read_text()))
    if args.layers is not None:
        config.num_hidden_layers = args.layers
    if args.dropout == "off":
        for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "dropout_rate"):
            if hasattr(config, key):
                setattr(config, key, 0.0)

    imports = common.peak_rss()
    build = layers_step if args.layers_only else whole_step
    model, plain_forward, backward, padded, tokens = build(args, config)

    def forward():
        with common.autocast(args):
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
        "peak_rss_bytes": common.peak_rss(),
        "import_rss_bytes": imports,
        **common.parameters(model),
        "attention": model.config._attn_implementation,
        "optimizer": None if args.layers_only else args.optimizer,
        "precision": args.precision,
        "method": args.method,
        "checkpointing": args.checkpointing,
        "compiled": args.compile,
        "threads": args.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }))


if __name__ == "__main__":
    main()
