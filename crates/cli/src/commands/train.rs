//! `colrow train`: one run from a recipe.

use std::path::{Path, PathBuf};

use colrow_tensor::{Error, Result};
use colrow_train::comm::Together;
use colrow_train::trainer::{self, Outcome};
use serde_json::Value;

use super::RecipeArgs;
use crate::output::{print, print_json};
use crate::progress::{Progress, Silent};
use crate::report::{self, Run};
use crate::{processes, signals, units};

/// Train a model as a recipe says; under mpirun or srun by several processes, with the same bits.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Go on from the newest checkpoint of the run folder.
    #[arg(long)]
    resume: bool,
    /// Start even if the plan exceeds the memory that the process can have.
    #[arg(long)]
    ignore_memory: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (together, here) = processes::start()?;
    processes::end(train(args, &together, here), &together)
}

/// As one of `here` processes on this machine.
fn train(args: &Args, together: &Together, here: usize) -> Result<()> {
    let recipe = args.recipe.load();
    let recipe = recipe.and_then(|r| r.check_train(&args.recipe.recipe.display().to_string()).map(|()| r));
    let recipe = together.agree(recipe)?;
    let stop = signals::catch()?;
    let output = PathBuf::from(recipe.output.clone().unwrap_or_default());
    let mut progress = Progress::new(&name_of(&output), if args.ignore_memory { 0 } else { here }, stop);
    let outcome = match together.is_first() {
        true => trainer::train_among(recipe, args.resume, &mut progress, stop.flag(), together),
        false => trainer::train_among(recipe, args.resume, &mut Silent(stop), stop.flag(), together),
    };
    drop(progress);
    match outcome? {
        Outcome::Finished(_) if !together.is_first() => Ok(()),
        Outcome::Finished(summary) => {
            write_report(&output)?;
            if args.json { print_json(&brief(summary)) } else { print(&text(&summary, &output)) }
        }
        Outcome::Interrupted(step) => {
            let what = format!("stopped after step {step}; a checkpoint was written");
            // a launcher may have signalled one process alone
            let signal = together.values(&stop.signal())?.into_iter().flatten().next();
            Err(Error::stopped(signal.unwrap_or_default(), what)
                .at(output.display())
                .hint(format!("go on with: colrow train {} --resume", args.recipe.again())))
        }
    }
}

/// The summary without what fills pages; summary.json in the run folder has it.
fn brief(mut summary: Value) -> Value {
    if let Some(fields) = summary.as_object_mut() {
        fields.retain(|key, _| key != "ledger" && key != "timeline");
    }
    summary
}

fn name_of(output: &Path) -> String {
    output.file_name().map_or_else(|| "run".into(), |n| n.to_string_lossy().into_owned())
}

fn write_report(output: &Path) -> Result<()> {
    let run = Run::load(output)?;
    report::write(&format!("colrow: {}", name_of(output)), &[run], &output.join("report.html"))
}

fn text(summary: &Value, output: &Path) -> String {
    let number = |key: &str| summary[key].as_f64().unwrap_or(f64::NAN);
    let size = |key: &str| units::bytes(summary[key].as_u64().unwrap_or(0));
    let metric = summary["metric"].as_str().unwrap_or("metric");
    let of = match summary["positive"].as_str() {
        Some(name) if metric == "f1" => format!(" of {name:?}"),
        _ => String::new(),
    };
    let best = match (summary["best"]["value"].as_f64(), summary["best"]["step"].as_u64()) {
        (Some(value), Some(step)) => format!("{metric}{of} {value:.4} at step {step}, whose model is saved"),
        _ => "no evaluation".into(),
    };
    format!(
        "best      {best}\n\
         time      {}, {} a step\n\
         kept      {} for the backward pass\n\
         peak      {} on the meter, {} of the process\n\
         model     {}\n\
         report    {}",
        units::duration(number("seconds")),
        units::duration(number("step_seconds_median")),
        size("kept_bytes"),
        size("peak_bytes"),
        size("peak_rss_bytes"),
        output.join("model").display(),
        output.join("report.html").display(),
    )
}
