//! `colrow plan`: kept bytes and peak of a recipe before any weight is read.

use std::sync::Arc;

use colrow_models::checkpoint::hub::Needs;
use colrow_tensor::{Error, Result};
use colrow_train::comm::{Planned, Together};
use colrow_train::fit::Fit;
use colrow_train::plan::Plan;
use colrow_train::recipe::BatchSize;
use colrow_train::{odd, prepare};
use serde::Serialize;

use super::RecipeArgs;
use crate::arguments::whole;
use crate::output::{self, print, print_json};
use crate::{memory, units};

/// Say what a recipe's largest step and its evaluations will keep and need at their peak, before any weight is read.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Also find what fits into so much memory of the process (8GiB, 512MiB, 8GB): the cheapest policy and ratio, and the largest batch. Where
    /// nothing fits, the exit code is 1.
    #[arg(long, value_name = "SIZE", value_parser = memory::size())]
    memory: Option<usize>,
    /// Plan the fullest of so many processes, as mpirun starts them: the optimizer's states and updates are split over them.
    #[arg(long, value_name = "N", default_value = "1", value_parser = whole(1..=1 << 16))]
    workers: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    plan: &'a Plan,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fits: Option<&'a [Fit]>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut job = prepare::prepare(args.recipe.load()?, Needs::ConfigAndTokenizer)?;
    if args.workers > 1 {
        job.together = Together::new(Arc::new(Planned { rank: 0, size: args.workers }));
    }
    let plan = job.plan()?;
    job.warnings.iter().chain(&odd::kept(&job.recipe.keep, &plan)).for_each(|w| output::warn(w));
    let fits = args.memory.map(|memory| job.fits(memory)).transpose()?;
    if args.json {
        print_json(&Told { plan: &plan, memory_bytes: args.memory, fits: fits.as_deref() })?;
    } else {
        print(&text(&plan))?;
    }
    let (Some(fits), Some(memory)) = (fits, args.memory) else { return Ok(()) };
    if !args.json {
        print(&format!("\nwithin {}:\n{}", units::bytes(memory as u64), memory::table(&fits, memory)))?;
        let all = job.train.len();
        if fits.iter().any(|fit| fit.batch == BatchSize::Sequences(all)) {
            print(&format!("{all} sequences are all that there are to train on: no batch is larger"))?;
        }
    }
    match fits.is_empty() {
        true => Err(Error::new(format!("nothing fits into {}", units::bytes(memory as u64)))),
        false => Ok(()),
    }
}

/// The plan as a table.
fn text(plan: &Plan) -> String {
    let size = |n: usize| units::bytes(n as u64);
    let width = plan.sites.iter().map(|s| s.name.len()).max().unwrap_or(0);
    let mut lines = vec![format!("{:width$}  {:>10}  policy", "site", "kept")];
    lines.extend(plan.sites.iter().map(|s| format!("{:width$}  {:>10}  {}", s.name, size(s.kept_bytes), s.policy)));
    lines.push(String::new());
    lines.push(summary(plan));
    lines.join("\n")
}

/// The plan without its sites.
pub(crate) fn summary(plan: &Plan) -> String {
    let c = &plan.peak_bytes_by_class;
    let classes = [
        ("weights", c.weights),
        ("gradients", c.gradients),
        ("optimizer", c.optimizer),
        ("kept then", c.kept),
        ("workspace", c.workspace),
        ("cache", c.cache),
    ];
    let size = |n: usize| units::bytes(n as u64);
    let when = if plan.peak_bytes == plan.evaluation_peak_bytes { " in an evaluation" } else { "" };
    let mut lines = vec![
        format!("largest step  {} tokens", plan.tokens),
        format!("kept          {} for the backward pass", size(plan.kept_bytes)),
        format!("peak          {}{when}", size(plan.peak_bytes)),
    ];
    lines.extend(classes.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("  {name:<10}  {}", size(*n))));
    lines.push(format!("process       {}, with the program and its data", size(plan.process_bytes)));
    lines.extend(
        plan.sent_bytes.map(|sent| format!("sent          {} a step to the other processes", units::bytes(sent))),
    );
    lines.join("\n")
}
