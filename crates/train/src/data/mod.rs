//! From files to ragged batches: read examples, resolve their labels, tokenise, draw batches.

mod alike;
pub mod batch;
mod bpe_dropout;
pub mod classes;
mod fields;
mod fingerprint;
pub mod glue;
pub mod json;
mod label_map;
mod labels;
mod lengths;
pub mod lines;
pub(crate) mod missing;
mod nested;
mod once;
mod pages;
pub mod parquet;
mod problems;
mod quietly;
pub mod record;
pub mod sampler;
pub mod shuffle;
mod stream;
pub mod table;
mod texts;
pub(crate) mod tokenise;
mod tokenised_set;
pub(crate) mod tokeniser;
mod tokenizer_files;
mod tokenizer_limits;
mod truncation;

pub use batch::Batch;
pub use classes::is_unnamed;
pub use fingerprint::Fingerprint;
pub use label_map::LabelMap;
pub use labels::Labels;
pub use lengths::{Lengths, outermost};
pub use sampler::{BatchBy, Sampler};
pub use tokenised_set::{Targets, TokenisedSet};
pub use tokeniser::Tokeniser;

use colrow_models::files;
use colrow_models::foreign::{SHEET, foreign};
use colrow_tensor::{Error, Result};
use record::{Column, Reading};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Seek};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The path that stands for standard input.
pub const STDIN: &str = "-";

/// One text or pair of texts, as it stands in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Example {
    /// The text, or the first text of a pair.
    pub text: String,
    /// The second text of a pair.
    pub pair: Option<String>,
    /// The label without surrounding white space; `None` if it is missing or empty.
    pub label: Option<String>,
    /// What errors name: the line of the file, or where there are none (Parquet, a JSON array) the row, from 1.
    pub line: u64,
    /// Row of the data, from 0, as it stands in the file: blank rows and those that were left out count, a header does not.
    pub row: u64,
    /// What of the text counts, where the loss is over its tokens.
    pub counted: Option<Box<Counted>>,
}

/// What of a text counts in a loss over its tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// These bytes.
    pub ranges: Vec<Range<usize>>,
    /// Whether the text has all its special tokens; without them the tokenizer adds its own, and the one that ends a text counts.
    pub whole: bool,
}

/// What [`Example::line`] counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// Lines of a text file.
    #[default]
    Line,
    /// Rows of a Parquet file, elements of a JSON array.
    Row,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Unit::Line => "line",
            Unit::Row => "row",
        })
    }
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
    /// What the examples' line numbers count.
    pub unit: Unit,
    /// What the user should know about the file although it could be read, beside what the examples themselves show.
    pub notes: Vec<String>,
    /// Whether the texts are still to be read; see [`Examples::complete`].
    pub(crate) without_texts: bool,
    /// Names by class index, where the file says them beside its integers (Parquet of `datasets`); the labels are then these names.
    pub classes: Vec<String>,
}

impl Examples {
    /// Examples that are not read from a file.
    pub fn new(rows: Vec<Example>) -> Self {
        Self { rows, ..Self::default() }
    }

    /// Examples of the same file.
    pub(crate) fn with_rows(&self, rows: Vec<Example>) -> Self {
        Self {
            rows,
            source: self.source.clone(),
            skipped: self.skipped,
            columns: self.columns.clone(),
            unit: self.unit,
            notes: self.notes.clone(),
            without_texts: self.without_texts,
            classes: self.classes.clone(),
        }
    }

    /// Adds the line of example `i` and the file to `error`.
    pub fn place(&self, error: Error, i: usize) -> Error {
        self.in_source(error.at(self.line(i)))
    }

    /// Where example `i` stands in the file.
    pub(crate) fn line(&self, i: usize) -> String {
        format!("{} {}", self.unit, self.rows[i].line)
    }

    /// Adds the file to `error`.
    pub(crate) fn in_source(&self, error: Error) -> Error {
        if self.source.as_os_str().is_empty() { error } else { error.at(self.source.display()) }
    }

    /// What the user should know about the file although it could be read.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.notes.clone();
        if self.skipped > 0 {
            warnings.push(format!("left out {} lines that do not have the header's number of fields", self.skipped));
        }
        let columns = self.columns.as_ref();
        let name = |column: Option<&String>, usual| column.map_or(usual, |name| format!("column {name:?}"));
        if !self.without_texts {
            let text = name(columns.map(|names| &names.text), "the text".to_owned());
            warnings.extend(self.empty(&text, |e| Some(&e.text)));
            let pair = name(columns.and_then(|names| names.pair.as_ref()), "the second text".to_owned());
            warnings.extend(self.empty(&pair, |e| e.pair.as_ref()));
        }
        let file = self.source.display().to_string();
        if file.is_empty() { warnings } else { warnings.iter().map(|warning| format!("{file}: {warning}")).collect() }
    }

    /// What to tell where some texts are empty.
    fn empty(&self, what: &str, text: impl Fn(&Example) -> Option<&String>) -> Option<String> {
        let empty = |i: &usize| text(&self.rows[*i]).is_some_and(|text| text.trim().is_empty());
        let mut empty = (0..self.rows.len()).filter(empty);
        let first = self.line(empty.next()?);
        let count = 1 + empty.count();
        Some(format!("{what} is empty in {count} of {} examples; the first is in {first}", self.rows.len()))
    }

    /// Reads the texts that [`read_labels`] left out, of these examples alone.
    ///
    /// # Errors
    /// A file that cannot be read any more, or has too much text even so.
    pub fn complete(self, reading: &dyn Reading) -> Result<Examples> {
        if !self.without_texts {
            return Ok(self);
        }
        let path = self.source.clone();
        let rows: Vec<u64> = self.rows.iter().map(|e| e.row).collect();
        let read = parquet::rows(open(&path)?.into_inner(), reading, &rows).map_err(|e| e.at(path.display()))?;
        Ok(Examples { rows: read.rows, without_texts: false, ..self })
    }
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

impl Names {
    /// The role of the text, or of the first of a pair.
    pub const TEXT: &str = "text";
    /// The role of the second text.
    pub const PAIR: &str = "pair";
    /// The role of the label.
    pub const LABEL: &str = "label";

    /// The names of columns that are read, if one is the text.
    pub(crate) fn of(columns: &[Column]) -> Option<Self> {
        let name = |role| columns.iter().find(|column| column.role == role).map(|column| column.name.clone());
        Some(Self { text: name(Self::TEXT)?, pair: name(Self::PAIR), label: name(Self::LABEL) })
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

/// Reads the examples of a file, or of one split of a folder in GLUE's layout.
///
/// The extension decides the format: `.csv` (RFC 4180), `.tsv` (quoted or not, see [`table::tsv`]; in a folder of a GLUE task without
/// quoting), `.jsonl`, `.ndjson` or `.json` (one object a line, or one array), `.parquet`, `.txt` (one text a line). For a file, `split` is
/// ignored. Blank lines are no examples. `-` is standard input.
///
/// # Errors
/// A file that cannot be read; what `reading` refuses, with its place.
pub fn read(path: &Path, reading: &dyn Reading, split: Split) -> Result<Examples> {
    if path == Path::new(STDIN) {
        let source = PathBuf::from("standard input");
        let mut examples = stream::read(io::stdin().lock(), reading).map_err(|e| e.at(source.display()))?;
        examples.source = source;
        return Ok(examples);
    }
    let kind = fs::metadata(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::new("no such file or folder").at(path.display()),
        _ => Error::from(e).at(path.display()),
    })?;
    let (mut examples, source) = if kind.is_dir() {
        glue::read(path, split, reading)?
    } else {
        (read_file(path, reading, false)?, path.to_owned())
    };
    examples.source = source;
    Ok(examples)
}

/// As [`read`], for a training file of which few texts are needed: where the format allows it they are left out until
/// [`Examples::complete`] reads those that are, so that a file may have more text than memory holds.
///
/// # Errors
/// Those of [`read`].
pub fn read_labels(path: &Path, reading: &dyn Reading) -> Result<Examples> {
    if !has_extension(path, "parquet") || !path.is_file() {
        return read(path, reading, Split::Train);
    }
    let mut file = open(path)?;
    if !file.fill_buf()?.starts_with(b"PAR1") {
        return read(path, reading, Split::Train);
    }
    file.rewind()?;
    let examples = parquet::values(file.into_inner(), reading).map_err(|e| e.at(path.display()))?;
    Ok(Examples { source: path.to_owned(), ..examples })
}

/// Opens a file at its beginning.
pub(crate) fn open(path: &Path) -> Result<BufReader<File>> {
    files::open(path).map(BufReader::new).map_err(|e| Error::from(e).at(path.display()))
}

/// Reads one file in the format of its extension; tab-separated ones without quoting if they are `glue`'s own.
pub(crate) fn read_file(path: &Path, reading: &dyn Reading, glue: bool) -> Result<Examples> {
    let file = open(path)?;
    let is = |names: &[&str]| names.iter().any(|name| has_extension(path, name));
    let read = |mut file: BufReader<File>| {
        let head = file.fill_buf()?;
        let meant = is(&["parquet"]) && head.starts_with(b"PAR1");
        if let Some(other) = foreign(head).filter(|_| !meant) {
            return Err(other.instead_of("examples"));
        }
        file.rewind()?;
        if is(&["csv"]) {
            table::csv(file, reading)
        } else if is(&["tsv"]) && glue {
            table::glue_tsv(file, reading)
        } else if is(&["tsv"]) {
            table::tsv(file, reading)
        } else if is(&["jsonl", "ndjson", "json"]) {
            json::json(file, reading)
        } else if is(&["parquet"]) {
            parquet::parquet(file.into_inner(), reading)
        } else if is(&["txt"]) {
            lines::text(file, reading)
        } else {
            let found = path.extension().map_or("no extension".into(), |e| format!(".{}", e.to_string_lossy()));
            let hint = match is(&["xlsx", "xls", "xlsm", "ods"]) {
                true => SHEET,
                false => "rename or convert the file: the extension decides how it is read",
            };
            Err(Error::new(format!(
                "expected a .csv, .tsv, .jsonl, .ndjson, .json, .parquet or .txt file, found {found}"
            ))
            .hint(hint))
        }
    };
    read(file).map_err(|e| e.at(path.display()))
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
    use crate::objective::LabelledTexts;
    use crate::tasks::Task;

    const WANT: LabelledTexts = LabelledTexts { task: Task::Classify, columns: &COLUMNS, labels_required: true };
    const COLUMNS: Columns = Columns { text: None, pair: None, label: None, known: None };

    fn error_of(name: &str, bytes: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = read(&path, &WANT, Split::Train).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        error
    }

    #[test]
    fn every_error_names_the_file() {
        assert!(error_of("a.csv", b"").contains("empty file"));
        assert!(error_of("a.CSV", b"text,label\n").contains("header only"));
        assert!(error_of("a.tsv", b"text\tlabel\nx\n").contains("in line 2\n  in "));
        assert!(error_of("a.jsonl", b"{}\n").contains("line 1"));
        assert!(error_of("a.parquet", b"PAR1").contains("Parquet"));
        assert!(error_of("a.txt", b"a\n").contains("found lines of text alone"));
        assert!(error_of("a.xlsx", b"x").contains("found .xlsx\n"));
        assert!(error_of("a.xls", b"text\tlabel\n").contains("save the sheet as CSV UTF-8; in pandas"));
        assert!(error_of("a", b"x").contains("found no extension"));
    }

    #[test]
    fn missing_path() {
        let path = Path::new("no/such/file.csv");
        let error = read(path, &WANT, Split::Train).unwrap_err().to_string();
        assert_eq!(error, "no such file or folder\n  in no/such/file.csv");
    }

    #[test]
    fn accidents_are_named_whatever_the_extension() {
        const LFS: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
        for name in ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.txt"] {
            assert!(error_of(name, LFS).contains("expected examples, found a Git LFS pointer"), "{name}");
            assert!(error_of(name, b"\xff\xfet\0e\0").contains("found text in UTF-16"), "{name}");
            assert!(error_of(name, b"\x1f\x8b\x08\0").contains("unpack it first"), "{name}");
        }
        assert!(error_of("a.csv", b"PAR1").contains("found a Parquet file\n"));
        for page in [&b"<!doctype html>"[..], b"\n<head>", b"<table border=\"1\">", b"<body>"] {
            assert!(error_of("a.csv", page).contains("found a web page"));
        }
        let mut zip = b"PK\x03\x04\x14\0\x06\0\x08\0".to_vec();
        zip.resize(30, 0);
        for (inside, what) in [
            ("[Content_Types].xml", "an Excel workbook\n"),
            ("xl/workbook.xml", "an Excel workbook"),
            ("a.csv", "a zip archive\n"),
        ] {
            let error = error_of("a.csv", &[&zip, inside.as_bytes(), &[0; 20]].concat());
            assert!(error.contains(what) && (what.starts_with("a zip") || error.contains("pandas")), "{error}");
        }
        assert!(error_of("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1").contains("save the sheet as CSV UTF-8"));
    }

    /// Files of pandas and `datasets`, by tests/golden/make_data.py.
    #[test]
    fn files_of_other_programs_are_read_as_meant_or_refused() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/data");
        let texts =
            ["plain", "says \"yes\"", "\"all of it\"", "two\nlines", "a\ttab", "a, comma; more", " é ", "\"open"];
        let want: Vec<_> = texts.into_iter().zip(["b", "a"].into_iter().cycle()).zip(0..).collect();
        let mut refusals = std::collections::HashMap::from([
            ("lz4.parquet", "found LZ4"),
            ("brotli.parquet", "found Brotli"),
            ("utf16.csv", "found text in UTF-16"),
            ("semicolon.csv", "found semicolons"),
            ("no-header.csv", "found columns: plain, b"),
            ("columns.json", "found one of whole tables or columns: text, label"),
            ("nan.parquet", "the label is missing\n  in row 3"),
            ("nan-value.parquet", "the label is missing: found \"NaN\"\n  in row 3"),
            ("nan.csv", "the label is missing\n  in line 4"),
            ("nan-word.csv", "the label is missing: found \"nan\"\n  in line 4"),
            ("na-word.csv", "the label is missing: found \"NA\"\n  in line 4"),
            ("null.jsonl", "the label is missing\n  in line 3"),
        ]);
        let mut read_as_meant = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let read = read(&path, &WANT, Split::Train);
            // labels are judged together
            let read = read.and_then(|e| LabelMap::of(Task::Classify, &e).map(|map| (e, map)));
            if let Some(refusal) = name.strip_prefix("refused-").and_then(|name| refusals.remove(name)) {
                let message = read.unwrap_err().to_string();
                assert!(message.contains(refusal), "{name}: {message}");
                continue;
            }
            let (read, map) = read.unwrap();
            let found: Vec<_> =
                read.rows.iter().map(|e| ((e.text.as_str(), e.label.as_deref().unwrap()), e.row)).collect();
            assert_eq!(found, want, "{name}");
            let order = if name == "same-classes.parquet" { ["b", "a"] } else { ["a", "b"] };
            assert_eq!(map.names(), order, "{name}");
            read_as_meant += 1;
        }
        assert_eq!((read_as_meant, refusals.len()), (14, 0));
    }

    #[test]
    fn empty_texts_are_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        fs::write(&path, "text,pair,label\na,,1\nb,x,0\nc, ,1\n,y,1\n").unwrap();
        let read = read(&path, &WANT, Split::Train).unwrap();
        let file = path.display();
        assert_eq!(
            read.warnings(),
            [
                format!("{file}: column \"text\" is empty in 1 of 4 examples; the first is in line 5"),
                format!("{file}: column \"pair\" is empty in 2 of 4 examples; the first is in line 2"),
            ]
        );
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
            let read = read(&path, &WANT, Split::Train).unwrap();
            assert_eq!((read.rows.len(), read.rows[0].text.as_str()), (1, "a, b"), "{name}");
            assert_eq!(read.rows[0].label.as_deref(), Some("1"));
            assert_eq!(read.source, path);
            assert_eq!(read.warnings(), [""; 0]);
        }
    }
}
