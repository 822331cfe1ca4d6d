"""What the PyTorch scripts share: how a model is trained, as arguments, and the parts of a step."""

import contextlib
import os
import resource
import shutil
import sys

import torch


def add_arguments(parser):
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32", help="bf16: autocast over f32 weights")
    parser.add_argument("--attention", choices=["default", "eager", "sdpa"], default="default", help="default: what transformers picks")
    parser.add_argument("--compile", action="store_true", help="torch.compile, whose compiler for processors needs g++")
    parser.add_argument("--checkpointing", action="store_true", help="layers keep their input alone and run again in the backward pass")
    parser.add_argument("--method", choices=["full", "lora"], default="full",
                        help="full: all weights are trained; lora: adapters by peft on q, k, v and the classifier, of a decoder on all linears")
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--optimizer", choices=["fused", "foreach", "loop"], default="fused",
                        help="implementation of AdamW; the transformers trainer uses the fused one")
    parser.add_argument("--seed", type=int, default=0)


def import_what_is_needed(args):
    """Imports that depend on arguments: before memory is measured, and an error before minutes of work."""
    if args.method == "lora":
        import peft  # noqa: F401
    if args.compile and not shutil.which(os.environ.get("CXX", "g++")):
        sys.exit("error: --compile: torch.compile needs a C++ compiler, and there is neither g++ nor what CXX names")


def attention(args):
    return {} if args.attention == "default" else {"attn_implementation": args.attention}


def prepared(model, args):
    """The model in training mode, with adapters and checkpointing if they are asked for."""
    if args.method == "lora":
        import peft
        task, targets = {
            "bert": (peft.TaskType.SEQ_CLS, ["query", "key", "value"]),
            "t5": (peft.TaskType.SEQ_2_SEQ_LM, ["q", "k", "v"]),
        }.get(model.config.model_type, (peft.TaskType.CAUSAL_LM, "all-linear"))
        model = peft.get_peft_model(model, peft.LoraConfig(task_type=task, target_modules=targets, r=args.lora_rank, lora_alpha=8))
    if args.checkpointing:
        if args.method == "lora":
            # the first layer's input has no gradient otherwise, and a segment without one is not run again
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    return torch.compile(model) if args.compile else model


def is_without_decay(name):
    return name.endswith(".bias") or "LayerNorm" in name or name.endswith("norm.weight")


def adamw(model, args, lr):
    """AdamW as the transformers trainer makes it: no decay of biases and norms."""
    trained = [(n, w) for n, w in model.named_parameters() if w.requires_grad]
    how = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}[args.optimizer]
    return torch.optim.AdamW([
        {"params": [w for n, w in trained if not is_without_decay(n)], "weight_decay": 0.01},
        {"params": [w for n, w in trained if is_without_decay(n)], "weight_decay": 0.0},
    ], lr=lr, **how)


def autocast(args):
    """The context of a forward pass."""
    return torch.autocast("cpu", torch.bfloat16) if args.precision == "bf16" else contextlib.nullcontext()


def update(model, optimizer):
    """What follows the backward pass."""
    torch.nn.utils.clip_grad_norm_([w for w in model.parameters() if w.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad()


def parameters(model):
    """Numbers of parameters; a weight that is used twice counts once."""
    count = lambda trained: sum(w.numel() for w in model.parameters() if w.requires_grad == trained)
    return {"trainable_parameters": count(True), "frozen_parameters": count(False)}


def peak_rss():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
