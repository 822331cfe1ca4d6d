"""Shows that PEFT and `transformers` load an adapter's folder as colrow writes it, and prints the logits as one JSON line.

    python tests/golden/check_adapter.py ADAPTER_DIR INPUTS_JSON

ADAPTER_DIR is `model/` of a LoRA run that classifies; its `adapter_config.json` names the base model's folder. INPUTS_JSON holds
`{"sequences": [{"ids": [...], "types": [...]}, ...]}` as in the folders beside this script; `types` may be missing. Every sequence
runs alone, in f32, without dropout. Fails if one way of loading gives other logits than the others:

- `AutoModelForSequenceClassification.from_pretrained(ADAPTER_DIR, num_labels=n)`;
- `AutoPeftModelForSequenceClassification.from_pretrained(ADAPTER_DIR, num_labels=n)`;
- both without `num_labels`, where the base model's `config.json` has n labels anyway;
- `PeftModel.from_pretrained` on the base model.

With a `config.json` in it, as older versions of colrow wrote one, the first way fails, with `num_labels` and without: `transformers`
takes the folder for a whole model's. That is shown on a copy of the folder.
"""

import json
import os
import shutil
import sys
import tempfile

import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils import logging


def logits(model, sequences):
    model.eval()
    found = []
    with torch.no_grad():
        for one in sequences:
            ids = torch.tensor([one["ids"]])
            types = torch.tensor([one.get("types", [0] * len(one["ids"]))])
            found += model(input_ids=ids, token_type_ids=types).logits.tolist()
    return found


def main(folder, inputs):
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with open(os.path.join(folder, "adapter_config.json")) as file:
        base = json.load(file)["base_model_name_or_path"]
    with safe_open(os.path.join(folder, "adapter_model.safetensors"), "pt") as tensors:
        head = next(name for name in tensors.keys() if name.endswith("classifier.weight"))
        n = tensors.get_slice(head).get_shape()[0]
    with open(inputs) as file:
        sequences = json.load(file)["sequences"]

    auto, f32 = AutoModelForSequenceClassification.from_pretrained, {"dtype": torch.float32}
    ways = {
        "transformers, num_labels": lambda: auto(folder, num_labels=n, **f32),
        "AutoPeftModel": lambda: AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=n, **f32),
        "PeftModel": lambda: PeftModel.from_pretrained(auto(base, num_labels=n, **f32), folder),
    }
    if AutoConfig.from_pretrained(base).num_labels == n:
        ways["transformers"] = lambda: auto(folder, **f32)
        ways["AutoPeftModel, no num_labels"] = lambda: AutoPeftModelForSequenceClassification.from_pretrained(folder, **f32)
    results = {way: logits(load(), sequences) for way, load in ways.items()}
    first = next(iter(results.values()))
    for way, found in results.items():
        if found != first:
            sys.exit(f"{folder}: {way} gives {found}, not {first}")

    with tempfile.TemporaryDirectory() as older:
        shutil.copytree(folder, older, dirs_exist_ok=True)
        shutil.copy(os.path.join(base, "config.json"), older)
        for labels in ({"num_labels": n}, {}):
            try:
                auto(older, **labels)
            except (OSError, RuntimeError) as e:
                print(f"with a config.json, {labels}: {str(e).splitlines()[0]}", file=sys.stderr)
            else:
                print(f"with a config.json, {labels}: loads now", file=sys.stderr)
    print(json.dumps({"ways": list(results), "logits": first}))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: check_adapter.py ADAPTER_DIR INPUTS_JSON")
    main(sys.argv[1], sys.argv[2])
