//! Nested columns of Arrow arrays as JSON: lists, structs and what lies inside.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use serde_json::{Map, Number, Value};

use super::texts::texts;

/// What a value inside a list takes while it is decoded: its text, a place in the text, levels, and what it becomes.
pub(super) const VALUE_BYTES: u64 = 64;

/// Whether columns of this type can be read.
pub(super) fn is_read(kind: &DataType) -> bool {
    match kind {
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
            is_read(field.data_type())
        }
        DataType::Struct(fields) => fields.iter().all(|field| is_read(field.data_type())),
        DataType::Dictionary(_, values) => !values.is_nested() && is_read(values),
        DataType::Null | DataType::Boolean | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        other => other.is_integer() || other.is_floating(),
    }
}

/// What stands in row `i`, which is below the array's length; a struct without the fields that are null. `None` for types that are not read.
pub(super) fn value(array: &ArrayRef, i: usize) -> Option<Value> {
    if array.is_null(i) {
        return Some(Value::Null);
    }
    let list =
        |items: ArrayRef| (0..items.len()).map(|i| value(&items, i)).collect::<Option<Vec<_>>>().map(Value::Array);
    let text = |array: &ArrayRef| Some(texts(&array.slice(i, 1))?.value(0).to_owned());
    match array.data_type() {
        DataType::List(_) => list(array.as_list::<i32>().value(i)),
        DataType::LargeList(_) => list(array.as_list::<i64>().value(i)),
        DataType::FixedSizeList(_, _) => list(array.as_fixed_size_list().value(i)),
        DataType::Struct(fields) => {
            let mut all = Map::new();
            for (field, column) in fields.iter().zip(array.as_struct().columns()) {
                let value = value(&Arc::clone(column), i)?;
                if !value.is_null() {
                    all.insert(field.name().clone(), value);
                }
            }
            Some(Value::Object(all))
        }
        DataType::Boolean => Some(array.as_boolean().value(i).into()),
        DataType::Null => Some(Value::Null),
        kind if kind.is_integer() => serde_json::from_str(&text(array)?).ok(),
        kind if kind.is_floating() => {
            let number: f64 = text(array)?.parse().ok()?;
            Some(Number::from_f64(number).map_or(Value::Null, Value::Number))
        }
        _ => text(array).map(Value::String),
    }
}

/// About the bytes that a value takes.
pub(super) fn size(value: &Value) -> usize {
    let inside = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| 2 * size_of::<usize>() + key.len() + size(value)).sum()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    };
    size_of::<Value>() + inside
}
