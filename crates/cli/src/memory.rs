//! Sizes of memory on the command line, what of a recipe fits into one, and the check before a run.

use clap::builder::{StringValueParser, TypedValueParser};
use colrow_tensor::{Error, Result};
use colrow_train::fit::{Fit, Found};
use colrow_train::machine::Limit;
use colrow_train::plan::Plan;
use colrow_train::recipe::{Batch, PolicyName, parse_bytes};
use colrow_train::setup::Job;

use crate::units;

/// A size of memory as an argument's value.
pub(crate) fn size() -> impl TypedValueParser<Value = usize> {
    StringValueParser::new().try_map(|text| {
        let bytes = parse_bytes(&text).and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
        bytes.ok_or("expected a size such as 8GiB, 512MiB, 8GB or a number of bytes")
    })
}

/// What fits as a table, with the arguments that make it so.
pub(crate) fn table(fits: &[Fit], memory: usize) -> String {
    let size = |n: usize| units::bytes(n as u64);
    if fits.is_empty() {
        return format!(
            "nothing fits into {}: not one sequence, or the fewest tokens, a batch under the leanest policy; adapters \
             (train.method=lora), shorter sequences (data.max_length) or a smaller model need less",
            size(memory)
        );
    }
    let row = |fit: &Fit| {
        let found = match fit.found {
            Found::AsItIs => "as it is",
            Found::CheapestPolicy => "cheapest policy",
            Found::LargestBatch => "largest batch",
            Found::LeanestPolicy => "with the leanest policy",
        };
        let set = fit.set.iter().map(|s| format!(" --set {s}")).collect::<String>();
        [found.to_owned(), keep(fit), batch(fit), size(fit.peak_bytes), size(fit.process_bytes), set.trim().to_owned()]
    };
    let head = ["fits", "policy", "batch", "peak", "process", "arguments"].map(str::to_owned);
    let rows: Vec<[String; 6]> = [head].into_iter().chain(fits.iter().map(row)).collect();
    let width = |i: usize| rows.iter().map(|row| row[i].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn keep(fit: &Fit) -> String {
    if fit.policy == PolicyName::Exact { fit.policy.to_string() } else { format!("{}@{}", fit.policy, fit.ratio) }
}

fn batch(fit: &Fit) -> String {
    match fit.batch {
        Batch::Sequences(n) => format!("{} sequences", units::count(n as u64)),
        Batch::Tokens(n) => format!("{} tokens", units::count(n as u64)),
    }
}

/// Refuses a run whose plan exceeds `limit`, and says what would fit.
///
/// # Errors
/// The refusal; those of further plans.
pub(crate) fn check(job: &Job, plan: &Plan, limit: Limit) -> Result<()> {
    if plan.process_bytes <= limit.bytes {
        return Ok(());
    }
    let size = |n: usize| units::bytes(n as u64);
    let what = format!(
        "the run needs {} at its peak, and this process can have {} ({})",
        size(plan.process_bytes),
        size(limit.bytes),
        limit.by
    );
    let fits = table(&job.fits(limit.bytes)?, limit.bytes).replace('\n', "\n    ");
    Err(Error::new(what)
        .hint(format!("what would fit, by the plan (--ignore-memory starts the run all the same):\n    {fits}")))
}
