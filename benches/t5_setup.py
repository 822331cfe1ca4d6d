#!/usr/bin/env python3
"""Makes T5 model folders with random weights and a real tokenizer, and data, for runs where no checkpoint can be had.

    python3 benches/t5_setup.py --glue DIR --out DIR [--weights small]

Writes OUT/t5-{small,base,large,3b} (config.json as published, tokenizer.json), OUT/long.tsv (100 texts of more than 128 tokens) and
OUT/sst2-64.tsv (the first 64 examples of SST-2). `--weights small` adds random weights, which needs torch and transformers. The tokenizer is a
Unigram model trained on SST-2 by the `tokenizers` package.
"""

import argparse
import json
import struct
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SIZES = ("small", "base", "large", "3b")
BENCHES = Path(__file__).resolve().parent


def tokenizer(texts):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=8000, special_tokens=special, unk_token="<unk>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))])
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--glue", required=True, type=Path, help="folder with SST-2/")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--weights", nargs="*", default=[], choices=SIZES)
    args = parser.parse_args()
    lines = (args.glue / "SST-2" / "train.tsv").read_text().splitlines()[1:]
    texts = [line.split("\t")[0] for line in lines[:20000]]
    words = ["sst2 sentence: " + text for text in texts] + ["negative", "positive"] * 2000
    tokens = tokenizer(words)
    for size in SIZES:
        folder = args.out / f"t5-{size}"
        folder.mkdir(parents=True, exist_ok=True)
        config = (BENCHES / f"t5-{size}.json").read_text()
        (folder / "config.json").write_text(config)
        tokens.save(str(folder / "tokenizer.json"))
        if size in args.weights:
            import torch
            from transformers import T5Config, T5ForConditionalGeneration
            torch.manual_seed(0)
            T5ForConditionalGeneration(T5Config(**json.loads(config))).save_pretrained(folder)
            (folder / "config.json").write_text(config)
        elif not (folder / "model.safetensors").exists():
            # a plan reads no weight, but a model folder has a file of them
            (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    long = " ".join(texts[:60])
    (args.out / "long.tsv").write_text("sentence\tlabel\n" + f"{long}\t1\n" * 100)
    (args.out / "sst2-64.tsv").write_text("\n".join(["sentence\tlabel"] + lines[:64]) + "\n")


if __name__ == "__main__":
    main()
