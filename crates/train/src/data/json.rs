//! Reader of JSON: one object a line, or one array of objects.

use super::lines::Lines;
use super::once::{Once, twice};
use super::problems::Problems;
use super::record::{Cell, Column, Kind, Reading, Records};
use super::{Examples, Unit};
use colrow_tensor::{Error, Result};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::io::BufRead;

/// Reads JSON lines, or an array of objects as `datasets` and pandas also write: the first character decides.
pub fn json(mut input: impl BufRead, reading: &dyn Reading) -> Result<Examples> {
    let start = input.fill_buf()?;
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    if text.trim_ascii_start().starts_with(b"[") {
        let mark = start.len() - text.len();
        input.consume(mark);
        array(input, reading)
    } else {
        lines(input, reading)
    }
}

/// Reads one JSON object a line; the keys of the first object decide which are read.
fn lines(input: impl BufRead, reading: &dyn Reading) -> Result<Examples> {
    let mut problems = Problems::default();
    let mut lines = Lines::new(input);
    let mut records = Records::new(reading, Unit::Line);
    while let Some((number, line)) = lines.next(&mut problems)? {
        if line.trim().is_empty() {
            continue;
        }
        let hint = "write one JSON object a line, or one array of objects";
        let row = match values(line, records.columns()) {
            Ok(Found::Row(row)) if !records.has_header() => header(&mut records, &row).and_then(|()| {
                let row = if nested(records.columns()).next().is_some() { again(line, &records)? } else { row };
                push(&mut records, row, (number, number - 1))
            }),
            Ok(Found::Row(row)) => push(&mut records, row, (number, number - 1)),
            Ok(other) => Err(Error::new(format!("expected a JSON object, found {}", other.kind())).hint(hint)),
            Err(e) if e.is_eof() && line.trim_end().ends_with(['{', ',']) && !records.has_header() => {
                return Err(Error::new("expected one JSON object a line, found one that goes on in the next")
                    .at(format_args!("line {number}"))
                    .hint("write it without line breaks: json.dumps without indent, pandas to_json(path, orient=\"records\", lines=True)"));
            }
            Err(e) => Err(no_number(line, &e).unwrap_or_else(|| bad_line(&e).hint(hint))),
        };
        if let Err(e) = row {
            problems.add(number, e);
            if !records.has_header() {
                // what the columns are called will not be clear in the next line either
                break;
            }
        }
    }
    problems.finish("line")?;
    records.finish("empty file")
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
fn array(input: impl BufRead, reading: &dyn Reading) -> Result<Examples> {
    let mut elements = Elements { records: Records::new(reading, Unit::Row), problems: Problems::default() };
    let mut reader = serde_json::Deserializer::from_reader(input);
    let read = reader.deserialize_seq(&mut elements).and_then(|()| reader.end());
    if let (Err(e), true) = (read, elements.problems.is_empty()) {
        if e.is_data() {
            return Err(Error::new(e.to_string()));
        }
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
    elements.records.finish("an array without elements")
}

struct Elements<'a> {
    records: Records<'a>,
    problems: Problems,
}

impl<'de> Visitor<'de> for &mut Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an array of JSON objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut row = 0;
        loop {
            // the first cannot be read again when it is known what is needed of it
            let whole: Option<Vec<String>> = self
                .records
                .has_header()
                .then(|| nested(self.records.columns()).map(|column| column.name.clone()).collect());
            let whole: Option<Vec<&str>> = whole.as_ref().map(|names| names.iter().map(String::as_str).collect());
            let whole = whole.as_deref().map_or(Whole::All, Whole::Of);
            let Some(found) = seq.next_element_seed(Values { whole, inner: false })? else { break };
            row += 1;
            let read = match found {
                Found::Row(found) if !self.records.has_header() => header(&mut self.records, &found).and_then(|()| {
                    let found = found.with_whole(self.records.columns());
                    push(&mut self.records, found, (row, row - 1))
                }),
                Found::Row(found) => push(&mut self.records, found, (row, row - 1)),
                other => Err(Error::new(format!("expected a JSON object, found {}", other.kind()))),
            };
            if let Err(e) = read {
                self.problems.add(row, e);
                if !self.records.has_header() {
                    return Err(serde::de::Error::custom("no columns"));
                }
            }
        }
        Ok(())
    }
}

/// Whole numbers from here on are not told apart by a float.
const EXACT: f64 = (1_u64 << 53) as f64;

/// Takes the header from the keys of the first object.
fn header(records: &mut Records, first: &Row) -> Result<()> {
    let mut names: Vec<&str> = first.0.iter().map(|(name, _)| name.as_str()).collect();
    let plain = names.len();
    let more: Vec<String> = records.sometimes().iter().map(|&name| name.to_owned()).collect();
    names.extend(more.iter().map(String::as_str).filter(|name| !names[..plain].contains(name)).collect::<Vec<_>>());
    // what is told is what is there
    let read = records.header(&names).or_else(|_| records.header(&names[..plain]));
    // records that are nested themselves look like tables
    read.map_err(|e| if more.is_empty() { first.columnar().unwrap_or(e) } else { e })
}

fn push(records: &mut Records, row: Row, place: (u64, u64)) -> Result<()> {
    row.once(records.columns())?;
    // the last first: of a row with several faults the label's is told
    let cells: Result<Vec<_>> = records.columns().iter().rev().map(|column| row.cell(column)).collect();
    let mut cells = cells?;
    cells.reverse();
    records.push(place, cells)
}

/// The columns of which all is read, whatever lies inside.
fn nested(columns: &[Column]) -> impl Iterator<Item = &Column> {
    columns.iter().filter(|column| matches!(column.kind, Kind::Json { .. }))
}

/// The values of a line's object, with what lies inside where `columns` are nested.
fn values(line: &str, columns: &[Column]) -> serde_json::Result<Found> {
    let whole: Vec<&str> = nested(columns).map(|column| column.name.as_str()).collect();
    let mut reader = serde_json::Deserializer::from_str(line);
    let found = Values { whole: Whole::Of(&whole), inner: false }.deserialize(&mut reader)?;
    reader.end()?;
    Ok(found)
}

/// Reads the first line once more, when it is known what is needed.
fn again(line: &str, records: &Records) -> Result<Row> {
    match values(line, records.columns()) {
        Ok(Found::Row(row)) => Ok(row),
        Ok(other) => Err(Error::new(format!("expected a JSON object, found {}", other.kind()))),
        Err(e) => Err(bad_line(&e)),
    }
}

/// That a line is no JSON, or has a key twice; the number of the line is for the caller to say.
fn bad_line(e: &serde_json::Error) -> Error {
    let what = e.to_string().replace("at line 1 column", "at column");
    Error::new(if e.is_data() { what } else { format!("expected a JSON object, found bad JSON: {what}") })
}

/// A value without what lies inside arrays and inner objects, unless a column needs it.
enum Found {
    Text(String),
    Number(serde_json::Number),
    Flag(bool),
    Null,
    Array,
    Row(Row),
    Whole(serde_json::Value),
}

/// Keys and values of an object, those of inner objects left out.
struct Row(Vec<(String, Found)>);

impl Row {
    fn get(&self, key: &str) -> Option<&Found> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, found)| found)
    }

    /// A row that was read whole, with what lies inside where `columns` are nested.
    fn with_whole(self, columns: &[Column]) -> Self {
        let is_nested = |name: &str| nested(columns).any(|column| column.name == name);
        let reduced = |(name, found): (String, Found)| match found {
            Found::Whole(value) if !is_nested(&name) => (name, Found::of(value)),
            found => (name, found),
        };
        Self(self.0.into_iter().map(reduced).collect())
    }

    /// What stands in a column.
    fn cell(&self, column: &Column) -> Result<Option<Cell>> {
        let key = &column.name;
        match column.kind {
            Kind::Text => self.string(key).map(Cell::Text).map(Some),
            Kind::Value { required, exact } => Ok(self.value(key, required, exact)?.map(Cell::Text)),
            Kind::Json { required } => match self.get(key) {
                Some(Found::Whole(value)) => Ok(Some(Cell::Json(value.clone()))),
                _ if required => Err(self.lacks(key)),
                _ => Ok(None),
            },
        }
    }

    /// The string at `key`.
    fn string(&self, key: &str) -> Result<String> {
        match self.get(key) {
            // two columns may be one
            Some(Found::Text(text)) => Ok(text.clone()),
            Some(other) => {
                let error = Error::new(format!("key {key:?}: expected a string, found {}", other.kind()));
                Err(self.columnar().unwrap_or(error))
            }
            None => Err(self.lacks(key)),
        }
    }

    /// A value as text; `true` and `false` are 1 and 0.
    fn value(&self, key: &str, required: bool, exact: bool) -> Result<Option<String>> {
        match self.get(key) {
            Some(Found::Text(text)) => Ok(Some(text.clone())),
            // JSON's whole numbers beyond 64 bits come as floats
            Some(Found::Number(number)) if exact && number.as_f64().is_some_and(|x| x.abs() >= EXACT) && number.is_f64() => {
                Err(Error::new(format!("key {key:?}: expected a label, found a number of too many digits to be told from its neighbours: {number}"))
                    .hint("write it as a string, in quotes"))
            }
            Some(Found::Number(number)) => Ok(Some(number.to_string())),
            Some(Found::Flag(flag)) => Ok(Some(u8::from(*flag).to_string())),
            Some(Found::Null) => Ok(None),
            Some(other) => {
                let error = format!("key {key:?}: expected a string or a number, found {}", other.kind());
                Err(self.columnar().unwrap_or(Error::new(error)))
            }
            None if required => Err(self.lacks(key)),
            None => Ok(None),
        }
    }

    /// Refuses a key that is read and is there twice.
    fn once(&self, columns: &[Column]) -> Result<()> {
        for key in columns.iter().map(|column| &column.name) {
            if self.0.iter().filter(|(name, _)| name == key).count() > 1 {
                return Err(Error::new(twice(key)));
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
        let whole = |found: &Found| match found {
            Found::Whole(value) => value.is_array() || value.is_object(),
            other => matches!(other, Found::Row(_) | Found::Array),
        };
        if self.0.is_empty() || !self.0.iter().all(|(_, found)| whole(found)) {
            return None;
        }
        let keys: Vec<&str> = self.0.iter().take(8).map(|(name, _)| name.as_str()).collect();
        let hint = match keys.iter().any(|key| ["messages", "conversations"].contains(key)) {
            true => "conversations are data of task = \"chat\"",
            false => "write it by rows: in pandas to_json(path, orient=\"records\", lines=True)",
        };
        Some(
            Error::new(format!(
                "expected one object an example, found one of whole tables or columns: {}",
                keys.join(", ")
            ))
            .hint(hint),
        )
    }
}

impl Found {
    /// A value without what lies inside.
    fn of(value: serde_json::Value) -> Self {
        use serde_json::Value;
        match value {
            Value::Null => Found::Null,
            Value::Bool(flag) => Found::Flag(flag),
            Value::Number(number) => Found::Number(number),
            Value::String(text) => Found::Text(text),
            Value::Array(_) => Found::Array,
            Value::Object(_) => Found::Row(Row(Vec::new())),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Found::Text(_) => "a string",
            Found::Number(_) => "a number",
            Found::Flag(_) => "a boolean",
            Found::Null => "null",
            Found::Array => "an array",
            Found::Row(_) => "an object",
            Found::Whole(value) => Found::of(value.clone()).kind(),
        }
    }
}

/// Reads what is [`Found`]; an inner object keeps no keys.
struct Values<'a> {
    whole: Whole<'a>,
    inner: bool,
}

/// Keys of which all that lies inside is kept.
#[derive(Clone, Copy)]
enum Whole<'a> {
    All,
    Of(&'a [&'a str]),
}

impl<'de> DeserializeSeed<'de> for Values<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Values<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Found, E> {
        Ok(Found::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Found, E> {
        Ok(Found::Flag(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Found, E> {
        Ok(Found::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Found, E> {
        Ok(Found::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Found, E> {
        Ok(serde_json::Number::from_f64(number).map_or(Found::Null, Found::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Found, E> {
        Ok(Found::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Found, E> {
        Ok(Found::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Found, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Found::Array)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut row = Row(Vec::new());
        if self.inner {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        } else {
            while let Some(key) = map.next_key::<String>()? {
                let is_whole = match self.whole {
                    Whole::All => true,
                    Whole::Of(names) => names.contains(&&*key),
                };
                let found = match is_whole {
                    true => Found::Whole(map.next_value_seed(Once)?),
                    false => map.next_value_seed(Values { whole: Whole::Of(&[]), inner: true })?,
                };
                row.0.push((key, found));
            }
        }
        Ok(Found::Row(row))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Columns;
    use super::*;
    use crate::objective::LabelledTexts;
    use crate::tasks::Task;

    const COLUMNS: Columns = Columns { text: None, pair: None, label: None, known: None };

    fn read(text: &str, labels_required: bool) -> Result<Examples> {
        json(text.as_bytes(), &LabelledTexts { task: Task::Classify, columns: &COLUMNS, labels_required })
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
