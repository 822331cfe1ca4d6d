//! What a GGUF file says beside its tensors: values by key.

use std::collections::BTreeMap;

use colrow_tensor::{Error, Result};

/// A value of the metadata. The file tells eight widths of whole numbers apart, which mean the same.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number of an unsigned type.
    Unsigned(u64),
    /// A whole number of a signed type.
    Signed(i64),
    /// Single precision.
    F32(f32),
    /// Double precision.
    F64(f64),
    /// Yes or no.
    Bool(bool),
    /// A text.
    Text(String),
    /// Values of one type.
    List(List),
}

/// Values of one type; typed, so that a list takes little more memory than it takes in the file.
#[derive(Clone, Debug, PartialEq)]
pub enum List {
    /// Whole numbers of an unsigned type.
    Unsigned(Vec<u64>),
    /// Whole numbers of a signed type.
    Signed(Vec<i64>),
    /// Single precision.
    F32(Vec<f32>),
    /// Double precision.
    F64(Vec<f64>),
    /// Yes or no.
    Bools(Vec<bool>),
    /// Texts.
    Texts(Vec<String>),
    /// Lists.
    Lists(Vec<List>),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) | Self::Signed(_) => "a whole number",
            Self::F32(_) | Self::F64(_) => "a number",
            Self::Bool(_) => "true or false",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_string())
    }
}

impl From<bool> for Value {
    fn from(x: bool) -> Self {
        Self::Bool(x)
    }
}

impl From<usize> for Value {
    fn from(n: usize) -> Self {
        Self::Unsigned(n as u64)
    }
}

impl From<Vec<String>> for Value {
    fn from(texts: Vec<String>) -> Self {
        Self::List(List::Texts(texts))
    }
}

/// A single-precision number as people write it: 1e-5, not 9.999999747378752e-6.
pub(super) fn short(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// Values by key. Each question names its key in its error, and is answered by `None` where the key is not there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(pub BTreeMap<String, Value>);

impl Metadata {
    fn wrong<T>(key: &str, expected: &str, found: &Value) -> Result<T> {
        Err(Error::new(format!("{key}: expected {expected}, found {}", found.kind())))
    }

    /// Sets a value.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        self.0.insert(key.into(), value.into());
    }

    /// A text.
    ///
    /// # Errors
    /// Something else there.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Self::wrong(key, "a text", other),
        }
    }

    /// A whole number that counts something.
    ///
    /// # Errors
    /// Something else there, or a number below 0 or above 2³¹.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        let n = match self.0.get(key) {
            None => return Ok(None),
            Some(Value::Unsigned(n)) => i128::from(*n),
            Some(Value::Signed(n)) => i128::from(*n),
            Some(other) => return Self::wrong(key, "a whole number", other),
        };
        match usize::try_from(n) {
            Ok(n) if n <= 1 << 31 => Ok(Some(n)),
            _ => Err(Error::new(format!("{key}: expected a whole number from 0 to 2147483648, found {n}"))),
        }
    }

    /// A number; one of single precision as it is written shortest.
    ///
    /// # Errors
    /// Something else there, or no finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let x = match self.0.get(key) {
            None => return Ok(None),
            Some(Value::F32(x)) => short(*x),
            Some(Value::F64(x)) => *x,
            Some(Value::Unsigned(n)) => *n as f64,
            Some(Value::Signed(n)) => *n as f64,
            Some(other) => return Self::wrong(key, "a number", other),
        };
        if x.is_finite() { Ok(Some(x)) } else { Err(Error::new(format!("{key}: expected a number, found {x}"))) }
    }

    /// Yes or no.
    ///
    /// # Errors
    /// Something else there.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Bool(x)) => Ok(Some(*x)),
            Some(other) => Self::wrong(key, "true or false", other),
        }
    }

    /// Texts.
    ///
    /// # Errors
    /// Something else there.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::List(List::Texts(texts))) => Ok(Some(texts)),
            Some(other) => Self::wrong(key, "a list of texts", other),
        }
    }

    /// Whole numbers.
    ///
    /// # Errors
    /// Something else there.
    pub fn wholes(&self, key: &str) -> Result<Option<Vec<i64>>> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::List(List::Signed(list))) => Ok(Some(list.clone())),
            Some(Value::List(List::Unsigned(list))) => {
                Ok(Some(list.iter().map(|&n| i64::try_from(n).unwrap_or(i64::MAX)).collect()))
            }
            Some(other) => Self::wrong(key, "a list of whole numbers", other),
        }
    }

    /// Numbers of single precision.
    ///
    /// # Errors
    /// Something else there.
    pub fn numbers(&self, key: &str) -> Result<Option<&[f32]>> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::List(List::F32(list))) => Ok(Some(list)),
            Some(other) => Self::wrong(key, "a list of numbers", other),
        }
    }
}

/// The value that has to be there.
pub(super) fn needed<T>(key: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::new(format!("{key} is missing")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_they_are_asked_for_or_named() {
        let mut metadata = Metadata::default();
        metadata.set("n", 7);
        metadata.set("eps", Value::F32(1e-5));
        metadata.set("minus", Value::Signed(-1));
        metadata.set("nan", Value::F32(f32::NAN));
        metadata.set("layers", Value::List(List::Unsigned(vec![1, 2])));
        assert_eq!(metadata.count("n").unwrap(), Some(7));
        assert_eq!(metadata.count("absent").unwrap(), None);
        assert_eq!(metadata.number("eps").unwrap(), Some(1e-5));
        assert_eq!(metadata.wholes("layers").unwrap(), Some(vec![1, 2]));
        for (e, expected) in [
            (metadata.count("layers").unwrap_err(), "layers: expected a whole number, found a list"),
            (metadata.count("minus").unwrap_err(), "minus: expected a whole number from 0 to 2147483648, found -1"),
            (metadata.number("nan").unwrap_err(), "nan: expected a number, found NaN"),
            (metadata.text("n").unwrap_err(), "n: expected a text, found a whole number"),
            (needed("a.b", None::<()>).unwrap_err(), "a.b is missing"),
        ] {
            assert_eq!(e.to_string(), expected);
        }
    }
}
