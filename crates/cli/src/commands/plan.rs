//! `colrow plan`: kept bytes and peak of a recipe before any weight is read.

use colrow_tensor::Result;
use colrow_train::plan::Plan;
use colrow_train::setup;

use super::{RecipeArgs, print, print_json};
use crate::units;

/// Say what a recipe's largest step will keep and need at its peak, before any weight is read.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let job = setup::prepare(args.recipe.load()?)?;
    job.warnings.iter().for_each(|w| eprintln!("warning: {w}"));
    let plan = job.plan()?;
    if args.json { print_json(&plan) } else { print(&text(&plan)) }
}

/// The plan as a table.
pub(crate) fn text(plan: &Plan) -> String {
    let c = &plan.peak_bytes_by_class;
    let classes = [
        ("weights", c.weights),
        ("gradients", c.gradients),
        ("optimizer", c.optimizer),
        ("kept", c.kept),
        ("workspace", c.workspace),
        ("cache", c.cache),
    ];
    let size = |n: usize| units::bytes(n as u64);
    let width = plan.sites.iter().map(|s| s.name.len()).max().unwrap_or(0);
    let mut lines = vec![format!("{:width$}  {:>10}  policy", "site", "kept")];
    lines.extend(plan.sites.iter().map(|s| format!("{:width$}  {:>10}  {}", s.name, size(s.kept_bytes), s.policy)));
    lines.push(String::new());
    lines.push(format!("largest step  {} tokens", plan.tokens));
    lines.push(format!("kept          {} for the backward pass", size(plan.kept_bytes)));
    lines.push(format!("peak          {}", size(plan.peak_bytes)));
    lines.extend(classes.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("  {name:<10}  {}", size(*n))));
    lines.join("\n")
}
