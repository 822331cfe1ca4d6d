"""Prints the logits that `transformers` computes with a saved model, as one JSON line.

    python tests/golden/check_saved.py MODEL_DIR INPUTS_JSON

INPUTS_JSON holds `{"sequences": [{"ids": [...], "types": [...]}, ...]}` as in the folders beside this script; `types` may
be missing. Every sequence runs alone, in f32, without dropout. Prints `{"logits": [[...], ...]}`. Fails if the folder lacks
a weight of the model or holds one that the model does not have.
"""

import json
import sys

import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging


def main(folder, inputs):
    logging.disable_progress_bar()
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    problems = {what: sorted(map(str, found)) for what, found in loading.items() if found}
    if problems:
        sys.exit(f"{folder}: {json.dumps(problems)}")
    model.eval()

    with open(inputs) as file:
        sequences = json.load(file)["sequences"]
    logits = []
    with torch.no_grad():
        for one in sequences:
            ids = torch.tensor([one["ids"]])
            types = torch.tensor([one.get("types", [0] * len(one["ids"]))])
            logits += model(input_ids=ids, token_type_ids=types).logits.tolist()
    print(json.dumps({"logits": logits}))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: check_saved.py MODEL_DIR INPUTS_JSON")
    main(sys.argv[1], sys.argv[2])
