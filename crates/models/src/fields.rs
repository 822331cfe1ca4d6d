//! Reading the keys of a `config.json`.

use serde_json::{Map, Value};

/// More parameters than fit into any machine this is for; below it, no product of sizes overflows.
const MOST_PARAMETERS: u64 = 100_000_000_000;

/// What a number has to be, in words and as a check.
pub type Rule = (&'static str, fn(f64) -> bool);
/// Sizes of what is added or drawn.
pub const POSITIVE: Rule = ("a number above 0 and at most 1", |x| x > 0.0 && x <= 1.0);
/// Dropout.
pub const PROBABILITY: Rule = ("a number from 0 to below 1", |x| (0.0..1.0).contains(&x));

/// Reads single keys; notes what is wrong and goes on with a harmless value.
pub struct Fields<'a> {
    /// The file.
    pub json: &'a Map<String, Value>,
    /// What is wrong, by key.
    pub problems: Vec<String>,
}

impl<'a> Fields<'a> {
    /// A value that is there and not null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|v| !v.is_null())
    }

    pub(crate) fn wrong(&self, key: &str, expected: &str) -> String {
        format!("{key}: expected {expected}, found {}", shown(self.json.get(key)))
    }

    /// Notes that a key's value is not what was expected.
    pub fn problem(&mut self, key: &str, expected: &str) {
        self.problems.push(self.wrong(key, expected));
    }

    /// A whole number from 1 to `most`; without a default the file has to have it.
    pub fn size(&mut self, key: &str, default: Option<usize>, most: usize) -> usize {
        let found = match (self.get(key), default) {
            (None, Some(default)) => return default,
            (found, _) => found.and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()),
        };
        found.filter(|n| (1..=most).contains(n)).unwrap_or_else(|| {
            self.problem(key, &format!("a whole number from 1 to {most}"));
            1
        })
    }

    /// A number of this kind.
    pub fn number(&mut self, key: &str, default: f64, (expected, holds): Rule) -> f64 {
        let Some(found) = self.get(key) else { return default };
        found.as_f64().filter(|&x| holds(x)).unwrap_or_else(|| {
            self.problem(key, expected);
            default
        })
    }

    /// The number of a token.
    pub fn token(&mut self, key: &str, default: usize) -> usize {
        let Some(found) = self.get(key) else { return default };
        found.as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or_else(|| {
            self.problem(key, "a token number");
            default
        })
    }

    /// True or false.
    pub fn flag(&mut self, key: &str, default: bool) -> bool {
        let Some(found) = self.get(key) else { return default };
        found.as_bool().unwrap_or_else(|| {
            self.problem(key, "true or false");
            default
        })
    }

    /// Notes sizes that make more parameters than any machine holds.
    pub fn check_parameters(&mut self, parameters: u64) {
        if parameters > MOST_PARAMETERS {
            self.problems.push(format!("these sizes make {parameters} parameters; expected at most {MOST_PARAMETERS}"));
        }
    }
}

/// A JSON value as an error shows it.
pub(crate) fn shown(value: Option<&Value>) -> String {
    let Some(value) = value else { return "nothing".to_string() };
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
