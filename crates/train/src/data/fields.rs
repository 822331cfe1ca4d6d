//! Records of separated values as fields, in quotes or not.

use super::lines::{LONGEST, Lines, too_long};
use super::problems::Problems;
use colrow_tensor::{Error, Result};
use std::io::BufRead;

/// What separates columns, its name, and what to do where another separator is meant.
pub(super) const SEPARATORS: [(char, &str, &str); 4] = [
    (';', "semicolons", "write it with commas: in a spreadsheet choose the separator, in pandas leave out sep=\";\""),
    ('\t', "tabs", "name it .tsv"),
    (',', "commas", "name it .csv"),
    ('|', "vertical bars", "write it with commas"),
];

/// The error of a file with `other` between its columns.
pub(super) fn other_separator(other: char, separator: char) -> Option<Error> {
    let (_, name, hint) = SEPARATORS.into_iter().find(|(c, ..)| *c == other && other != separator)?;
    let usual = if separator == ',' { "commas" } else { "tabs" };
    Some(Error::new(format!("expected columns separated by {usual}, found {name}")).hint(hint))
}

/// The fields of one record, one after the other in `text`.
#[derive(Clone, Default)]
pub(super) struct Fields {
    text: String,
    pub(super) ends: Vec<usize>,
    pub(super) line: u64,
    pub(super) row: u64,
    /// Fields in quotes.
    pub(super) quoted: u64,
    /// Whether a field of one line has a quote written twice.
    pub(super) doubled: bool,
}

impl Fields {
    pub(super) fn field(&self, i: usize) -> &str {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.text[start..self.ends[i]]
    }

    pub(super) fn fields(&self) -> impl Iterator<Item = &str> {
        (0..self.ends.len()).map(|i| self.field(i))
    }

    fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
        (self.quoted, self.doubled) = (0, false);
    }
}

/// Reads the records of a file of separated values; blank lines are none.
pub(super) struct FieldReader<R> {
    lines: Lines<R>,
    pub(super) separator: char,
    pub(super) quotes: bool,
    /// Whether a quote inside a field without quotes is wrong.
    pub(super) strict: bool,
    /// Whether the next record is a header: without one that can be read nothing can.
    pub(super) strict_header: bool,
    /// Rows so far, blank ones too.
    pub(super) row: u64,
}

impl<R: BufRead> FieldReader<R> {
    pub(super) fn new(input: R, separator: char, quotes: bool) -> Self {
        Self { lines: Lines::new(input), separator, quotes, strict: false, strict_header: false, row: 0 }
    }

    /// Reads the next record, or returns false at the end. Lines that are none are added to `problems` and left out.
    pub(super) fn next(&mut self, record: &mut Fields, problems: &mut Problems) -> Result<bool> {
        record.clear();
        let mut state = State::Start;
        loop {
            let Some((number, line)) = self.lines.next(problems)? else {
                if state == State::Quoted {
                    problems.add(record.line, Error::new("a quoted field is not closed"));
                }
                return Ok(false);
            };
            if state == State::Quoted {
                record.text.push('\n');
            } else {
                record.row = self.row;
                self.row += 1;
                record.line = number;
                if line.is_empty() {
                    continue;
                }
            }
            if record.text.len() + line.len() > LONGEST {
                let error = too_long("a record").hint("is a quote not closed?");
                return Err(error.at(format_args!("line {}", record.line)));
            }
            if self.quotes {
                match unquote(line, self.separator, self.strict, state, record) {
                    Ok(next) => state = next,
                    Err((found, e)) if self.strict_header => {
                        let error = other_separator(found, self.separator).unwrap_or(e);
                        return Err(error.at(format_args!("line {number}")));
                    }
                    Err((_, e)) => {
                        problems.add(number, e);
                        record.clear();
                        state = State::Start;
                        continue;
                    }
                }
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

/// Appends the fields of `line`; the returned state is `Quoted` if the last field goes on in the next line. An error comes with the
/// character that should not be there.
fn unquote(
    line: &str,
    separator: char,
    strict: bool,
    mut state: State,
    record: &mut Fields,
) -> Result<State, (char, Error)> {
    let goes_on = state == State::Quoted;
    let mut doubled = false;
    for c in line.chars() {
        state = match (state, c) {
            (State::Start, '"') => {
                record.quoted += 1;
                State::Quoted
            }
            (State::Quoted, '"') => State::Quote,
            (State::Plain, '"') if strict => {
                return Err(('"', Error::new("a quote inside a field that is not in quotes")));
            }
            (State::Start | State::Plain | State::Quote, c) if c == separator => {
                record.ends.push(record.text.len());
                State::Start
            }
            (State::Quote, c) if c != '"' => {
                let expected = if separator == ',' { "a comma" } else { "a tab" };
                let other = SEPARATORS.iter().find(|(other, ..)| *other == c);
                let hint =
                    other.map_or("a double quote inside a quoted field must be written twice", |(.., hint)| hint);
                let what = format!("expected {expected} behind a quoted field, found {c:?}");
                return Err((c, Error::new(what).hint(hint)));
            }
            (state, c) => {
                record.text.push(c);
                if state == State::Start {
                    State::Plain
                } else if state == State::Quote {
                    doubled = true;
                    State::Quoted
                } else {
                    state
                }
            }
        };
    }
    if state != State::Quoted {
        record.ends.push(record.text.len());
        record.doubled |= doubled && !goes_on;
    }
    Ok(state)
}
