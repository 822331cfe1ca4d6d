//! JSON values in which every key of an object stands once.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// That a key is there twice: of two texts of one message, which was meant cannot be known.
pub(super) fn twice(key: &str) -> String {
    format!("the key {key:?} is there twice, and which is meant cannot be known")
}

/// Reads a value whole, and refuses one with a key that is there twice, however deep.
pub(super) struct Once;

impl<'de> DeserializeSeed<'de> for Once {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(flag.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Number::from_f64(number).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Once)? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if fields.contains_key(&key) {
                return Err(A::Error::custom(twice(&key)));
            }
            fields.insert(key, map.next_value_seed(Once)?);
        }
        Ok(fields.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> serde_json::Result<Value> {
        Once.deserialize(&mut serde_json::Deserializer::from_str(text))
    }

    #[test]
    fn what_has_no_key_twice_is_read_as_it_is() {
        for text in [
            "null",
            "[]",
            r#"{"b":[{"a":1},{"a":-2.5}],"a":{"b":true,"c":"\u00e9\n"},"c":18446744073709551615}"#,
            r#"[1e400, 0.1]"#,
        ] {
            assert_eq!(read(text).ok(), serde_json::from_str::<Value>(text).ok(), "{text}");
        }
    }

    #[test]
    fn a_key_twice_is_refused_however_deep() {
        for (text, key) in [(r#"{"a":1,"b":2,"a":1}"#, "a"), (r#"[{"c":[{"\u0062":1,"b":null}]}]"#, "b")] {
            let e = read(text).unwrap_err();
            assert!(e.is_data() && e.to_string().starts_with(&twice(key)), "{e}");
        }
    }
}
