//! `colrow quickstart --chat`: a small decoder learns to chat by adapters, with all kept and with blocks that run again, side by side.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use colrow_models::apart;
use colrow_models::checkpoint::hub::{self, Needs};
use colrow_tensor::{Error, Result};
use colrow_train::folder::{self, RunFolder};
use colrow_train::recipe::{BatchSize, Every, Keeping, Method, PolicyName, Ratio, Recipe};
use serde::Serialize;
use serde_json::Value;

use crate::output::{self, print, print_json};
use crate::report::{self, Run};
use crate::runs::{check_new, recipe_file, train};
use crate::signals::{self, Stop};
use crate::{fetch, units};

/// Steps of a default and of a quick run.
const STEPS: [u64; 2] = [20, 4];
/// Tokens of a step.
const TOKENS: usize = 1024;
/// Conversations that are held out.
const HELD_OUT: [usize; 2] = [24, 4];
/// What is asked before and after, and how long an answer may be.
const QUESTION: &str = "Hi! What did you do this weekend?";
const ANSWER: usize = 40;

#[derive(Serialize)]
struct Row {
    name: String,
    /// Of the held-out conversations.
    loss: f64,
    perplexity: f64,
    token_accuracy: f64,
    kept_bytes: u64,
    peak_bytes: u64,
    peak_rss_bytes: u64,
    step_seconds: f64,
    tokens_per_second: f64,
    steps: u64,
    answer: String,
}

#[derive(Serialize)]
struct Table {
    runs: Vec<Row>,
    report: PathBuf,
    /// Of the model as it was.
    loss_before: f64,
    perplexity_before: f64,
    question: &'static str,
    answer_before: String,
    notes: Vec<String>,
}

/// What `colrow quickstart` was told.
pub(super) struct Chat {
    pub(super) model: Option<String>,
    /// A folder with `train.jsonl` and `valid.jsonl`.
    pub(super) data: Option<PathBuf>,
    pub(super) out: Option<PathBuf>,
    pub(super) quick: bool,
    pub(super) json: bool,
}

pub(super) fn run(args: Chat) -> Result<()> {
    let stop = signals::catch()?;
    let out = args.out.unwrap_or_else(|| folder::free("runs/quickstart-chat").into());
    let variants = [("exact", PolicyName::Exact), ("recompute", PolicyName::Recompute)];
    let (report, held_out) = (out.join("report.html"), out.join("held-out.jsonl"));
    let writes = variants.iter().flat_map(|(name, _)| [out.join(name), recipe_file(&out, name)]);
    check_new(writes.chain([report.clone(), held_out.clone()]))?;
    let say = output::say;
    let give =
        |e: Error| e.hint("or pass --model DIR_OR_HUB_ID and --data DIR, with train.jsonl and valid.jsonl in it");
    let model = match args.model {
        Some(model) => model,
        None => fetch::fetch_decoder(&fetch::default_cache()?, &say).map_err(give)?.to_string_lossy().into_owned(),
    };
    let data = match args.data {
        Some(folder) => folder,
        None => fetch::fetch_conversations(&fetch::default_cache()?, &say).map_err(give)?,
    };
    let dir = hub::resolve(&model, "main", Needs::Weights)?;
    apart::check_folder(&out, "the model", &dir)?;
    fs::create_dir_all(&out).map_err(|e| Error::new(format!("cannot make the folder: {e}")).at(out.display()))?;
    stop.in_good_order("stopping");
    let quick = usize::from(args.quick);
    hold_out(&data.join("valid.jsonl"), HELD_OUT[quick], &held_out)?;

    let mut base = Recipe { task: "chat".to_owned(), ..Recipe::default() };
    base.model.path.clone_from(&model);
    base.data.train = Some(data.join("train.jsonl").to_string_lossy().into_owned());
    base.data.dev = Some(held_out.to_string_lossy().into_owned());
    base.data.max_length = 512;
    base.data.limit = Some(1000);
    base.train.method = Method::Lora;
    base.train.batch = BatchSize::Tokens(TOKENS);
    base.train.steps = Some(STEPS[quick]);
    base.train.log_every = 1;
    base.train.eval_every = Every::Epoch;
    base.optim.lr = 1e-3;
    base.optim.warmup = 0.1;

    say("the model as it is");
    let held = held_out.to_string_lossy();
    let before = colrow(&["eval", "--model", &model, "--data", &held, "--task", "chat", "--max-length", "512"], stop)?;
    let answer_before = answer(&model, stop)?;
    let mut runs = Vec::new();
    for (name, policy) in variants {
        let keep = Keeping { policy, ratio: Ratio::Fixed(1.0), ..Keeping::default() };
        let folder = out.join(name);
        let recipe = Recipe { output: Some(folder.to_string_lossy().into_owned()), keep, ..base.clone() };
        let file = recipe_file(&out, name);
        fs::write(&file, recipe.to_toml()).map_err(|e| Error::new(format!("cannot write: {e}")).at(file.display()))?;
        train(&file, stop)?;
        let summary = RunFolder::summary(&folder)?.unwrap_or_default();
        runs.push(row(name, &summary, &folder, answer(&folder.to_string_lossy(), stop)?)?);
    }
    let folders = variants.iter().map(|(name, _)| Run::load(&out.join(name)));
    let mut folders = folders.collect::<Result<Vec<_>>>()?;
    let notes = notes(&runs, args.quick);
    if let Some(first) = folders.first_mut() {
        first.notes.extend(notes.iter().cloned());
    }
    report::write("colrow quickstart --chat", &folders, &report)?;
    let figure = |key: &str| before[key].as_f64().ok_or_else(|| Error::new(format!("the evaluation has no {key}")));
    let table = Table {
        loss_before: figure("loss")?,
        perplexity_before: figure("perplexity")?,
        runs,
        report,
        question: QUESTION,
        answer_before,
        notes,
    };
    if args.json { print_json(&table) } else { print(&text(&table)) }
}

/// The first lines of a file as a file of its own.
fn hold_out(from: &Path, lines: usize, to: &Path) -> Result<()> {
    let text = fs::read_to_string(from).map_err(|e| Error::new(format!("cannot read: {e}")).at(from.display()))?;
    let first: String =
        text.lines().filter(|line| !line.trim().is_empty()).take(lines).flat_map(|l| [l, "\n"]).collect();
    fs::write(to, first).map_err(|e| Error::new(format!("cannot write: {e}")).at(to.display()))
}

/// What this program prints as JSON, with these arguments.
fn colrow(args: &[&str], stop: &Stop) -> Result<Value> {
    let failed = |e: &dyn std::fmt::Display| Error::new(format!("cannot run colrow {}: {e}", args[0]));
    let program = std::env::current_exe().map_err(|e| failed(&e))?;
    let mut command = Command::new(program);
    command.arg("--threads").arg(rayon::current_num_threads().to_string()).args(args).arg("--json");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(|e| failed(&e))?;
    let output = child.wait_with_output().map_err(|e| failed(&e))?;
    if let Some(signal) = stop.signal() {
        return Err(Error::stopped(signal, "stopped"));
    }
    if !output.status.success() {
        return Err(failed(&output.status));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| failed(&e))
}

/// What a model answers to the question.
fn answer(model: &str, stop: &Stop) -> Result<String> {
    let most = ANSWER.to_string();
    let found = colrow(&["generate", "--model", model, "--ask", QUESTION, "--max-tokens", &most], stop)?;
    Ok(found["text"].as_str().unwrap_or_default().trim().to_owned())
}

fn row(name: &str, summary: &Value, folder: &Path, answer: String) -> Result<Row> {
    let missing = |what: &str| Error::new(format!("the run's summary has no {what}")).at(name);
    let whole = |key: &str| summary[key].as_u64().ok_or_else(|| missing(key));
    let last = |key: &str| summary["final"][key].as_f64().ok_or_else(|| missing(key));
    Ok(Row {
        name: name.to_owned(),
        loss: last("loss")?,
        perplexity: last("perplexity")?,
        token_accuracy: last("token_accuracy")?,
        kept_bytes: whole("kept_bytes")?,
        peak_bytes: whole("peak_bytes")?,
        peak_rss_bytes: whole("peak_rss_bytes")?,
        step_seconds: summary["step_seconds_median"].as_f64().ok_or_else(|| missing("step_seconds_median"))?,
        tokens_per_second: tokens_per_second(folder)?,
        steps: whole("steps")?,
        answer,
    })
}

/// The median over the steps of a run's log.
fn tokens_per_second(folder: &Path) -> Result<f64> {
    let file = folder.join("metrics.jsonl");
    let text = fs::read_to_string(&file).map_err(|e| Error::new(format!("cannot read: {e}")).at(file.display()))?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let rate = |line: Value| Some(line["tokens"].as_f64()? / line["step_seconds"].as_f64()?);
    let mut rates: Vec<f64> = lines.filter(|line| line["kind"] == "train").filter_map(rate).collect();
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().ok_or_else(|| Error::new("the run logged no step").at(file.display()))
}

/// What the table says to someone who sees it for the first time.
fn notes(runs: &[Row], quick: bool) -> Vec<String> {
    let [exact, again] = runs else { return Vec::new() };
    let mut notes = Vec::new();
    if quick {
        notes.push(format!("{} steps teach next to nothing: --quick shows memory and time.", exact.steps));
    }
    notes.push(format!(
        "Both runs saw the same conversations in the same steps. Of every block recompute keeps its input alone, in 8 bits, and runs the block \
         again in the backward pass: {} where exact keeps {}.",
        units::bytes(again.kept_bytes),
        units::bytes(exact.kept_bytes),
    ));
    notes
}

fn text(table: &Table) -> String {
    let mut lines = vec![format!(
        "{:<10} {:>10} {:>11} {:>11} {:>11} {:>9} {:>9}",
        "run", "perplexity", "kept", "peak", "process", "a step", "tokens/s"
    )];
    lines.push(format!("{:<10} {:>10.2}", "before", table.perplexity_before));
    lines.extend(table.runs.iter().map(|r| {
        format!(
            "{:<10} {:>10.2} {:>11} {:>11} {:>11} {:>9} {:>9.0}",
            r.name,
            r.perplexity,
            units::bytes(r.kept_bytes),
            units::bytes(r.peak_bytes),
            units::bytes(r.peak_rss_bytes),
            units::duration(r.step_seconds),
            r.tokens_per_second,
        )
    }));
    lines
        .push(format!("perplexity: of held-out conversations, e^loss; the loss was {:.3} before\n", table.loss_before));
    lines.push(format!("asked      {}", table.question));
    let one = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    lines.push(format!("before     {}", one(&table.answer_before)));
    lines.extend(table.runs.iter().map(|r| format!("{:<10} {}", r.name, one(&r.answer))));
    lines.push(String::new());
    lines.extend(table.notes.iter().cloned());
    lines.push(format!("\nreport: {}", table.report.display()));
    lines.join("\n")
}
