#!/usr/bin/env python3
"""Whether two builds of colrow do the same, to the byte: small runs of BERT and T5 under every policy, method and state of the optimizer, whole and
resumed, and the plans of all.

    python3 benches/same_bits.py OLD NEW --bert MODEL_DIR [--t5 MODEL_DIR] --glue DIR [--only PATTERN]

Saved models, checkpoints' weights and moments, norms, losses, ledgers and plans are compared; a resumed run with the one that was not
interrupted, too. MODEL_DIR of --t5 is what t5_setup.py makes. Timings, and what says which build wrote a file, are left out.
"""

import argparse
import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SHORT = {"train.steps": 5, "train.batch": 6, "train.log_every": 1, "train.save_every": 5, "train.eval_every": 5, "data.limit": 60,
         "data.max_length": 48, "optim.lr": 1e-4, "optim.warmup": 0.2, "seed": 3}
LORA = {"train.method": "lora", "lora.rank": 4, "lora.dropout": 0.1}
EIGHT = {"optim.states": "8bit"}
POLICIES = ("exact", "paper", "lean", "leanest", "recompute")

RUNS = {f"full-{policy}": {"keep.policy": policy} for policy in POLICIES}
RUNS |= {f"lora-{policy}": {"keep.policy": policy, **LORA} for policy in POLICIES}
RUNS |= {
    "wta-cached": {"keep.policy": "paper", "keep.estimator": "wta"},
    "crs-running": {"keep.policy": "paper", "keep.estimator": "crs", "keep.norms": "running"},
    "topk-uniform": {"keep.policy": "paper", "keep.estimator": "topk", "keep.norms": "uniform"},
    "cache-file": {"keep.policy": "paper", "keep.cache": "file"},
    "auto-lean": {"keep.policy": "lean", "keep.ratio": "auto", "keep.auto_every": 2},
    "auto-paper": {"keep.policy": "paper", "keep.ratio": "auto", "keep.auto_every": 2},
    "8bit": {"keep.policy": "lean", **EIGHT},
    "8bit-in-backward": {"keep.policy": "recompute", "optim.update": "in-backward", "optim.clip": 0, **EIGHT},
    "in-backward": {"optim.update": "in-backward", "optim.clip": 0},
    "accumulate-2": {"keep.policy": "lean", "train.accumulate": 2, "train.batch": 3},
    "tokens": {"keep.policy": "lean", "train.batch_tokens": 160},
    "bf16": {"keep.policy": "lean", "train.precision": "bf16"},
    "lora-fa": {**LORA, "train.method": "lora-fa"},
    "bitfit": {"train.method": "bitfit", "keep.policy": "lean"},
    "frozen": {"train.freeze": ["*.0.*"], "keep.policy": "lean"},
    "int4-bf16": {"keep.policy": "lean", "keep.sites": {"*.1.*": {"keep": "int4"}, "*.2.*": {"keep": "bf16"}}},
}
PAIRS = {"rte": {"task": "rte", "keep.policy": "lean"}}


def toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


class Build:
    def __init__(self, program, room):
        self.program, self.room = os.path.abspath(program), room
        room.mkdir()

    def run(self, *args):
        done = subprocess.run([self.program, *args], cwd=self.room, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"error: {self.program} {' '.join(args)}: {done.stderr}")
        return done.stdout

    def train(self, name, settings):
        """Whole, and with its last two steps resumed."""
        (self.room / "recipe.toml").write_text("")
        sets = [arg for key, value in settings.items() for arg in ("--set", f"{key}={toml(value)}")]
        plan = json.loads(self.run("plan", "recipe.toml", "--json", *sets))
        self.run("train", "recipe.toml", "--json", *sets, "--set", f"output={name}")
        # the schedule is that of the whole run: a checkpoint of the middle, and what came after it taken away
        self.run("train", "recipe.toml", "--json", *sets, "--set", f"output={name}-again", "--set", "train.save_every=3",
                 "--set", "train.keep_checkpoints=9")
        again = self.room / f"{name}-again"
        for checkpoint in (again / "checkpoints").iterdir():
            if checkpoint.name != "step-3":
                shutil.rmtree(checkpoint)
        (again / "summary.json").unlink()
        shutil.rmtree(again / "model", ignore_errors=True)
        self.run("train", "recipe.toml", "--resume", "--json", *sets, "--set", f"output={name}-again", "--set", "train.save_every=3",
                 "--set", "train.keep_checkpoints=9")
        facts = {f"plan {key}": value for key, value in plan.items() if key not in ("process_bytes", "resident_bytes")}
        facts |= self.facts(name)
        resumed = self.facts(f"{name}-again")
        for key, value in facts.items():
            if key.startswith(("model/", "checkpoint ")) and key in resumed and resumed[key] != value:
                print(f"  {name}: {key} of the resumed run differs from that of the whole one ({self.program})")
                facts[f"resumed {key}"] = "differs"
        for folder in (name, f"{name}-again"):
            shutil.rmtree(self.room / folder)
        return facts

    def facts(self, name):
        run, facts = self.room / name, {}
        for file in sorted((run / "model").rglob("*")):
            if file.is_file():
                facts[f"model/{file.relative_to(run / 'model')}"] = hashlib.sha256(file.read_bytes()).hexdigest()
        newest = max((run / "checkpoints").iterdir(), key=lambda folder: int(folder.name.split("-")[1]))
        for file in sorted(newest.iterdir()):
            if file.suffix in (".safetensors", ".bin"):
                facts[f"checkpoint {file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        timed = ("step_seconds", "seconds", "tokens_per_second", "time")
        facts["metrics"] = [{k: v for k, v in line.items() if k not in timed and k != "peak_bytes"} for line in lines]
        facts["metrics peak_bytes"] = max(line.get("peak_bytes", 0) for line in lines)
        summary = json.loads((run / "summary.json").read_text())
        for key in ("kept_bytes", "peak_bytes", "peak_bytes_by_class", "sites", "ledger", "planned", "plan"):
            if key in summary:
                facts[f"summary {key}"] = summary[key]
        return facts


def same(key, old, new, slack):
    if "peak" not in key or old is None or new is None:
        return old == new
    if isinstance(old, dict):
        return all(same(key, old[k], new[k], slack) for k in old)
    return abs(old - new) <= slack


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--bert", required=True, type=os.path.abspath)
    parser.add_argument("--t5", type=os.path.abspath, nargs="*", default=[])
    parser.add_argument("--glue", required=True, type=os.path.abspath)
    parser.add_argument("--only", default="*", help="runs whose name matches: bert-lora-*")
    parser.add_argument("--slack", type=int, default=0, help="bytes by which a peak may differ")
    args = parser.parse_args()
    runs = {}
    for family, model in [("bert", args.bert)] + [(Path(t5).name, t5) for t5 in args.t5]:
        for name, settings in (RUNS | PAIRS).items():
            if name == "bitfit" and family != "bert":  # T5 has no biases
                continue
            task = settings.get("task", "sst2")
            data = f"{args.glue}/{ {'sst2': 'SST-2', 'rte': 'RTE'}[task] }"
            runs[f"{family}-{name}"] = (Path(data), {"task": task, "model.path": model, **SHORT, **settings})
    different = []
    with tempfile.TemporaryDirectory() as room:
        builds = [Build(program, Path(room) / name) for program, name in ((args.old, "old"), (args.new, "new"))]
        for name, (data, settings) in runs.items():
            if not fnmatch.fnmatch(name, args.only):
                continue
            for split, rows in (("train", 90), ("dev", 40)):
                file = Path(room) / f"{split}-{settings['task']}.tsv"
                file.write_text("\n".join((data / f"{split}.tsv").read_text().splitlines()[:rows + 1]) + "\n")
                settings[f"data.{split}"] = str(file)
            if "train.batch_tokens" in settings:
                del settings["train.batch"]
            old, new = (build.train(name, settings) for build in builds)
            wrong = [key for key in old.keys() | new.keys() if not same(key, old.get(key), new.get(key), args.slack)]
            more = new["plan peak_bytes"] - old["plan peak_bytes"]
            said = "the same" if not wrong else "DIFFERENT: " + ", ".join(sorted(wrong))
            print(f"{name}: {len(old)} facts, {said}" + (f" (planned peak {more:+} bytes)" if more else ""), flush=True)
            for key in sorted(wrong):
                print(f"    {key}: {str(old.get(key))[:200]} | {str(new.get(key))[:200]}")
            different += [name] * bool(wrong)
    print("all the same" if not different else f"{len(different)} runs differ")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
