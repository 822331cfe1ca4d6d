#!/usr/bin/env python3
"""Makes T5 model folders with random weights and a real tokenizer, and data, for runs where no checkpoint can be had.

    python3 benches/t5_setup.py --glue DIR --out DIR [--weights small]

Writes OUT/t5-SIZE (config.json as published, tokenizer.json, random weights) and OUT/sst2-64.tsv (the first 64 examples of SST-2). Needs torch,
transformers and tokenizers: the tokenizer is a Unigram model trained on SST-2. Memory needs no weights: see `colrow paper-memory`.
"""

import argparse
import json
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
    parser.add_argument("--weights", nargs="*", default=["small"], choices=SIZES)
    args = parser.parse_args()
    lines = (args.glue / "SST-2" / "train.tsv").read_text().splitlines()[1:]
    texts = [line.split("\t")[0] for line in lines[:20000]]
    words = ["sst2 sentence: " + text for text in texts] + ["negative", "positive"] * 2000
    tokens = tokenizer(words)
    import torch
    from transformers import T5Config, T5ForConditionalGeneration
    for size in args.weights:
        folder = args.out / f"t5-{size}"
        folder.mkdir(parents=True, exist_ok=True)
        config = (BENCHES / f"t5-{size}.json").read_text()
        (folder / "config.json").write_text(config)
        tokens.save(str(folder / "tokenizer.json"))
        torch.manual_seed(0)
        T5ForConditionalGeneration(T5Config(**json.loads(config))).save_pretrained(folder)
        (folder / "config.json").write_text(config)
    (args.out / "sst2-64.tsv").write_text("\n".join(["sentence\tlabel"] + lines[:64]) + "\n")


if __name__ == "__main__":
    main()
