//! `colrow eval`: metrics of a checkpoint.

use std::path::PathBuf;

use colrow_tensor::{Error, Result};
use colrow_train::data::{self, BatchBy, Columns, Split};
use colrow_train::evaluate::evaluate;
use colrow_train::tasks::Task;
use serde_json::{Value, json};

use super::{ModelArgs, predictor};
use crate::output::{print, print_json};

/// Evaluate a fine-tuned model on labelled data.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Task: cola, sst2, mrpc, qqp, mnli, qnli, rte, stsb, classify or regress.
    #[arg(long, default_value = "classify")]
    task: String,
    /// File (CSV, TSV, JSON lines, Parquet) or folder in GLUE's layout, of which the development set is used.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    columns: ColumnArgs,
    /// Truncate sequences to this many tokens [default: the model's longest].
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    /// Tokens in a batch.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    batch_tokens: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Column names, where the usual ones do not fit.
#[derive(clap::Args)]
pub(crate) struct ColumnArgs {
    /// Column of the text.
    #[arg(long, value_name = "COLUMN")]
    text: Option<String>,
    /// Column of the second text.
    #[arg(long, value_name = "COLUMN")]
    pair: Option<String>,
    /// Column of the label.
    #[arg(long, value_name = "COLUMN")]
    label: Option<String>,
}

impl ColumnArgs {
    pub(crate) fn columns(&self) -> Columns {
        Columns { text: self.text.clone(), pair: self.pair.clone(), label: self.label.clone() }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let task: Task = args.task.parse()?;
    let predictor = predictor(&args.model)?;
    let engine = &predictor.engine;
    let config = &engine.model.config;
    if !config.is_text_to_text() && task.is_regression() != (config.num_labels() == 1) {
        return Err(Error::usage(format!(
            "--task {task}: expected a model with {}, found one with {} labels",
            if task.is_regression() { "one output" } else { "several labels" },
            config.num_labels()
        ))
        .at(predictor.dir.display()));
    }
    let examples = data::read(&args.data, task, &args.columns.columns(), Split::Dev, true)?;
    let (map, answers) = predictor.labels(task);
    let labels = map.resolve(&examples)?;
    let set = predictor.tokens(&examples, answers.as_ref().map(|a| (a, Some(&labels))), args.max_length)?;
    let by = BatchBy::Tokens(args.batch_tokens.max(set.lengths().into_iter().max().unwrap_or(1) as usize));
    let evaluation = evaluate(engine, task, &set, &labels, answers.as_ref(), by, |_| {})?;
    let mut result = evaluation.to_json("");
    result.insert("examples".into(), json!(evaluation.examples));
    if args.json {
        return print_json(&result);
    }
    let line = |(name, value): (&String, &Value)| match value.as_f64().filter(|_| value.is_f64()) {
        Some(x) => format!("{name:<10} {x:.4}"),
        None => format!("{name:<10} {value}"),
    };
    print(&result.iter().map(line).collect::<Vec<_>>().join("\n"))
}
