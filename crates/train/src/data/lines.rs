//! Lines of foreign text, within bounds, and files that are nothing but lines.

use super::problems::Problems;
use super::record::{Cell, Reading, Records};
use super::{Examples, Unit};
use colrow_tensor::{Error, Result};
use std::io::{BufRead, Read};

/// The most bytes a line, or a record over several lines, may have: far more than any text that a model reads.
pub(crate) const LONGEST: usize = 64 << 20;

/// The error of a line or record of more than [`LONGEST`] bytes.
pub(crate) fn too_long(what: &str) -> Error {
    Error::new(format!("{what} of more than {} MiB", LONGEST >> 20)).hint("is it a text file, one example a line?")
}

/// Lines as UTF-8, numbered from 1, without their `\n` or `\r\n` and without a byte order mark.
pub(crate) struct Lines<R> {
    input: R,
    buffer: Vec<u8>,
    replaced: String,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, buffer: Vec::new(), replaced: String::new(), number: 0 }
    }

    /// The next line and its number, or `None` at the end. What is not UTF-8 is added to `problems`, and replaced so that reading goes on.
    ///
    /// # Errors
    /// What makes going on useless: a failing disk, an endless line, line ends that are none.
    pub(crate) fn next(&mut self, problems: &mut Problems) -> Result<Option<(u64, &str)>> {
        self.buffer.clear();
        self.number += 1;
        let number = self.number;
        let at = |e: Error| e.at(format_args!("line {number}"));
        let most = LONGEST as u64 + 1;
        let read = (&mut self.input).take(most).read_until(b'\n', &mut self.buffer).map_err(|e| at(e.into()))?;
        if read == 0 {
            return Ok(None);
        }
        if read > LONGEST {
            return Err(at(too_long("a line")));
        }
        let line = unmarked(&self.buffer, number);
        if number == 1 && line.contains(&b'\r') {
            return Err(at(Error::new("expected lines that end in LF or CR LF, found some that end in CR alone"))
                .hint("save the file with the line ends of Unix or Windows"));
        }
        let line = match str::from_utf8(line) {
            Ok(line) => line,
            Err(e) => {
                let (byte, place) = (line[e.valid_up_to()], e.valid_up_to() + 1);
                let error = Error::new(format!("expected UTF-8, found byte 0x{byte:02x} at position {place}"));
                problems.add(number, error.hint("save the file as UTF-8"));
                self.replaced = String::from_utf8_lossy(line).into_owned();
                &self.replaced
            }
        };
        Ok(Some((number, line)))
    }
}

/// A line without its end and, in the first, without a byte order mark.
fn unmarked(line: &[u8], number: u64) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if number == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line }
}

/// Reads one text a line; blank lines are none.
pub fn text(input: impl BufRead, reading: &dyn Reading) -> Result<Examples> {
    column(input, reading, None)
}

/// Reads one text a line, of a column that is called `name` if it is called anything.
pub(super) fn column(input: impl BufRead, reading: &dyn Reading, name: Option<&str>) -> Result<Examples> {
    let mut records = Records::new(reading, Unit::Line);
    records.lines(name)?;
    let mut problems = Problems::default();
    let mut lines = Lines::new(input);
    while let Some((line, text)) = lines.next(&mut problems)? {
        if !text.trim().is_empty() {
            let text = Some(Cell::Text(text.to_owned()));
            records.push((line, line - 1), vec![text]).unwrap_or_else(|e| problems.add(line, e));
        }
    }
    problems.finish("line")?;
    records.finish("empty file")
}

#[cfg(test)]
mod tests {
    use super::super::Columns;
    use super::*;
    use crate::objective::LabelledTexts;
    use crate::tasks::Task;
    use std::io::{BufReader, repeat};

    const COLUMNS: Columns = Columns { text: None, pair: None, label: None, known: None };

    fn read(input: impl BufRead) -> Result<Examples> {
        text(input, &LabelledTexts { task: Task::Classify, columns: &COLUMNS, labels_required: false })
    }

    #[test]
    fn each_line_is_a_text() {
        let examples = read(&b"\xef\xbb\xbfa, \"b\"\r\n\n  \n{c}\tlabel\nlast"[..]).unwrap();
        let rows: Vec<_> = examples.rows.iter().map(|e| (e.text.as_str(), e.line, e.row)).collect();
        assert_eq!(rows, [("a, \"b\"", 1, 0), ("{c}\tlabel", 4, 3), ("last", 5, 4)]);
        assert_eq!(read(&b"\n \n"[..]).unwrap_err().to_string(), "empty file");
    }

    #[test]
    fn what_lines_lack_is_said() {
        let refusal = |task, labels_required| {
            text(&b"a\n"[..], &LabelledTexts { task, columns: &COLUMNS, labels_required }).unwrap_err().to_string()
        };
        assert!(refusal(Task::Classify, true).contains("found lines of text alone\n  hint: give a .csv"));
        assert!(refusal(Task::Rte, false).contains("task rte compares two texts"));
    }

    #[test]
    fn line_ends_of_old_macs_are_named() {
        for file in [&b"a\rb\rc"[..], b"text,label\ra,1\rb,0\r"] {
            let message = read(file).unwrap_err().to_string();
            assert!(message.contains("CR alone\n  in line 1\n  hint: "), "{message}");
        }
        assert_eq!(read(&b"a\r"[..]).unwrap().rows.len(), 1);
    }

    #[test]
    fn an_endless_line_ends() {
        let message = read(BufReader::new(repeat(b'a'))).unwrap_err().to_string();
        assert!(message.starts_with("a line of more than 64 MiB\n  in line 1\n"), "{message}");
    }

    #[test]
    fn all_lines_that_are_not_utf8_are_named() {
        let message = read(&b"a\n\xff\nb\nc\xe9\n"[..]).unwrap_err().to_string();
        assert!(message.contains("2 problems"), "{message}");
        assert!(message.contains("line 2: expected UTF-8, found byte 0xff at position 1"), "{message}");
        assert!(message.contains("line 4: expected UTF-8, found byte 0xe9 at position 2"), "{message}");
    }
}
