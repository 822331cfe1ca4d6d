//! `colrow eval`: metrics of a checkpoint.

use std::path::PathBuf;

use colrow_models::family::HeadKind;
use colrow_tensor::printable::one_line;
use colrow_tensor::{Error, Named, Result};
use colrow_train::chat::TrainOn;
use colrow_train::data::{self, Split, TokenisedSet};
use colrow_train::evaluate::evaluate;
use colrow_train::metrics::Metric;
use colrow_train::objective::LabelledTexts;
use colrow_train::score::{Class, Evaluation, Scorer};
use serde_json::json;

use crate::arguments::in_arguments;
use crate::output::{self, print, print_json};
use crate::predictor::{Predictor, UseArgs};
use crate::saved::ModelArgs;

/// Evaluate a fine-tuned model on labelled data.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// File (CSV, TSV, JSON lines, Parquet) or folder in GLUE's layout, of which the development set is used.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    usage: UseArgs,
    /// The label that F1 is of [default: the training's, else the second of two].
    #[arg(long, value_name = "LABEL")]
    positive: Option<String>,
    /// What counts in the loss, of a model that goes on with texts: assistant, completion, last or all [default: as in training, else what is
    /// usual for the form of the data].
    #[arg(long, value_name = "WHAT")]
    train_on: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut predictor = Predictor::new(&args.model, &args.usage)?;
    if predictor.task.is_of_tokens() {
        return of_tokens(args, &predictor);
    }
    if args.train_on.is_some() {
        return Err(Error::usage(format!("--train-on: task {} has labels, and no tokens that count", predictor.task)));
    }
    let (config, task) = (&predictor.engine.model.config, predictor.task);
    if config.family().head == HeadKind::Classifier && task.is_regression() != (config.num_labels() == 1) {
        return Err(Error::usage(format!(
            "--task {task}: expected a model with {}, found one with {} labels",
            if task.is_regression() { "one output" } else { "several labels" },
            config.num_labels()
        ))
        .at(predictor.dir.display()));
    }
    let reading = LabelledTexts { task, columns: &predictor.columns, labels_required: true };
    let examples = data::read(&args.data, &reading, Split::Dev).map_err(in_arguments)?;
    predictor.look_at(&examples);
    predictor.learn_labels(&examples).map_err(in_arguments)?;
    let map = &predictor.map;
    let labels = map.resolve(&examples).map_err(in_arguments)?;
    map.warnings(&examples).iter().for_each(|w| output::warn(w));
    let scorer = Scorer::new(task, map.names(), predictor.positive(args.positive.as_deref()), "--positive")?;
    predictor.judge_by(scorer)?;
    let set = predictor.tokens(&examples, Some(labels))?;
    let evaluation = of_set(&predictor, &set)?;
    if let Some(warning) = evaluation.warning() {
        output::warn(&warning);
    }
    if args.json {
        let mut result = evaluation.to_json("");
        result.extend(evaluation.by_class());
        result.insert("examples".into(), json!(evaluation.examples));
        return print_json(&result);
    }
    print(&text(&evaluation))
}

/// Loss and metrics, which mean nothing where the loss is not finite.
fn of_set(predictor: &Predictor, set: &TokenisedSet) -> Result<Evaluation> {
    let evaluation = evaluate(&predictor.engine, set, predictor.batches(set), |_| Ok(()))?;
    let loss = evaluation.metrics.iter().find(|(metric, _)| *metric == Metric::Loss).map(|(_, loss)| *loss);
    match loss.filter(|loss| !loss.is_finite()) {
        Some(loss) => Err(Error::new(format!("the loss is {loss}"))
            .at(predictor.dir.display())
            .hint("are there infinities or NaN among the model's weights?")),
        None => Ok(evaluation),
    }
}

/// Loss and metrics of a model that goes on with texts.
fn of_tokens(args: &Args, predictor: &Predictor) -> Result<()> {
    let train_on = args.train_on.as_ref().map(|name| {
        let names = || TrainOn::ALL.iter().map(|t| t.name()).collect::<Vec<_>>().join(", ");
        TrainOn::find(name)
            .ok_or_else(|| Error::usage(format!("--train-on: expected one of {}, found {name:?}", names())))
    });
    let data = predictor.token_data(train_on.transpose()?);
    let reading = predictor.token_reading(&data)?;
    let examples = data::read(&args.data, reading.reading(), Split::Dev).map_err(in_arguments)?;
    examples.warnings().iter().for_each(|w| output::warn(w));
    let set = predictor.tokens(&examples, None)?;
    let evaluation = of_set(predictor, &set)?;
    if !args.json {
        return print(&text(&evaluation));
    }
    let mut result = evaluation.to_json("");
    result.insert("examples".into(), json!(evaluation.examples));
    print_json(&result)
}

fn text(evaluation: &Evaluation) -> String {
    let width = evaluation.metrics.iter().map(|(metric, _)| metric.name().len()).max().unwrap_or(0).max(10);
    let line = |name: &str, value: f64, note: &str| format!("{name:<width$} {value:.4}{note}");
    let of = evaluation.positive.as_ref().map(|name| format!("  of {name:?}")).unwrap_or_default();
    let mut lines: Vec<String> = evaluation
        .metrics
        .iter()
        .map(|&(metric, value)| line(metric.name(), value, if metric == Metric::F1 { &of } else { "" }))
        .collect();
    if let Some(classes) = &evaluation.classes {
        if evaluation.metrics.iter().all(|&(metric, _)| metric != Metric::MacroF1) {
            lines.push(line(Metric::MacroF1.name(), classes.macro_f1, ""));
        }
        lines.push(format!("{:<10} {}\n", "examples", evaluation.examples));
        match &classes.confusion {
            Some(confusion) => {
                lines.extend([by_class(&classes.classes), String::new(), table(&classes.classes, confusion)])
            }
            None => lines.push(format!("{} classes: --json tells how each fares", classes.classes.len())),
        }
    } else {
        lines.push(format!("{:<width$} {}", "examples", evaluation.examples));
        for (name, n) in evaluation.tokens.iter().flat_map(|c| [("labels", c.labels), ("tokens", c.tokens)]) {
            lines.push(format!("{name:<width$} {n}"));
        }
    }
    lines.join("\n").trim_end().to_owned()
}

/// Width of a column of names, and a name in it.
fn names(classes: &[Class]) -> (usize, impl Fn(&str) -> String) {
    const MOST: usize = 24;
    let short = |name: &str| {
        let name = one_line(name);
        match name.char_indices().nth(MOST) {
            Some((end, _)) => format!("{}…", &name[..end]),
            None => name.into_owned(),
        }
    };
    let width = classes.iter().map(|c| short(&c.name).chars().count()).max().unwrap_or(0);
    (width.max("predicted".len()), short)
}

fn by_class(classes: &[Class]) -> String {
    let (width, short) = names(classes);
    let head = format!("{:<width$}  precision  recall      f1  support", "class");
    let row = |c: &Class| {
        format!("{:<width$}  {:>9.4}  {:>6.4}  {:>6.4}  {:>7}", short(&c.name), c.precision, c.recall, c.f1, c.support)
    };
    std::iter::once(head).chain(classes.iter().map(row)).collect::<Vec<_>>().join("\n")
}

/// The confusion matrix, its columns numbered as the rows are.
fn table(classes: &[Class], confusion: &[Vec<u64>]) -> String {
    let (width, short) = names(classes);
    let cell = confusion.iter().flatten().max().map_or(1, |n| n.to_string().len()).max(2) + 1;
    let head = |j: usize| if j < classes.len() { format!("{:>cell$}", j + 1) } else { format!("{:>cell$}", "–") };
    let columns: String = (0..confusion.first().map_or(0, Vec::len)).map(head).collect();
    let mut lines = vec![format!("{:>4}{:<width$} {columns}", "", "predicted")];
    lines.extend(classes.iter().zip(confusion).enumerate().map(|(i, (class, counts))| {
        let counts: String = counts.iter().map(|n| format!("{n:>cell$}")).collect();
        format!("{:>3} {:<width$} {counts}", i + 1, short(&class.name))
    }));
    if confusion.iter().any(|counts| counts.len() > classes.len()) {
        lines.push("–: the answer is no label".into());
    }
    lines.join("\n")
}
