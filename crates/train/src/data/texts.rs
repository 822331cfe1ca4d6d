//! Columns of Arrow arrays as texts.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, StringArray};
use arrow_schema::DataType;

/// Strings, numbers, truth values, or dictionaries of them as strings; what is null stays null. `None` for other types.
pub(super) fn texts(array: &ArrayRef) -> Option<StringArray> {
    use DataType::{
        Boolean, Dictionary, Float16, Float32, Float64, Int8, Int16, Int32, Int64, LargeUtf8, UInt8, UInt16, UInt32,
        UInt64, Utf8, Utf8View,
    };
    Some(match array.data_type() {
        Utf8 => array.as_string::<i32>().clone(),
        LargeUtf8 => array.as_string::<i64>().iter().collect(),
        Utf8View => array.as_string_view().iter().collect(),
        Boolean => array.as_boolean().iter().map(|x| x.map(|x| x.to_string())).collect(),
        Int8 => numbers::<Int8Type>(array, |x| x.to_string()),
        Int16 => numbers::<Int16Type>(array, |x| x.to_string()),
        Int32 => numbers::<Int32Type>(array, |x| x.to_string()),
        Int64 => numbers::<Int64Type>(array, |x| x.to_string()),
        UInt8 => numbers::<UInt8Type>(array, |x| x.to_string()),
        UInt16 => numbers::<UInt16Type>(array, |x| x.to_string()),
        UInt32 => numbers::<UInt32Type>(array, |x| x.to_string()),
        UInt64 => numbers::<UInt64Type>(array, |x| x.to_string()),
        Float16 => numbers::<Float16Type>(array, |x| format!("{:?}", x.to_f32())),
        Float32 => numbers::<Float32Type>(array, |x| format!("{x:?}")),
        Float64 => numbers::<Float64Type>(array, |x| format!("{x:?}")),
        Dictionary(_, _) => {
            let dictionary = array.as_any_dictionary();
            let values = texts(dictionary.values())?;
            let keys = dictionary.normalized_keys();
            let text = |(i, &key): (usize, &usize)| {
                let there = dictionary.keys().is_valid(i) && values.is_valid(key);
                there.then(|| values.value(key))
            };
            keys.iter().enumerate().map(text).collect()
        }
        _ => return None,
    })
}

fn numbers<T: ArrowPrimitiveType>(array: &ArrayRef, text: impl Fn(T::Native) -> String) -> StringArray {
    array.as_primitive::<T>().iter().map(|x| x.map(&text)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::*;

    use super::*;

    #[test]
    fn every_type_of_label_has_its_text() {
        let of = |array: ArrayRef| {
            let texts = texts(&array).unwrap();
            texts.iter().map(|text| text.unwrap_or("null").to_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of(Arc::new(StringArray::from(vec![Some("a b"), None, Some("")]))), "a b null ");
        assert_eq!(of(Arc::new(LargeStringArray::from(vec![Some("a"), None]))), "a null");
        assert_eq!(of(Arc::new(StringViewArray::from(vec![Some("a"), None]))), "a null");
        assert_eq!(of(Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))), "true null false");
        assert_eq!(of(Arc::new(Int8Array::from(vec![Some(-1), None]))), "-1 null");
        assert_eq!(of(Arc::new(UInt64Array::from(vec![u64::MAX]))), "18446744073709551615");
        assert_eq!(of(Arc::new(Float64Array::from(vec![0.5, 3.0, -1e300, 0.1]))), "0.5 3.0 -1e300 0.1");
        assert_eq!(of(Arc::new(Float32Array::from(vec![0.1, f32::INFINITY]))), "0.1 inf");
        let words: DictionaryArray<types::Int8Type> =
            vec![Some("no"), None, Some("yes"), Some("no")].into_iter().collect();
        assert_eq!(of(Arc::new(words)), "no null yes no");
        let keys = UInt16Array::from(vec![Some(1), Some(0), None]);
        let numbers = DictionaryArray::new(keys, Arc::new(Int64Array::from(vec![Some(7), None])));
        assert_eq!(of(Arc::new(numbers)), "null 7 null");
        assert!(texts(&(Arc::new(BinaryArray::from(vec![&b"a"[..]])) as ArrayRef)).is_none());
    }
}
