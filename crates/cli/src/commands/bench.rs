//! `colrow bench`: time and memory of training steps with random weights.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Instant;

use colrow_autograd::{CachePlace, NormSource};
use colrow_models::config::Config;
use colrow_models::family::HeadKind;
use colrow_models::files;
use colrow_models::lora;
use colrow_tensor::rng::Key;
use colrow_tensor::{BaseWeights, Cost, Device, Error, Precision, Result, TrainedWeights};
use colrow_train::data::Lengths;
use colrow_train::machine;
use colrow_train::plan::Plan;
use colrow_train::recipe::{self, Estimate, Method, PolicyName, Recipe};
use colrow_train::step::Engine;
use colrow_train::step::{Hyperparameters, States, When};
use colrow_train::trained;
use serde::Serialize;
use serde_json::{Value, json};

use crate::arguments::{MOST_LENGTH, choice, whole};
use crate::output::{print, print_json};
use crate::setup::{MOST_SEQUENCES, MOST_TOKENS, Setup};
use crate::{memory, units};

/// Time training steps of a model with random weights: forward, backward, clipping, AdamW.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model's config.json.
    #[arg(long, value_name = "FILE")]
    model_config: PathBuf,
    /// Sequences in a batch.
    #[arg(long, value_name = "B", default_value_t = 32, value_parser = whole(1..=MOST_SEQUENCES))]
    batch: usize,
    /// Tokens in a sequence.
    #[arg(long, value_name = "S", default_value_t = 128, value_parser = whole(1..=MOST_LENGTH))]
    seq: usize,
    /// Tokens in a target, for models that answer in text.
    #[arg(long, value_name = "T", default_value_t = 8, value_parser = whole(1..=1 << 16))]
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
    /// How the matrices that are not trained are held.
    #[arg(long, value_parser = choice::<BaseWeights>(), default_value = "f32")]
    base: BaseWeights,
    /// How the matrices that are trained are held.
    #[arg(long, value_parser = choice::<TrainedWeights>(), default_value = "f32")]
    weights: TrainedWeights,
    /// Rank of adapters.
    #[arg(long, value_name = "R", default_value_t = 8, value_parser = whole(1..=1 << 16))]
    lora_rank: usize,
    /// What is kept for the backward pass.
    #[arg(long, value_parser = choice::<PolicyName>(), default_value = "exact")]
    keep: PolicyName,
    /// Estimator of sampled sites.
    #[arg(long, value_parser = choice::<Estimate>(), default_value = "pps")]
    estimator: Estimate,
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
    #[arg(long, value_parser = choice::<When>(), default_value = "after-backward")]
    update: When,
    /// Take the largest batch whose plan fits into so much memory of the process (8GiB, 512MiB, 8GB) instead of --batch.
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["batch", "lengths_file"], value_parser = memory::size())]
    memory: Option<usize>,
    /// Plan a step, run none.
    #[arg(long)]
    plan: bool,
    /// Start even if the plan exceeds the memory that the process can have.
    #[arg(long)]
    ignore_memory: bool,
    /// Timed steps.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = whole(1..=1_000_000))]
    steps: usize,
    /// Steps before those, not timed.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole(0..=1_000_000))]
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

impl Args {
    fn optim(&self) -> recipe::Optim {
        let clip = if self.update == When::InBackward { 0.0 } else { 1.0 };
        recipe::Optim { clip, states: self.optimizer_states, update: self.update, ..recipe::Optim::default() }
    }
}

/// A benchmark, but for its number of sequences.
struct Bench<'a> {
    args: &'a Args,
    setup: Setup,
    /// Those of `--lengths-file`.
    lengths: Option<Vec<u32>>,
}

/// Bytes of the lengths of more sequences than any batch has.
const MOST_LENGTHS: u64 = 64 << 20;

fn read_lengths(file: &Path) -> Result<Vec<u32>> {
    let wrong = |what: &dyn Display| Error::usage(format!("--lengths-file: {what}")).at(file.display());
    let text = files::read(file, MOST_LENGTHS).map_err(|e| wrong(&e))?;
    let text = String::from_utf8(text).map_err(|_| wrong(&"expected text"))?;
    let length = |word: &str| match word.parse() {
        Ok(length) if length > 0 => Ok(length),
        _ => Err(wrong(&format!("expected whole numbers from 1, found `{word}`"))),
    };
    let lengths = text.split_whitespace().map(length).collect::<Result<Vec<u32>>>()?;
    if lengths.is_empty() { Err(wrong(&"expected at least one length, found none")) } else { Ok(lengths) }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !(args.ratio > 0.0 && args.ratio <= 1.0) {
        return Err(Error::usage(format!("--ratio: expected a number in (0, 1], found {}", args.ratio)));
    }
    let text = files::read(&args.model_config, files::MOST_JSON_BYTES)
        .map_err(|e| Error::usage(format!("--model-config: {e}")).at(args.model_config.display()))?;
    let config = Config::from_json(&text, &args.model_config)?;
    let given = args.lengths_file.as_deref().map(read_lengths).transpose()?;
    let (name, longest) = match &given {
        Some(lengths) => ("--lengths-file", lengths.iter().max().map_or(0, |&length| length as usize)),
        None => ("--batch, --seq, --target", args.seq),
    };
    if let Some(limit) = config.architecture.longest().filter(|&limit| longest > limit) {
        let name = if given.is_some() { name } else { "--seq" };
        let what = format!("{name}: expected at most {limit} (max_position_embeddings), found {longest}");
        return Err(Error::usage(what));
    }
    let targets = args.target * given.as_ref().map_or(args.batch, Vec::len);
    let tokens = given.as_ref().map_or(args.batch * args.seq, |l| l.iter().map(|&l| l as usize).sum());
    let tokens = if config.family().head == HeadKind::Language { tokens.max(targets) } else { tokens };
    if args.memory.is_none() && tokens > MOST_TOKENS {
        return Err(Error::usage(format!("{name}: expected at most {MOST_TOKENS} tokens in a batch, found {tokens}")));
    }
    let bench = Bench::new(args, config, given)?;
    let batch = bench.batch()?;
    let plan = bench.plan(batch)?;
    let limit = machine::limit().filter(|_| !args.plan && !args.ignore_memory);
    if let Some(what) = limit.and_then(|limit| memory::excess(&plan, limit)) {
        return Err(Error::new(what).hint(
            "--memory takes the largest batch that fits, --plan plans only, --ignore-memory starts all the same",
        ));
    }
    match (args.plan, args.json) {
        (true, true) => print_json(&Planned { batch, plan: &plan }),
        (true, false) => print(&format!("batch         {batch} sequences\n{}", super::plan::summary(&plan))),
        (false, true) => print_json(&bench.measure(batch, &plan)?),
        (false, false) => print(&text_of(&bench.measure(batch, &plan)?)),
    }
}

#[derive(Serialize)]
struct Planned<'a> {
    batch: usize,
    #[serde(flatten)]
    plan: &'a Plan,
}

impl<'a> Bench<'a> {
    fn new(args: &'a Args, config: Config, lengths: Option<Vec<u32>>) -> Result<Self> {
        let keep = recipe::Keeping {
            policy: args.keep,
            estimator: args.estimator,
            ratio: recipe::Ratio::Fixed(args.ratio),
            norms: args.norms,
            ..recipe::Keeping::default()
        };
        let (method, precision, weights) = (args.method, args.precision, args.weights);
        let train = recipe::Train { method, precision, weights, ..recipe::Train::default() };
        let lora = recipe::Lora { rank: args.lora_rank, ..recipe::Lora::default() };
        let model = recipe::Model { base: args.base, ..recipe::Model::default() };
        let recipe = Recipe { model, train, lora, keep, optim: args.optim(), seed: args.seed, ..Recipe::default() };
        Ok(Self { args, setup: Setup::new(config, recipe)?, lengths })
    }

    /// The number of sequences: of `--lengths-file`, `--batch`, or the largest that fits into `--memory`.
    fn batch(&self) -> Result<usize> {
        if let Some(lengths) = &self.lengths {
            return Ok(lengths.len());
        }
        let Some(memory) = self.args.memory else { return Ok(self.args.batch) };
        let longest = self.args.seq.max(self.args.target);
        let fits = |plan: &Plan| plan.process_bytes <= memory;
        self.setup.largest(longest, |batch| self.lengths(batch), fits)?.map_or_else(
            || {
                let least = units::bytes(self.plan(1)?.process_bytes as u64);
                let given = units::bytes(memory as u64);
                Err(Error::usage(format!("--memory: expected at least {least}, for one sequence, found {given}")))
            },
            Ok,
        )
    }

    fn lengths(&self, batch: usize) -> Lengths {
        let Args { seq, target, lengths, seed, .. } = *self.args;
        let key = Key::new(seed).named("lengths");
        let shortest = seq.min(16);
        let uniform = |i: usize| shortest + (key.uniform(i as u64) * (seq - shortest + 1) as f64) as usize;
        let length = |i| if lengths == Spread::Uniform { uniform(i) } else { seq };
        let drawn = || (0..batch).map(|i| length(i) as u32).collect();
        let sources = self.lengths.clone().unwrap_or_else(drawn);
        self.setup.lengths(sources, target)
    }

    fn plan(&self, batch: usize) -> Result<Plan> {
        self.setup.plan(self.lengths(batch))
    }

    fn measure(&self, batch: usize, plan: &Plan) -> Result<Value> {
        let (args, setup) = (self.args, &self.setup);
        let device = Device::cpu_with(args.precision);
        let lengths = self.lengths(batch);
        let mut micro = setup.objective.batch_of_lengths(&lengths);
        let key = Key::new(args.seed).named("ids");
        let vocabulary = setup.config.architecture.vocab_size() as f64;
        for (i, id) in micro.tokens.ids.iter_mut().enumerate() {
            *id = (key.uniform(i as u64) * vocabulary) as u32;
        }
        let (n, all) = (micro.tokens.ids.len(), lengths.tokens());
        micro.places = Some((0..n as u64).collect());
        micro.target_places = Some((n as u64..all as u64).collect());
        let mut model = trained::meta_model(setup.config.clone(), &setup.recipe)?;
        model.move_to(&device);
        model.init(args.seed);
        lora::init(&mut model, args.seed);
        let policy = setup.policy.clone();
        let mut engine =
            Engine::new(model, Hyperparameters::from(&setup.recipe.optim)).keeping(policy, all, CachePlace::Memory)?;
        (engine.gradient.key, engine.gradient.dropout) = (Key::new(args.seed), true);
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
            "batch": batch,
            "tokens": n,
            "tokens_per_second": n as f64 / times[times.len() / 2],
            "kept_bytes": stats.kept_bytes,
            "peak_bytes": stats.peak.total(),
            "peak_bytes_by_class": stats.peak,
            "planned_kept_bytes": plan.kept_bytes,
            "planned_peak_bytes": plan.peak_bytes,
            "planned_process_bytes": plan.process_bytes,
            "peak_rss_bytes": machine::peak_rss(),
            "trainable_parameters": parameters(true),
            "frozen_parameters": parameters(false),
            "threads": rayon::current_num_threads(),
            "precision": args.precision,
            "keep": setup.recipe.keep.policy,
            "method": args.method,
            "base": args.base,
            "weights": args.weights,
            "profile": profile,
            "optimizer_states": args.optimizer_states,
            "update": args.update,
        }))
    }
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
        "step   {} (fastest {}), {} sequences, {} tokens\n\
         adamw  {} of it (fastest {})\n\
         kept   {} (planned {})\n\
         peak   {} on the meter (planned {}), {} of the process (planned {})",
        time("step_seconds_median"),
        time("step_seconds_min"),
        result["batch"],
        result["tokens"],
        time("optimizer_seconds_median"),
        time("optimizer_seconds_min"),
        size("kept_bytes"),
        size("planned_kept_bytes"),
        size("peak_bytes"),
        size("planned_peak_bytes"),
        size("peak_rss_bytes"),
        size("planned_process_bytes"),
    ) + &if result["profile"].is_null() { String::new() } else { profile_text(&result["profile"]) }
}
