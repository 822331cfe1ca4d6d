//! `colrow bench`: time and memory of training steps with random weights.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use colrow_autograd::{NormMemory, Store};
use colrow_models::config::Config;
use colrow_models::model::Model;
use colrow_tensor::rng::Key;
use colrow_tensor::{Cost, DType, Device, Error, Result};
use colrow_train::engine::Engine;
use colrow_train::optim::{Optimizer, Settings};
use colrow_train::plan::{self, Lengths, Shape, remembering_sites};
use colrow_train::recipe::{
    self, Choice, Estimator, Method, NormSource, PolicyName, Precision, Recipe, States, Update,
};
use colrow_train::{setup, trainer};
use serde_json::{Value, json};

use super::{print, print_json};
use crate::units;

/// Time training steps of a model with random weights: forward, backward, clipping, AdamW.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model's config.json.
    #[arg(long, value_name = "FILE")]
    model_config: PathBuf,
    /// Sequences in a batch.
    #[arg(long, value_name = "B", default_value_t = 32)]
    batch: usize,
    /// Tokens in a sequence.
    #[arg(long, value_name = "S", default_value_t = 128)]
    seq: usize,
    /// Tokens in a target, for models that answer in text.
    #[arg(long, value_name = "T", default_value_t = 8)]
    target: usize,
    /// Lengths of the sequences: all S, or drawn uniformly from 16…S.
    #[arg(long, value_enum, default_value_t = Spread::Equal)]
    lengths: Spread,
    /// The length of each sequence, numbers with white space between them, instead of --batch, --seq and --lengths.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["batch", "seq", "lengths"])]
    lengths_file: Option<PathBuf>,
    /// What is trained.
    #[arg(long, value_parser = choice::<Method>(), default_value = "full")]
    method: Method,
    /// Rank of adapters.
    #[arg(long, value_name = "R", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    lora_rank: u32,
    /// What is kept for the backward pass.
    #[arg(long, value_parser = choice::<PolicyName>(), default_value = "exact")]
    keep: PolicyName,
    /// Estimator of sampled sites.
    #[arg(long, value_parser = choice::<Estimator>(), default_value = "pps")]
    estimator: Estimator,
    /// Share of the rows that sampled sites keep, in (0, 1].
    #[arg(long, value_name = "R", default_value_t = 0.3)]
    ratio: f64,
    /// Where the norms of dZ come from; without it as the policy has them.
    #[arg(long, value_parser = choice::<NormSource>())]
    norms: Option<NormSource>,
    /// What numbers matrix products multiply.
    #[arg(long, value_parser = choice::<Precision>(), default_value = "f32")]
    precision: Precision,
    /// How AdamW holds the moments of large parameters.
    #[arg(long, value_parser = choice::<States>(), default_value = "f32")]
    optimizer_states: States,
    /// When weights are updated; in the backward pass, without clipping.
    #[arg(long, value_parser = choice::<Update>(), default_value = "after-backward")]
    update: Update,
    /// Timed steps.
    #[arg(long, value_name = "N", default_value_t = 3)]
    steps: usize,
    /// Steps before those, not timed.
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup: usize,
    /// Seed of weights, lengths and draws.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Say where the time of the timed steps goes, kernel by kernel.
    #[arg(long)]
    profile: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Spread {
    Equal,
    Uniform,
}

/// The names of a recipe's choice, as values of an argument.
fn choice<T: Choice + Send + Sync>() -> impl TypedValueParser<Value = T> {
    let names = PossibleValuesParser::new(T::ALL.iter().map(|c| c.name()));
    names.try_map(|name| T::ALL.iter().copied().find(|c| c.name() == name).ok_or("no such name"))
}

impl Args {
    fn policy(&self) -> recipe::Keep {
        recipe::Keep {
            policy: self.keep,
            estimator: self.estimator,
            ratio: recipe::Ratio::Fixed(self.ratio),
            norms: self.norms,
            ..recipe::Keep::default()
        }
    }

    fn optim(&self) -> Settings {
        let clip = if self.update == Update::InBackward { 0.0 } else { 1.0 };
        let (states, update) = (self.optimizer_states, self.update);
        Settings::from(&recipe::Optim { clip, states, update, ..recipe::Optim::default() })
    }

    fn sequence_lengths(&self) -> Result<Vec<u32>> {
        if let Some(file) = &self.lengths_file {
            return read_lengths(file);
        }
        let key = Key::new(self.seed).named("lengths");
        let shortest = self.seq.min(16);
        let uniform = |i: usize| shortest + (key.uniform(i as u64) * (self.seq - shortest + 1) as f64) as usize;
        let length = |i| if self.lengths == Spread::Uniform { uniform(i) } else { self.seq };
        Ok((0..self.batch).map(|i| length(i) as u32).collect())
    }
}

fn read_lengths(file: &Path) -> Result<Vec<u32>> {
    let wrong = |what: &dyn Display| Error::usage(format!("--lengths-file: {what}")).at(file.display());
    let text = std::fs::read_to_string(file).map_err(|e| wrong(&e))?;
    let length = |word: &str| match word.parse() {
        Ok(length) if length > 0 => Ok(length),
        _ => Err(wrong(&format!("expected whole numbers from 1, found `{word}`"))),
    };
    let lengths = text.split_whitespace().map(length).collect::<Result<Vec<u32>>>()?;
    if lengths.is_empty() { Err(wrong(&"expected at least one length, found none")) } else { Ok(lengths) }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if [args.batch, args.seq, args.steps, args.target].contains(&0) {
        return Err(Error::usage("--batch, --seq, --steps, --target: expected at least 1, found 0"));
    }
    if !(args.ratio > 0.0 && args.ratio <= 1.0) {
        return Err(Error::usage(format!("--ratio: expected a number in (0, 1], found {}", args.ratio)));
    }
    let text = std::fs::read(&args.model_config)
        .map_err(|e| Error::usage(format!("--model-config: {e}")).at(args.model_config.display()))?;
    let config = Config::from_json(&text, &args.model_config)?;
    let sources = args.sequence_lengths()?;
    let (name, longest) = match &args.lengths_file {
        Some(_) => ("--lengths-file", sources.iter().max().map_or(0, |&length| length as usize)),
        None => ("--seq", args.seq),
    };
    if let Some(limit) = config.longest().filter(|&limit| longest > limit) {
        let what = format!("{name}: expected at most {limit} (max_position_embeddings), found {longest}");
        return Err(Error::usage(what));
    }
    let result = bench(args, config, sources)?;
    if args.json { print_json(&result) } else { print(&text_of(&result)) }
}

fn bench(args: &Args, config: Config, sources: Vec<u32>) -> Result<Value> {
    let keep = args.policy();
    let device = setup::device(args.precision);
    let targets = config.is_text_to_text().then(|| vec![args.target as u32; sources.len()]);
    let lengths = Lengths { sources, targets };
    let regression = config.num_labels() == 1;
    let mut micro = plan::blank(&lengths, regression);
    let key = Key::new(args.seed).named("ids");
    let vocabulary = config.vocab_size() as f64;
    for (i, id) in micro.batch.ids.iter_mut().enumerate() {
        *id = (key.uniform(i as u64) * vocabulary) as u32;
    }
    let n = micro.batch.ids.len();
    let of_targets = lengths.targets.iter().flatten().map(|&l| l as usize).sum::<usize>();
    micro.places = Some((0..n as u64).collect());
    micro.target_places = Some((n as u64..(n + of_targets) as u64).collect());
    let train = recipe::Train { method: args.method, ..recipe::Train::default() };
    let lora = recipe::Lora { rank: args.lora_rank as usize, ..recipe::Lora::default() };
    let recipe = Recipe { train, lora, seed: args.seed, ..Recipe::default() };
    let choose_trained = |model: &mut Model| setup::choose_trained(model, &recipe);
    let mut blank = Model::new(config.clone(), &Device::meta(1), DType::F32);
    choose_trained(&mut blank)?;
    let policy = Arc::new(setup::policy(&keep, &blank.sites())?);
    let plan = plan::plan(&Shape {
        config: &config,
        choose_trained: &choose_trained,
        optim: args.optim(),
        policy: policy.clone(),
        auto: &[],
        micros: &[lengths],
        cached_tokens: n + of_targets,
        regression,
        threads: rayon::current_num_threads(),
    })?;
    let mut model = Model::new(config, &device, DType::F32);
    model.init(args.seed);
    choose_trained(&mut model)?;
    let norms = match policy.remembers_norms() {
        true => Some(Arc::new(NormMemory::new(
            &device,
            &remembering_sites(&policy, &model),
            n + of_targets,
            Store::Memory,
        )?)),
        false => None,
    };
    let optimizer = Optimizer::new(args.optim(), &model.registry.params);
    let mut engine =
        Engine { model, optimizer, policy, norms, ratios: None, probe: None, key: Key::new(args.seed), dropout: true };
    let micros = [micro];
    let (mut times, mut optimizer_times) = (Vec::new(), Vec::new());
    let mut last = None;
    for step in 1..=(args.warmup + args.steps) as u64 {
        if args.profile && step == args.warmup as u64 + 1 {
            device.profile().start();
        }
        let clock = Instant::now();
        let stats = engine.step(&micros, 1e-5, step, false)?;
        if step > args.warmup as u64 {
            times.push(clock.elapsed().as_secs_f64());
            optimizer_times.push(stats.optimizer_seconds);
        }
        last = Some(stats);
    }
    let stats = last.ok_or_else(|| Error::new("no step was run"))?;
    let total: f64 = times.iter().sum();
    let profile = args.profile.then(|| profile_of(&device.profile().stop(), total, args.steps));
    let parameters = |trainable: bool| {
        let some = engine.model.registry.params.iter().filter(|(_, p)| p.trainable == trainable);
        some.map(|(_, p)| p.value.len()).sum::<usize>()
    };
    let in_order = times.clone();
    times.sort_by(f64::total_cmp);
    optimizer_times.sort_by(f64::total_cmp);
    Ok(json!({
        "step_seconds_min": times[0],
        "step_seconds_median": times[times.len() / 2],
        "step_seconds": in_order,
        "optimizer_seconds_min": optimizer_times[0],
        "optimizer_seconds_median": optimizer_times[optimizer_times.len() / 2],
        "tokens": n,
        "tokens_per_second": n as f64 / times[times.len() / 2],
        "kept_bytes": stats.kept_bytes,
        "peak_bytes": stats.peak.total(),
        "peak_bytes_by_class": stats.peak,
        "planned_kept_bytes": plan.kept_bytes,
        "planned_peak_bytes": plan.peak_bytes,
        "peak_rss_bytes": trainer::peak_rss(),
        "trainable_parameters": parameters(true),
        "frozen_parameters": parameters(false),
        "threads": rayon::current_num_threads(),
        "precision": args.precision,
        "keep": keep.policy,
        "method": args.method,
        "profile": profile,
        "optimizer_states": args.optimizer_states,
        "update": args.update,
    }))
}

/// A row a kernel, of one step; what no kernel took is `other`.
fn profile_of(costs: &[(&'static str, Cost)], total: f64, steps: usize) -> Value {
    let n = steps as f64;
    let kernels: f64 = costs.iter().map(|(_, cost)| cost.seconds).sum();
    let row = |name: &str, seconds: f64, calls: Option<u64>, flops: u64| {
        json!({
            "kernel": name,
            "seconds": seconds / n,
            "share": seconds / total,
            "calls": calls.map(|calls| calls as f64 / n),
            "flops": flops / steps as u64,
            "gflops_per_second": (flops > 0).then(|| flops as f64 / seconds * 1e-9),
        })
    };
    let rows = costs.iter().map(|(name, c)| row(name, c.seconds, Some(c.calls), c.flops));
    rows.chain([row("other", total - kernels, None, 0)]).collect()
}

fn profile_text(profile: &Value) -> String {
    let mut text = format!("\n\n{:<24}{:>10}{:>8}{:>8}{:>10}", "kernel", "a step", "share", "calls", "GFLOP/s");
    for row in profile.as_array().into_iter().flatten() {
        let number = |key: &str, digits: usize| row[key].as_f64().map_or(String::new(), |x| format!("{x:.digits$}"));
        let time = units::duration(row["seconds"].as_f64().unwrap_or(f64::NAN));
        let share = format!("{:.1} %", 100.0 * row["share"].as_f64().unwrap_or(f64::NAN));
        let (calls, rate) = (number("calls", 0), number("gflops_per_second", 0));
        text +=
            &format!("\n{:<24}{time:>10}{share:>8}{calls:>8}{rate:>10}", row["kernel"].as_str().unwrap_or_default());
    }
    text
}

fn text_of(result: &Value) -> String {
    let size = |key: &str| units::bytes(result[key].as_u64().unwrap_or(0));
    let time = |key: &str| units::duration(result[key].as_f64().unwrap_or(f64::NAN));
    format!(
        "step   {} (fastest {}), {} tokens\nadamw  {} of it (fastest {})\nkept   {} (planned {})\npeak   {} on the meter (planned {}), {} of the process",
        time("step_seconds_median"),
        time("step_seconds_min"),
        result["tokens"],
        time("optimizer_seconds_median"),
        time("optimizer_seconds_min"),
        size("kept_bytes"),
        size("planned_kept_bytes"),
        size("peak_bytes"),
        size("planned_peak_bytes"),
        size("peak_rss_bytes"),
    ) + &if result["profile"].is_null() { String::new() } else { profile_text(&result["profile"]) }
}
