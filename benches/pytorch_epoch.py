"""One epoch of fine-tuning a BERT on sentences in PyTorch, as a plain loop over `transformers`: seconds, accuracy, peak memory.

    python benches/pytorch_epoch.py --model DIR --data DIR --batch 32 --lr 5e-5

The PyTorch side of epoch.py. DIR of `--data` holds train.tsv and dev.tsv with the columns `sentence` and `label`, as GLUE's SST-2.
Sentences are tokenised before the clock starts, shuffled, and padded to the longest of their batch. AdamW, a linear schedule
with warm-up, clipping to norm 1. Prints one JSON object; times are seconds, sizes bytes.
"""

import argparse
import csv
import json
import statistics
import time
from pathlib import Path

import torch
import transformers
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, get_linear_schedule_with_warmup

import pytorch_common as common


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--data", required=True, type=Path, help="folder with train.tsv and dev.tsv")
    parser.add_argument("--batch", type=int, default=32, help="sequences in a batch")
    parser.add_argument("--max-length", type=int, default=128, help="longer sentences are cut to this many tokens")
    parser.add_argument("--lr", type=float, default=5e-5, help="peak learning rate")
    parser.add_argument("--warmup", type=float, default=0.1, help="share of the steps in which the learning rate rises")
    common.add_arguments(parser)
    return parser.parse_args()


def read(path, tokenizer, max_length):
    """Tokens and label of each row."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    tokens = tokenizer([row["sentence"] for row in rows], truncation=True, max_length=max_length)["input_ids"]
    return [{"input_ids": ids, "labels": int(row["label"])} for ids, row in zip(tokens, rows)]


@torch.no_grad()
def accuracy(model, batches):
    model.eval()
    right = [(model(**batch).logits.argmax(-1) == batch["labels"]).sum().item() for batch in batches]
    return sum(right) / len(batches.dataset)


def main():
    args = arguments()
    common.import_what_is_needed(args)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    imports = common.peak_rss()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    train, dev = (read(args.data / f"{split}.tsv", tokenizer, args.max_length) for split in ("train", "dev"))
    model = common.prepared(AutoModelForSequenceClassification.from_pretrained(args.model, **common.attention(args)), args)
    optimizer = common.adamw(model, args, args.lr)
    collate = DataCollatorWithPadding(tokenizer)
    batches = DataLoader(train, batch_size=args.batch, shuffle=True, collate_fn=collate)
    schedule = get_linear_schedule_with_warmup(optimizer, round(args.warmup * len(batches)), len(batches))

    seconds = []
    tokens, padded = 0, 0
    start = last = time.perf_counter()
    for batch in batches:
        with common.autocast(args):
            loss = model(**batch).loss
        loss.backward()
        common.update(model, optimizer)
        schedule.step()
        tokens += int(batch["attention_mask"].sum())
        padded += batch["input_ids"].numel()
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
    epoch = time.perf_counter() - start
    peak = common.peak_rss()

    print(json.dumps({
        "seconds": epoch,
        "step_seconds_median": statistics.median(seconds),
        "steps": len(seconds),
        "tokens": tokens,
        "padded_tokens": padded,
        "accuracy": accuracy(model, DataLoader(dev, batch_size=args.batch, collate_fn=collate)),
        "peak_rss_bytes": peak,
        "import_rss_bytes": imports,
        **common.parameters(model),
        "attention": model.config._attn_implementation,
        "precision": args.precision,
        "threads": args.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }))


if __name__ == "__main__":
    main()
