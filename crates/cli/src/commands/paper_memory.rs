//! `colrow paper-memory`: the memory table of the publication that the estimators come from, planned here.

use std::path::Path;

use colrow_models::config::Config;
use colrow_tensor::{Bytes, Estimator, Result};
use colrow_train::plan::Plan;
use colrow_train::recipe::{Estimate, Keeping, Lora, Method, PolicyName, Ratio, Recipe, Train};
use rayon::prelude::*;
use serde::Serialize;

use crate::output::{print, print_json};
use crate::setup::Setup;

/// Plan the paper's memory table (Liu et al. 2023, table 2): T5 and BERT by method at batch 100 × 128 tokens, ours beside published.
///
/// Needs no weights, tokenizer or data: every figure is the plan of one training step on a device of shapes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The publication's set-up. Its targets are a word and the token that ends it.
const BATCH: usize = 100;
const SEQ: usize = 128;
const TARGET: usize = 2;
const SOURCE: &str = "Liu et al. 2023, arXiv 2305.15265, table 2";

/// A model by its name and `config.json`, with the publication's peaks in GB, in the order of the first of [`METHODS`].
struct Size {
    name: &'static str,
    config: &'static str,
    published: Option<[f64; 6]>,
}

const SIZES: [Size; 5] = [
    Size {
        name: "T5-base",
        config: include_str!("../../../../benches/t5-base.json"),
        published: Some([17.66, 13.84, 8.44, 7.30, 6.50, 5.44]),
    },
    Size {
        name: "T5-large",
        config: include_str!("../../../../benches/t5-large.json"),
        published: Some([45.85, 36.83, 21.58, 18.46, 17.44, 14.64]),
    },
    Size { name: "T5-3B", config: include_str!("../../../../benches/t5-3b.json"), published: None },
    Size { name: "BERT-base", config: include_str!("../../../../benches/bert-base.json"), published: None },
    Size { name: "BERT-large", config: include_str!("../../../../benches/bert-large.json"), published: None },
];

/// What is trained and kept, by name; the publication's six first.
const METHODS: [(&str, Method, PolicyName, f64); 8] = [
    ("full", Method::Full, PolicyName::Exact, 1.0),
    ("LoRA", Method::Lora, PolicyName::Exact, 1.0),
    ("wta@0.3", Method::Full, PolicyName::Paper, 0.3),
    ("wta@0.1", Method::Full, PolicyName::Paper, 0.1),
    ("LoRA wta@0.3", Method::Lora, PolicyName::Paper, 0.3),
    ("LoRA wta@0.1", Method::Lora, PolicyName::Paper, 0.1),
    ("lean@0.3", Method::Full, PolicyName::Lean, 0.3),
    ("LoRA lean@0.3", Method::Lora, PolicyName::Lean, 0.3),
];
const FULL: usize = 0;
const WTA: usize = 2;
const LEAN: usize = 6;

/// Bytes a token and column that PyTorch keeps in an encoder layer of T5-base with eager attention at 128 tokens, as measured
/// (benches/results/2026-11-25-layer-memory.md).
const PYTORCH_T5_BASE: f64 = 120.0;

#[derive(Serialize)]
struct Row {
    method: &'static str,
    kept_bytes: usize,
    peak_bytes: usize,
    peak_bytes_by_class: Bytes,
    /// How many times less than `full` the peak is.
    less_than_full: f64,
    published_gb: Option<f64>,
    published_less_than_full: Option<f64>,
    /// The publication's `full` over our peak.
    published_full_over_ours: Option<f64>,
}

#[derive(Serialize)]
struct Table {
    model: &'static str,
    published: bool,
    methods: Vec<Row>,
}

#[derive(Serialize)]
struct Report {
    batch: usize,
    tokens_a_sequence: usize,
    tokens_a_target: usize,
    source: &'static str,
    models: Vec<Table>,
    why: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut models = Vec::new();
    let mut why = String::new();
    for (i, size) in SIZES.iter().enumerate() {
        let config = Config::from_json(size.config.as_bytes(), Path::new(size.name))?;
        let plans = METHODS.par_iter().map(|&method| plan(&config, method)).collect::<Result<Vec<_>>>()?;
        if i == 0 {
            why = explanation(size, &config, &plans);
        }
        models.push(table(size, &plans));
    }
    let report = Report { batch: BATCH, tokens_a_sequence: SEQ, tokens_a_target: TARGET, source: SOURCE, models, why };
    if args.json { print_json(&report) } else { print(&text(&report)) }
}

fn plan(config: &Config, (_, method, policy, ratio): (&str, Method, PolicyName, f64)) -> Result<Plan> {
    let estimator =
        if policy == PolicyName::Paper { Estimate::By(Estimator::Wta) } else { Keeping::default().estimator };
    let recipe = Recipe {
        train: Train { method, ..Train::default() },
        lora: Lora { rank: 32, alpha: 32.0, dropout: 0.1, ..Lora::default() },
        keep: Keeping { policy, estimator, ratio: Ratio::Fixed(ratio), ..Keeping::default() },
        ..Recipe::default()
    };
    let setup = Setup::new(config.clone(), recipe)?;
    setup.plan(setup.lengths(vec![SEQ as u32; BATCH], TARGET))
}

fn table(size: &Size, plans: &[Plan]) -> Table {
    let full = plans[FULL].peak_bytes as f64;
    let row = |(i, plan): (usize, &Plan)| {
        let published = size.published.and_then(|all| all.get(i).copied());
        let published_full = size.published.map(|all| all[FULL]);
        Row {
            method: METHODS[i].0,
            kept_bytes: plan.kept_bytes,
            peak_bytes: plan.peak_bytes,
            peak_bytes_by_class: plan.peak_bytes_by_class,
            less_than_full: full / plan.peak_bytes as f64,
            published_gb: published,
            published_less_than_full: published.zip(published_full).map(|(gb, full)| full / gb),
            published_full_over_ours: published_full.map(|full| full * 1e9 / plan.peak_bytes as f64),
        }
    };
    let methods = plans.iter().enumerate().map(row).collect();
    Table { model: size.name, published: size.published.is_some(), methods }
}

/// Why sampling saves less of our memory than of PyTorch's.
fn explanation(size: &Size, config: &Config, plans: &[Plan]) -> String {
    let Some(published) = size.published else { return String::new() };
    let (columns, layers) = (config.architecture.hidden_size() as f64, config.architecture.layers() as f64);
    let rows = (BATCH * SEQ) as f64 * layers * columns;
    let encoder = |plan: &Plan| {
        let entries = plan.ledger.entries.iter().filter(|e| e.site.starts_with("encoder.block."));
        entries.map(|e| e.bytes).sum::<usize>() as f64
    };
    let (exact, wta) = (encoder(&plans[FULL]), encoder(&plans[WTA]));
    let peak = |i: usize| plans[i].peak_bytes as f64;
    let gb = |bytes: f64| format!("{:.2} GB", bytes / 1e9);
    let times = |a: f64, b: f64| format!("{:.2}", a / b);
    format!(
        "Why {name} with {wta_name} needs {ours} times less than full here, and {theirs} times less as published: full is leaner here to begin \
         with. PyTorch keeps {PYTORCH_T5_BASE:.0} bytes a token and column in an encoder layer (measured, eager attention, f32), {torch} in \
         {layers} layers, which with 16 bytes a weight makes {whole}; exact keeps {exact_d:.1}, {exact}: no S × S probabilities, dropout replayed, the ReLU in bits. Of those bytes {wta_name} \
         takes the inputs of three linears, and leaves {wta_d:.1}, {wta}. Beside the published full, {published} GB, {wta_name} needs {against} times \
         less here, and lean@0.3 {lean} times less.",
        name = size.name,
        wta_name = METHODS[WTA].0,
        ours = times(peak(FULL), peak(WTA)),
        theirs = times(published[FULL], published[WTA]),
        torch = gb(PYTORCH_T5_BASE * rows),
        whole = gb(PYTORCH_T5_BASE * rows + 4.0 * plans[FULL].peak_bytes_by_class.weights as f64),
        exact_d = exact / rows,
        exact = gb(exact),
        wta_d = wta / rows,
        wta = gb(wta),
        published = published[FULL],
        against = times(published[FULL] * 1e9, peak(WTA)),
        lean = times(published[FULL] * 1e9, peak(LEAN)),
    )
}

fn text(report: &Report) -> String {
    let gb = |bytes: usize| format!("{:.2}", bytes as f64 / 1e9);
    let optional = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.2}"));
    let mut out = format!(
        "Peak memory of a training step in f32, {} sequences of {} tokens, by the plan for this processor; GB are 10⁹ bytes.\n\
         Published: {}, on a GPU.\n\
         Less: times less than full. Of theirs: the published full over ours.\n",
        report.batch, report.tokens_a_sequence, report.source
    );
    for table in &report.models {
        out += &format!(
            "\n{:<14}{:>8}{:>8}{:>10}{:>11}{:>11}{:>7}{:>11}{:>7}{:>11}\n",
            table.model, "kept", "peak", "weights", "gradients", "optimizer", "less", "published", "less", "of theirs"
        );
        for row in &table.methods {
            let c = &row.peak_bytes_by_class;
            let line = format!(
                "{:<14}{:>8}{:>8}{:>10}{:>11}{:>11}{:>7.2}{:>11}{:>7}{:>11}",
                row.method,
                gb(row.kept_bytes),
                gb(row.peak_bytes),
                gb(c.weights),
                gb(c.gradients),
                gb(c.optimizer),
                row.less_than_full,
                optional(row.published_gb),
                optional(row.published_less_than_full),
                optional(row.published_full_over_ours),
            );
            out += line.trim_end();
            out.push('\n');
        }
        if !table.published {
            out += &format!("  (the publication has no figures of {} in this table)\n", table.model);
        }
    }
    format!("{out}\n{}", report.why)
}
