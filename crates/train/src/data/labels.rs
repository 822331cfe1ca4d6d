//! From the labels of a file to class indices or numbers.

use super::Examples;
use crate::tasks::Task;
use colrow_tensor::{Error, Result};
use std::collections::BTreeSet;

/// The labels of a set of examples, in its order.
#[derive(Clone, Debug, PartialEq)]
pub enum Labels {
    /// Class indices.
    Class(Vec<u32>),
    /// Numbers to regress to; finite.
    Value(Vec<f32>),
    /// Token ids of target texts, none empty.
    Text(Vec<Vec<u32>>),
}

impl Labels {
    /// Number of examples.
    pub fn len(&self) -> usize {
        match self {
            Labels::Class(v) => v.len(),
            Labels::Value(v) => v.len(),
            Labels::Text(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The labels of the examples `indices`.
    pub fn select(&self, indices: &[u32]) -> Labels {
        match self {
            Labels::Class(v) => Labels::Class(indices.iter().map(|&i| v[i as usize]).collect()),
            Labels::Value(v) => Labels::Value(indices.iter().map(|&i| v[i as usize]).collect()),
            Labels::Text(v) => Labels::Text(indices.iter().map(|&i| v[i as usize].clone()).collect()),
        }
    }
}

/// How labels become what the loss needs. Made from the training data or from a model's `config.json`, and applied to
/// every other file, so that a class has the same index everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelMap {
    /// Class `i` has the name `names[i]`.
    Names {
        /// Distinct names by class index.
        names: Vec<String>,
        /// Whether a file may also give the class index, as files of `datasets` do.
        or_index: bool,
    },
    /// The label is a number.
    Value,
}

impl LabelMap {
    /// The map for `task` trained on `train`.
    ///
    /// GLUE's classification tasks have their own names; a file may give the name or the class index. For `classify`, labels that are all
    /// integers are ordered as numbers (so 0..k−1 keep their place; `1.0` is 1), others by their bytes. Errors if a label
    /// is missing or all are the same.
    pub fn of(task: Task, train: &Examples) -> Result<Self> {
        if task.is_regression() {
            return Ok(LabelMap::Value);
        }
        if let Some(names) = task.labels() {
            return Ok(Self::from_names(names.iter().map(|&name| name.to_owned()).collect()));
        }
        let labels: BTreeSet<&str> = (0..train.rows.len()).map(|i| label(train, i)).collect::<Result<_>>()?;
        let integers: Option<BTreeSet<i64>> = labels.iter().map(|label| integer(label)).collect();
        let names: Vec<String> = match integers {
            Some(numbers) => numbers.iter().map(i64::to_string).collect(),
            None => labels.into_iter().map(str::to_owned).collect(),
        };
        if names.len() < 2 {
            let found = names.first().map_or("none".to_owned(), |name| format!("only {name:?}"));
            return Err(Error::new(format!("expected at least two different labels, found {found}"))
                .at(train.source.display())
                .hint("for a number as label, use task = \"regress\""));
        }
        Ok(LabelMap::Names { names, or_index: false })
    }

    /// The map of a trained model: `names[i]` is `id2label[i]` of its `config.json`.
    pub fn from_names(names: Vec<String>) -> Self {
        let or_index = names.iter().all(|name| integer(name).is_none());
        LabelMap::Names { names, or_index }
    }

    /// The names by class index; empty for regression.
    pub fn names(&self) -> &[String] {
        match self {
            LabelMap::Names { names, .. } => names,
            LabelMap::Value => &[],
        }
    }

    /// Number of outputs that a model needs: the number of classes, or 1.
    pub fn outputs(&self) -> usize {
        match self {
            LabelMap::Names { names, .. } => names.len(),
            LabelMap::Value => 1,
        }
    }

    /// Resolves the labels of `examples`. Errors name the line.
    pub fn resolve(&self, examples: &Examples) -> Result<Labels> {
        let rows = 0..examples.rows.len();
        let place = |i, result: Result<_>| result.map_err(|e| examples.place(e, i));
        match self {
            LabelMap::Names { names, or_index } => {
                let class = |i| {
                    let label = label(examples, i)?;
                    place(i, class(names, *or_index, label).ok_or_else(|| unknown(names, label)))
                };
                Ok(Labels::Class(rows.map(class).collect::<Result<_>>()?))
            }
            LabelMap::Value => {
                let value = |i| {
                    let label = label(examples, i)?;
                    value(label).map_err(|e| examples.place(e, i))
                };
                Ok(Labels::Value(rows.map(value).collect::<Result<_>>()?))
            }
        }
    }
}

fn label(examples: &Examples, i: usize) -> Result<&str> {
    let missing = || examples.place(Error::new("the label is missing"), i);
    examples.rows[i].label.as_deref().ok_or_else(missing)
}

fn class(names: &[String], or_index: bool, label: &str) -> Option<u32> {
    let by_name = |label: &str| names.iter().position(|name| name == label);
    let number = || integer(label);
    let by_index = || number().filter(|_| or_index).and_then(|n| usize::try_from(n).ok()).filter(|&n| n < names.len());
    let index = by_name(label).or_else(|| number().and_then(|n| by_name(&n.to_string()))).or_else(by_index);
    index.map(|i| i as u32)
}

fn unknown(names: &[String], label: &str) -> Error {
    const SHOWN: usize = 20;
    let mut known = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        known += &format!(" and {} more", names.len() - SHOWN);
    }
    Error::new(format!("unknown label {label:?}; known: {known}"))
}

/// The integer that `label` spells, also as a float without fraction.
fn integer(label: &str) -> Option<i64> {
    const EXACT: f64 = (1_i64 << 53) as f64;
    let float = || label.parse::<f64>().ok().filter(|v| v.fract() == 0.0 && v.abs() < EXACT).map(|v| v as i64);
    label.parse().ok().or_else(float)
}

fn value(label: &str) -> Result<f32> {
    match label.parse::<f32>() {
        Ok(v) if v.is_finite() => Ok(v),
        Ok(_) => Err(Error::new(format!("expected a finite number as label, found {label}"))),
        Err(_) => Err(Error::new(format!("expected a number as label, found {label:?}"))
            .hint("for labels that are classes, use task = \"classify\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Example;
    use super::*;

    fn examples(labels: &[&str]) -> Examples {
        let row = |(i, label): (usize, &&str)| Example {
            text: String::new(),
            pair: None,
            label: (!label.is_empty()).then(|| label.to_string()),
            line: i as u64 + 2,
        };
        Examples { rows: labels.iter().enumerate().map(row).collect(), source: "a.csv".into(), ..Examples::default() }
    }

    fn classes(task: Task, train: &[&str], labels: &[&str]) -> Result<Labels> {
        LabelMap::of(task, &examples(train)).unwrap().resolve(&examples(labels))
    }

    #[test]
    fn integers_keep_their_order_and_floats_count() {
        let map = LabelMap::of(Task::Classify, &examples(&["10", "0", "2.0", "1"])).unwrap();
        assert_eq!(map.names(), ["0", "1", "2", "10"]);
        assert_eq!(map.resolve(&examples(&["2", "10.0", "0"])).unwrap(), Labels::Class(vec![2, 3, 0]));
        // 3 is a class index but no label
        assert!(map.resolve(&examples(&["3"])).is_err());
    }

    #[test]
    fn strings_are_sorted() {
        let map = LabelMap::of(Task::Classify, &examples(&["pos", "1", "neg"])).unwrap();
        assert_eq!((map.names(), map.outputs()), (&["1".to_owned(), "neg".into(), "pos".into()][..], 3));
        let message = map.resolve(&examples(&["neg", "meh"])).unwrap_err().to_string();
        assert_eq!(message, "unknown label \"meh\"; known: 1, neg, pos\n  in line 3\n  in a.csv");
    }

    #[test]
    fn glue_takes_names_and_indices() {
        let want = Labels::Class(vec![1, 0, 1]);
        assert_eq!(classes(Task::Rte, &[], &["not_entailment", "0", "1.0"]).unwrap(), want);
        assert_eq!(classes(Task::Sst2, &[], &["1", "0", "1"]).unwrap(), want);
        for bad in ["2", "-1", "contradiction", "0.5"] {
            assert!(classes(Task::Rte, &[], &[bad]).is_err(), "{bad}");
        }
        let config = LabelMap::from_names(vec!["NEGATIVE".into(), "POSITIVE".into()]);
        assert_eq!(config.resolve(&examples(&["1", "NEGATIVE", "1"])).unwrap(), want);
    }

    #[test]
    fn numbers() {
        let map = LabelMap::of(Task::Stsb, &examples(&[])).unwrap();
        assert_eq!(map.outputs(), 1);
        assert_eq!(map.resolve(&examples(&["5.000", "-1e-3"])).unwrap(), Labels::Value(vec![5.0, -0.001]));
        for (bad, what) in [("NaN", "finite"), ("-inf", "finite"), ("1e99", "finite"), ("x", "a number as label")] {
            let message = map.resolve(&examples(&["1", bad])).unwrap_err().to_string();
            assert!(message.contains(what) && message.contains(bad) && message.contains("line 3"), "{message}");
        }
    }

    #[test]
    fn missing_or_constant() {
        let message = classes(Task::Rte, &[], &["0", ""]).unwrap_err().to_string();
        assert_eq!(message, "the label is missing\n  in line 3\n  in a.csv");
        assert!(LabelMap::of(Task::Classify, &examples(&["a", ""])).is_err());
        let message = LabelMap::of(Task::Classify, &examples(&["a", "a"])).unwrap_err().to_string();
        assert!(message.contains("found only \"a\""), "{message}");
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..30).map(|i| format!("c{i}")).collect();
        let message = LabelMap::from_names(names).resolve(&examples(&["x"])).unwrap_err().to_string();
        assert!(message.contains("c19 and 10 more"), "{message}");
    }
}
