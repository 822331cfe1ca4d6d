//! `colrow predict`: labels or numbers of texts, a line an example.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use colrow_models::apart;
use colrow_models::atomic::write_file_atomic;
use colrow_models::family::HeadKind;
use colrow_tensor::{Error, Result};
use colrow_train::data::{self, Example, Split};
use colrow_train::evaluate::outputs;
use colrow_train::metrics::{argmax, softmax};
use colrow_train::objective::{LabelledTexts, Outputs};
use serde::Serialize;

use crate::arguments::in_arguments;
use crate::output::{check_file, is_standard, write_out};
use crate::predictor::{Predictor, UseArgs};
use crate::saved::ModelArgs;

/// Predict labels (or numbers) of texts, a line an example.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// File (CSV, TSV, JSON lines, Parquet, lines of a .txt) or folder in GLUE's layout, or - for standard input; labels are not needed.
    ///
    /// Standard input is JSON if it starts with { or with an array of objects; CSV or TSV if its first line is a header; else one text a
    /// line. A header holds the columns of --text and --pair, of the training data, or the usual ones (text, sentence, …); its other fields
    /// have no space in front and are no sentences or numbers. With --text or --pair there must be one.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Where to write: .csv and .tsv as a table, all else as JSON lines, - as JSON lines on standard output [default: -].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write the texts too.
    #[arg(long)]
    with_text: bool,
    #[command(flatten)]
    usage: UseArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let out = args.out.as_deref().filter(|out| !is_standard(out));
    const NOT_WRITTEN: [&str; 5] = ["xlsx", "xls", "ods", "parquet", "arrow"];
    let extension = out.and_then(Path::extension).map(|e| e.to_string_lossy().to_lowercase());
    if let Some(extension) = extension.filter(|extension| NOT_WRITTEN.contains(&extension.as_str())) {
        return Err(Error::usage(format!("--out: expected .csv, .tsv or .jsonl, found .{extension}"))
            .hint("spreadsheets open .csv; pandas writes the others from it"));
    }
    let beginnings: [&[u8]; 3] = [b"{\"index\":", b"index,row,", b"index\trow\t"];
    out.map(|out| check_file(out, &beginnings)).transpose()?;
    let predictor = Predictor::new(&args.model, &args.usage)?;
    if predictor.task.is_of_tokens() {
        return Err(Error::usage("colrow predict gives labels, and this model goes on with texts")
            .at(predictor.dir.display())
            .hint("colrow generate writes texts, and colrow eval measures its loss"));
    }
    let reading = LabelledTexts { task: predictor.task, columns: &predictor.columns, labels_required: false };
    let examples = data::read(&args.data, &reading, Split::Dev).map_err(in_arguments)?;
    if let Some(out) = out {
        let models = predictor.read_from.iter().map(PathBuf::as_path);
        apart::check_file(out, models.chain([&*examples.source]))?;
    }
    predictor.look_at(&examples);
    let set = predictor.tokens(&examples, None)?;
    let by = predictor.batches(&set);
    let names = &predictor.engine.model.config.labels;
    let in_text = predictor.engine.model.config.family().head == HeadKind::Language;
    let mut failure = None;
    let mut write = |format: Format, out: &mut dyn Write| -> io::Result<()> {
        let mut lines = Lines { format, names, with_text: args.with_text, in_text, out };
        let mut rows = examples.rows.iter().enumerate();
        lines.head()?;
        let mut written = Ok(());
        let ran = outputs(&predictor.engine, &set, by, |batch| {
            written = lines.batch(&batch, &mut rows);
            written.as_ref().map_or_else(|e| Err(Error::new(e.to_string())), |()| Ok(()))
        });
        written?;
        ran.map_err(|e| {
            failure = Some(e);
            io::ErrorKind::Other.into()
        })
    };
    let result = match out {
        Some(path) => write_file_atomic(path, |file: &mut File| {
            let mut out = BufWriter::new(file);
            let written = write(Format::of(path), &mut out).and_then(|()| out.flush());
            written.map_err(|e| Error::new(format!("cannot write the predictions: {e}")))
        }),
        None => write_out(|out| write(Format::Json, out)),
    };
    // one of the model's comes before what became of the output for it
    failure.map_or(result, Err)
}

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Json,
    /// A header, then fields with this between them, quoted where they need it.
    Table(char),
}

impl Format {
    fn of(path: &Path) -> Self {
        let is = |name: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(name));
        match () {
            () if is("csv") => Format::Table(','),
            () if is("tsv") => Format::Table('\t'),
            () => Format::Json,
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    index: usize,
    logits: &'a [f32],
    label: Label<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    probabilities: Option<Vec<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_label: Option<bool>,
    row: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pair: Option<&'a str>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(untagged)]
enum Label<'a> {
    Name(&'a str),
    Value(f32),
}

struct Lines<'a> {
    format: Format,
    names: &'a [String],
    with_text: bool,
    in_text: bool,
    out: &'a mut dyn Write,
}

impl Lines<'_> {
    fn head(&mut self) -> io::Result<()> {
        let Format::Table(separator) = self.format else { return Ok(()) };
        let mut fields = vec!["index".to_owned(), "row".into(), "label".into()];
        match self.in_text {
            true => fields.push("is_label".into()),
            // a regression's only output is its label
            false if self.names.len() > 1 => {
                for what in ["probability", "logit"] {
                    fields.extend(self.names.iter().map(|name| format!("{what}.{name}")));
                }
            }
            false => {}
        }
        if self.with_text {
            fields.extend(["text".into(), "pair".into()]);
        }
        self.fields(separator, &fields)
    }

    /// Writes what the model makes of the next examples of `rows`.
    fn batch<'e>(
        &mut self,
        outputs: &Outputs,
        rows: &mut impl Iterator<Item = (usize, &'e Example)>,
    ) -> io::Result<()> {
        match outputs {
            Outputs::Logits(logits) => {
                let (names, classes) = (self.names, self.names.len());
                for (logits, (index, example)) in logits.chunks_exact(classes).zip(rows) {
                    let (label, probabilities) = match classes {
                        1 => (Label::Value(logits[0]), None),
                        _ => (Label::Name(&names[argmax(logits) as usize]), Some(softmax(logits))),
                    };
                    self.line(index, example, logits, label, probabilities, None)?;
                }
            }
            Outputs::Answers(answers) => {
                for (answer, (index, example)) in answers.iter().zip(rows) {
                    self.line(index, example, &[], Label::Name(&answer.text), None, answer.is_label)?;
                }
            }
        }
        Ok(())
    }

    fn line(
        &mut self,
        index: usize,
        example: &Example,
        logits: &[f32],
        label: Label<'_>,
        probabilities: Option<Vec<f32>>,
        is_label: Option<bool>,
    ) -> io::Result<()> {
        let (text, pair) = if self.with_text { (Some(&*example.text), example.pair.as_deref()) } else { (None, None) };
        let line = Line { index, logits, label, probabilities, is_label, row: example.row, text, pair };
        let Format::Table(separator) = self.format else {
            serde_json::to_writer(&mut *self.out, &line)?;
            return writeln!(self.out);
        };
        let label = match label {
            Label::Name(name) => name.to_owned(),
            Label::Value(value) => value.to_string(),
        };
        let mut fields = vec![index.to_string(), line.row.to_string(), label];
        if self.in_text {
            fields.push(is_label.map(|is| is.to_string()).unwrap_or_default());
        }
        if let Some(probabilities) = &line.probabilities {
            fields.extend(probabilities.iter().chain(logits).map(f32::to_string));
        }
        if self.with_text {
            fields.extend([text.unwrap_or_default().to_owned(), pair.unwrap_or_default().to_owned()]);
        }
        self.fields(separator, &fields)
    }

    fn fields(&mut self, separator: char, fields: &[String]) -> io::Result<()> {
        for (i, field) in fields.iter().enumerate() {
            if i > 0 {
                write!(self.out, "{separator}")?;
            }
            if field.contains(['"', '\n', '\r', separator]) {
                write!(self.out, "\"{}\"", field.replace('"', "\"\""))?;
            } else {
                self.out.write_all(field.as_bytes())?;
            }
        }
        writeln!(self.out)
    }
}
