//! Records of named cells: what a reader gives of a file, whatever its columns mean.
//!
//! A [`Reading`] says which columns it needs and makes an example of each record; a reader finds the records of its format, one at a time, and
//! knows neither texts nor labels. Another crate may read what it likes:
//!
//! ```
//! use colrow_tensor::{Error, Result};
//! use colrow_train::data::record::{Column, Kind, Reading, Record};
//! use colrow_train::data::{Example, json};
//!
//! /// The last thing that was said in a conversation.
//! struct LastWord;
//!
//! impl Reading for LastWord {
//!     fn columns(&self, found: &[&str]) -> Result<Vec<Column>> {
//!         let place = found.iter().position(|name| *name == "messages");
//!         let place = place.ok_or_else(|| Error::new("expected a column messages"))?;
//!         Ok(vec![Column::new("messages", found, place, Kind::Json { required: true })])
//!     }
//!
//!     fn example(&self, mut record: Record, _notes: &mut Vec<String>) -> Result<Example> {
//!         let messages = record.json("messages").unwrap_or_default();
//!         let last = messages.as_array().and_then(|all| all.last()?.get("content")?.as_str());
//!         let text = last.ok_or_else(|| Error::new("a conversation without messages"))?.to_owned();
//!         Ok(Example { text, line: record.line, row: record.row, ..Example::default() })
//!     }
//! }
//!
//! let file = r#"{"id": 7, "messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Why not?"}]}
//! {"id": 8, "messages": []}"#;
//! let first = file.lines().next().unwrap_or_default();
//! assert_eq!(json::json(first.as_bytes(), &LastWord)?.rows[0].text, "Why not?");
//! let error = json::json(file.as_bytes(), &LastWord).unwrap_err();
//! assert_eq!(error.to_string(), "a conversation without messages\n  in line 2");
//! # Ok::<(), Error>(())
//! ```

use colrow_tensor::{Error, Result};
use serde_json::Value;

use super::{Example, Examples, Names, Unit};
use crate::tasks::Task;

/// What is read of a file: which columns, and what a record becomes.
///
/// It is known before the labels are, which an objective is made of: an objective of text and label has
/// [`LabelledTexts`](crate::objective::LabelledTexts).
pub trait Reading {
    /// The columns to read of those that a file has.
    ///
    /// # Errors
    /// A column that is needed and not there, or there twice.
    fn columns(&self, found: &[&str]) -> Result<Vec<Column>>;

    /// The example of a record. What the user should know of the file although it can be read is added to `notes`. Where
    /// [`read_labels`](super::read_labels) reads the values first, the texts are not there yet.
    ///
    /// # Errors
    /// A record that is none; a reader adds where it stands.
    fn example(&self, record: Record, notes: &mut Vec<String>) -> Result<Example>;

    /// The column that a file's lines are, where it has no columns.
    ///
    /// # Errors
    /// A text a line does not do.
    fn lines(&self) -> Result<Column> {
        Err(Error::new("expected records of named columns, found lines of text alone").hint(TABLE))
    }

    /// Columns that not every record of a file of JSON has, the first perhaps not either.
    fn sometimes(&self) -> &[&str] {
        &[]
    }

    /// Whether columns are asked for by name, so that there must be a header.
    fn asks_by_name(&self) -> bool {
        false
    }

    /// Whether a column of this name may be read; where nothing but its beginning tells what an input is, such a name speaks for a header.
    fn may_read(&self, _name: &str) -> bool {
        false
    }

    /// The task whose published files these may be, with their layout of folders and their oddities.
    fn task(&self) -> Task {
        Task::Classify
    }
}

/// What to do where columns are needed.
pub(crate) const TABLE: &str = "give a .csv, .tsv, .jsonl or .parquet file with named columns";

/// A column that is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// What the [`Reading`] calls it.
    pub role: &'static str,
    /// What the file calls it.
    pub name: String,
    /// Where it stands among the file's columns.
    pub place: usize,
    /// What its cells hold.
    pub kind: Kind,
}

impl Column {
    /// The column at `place` of those `found`.
    ///
    /// # Panics
    /// If there are no more than `place`.
    pub fn new(role: &'static str, found: &[&str], place: usize, kind: Kind) -> Self {
        Self { role, name: found[place].to_owned(), place, kind }
    }
}

/// What the cells of a column hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A text, of which a file may have more than memory holds.
    Text,
    /// A word, a number or a truth value, in text; there may be none.
    Value {
        /// Whether a record must have the column; what it has there may be empty even so.
        required: bool,
        /// Whether numbers that differ in their last digit are two values.
        exact: bool,
    },
    /// Any JSON, with all that lies inside: of JSON, or of nested columns of Parquet. Of a table it is a text.
    Json {
        /// Whether a record must have something there.
        required: bool,
    },
}

/// What a record has in a column.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Text, or a value in text.
    Text(String),
    /// Any JSON.
    Json(Value),
}

/// One record of a file: its cells in the columns that are read.
#[derive(Debug)]
pub struct Record<'a> {
    columns: &'a [Column],
    /// By column; `None` where there is nothing, or where it is not read yet.
    cells: Vec<Option<Cell>>,
    /// What `line` counts.
    pub unit: Unit,
    /// What errors name, from 1; see [`Example::line`].
    pub line: u64,
    /// Row of the data, from 0; see [`Example::row`].
    pub row: u64,
}

impl Record<'_> {
    /// Takes the text or value in a column.
    pub fn text(&mut self, role: &str) -> Option<String> {
        match self.take(role)? {
            Cell::Text(text) => Some(text),
            Cell::Json(_) => None,
        }
    }

    /// Takes the JSON in a column; a text is a string.
    pub fn json(&mut self, role: &str) -> Option<Value> {
        match self.take(role)? {
            Cell::Json(value) => Some(value),
            Cell::Text(text) => Some(Value::String(text)),
        }
    }

    fn take(&mut self, role: &str) -> Option<Cell> {
        let i = self.columns.iter().position(|column| column.role == role)?;
        self.cells.get_mut(i)?.take()
    }
}

/// A file's records on their way to examples: a reader says the header once, then each record.
pub(crate) struct Records<'a> {
    reading: &'a dyn Reading,
    columns: Option<Vec<Column>>,
    examples: Examples,
}

impl<'a> Records<'a> {
    /// No record yet of a file whose errors count in `unit`.
    pub(crate) fn new(reading: &'a dyn Reading, unit: Unit) -> Self {
        Self { reading, columns: None, examples: Examples { unit, ..Examples::default() } }
    }

    /// Columns that not every record has; see [`Reading::sometimes`].
    pub(crate) fn sometimes(&self) -> &[&str] {
        self.reading.sometimes()
    }

    /// Says what the file's columns are called.
    ///
    /// # Errors
    /// Those of [`Reading::columns`].
    pub(crate) fn header(&mut self, found: &[&str]) -> Result<()> {
        let columns = self.reading.columns(found)?;
        if let Some(column) = columns.iter().find(|column| found.get(column.place) != Some(&&*column.name)) {
            return Err(Error::new(format!("no column {:?} at place {} of the file", column.name, column.place)));
        }
        self.examples.columns = Names::of(&columns);
        self.columns = Some(columns);
        Ok(())
    }

    /// Says that each line is one cell; of a column of this name, if the file says it.
    ///
    /// # Errors
    /// Those of [`Reading::lines`].
    pub(crate) fn lines(&mut self, name: Option<&str>) -> Result<()> {
        let column = self.reading.lines()?;
        let named = name.map(|name| Column { name: name.to_owned(), ..column.clone() });
        self.examples.columns = named.and_then(|column| Names::of(&[column]));
        self.columns = Some(vec![column]);
        Ok(())
    }

    /// The columns to read; none before the header.
    pub(crate) fn columns(&self) -> &[Column] {
        self.columns.as_deref().unwrap_or_default()
    }

    /// Whether the header is known.
    pub(crate) fn has_header(&self) -> bool {
        self.columns.is_some()
    }

    /// Adds the record of a line (or row, from 1) and a row of the data (from 0), its cells as [`Records::columns`].
    ///
    /// # Errors
    /// Those of [`Reading::example`].
    pub(crate) fn push(&mut self, (line, row): (u64, u64), cells: Vec<Option<Cell>>) -> Result<()> {
        let columns = self.columns.as_deref().unwrap_or_default();
        let record = Record { columns, cells, unit: self.examples.unit, line, row };
        let example = self.reading.example(record, &mut self.examples.notes)?;
        self.examples.rows.push(example);
        Ok(())
    }

    /// Counts a line that is left out.
    pub(crate) fn skip(&mut self) {
        self.examples.skipped += 1;
    }

    /// Adds what the user should know of the file.
    pub(crate) fn note(&mut self, note: String) {
        self.examples.notes.push(note);
    }

    /// What was read, or the error `empty` if that is nothing.
    pub(crate) fn finish(self, empty: &str) -> Result<Examples> {
        if self.examples.rows.is_empty() { Err(Error::new(empty)) } else { Ok(self.examples) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::json;
    use super::*;

    /// Takes what it finds: the first column as text, the second as a value.
    struct Both;

    impl Reading for Both {
        fn columns(&self, found: &[&str]) -> Result<Vec<Column>> {
            let value = Kind::Value { required: false, exact: true };
            Ok(vec![Column::new("first", found, 0, Kind::Text), Column::new("second", found, 1, value)])
        }

        fn example(&self, mut record: Record, notes: &mut Vec<String>) -> Result<Example> {
            let text = record.text("first").ok_or_else(|| Error::new("nothing"))?;
            assert_eq!((record.text("first"), record.json("second"), record.text("third")), (None, None, None));
            notes.push(format!("{} {}", record.unit, record.line));
            Ok(Example { text, line: record.line, row: record.row, ..Example::default() })
        }
    }

    #[test]
    fn cells_are_taken_by_their_role() {
        let mut records = Records::new(&Both, Unit::Row);
        assert!(!records.has_header() && records.columns().is_empty());
        records.header(&["a", "b"]).unwrap();
        assert_eq!(records.columns()[1].name, "b");
        records.push((3, 2), vec![Some(Cell::Text("x".into())), None]).unwrap();
        assert_eq!(records.push((4, 3), vec![None, None]).unwrap_err().to_string(), "nothing");
        records.skip();
        let examples = records.finish("empty").unwrap();
        assert_eq!((&*examples.rows[0].text, examples.rows[0].line, examples.rows[0].row), ("x", 3, 2));
        assert_eq!((examples.rows.len(), examples.skipped, &examples.notes[..]), (1, 1, &["row 3".to_owned()][..]));
        assert_eq!(Records::new(&Both, Unit::Line).finish("empty").unwrap_err().to_string(), "empty");
        assert!(Records::new(&Both, Unit::Line).lines(None).unwrap_err().to_string().contains("lines of text alone"));
    }
    /// Takes the first column, whatever it holds.
    struct Whole;

    impl Reading for Whole {
        fn columns(&self, found: &[&str]) -> Result<Vec<Column>> {
            Ok(vec![Column::new("whole", found, 0, Kind::Json { required: true })])
        }

        fn example(&self, mut record: Record, _notes: &mut Vec<String>) -> Result<Example> {
            let text = record.json("whole").map(|value| value.to_string()).unwrap_or_default();
            Ok(Example { text, ..Example::default() })
        }
    }

    #[test]
    fn nested_values_come_whole_from_json() {
        let read = |file: &str| {
            let examples = json::json(file.as_bytes(), &Whole).map_err(|e| e.to_string())?;
            Ok::<Vec<String>, String>(examples.rows.into_iter().map(|e| e.text).collect())
        };
        let values = [r#"[{"role":"user"}]"#, r#"{"a":[null,1]}"#, "3", r#""x""#];
        let lines = values.map(|value| format!("{{\"messages\": {value}, \"other\": [1]}}\n")).concat();
        assert_eq!(read(&lines).unwrap(), values);
        let message = read("{\"messages\": [1]}\n{\"other\": 2}\n").unwrap_err();
        assert_eq!(message, "expected the key \"messages\", found keys: other\n  in line 2");
        let array = format!("[{}]", lines.trim().replace('\n', ","));
        assert_eq!(read(&array).unwrap(), values);
        let message = read("[{\"messages\": [1]}, {\"other\": [2]}]").unwrap_err();
        assert_eq!(message, "expected the key \"messages\", found keys: other\n  in row 2");
        let message = read("[{\"messages\": [1], \"messages\": [2]}]").unwrap_err();
        assert!(message.starts_with("the key \"messages\" is there twice"), "{message}");
        let twice = r#"{"messages": [{"role": "a", "role": "b"}]}"#;
        for (file, place) in [(format!("{{\"messages\": 1}}\n{twice}\n"), "line 2"), (format!("[{twice}]"), "line 1")] {
            let message = read(&file).unwrap_err();
            let expected = "the key \"role\" is there twice, and which is meant cannot be known at";
            assert!(message.starts_with(expected) && message.contains(place), "{message}");
        }
    }
}
