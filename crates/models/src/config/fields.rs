//! Reading the keys of a `config.json`.

use serde_json::{Map, Value};

use super::ProblemType;

/// More labels than any classifier here can sensibly have.
const MOST_LABELS: usize = 100_000;
/// More parameters than fit into any machine this is for; below it, no product of sizes overflows.
const MOST_PARAMETERS: u64 = 100_000_000_000;

/// What a number has to be, in words and as a check.
type Rule = (&'static str, fn(f64) -> bool);
pub(super) const POSITIVE: Rule = ("a number above 0 and at most 1", |x| x > 0.0 && x <= 1.0);
pub(super) const PROBABILITY: Rule = ("a number from 0 to below 1", |x| (0.0..1.0).contains(&x));

/// Reads single keys; notes what is wrong and goes on with a harmless value.
pub(super) struct Fields<'a> {
    pub(super) json: &'a Map<String, Value>,
    pub(super) problems: Vec<String>,
}

impl<'a> Fields<'a> {
    /// A value that is there and not null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|v| !v.is_null())
    }

    fn wrong(&self, key: &str, expected: &str) -> String {
        format!("{key}: expected {expected}, found {}", shown(self.json.get(key)))
    }

    pub(super) fn problem(&mut self, key: &str, expected: &str) {
        self.problems.push(self.wrong(key, expected));
    }

    pub(super) fn size(&mut self, key: &str, default: Option<usize>, most: usize) -> usize {
        let found = match (self.get(key), default) {
            (None, Some(default)) => return default,
            (found, _) => found.and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()),
        };
        found.filter(|n| (1..=most).contains(n)).unwrap_or_else(|| {
            self.problem(key, &format!("a whole number from 1 to {most}"));
            1
        })
    }

    pub(super) fn number(&mut self, key: &str, default: f64, (expected, holds): Rule) -> f64 {
        let Some(found) = self.get(key) else { return default };
        found.as_f64().filter(|&x| holds(x)).unwrap_or_else(|| {
            self.problem(key, expected);
            default
        })
    }

    pub(super) fn token(&mut self, key: &str, default: usize) -> usize {
        let Some(found) = self.get(key) else { return default };
        found.as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or_else(|| {
            self.problem(key, "a token number");
            default
        })
    }

    pub(super) fn flag(&mut self, key: &str, default: bool) -> bool {
        let Some(found) = self.get(key) else { return default };
        found.as_bool().unwrap_or_else(|| {
            self.problem(key, "true or false");
            default
        })
    }

    pub(super) fn check_parameters(&mut self, parameters: u64) {
        if parameters > MOST_PARAMETERS {
            self.problems.push(format!("these sizes make {parameters} parameters; expected at most {MOST_PARAMETERS}"));
        }
    }

    /// What the head's outputs are, if the file says so, or what is wrong with what it says.
    pub(super) fn problem_type(&self) -> Result<Option<ProblemType>, String> {
        let Some(found) = self.get("problem_type") else { return Ok(None) };
        match ProblemType::ALL.iter().find(|(name, _)| found == name) {
            Some((_, problem)) => Ok(Some(*problem)),
            None => {
                let names = ProblemType::ALL.map(|(name, _)| format!("{name:?}"));
                Err(self.wrong("problem_type", &names.join(" or ")))
            }
        }
    }

    /// From `id2label`, else `label2id`, else `num_labels`, else two; or what is wrong with them.
    pub(super) fn labels(&self) -> Result<Vec<String>, String> {
        let (key, pairs) = if let Some(map) = self.get("id2label") {
            (
                "id2label",
                map.as_object().map(|map| map.iter().map(|(id, l)| Some((id.parse().ok()?, l.as_str()?))).collect()),
            )
        } else if let Some(map) = self.get("label2id") {
            let id = |id: &Value| usize::try_from(id.as_u64()?).ok();
            ("label2id", map.as_object().map(|map| map.iter().map(|(l, i)| Some((id(i)?, l.as_str()))).collect()))
        } else {
            let Some(n) = self.get("num_labels") else { return Ok(unnamed(2)) };
            let n = n.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=MOST_LABELS).contains(n));
            return n
                .map(unnamed)
                .ok_or_else(|| self.wrong("num_labels", &format!("a whole number from 1 to {MOST_LABELS}")));
        };
        let mut pairs: Vec<(usize, &str)> = pairs.flatten().unwrap_or_default();
        pairs.sort_unstable();
        if pairs.is_empty() || pairs.len() > MOST_LABELS || pairs.iter().enumerate().any(|(i, (id, _))| *id != i) {
            return Err(self.wrong(key, &format!("names for the labels 0, 1, 2, … (at most {MOST_LABELS})")));
        }
        Ok(pairs.into_iter().map(|(_, label)| label.to_string()).collect())
    }
}

/// The names of so many labels that have none.
pub(super) fn unnamed(labels: usize) -> Vec<String> {
    (0..labels).map(|i| format!("LABEL_{i}")).collect()
}

/// A JSON value as an error shows it.
pub(super) fn shown(value: Option<&Value>) -> String {
    let Some(value) = value else { return "nothing".to_string() };
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
