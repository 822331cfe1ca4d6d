//! Reader of Parquet files, within a memory budget: what a file claims and what it decodes to are the word of a stranger.

use super::nested;
use super::pages::Watched;
use super::problems::Problems;
use super::quietly::quietly;
use super::record::{Cell, Column, Kind, Reading, Records};
use super::texts::texts;
use super::{Example, Examples, Unit};
use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use ::parquet::basic::Compression;
use ::parquet::file::metadata::ParquetMetaData;
use ::parquet::file::reader::{ChunkReader, Length};
use arrow_array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow_schema::{DataType, Schema};
use colrow_tensor::{Error, Result};
use std::fmt::Display;

/// What the examples of a small file may take; a larger file may take [`MOST_TIMES`] its size more.
const BUDGET: u64 = 256 << 20;
const MOST_TIMES: u64 = 256;

/// What is decoded for its few examples that are needed may be this many times what the examples may take: that is only time.
const MOST_PASSED: u64 = 64;

/// Rows decoded at once, and the largest page (bytes, decoded) of which so many are: a value is no longer than its page, so that rows
/// times page bound a batch, however the page codes its values. Where pages are larger, rows are decoded one by one.
const ROWS: usize = 64;
const PAGE: u64 = 2 << 20;

/// Reads texts (any string type) and values (string, integer, float or boolean). Where the file says by what names the integers of a
/// column go, as `datasets` writes it, the value is the name.
pub fn parquet<R: ChunkReader + 'static>(input: R, reading: &dyn Reading) -> Result<Examples> {
    within(input, reading, Which::All)
}

/// The examples by their values alone, without texts.
pub(super) fn values<R: ChunkReader + 'static>(input: R, reading: &dyn Reading) -> Result<Examples> {
    within(input, reading, Which::Values)
}

/// The examples of these rows (from 0, rising) alone.
pub(super) fn rows<R: ChunkReader + 'static>(input: R, reading: &dyn Reading, rows: &[u64]) -> Result<Examples> {
    within(input, reading, Which::Rows(rows))
}

/// What is decoded of a file.
#[derive(Clone, Copy, Debug)]
enum Which<'a> {
    All,
    /// All rows, of which texts are left out.
    Values,
    Rows(&'a [u64]),
}

impl<'a> Which<'a> {
    /// The rows that are taken of a group that begins at row `start`, all of them if `None`.
    fn within(self, start: u64, length: u64) -> Option<&'a [u64]> {
        let Which::Rows(rows) = self else { return None };
        let place = |row: u64| rows.partition_point(|&other| other < row);
        Some(&rows[place(start)..place(start.saturating_add(length))])
    }
}

/// The decoder's own checks end in panics for some damaged files.
fn within<R: ChunkReader + 'static>(input: R, reading: &dyn Reading, which: Which) -> Result<Examples> {
    quietly(|| read(input, reading, which)).unwrap_or_else(|| Err(damaged("the file contradicts itself")))
}

fn damaged(why: impl Display) -> Error {
    Error::new(format!("cannot be read as Parquet: {why}"))
}

fn read<R: ChunkReader + 'static>(input: R, reading: &dyn Reading, which: Which) -> Result<Examples> {
    let input = Watched::new(input);
    let metadata = ArrowReaderMetadata::load(&input, ArrowReaderOptions::new()).map_err(damaged)?;
    let schema = metadata.schema();
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let mut records = Records::new(reading, Unit::Row);
    records.header(&names)?;
    for column in records.columns() {
        check_type(column, schema.field(column.place).data_type())?;
    }
    // A projection keeps the file's order of columns.
    let is_kept = |column: &&Column| !matches!(which, Which::Values) || matches!(column.kind, Kind::Value { .. });
    let mut kept: Vec<usize> = records.columns().iter().filter(is_kept).map(|column| column.place).collect();
    kept.sort_unstable();
    kept.dedup();
    let budget = BUDGET.saturating_add(input.len().saturating_mul(MOST_TIMES));
    let columns: Vec<Decoded> = records.columns().to_vec().into_iter().map(|column| {
        let kind = schema.field(column.place).data_type();
        let is_value = matches!(column.kind, Kind::Value { .. });
        let classes = match is_value && kind.is_integer() {
            true => classes(schema, &column.name).unwrap_or_else(|why| {
                records.note(format!("what datasets wrote into the file about the column {:?} cannot be read, and its labels are numbers: {why}", column.name));
                None
            }),
            false => None,
        };
        let place = kept.binary_search(&column.place).ok();
        Decoded { place, flag: is_value && *kind == DataType::Boolean, classes, column }
    }).collect();
    let mask = ProjectionMask::roots(metadata.parquet_schema(), kept.iter().copied());
    if columns.iter().any(|column| column.place.is_some() && column.is_nested(schema)) {
        // of a list the number of rows bounds nothing
        input.limit_values(budget / nested::VALUE_BYTES);
    }
    check_compression(metadata.metadata(), &mask)?;

    let mut taken = Taken { columns: &columns, records, problems: Problems::default(), bytes: 0, decoded: 0, budget };
    let mut start = 0;
    for group in 0..metadata.metadata().num_row_groups() {
        let length = u64::try_from(metadata.metadata().row_group(group).num_rows()).map_err(damaged)?;
        let chosen = which.within(start, length);
        let first = start;
        start = start.saturating_add(length);
        if chosen.is_some_and(<[u64]>::is_empty) {
            continue;
        }
        // rows before this one are taken, also when the group is begun again
        let mut next = first;
        for (rows, page) in [(ROWS, PAGE), (1, budget)] {
            input.refuse_beyond(page);
            let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(input.clone(), metadata.clone())
                .with_projection(mask.clone())
                .with_row_groups(vec![group])
                .with_batch_size(rows)
                .build();
            let read = reader.map_err(damaged).and_then(|reader| {
                let mut row = first;
                for batch in reader {
                    let batch = batch.map_err(|e| damaged(e).at(format_args!("row {}", row + 1)))?;
                    let is_chosen =
                        |row: u64| row >= next && chosen.is_none_or(|chosen| chosen.binary_search(&row).is_ok());
                    taken.take(&batch, row, is_chosen)?;
                    row += batch.num_rows() as u64;
                    next = next.max(row);
                    if chosen.is_some_and(|chosen| chosen.last().is_none_or(|&last| last < row)) {
                        break;
                    }
                }
                Ok(())
            });
            // the page that was too large for many rows at once has been refused
            match read {
                Err(_) if input.has_refused() && page == PAGE => {}
                Err(_) if input.has_refused() => return Err(taken.beyond_budget()),
                other => {
                    other?;
                    break;
                }
            }
        }
    }
    taken.problems.finish("row")?;
    let examples = taken.records.finish("no rows")?;
    let classes = columns.into_iter().find_map(|column| column.classes).unwrap_or_default();
    Ok(Examples { classes, without_texts: matches!(which, Which::Values), ..examples })
}

/// Refuses by its name a compression that is not read.
fn check_compression(metadata: &ParquetMetaData, mask: &ProjectionMask) -> Result<()> {
    let chunks = metadata.row_groups().iter().flat_map(|group| group.columns().iter().enumerate());
    for (_, chunk) in chunks.filter(|(leaf, _)| mask.leaf_included(*leaf)) {
        let name = match chunk.compression() {
            Compression::BROTLI(_) => "Brotli",
            Compression::LZ4 | Compression::LZ4_RAW => "LZ4",
            Compression::LZO => "LZO",
            Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_) | Compression::ZSTD(_) => continue,
        };
        return Err(Error::new(format!(
            "expected Parquet packed by snappy, zstd or gzip, or not at all, found {name}"
        ))
        .hint("write it again: in pandas to_parquet(path, compression=\"zstd\")"));
    }
    Ok(())
}

/// The names of a column's classes, as `datasets` leaves them in the schema's metadata, if it does; or why they cannot be read.
fn classes(schema: &Schema, column: &str) -> Result<Option<Vec<String>>, String> {
    let Some(text) = schema.metadata().get("huggingface") else { return Ok(None) };
    let info: serde_json::Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let feature = info.get("info").and_then(|info| info.get("features")?.get(column));
    let Some(feature) = feature.filter(|feature| feature.get("_type").is_some_and(|kind| kind == "ClassLabel")) else {
        return Ok(None);
    };
    let names = feature.get("names").and_then(serde_json::Value::as_array).filter(|names| !names.is_empty());
    let names = names.ok_or("a ClassLabel without a list of names")?;
    let name = |name: &serde_json::Value| name.as_str().map(|name| name.trim().to_owned());
    let names: Option<Vec<String>> = names.iter().map(name).collect();
    names.map(Some).ok_or_else(|| "a ClassLabel with a name that is no string".to_owned())
}

/// A column that is read.
struct Decoded {
    column: Column,
    /// Its place among those that are decoded; none if it is left out.
    place: Option<usize>,
    /// Whether it holds true and false.
    flag: bool,
    /// Names of its integers.
    classes: Option<Vec<String>>,
}

/// The values of a batch in a column.
enum Values {
    Texts(StringArray),
    Nested(ArrayRef),
}

impl Decoded {
    fn is_nested(&self, schema: &Schema) -> bool {
        schema.field(self.column.place).data_type().is_nested()
    }

    /// What stands in row `i` of a nested column.
    fn nested(&self, array: &ArrayRef, i: usize) -> Result<Option<Cell>> {
        match nested::value(array, i) {
            None => Err(damaged(format!("a column of {} has no values", array.data_type()))),
            Some(serde_json::Value::Null) if self.column.kind == (Kind::Json { required: true }) => {
                Err(Error::new(format!("column {:?}: expected a value, found null", self.column.name)))
            }
            Some(serde_json::Value::Null) => Ok(None),
            Some(value) => Ok(Some(Cell::Json(value))),
        }
    }

    /// What stands in row `i`.
    fn cell(&self, array: &StringArray, i: usize) -> Result<Option<Cell>> {
        let text = array.is_valid(i).then(|| array.value(i));
        let text = match (self.column.kind, text) {
            (Kind::Value { .. }, text) => text.map(|value| self.name(value)).transpose()?,
            (_, None) => {
                return Err(Error::new(format!("column {:?}: expected a string, found null", self.column.name)));
            }
            (_, text) => text,
        };
        Ok(text.map(|text| Cell::Text(text.to_owned())))
    }

    /// The value's name, where the file gives one; `datasets` writes -1 for a label that is missing.
    fn name<'a>(&'a self, value: &'a str) -> Result<&'a str> {
        let Some(names) = &self.classes else {
            return Ok(match value {
                "true" if self.flag => "1",
                "false" if self.flag => "0",
                value => value,
            });
        };
        if value == "-1" {
            return Ok("");
        }
        let name = value.parse().ok().and_then(|i: usize| names.get(i)).map(String::as_str);
        name.ok_or_else(|| {
            Error::new(format!("label {value} is none of the {} classes that the file names", names.len()))
        })
    }
}

/// What was taken from a file so far.
struct Taken<'a> {
    columns: &'a [Decoded],
    records: Records<'a>,
    problems: Problems,
    /// Bytes of the examples.
    bytes: u64,
    /// Bytes that were decoded.
    decoded: u64,
    budget: u64,
}

impl Taken<'_> {
    /// Takes a batch whose first row is `first`: those of its rows that are chosen.
    fn take(&mut self, batch: &RecordBatch, first: u64, is_chosen: impl Fn(u64) -> bool) -> Result<()> {
        let rows = first..first + batch.num_rows() as u64;
        self.decoded += batch.get_array_memory_size() as u64;
        if self.decoded > self.budget.saturating_mul(MOST_PASSED) {
            return Err(self.beyond_budget());
        }
        if !rows.clone().any(&is_chosen) {
            return Ok(());
        }
        let array = |column: &Decoded, i: usize| {
            let array = batch.columns().get(i).ok_or_else(|| damaged("a column is missing"))?;
            Ok(match column.column.kind {
                Kind::Json { .. } => Values::Nested(array.clone()),
                Kind::Text | Kind::Value { .. } => Values::Texts(strings(array)?),
            })
        };
        let columns = self.columns;
        let arrays: Result<Vec<_>> = columns.iter().map(|c| c.place.map(|i| array(c, i)).transpose()).collect();
        let arrays = arrays?;
        for (i, row) in rows.enumerate().filter(|(_, row)| is_chosen(*row)) {
            let cell = |(column, array): (&Decoded, &Option<Values>)| match array {
                Some(Values::Texts(array)) => column.cell(array, i),
                Some(Values::Nested(array)) => column.nested(array, i),
                None => Ok(None),
            };
            let mut bytes = size_of::<Example>();
            let cells: Result<Vec<_>> = columns.iter().zip(&arrays).map(cell).collect();
            let pushed = cells.and_then(|cells| {
                bytes += cells.iter().flatten().map(size).sum::<usize>();
                self.records.push((row + 1, row), cells)
            });
            pushed.unwrap_or_else(|e| self.problems.add(row + 1, e));
            self.bytes += bytes as u64;
            if self.bytes > self.budget {
                return Err(self.beyond_budget());
            }
        }
        Ok(())
    }

    fn beyond_budget(&self) -> Error {
        Error::new(format!("this file decodes to more than {} MiB, far beyond its size", self.budget >> 20))
            .hint("is it damaged? Otherwise write it as JSON lines; of a training file data.limit takes a part")
    }
}

fn size(cell: &Cell) -> usize {
    match cell {
        Cell::Text(text) => text.len(),
        Cell::Json(value) => nested::size(value),
    }
}

fn strings(array: &ArrayRef) -> Result<StringArray> {
    texts(array).ok_or_else(|| damaged(format!("a column of {} has no texts", array.data_type())))
}

/// Refuses a column whose type is none of its kind.
fn check_type(column: &Column, found: &DataType) -> Result<()> {
    let name = &column.name;
    let (expected, fits) = match column.kind {
        Kind::Text => ("strings", is_string(found)),
        Kind::Value { .. } => ("strings or numbers", is_value(found)),
        Kind::Json { .. } => ("lists, structs or strings", nested::is_read(found)),
    };
    if fits {
        return Ok(());
    }
    let error = Error::new(format!("column {name:?}: expected {expected}, found {found}"));
    Err(match found {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => error.hint(
            format!("it holds bytes; if they are text, in pandas df[{name:?}] = df[{name:?}].str.decode(\"utf-8\")"),
        ),
        kind if kind.is_nested() => error.hint(format!(
            "is it the column that is meant? If it is, make one text of each row's values in df[{name:?}]"
        )),
        _ => error.hint(format!(
            "is it the column that is meant? In pandas df[{name:?}] = df[{name:?}].astype(str) makes strings of it"
        )),
    })
}

fn is_string(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_string(values),
        _ => false,
    }
}

fn is_value(kind: &DataType) -> bool {
    let value = match kind {
        DataType::Dictionary(_, values) => values,
        other => other,
    };
    is_string(value) || value.is_integer() || value.is_floating() || *value == DataType::Boolean
}

#[cfg(test)]
mod tests {
    use super::super::Columns;
    use super::*;
    use crate::objective::LabelledTexts;
    use crate::tasks::Task;
    use ::parquet::arrow::ArrowWriter;
    use ::parquet::arrow::arrow_writer::ArrowWriterOptions;
    use ::parquet::file::properties::{EnabledStatistics, WriterProperties};
    use arrow_array::types::Int32Type;
    use arrow_array::{
        BinaryArray, BooleanArray, DictionaryArray, Float32Array, Float64Array, Int8Array, Int64Array,
        LargeStringArray, RecordBatch, StringViewArray,
    };
    use arrow_schema::Field;
    use std::fs::{self, File};
    use std::sync::Arc;

    const COLUMNS: Columns = Columns { text: None, pair: None, label: None, known: None };

    fn write(columns: Vec<(&str, ArrayRef)>) -> (tempfile::TempDir, std::path::PathBuf) {
        let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true))).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        (folder, path)
    }

    fn load(columns: Vec<(&str, ArrayRef)>, labels_required: bool) -> Result<Examples> {
        let (_folder, path) = write(columns);
        parquet(File::open(path).unwrap(), &LabelledTexts { task: Task::Classify, columns: &COLUMNS, labels_required })
    }

    fn texts() -> ArrayRef {
        Arc::new(StringArray::from(vec!["a", "é"]))
    }

    #[test]
    fn label_types() {
        let dictionary: DictionaryArray<Int32Type> = vec!["no", "yes"].into_iter().collect();
        let cases: Vec<(ArrayRef, [&str; 2])> = vec![
            (Arc::new(Int64Array::from(vec![0, -1])), ["0", "-1"]),
            (Arc::new(Int8Array::from(vec![0, 1])), ["0", "1"]),
            (Arc::new(Float32Array::from(vec![0.1, 2.0])), ["0.1", "2.0"]),
            (Arc::new(Float64Array::from(vec![1.0, 3.8])), ["1.0", "3.8"]),
            (Arc::new(StringArray::from(vec!["true", "b "])), ["true", "b"]),
            (Arc::new(BooleanArray::from(vec![true, false])), ["1", "0"]),
            (Arc::new(dictionary), ["no", "yes"]),
        ];
        for (labels, want) in cases {
            let kind = labels.data_type().clone();
            let read = load(vec![("label", labels), ("other", texts()), ("text", texts())], true).unwrap();
            assert_eq!(read.rows.iter().map(|e| e.text.as_str()).collect::<Vec<_>>(), ["a", "é"]);
            assert_eq!(read.rows.iter().filter_map(|e| e.label.as_deref()).collect::<Vec<_>>(), want, "{kind}");
            assert_eq!(read.rows[1].line, 2);
        }
    }

    #[test]
    fn string_types() {
        let dictionary: DictionaryArray<Int32Type> = vec!["c", "c"].into_iter().collect();
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(LargeStringArray::from(vec!["c", "c"])),
            Arc::new(StringViewArray::from(vec!["c", "c"])),
            Arc::new(dictionary),
        ];
        for array in arrays {
            let kind = array.data_type().clone();
            let read = load(vec![("sentence2", array), ("sentence1", texts())], false).unwrap();
            assert_eq!((read.rows[1].text.as_str(), read.rows[1].pair.as_deref()), ("é", Some("c")), "{kind}");
            assert_eq!(read.rows[0].label, None);
        }
    }

    #[test]
    fn errors_name_column_or_row() {
        let message = |columns, required| load(columns, required).unwrap_err().to_string();
        let numbers = || -> ArrayRef { Arc::new(Int64Array::from(vec![Some(0), None])) };
        let found = message(vec![("text", numbers()), ("label", numbers())], true);
        assert!(found.starts_with("column \"text\": expected strings, found Int64\n  hint: "), "{found}");
        let bytes: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"a", b"b"]));
        let found = message(vec![("text", bytes)], false);
        assert!(
            found.contains("found Binary\n  hint: it holds bytes") && found.contains(".str.decode(\"utf-8\")"),
            "{found}"
        );
        assert_eq!(message(vec![("text", texts()), ("label", numbers())], true), "the label is missing\n  in row 2");
        let holes: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None]));
        let found = message(vec![("text", holes)], false);
        assert_eq!(found, "column \"text\": expected a string, found null\n  in row 2");
        let nan: ArrayRef = Arc::new(Float64Array::from(vec![1.0, f64::NAN]));
        assert_eq!(
            message(vec![("text", texts()), ("label", nan.clone())], true),
            "the label is missing: found \"NaN\"\n  in row 2\n  hint: leave out the rows without a label; a class that is really called so needs another name"
        );
        assert_eq!(load(vec![("text", texts()), ("label", nan)], false).unwrap().rows[1].label, None);
        assert!(message(vec![("a", texts())], false).contains("found columns: a"));
        assert_eq!(message(vec![("text", texts().slice(0, 0))], false), "no rows");
    }

    /// A file of one long text, `rows` times.
    fn bomb(text: &str, rows: usize, as_dictionary: bool) -> Result<Examples> {
        let texts: DictionaryArray<Int32Type> = std::iter::repeat_n(text, rows).collect();
        let batch = RecordBatch::try_from_iter([("text", Arc::new(texts) as ArrayRef)]).unwrap();
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_dictionary_page_size_limit(1 << 30)
            .set_statistics_enabled(EnabledStatistics::None)
            .build();
        let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(!as_dictionary);
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new_with_options(&mut bytes, batch.schema(), options).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        assert!(bytes.len() < text.len() / 8 + (1 << 16), "{}", bytes.len());
        let want = LabelledTexts { task: Task::Classify, columns: &COLUMNS, labels_required: false };
        parquet(bytes::Bytes::from(bytes), &want)
    }

    #[test]
    fn what_decodes_to_far_more_than_its_size_is_refused() {
        let long = "x".repeat(1 << 20);
        for as_dictionary in [false, true] {
            assert_eq!(bomb(&long, 40, as_dictionary).unwrap().rows[39].text, long);
            // a thousand examples of a MiB each, in some 50 KB
            let message = bomb(&long, 1000, as_dictionary).unwrap_err().to_string();
            assert!(message.contains("decodes to more than") && message.contains("beyond its size"), "{message}");
        }
        // few bytes of text, but the examples themselves
        assert!(bomb("x", 3_500_000, false).unwrap_err().to_string().contains("decodes to more than"));
        // a page above the usual is read row by row
        let longer = "y".repeat(3 * PAGE as usize);
        let read = bomb(&longer, 3, false).unwrap();
        assert_eq!((read.rows.len(), read.rows[2].row, read.rows[2].text == longer), (3, 2, true));
    }

    /// Of many rows of one text few are read, and what is read of those is bounded as ever.
    #[test]
    fn rows_that_are_not_needed_are_not_held() {
        let text = "x".repeat(1000);
        let rows = 400_000;
        let texts: DictionaryArray<Int32Type> = std::iter::repeat_n(text.as_str(), rows).collect();
        let labels: ArrayRef = Arc::new(Int64Array::from((0..rows as i64).map(|i| i % 2).collect::<Vec<_>>()));
        let batch = RecordBatch::try_from_iter([("text", Arc::new(texts) as ArrayRef), ("label", labels)]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(100_000)).build();
        let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let want = LabelledTexts { task: Task::Classify, columns: &COLUMNS, labels_required: true };
        let read = |path| super::super::read(path, &want, super::super::Split::Train);
        assert!(read(&path).unwrap_err().to_string().contains("decodes to more than"));
        let all = super::super::read_labels(&path, &want).unwrap();
        assert_eq!(
            (all.rows.len(), all.rows[399_999].label.as_deref(), &*all.rows[399_999].text),
            (rows, Some("1"), "")
        );
        let few = all.clone().subset(16, 0).unwrap();
        let places: Vec<u64> = few.rows.iter().map(|e| e.row).collect();
        let few = few.complete(&want).unwrap();
        assert_eq!(few.rows.iter().map(|e| e.row).collect::<Vec<_>>(), places);
        for e in &few.rows {
            assert_eq!((&e.text, e.label.as_deref(), e.line), (&text, Some(["0", "1"][e.row as usize % 2]), e.row + 1));
        }
        let message = all.complete(&want).unwrap_err().to_string();
        assert!(message.contains("decodes to more than") && message.contains("data.limit"), "{message}");
    }

    #[test]
    fn what_a_page_claims_is_looked_at_first() {
        let labels: ArrayRef = Arc::new(Int64Array::from(vec![0, 1]));
        let (_folder, path) = write(vec![("text", texts()), ("label", labels)]);
        let good = fs::read(path).unwrap();
        let want = LabelledTexts { task: Task::Classify, columns: &COLUMNS, labels_required: true };
        assert!(parquet(bytes::Bytes::from(good.clone()), &want).is_ok());
        // behind PAR1: a dictionary page, whose size takes one byte
        assert_eq!((&good[4..7], good[8]), (&[0x15, 4, 0x15][..], 0x15));
        for (bytes, what) in [
            ([&good[..7], &[0xfe, 0xff, 0xff, 0xff, 0x0f], &good[8..]].concat(), "decodes to more than"),
            ([&good[..4], &[0x25], &good[5..]].concat(), "a page's header is damaged"),
        ] {
            let message = parquet(bytes::Bytes::from(bytes), &want).unwrap_err().to_string();
            assert!(message.contains(what), "{message}");
        }
    }

    #[test]
    fn names_of_integer_labels_are_read() {
        let load = |labels: Vec<i64>, feature: &str| {
            let info = format!("{{\"info\": {{\"features\": {{\"label\": {feature}}}}}}}");
            let schema =
                Schema::new(vec![Field::new("text", DataType::Utf8, true), Field::new("label", DataType::Int64, true)]);
            let schema = schema.with_metadata([("huggingface".to_owned(), info)]);
            let labels: ArrayRef = Arc::new(Int64Array::from(labels));
            let batch = RecordBatch::try_new(Arc::new(schema), vec![texts(), labels]).unwrap();
            let mut bytes = Vec::new();
            let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
            writer.write(&batch).unwrap();
            writer.close().unwrap();
            let want = LabelledTexts { task: Task::Classify, columns: &COLUMNS, labels_required: true };
            let read = parquet(bytes::Bytes::from(bytes), &want).map_err(|e| e.to_string())?;
            let notes = read.notes.join("");
            Ok((read.rows.into_iter().filter_map(|e| e.label).collect::<Vec<_>>().join(" ") + &notes, read.classes))
        };
        const NAMED: &str = r#"{"names": ["neg", "pos"], "_type": "ClassLabel"}"#;
        assert_eq!(load(vec![1, 0], NAMED), Ok(("pos neg".to_owned(), vec!["neg".to_owned(), "pos".to_owned()])));
        assert_eq!(load(vec![1, 0], r#"{"dtype": "int64", "_type": "Value"}"#), Ok(("1 0".to_owned(), vec![])));
        assert_eq!(load(vec![1, -1], NAMED), Err("the label is missing\n  in row 2".to_owned()));
        for (feature, why) in [
            (r#"{"names": ["neg", 1], "_type": "ClassLabel"}"#, "a ClassLabel with a name that is no string"),
            (r#"{"names": "neg", "_type": "ClassLabel"}"#, "a ClassLabel without a list of names"),
            (r#"{"names": ["neg", "pos"], "_type": "ClassLabel""#, "EOF while parsing"),
        ] {
            let (labels, classes) = load(vec![1, 0], feature).unwrap();
            assert!(labels.starts_with("1 0what datasets wrote into the file about the column \"label\""), "{labels}");
            assert!(labels.contains(why) && classes.is_empty(), "{labels}");
        }
        let message = load(vec![2, 0], NAMED).unwrap_err();
        assert_eq!(message, "label 2 is none of the 2 classes that the file names\n  in row 1");
    }

    #[test]
    fn damaged_files_are_refused_without_a_panic() {
        let labels: ArrayRef = Arc::new(Int64Array::from((0..40).collect::<Vec<_>>()));
        let text: ArrayRef = Arc::new(StringArray::from((0..40).map(|i| format!("text {i}")).collect::<Vec<_>>()));
        let (folder, path) = write(vec![("text", text), ("label", labels)]);
        let good = fs::read(&path).unwrap();
        let want = LabelledTexts { task: Task::Classify, columns: &COLUMNS, labels_required: true };
        let damaged = folder.path().join("damaged.parquet");
        let refusal = |bytes: &[u8]| {
            fs::write(&damaged, bytes).unwrap();
            parquet(File::open(&damaged).unwrap(), &want).map_err(|e| e.to_string()).err()
        };
        assert_eq!(refusal(&good), None);
        let mut contradictions = 0;
        for i in 0..good.len() {
            assert!(i % 16 > 0 || refusal(&good[..i]).is_some(), "cut at {i}");
            let mut bytes = good.clone();
            bytes[i] ^= 1;
            contradictions += usize::from(refusal(&bytes).is_some_and(|e| e.contains("contradicts itself")));
        }
        assert!(contradictions > 0, "no damage reached the decoder's own checks");
    }
}
