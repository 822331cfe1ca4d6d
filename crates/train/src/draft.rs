//! A first recipe for data and a model that somebody has: what can be seen in the file is filled in, and said.

mod decoders;
mod seen;

use std::fmt::Write as _;
use std::path::Path;

use colrow_models::checkpoint::hub::{self, Needs};
use colrow_models::config::Config;
use colrow_models::family::HeadKind;
use colrow_tensor::Result;
use seen::{Found, look_at};

use crate::data::{self, Columns, Tokeniser};
use crate::folder;
use crate::recipe::Data;
use crate::tasks::Task;

/// Tokens of a word, where no tokenizer can tell.
const TOKENS_A_WORD: f64 = 1.5;

/// Models with rows narrower than this take more than the usual learning rate.
const SMALL: usize = 512;

/// A commented recipe, as TOML, for the data file and the model that are given.
///
/// # Errors
/// Data that cannot be read, with no column of text, or without labels; a model that cannot be found.
pub fn draft(data: Option<&Path>, model: Option<&str>) -> Result<String> {
    let dir = model.map(|model| hub::resolve(model, "main", Needs::ConfigAndTokenizer)).transpose()?;
    let config = dir.as_deref().map(Config::open).transpose()?;
    let family = config.as_ref().map(Config::family);
    if data.is_some_and(decoders::are_conversations) || family.is_some_and(|family| family.head == HeadKind::Causal) {
        return decoders::draft(data, model, family);
    }
    let found = data.map(look_at).transpose()?;
    let task = found.as_ref().map_or(Task::Classify, |found| found.task);
    let labels = found.as_ref().map_or("", |found| found.labels.as_str());
    let mut lines = Lines::new((task, labels), data, (model, "bert-base-uncased"));
    let mut line = |key: String, comment: &str| lines.add(key, comment);
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
    match config.map(|config| config.architecture.hidden_size()) {
        Some(hidden) if hidden < SMALL => {
            line("lr = 1e-4".into(), &format!("for a small model, of hidden size {hidden}; the usual is 2e-5"));
        }
        _ => line("lr = 2e-5".into(), "a small model takes more: 1e-4"),
    }
    line("warmup = 0.1".into(), "share of all steps");
    line("\n[keep]".into(), "");
    line("policy = \"exact\"".into(), "\"lean\" keeps a tenth; colrow plan RECIPE --memory 8GiB says what fits");
    Ok(lines.text())
}

/// A recipe's lines, each with a comment if there is one.
struct Lines(Vec<(String, String)>);

impl Lines {
    /// Those of the task and why it is that, of the run folder, the model or another of its kind, and the files of data.
    fn new((task, why): (Task, &str), data: Option<&Path>, (model, usual): (Option<&str>, &str)) -> Self {
        let mut lines = Self(Vec::new());
        let name = data.and_then(Path::file_stem).map_or("run".into(), |stem| stem.to_string_lossy().into_owned());
        lines.add(format!("task = {}", quoted(task.name())), why);
        lines.add(
            format!("output = {}", quoted(&folder::free(&format!("runs/{name}")))),
            "the run folder: model, checkpoints, metrics, report",
        );
        lines.add("\n[model]".into(), "");
        lines.add(
            format!("path = {}", quoted(model.unwrap_or(usual))),
            if model.is_some() { "" } else { "a folder in Hugging Face layout, or a hub id" },
        );
        lines.add("\n[data]".into(), "");
        let train = data.map_or("train.csv".into(), |data| data.display().to_string());
        lines.add(format!("train = {}", quoted(&train)), "");
        if data.is_some_and(Path::is_dir) {
            return lines;
        }
        match data.and_then(dev_beside) {
            Some(dev) => lines.add(format!("dev = {}", quoted(&dev)), "lies beside it"),
            None => {
                let extension =
                    data.and_then(Path::extension).map_or("csv".into(), |e| e.to_string_lossy().into_owned());
                let dev = quoted(&format!("dev.{extension}"));
                lines.add(format!("# dev = {dev}"), "without it a tenth of the examples is held out");
            }
        }
        lines
    }

    fn add(&mut self, key: String, comment: &str) {
        self.0.push((key, comment.replace(['\n', '\r'], " ")));
    }

    fn text(self) -> String {
        let mut text = String::from(
            "# colrow plan RECIPE says what this needs, colrow train RECIPE runs it; docs/recipe.md has all keys.\n",
        );
        let commented = self.0.iter().filter(|(_, comment)| !comment.is_empty());
        let width = commented.map(|(key, _)| key.len()).max().unwrap_or(0);
        for (key, comment) in self.0 {
            match comment.is_empty() {
                true => writeln!(text, "{key}"),
                false => writeln!(text, "{key:width$}  # {comment}"),
            }
            .expect("a string takes all that is written");
        }
        text.trim_end().to_owned()
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A file of development data with the name of the training data's, in the same folder.
fn dev_beside(train: &Path) -> Option<String> {
    let name = train.file_name()?.to_str().filter(|name| name.contains("train"))?;
    let names = ["dev", "validation", "valid", "val"].map(|dev| train.with_file_name(name.replacen("train", dev, 1)));
    names.into_iter().find(|path| path.is_file()).map(|path| path.display().to_string())
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
    let most = config.as_ref().and_then(|config| config.architecture.longest()).unwrap_or(512);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

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
    fn development_data_beside_the_training_data_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let rows = "text,label\na,x\nb,y\nc,x\nd,y\n";
        for name in ["my_train.csv", "other.csv", "dev.csv"] {
            std::fs::write(path(name), rows).unwrap();
        }
        let dev =
            |train: &str| Recipe::parse(&draft(Some(&path(train)), None).unwrap(), "draft", &[]).unwrap().data.dev;
        assert_eq!((dev("my_train.csv"), dev("other.csv")), (None, None));
        std::fs::write(path("my_validation.csv"), rows).unwrap();
        assert_eq!(dev("my_train.csv"), Some(path("my_validation.csv").display().to_string()));
    }

    /// What is no text is no candidate for it; rows without a label are counted.
    #[test]
    fn numbers_beside_the_text_do_not_matter() {
        let row = |i: usize| {
            let verdict = if i == 3 { "null".to_owned() } else { format!("\"{}\"", ["up", "down"][i % 2]) };
            format!("{{\"id\": {i}, \"review_text\": \"some words {i}\", \"share\": 0.5, \"verdict\": {verdict}}}\n")
        };
        let (text, recipe) = of("a.jsonl", &(0..30).map(row).collect::<String>());
        assert_eq!(recipe.data.text.as_deref(), Some("review_text"));
        assert_eq!(recipe.data.label.as_deref(), Some("verdict"));
        assert!(text.contains("; 1 of 30 rows have none, and have to go before training"), "{text}");
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
