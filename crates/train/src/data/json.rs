//! Reader of JSON: one object a line, or one array of objects.

use super::columns::pick;
use super::lines::Lines;
use super::problems::Problems;
use super::{Examples, Names, Request, Unit};
use colrow_tensor::{Error, Result};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::io::BufRead;

/// Reads JSON lines, or an array of objects as `datasets` and pandas also write: the first character decides.
pub fn json(mut input: impl BufRead, want: &Request) -> Result<Examples> {
    let start = input.fill_buf()?;
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    if text.trim_ascii_start().starts_with(b"[") {
        let mark = start.len() - text.len();
        input.consume(mark);
        array(input, want)
    } else {
        lines(input, want)
    }
}

/// Reads one JSON object a line; the keys of the first object decide which are read.
fn lines(input: impl BufRead, want: &Request) -> Result<Examples> {
    let mut problems = Problems::default();
    let mut lines = Lines::new(input);
    let mut rows = Rows { want, keys: None, examples: Examples::default() };
    while let Some((number, line)) = lines.next(&mut problems)? {
        if line.trim().is_empty() {
            continue;
        }
        let hint = "write one JSON object a line, or one array of objects";
        let row = match serde_json::from_str(line) {
            Ok(Cell::Row(row)) => rows.push(row, (number, number - 1)),
            Ok(other) => Err(Error::new(format!("expected a JSON object, found {}", other.kind())).hint(hint)),
            Err(e) if e.is_eof() && line.trim_end().ends_with(['{', ',']) && rows.keys.is_none() => {
                return Err(Error::new("expected one JSON object a line, found one that goes on in the next")
                    .at(format_args!("line {number}"))
                    .hint("write it without line breaks: json.dumps without indent, pandas to_json(path, orient=\"records\", lines=True)"));
            }
            Err(e) => Err(no_number(line, &e)
                .unwrap_or_else(|| Error::new(format!("expected a JSON object, found bad JSON: {e}")).hint(hint))),
        };
        if let Err(e) = row {
            problems.add(number, e);
            if rows.keys.is_none() {
                // what the columns are called will not be clear in the next line either
                break;
            }
        }
    }
    problems.finish("line")?;
    if rows.examples.rows.is_empty() { Err(Error::new("empty file")) } else { Ok(rows.done()) }
}

/// The error of a number that JSON does not have, and programs write.
fn no_number(line: &str, e: &serde_json::Error) -> Option<Error> {
    let rest = line.get(e.column().checked_sub(1)?..)?;
    let word = ["NaN", "Infinity"].into_iter().find(|word| rest.starts_with(word))?;
    Some(Error::new(format!("expected JSON, which has no {word}")).hint(NO_NUMBER))
}

const NO_NUMBER: &str =
    "leave the row out or write null, as pandas' to_json does; json.dumps(row, allow_nan=False) finds it";

/// Reads one array of objects, holding one of them at a time.
fn array(input: impl BufRead, want: &Request) -> Result<Examples> {
    let examples = Examples { unit: Unit::Row, ..Examples::default() };
    let mut elements = Elements { rows: Rows { want, keys: None, examples }, problems: Problems::default() };
    let mut reader = serde_json::Deserializer::from_reader(input);
    let read = reader.deserialize_seq(&mut elements).and_then(|()| reader.end());
    if let (Err(e), true) = (read, elements.problems.is_empty()) {
        let error = Error::new(format!("expected an array of JSON objects, found bad JSON: {e}"));
        // what stands there is gone
        let value = ["expected value", "invalid number"].into_iter().any(|what| e.to_string().starts_with(what));
        return Err(if value {
            error.hint(format!("is it NaN or Infinity, which JSON does not have? Then {NO_NUMBER}"))
        } else {
            error
        });
    }
    elements.problems.finish("row")?;
    let examples = elements.rows.done();
    if examples.rows.is_empty() { Err(Error::new("an array without elements")) } else { Ok(examples) }
}

struct Elements<'a> {
    rows: Rows<'a>,
    problems: Problems,
}

impl<'de> Visitor<'de> for &mut Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an array of JSON objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut row = 0;
        while let Some(cell) = seq.next_element::<Cell>()? {
            row += 1;
            let read = match cell {
                Cell::Row(cells) => self.rows.push(cells, (row, row - 1)),
                other => Err(Error::new(format!("expected a JSON object, found {}", other.kind()))),
            };
            if let Err(e) = read {
                self.problems.add(row, e);
                if self.rows.keys.is_none() {
                    return Err(serde::de::Error::custom("no columns"));
                }
            }
        }
        Ok(())
    }
}

/// Whole numbers from here on are not told apart by a float.
const EXACT: f64 = (1_u64 << 53) as f64;

/// The examples so far, and the keys that are read, found in the first object.
struct Rows<'a> {
    want: &'a Request<'a>,
    keys: Option<Names>,
    examples: Examples,
}

impl Rows<'_> {
    fn done(self) -> Examples {
        Examples { columns: self.keys, ..self.examples }
    }

    fn push(&mut self, mut row: Row, place: (u64, u64)) -> Result<()> {
        let keys = match &self.keys {
            Some(keys) => keys,
            None => {
                let names: Vec<&str> = row.0.iter().map(|(name, _)| name.as_str()).collect();
                let picked = pick(&names, self.want).map_err(|e| row.columnar().unwrap_or(e))?;
                self.keys.insert(picked.names(&names))
            }
        };
        row.once(keys)?;
        let label = keys.label.as_ref().map(|key| row.label(key, self.want)).transpose()?.flatten();
        let pair = keys.pair.as_ref().map(|key| row.string(key)).transpose()?;
        let text = row.string(&keys.text)?;
        self.examples.push(self.want, place, text, pair, label.as_deref())
    }
}

/// A value without what lies inside arrays and inner objects, which no column needs.
enum Cell {
    Text(String),
    Number(serde_json::Number),
    Flag(bool),
    Null,
    Array,
    Row(Row),
}

/// Keys and values of an object, those of inner objects left out.
struct Row(Vec<(String, Cell)>);

impl Row {
    fn get(&self, key: &str) -> Option<&Cell> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, cell)| cell)
    }

    /// Takes the string at `key`.
    fn string(&mut self, key: &str) -> Result<String> {
        match self.0.iter_mut().rev().find(|(name, _)| name == key) {
            // two columns may be one
            Some((_, Cell::Text(text))) => Ok(text.clone()),
            Some((_, other)) => {
                let error = Error::new(format!("key {key:?}: expected a string, found {}", other.kind()));
                Err(self.columnar().unwrap_or(error))
            }
            None => Err(self.lacks(key)),
        }
    }

    /// A label as text; `true` and `false` are 1 and 0.
    fn label(&self, key: &str, want: &Request) -> Result<Option<String>> {
        match self.get(key) {
            Some(Cell::Text(text)) => Ok(Some(text.clone())),
            // JSON's whole numbers beyond 64 bits come as floats
            Some(Cell::Number(number)) if want.counts_digits() && number.as_f64().is_some_and(|x| x.abs() >= EXACT) && number.is_f64() => {
                Err(Error::new(format!("key {key:?}: expected a label, found a number of too many digits to be told from its neighbours: {number}"))
                    .hint("write it as a string, in quotes"))
            }
            Some(Cell::Number(number)) => Ok(Some(number.to_string())),
            Some(Cell::Flag(flag)) => Ok(Some(u8::from(*flag).to_string())),
            Some(Cell::Null) => Ok(None),
            Some(other) => {
                let error = format!("key {key:?}: expected a string or a number, found {}", other.kind());
                Err(self.columnar().unwrap_or(Error::new(error)))
            }
            None if want.labels_required => Err(self.lacks(key)),
            None => Ok(None),
        }
    }

    /// Refuses a key that is read and is there twice.
    fn once(&self, keys: &Names) -> Result<()> {
        for key in [Some(&keys.text), keys.pair.as_ref(), keys.label.as_ref()].into_iter().flatten() {
            if self.0.iter().filter(|(name, _)| name == key).count() > 1 {
                return Err(Error::new(format!("the key {key:?} is there twice, and which is meant cannot be known")));
            }
        }
        Ok(())
    }

    fn lacks(&self, key: &str) -> Error {
        let found: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        Error::new(format!("expected the key {key:?}, found keys: {}", found.join(", ")))
    }

    /// The error of an object that holds the whole table.
    fn columnar(&self) -> Option<Error> {
        let whole = |cell: &Cell| matches!(cell, Cell::Row(_) | Cell::Array);
        if self.0.is_empty() || !self.0.iter().all(|(_, cell)| whole(cell)) {
            return None;
        }
        let keys: Vec<&str> = self.0.iter().take(8).map(|(name, _)| name.as_str()).collect();
        Some(
            Error::new(format!(
                "expected one object an example, found one of whole tables or columns: {}",
                keys.join(", ")
            ))
            .hint("write it by rows: in pandas to_json(path, orient=\"records\", lines=True)"),
        )
    }
}

impl Cell {
    fn kind(&self) -> &'static str {
        match self {
            Cell::Text(_) => "a string",
            Cell::Number(_) => "a number",
            Cell::Flag(_) => "a boolean",
            Cell::Null => "null",
            Cell::Array => "an array",
            Cell::Row(_) => "an object",
        }
    }
}

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Values { inner: false }.deserialize(deserializer)
    }
}

/// Reads a [`Cell`]; an inner one keeps no keys.
struct Values {
    inner: bool,
}

impl<'de> DeserializeSeed<'de> for Values {
    type Value = Cell;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cell, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Values {
    type Value = Cell;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Cell, E> {
        Ok(Cell::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Cell, E> {
        Ok(Cell::Flag(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Cell, E> {
        Ok(Cell::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Cell, E> {
        Ok(Cell::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Cell, E> {
        Ok(serde_json::Number::from_f64(number).map_or(Cell::Null, Cell::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Cell, E> {
        Ok(Cell::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Cell, E> {
        Ok(Cell::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Cell, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Cell::Array)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Cell, A::Error> {
        let mut row = Row(Vec::new());
        if self.inner {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        } else {
            while let Some(key) = map.next_key()? {
                row.0.push((key, map.next_value_seed(Values { inner: true })?));
            }
        }
        Ok(Cell::Row(row))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Columns;
    use super::*;
    use crate::tasks::Task;

    const COLUMNS: Columns = Columns { text: None, pair: None, label: None, known: None };

    fn read(text: &str, labels_required: bool) -> Result<Examples> {
        json(text.as_bytes(), &Request { task: Task::Classify, columns: &COLUMNS, labels_required })
    }

    fn message(text: &str) -> String {
        read(text, true).unwrap_err().to_string()
    }

    fn rows(text: &str) -> Vec<(String, Option<String>, u64, u64)> {
        read(text, false).unwrap().rows.into_iter().map(|e| (e.text, e.label, e.line, e.row)).collect()
    }

    fn row(text: &str, label: &str, line: u64, row: u64) -> (String, Option<String>, u64, u64) {
        (text.into(), (!label.is_empty()).then(|| label.into()), line, row)
    }

    #[test]
    fn json_lines() {
        let file = "\u{feff}{\"label\": true, \"text\": \"a\\n\"}\n\n{\"text\": \"b\", \"label\": 1.0, \"x\": [{}]}\n";
        assert_eq!(rows(file), [row("a\n", "1", 1, 0), row("b", "1.0", 3, 2)]);
        assert_eq!(rows("{\"text\":\"a\",\"label\":0}\n{\"text\":\"b\"}"), [row("a", "0", 1, 0), row("b", "", 2, 1)]);
        assert_eq!(
            rows("{\"text\":\"a\",\"label\":18446744073709551615}")[0].1.as_deref(),
            Some("18446744073709551615")
        );
    }

    #[test]
    fn an_array_of_objects() {
        let file = "\u{feff} [\n {\"text\": \"a\", \"label\": 0.1},\n {\"label\": null, \"text\": \"b\"}]\n";
        assert_eq!(rows(file), [row("a", "0.1", 1, 0), row("b", "", 2, 1)]);
        assert_eq!(read(file, false).unwrap().unit, Unit::Row);
        assert_eq!(message(file), "the label is missing\n  in row 2");
        assert_eq!(message("[]"), "an array without elements");
        assert!(message("[1]").contains("expected a JSON object, found a number\n  in row 1"));
        assert!(message("[{\"text\":\"a\",\"label\":0}").contains("bad JSON: EOF"));
        assert!(message("[{\"text\":\"a\",\"label\":0}] x").contains("bad JSON: trailing characters"));
        assert!(message("[{\"text\":\"a\",\"label\":NaN}]").contains("is it NaN or Infinity"));
        assert!(message("[{\"a\":1}]").contains("found columns: a\n  in row 1"));
    }

    #[test]
    fn an_object_of_columns_is_named() {
        for file in [
            "{\"text\":{\"0\":\"a\"},\"label\":{\"0\":1}}",
            "{\"text\":[\"a\"],\"label\":[1]}",
            "{\"data\":[{\"text\":\"a\",\"label\":1}]}",
        ] {
            let message = message(file);
            assert!(
                message.contains("found one of whole tables or columns") && message.contains("lines=True"),
                "{message}"
            );
        }
    }

    #[test]
    fn errors_name_the_line() {
        let after = |line: &str| message(&format!("{{\"text\":\"a\",\"label\":0}}\n{line}\n"));
        for (line, what) in [
            ("[1]", "expected a JSON object, found an array"),
            ("{\"text\":", "found bad JSON"),
            ("{\"text\":\"a\",\"label\":NaN}", "expected JSON, which has no NaN"),
            ("{\"x\":[NaN],\"text\":\"a\",\"label\":1}", "expected JSON, which has no NaN"),
            ("{\"text\":\"NaN\",\"label\":-Infinity}", "which has no Infinity"),
            ("{\"text\":\"NaN\",\"label\":1,}", "found bad JSON"),
            ("{\"text\":\"a\",\"label\":0,\"label\":1}", "the key \"label\" is there twice"),
            ("{\"text\":\"a\",\"label\":18446744073709551616}", "too many digits"),
            ("{\"text\":\"a\"}", "expected the key \"label\", found keys: text"),
            ("{\"label\":0}", "expected the key \"text\", found keys: label"),
            ("{\"text\":1,\"label\":0}", "key \"text\": expected a string, found a number"),
            ("{\"text\":\"a\",\"label\":{}}", "key \"label\": expected a string or a number, found an object"),
            ("{\"text\":\"a\",\"label\":null}", "the label is missing"),
        ] {
            let message = after(line);
            assert!(message.contains(what) && message.contains("in line 2"), "{message}");
        }
        assert!(message("{\"a\":1}").contains("found columns: a\n  in line 1"));
        assert!(message("{\"text\":\"a\",\"text\":\"b\",\"label\":1}").contains("two columns are called \"text\""));
        let pretty = message("{\n  \"text\": \"a\",\n  \"label\": 1\n}\n");
        assert!(
            pretty.contains("found one that goes on in the next\n  in line 1\n  hint: write it without line breaks"),
            "{pretty}"
        );
        assert_eq!(message(""), "empty file");
        assert_eq!(message("\n\n"), "empty file");
    }

    #[test]
    fn errors_come_together() {
        let file = "{\"text\":\"a\",\"label\":0}\nx\n{\"text\":\"a\",\"label\":null}\n{\"text\":2,\"label\":0}\n";
        let message = message(file);
        assert!(message.starts_with("3 problems\n  line 2: expected a JSON object, found bad JSON"), "{message}");
        assert!(message.contains("\n  line 3: the label is missing\n  line 4: key \"text\": expected"), "{message}");
    }

    #[test]
    fn deep_and_wide_values_cost_nothing() {
        let deep = "[".repeat(100_000);
        assert!(message(&format!("{{\"x\":{deep}")).contains("bad JSON: EOF"));
        assert!(message(&deep).contains("bad JSON: EOF"));
        let wide = "0,".repeat(1 << 20);
        assert_eq!(rows(&format!("{{\"x\":[{wide}0],\"text\":\"a\"}}")), [row("a", "", 1, 0)]);
    }
}
