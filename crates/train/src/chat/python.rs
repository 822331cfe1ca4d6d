//! What Python's standard library writes, which chat templates rely on: `json.dumps` and `strftime`.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

/// How `json.dumps` is told to write.
#[derive(Clone, Debug, Default)]
pub(super) struct Dumps {
    pub(super) ensure_ascii: bool,
    /// What a level is set in by; without it all is on one line.
    pub(super) indent: Option<String>,
    /// Between items, and between a key and its value, where they are not the usual.
    pub(super) separators: Option<(String, String)>,
    pub(super) sort_keys: bool,
}

impl Dumps {
    /// `value` as Python writes it.
    pub(super) fn text(&self, value: &Value) -> String {
        let sorted;
        let value = if self.sort_keys {
            sorted = sort(value.clone());
            &sorted
        } else {
            value
        };
        let mut bytes = Vec::new();
        let form = PythonJson { how: self, depth: 0, filled: false };
        value.serialize(&mut Serializer::with_formatter(&mut bytes, form)).expect("memory takes all that is written");
        String::from_utf8(bytes).expect("made of text")
    }

    fn item(&self) -> &str {
        match &self.separators {
            Some((item, _)) => item,
            // white space that ends no line
            None if self.indent.is_some() => ",",
            None => ", ",
        }
    }

    fn key(&self) -> &str {
        self.separators.as_ref().map_or(": ", |(_, key)| key)
    }
}

fn sort(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(sort).collect(),
        Value::Object(map) => {
            let mut entries: Vec<_> = map.into_iter().map(|(key, value)| (key, sort(value))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        plain => plain,
    }
}

struct PythonJson<'a> {
    how: &'a Dumps,
    depth: usize,
    /// Whether what was closed last, or is open, has an item.
    filled: bool,
}

impl PythonJson<'_> {
    fn begin<W: ?Sized + io::Write>(&mut self, w: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.filled = false;
        w.write_all(bracket)
    }

    fn end<W: ?Sized + io::Write>(&mut self, w: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.line(w)?;
        }
        self.filled = true;
        w.write_all(bracket)
    }

    fn next<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        if !first {
            w.write_all(self.how.item().as_bytes())?;
        }
        self.filled = true;
        self.line(w)
    }

    fn line<W: ?Sized + io::Write>(&self, w: &mut W) -> io::Result<()> {
        let Some(indent) = &self.how.indent else { return Ok(()) };
        w.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| w.write_all(indent.as_bytes()))
    }
}

impl Formatter for PythonJson<'_> {
    fn begin_array<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.begin(w, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.end(w, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.next(w, first)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.begin(w, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.end(w, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.next(w, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(self.how.key().as_bytes())
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, w: &mut W, x: f64) -> io::Result<()> {
        w.write_all(number(x).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, w: &mut W, text: &str) -> io::Result<()> {
        for c in text.chars() {
            match c {
                c if self.how.ensure_ascii && !(' '..='~').contains(&c) => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        write!(w, "\\u{unit:04x}")?;
                    }
                }
                c => w.write_all(c.encode_utf8(&mut [0; 4]).as_bytes())?,
            }
        }
        Ok(())
    }
}

/// A float as `repr` writes it: the fewest digits that come back, with an exponent outside of 1e-4 to 1e16.
fn number(x: f64) -> String {
    let text = format!("{x:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x == 0.0 || (-4..16).contains(&exponent) {
        let plain = x.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// A moment, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Since 1970-01-01 00:00.
    seconds: u64,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const DAY: u64 = 86_400;

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        Self { seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()) }
    }

    /// The beginning of a day such as `2026-11-28`, from 1970 on.
    pub fn of_day(text: &str) -> Option<Self> {
        let digits = |part: &str, n: usize| part.len() == n && part.bytes().all(|b| b.is_ascii_digit());
        let mut parts = text.split('-');
        let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || !digits(year, 4) || !digits(month, 2) || !digits(day, 2) {
            return None;
        }
        let (year, month, day) = (year.parse().ok()?, month.parse().ok()?, day.parse().ok()?);
        if year < 1970 {
            return None;
        }
        let moment = Self { seconds: DAY * days_to(year, month, day)? };
        (moment.date() == (year, month, day)).then_some(moment)
    }

    /// Year, month from 1, day from 1.
    fn date(self) -> (u64, u64, u64) {
        let mut day = self.seconds / DAY;
        let mut year = 1970;
        while day >= length(year) {
            day -= length(year);
            year += 1;
        }
        let mut month = 1;
        while day >= length_of_month(year, month) {
            day -= length_of_month(year, month);
            month += 1;
        }
        (year, month, day + 1)
    }

    /// It as the day: `2026-11-28`.
    pub fn day(self) -> String {
        self.strftime("%Y-%m-%d")
    }

    /// As C's `strftime` writes it in English; what it does not know stays as it is.
    pub fn strftime(self, format: &str) -> String {
        let (year, month, day) = self.date();
        let (hour, minute, second) = (self.seconds / 3600 % 24, self.seconds / 60 % 60, self.seconds % 60);
        let weekday = DAYS[(self.seconds / DAY % 7) as usize];
        let name = MONTHS[month as usize - 1];
        let half = if hour % 12 == 0 { 12 } else { hour % 12 };
        let mut text = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            let mut kind = chars.next();
            // without the zeros before it
            let bare = kind == Some('-');
            if bare {
                kind = chars.next();
            }
            let two = |n: u64| if bare { n.to_string() } else { format!("{n:02}") };
            text += &match kind {
                Some('Y') => year.to_string(),
                Some('y') => two(year % 100),
                Some('m') => two(month),
                Some('d') => two(day),
                Some('e') => format!("{day:2}"),
                Some('B') => name.to_owned(),
                Some('b' | 'h') => name[..3].to_owned(),
                Some('A') => weekday.to_owned(),
                Some('a') => weekday[..3].to_owned(),
                Some('H') => two(hour),
                Some('I') => two(half),
                Some('M') => two(minute),
                Some('S') => two(second),
                Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
                Some('j') => format!("{:03}", self.seconds / DAY - days_to(year, 1, 1).unwrap_or(0) + 1),
                Some('F') => self.strftime("%Y-%m-%d"),
                Some('T') => self.strftime("%H:%M:%S"),
                Some('D' | 'x') => self.strftime("%m/%d/%y"),
                Some('X') => self.strftime("%H:%M:%S"),
                Some('c') => self.strftime("%a %b %e %H:%M:%S %Y"),
                Some('Z') | Some('z') => String::new(),
                Some('%') => "%".to_owned(),
                Some(other) => format!("%{other}"),
                None => "%".to_owned(),
            };
        }
        text
    }
}

/// Days from 1970 to a date.
fn days_to(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    let years: u64 = (1970..year).map(length).sum();
    Some(years + (1..month).map(|month| length_of_month(year, month)).sum::<u64>() + day - 1)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}

fn length(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn length_of_month(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Python 3.11 prints of the same.
    #[test]
    fn json_is_pythons() {
        let value: Value = serde_json::from_str(
            r#"{"b": "é<&'\"\\\n\u0007😀", "a": [1, 1.0, 1e16, 1.5e-7, 0.0001, -0.0, 123456789.25, true, null], "e": {}, "f": [], "g": [[], {"h": 1}]}"#,
        )
        .unwrap();
        let plain = Dumps::default();
        assert_eq!(
            plain.text(&value),
            r#"{"b": "é<&'\"\\\n\u0007😀", "a": [1, 1.0, 1e+16, 1.5e-07, 0.0001, -0.0, 123456789.25, true, null], "e": {}, "f": [], "g": [[], {"h": 1}]}"#
        );
        let ascii = Dumps { ensure_ascii: true, sort_keys: true, ..Dumps::default() };
        let value: Value = serde_json::from_str(r#"{"b": "é<😀", "a": {"d": 1, "c": 2}}"#).unwrap();
        assert_eq!(ascii.text(&value), r#"{"a": {"c": 2, "d": 1}, "b": "\u00e9<\ud83d\ude00"}"#);
        let indented = Dumps { indent: Some("  ".into()), ..Dumps::default() };
        let value: Value = serde_json::from_str(r#"{"b": "é<", "a": [1, {"c": []}], "d": {}}"#).unwrap();
        assert_eq!(
            indented.text(&value),
            "{\n  \"b\": \"é<\",\n  \"a\": [\n    1,\n    {\n      \"c\": []\n    }\n  ],\n  \"d\": {}\n}"
        );
        let tight = Dumps { separators: Some((",".into(), ":".into())), ..Dumps::default() };
        assert_eq!(tight.text(&value), r#"{"b":"é<","a":[1,{"c":[]}],"d":{}}"#);
    }

    #[test]
    fn days_are_told() {
        let day = Moment::of_day("2026-11-28").unwrap();
        assert_eq!(
            day.strftime("%d %b %Y|%A, %B %-d|%j|%H:%M:%S %I%p|%y-%m|%%|%q%"),
            "28 Nov 2026|Saturday, November 28|332|00:00:00 12AM|26-11|%|%q%"
        );
        let leap = Moment::of_day("2024-02-29").unwrap();
        assert_eq!((leap.day(), leap.seconds), ("2024-02-29".into(), 1_709_164_800));
        assert_eq!(
            Moment { seconds: 1_709_164_800 + 13 * 3600 + 61 }.strftime("%F %T %I %p"),
            "2024-02-29 13:01:01 01 PM"
        );
        assert_eq!(Moment::of_day("1970-01-01").unwrap().strftime("%a"), "Thu");
        for wrong in
            ["2023-02-29", "2024-13-01", "2024-1-1", "24-01-01", "2024-01-00", "1969-12-31", "2024-01-01-01", ""]
        {
            assert_eq!(Moment::of_day(wrong), None, "{wrong}");
        }
        assert!(Moment::now().seconds > 1_700_000_000);
    }
}
