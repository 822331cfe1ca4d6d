//! From files to ragged batches: read examples, resolve their labels, tokenise, draw batches.

pub mod batch;
mod columns;
mod fingerprint;
pub mod glue;
pub mod labels;
pub mod parquet;
mod quietly;
pub mod shuffle;
pub mod table;
pub mod text_to_text;
pub mod tokenise;

pub use batch::{Batch, BatchBy, Sampler, collate, places};
pub use fingerprint::Fingerprint;
pub use labels::{LabelMap, Labels};
pub use text_to_text::{Answers, Wording};
pub use tokenise::{TokenisedSet, Tokeniser};

use crate::tasks::Task;
use colrow_models::files;
use colrow_tensor::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// One text or pair of texts, as it stands in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The text, or the first text of a pair.
    pub text: String,
    /// The second text of a pair.
    pub pair: Option<String>,
    /// The label without surrounding white space; `None` if it is missing or empty.
    pub label: Option<String>,
    /// Line of the file, or row of a Parquet file, from 1.
    pub line: u64,
}

/// The examples of one file, in file order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examples {
    /// The examples.
    pub rows: Vec<Example>,
    /// The file; empty if they were not read from one.
    pub source: PathBuf,
    /// Lines left out because they have too few or too many fields; only `qqp`, whose published file has some.
    pub skipped: u64,
    /// The columns that were read, if the file has columns.
    pub columns: Option<Names>,
}

/// Names of the columns that are read of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Names {
    /// Column of the text, or of the first of a pair.
    pub text: String,
    /// Column of the second text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<String>,
    /// Column of the label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

impl Examples {
    /// Adds the line of example `i` and the file to `error`.
    pub fn place(&self, error: Error, i: usize) -> Error {
        let unit = if has_extension(&self.source, "parquet") { "row" } else { "line" };
        let error = error.at(format_args!("{unit} {}", self.rows[i].line));
        if self.source.as_os_str().is_empty() { error } else { error.at(self.source.display()) }
    }

    /// What the user should know about the file although it could be read.
    pub fn warning(&self) -> Option<String> {
        (self.skipped > 0).then(|| {
            let file = self.source.display();
            format!("{file}: left out {} lines that do not have the header's number of fields", self.skipped)
        })
    }
}

/// Column names that the recipe gives (`data.text`, `data.pair`, `data.label`); the usual names are found without.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// Column of the text. If it is given, a pair is read only if `pair` is given too.
    pub text: Option<String>,
    /// Column of the second text.
    pub pair: Option<String>,
    /// Column of the label.
    pub label: Option<String>,
    /// Names that are looked for before the usual ones: those of the data that a model was trained on.
    pub known: Option<Names>,
}

/// Which of a folder's files to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// `train.tsv`.
    Train,
    /// `dev.tsv`; `dev_matched.tsv` for MNLI.
    Dev,
    /// `dev_mismatched.tsv` of MNLI.
    DevMismatched,
}

/// What a reader looks for in a file.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Decides the usual column names.
    pub task: Task,
    /// Column names that replace the usual ones.
    pub columns: &'a Columns,
    /// Whether a missing label is an error.
    pub labels_required: bool,
}

/// Reads the examples of a file, or of one split of a folder in GLUE's layout.
///
/// The extension decides the format: `.csv` (RFC 4180), `.tsv` (no quoting, as in GLUE), `.jsonl`, `.ndjson` or `.json`
/// (one object a line), `.parquet`. For a file, `split` is ignored. Blank lines are no examples.
pub fn read(path: &Path, task: Task, columns: &Columns, split: Split, labels_required: bool) -> Result<Examples> {
    let want = Request { task, columns, labels_required };
    let kind = fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::new("no such file or folder").at(path.display()),
        _ => Error::from(e).at(path.display()),
    })?;
    let (mut examples, source) =
        if kind.is_dir() { glue::read(path, split, &want)? } else { (read_file(path, &want)?, path.to_owned()) };
    examples.source = source;
    Ok(examples)
}

/// Reads one file in the format of its extension.
pub(crate) fn read_file(path: &Path, want: &Request) -> Result<Examples> {
    let file = files::open(path).map_err(|e| Error::from(e).at(path.display()))?;
    let is = |names: &[&str]| names.iter().any(|name| has_extension(path, name));
    let read = if is(&["csv"]) {
        table::csv(BufReader::new(file), want)
    } else if is(&["tsv"]) {
        table::tsv(BufReader::new(file), want)
    } else if is(&["jsonl", "ndjson", "json"]) {
        table::jsonl(BufReader::new(file), want)
    } else if is(&["parquet"]) {
        parquet::parquet(file, want)
    } else {
        let found = path.extension().map_or("no extension".into(), |e| format!(".{}", e.to_string_lossy()));
        Err(Error::new(format!("expected a .csv, .tsv, .jsonl, .ndjson, .json or .parquet file, found {found}"))
            .hint("rename or convert the file: the extension decides how it is read"))
    };
    read.map_err(|e| e.at(path.display()))
}

fn has_extension(path: &Path, name: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(name))
}

/// Property tests with the same cases in every run.
#[cfg(test)]
pub(crate) fn fixed_cases() -> proptest::prelude::ProptestConfig {
    let rng_seed = proptest::test_runner::RngSeed::Fixed(1);
    proptest::prelude::ProptestConfig { rng_seed, failure_persistence: None, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(name: &str, bytes: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = read(&path, Task::Classify, &Columns::default(), Split::Train, true).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        error
    }

    #[test]
    fn every_error_names_the_file() {
        assert!(error_of("a.csv", b"").contains("empty file"));
        assert!(error_of("a.CSV", b"text,label\n").contains("header only"));
        assert!(error_of("a.tsv", b"text\tlabel\nx\n").contains("in line 2\n  in "));
        assert!(error_of("a.jsonl", b"[]\n").contains("line 1"));
        assert!(error_of("a.parquet", b"PAR1").contains("Parquet"));
        assert!(error_of("a.xlsx", b"x").contains("found .xlsx"));
        assert!(error_of("a", b"x").contains("found no extension"));
    }

    #[test]
    fn missing_path() {
        let path = Path::new("no/such/file.csv");
        let error = read(path, Task::Classify, &Columns::default(), Split::Train, true).unwrap_err().to_string();
        assert_eq!(error, "no such file or folder\n  in no/such/file.csv");
    }

    #[test]
    fn reads_by_extension() {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in [
            ("a.csv", "text,label\n\"a, b\",1\n"),
            ("a.tsv", "text\tlabel\na, b\t1\n"),
            ("a.jsonl", "{\"text\": \"a, b\", \"label\": 1}\n"),
            ("a.JSON", "{\"text\": \"a, b\", \"label\": 1}\n"),
        ] {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            let read = read(&path, Task::Classify, &Columns::default(), Split::Train, true).unwrap();
            assert_eq!((read.rows.len(), read.rows[0].text.as_str()), (1, "a, b"), "{name}");
            assert_eq!(read.rows[0].label.as_deref(), Some("1"));
            assert_eq!(read.source, path);
            assert_eq!(read.warning(), None);
        }
    }
}
