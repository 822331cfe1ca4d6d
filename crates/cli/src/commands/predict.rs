//! `colrow predict`: one JSON line an example.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use colrow_models::atomic::write_file_atomic;
use colrow_tensor::{Error, Result};
use colrow_train::data::{self, BatchBy, Split};
use colrow_train::evaluate;
use colrow_train::metrics::argmax;
use colrow_train::tasks::Task;
use serde::Serialize;

use super::eval::ColumnArgs;
use super::{ModelArgs, predictor};
use crate::output::write_out;

/// Predict labels (or numbers) of texts, one JSON line an example.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// File (CSV, TSV, JSON lines, Parquet) or folder in GLUE's layout; labels are not needed.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Where to write [default: standard output].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    columns: ColumnArgs,
    /// The task whose usual columns the file has.
    #[arg(long, default_value = "classify")]
    task: String,
    /// Truncate sequences to this many tokens [default: the model's longest].
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
}

#[derive(Serialize)]
struct Line<'a> {
    index: usize,
    logits: &'a [f32],
    label: &'a Label<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Label<'a> {
    Name(&'a str),
    Value(f32),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let task: Task = args.task.parse()?;
    let predictor = predictor(&args.model)?;
    let examples = data::read(&args.data, task, &args.columns.columns(), Split::Dev, false)?;
    let (_, answers) = predictor.labels(task);
    let set = predictor.tokens(&examples, answers.as_ref().map(|a| (a, None)), args.max_length)?;
    let by = BatchBy::Tokens(set.lengths().into_iter().max().unwrap_or(1).max(4096) as usize);
    let names = &predictor.engine.model.config.labels;
    let (all, texts) = match &answers {
        // an answer in text has no logits by label
        Some(words) => (Vec::new(), evaluate::answers(&predictor.engine, words, &set, by, |_| {})?),
        None => (evaluate::logits(&predictor.engine, &set, by, |_| {})?, Vec::new()),
    };
    let by_logits = all.chunks_exact(names.len()).map(|logits| match names.len() {
        // a regression's prediction is its only output
        1 => (logits, Label::Value(logits[0])),
        _ => (logits, Label::Name(&names[argmax(logits) as usize])),
    });
    let by_text = texts.iter().map(|text| (&[][..], Label::Name(text)));
    let predictions: Vec<_> = by_logits.chain(by_text).collect();
    let lines = |out: &mut dyn Write| -> std::io::Result<()> {
        for (index, (logits, label)) in predictions.iter().enumerate() {
            serde_json::to_writer(&mut *out, &Line { index, logits, label })?;
            writeln!(out)?;
        }
        out.flush()
    };
    let failed = |e: std::io::Error| Error::new(format!("cannot write the predictions: {e}"));
    match &args.out {
        Some(path) => write_file_atomic(path, |file: &mut File| lines(&mut BufWriter::new(file)).map_err(failed)),
        None => write_out(lines),
    }
}
