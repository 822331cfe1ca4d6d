//! Run folders as a training run writes them, made up: a model of six layers on 128 examples of 32 tokens.

use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

const LAYERS: usize = 6;
const HIDDEN: u64 = 384;
const TOKENS: u64 = 1024;
const WEIGHTS: u64 = 22_713_216 * 4;
const STEPS: u64 = 750;

/// Writes a run folder; `rows` is the share of rows that sampled linears keep.
pub(super) fn write_run(dir: &Path, name: &str, seed: u64, rows: f64) {
    fs::create_dir_all(dir).unwrap();
    let (ledger, policy) = ledger(name, rows);
    let kept: u64 = ledger.iter().map(|e| e["bytes"].as_u64().unwrap()).sum();
    let timeline = timeline(&ledger);
    let total = |m: &Value| m["live"].as_object().unwrap().values().map(|b| b.as_u64().unwrap()).sum::<u64>();
    let peak = timeline.iter().map(total).max().unwrap() + (3 << 20);
    let (metrics, accuracy) = metrics(seed, kept, peak);
    let best = accuracy.iter().copied().fold((0, 0.0), |best, p| if p.1 > best.1 { p } else { best });
    let last = accuracy.last().map_or(0.0, |p| p.1);
    let class = |name: &str, precision: f64, recall: f64, support: u64| json!({"name": name, "precision": precision, "recall": recall, "f1": 2.0 / (1.0 / precision + 1.0 / recall), "support": support});
    let classes = [class("negative", 0.852, 0.831, 428), class("positive", 0.843, 0.863, 444)];
    let summary = json!({
        "positive": "positive", "macro_f1": 0.847, "classes": classes, "confusion": [[356, 72], [61, 383]],
        "name": name, "task": "movie reviews", "metric": "accuracy", "best": {"step": best.0, "value": best.1},
        "final": {"loss": 0.41, "accuracy": last}, "steps": STEPS, "epochs": 3.0, "examples": 8000, "seconds": 161.5 - 9.0 * seed as f64,
        "step_seconds_median": 0.21 - 0.012 * seed as f64, "tokens_per_second": 4876.2 + 310.0 * seed as f64, "kept_bytes": kept, "peak_bytes": peak,
        "peak_bytes_by_class": {"weights": WEIGHTS, "gradients": WEIGHTS, "optimizer": 2 * WEIGHTS, "kept": kept, "workspace": 19 << 20, "cache": 1 << 20},
        "peak_rss_bytes": peak + (61 << 20), "truncated_examples": 13, "ledger": ledger, "timeline": timeline, "policy": policy,
        "warnings": ["classifier.weight and classifier.bias are not in the checkpoint and were initialised"], "version": "0.1.0", "threads": 2,
    });
    let estimator = name.split('@').next().unwrap();
    let recipe = format!(
        "name = \"{name}\"\ntask = \"movie reviews\"\n\n[model]\npath = \"models/minilm\"\n\n[keep]\nestimator = \"{estimator}\"\nratio = {rows}\n\n[optim]\nlr = 2e-5\nweight_decay = 0.01\n"
    );
    fs::write(dir.join("summary.json"), serde_json::to_string_pretty(&summary).unwrap()).unwrap();
    let ratios = if name.ends_with("@auto") { ratios() } else { String::new() };
    fs::write(dir.join("metrics.jsonl"), metrics + &ratios).unwrap();
    fs::write(dir.join("recipe.toml"), recipe).unwrap();
}

/// What each site keeps, in the order of the forward pass, and the policy of each site.
fn ledger(name: &str, rows: f64) -> (Vec<Value>, Vec<Value>) {
    let row = TOKENS * HIDDEN * 4;
    let (mut ledger, mut policy) = (Vec::new(), Vec::new());
    let mut keep = |site: String, op: &str, what: &str, bytes: u64, sampled: bool| {
        let keep = if sampled && rows < 1.0 { name } else { "exact" };
        let bytes = if sampled { (bytes as f64 * rows) as u64 } else { bytes };
        ledger.push(json!({"site": site, "op": op, "what": what, "keep": keep, "bytes": bytes}));
        policy.push(json!({"site": site, "keep": keep}));
    };
    keep("embeddings.tokens".into(), "embedding", "ids", TOKENS * 4, false);
    keep("embeddings.norm".into(), "layer_norm", "normalised", row, false);
    for i in 0..LAYERS {
        let site = |part: &str| format!("encoder.layer.{i}.{part}");
        keep(site("attention.qkv"), "linear", "input", row, false);
        keep(site("attention"), "attention", "q, k, v", 3 * row, false);
        keep(site("attention.out"), "linear", "input", row, true);
        keep(site("attention.norm"), "layer_norm", "normalised", row, false);
        keep(site("ffn.up"), "linear", "input", row, true);
        keep(site("ffn.act"), "gelu", "input", 4 * row, false);
        keep(site("ffn.down"), "linear", "input", 4 * row, true);
        keep(site("ffn.norm"), "layer_norm", "normalised", row, false);
    }
    keep("pooler".into(), "linear", "input", 32 * HIDDEN * 4, false);
    keep("classifier".into(), "linear", "input", 32 * HIDDEN * 4, false);
    (ledger, policy)
}

fn timeline(ledger: &[Value]) -> Vec<Value> {
    let mut timeline = Vec::new();
    let mut moment = |phase: &str, at: &Value, gradients: u64, kept: u64, workspace: u64| {
        let live = json!({"weights": WEIGHTS, "optimizer": 2 * WEIGHTS, "gradients": gradients, "kept": kept, "workspace": workspace, "cache": 1 << 20});
        timeline.push(json!({"phase": phase, "at": at, "live": live}));
    };
    let bytes = |e: &Value| e["bytes"].as_u64().unwrap();
    let mut kept = 0;
    for entry in ledger {
        kept += bytes(entry);
        moment("forward", &entry["site"], 0, kept, bytes(entry).max(2 << 20));
    }
    for (i, entry) in ledger.iter().rev().enumerate() {
        let done = (WEIGHTS / 2) * (i as u64 + 1) / ledger.len() as u64;
        let gradients = if i + 2 >= ledger.len() { WEIGHTS } else { done };
        moment("backward", &entry["site"], gradients, kept, 2 * bytes(entry) + (2 << 20));
        kept -= bytes(entry);
    }
    moment("optimizer", &json!("adamw"), WEIGHTS, 0, 1 << 20);
    timeline
}

/// The lines of `metrics.jsonl` about ratios: from 0.3 to a level by kind and layer.
fn ratios() -> String {
    let mut lines = String::new();
    for step in (0..=STEPS).step_by(10) {
        let sites =
            (0..LAYERS).flat_map(|i| [("attention.out", 0.12), ("ffn.up", 0.35), ("ffn.down", 0.55)].map(|s| (i, s)));
        let ratio = |(i, (part, level)): (usize, (&str, f64))| {
            let level = level * (0.8 + 0.08 * i as f64) + 0.02 * (step as f64 / 40.0 + i as f64).sin();
            let value = level + (0.3 - level) * (-(step as f64) / 60.0).exp();
            (format!("encoder.layer.{i}.{part}"), json!((value * 1e3).round() / 1e3))
        };
        let ratios: serde_json::Map<_, _> = sites.map(ratio).collect();
        let _ = writeln!(lines, "{}", json!({"kind": "ratios", "step": step, "ratios": ratios}));
    }
    lines
}

/// The lines of `metrics.jsonl`, and the accuracy by step.
fn metrics(seed: u64, kept: u64, peak: u64) -> (String, Vec<(u64, f64)>) {
    let (mut lines, mut accuracy) = (String::new(), Vec::new());
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / (1u64 << 30) as f64 - 1.0
    };
    for step in (5..=STEPS).step_by(5) {
        let t = step as f64 / STEPS as f64;
        let line = json!({
            "kind": "train", "step": step, "epoch": 3.0 * t, "loss": 0.24 + 0.46 * (-3.0 * t).exp() + 0.09 * noise(),
            "lr": 2e-5 * (t / 0.1).min((1.0 - t) / 0.9), "grad_norm": 2.1 + noise(), "step_seconds": 0.21 + 0.02 * noise(),
            "tokens": TOKENS, "kept_bytes": kept, "peak_bytes": peak,
        });
        let _ = writeln!(lines, "{line}");
        if step % 125 == 0 {
            let value = 0.85 - 0.3 * (-4.0 * t).exp() + 0.006 * noise();
            accuracy.push((step, value));
            let loss = 0.37 + 0.25 * (-5.0 * t).exp() + 0.02 * noise();
            let line = json!({"kind": "eval", "step": step, "epoch": 3.0 * t, "loss": loss, "metrics": {"accuracy": value, "f1": value + 0.01}});
            let _ = writeln!(lines, "{line}");
        }
    }
    (lines, accuracy)
}
