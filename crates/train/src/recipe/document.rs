//! TOML text and `--set` arguments as one tree in which every node knows where it was written.

use std::collections::{BTreeMap, BTreeSet};
use std::num::IntErrorKind;

use colrow_tensor::Error;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// How often a text with broken syntax is read: each time without the lines that were broken before.
const READS: usize = 3;

/// How the parser's messages begin, at the end of the text, when a bracket is never closed.
const UNCLOSED: [&str; 2] = ["unclosed array", "unclosed inline table"];

/// Where something was written. The order is that of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum At {
    /// In no particular place of the file.
    File,
    /// On this line of the file, counted from 1.
    Line(usize),
    /// In the `--set` argument of this index.
    Set(usize),
}

/// A value and its place: that of its key, or for a list's item its own.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) at: At,
    pub(super) value: Value,
}

/// A TOML value; `raw` is how it was written.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Whole {
        value: i128,
        raw: String,
    },
    Number {
        value: f64,
        raw: String,
    },
    Flag(bool),
    /// A date, or a number of too many digits: no key takes one.
    Other {
        raw: String,
    },
    List(Vec<Node>),
    Table(Entries),
}

/// A table's keys in the order in which they were written.
pub(super) type Entries = Vec<(String, Node)>;

/// One thing that is wrong, with its place.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) at: At,
    pub(super) text: String,
}

/// What was read, whole or as far as it could be.
#[derive(Default)]
pub(super) struct Document {
    pub(super) root: Entries,
    pub(super) problems: Vec<Problem>,
    /// Lines with broken syntax: what was read there is a guess.
    pub(super) broken: BTreeSet<usize>,
    /// Where the text stops making sense, if anywhere: at a broken table header, or at the first error
    /// if a bracket is never closed.
    pub(super) lost_from: Option<usize>,
}

impl Document {
    /// Reads `text` and puts `sets` over it.
    pub(super) fn read(text: &str, sets: &[String]) -> Self {
        let lines = Lines::new(text);
        let line_of = |error: &toml::de::Error| lines.of(error.span().map_or(text.len(), |s| s.start));
        let mut doc = Self::default();
        let mut readable = text.to_string();
        // At some errors the parser gives up the rest of a text. Without the broken lines it reads on.
        for _ in 0..READS {
            let (_, errors) = DeTable::parse_recoverable(&readable);
            if errors.is_empty() {
                break;
            }
            let unclosed = errors.iter().any(|e| UNCLOSED.iter().any(|text| e.message().starts_with(text)));
            let mut first_of_line = BTreeMap::new();
            for error in &errors {
                // Further errors of a line mostly follow from the first.
                first_of_line.entry(line_of(error)).or_insert(error.message());
            }
            for (line, message) in first_of_line {
                if doc.lost_from.is_some_and(|lost| line > lost) || !doc.broken.insert(line) {
                    continue;
                }
                doc.problems.push(Problem { at: At::Line(line), text: format!("not TOML: {message}") });
                if unclosed || lines.text(line).trim_start().starts_with('[') {
                    doc.lost_from = Some(line);
                }
            }
            readable = lines.without(&doc.broken);
        }
        let (table, _) = DeTable::parse_recoverable(&readable);
        doc.root = entries(table.get_ref(), &readable, &|offset| At::Line(lines.of(offset)));
        for (i, set) in sets.iter().enumerate() {
            match read_set(set, At::Set(i)) {
                Some(over) => merge(&mut doc.root, over),
                None => doc
                    .problems
                    .push(Problem { at: At::Set(i), text: "expected KEY=VALUE, such as optim.lr=2e-5".into() }),
            }
        }
        doc
    }
}

/// `a.b=v` as a tree. `None` if it has no such shape.
fn read_set(set: &str, at: At) -> Option<Entries> {
    let mut quote = None;
    let split = set.find(|c| {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            _ => {}
        }
        quote.is_none() && c == '='
    })?;
    let (key, value) = (&set[..split], set[split + 1..].trim());
    if key.contains(['\n', '[', '#']) && !key.contains(['"', '\'']) {
        return None;
    }

    let line = format!("{key}=0");
    let table = DeTable::parse(&line).ok()?;
    let mut keys = Vec::new();
    let mut next = Some(table.get_ref());
    while let Some(table) = next {
        let (key, value) = table.iter().next().filter(|_| table.len() == 1)?;
        keys.push(key.get_ref().to_string());
        next = value.get_ref().as_table();
    }

    let value = match DeValue::parse(value) {
        Ok(parsed) => convert(&parsed, value, &|_| at),
        Err(_) => Value::Text(value.into()),
    };
    let last = keys.pop()?;
    let leaf = vec![(last, Node { at, value })];
    Some(keys.into_iter().rev().fold(leaf, |inner, key| vec![(key, Node { at, value: Value::Table(inner) })]))
}

/// Puts `over` over `base`: tables are merged, everything else is replaced.
fn merge(base: &mut Entries, over: Entries) {
    for (key, node) in over {
        match base.iter_mut().find(|(k, _)| *k == key).map(|(_, old)| old) {
            None => base.push((key, node)),
            Some(old) => match (&mut old.value, node.value) {
                (Value::Table(old), Value::Table(new)) => merge(old, new),
                (_, value) => *old = Node { at: node.at, value },
            },
        }
    }
}

/// A parsed table in the order of its text; `place` turns an offset in the text into a place.
fn entries(table: &DeTable<'_>, text: &str, place: &dyn Fn(usize) -> At) -> Entries {
    let mut written: Vec<_> = table.iter().collect();
    written.sort_by_key(|(key, _)| key.span().start);
    let node = |key: usize, value| Node { at: place(key), value: convert(value, text, place) };
    written.into_iter().map(|(k, v)| (k.get_ref().to_string(), node(k.span().start, v))).collect()
}

fn convert(value: &Spanned<DeValue<'_>>, text: &str, place: &dyn Fn(usize) -> At) -> Value {
    let raw = || text.get(value.span()).unwrap_or_default().to_string();
    match value.get_ref() {
        DeValue::String(s) => Value::Text(s.to_string()),
        DeValue::Integer(n) => match i128::from_str_radix(n.as_str(), n.radix()) {
            Ok(value) => Value::Whole { value, raw: raw() },
            // digits that fit no number still say that it is a large one
            Err(e) => match e.kind() {
                IntErrorKind::PosOverflow => Value::Whole { value: i128::MAX, raw: raw() },
                IntErrorKind::NegOverflow => Value::Whole { value: i128::MIN, raw: raw() },
                _ => Value::Other { raw: raw() },
            },
        },
        DeValue::Float(x) => match x.as_str().parse() {
            Ok(value) => Value::Number { value, raw: raw() },
            Err(_) => Value::Other { raw: raw() },
        },
        DeValue::Boolean(flag) => Value::Flag(*flag),
        DeValue::Datetime(_) => Value::Other { raw: raw() },
        DeValue::Array(items) => Value::List(
            items.iter().map(|v| Node { at: place(v.span().start), value: convert(v, text, place) }).collect(),
        ),
        DeValue::Table(table) => Value::Table(entries(table, text, place)),
    }
}

/// One usage error that lists all problems, in the order of their places.
pub(super) fn report(mut problems: Vec<Problem>, file: &str, sets: &[String]) -> Error {
    problems.sort_by_key(|p| p.at);
    let plural = if problems.len() == 1 { "" } else { "s" };
    let mut report = format!("{} problem{plural} in recipe", problems.len());
    for Problem { at, text } in problems {
        report.push_str("\n  ");
        report.push_str(&match at {
            At::File => format!("{file}: {text}"),
            At::Line(line) => format!("{file}:{line}: {text}"),
            At::Set(i) => format!("in --set {}: {text}", sets.get(i).map_or("", String::as_str)),
        });
    }
    Error::usage(report)
}

/// Line numbers of a text.
struct Lines<'a> {
    text: &'a str,
    /// Offset of each line's first byte.
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Self { text, starts }
    }

    /// The line of an offset, counted from 1.
    fn of(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }

    fn text(&self, line: usize) -> &'a str {
        self.text[self.starts[line - 1]..].lines().next().unwrap_or_default()
    }

    /// The text with these lines blanked out; all other lines keep their offsets.
    fn without(&self, lines: &BTreeSet<usize>) -> String {
        let mut text = self.text.as_bytes().to_vec();
        for line in lines {
            let start = self.starts[line - 1];
            text[start..start + self.text(*line).len()].fill(b' ');
        }
        String::from_utf8(text).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nodes of a tree as `path=value@place`.
    fn flat(entries: &Entries, prefix: &str, out: &mut Vec<String>) {
        for (key, node) in entries {
            let value = match &node.value {
                Value::Table(inner) => {
                    flat(inner, &format!("{prefix}{key}/"), out);
                    continue;
                }
                Value::Text(s) => format!("{s:?}"),
                Value::Whole { value, .. } => value.to_string(),
                Value::Number { value, .. } => value.to_string(),
                Value::Flag(flag) => flag.to_string(),
                Value::Other { raw } => raw.clone(),
                Value::List(items) => items.iter().map(|item| format!("{:?},", item.at)).collect(),
            };
            out.push(format!("{prefix}{key}={value}@{:?}", node.at));
        }
    }

    fn read(text: &str, sets: &[&str]) -> Vec<String> {
        let sets: Vec<_> = sets.iter().map(|s| s.to_string()).collect();
        let mut out = Vec::new();
        flat(&Document::read(text, &sets).root, "", &mut out);
        out
    }

    #[test]
    fn nodes_know_their_lines_and_order() {
        let text = "b = 1\r\na.z = 2.5\n\n[t]\ny = true\n\"x.*\" = '''\n2\n'''\na = [1,\n2]";
        let expected = [
            "b=1@Line(1)",
            "a/z=2.5@Line(2)",
            "t/y=true@Line(5)",
            "t/x.*=\"2\\n\"@Line(6)",
            "t/a=Line(9),Line(10),@Line(9)",
        ];
        assert_eq!(read(text, &[]), expected);
    }

    #[test]
    fn sets_merge_over_the_text() {
        let text = "[t]\na = 1\nb = 2";
        assert_eq!(read(text, &["t.b=3", "t.b = 4 "]), ["t/a=1@Line(2)", "t/b=4@Set(1)"]);
        assert_eq!(read(text, &["t={b=5,c=6}"]), ["t/a=1@Line(2)", "t/b=5@Set(0)", "t/c=6@Set(0)"]);
        assert_eq!(read(text, &["t=7"]), ["t=7@Set(0)"]);
        assert_eq!(read("", &["x=a/b=c"]), ["x=\"a/b=c\"@Set(0)"]);
        assert_eq!(read("", &["x="]), ["x=\"\"@Set(0)"]);
        assert_eq!(read("", &["s.'p=*'.\"q\".r=[1]"]), ["s/p=*/q/r=Set(0),@Set(0)"]);
    }

    #[test]
    fn sets_without_key_or_value_are_problems() {
        for set in ["", "x", "=1", "a b=1", "[t]\nx=1", "#=1", "a\nb=1", "'a=1", "a.=1"] {
            let doc = Document::read("", &[set.to_string()]);
            assert_eq!((doc.root.len(), doc.problems.len()), (0, 1), "{set:?}");
            assert_eq!(doc.problems[0].at, At::Set(0));
        }
    }

    #[test]
    fn the_rest_of_a_broken_text_is_read() {
        assert_eq!(read("a = 1\nb\nc = 3\nd = x\ne = 5", &[]), ["a=1@Line(1)", "c=3@Line(3)", "e=5@Line(5)"]);
        let broken_at = |text| Document::read(text, &[]).broken.into_iter().collect::<Vec<_>>();
        assert_eq!(broken_at("a = 1\nb\nc = 3\nd = x\nd = x"), [2, 4, 5]);
        assert_eq!(broken_at("a = [1\nb = 2\nc = 3\nd = x\n"), [2]);
        assert_eq!(broken_at("a = { b = 1\nb = 2\n[c]\nd = x\n"), [2]);
        assert_eq!(broken_at("a = [1,\n"), [1]);
        assert_eq!(broken_at("a = 1\n[b\na = 2\n"), [2]);
    }
}
