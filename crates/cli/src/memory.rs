//! Sizes of memory on the command line, what of a recipe fits into one, and the check before a run.

use std::collections::BTreeSet;

use clap::builder::{StringValueParser, TypedValueParser};
use colrow_tensor::{Error, Result};
use colrow_train::fit::{Fit, Found};
use colrow_train::job::Job;
use colrow_train::machine::Limit;
use colrow_train::plan::Plan;
use colrow_train::recipe::{BatchSize, PolicyName, parse_bytes};

use crate::units;

/// A size of memory as an argument's value.
pub(crate) fn size() -> impl TypedValueParser<Value = usize> {
    StringValueParser::new().try_map(|text| {
        let bytes = parse_bytes(&text).and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
        let bytes = bytes.ok_or("expected a size such as 8GiB, 512MiB, 8GB or a number of bytes")?;
        // whoever gives a number alone seldom means so few bytes
        match text.trim().ends_with(|c: char| c.is_ascii_digit()) && bytes < 1 << 20 {
            true => Err(format!("expected a size with its unit, such as {0}MiB or {0}GiB", text.trim())),
            false => Ok(bytes),
        }
    })
}

/// What fits as a table, with the arguments that make it so.
pub(crate) fn table(fits: &[Fit], memory: usize) -> String {
    let size = |n: usize| units::bytes(n as u64);
    if fits.is_empty() {
        return format!(
            "nothing fits into {}: not adapters (train.method=lora) over frozen weights in codes (model.base=nf4) under the \
             leanest policy, a short sequence at a time; a smaller model needs less",
            size(memory)
        );
    }
    let row = |fit: &Fit| {
        let found = match fit.found {
            Found::AsItIs => "as it is",
            Found::Accumulation => "smaller batches, added up",
            Found::EightBitStates => "moments of eight bits",
            Found::CheapestPolicy => "cheapest policy",
            Found::InBackward => "updates in the backward pass",
            Found::LargestBatch => "largest batch",
            Found::LeanestPolicy => "with the leanest policy",
            Found::LeastMemory => "with the least of everything",
            Found::ShorterSequences => "shorter sequences",
            Found::Lora => "adapters",
            Found::CodedBase => "frozen weights in codes",
        };
        let set = fit.set.iter().map(|s| format!(" --set {s}")).collect::<String>();
        [found.to_owned(), keep(fit), batch(fit), size(fit.peak_bytes), size(fit.process_bytes), set.trim().to_owned()]
    };
    let head = ["fits", "policy", "batch", "peak", "process", "arguments"].map(str::to_owned);
    let rows: Vec<[String; 6]> = [head].into_iter().chain(fits.iter().map(row)).collect();
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    let gives_up: BTreeSet<&String> = fits.iter().flat_map(|fit| &fit.gives_up).collect();
    lines.extend(gives_up.into_iter().map(|text| format!("note: {text}")));
    lines.join("\n")
}

fn keep(fit: &Fit) -> String {
    if fit.policy == PolicyName::Exact { fit.policy.to_string() } else { format!("{}@{}", fit.policy, fit.ratio) }
}

fn batch(fit: &Fit) -> String {
    let times = if fit.accumulate > 1 { format!("{} × ", units::count(fit.accumulate as u64)) } else { String::new() };
    match fit.batch {
        BatchSize::Sequences(n) => format!("{times}{} sequences", units::count(n as u64)),
        BatchSize::Tokens(n) => format!("{times}{} tokens", units::count(n as u64)),
    }
}

/// That a plan exceeds `limit`, in words, if it does.
pub(crate) fn excess(plan: &Plan, limit: Limit) -> Option<String> {
    let size = |n: usize| units::bytes(n as u64);
    (plan.process_bytes - plan.mapped_bytes > limit.bytes).then(|| {
        format!(
            "the run needs {} at its peak, and this process can have {} ({})",
            size(plan.process_bytes),
            size(limit.bytes),
            limit.by
        )
    })
}

/// Refuses a run whose plan exceeds `limit`, and says what would fit.
///
/// # Errors
/// The refusal; those of further plans.
pub(crate) fn check(job: &Job, plan: &Plan, limit: Limit) -> Result<()> {
    let Some(what) = excess(plan, limit) else { return Ok(()) };
    // what a process can have changes from start to start, and what is advised shall start
    let room = limit.bytes - limit.bytes / 16;
    let fits = table(&job.fits(room)?, room).replace('\n', "\n    ");
    Err(Error::new(what)
        .hint(format!("what would fit, by the plan (--ignore-memory starts the run all the same):\n    {fits}")))
}
