//! Reader of Parquet files.

use super::columns::{Pick, pick};
use super::quietly::quietly;
use super::{Examples, Request};
use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use ::parquet::file::reader::ChunkReader;
use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use colrow_tensor::{Error, Result};
use std::fmt::Display;

/// Reads the text columns (any string type) and the label column (string, integer, float or boolean).
pub fn parquet<R: ChunkReader + 'static>(input: R, want: &Request) -> Result<Examples> {
    // The decoder's own checks end in panics for some damaged files.
    quietly(|| read(input, want)).unwrap_or_else(|| Err(damaged("the file contradicts itself")))
}

fn damaged(why: impl Display) -> Error {
    Error::new(format!("cannot be read as Parquet: {why}"))
}

fn read<R: ChunkReader + 'static>(input: R, want: &Request) -> Result<Examples> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(input).map_err(damaged)?;
    let schema = builder.schema().clone();
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let picked = pick(&names, want)?;
    let Pick { text, pair, label } = picked;
    for column in [Some(text), pair].into_iter().flatten() {
        expect(names[column], schema.field(column).data_type(), "strings", is_string)?;
    }
    if let Some(label) = label {
        expect(names[label], schema.field(label).data_type(), "strings or numbers", is_label)?;
    }

    // A projection keeps the file's order of columns.
    let mut kept: Vec<usize> = [Some(text), pair, label].into_iter().flatten().collect();
    kept.sort_unstable();
    kept.dedup();
    let mask = ProjectionMask::roots(builder.parquet_schema(), kept.iter().copied());
    let mut examples = Examples { columns: Some(picked.names(&names)), ..Examples::default() };
    let mut row = 0;
    for batch in builder.with_projection(mask).with_batch_size(1024).build().map_err(damaged)? {
        let batch = batch.map_err(|e| damaged(e).at(format_args!("row {}", row + 1)))?;
        let column =
            |i: usize| kept.binary_search(&i).ok().and_then(|at| batch.columns().get(at)).map(strings).transpose();
        let some = |i: Option<usize>| i.map(column).transpose().map(Option::flatten);
        let texts = column(text)?.ok_or_else(|| damaged("a column is missing"))?;
        let (pairs, labels) = (some(pair)?, some(label)?);
        for i in 0..batch.num_rows() {
            row += 1;
            let at = |e: Error| e.at(format_args!("row {row}"));
            let text_in = |array: &StringArray, column: usize| match array.is_valid(i) {
                true => Ok(array.value(i).to_owned()),
                false => Err(at(Error::new(format!("column {:?}: expected a string, found null", names[column])))),
            };
            let pair = pairs.as_ref().zip(pair).map(|(array, column)| text_in(array, column)).transpose()?;
            let label = labels.as_ref().filter(|array| array.is_valid(i)).map(|array| match array.value(i) {
                "true" if is_flag(&schema, label) => "1",
                "false" if is_flag(&schema, label) => "0",
                label => label,
            });
            examples.push(want, row, text_in(&texts, text)?, pair, label).map_err(at)?;
        }
    }
    if examples.rows.is_empty() { Err(Error::new("no rows")) } else { Ok(examples) }
}

fn is_flag(schema: &arrow::datatypes::Schema, column: Option<usize>) -> bool {
    column.is_some_and(|i| *schema.field(i).data_type() == DataType::Boolean)
}

fn strings(array: &ArrayRef) -> Result<StringArray> {
    Ok(cast(array, &DataType::Utf8).map_err(damaged)?.as_string::<i32>().clone())
}

fn expect(name: &str, found: &DataType, expected: &str, fits: fn(&DataType) -> bool) -> Result<()> {
    if fits(found) {
        return Ok(());
    }
    Err(Error::new(format!("column {name:?}: expected {expected}, found {found}")))
}

fn is_string(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_string(values),
        _ => false,
    }
}

fn is_label(kind: &DataType) -> bool {
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
    use crate::tasks::Task;
    use ::parquet::arrow::ArrowWriter;
    use arrow::array::{
        BooleanArray, DictionaryArray, Float32Array, Float64Array, Int8Array, Int64Array, LargeStringArray,
        RecordBatch, StringViewArray,
    };
    use arrow::datatypes::Int32Type;
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
        parquet(File::open(path).unwrap(), &Request { task: Task::Classify, columns: &COLUMNS, labels_required })
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
            (Arc::new(Float32Array::from(vec![0.1, f32::NAN])), ["0.1", "NaN"]),
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
        assert_eq!(found, "column \"text\": expected strings, found Int64");
        assert_eq!(message(vec![("text", texts()), ("label", numbers())], true), "the label is missing\n  in row 2");
        let holes: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None]));
        let found = message(vec![("text", holes)], false);
        assert_eq!(found, "column \"text\": expected a string, found null\n  in row 2");
        assert!(message(vec![("a", texts())], false).contains("found columns: a"));
        assert_eq!(message(vec![("text", texts().slice(0, 0))], false), "no rows");
    }

    #[test]
    fn damaged_files_are_refused_without_a_panic() {
        let labels: ArrayRef = Arc::new(Int64Array::from((0..40).collect::<Vec<_>>()));
        let text: ArrayRef = Arc::new(StringArray::from((0..40).map(|i| format!("text {i}")).collect::<Vec<_>>()));
        let (folder, path) = write(vec![("text", text), ("label", labels)]);
        let good = fs::read(&path).unwrap();
        let want = Request { task: Task::Classify, columns: &COLUMNS, labels_required: true };
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
