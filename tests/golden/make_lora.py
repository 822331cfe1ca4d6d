"""Writes adapters of the tiny models of this folder, as PEFT saves them, and what PEFT computes with them.

    python tests/golden/make_lora.py [CASE ...]

As in make.py, numbers are drawn in f32 from a seed per case, expected values computed in f64 and rounded once. The inputs
are those of the base model's folder.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertForSequenceClassification, T5ForConditionalGeneration

import make
import make_llama
import make_t5

HERE = Path(__file__).resolve().parent

QKV = ["query", "key", "value"]

# name: (seed, base model, settings)
CASES = {
    "pairs": (1, "bert-pairs", dict(r=3, lora_alpha=6, target_modules=QKV)),
    "t5": (3, "t5-relu", dict(r=4, lora_alpha=8, target_modules=["q", "v", "wi"])),
    "stabilised": (2, "bert-gelu", dict(r=2, lora_alpha=5, use_rslora=True, target_modules=["value", "dense"])),
    "pooler": (4, "bert-pairs", dict(r=2, lora_alpha=3, target_modules=["dense"], modules_to_save=["classifier", "pooler"])),
    "patterns": (
        5,
        "bert-gelu",
        dict(
            r=3,
            lora_alpha=5,
            use_rslora=True,
            bias="all",
            target_modules=r".*\.attention\.self\.(query|key|value)|.*intermediate\.dense",
            rank_pattern={"query": 2, "^bert.encoder.layer.1.*key": 5},
            alpha_pattern={"layer.0.attention.self.value": 2, "self.(query|value)": 7},
        ),
    ),
    "some-layers": (
        6,
        "bert-pairs",
        dict(
            r=2,
            lora_alpha=3,
            bias="lora_only",
            target_modules="all-linear",
            exclude_modules=["key"],
            fan_in_fan_out=True,
            rank_pattern={"output.dense": 4},
        ),
    ),
    # the head is tied to the embedding, of which PEFT saves a copy
    "tied-head": (8, "llama-llama3", dict(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj", "down_proj", "lm_head"])),
    "decoder": (9, "llama-qwen3", dict(r=3, lora_alpha=6, target_modules="all-linear")),
    # of a model without a head, which the conversion would leave out
    "converted": (7, "t5-relu", dict(r=2, lora_alpha=4, init_lora_weights="pissa", target_modules=["q", "v"])),
}


def plain(name):
    """The key of a tensor of the adapted model in colrow."""
    name = name.removeprefix("base_model.model.")
    return name.replace(".default", "").replace(".modules_to_save", "").replace(".base_layer", "")


def open_base(base):
    """The model, its batch, and what PEFT wants to know of it."""
    inputs = json.loads((HERE / base / "inputs.json").read_text())
    if base.startswith("llama"):
        return AutoModelForCausalLM.from_pretrained(HERE / base), inputs, dict(task_type="CAUSAL_LM")
    if base.startswith("t5"):
        model = T5ForConditionalGeneration.from_pretrained(HERE / base, attn_implementation="eager")
        batch = lambda dtype: make_t5.tensors(inputs["sources"], inputs["targets"])
        return model, batch, dict(task_type="SEQ_2_SEQ_LM")
    model = BertForSequenceClassification.from_pretrained(HERE / base, attn_implementation="eager")
    batch = lambda dtype: make.tensors(inputs["sequences"], inputs["labels"], dtype)
    return model, batch, dict(task_type="SEQ_CLS")


def write(case):
    seed, base, settings = CASES[case]
    random = np.random.RandomState(seed)
    model, batch, task = open_base(base)
    model.name_or_path = base
    settings = LoraConfig(lora_dropout=0.0, **task, **settings)
    model = get_peft_model(model, settings).eval()
    if converted := settings.init_lora_weights != True:
        # how an adapter that changed its base becomes one that does not
        initial = Path(tempfile.mkdtemp()) / "initial"
        model.save_pretrained(initial)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.copy_(torch.from_numpy(0.3 * random.standard_normal(tuple(weight.shape))))
    folder = HERE / f"lora-{case}"
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(initial) if converted else None)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": base}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    model.double()
    if base.startswith("llama"):
        logits, loss, _ = make_llama.passes(model, batch["sequences"], batch["labels"])
        expected = {"logits": logits}
    else:
        out = model(**batch(model.dtype))
        out.loss.backward()
        loss = out.loss.detach()
        expected = {"logits": out.logits.detach()} if out.logits.dim() == 2 else {}
    expected |= {"loss": loss.reshape(1)}
    expected |= {f"grad.{plain(n)}": w.grad for n, w in model.named_parameters() if w.requires_grad}
    save_file({n: t.float().contiguous() for n, t in expected.items()}, folder / "expected.safetensors")
    if converted:
        return print(f"{folder.name}: loss {loss.item():.4f}")
    # with bias="all", PEFT adds the bias of the head's two copies
    stored = {plain(n) for n in load_file(folder / "adapter_model.safetensors") if ".original_module." not in n and ".base_layer." not in n}
    if stored != {n.removeprefix("grad.") for n in expected if n.startswith("grad.")}:
        sys.exit(f"{case}: the adapter's file holds other tensors than those that are learned")
    print(f"{folder.name}: {len(stored)} tensors, loss {loss.item():.4f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in sys.argv[1:] or CASES:
        if case not in CASES:
            sys.exit(f"{case}: expected one of {', '.join(CASES)}")
        write(case)
