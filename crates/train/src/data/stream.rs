//! Examples from standard input, whose format only their beginning can tell.

use super::record::Reading;
use super::table::is_example;
use super::{Examples, json, lines, table};
use colrow_models::foreign::{HEAD, foreign};
use colrow_tensor::Result;
use std::io::{BufReader, Cursor, Read};

/// Reads JSON if the input starts with `{` or with an array of objects, a table if its first line is a header, else one text a line.
///
/// A first line of several fields is a header if the columns that are looked for are among them (those that are asked for, those of the
/// training data, the usual names) and the other fields can be names: no number, no sentence, and no white space after the separator,
/// which only prose has. A first line that is the name of the text's column and nothing else is a header too; what follows is then CSV if it
/// can be read as such, else one text a line. Where a column is asked for, there must be a header.
pub(super) fn read(input: impl Read, reading: &dyn Reading) -> Result<Examples> {
    let mut input = BufReader::new(input);
    // as much of the beginning as is there, whatever the size of a pipe's pieces
    let mut head = Vec::new();
    input.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    if let Some(other) = foreign(&head) {
        return Err(other.instead_of("text or JSON"));
    }
    // of a wide table the header is longer
    while head.len() < LONGEST_HEADER && !head.trim_ascii_start().contains(&b'\n') {
        let before = head.len();
        input.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
        if head.len() == before {
            break;
        }
    }
    let text = String::from_utf8_lossy(&head);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let header = text.lines().next().unwrap_or_default();
    let is_json =
        text.starts_with('{') || text.strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with('{'));
    let separator = SEPARATORS.into_iter().find(|&separator| is_header(header, separator, reading));
    let alone = bare(header);
    let is_lone = !header.is_empty() && reading.columns(&[alone]).is_ok();
    let asked = reading.asks_by_name();
    let separator = separator.or_else(|| asked.then_some(if header.contains('\t') { '\t' } else { ',' }));
    let mut all = Cursor::new(head.clone()).chain(input);
    if is_json {
        return json::json(all, reading);
    }
    if !is_lone && separator.is_none() {
        return lines::text(all, reading);
    }
    if !is_lone && separator != Some('\t') {
        // one with semicolons or bars too, of which a reader of CSV says what it is
        return table::csv(all, reading);
    }
    // is read twice
    let mut bytes = Vec::new();
    all.read_to_end(&mut bytes)?;
    if !is_lone {
        return table::tsv(Cursor::new(bytes), reading);
    }
    let table = table::csv(Cursor::new(&bytes), reading);
    let Ok(mut texts) = lines::column(Cursor::new(&bytes), reading, Some(alone)) else { return table };
    if table.is_ok() || texts.rows.len() < 2 {
        return table;
    }
    let header = texts.rows.remove(0);
    texts.rows.iter_mut().for_each(|example| example.row -= header.row + 1);
    Ok(texts)
}

/// A header of more bytes than this is none.
const LONGEST_HEADER: usize = 1 << 16;

const SEPARATORS: [char; 4] = [',', '\t', ';', '|'];

fn bare(field: &str) -> &str {
    let field = field.trim();
    field.strip_prefix('"').and_then(|field| field.strip_suffix('"')).unwrap_or(field)
}

/// Whether a line names columns with this separator between them.
fn is_header(line: &str, separator: char, reading: &dyn Reading) -> bool {
    let fields: Vec<&str> = line.split(separator).collect();
    let names: Vec<&str> = fields.iter().map(|field| bare(field)).collect();
    let is_name = |(field, name): (&&str, &&str)| {
        reading.may_read(name) || !is_example(&[name]) && (field.starts_with('"') || !field.starts_with(' '))
    };
    names.len() > 1 && reading.columns(&names).is_ok() && fields.iter().zip(&names).all(is_name)
}

#[cfg(test)]
mod tests {
    use super::super::{Columns, Names};
    use super::*;
    use crate::objective::LabelledTexts;
    use crate::tasks::Task;
    use std::io;

    /// One byte at a time, as a slow pipe gives them.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = buffer.len().min(1);
            Read::read(&mut self.0, &mut buffer[..n])
        }
    }

    fn with(columns: &Columns, text: &str, labels_required: bool) -> Result<Vec<(String, u64)>> {
        let want = LabelledTexts { task: Task::Classify, columns, labels_required };
        read(Slow(text.as_bytes()), &want).map(|e| e.rows.into_iter().map(|e| (e.text, e.row)).collect())
    }

    fn texts(columns: &Columns, text: &str) -> Vec<String> {
        with(columns, text, false)
            .unwrap_or_else(|e| panic!("{text:?}: {e}"))
            .into_iter()
            .map(|(text, _)| text)
            .collect()
    }

    #[test]
    fn a_stream_says_what_it_is() {
        let read = |text: &str, labels_required| with(&Columns::default(), text, labels_required);
        for (text, want) in [
            ("text,label\n\"a, b\",1\n", ("a, b", 0)),
            ("label\ttext\n1\ta, b\n", ("a, b", 0)),
            ("\n{\"text\": \"a, b\", \"label\": 1}\n", ("a, b", 1)),
            (" [ {\"text\": \"a, b\", \"label\": 1}]", ("a, b", 0)),
        ] {
            assert_eq!(read(text, true).unwrap(), [(want.0.to_owned(), want.1)], "{text}");
        }
        assert_eq!(read("[CLS] a\n\nb", false).unwrap(), [("[CLS] a".into(), 0), ("b".into(), 2)]);
        assert!(read("a\nb\n", true).unwrap_err().to_string().contains("lines of text alone"));
        assert_eq!(read("", false).unwrap_err().to_string(), "empty file");
        assert!(read("\u{1f}\u{8b}", false).is_ok());
        let long = "x".repeat(3 * HEAD);
        assert_eq!(read(&long, false).unwrap(), [(long.clone(), 0)]);
    }

    #[test]
    fn a_header_is_told_from_a_text() {
        let none = Columns::default();
        for first in [
            "text, which is long",
            "a text, a label",
            "label, text.",
            "text, 5",
            "text\tis what it says.",
            "texts",
            "Text",
        ] {
            assert_eq!(texts(&none, &format!("{first}\nb\n")), [first, "b"]);
        }
        for (input, want) in [
            ("id,text,source\n1,\"a, b\",x\n", "a, b"),
            ("\"text\", \"label\"\na,1\n", "a"),
            ("text, label\na,1\n", "a"),
            ("id\ttext\n1\ta, b\n", "a, b"),
            ("Unnamed: 0,text\n0,a\n", "a"),
        ] {
            assert_eq!(texts(&none, input), [want], "{input:?}");
        }
        let wide = format!("{}text\n{}a\n", "column,".repeat(500), "1,".repeat(500));
        assert_eq!(texts(&none, &wide), ["a"]);
    }

    #[test]
    fn one_column_may_have_a_header() {
        let none = Columns::default();
        let named = Names { text: "Review Text".into(), pair: None, label: Some("mood".into()) };
        let trained = Columns { known: Some(named), ..Columns::default() };
        let asked = Columns { text: Some("Review Text".into()), ..Columns::default() };
        assert_eq!(texts(&none, "text\na\nb\n"), ["a", "b"]);
        assert_eq!(texts(&none, "text\n\"a, b\"\n\"c\nd\"\n"), ["a, b", "c\nd"]);
        assert_eq!(
            with(&none, "text\na, b\n\nc \"d\", e\n", false).unwrap(),
            [("a, b".into(), 0), ("c \"d\", e".into(), 2)]
        );
        for columns in [&trained, &asked] {
            assert_eq!(texts(columns, "Review Text\na\n"), ["a"]);
            assert_eq!(texts(columns, "\"Review Text\"\na, b\n"), ["a, b"]);
            assert_eq!(texts(columns, "no,Review Text,Clothing ID\n1,a,7\n"), ["a"]);
        }
        assert_eq!(texts(&none, "Review Text\na\n"), ["Review Text", "a"]);
        assert!(with(&none, "text\n", false).unwrap_err().to_string().contains("header only"));
    }

    #[test]
    fn what_is_asked_for_must_be_there() {
        let asked = Columns { text: Some("review".into()), ..Columns::default() };
        let message = |input| with(&asked, input, false).unwrap_err().to_string();
        assert!(message("a\nb\n").contains("no column \"review\""));
        assert!(message("a\ttext\n1\tb\n").contains("found columns: a, text"));
        let message = with(&Columns::default(), "text;label\na;1\n", false).unwrap_err().to_string();
        assert!(message.contains("separated by commas, found semicolons"), "{message}");
    }
}
