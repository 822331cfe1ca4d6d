//! Readers of CSV, TSV and JSON lines: any bytes give examples or an error that names the line.

use super::columns::{Pick, pick};
use super::{Examples, Names, Request, glue};
use crate::tasks::Task;
use colrow_tensor::{Error, Result};
use serde_json::{Map, Value};
use std::io::BufRead;

/// Reads comma-separated values with a header line, quoted as in RFC 4180. A line break inside quotes becomes `\n`.
pub fn csv(input: impl BufRead, want: &Request) -> Result<Examples> {
    separated(Records { lines: Lines::new(input), separator: ',', quotes: true }, want)
}

/// Reads tab-separated values with a header line. Quotes mean nothing, as in GLUE's files.
pub fn tsv(input: impl BufRead, want: &Request) -> Result<Examples> {
    separated(Records { lines: Lines::new(input), separator: '\t', quotes: false }, want)
}

/// Reads one JSON object a line; the keys of the first object decide which are read.
pub fn jsonl(input: impl BufRead, want: &Request) -> Result<Examples> {
    let mut lines = Lines::new(input);
    let mut keys = None;
    let mut examples = Examples::default();
    while let Some((number, line)) = lines.next()? {
        if !line.trim().is_empty() {
            object(line, &mut keys, want)
                .and_then(|(text, pair, label)| examples.push(want, number, text, pair, label.as_deref()))
                .map_err(|e| e.at(format_args!("line {number}")))?;
        }
    }
    examples.columns = keys;
    if examples.rows.is_empty() { Err(Error::new("empty file")) } else { Ok(examples) }
}

fn separated(mut records: Records<impl BufRead>, want: &Request) -> Result<Examples> {
    let mut record = Record::default();
    if !records.next(&mut record)? {
        return Err(Error::new("empty file"));
    }
    let first: Vec<&str> = record.fields().map(str::trim).collect();
    let headerless = glue::headerless(want.task, &first).filter(|_| !records.quotes);
    let columns = headerless.map_or(first, <[_]>::to_vec);
    let expected = columns.len();
    let picked = pick(&columns, want).map_err(|e| e.at("line 1"))?;
    let Pick { text, pair, label } = picked;

    let mut examples = Examples { columns: Some(picked.names(&columns)), ..Examples::default() };
    let mut more = headerless.is_some() || records.next(&mut record)?;
    while more {
        let found = record.ends.len();
        if found == expected {
            let pair = pair.map(|i| record.field(i).to_owned());
            examples
                .push(want, record.line, record.field(text).to_owned(), pair, label.map(|i| record.field(i)))
                .map_err(|e| e.at(format_args!("line {}", record.line)))?;
        } else if want.task == Task::Qqp && !records.quotes {
            examples.skipped += 1;
        } else {
            let hint = if records.quotes {
                "a field that holds a comma or a line break must be in double quotes"
            } else {
                "fields are separated by single tabs, and quotes do not protect a tab; use .csv for quoted fields"
            };
            let what = format!("expected {expected} fields, found {found}");
            return Err(Error::new(what).at(format_args!("line {}", record.line)).hint(hint));
        }
        more = records.next(&mut record)?;
    }
    if examples.rows.is_empty() { Err(Error::new("header only, no examples")) } else { Ok(examples) }
}

/// Lines as UTF-8, numbered from 1, without their `\n` or `\r\n` and without a byte order mark.
struct Lines<R> {
    input: R,
    buffer: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    fn new(input: R) -> Self {
        Self { input, buffer: Vec::new(), number: 0 }
    }

    fn next(&mut self) -> Result<Option<(u64, &str)>> {
        self.buffer.clear();
        self.number += 1;
        let at = |e: Error| e.at(format_args!("line {}", self.number));
        if self.input.read_until(b'\n', &mut self.buffer).map_err(|e| at(e.into()))? == 0 {
            return Ok(None);
        }
        let line = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = if self.number == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        let line = str::from_utf8(line).map_err(|e| {
            let byte = line[e.valid_up_to()];
            at(Error::new(format!("expected UTF-8, found byte 0x{byte:02x} at position {}", e.valid_up_to() + 1)))
                .hint("save the file as UTF-8")
        })?;
        Ok(Some((self.number, line)))
    }
}

/// The fields of one record, one after the other in `text`.
#[derive(Default)]
struct Record {
    text: String,
    ends: Vec<usize>,
    line: u64,
}

impl Record {
    fn field(&self, i: usize) -> &str {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.text[start..self.ends[i]]
    }

    fn fields(&self) -> impl Iterator<Item = &str> {
        (0..self.ends.len()).map(|i| self.field(i))
    }
}

/// Records of a file of separated values; blank lines are none.
struct Records<R> {
    lines: Lines<R>,
    separator: char,
    quotes: bool,
}

impl<R: BufRead> Records<R> {
    /// Reads the next record, or returns false at the end.
    fn next(&mut self, record: &mut Record) -> Result<bool> {
        record.text.clear();
        record.ends.clear();
        let mut state = State::Start;
        loop {
            let Some((number, line)) = self.lines.next()? else {
                let error = || Error::new("a quoted field is not closed").at(format_args!("line {}", record.line));
                return if state == State::Quoted { Err(error()) } else { Ok(false) };
            };
            if state == State::Quoted {
                record.text.push('\n');
            } else if line.is_empty() {
                continue;
            } else {
                record.line = number;
            }
            if self.quotes {
                state =
                    unquote(line, self.separator, state, record).map_err(|e| e.at(format_args!("line {number}")))?;
            } else {
                for field in line.split(self.separator) {
                    record.text.push_str(field);
                    record.ends.push(record.text.len());
                }
            }
            if state != State::Quoted {
                return Ok(true);
            }
        }
    }
}

/// Where a reader of quoted fields stands.
#[derive(Clone, Copy, PartialEq)]
enum State {
    /// Before a field.
    Start,
    /// In a field without quotes.
    Plain,
    /// Between the quotes of a field.
    Quoted,
    /// Behind a quote in a quoted field: its end, or the first of two that stand for one.
    Quote,
}

/// Appends the fields of `line`; the returned state is `Quoted` if the last field goes on in the next line.
fn unquote(line: &str, separator: char, mut state: State, record: &mut Record) -> Result<State> {
    for c in line.chars() {
        state = match (state, c) {
            (State::Start, '"') => State::Quoted,
            (State::Quoted, '"') => State::Quote,
            (State::Start | State::Plain | State::Quote, c) if c == separator => {
                record.ends.push(record.text.len());
                State::Start
            }
            (State::Quote, c) if c != '"' => {
                return Err(Error::new(format!("expected a comma behind a quoted field, found {c:?}"))
                    .hint("a double quote inside a quoted field must be written twice"));
            }
            (state, c) => {
                record.text.push(c);
                if state == State::Start {
                    State::Plain
                } else if state == State::Quote {
                    State::Quoted
                } else {
                    state
                }
            }
        };
    }
    if state != State::Quoted {
        record.ends.push(record.text.len());
    }
    Ok(state)
}

/// Text, pair and label of the object in `line`. `keys` are found in the first one.
fn object(line: &str, keys: &mut Option<Names>, want: &Request) -> Result<(String, Option<String>, Option<String>)> {
    let hint = "write one JSON object a line";
    let object = match serde_json::from_str(line) {
        Ok(Value::Object(object)) => object,
        Ok(other) => return Err(Error::new(format!("expected a JSON object, found {}", kind(&other))).hint(hint)),
        Err(e) => return Err(Error::new(format!("expected a JSON object, found bad JSON: {e}")).hint(hint)),
    };
    let keys = match keys {
        Some(keys) => keys,
        None => {
            let names: Vec<&str> = object.keys().map(String::as_str).collect();
            keys.insert(pick(&names, want)?.names(&names))
        }
    };
    let text = string(&object, &keys.text)?;
    let pair = keys.pair.as_ref().map(|key| string(&object, key)).transpose()?;
    let label = keys.label.as_ref().map(|key| label(&object, key, want.labels_required)).transpose()?.flatten();
    Ok((text, pair, label))
}

fn string(object: &Map<String, Value>, key: &str) -> Result<String> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(Error::new(format!("key {key:?}: expected a string, found {}", kind(other)))),
        None => Err(no_key(object, key)),
    }
}

/// A label as text; `true` and `false` are 1 and 0.
fn label(object: &Map<String, Value>, key: &str, required: bool) -> Result<Option<String>> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(Value::Bool(flag)) => Ok(Some(u8::from(*flag).to_string())),
        Some(Value::Null) => Ok(None),
        Some(other) => Err(Error::new(format!("key {key:?}: expected a string or a number, found {}", kind(other)))),
        None if required => Err(no_key(object, key)),
        None => Ok(None),
    }
}

fn no_key(object: &Map<String, Value>, key: &str) -> Error {
    let found: Vec<&str> = object.keys().map(String::as_str).collect();
    Error::new(format!("expected the key {key:?}, found keys: {}", found.join(", ")))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::super::Columns;
    use super::*;
    use proptest::prelude::*;

    const COLUMNS: Columns = Columns { text: None, pair: None, label: None, known: None };

    fn request(task: Task) -> Request<'static> {
        Request { task, columns: &COLUMNS, labels_required: true }
    }

    fn texts(examples: Result<Examples>) -> Vec<(String, u64)> {
        examples.unwrap().rows.into_iter().map(|e| (e.text, e.line)).collect()
    }

    fn message(examples: Result<Examples>) -> String {
        examples.unwrap_err().to_string()
    }

    fn read_csv(text: &str) -> Result<Examples> {
        csv(text.as_bytes(), &request(Task::Classify))
    }

    fn read_tsv(text: &str) -> Result<Examples> {
        tsv(text.as_bytes(), &request(Task::Classify))
    }

    fn read_jsonl(text: &str) -> Result<Examples> {
        jsonl(text.as_bytes(), &request(Task::Classify))
    }

    #[test]
    fn csv_quoting() {
        let file = "\u{feff}\"text\", label \r\n\"a, \"\"b\"\"\nc\", 1 \n\nplain \"q\",0\n\"\",1\nlast,0";
        let want = [("a, \"b\"\nc", 2), ("plain \"q\"", 5), ("", 6), ("last", 7)];
        assert_eq!(texts(read_csv(file)), want.map(|(text, line)| (text.to_owned(), line)));
        let labels: Vec<_> = read_csv(file).unwrap().rows.into_iter().filter_map(|e| e.label).collect();
        assert_eq!(labels, ["1", "0", "1", "0"]);
    }

    #[test]
    fn csv_errors() {
        assert!(
            message(read_csv("text,label\na,1\na, b,1\n")).starts_with("expected 2 fields, found 3\n  in line 3\n")
        );
        assert!(message(read_csv("text,label\na\n")).starts_with("expected 2 fields, found 1\n  in line 2\n"));
        assert_eq!(message(read_csv("text,label\na,1\n\"b,1\nc,1\n")), "a quoted field is not closed\n  in line 3");
        assert!(
            message(read_csv("text,label\n\"a\"b,1\n"))
                .starts_with("expected a comma behind a quoted field, found 'b'")
        );
        assert_eq!(message(read_csv("text,label\na,1\nb,\n")), "the label is missing\n  in line 3");
    }

    #[test]
    fn tsv_has_no_quotes() {
        let file = "text\tlabel\n\"a\t1\r\n\tx\nb \"c\"\t0\n";
        assert_eq!(texts(read_tsv(file)), [("\"a".to_owned(), 2), (String::new(), 3), ("b \"c\"".to_owned(), 4)]);
        assert!(message(read_tsv("text\tlabel\na\n")).starts_with("expected 2 fields, found 1\n  in line 2\n  hint: "));
    }

    #[test]
    fn json_lines() {
        let file = "{\"label\": true, \"text\": \"a\\n\"}\n\n{\"text\": \"b\", \"label\": 1.0, \"x\": []}\n";
        assert_eq!(texts(read_jsonl(file)), [("a\n".to_owned(), 1), ("b".to_owned(), 3)]);
        let labels: Vec<_> = read_jsonl(file).unwrap().rows.into_iter().filter_map(|e| e.label).collect();
        assert_eq!(labels, ["1", "1.0"]);
    }

    #[test]
    fn json_errors() {
        let after = |line: &str| message(read_jsonl(&format!("{{\"text\":\"a\",\"label\":0}}\n{line}\n")));
        for (line, what) in [
            ("[1]", "expected a JSON object, found an array"),
            ("{\"text\":", "found bad JSON"),
            ("{\"text\":\"a\"}", "expected the key \"label\", found keys: text"),
            ("{\"label\":0}", "expected the key \"text\", found keys: label"),
            ("{\"text\":1,\"label\":0}", "key \"text\": expected a string, found a number"),
            ("{\"text\":\"a\",\"label\":{}}", "key \"label\": expected a string or a number, found an object"),
            ("{\"text\":\"a\",\"label\":null}", "the label is missing"),
        ] {
            let message = after(line);
            assert!(message.contains(what) && message.contains("in line 2"), "{message}");
        }
        assert!(message(read_jsonl("{\"a\":1}")).contains("found columns: a\n  in line 1"));
    }

    #[test]
    fn nothing_to_read() {
        for read in [read_csv, read_tsv, read_jsonl] {
            assert_eq!(message(read("")), "empty file");
            assert_eq!(message(read("\n\n")), "empty file");
        }
        assert_eq!(message(read_csv("text,label\n")), "header only, no examples");
        assert_eq!(message(read_tsv("text\tlabel\n\n")), "header only, no examples");
        assert!(message(read_csv("a,b\n1,2\n")).contains("found columns: a, b\n  in line 1"));
    }

    #[test]
    fn not_utf8() {
        let classify = request(Task::Classify);
        for (message, line) in [
            (message(csv(&b"text,label\na,1\n\"x\n\xff\",1\n"[..], &classify)), 4),
            (message(tsv(&b"text\tlabel\na\xff\t1\n"[..], &classify)), 2),
            (message(jsonl(&b"\xff\xfe{}\n"[..], &classify)), 1),
        ] {
            assert!(message.contains("expected UTF-8, found byte 0xff"), "{message}");
            assert!(message.contains(&format!("in line {line}")), "{message}");
        }
    }

    #[test]
    fn short_lines_are_left_out_for_qqp_only() {
        let file = b"question1\tquestion2\tis_duplicate\na\tb\nc\td\t1\ne\tf\t0\tg\n";
        let read = tsv(&file[..], &request(Task::Qqp)).unwrap();
        assert_eq!((read.rows.len(), read.rows[0].line, read.skipped), (1, 3, 2));
        let columns = Columns { text: Some("question1".into()), label: Some("is_duplicate".into()), ..COLUMNS };
        let other = Request { task: Task::Classify, columns: &columns, labels_required: true };
        assert!(message(tsv(&file[..], &other)).contains("expected 3 fields, found 2"));
    }

    #[test]
    fn labels_may_be_absent_if_not_required() {
        let want = Request { labels_required: false, ..request(Task::Classify) };
        let labels = |read: Result<Examples>| read.unwrap().rows.into_iter().map(|e| e.label).collect::<Vec<_>>();
        assert_eq!(labels(csv(&b"text\na\n"[..], &want)), [None]);
        assert_eq!(labels(csv(&b"text,label\na,\nb,1\n"[..], &want)), [None, Some("1".into())]);
        assert_eq!(
            labels(jsonl(&b"{\"text\":\"a\",\"label\":0}\n{\"text\":\"b\"}"[..], &want)),
            [Some("0".into()), None]
        );
    }

    /// Bytes near the formats, so that the search reaches beyond the first error.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..6),
            proptest::sample::select(
                [
                    "text",
                    "label",
                    "sentence",
                    "\t",
                    ",",
                    "\"",
                    "\"\"",
                    "\n",
                    "\r\n",
                    "{",
                    "}",
                    ":",
                    "null",
                    "1",
                    "{\"text\":\"a\",\"label\":1}\n",
                    "text,label\n",
                    "sentence\tlabel\n",
                    "gj04\t1\t\tx\n",
                    "\u{feff}",
                    "é",
                    "question1\tquestion2\tis_duplicate\n",
                ]
                .to_vec()
            )
            .prop_map(|s| s.as_bytes().to_vec()),
        ];
        proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(super::super::fixed_cases())]

        #[test]
        fn any_bytes_are_read_or_refused(bytes in bytes(), required in any::<bool>()) {
            for task in [Task::Classify, Task::Cola, Task::Qqp] {
                let want = Request { labels_required: required, ..request(task) };
                for read in [csv(&bytes[..], &want), tsv(&bytes[..], &want), jsonl(&bytes[..], &want)].into_iter().flatten() {
                    prop_assert!(!read.rows.is_empty());
                    prop_assert!(read.rows.iter().all(|e| e.line >= 1 && e.pair.is_some() == task.needs_pair()
                        && (e.label.is_some() || !required)) || task == Task::Classify);
                }
            }
        }

        #[test]
        fn quoted_csv_reads_back(fields in proptest::collection::vec(("[a-c,\"\n ]{0,8}", 0..3_u8), 1..6)) {
            let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
            let lines: String = fields.iter().map(|(text, label)| format!("{},{label}\n", quoted(text))).collect();
            let read = read_csv(&format!("text,label\n{lines}")).unwrap();
            let back: Vec<_> = read.rows.iter().map(|e| (e.text.clone(), e.label.clone().unwrap().parse().unwrap())).collect();
            prop_assert_eq!(back, fields);
        }
    }
}
