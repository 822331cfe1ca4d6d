//! Readers of CSV and TSV: any bytes give examples or an error that names the line.

use super::fields::{FieldReader, Fields, SEPARATORS, other_separator};
use super::lines::Lines;
use super::problems::Problems;
use super::record::{Cell, Reading, Records};
use super::{Examples, Unit};
use crate::tasks::Task;
use colrow_tensor::{Error, Result};
use std::io::{BufRead, Seek};

/// Reads comma-separated values with a header line, quoted as in RFC 4180. A line break inside quotes becomes `\n`.
pub fn csv(input: impl BufRead, reading: &dyn Reading) -> Result<Examples> {
    separated(FieldReader::new(input, ',', true), reading)?.finish(HEADER_ONLY)
}

/// Reads tab-separated values with a header line, quoted if the whole file was written so: see `quotes_of`.
pub fn tsv(mut input: impl BufRead + Seek, reading: &dyn Reading) -> Result<Examples> {
    let quotes = quotes_of(&mut input)?;
    input.rewind()?;
    let mut records = separated(FieldReader::new(input, '\t', quotes == Quotes::Protect), reading)?;
    if let Quotes::Unclear(fields) = quotes {
        let are = if fields == 1 { "field stands" } else { "fields stand" };
        records.note(format!(
            "{fields} {are} in double quotes, which are read as part of the text; if they are not, put quotes around the header's names too, \
             or write the file as CSV"
        ));
    }
    records.finish(HEADER_ONLY)
}

/// Reads tab-separated values as GLUE's own files have them: a header line, and quotes mean nothing.
pub fn glue_tsv(input: impl BufRead, reading: &dyn Reading) -> Result<Examples> {
    separated(FieldReader::new(input, '\t', false), reading)?.finish(HEADER_ONLY)
}

const HEADER_ONLY: &str = "header only, no examples";

fn separated<'a>(mut input: FieldReader<impl BufRead>, reading: &'a dyn Reading) -> Result<Records<'a>> {
    let mut problems = Problems::default();
    let mut fields = Fields::default();
    input.strict_header = true;
    if !input.next(&mut fields, &mut problems)? || !problems.is_empty() {
        problems.finish("line")?;
        return Err(Error::new("empty file"));
    }
    input.strict_header = false;
    let first = fields.clone();
    let first: Vec<&str> = first.fields().map(str::trim).collect();
    let headerless = headerless(reading.task(), &first).filter(|_| !input.quotes);
    let header = headerless.map_or(first, <[_]>::to_vec);
    let expected = header.len();
    let mut records = Records::new(reading, Unit::Line);
    records
        .header(&header)
        .map_err(|e| not_a_header(&header, input.separator, reading).unwrap_or(e))
        .map_err(|e| e.at(format_args!("line {}", fields.line)))?;

    let skips_ragged = reading.task().spec().ragged && !input.quotes;
    if headerless.is_none() {
        input.row = 0;
    }
    let mut more = headerless.is_some() || input.next(&mut fields, &mut problems)?;
    while more {
        let found = fields.ends.len();
        if found == expected && expected > 1 && fields.fields().map(str::trim).eq(header.iter().copied()) {
            let error =
                Error::new("the header again").hint("were files put together? Leave out all headers but the first");
            problems.add(fields.line, error);
        } else if found == expected {
            let cell = |place: usize| Some(Cell::Text(fields.field(place).to_owned()));
            let cells = records.columns().iter().map(|column| cell(column.place)).collect();
            records.push((fields.line, fields.row), cells).unwrap_or_else(|e| problems.add(fields.line, e));
        } else if skips_ragged {
            records.skip();
        } else {
            let hint = match (input.separator, input.quotes) {
                (',', _) => "a field that holds a comma or a line break must be in double quotes",
                (_, true) => "a field that holds a tab or a line break must be in double quotes",
                _ => "fields are separated by single tabs, and quotes do not protect a tab; use .csv for quoted fields",
            };
            problems.add(fields.line, Error::new(format!("expected {expected} fields, found {found}")).hint(hint));
        }
        more = input.next(&mut fields, &mut problems)?;
    }
    problems.finish("line")?;
    Ok(records)
}

/// The columns of a table whose first line is no header but an example, as that of CoLA.
fn headerless(task: Task, first: &[&str]) -> Option<&'static [&'static str]> {
    let spec = task.spec();
    let columns = spec.headerless.filter(|columns| columns.len() == first.len())?;
    let label = columns.iter().position(|column| spec.label_columns.contains(column))?;
    spec.labels.is_some_and(|labels| labels.contains(&first[label])).then_some(columns)
}

/// What a first line is that does not name the columns: one with other separators, or an example.
pub(crate) fn not_a_header(columns: &[&str], separator: char, reading: &dyn Reading) -> Option<Error> {
    let line = columns.join(&separator.to_string());
    for (other, ..) in SEPARATORS.into_iter().filter(|(other, ..)| *other != separator) {
        let names: Vec<&str> = line.split(other).map(|name| name.trim().trim_matches('"')).collect();
        if names.len() > 1 && (columns.len() == 1 || reading.columns(&names).is_ok()) && !is_example(&names) {
            return other_separator(other, separator);
        }
    }
    let example = || {
        Error::new(format!("expected a header line with the names of the columns, found an example: {}", shown(&line)))
            .hint("write the names above it, for instance \"text\" and \"label\"")
    };
    is_example(columns).then(example)
}

/// Whether a line can hardly be names: a number, nothing at all, or a sentence is among them.
pub(crate) fn is_example(columns: &[&str]) -> bool {
    // pandas leaves the name of its index empty
    let sentence =
        |name: &&str| name.split_whitespace().count() > 5 || name.ends_with(['.', '!', '?']) && name.contains(' ');
    columns.iter().any(|name| name.parse::<f64>().is_ok()) || columns.iter().any(sentence)
}

fn shown(line: &str) -> String {
    match line.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

/// Whether a tab-separated file protects its fields by quotes, as pandas, R and spreadsheets do, or lets them stand for
/// themselves, as GLUE does.
///
/// It does if every quote of the file is where a writer puts one (around a whole field, and twice inside it), all records then have
/// as many fields as the header, and either they do not without quotes, or a quote is there that only such writers write: in the header,
/// or twice inside a field. A text that merely stands in quotes keeps them: writers that quote where they must do not quote it.
fn quotes_of(input: &mut (impl BufRead + Seek)) -> Result<Quotes> {
    let quoted = match by_quotes(input)? {
        Quotes::Unclear(quoted) => quoted,
        clear => return Ok(clear),
    };
    input.rewind()?;
    let mut lines = Lines::new(input);
    let mut fields = None;
    let mut problems = Problems::default();
    while let Some((_, line)) = lines.next(&mut problems)? {
        let found = line.split('\t').count();
        if !line.is_empty() && *fields.get_or_insert(found) != found {
            return Ok(Quotes::Protect);
        }
    }
    Ok(Quotes::Unclear(quoted))
}

/// What the quotes of a tab-separated file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quotes {
    /// There are none, or they stand for themselves.
    Text,
    /// They are around fields.
    Protect,
    /// They are around this many whole fields, and may be either.
    Unclear(u64),
}

/// Reads a tab-separated file by its quotes: `Text` if some quote is none or there are none at all, else whether one cannot be the text's own.
fn by_quotes(input: &mut (impl BufRead + Seek)) -> Result<Quotes> {
    let mut problems = Problems::default();
    let mut reader = FieldReader::new(input, '\t', true);
    reader.strict = true;
    let mut record = Fields::default();
    let (mut fields, mut quoted, mut evidence) = (None, 0, false);
    // what cannot be read is told when it is read
    while reader.next(&mut record, &mut problems).unwrap_or(false) && problems.is_empty() {
        let header = fields.is_none();
        if *fields.get_or_insert(record.ends.len()) != record.ends.len() {
            return Ok(Quotes::Text);
        }
        quoted += record.quoted;
        evidence |= record.quoted > 0 && header || record.doubled;
    }
    Ok(match evidence {
        _ if quoted == 0 || !problems.is_empty() => Quotes::Text,
        true => Quotes::Protect,
        false => Quotes::Unclear(quoted),
    })
}

#[cfg(test)]
mod tests {
    use super::super::lines::LONGEST;
    use super::super::{Columns, json, lines};
    use super::*;
    use crate::objective::LabelledTexts;
    use proptest::prelude::*;
    use std::io::Cursor;

    const COLUMNS: Columns = Columns { text: None, pair: None, label: None, known: None };

    fn request(task: Task) -> LabelledTexts<'static> {
        LabelledTexts { task, columns: &COLUMNS, labels_required: true }
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
        tsv(Cursor::new(text), &request(Task::Classify))
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
    fn tsv_as_programs_write_it() {
        for (file, want) in [
            // pandas, R's defaults, a spreadsheet: one quote written twice, or a header in quotes, or a line break, or a tab
            ("text\tlabel\n\"say \"\"a\"\"\"\t1\nb\t0\n", &["say \"a\"", "b"][..]),
            ("\"text\"\t\"label\"\n\"a\"\t1\n", &["a"]),
            ("text\tlabel\n\"a\nb\"\t1\nc\t0\n", &["a\nb", "c"]),
            ("text\tlabel\n\"a\tb\"\t1\n", &["a\tb"]),
            // GLUE's way: a quote that no writer of quoted fields leaves
            ("text\tlabel\n\"say \"\"a\"\"\"\t1\nb \"c\"\t0\n", &["\"say \"\"a\"\"\"", "b \"c\""]),
            ("text\tlabel\n\"a\t1\nb\t0\n", &["\"a", "b"]),
            ("text\tlabel\n\"a\"\t1\nb\t0\n", &["\"a\"", "b"]),
            // speech that begins in one line and ends in another
            ("label\ttext\ttext2\n1\t\"a\tb\n1\tc\"\td\n", &["\"a", "c\""]),
        ] {
            let read: Vec<_> = read_tsv(file).unwrap().rows.into_iter().map(|e| e.text).collect();
            assert_eq!(read, want, "{file:?}");
            let glues = glue_tsv(file.as_bytes(), &request(Task::Classify));
            assert!(glues.is_err() || glues.unwrap().rows.iter().all(|e| e.text.contains('"') || e.text.len() == 1));
        }
        assert!(message(read_tsv("text\tlabel\n\"a\nb\"\t1\nc\n")).contains("found 1\n  in lines 2, 4\n"));
    }

    #[test]
    fn rows_count_what_is_left_out() {
        let rows = |read: Result<Examples>| read.unwrap().rows.iter().map(|e| (e.line, e.row)).collect::<Vec<_>>();
        assert_eq!(rows(read_csv("\ntext,label\n\na,1\n\"b\n\nc\",1\n\nd,1\n")), [(4, 1), (5, 2), (9, 4)]);
        assert_eq!(rows(read_tsv("text\tlabel\na\t1\n\nb\t1\n")), [(2, 0), (4, 2)]);
        let qqp = "question1\tquestion2\tis_duplicate\na\tb\nc\td\t1\n";
        assert_eq!(rows(tsv(Cursor::new(qqp), &request(Task::Qqp))), [(3, 1)]);
    }

    #[test]
    fn other_separators_and_missing_headers_are_named() {
        for (file, what) in [
            ("text;label\na, b;1\n", "expected columns separated by commas, found semicolons"),
            (
                "\"text\";\"label\"\na;1\n",
                "separated by commas, found semicolons\n  in line 1\n  hint: write it with commas",
            ),
            ("\"text\"|\"label\"\n\"a, b\"|\"1\"\n\"c\"|\"0\"\n", "found vertical bars\n  in line 1"),
            ("\"text\"\t\"label\"\n\"a\"\t\"1\"\n\"b\"\t\"1\"\n", "found tabs\n  in line 1\n  hint: name it .tsv"),
            ("text;label\n\"a, b\";1\n\"c\";0\n", "found semicolons\n  in line 1"),
            ("text,label\n\"a\";1\n\"b\";0\n", "a quoted field, found ';'\n  in lines 2, 3\n"),
            ("id;label;text;note, if any\n", "found semicolons"),
            ("text\tlabel\na\t1\n", "found tabs\n  in line 1\n  hint: name it .tsv"),
            ("text|label\na|1\n", "found vertical bars"),
            (
                "a fine film,1\na bad one,0\n",
                "expected a header line with the names of the columns, found an example: a fine",
            ),
            ("I have never seen a film so long,pos\n", "found an example"),
            ("Good film!,pos\nBad film!,neg\n", "found an example"),
            ("a,b\n1,2\n", "found columns: a, b\n  in line 1"),
            ("\nid,review,sentiment\n", "found columns: id, review, sentiment\n  in line 2"),
        ] {
            let message = message(read_csv(file));
            assert!(message.contains(what), "{file:?}: {message}");
        }
        assert!(message(read_tsv("text,label\na,1\n")).contains("separated by tabs, found commas"));
        assert!(message(read_tsv("a fine film\t1\n")).contains("found an example"));
        assert!(message(read_csv("text,label\ra,1\r")).contains("CR alone"));
    }

    #[test]
    fn errors_come_together() {
        let bad = "a\n".repeat(11);
        let message = message(read_csv(&format!("text,label\nb,\n{bad}c,NaN\n\"d\"e,1\nf,1\n\"g,1\n")));
        assert!(
            message.starts_with(
                "15 problems\n  line 2: the label is missing\n  lines 3, 4, 5, 6, 7 and 6 more: expected 2 fields, found 1\n"
            ),
            "{message}"
        );
        assert!(
            message.contains("  line 14: the label is missing: found \"NaN\"\n  line 15: expected a comma"),
            "{message}"
        );
    }

    #[test]
    fn a_header_in_the_middle_is_named() {
        let message_of = message(read_csv("text,label\na,1\ntext, label\nb,0\n\"text\",\"label\"\n"));
        assert!(
            message_of.starts_with("the header again\n  in lines 3, 5\n  hint: were files put together?"),
            "{message_of}"
        );
        assert!(message(read_tsv("label\ttext\n1\ta\nlabel\ttext\n")).starts_with("the header again\n  in line 3\n"));
        let one = LabelledTexts { labels_required: false, ..request(Task::Classify) };
        assert_eq!(texts(csv(&b"text\na\ntext\n"[..], &one)), [("a".to_owned(), 2), ("text".to_owned(), 3)]);
        assert!(message(read_csv("text,label,text\na,1,b\n")).contains("two columns are called \"text\""));
    }

    #[test]
    fn quotes_that_may_be_the_texts_own_are_told() {
        let notes = |text| read_tsv(text).unwrap().warnings().join("\n");
        let told = notes("text\tlabel\n\"a\"\t1\n\"b\"\t0\n");
        assert!(told.contains("2 fields stand in double quotes, which are read as part of the text"), "{told}");
        for clear in ["\"text\"\tlabel\n\"a\"\t1\n", "text\tlabel\na \"b\"\t1\n", "text\tlabel\na\t1\n"] {
            assert_eq!(notes(clear), "", "{clear}");
        }
    }

    #[test]
    fn what_stands_for_no_label() {
        for none in ["nan", "NaN", "-nan", "<NA>", "NaT", "#N/A", " ", "-1.#IND"] {
            let message = message(read_csv(&format!("text,label\na,1\nb,{none}\n")));
            assert!(message.starts_with("the label is missing") && message.contains("in line 3"), "{message}");
        }
        for some in ["NA", "None", "null", "nana", "0"] {
            assert_eq!(read_csv(&format!("text,label\na,{some}\n")).unwrap().rows[0].label.as_deref(), Some(some));
        }
    }

    #[test]
    fn an_open_quote_does_not_take_the_whole_file() {
        let file = format!("text,label\n\"a,1\n{}", "some more lines of text,1\n".repeat(LONGEST / 20));
        let message = message(read_csv(&file));
        assert_eq!(message, "a record of more than 64 MiB\n  in line 2\n  hint: is a quote not closed?");
    }

    #[test]
    fn nothing_to_read() {
        for read in [read_csv, read_tsv] {
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
            (message(tsv(Cursor::new(b"text\tlabel\na\xff\t1\n"), &classify)), 2),
        ] {
            assert!(message.contains("expected UTF-8, found byte 0xff"), "{message}");
            assert!(message.contains(&format!("in line {line}")), "{message}");
        }
    }

    #[test]
    fn short_lines_are_left_out_for_qqp_only() {
        let file = b"question1\tquestion2\tis_duplicate\na\tb\nc\td\t1\ne\tf\t0\tg\n";
        let read = tsv(Cursor::new(file), &request(Task::Qqp)).unwrap();
        assert_eq!((read.rows.len(), read.rows[0].line, read.skipped), (1, 3, 2));
        let columns = Columns { text: Some("question1".into()), label: Some("is_duplicate".into()), ..COLUMNS };
        let other = LabelledTexts { task: Task::Classify, columns: &columns, labels_required: true };
        assert!(message(tsv(Cursor::new(file), &other)).contains("expected 3 fields, found 2"));
    }

    #[test]
    fn labels_may_be_absent_if_not_required() {
        let want = LabelledTexts { labels_required: false, ..request(Task::Classify) };
        let labels = |read: Result<Examples>| read.unwrap().rows.into_iter().map(|e| e.label).collect::<Vec<_>>();
        assert_eq!(labels(csv(&b"text\na\n"[..], &want)), [None]);
        assert_eq!(labels(csv(&b"text,label\na,\nb,1\n"[..], &want)), [None, Some("1".into())]);
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
                let want = LabelledTexts { labels_required: required, ..request(task) };
                let reads = [
                    csv(&bytes[..], &want),
                    tsv(Cursor::new(&bytes), &want),
                    glue_tsv(&bytes[..], &want),
                    json::json(&bytes[..], &want),
                    lines::text(&bytes[..], &want),
                ];
                for read in reads.into_iter().flatten() {
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
