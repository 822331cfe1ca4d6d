//! What a data file holds: columns, task and labels, guessed from names and values.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use colrow_models::files;
use colrow_tensor::{Error, Result};
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;

use crate::data::{self, Columns, Examples, LabelMap, Split, glue, table};
use crate::objective::LabelledTexts;
use crate::tasks::Task;

/// Usual names of the columns, best first.
pub(super) const TEXTS: [&str; 14] = [
    "text",
    "sentence",
    "review",
    "content",
    "message",
    "body",
    "comment",
    "tweet",
    "document",
    "description",
    "question",
    "title",
    "headline",
    "utterance",
];
const LABELS: [&str; 14] = [
    "label",
    "labels",
    "class",
    "category",
    "target",
    "sentiment",
    "score",
    "rating",
    "intent",
    "topic",
    "emotion",
    "stars",
    "gold_label",
    "y",
];
const PAIRS: [(&str, &str); 7] = [
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("query", "passage"),
    ("text", "pair"),
];

/// More different whole numbers than this are taken for numbers, not for classes.
const MOST_CLASSES: usize = 50;
/// Labels that are listed with their counts.
const LISTED: usize = 8;
/// Rows below which a value of its own in each says nothing.
const FEW_ROWS: usize = 20;

/// What a data file holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    /// Names of all columns; none of a folder.
    pub(super) columns: Vec<String>,
    pub(super) text: Option<String>,
    pub(super) pair: Option<String>,
    pub(super) label: Option<String>,
    pub(super) task: Task,
    /// In words.
    pub(super) labels: String,
    pub(super) examples: Examples,
}

/// Guesses columns, task and labels.
pub(super) fn look_at(path: &Path) -> Result<Found> {
    if let Some((task, examples)) = glue_folder(path) {
        let labels = in_words(task, &counts(&examples));
        return Ok(Found { columns: Vec::new(), text: None, pair: None, label: None, task, labels, examples });
    }
    let columns = columns_of(path, Task::Classify)?;
    if columns.is_empty() {
        // says what is missing, if something is
        let want = LabelledTexts { task: Task::Classify, columns: &Columns::default(), labels_required: true };
        data::read(path, &want, Split::Train)?;
    }
    let has = |name: &str| columns.iter().find(|column| column.eq_ignore_ascii_case(name)).cloned();
    let pair = PAIRS.iter().find_map(|(a, b)| Some((has(a)?, has(b)?)));
    let mut label = LABELS.iter().find_map(|name| has(name));
    let (text, second) = match pair {
        Some((text, pair)) => (Some(text), Some(pair)),
        None => (TEXTS.iter().find_map(|name| has(name)), None),
    };
    if text.is_none() && label.is_none() {
        check_header(path, &columns)?;
    }
    let read = |text: Option<String>, label: Option<String>| {
        let columns = Columns { text, pair: second.clone(), label, ..Columns::default() };
        let want = LabelledTexts { task: Task::Classify, columns: &columns, labels_required: false };
        data::read(path, &want, Split::Train)
    };
    let text = match text {
        Some(text) => Some(text),
        None if columns.is_empty() => None,
        None => {
            let (mut longest, mut why) = ((0, None), None);
            for column in columns.iter().filter(|column| label.as_ref() != Some(column)) {
                match read(Some(column.clone()), None) {
                    Ok(examples) => {
                        let letters = examples.rows.iter().map(|e| e.text.len()).sum::<usize>();
                        if letters > longest.0 {
                            longest = (letters, Some(column.clone()));
                        }
                    }
                    // numbers are no text; if nothing is, something else is wrong
                    Err(e) => why = why.or(Some(e)),
                }
            }
            match (longest.1, why) {
                (None, Some(e)) => return Err(e),
                (text, _) => text,
            }
        }
    };
    let mut examples = read(text.clone(), label.clone())?;
    let ids = label.take_if(|_| are_ids(&examples));
    if label.is_none() && !columns.is_empty() {
        // few different values, more than one
        let mut fewest = (examples.rows.len() / 2 + 1, None);
        let others =
            columns.iter().filter(|c| ![&text, &second, &ids].into_iter().any(|taken| taken.as_ref() == Some(c)));
        for column in others {
            let Ok(with) = read(text.clone(), Some(column.clone())) else { continue };
            let values = counts(&with).len();
            if values > 1 && values < fewest.0 {
                fewest = (values, Some((column.clone(), with)));
            }
        }
        let (column, with) = fewest.1.ok_or_else(|| {
            let found = match &ids {
                Some(ids) => format!("{} ({ids:?} has a value of its own in each row)", columns.join(", ")),
                None => columns.join(", "),
            };
            Error::new(format!("expected a column with labels, found {found}")).at(path.display()).hint(
                "a label is what the model is to say of a text: a few words or numbers that come again, or a number with fractions; for texts without labels name a decoder with --model",
            )
        })?;
        (label, examples) = (Some(column), with);
    }
    let counts = counts(&examples);
    if counts.len() < 2 {
        let found = counts.keys().next().map_or("none".to_owned(), |only| format!("only {only:?}"));
        let column = label.as_ref().map(|label| format!(" in column {label:?}")).unwrap_or_default();
        return Err(Error::new(format!("expected at least two different labels{column}, found {found}"))
            .at(path.display())
            .hint("a model learns to tell labels apart: put examples of all of them into one file"));
    }
    let numbers = counts.keys().filter_map(|label| label.parse::<f64>().ok()).collect::<Vec<_>>();
    let all_numbers = numbers.len() == counts.len();
    let regression = all_numbers && (numbers.iter().any(|x| x.fract() != 0.0) || counts.len() > MOST_CLASSES);
    let task = if regression { Task::Regress } else { Task::Classify };
    let mut labels = in_words(task, &counts);
    let without = examples.rows.iter().filter(|e| e.label.is_none()).count();
    if without > 0 {
        labels += &format!("; {without} of {} rows have none, and have to go before training", examples.rows.len());
    }
    Ok(Found { columns, text, pair: second, label, task, labels, examples })
}

/// The GLUE task that a folder is called after, and its examples, if they are that task's.
fn glue_folder(path: &Path) -> Option<(Task, Examples)> {
    let folder = path.canonicalize().ok().filter(|path| path.is_dir())?;
    let task: Task = folder.file_name()?.to_str()?.parse().ok()?;
    let want = LabelledTexts { task, columns: &Columns::default(), labels_required: true };
    let examples = data::read(path, &want, Split::Train).ok()?;
    LabelMap::of(task, &examples).ok()?.resolve(&examples).ok()?;
    task.spec().glue.then_some((task, examples))
}

/// Refuses what a reader of the file would not take for a header: one with other separators, an example.
fn check_header(path: &Path, columns: &[String]) -> Result<()> {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let separator = match extension.as_str() {
        "csv" => ',',
        "tsv" => '\t',
        _ => return Ok(()),
    };
    let names: Vec<&str> = columns.iter().map(String::as_str).collect();
    let want = LabelledTexts { task: Task::Classify, columns: &Columns::default(), labels_required: true };
    table::not_a_header(&names, separator, &want).map_or(Ok(()), |e| Err(e.at(path.display())))
}

/// Whether each row has a label of its own, which are words or count the rows.
fn are_ids(examples: &Examples) -> bool {
    let labels: Vec<&str> = examples.rows.iter().filter_map(|e| e.label.as_deref()).collect();
    if labels.len() < FEW_ROWS || counts(examples).len() < labels.len() {
        return false;
    }
    let numbers: Option<Vec<f64>> = labels.iter().map(|label| label.parse().ok()).collect();
    numbers.is_none_or(|numbers| {
        let least = numbers.iter().copied().fold(f64::INFINITY, f64::min);
        let most = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        most - least == (numbers.len() - 1) as f64
    })
}

fn in_words(task: Task, counts: &BTreeMap<&str, usize>) -> String {
    if task.is_regression() {
        let numbers = || counts.keys().filter_map(|label| label.parse::<f64>().ok());
        let least = numbers().fold(f64::INFINITY, f64::min);
        let most = numbers().fold(f64::NEG_INFINITY, f64::max);
        return format!("numbers from {least} to {most}");
    }
    let mut listed: Vec<_> = counts.iter().collect();
    listed.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let some: Vec<_> = listed.iter().take(LISTED).map(|(label, n)| format!("{label:?} ({n})")).collect();
    let more = if listed.len() > LISTED { ", …" } else { "" };
    format!("{} labels: {}{more}", listed.len(), some.join(", "))
}

fn counts(examples: &Examples) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for label in examples.rows.iter().filter_map(|e| e.label.as_deref()) {
        *counts.entry(label).or_default() += 1;
    }
    counts
}

/// The file itself; of a folder that of the task, if it has one.
pub(super) fn file_of(path: &Path, task: Task) -> Option<PathBuf> {
    match path.is_dir() {
        true => glue::split_file(path, task, Split::Train),
        false => Some(path.to_owned()),
    }
}

/// Names of a file's columns; of a folder those of the task's file, if it has one, and none of a list of texts.
pub(super) fn columns_of(path: &Path, task: Task) -> Result<Vec<String>> {
    let failed =
        |e: &dyn std::fmt::Display| Error::new(format!("cannot read the names of the columns: {e}")).at(path.display());
    let Some(file) = file_of(path, task) else { return Ok(Vec::new()) };
    let path = &file;
    let open = || files::open(path).map(BufReader::new).map_err(|e| failed(&e));
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let keys = |value: Option<Value>| match value {
        Some(Value::Object(first)) => Ok(first.keys().cloned().collect()),
        _ => Err(failed(&"expected objects")),
    };
    match extension.as_str() {
        "csv" | "tsv" => {
            let mut line = String::new();
            // a header is short; a file without line breaks is not read whole
            open()?.take(1 << 20).read_line(&mut line).map_err(|e| failed(&e))?;
            Ok(names_in(line.trim_start_matches('\u{feff}').trim_end(), if extension == "csv" { ',' } else { '\t' }))
        }
        "parquet" => {
            let file = files::open(path).map_err(|e| failed(&e))?;
            let reader = SerializedFileReader::new(file).map_err(|e| failed(&e))?;
            let schema = reader.metadata().file_metadata().schema_descr().root_schema().clone();
            Ok(schema.get_fields().iter().map(|field| field.name().to_owned()).collect())
        }
        "json" | "jsonl" | "ndjson" => {
            let mut input = open()?;
            let start = input.fill_buf().map_err(|e| failed(&e))?.iter().copied().find(|b| !b.is_ascii_whitespace());
            if start == Some(b'[') {
                let all: Vec<Value> = serde_json::from_reader(input).map_err(|e| failed(&e))?;
                return keys(all.into_iter().next());
            }
            keys(serde_json::Deserializer::from_reader(input).into_iter().next().transpose().map_err(|e| failed(&e))?)
        }
        _ => Ok(Vec::new()),
    }
}

/// The fields of a header line, some of them in quotes.
fn names_in(line: &str, separator: char) -> Vec<String> {
    let mut quoted = false;
    let fields = line.split(|c| {
        quoted ^= c == '"';
        c == separator && !quoted
    });
    let bare = |field: &str| {
        let inner = field.strip_prefix('"').and_then(|field| field.strip_suffix('"'));
        inner.map_or(field.to_owned(), |inner| inner.replace("\"\"", "\""))
    };
    fields.map(|field| bare(field.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_quotes() {
        assert_eq!(names_in("a, \"b,c\",\"say \"\"d\"\"\" ", ','), ["a", "b,c", "say \"d\""]);
        assert_eq!(names_in("a\tb c", '\t'), ["a", "b c"]);
    }

    fn seen(name: &str, content: &str) -> Result<(Task, Option<String>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        look_at(&path).map(|found| (found.task, found.label))
    }

    #[test]
    fn what_has_no_labels_is_refused() {
        for (name, content, what) in [
            ("a.txt", "a\nb\n", "expected texts with labels, found lines of text alone"),
            (
                "a.csv",
                "text,label\na,1\nb,1\n",
                "expected at least two different labels in column \"label\", found only \"1\"",
            ),
            ("a.csv", "text,label\na,\nb,\n", "in column \"label\", found none"),
            ("a.csv", "text\na\nb\n", "expected a column with labels, found text"),
            ("a.csv", "text;label\na;1\nb;0\n", "expected columns separated by commas, found semicolons"),
            ("a.csv", "\"words\";\"mood\"\n\"a, b\";1\n", "found semicolons"),
            ("a.tsv", "words,mood\na,1\n", "expected columns separated by tabs, found commas"),
            ("a.csv", "a fine film,1\na bad one,0\n", "found an example: a fine film"),
        ] {
            let message = seen(name, content).unwrap_err().to_string();
            assert!(message.contains(what) && message.contains(name), "{content:?}: {message}");
        }
    }

    #[test]
    fn ids_are_no_labels() {
        let rows = |id: fn(usize) -> String| {
            let row = |i: usize| format!("some text,{},{}\n", id(i), ["up", "down"][i % 2]);
            (0..30).map(row).fold("text,label,mood\n".to_owned(), |all, row| all + &row)
        };
        let mood = (Task::Classify, Some("mood".to_owned()));
        assert_eq!(seen("a.csv", &rows(|i| format!("id-{i}"))).unwrap(), mood);
        assert_eq!(seen("a.csv", &rows(|i| (i + 7).to_string())).unwrap(), mood);
        let label = |task| (task, Some("label".to_owned()));
        assert_eq!(seen("a.csv", &rows(|i| (i * i).to_string())).unwrap(), label(Task::Classify));
        assert_eq!(seen("a.csv", &rows(|i| (i as f64 / 7.0).to_string())).unwrap(), label(Task::Regress));
        let only =
            (0..30).map(|i| format!("some text,id-{i}\n")).fold("text,label\n".to_owned(), |all, row| all + &row);
        let message = seen("a.csv", &only).unwrap_err().to_string();
        assert!(message.contains("found text, label (\"label\" has a value of its own in each row)"), "{message}");
    }

    #[test]
    fn a_folder_of_glue_is_its_task() {
        let folder = tempfile::tempdir().unwrap();
        for (name, content, want) in [
            ("RTE", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n", (Task::Rte, None)),
            ("SST-2", "sentence\tlabel\na \"b\t1\nb\t0\n", (Task::Sst2, None)),
            ("CoLA", "gj04\t1\t\tOur friends.\nbc01\t0\t*\tx\n", (Task::Cola, None)),
            // the name alone says nothing
            ("MNLI", "sentence\tlabel\na\tup\nb\tdown\n", (Task::Classify, Some("label".to_owned()))),
            ("sst2", "sentence\tlabel\na\tup\nb\tdown\n", (Task::Classify, Some("label".to_owned()))),
            ("mine", "sentence\tlabel\na\t1\nb\t0\n", (Task::Classify, Some("label".to_owned()))),
        ] {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("train.tsv"), content).unwrap();
            let found = look_at(&path).unwrap();
            assert_eq!((found.task, found.label), want, "{name}");
            assert!(want.0 == Task::Classify || found.text.is_none() && found.labels.contains("label"), "{name}");
        }
    }
}
