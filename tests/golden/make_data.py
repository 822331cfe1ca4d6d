"""Small tables as pandas and datasets write them, into tests/golden/data: the files of each folder hold the same rows.

    python3 -m pip install pandas pyarrow datasets
    python3 tests/golden/make_data.py
"""

import csv
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Value

OUT = Path(__file__).parent / "data"
TEXTS = ['plain', 'says "yes"', '"all of it"', "two\nlines", "a\ttab", "a, comma; more", " é ", '"open']
LABELS = ["b", "a", "b", "a", "b", "a", "b", "a"]


def main():
    OUT.mkdir(exist_ok=True)
    frame = pd.DataFrame({"text": TEXTS, "label": LABELS})
    frame.to_csv(OUT / "same.csv", index=False)
    frame.to_csv(OUT / "same-index.csv")
    frame.to_csv(OUT / "same-crlf.csv", index=False, lineterminator="\r\n")
    frame.to_csv(OUT / "same.tsv", index=False, sep="\t")
    frame.to_csv(OUT / "same-all.tsv", index=False, sep="\t", quoting=csv.QUOTE_ALL)
    frame.to_csv(OUT / "same-bom.tsv", index=False, sep="\t", encoding="utf-8-sig")
    frame.to_json(OUT / "same-array.json", orient="records", indent=1)
    frame.to_json(OUT / "same-lines.jsonl", orient="records", lines=True)
    for codec in ["snappy", "zstd", "gzip", "none"]:
        frame.to_parquet(OUT / f"same-{codec}.parquet", compression=codec)
    frame.astype({"label": "category"}).to_parquet(OUT / "same-category.parquet")
    features = Features({"text": Value("string"), "label": ClassLabel(names=["b", "a"])})
    named = Dataset.from_dict({"text": TEXTS, "label": [int(label == "a") for label in LABELS]})
    named = named.cast(features)
    named.to_parquet(OUT / "same-classes.parquet")

    for codec in ["lz4", "brotli"]:
        frame.to_parquet(OUT / f"refused-{codec}.parquet", compression=codec)
    frame.to_csv(OUT / "refused-utf16.csv", index=False, encoding="utf-16")
    frame.to_csv(OUT / "refused-semicolon.csv", index=False, sep=";")
    frame.to_csv(OUT / "refused-no-header.csv", index=False, header=False)
    frame.to_json(OUT / "refused-columns.json")
    missing = pd.DataFrame({"text": ["a", "b", "c", "d"], "label": [0, 1, None, 0]})
    missing.to_parquet(OUT / "refused-nan.parquet")
    pq.write_table(pa.table({"text": ["a", "b", "c", "d"], "label": [0.0, 1.0, float("nan"), 0.0]}), OUT / "refused-nan-value.parquet")
    missing.to_csv(OUT / "refused-nan.csv", index=False)
    missing.to_csv(OUT / "refused-nan-word.csv", index=False, na_rep="nan")
    missing.to_csv(OUT / "refused-na-word.csv", index=False, na_rep="NA")
    missing.to_json(OUT / "refused-null.jsonl", orient="records", lines=True)


main()
