//! A first recipe for data and a model that somebody has: what can be seen in the file is filled in, and said.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use colrow_models::config::Config;
use colrow_models::hub::{self, Needs};
use colrow_tensor::{Error, Result};
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;

use crate::data::{self, Columns, Examples, Split, Tokeniser, glue};
use crate::recipe::Data;
use crate::tasks::Task;

/// Usual names of the columns, best first.
const TEXTS: [&str; 14] = [
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
/// Tokens of a word, where no tokenizer can tell.
const TOKENS_A_WORD: f64 = 1.5;

/// What a data file holds.
#[derive(Clone, Debug, PartialEq)]
struct Found {
    /// Names of all columns; none of a folder.
    columns: Vec<String>,
    text: Option<String>,
    pair: Option<String>,
    label: Option<String>,
    task: Task,
    /// In words.
    labels: String,
    examples: Examples,
}

/// A commented recipe, as TOML, for the data file and the model that are given.
///
/// # Errors
/// Data that cannot be read, with no column of text, or without labels; a model that cannot be found.
pub fn draft(data: Option<&Path>, model: Option<&str>) -> Result<String> {
    let found = data.map(look_at).transpose()?;
    let dir = model.map(|model| hub::resolve(model, "main", Needs::ConfigAndTokenizer)).transpose()?;
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let name = data.and_then(Path::file_stem).map_or("run".into(), |stem| stem.to_string_lossy().into_owned());
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut line = |key: String, comment: &str| lines.push((key, comment.replace(['\n', '\r'], " ")));
    let task = found.as_ref().map_or(Task::Classify, |found| found.task);
    let labels = found.as_ref().map_or("", |found| found.labels.as_str());
    line(format!("task = {}", quoted(task.name())), labels);
    line(
        format!("output = {}", quoted(&format!("runs/{name}"))),
        "the run folder: model, checkpoints, metrics, report",
    );
    line("\n[model]".into(), "");
    let path = model.unwrap_or("bert-base-uncased");
    line(
        format!("path = {}", quoted(path)),
        if model.is_some() { "" } else { "a folder in Hugging Face layout, or a hub id" },
    );
    line("\n[data]".into(), "");
    let train = data.map_or("train.csv".into(), |data| data.display().to_string());
    line(format!("train = {}", quoted(&train)), "");
    let folder = data.is_some_and(Path::is_dir);
    if !folder {
        line("# dev = \"dev.csv\"".into(), "without it a tenth of the examples is held out");
    }
    if let Some(found) = &found {
        let columns = format!("columns of the file: {}", found.columns.join(", "));
        let named = [("text", &found.text), ("pair", &found.pair), ("label", &found.label)];
        for (i, (key, name)) in named.into_iter().filter_map(|(key, name)| Some((key, name.as_ref()?))).enumerate() {
            line(format!("{key} = {}", quoted(name)), if i == 0 { &columns } else { "" });
        }
    }
    let (length, why) = max_length(found.as_ref(), dir.as_deref())?;
    line(format!("max_length = {length}"), &why);
    line("\n[train]".into(), "");
    line("epochs = 3".into(), "");
    let examples = found.as_ref().map_or(usize::MAX, |found| found.examples.rows.len());
    line(format!("batch = {}", if examples < 320 { 8 } else { 32 }), "sequences a step");
    line("# method = \"lora\"".into(), "adapters instead of all weights; optim.lr is then about ten times as high");
    line("\n[optim]".into(), "");
    line("lr = 2e-5".into(), "a small model takes more: 1e-4");
    line("warmup = 0.1".into(), "share of all steps");
    line("\n[keep]".into(), "");
    line("policy = \"exact\"".into(), "\"lean\" keeps a tenth; colrow plan RECIPE --memory 8GiB says what fits");
    let mut text = String::from(
        "# colrow plan RECIPE says what this needs, colrow train RECIPE runs it; docs/recipe.md has all keys.\n",
    );
    let width = lines.iter().filter(|(_, comment)| !comment.is_empty()).map(|(key, _)| key.len()).max().unwrap_or(0);
    for (key, comment) in lines {
        match comment.is_empty() {
            true => writeln!(text, "{key}"),
            false => writeln!(text, "{key:width$}  # {comment}"),
        }
        .expect("a string takes all that is written");
    }
    Ok(text.trim_end().to_owned())
}

/// Task and columns that are seen in a labelled file, or in a folder in GLUE's layout, whose columns its task knows.
///
/// # Errors
/// Data that cannot be read, with no column of text, or without labels.
pub fn seen_in(path: &Path) -> Result<(Task, Columns)> {
    let Found { text, pair, label, task, .. } = look_at(path)?;
    Ok((task, Columns { text, pair, label, known: None }))
}

/// What the longest examples have, by the model's tokenizer if there is one: `data.max_length` and a reason.
fn max_length(found: Option<&Found>, model: Option<&Path>) -> Result<(usize, String)> {
    let config = model.map(Config::open).transpose()?;
    let most = config.as_ref().and_then(Config::longest).unwrap_or(512);
    let Some(found) = found else { return Ok((Data::default().max_length.min(most), String::new())) };
    let mut lengths: Vec<usize> = match model.zip(config.as_ref()) {
        Some((dir, config)) => {
            let set = Tokeniser::load(dir, config)?.tokenise(&found.examples, None, 1 << 16)?;
            set.lengths().into_iter().map(|length| length as usize).collect()
        }
        None => {
            let words = |text: &str| text.split_whitespace().count();
            let tokens = |e: &data::Example| words(&e.text) + e.pair.as_deref().map_or(0, words);
            found.examples.rows.iter().map(|e| (TOKENS_A_WORD * tokens(e) as f64) as usize + 3).collect()
        }
    };
    lengths.sort_unstable();
    let longest = lengths.last().copied().unwrap_or(1);
    let usual = lengths.get(lengths.len() * 99 / 100).copied().unwrap_or(longest);
    let length = usual.next_multiple_of(16).min(most).max(1);
    let about = if model.is_some() { "" } else { "about " };
    Ok((length, format!("99 of 100 examples have at most {about}{usual} tokens, the longest {about}{longest}")))
}

/// Guesses columns, task and labels.
fn look_at(path: &Path) -> Result<Found> {
    let columns = columns_of(path)?;
    let has = |name: &str| columns.iter().find(|column| column.eq_ignore_ascii_case(name)).cloned();
    let pair = PAIRS.iter().find_map(|(a, b)| Some((has(a)?, has(b)?)));
    let label = LABELS.iter().find_map(|name| has(name));
    let (text, second) = match pair {
        Some((text, pair)) => (Some(text), Some(pair)),
        None => (TEXTS.iter().find_map(|name| has(name)), None),
    };
    let read = |text: Option<String>, label: Option<String>| {
        let columns = Columns { text, pair: second.clone(), label, ..Columns::default() };
        data::read(path, Task::Classify, &columns, Split::Train, false)
    };
    let mut label = label;
    let text = match text {
        Some(text) => Some(text),
        // a GLUE folder's task knows its columns
        None if columns.is_empty() => None,
        None => {
            let mut longest = (0, None);
            for column in columns.iter().filter(|column| label.as_ref() != Some(column)) {
                let letters = read(Some(column.clone()), None)?.rows.iter().map(|e| e.text.len()).sum::<usize>();
                if letters > longest.0 {
                    longest = (letters, Some(column.clone()));
                }
            }
            longest.1
        }
    };
    let mut examples = read(text.clone(), label.clone())?;
    if label.is_none() && !columns.is_empty() {
        // few different values, more than one
        let mut fewest = (examples.rows.len() / 2 + 1, None);
        for column in columns.iter().filter(|c| text.as_ref() != Some(c) && second.as_ref() != Some(c)) {
            let with = read(text.clone(), Some(column.clone()))?;
            let values = counts(&with).len();
            if values > 1 && values < fewest.0 {
                fewest = (values, Some((column.clone(), with)));
            }
        }
        let (column, with) = fewest.1.ok_or_else(|| {
            Error::new(format!("expected a column with labels, found {}", columns.join(", "))).at(path.display())
        })?;
        (label, examples) = (Some(column), with);
    }
    let counts = counts(&examples);
    let numbers = counts.keys().filter_map(|label| label.parse::<f64>().ok()).collect::<Vec<_>>();
    let all_numbers = numbers.len() == counts.len();
    let regression = all_numbers && (numbers.iter().any(|x| x.fract() != 0.0) || counts.len() > MOST_CLASSES);
    let (task, labels) = if regression {
        let least = numbers.iter().copied().fold(f64::INFINITY, f64::min);
        let most = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (Task::Regress, format!("numbers from {least} to {most}"))
    } else {
        let mut listed: Vec<_> = counts.iter().collect();
        listed.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        let some: Vec<_> = listed.iter().take(LISTED).map(|(label, n)| format!("{label:?} ({n})")).collect();
        let more = if listed.len() > LISTED { ", …" } else { "" };
        (Task::Classify, format!("{} labels: {}{more}", listed.len(), some.join(", ")))
    };
    Ok(Found { columns, text, pair: second, label, task, labels, examples })
}

fn counts(examples: &Examples) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for label in examples.rows.iter().filter_map(|e| e.label.as_deref()) {
        *counts.entry(label).or_default() += 1;
    }
    counts
}

/// Names of a file's columns; none of a folder, whose layout says them, and of a list of texts.
fn columns_of(path: &Path) -> Result<Vec<String>> {
    let failed =
        |e: &dyn std::fmt::Display| Error::new(format!("cannot read the names of the columns: {e}")).at(path.display());
    if path.is_dir() {
        let file = glue::split_file(path, Task::Classify, Split::Train);
        return file.map_or(Ok(Vec::new()), |file| columns_of(&file));
    }
    let open = || File::open(path).map(BufReader::new).map_err(|e| failed(&e));
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
            let file = File::open(path).map_err(|e| failed(&e))?;
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
    use crate::recipe::Recipe;

    #[test]
    fn names_in_quotes() {
        assert_eq!(names_in("a, \"b,c\",\"say \"\"d\"\"\" ", ','), ["a", "b,c", "say \"d\""]);
        assert_eq!(names_in("a\tb c", '\t'), ["a", "b c"]);
    }

    fn of(name: &str, content: &str) -> (String, Recipe) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let text = draft(Some(&path), None).unwrap();
        let recipe = Recipe::parse(&text, "draft", &[]).unwrap_or_else(|e| panic!("{e}\n{text}"));
        recipe.check_train("draft").unwrap();
        assert_eq!(recipe.data.train.as_deref(), Some(path.to_str().unwrap()));
        (text, recipe)
    }

    #[test]
    fn columns_task_and_length_are_seen_in_the_file() {
        let (text, recipe) =
            of("a.csv", "id,review,mood\n1,a very good film,up\n2,bad,down\n3,so so,up\n4,\"so, so\",up\n");
        assert_eq!((recipe.task.as_str(), recipe.data.max_length, recipe.data.pair), ("classify", 16, None));
        assert_eq!((recipe.data.text.as_deref(), recipe.data.label.as_deref()), (Some("review"), Some("mood")));
        assert!(text.contains("# 2 labels: \"up\" (3), \"down\" (1)\n"), "{text}");
        assert!(text.contains("# columns of the file: id, review, mood\n"), "{text}");
        assert_eq!(recipe.output.as_deref(), Some("runs/a"));
        let (text, recipe) = of(
            "b.jsonl",
            "{\"premise\": \"a\", \"hypothesis\": \"b\", \"score\": 0.5}\n{\"premise\": \"c\", \"hypothesis\": \"d\", \"score\": 2}\n",
        );
        assert_eq!((recipe.task.as_str(), recipe.data.pair.as_deref()), ("regress", Some("hypothesis")));
        assert!(text.contains("# numbers from 0.5 to 2\n"), "{text}");
        // names that say nothing: the longest texts, and the column with the fewest values
        let rows = (0..20).map(|i| format!("{i}\tsome words that differ by {i}\tz{}\n", i % 3)).collect::<String>();
        let (_, recipe) = of("c.tsv", &format!("a\tb\tc\n{rows}"));
        assert_eq!((recipe.data.text.as_deref(), recipe.data.label.as_deref()), (Some("b"), Some("c")));
        let (_, recipe) = of("quo\"te.csv", "text,label\nx,1\ny,0\n");
        assert_eq!(recipe.output.as_deref(), Some("runs/quo\"te"));
    }

    #[test]
    fn task_and_columns_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        let seen = |content: &str| {
            std::fs::write(&path, content).unwrap();
            let (task, columns) = seen_in(&path).unwrap();
            (task, [columns.text, columns.pair, columns.label].map(Option::unwrap_or_default))
        };
        let names = ["Review Text".to_owned(), String::new(), "mood".into()];
        assert_eq!(
            seen("no,mood,Review Text\n1,up,a good film\n2,down,a bad one\n3,up,so so\n4,up,ok\n"),
            (Task::Classify, names)
        );
        let names = ["text_a", "text_b", "score"].map(str::to_owned);
        assert_eq!(seen("text_a,text_b,score\na,b,0.5\nc,d,1.5\n"), (Task::Regress, names));
        assert!(seen_in(&folder.path().join("absent.csv")).is_err());
    }

    #[test]
    fn without_data_or_with_none_that_serves() {
        let text = draft(None, None).unwrap();
        assert!(Recipe::parse(&text, "draft", &[]).unwrap().check_train("draft").is_ok(), "{text}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        std::fs::write(&path, "text,other\na,b\nc,d\n").unwrap();
        let error = draft(Some(&path), None).unwrap_err().to_string();
        assert!(error.starts_with("expected a column with labels, found text, other"), "{error}");
        assert!(draft(Some(&folder.path().join("absent.csv")), None).is_err());
        assert!(draft(None, Some("./absent")).is_err());
    }
}
