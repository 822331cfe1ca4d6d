//! The label map that training data gives: which classes its labels are, and in which order.

use super::super::Examples;
use super::super::alike::{in_quotes, integer, same_integers};
use super::super::classes::{Classes, SHOWN, names_of_file};
use super::super::missing::missing;
use super::super::problems::Problems;
use super::{LabelMap, OTHER_COLUMN, in_rows, infinite, is_perhaps_missing};
use crate::tasks::Task;
use colrow_tensor::{Error, Result};
use std::collections::{BTreeSet, HashSet};

/// Rows below which nearly as many labels as rows say nothing.
const FEW_ROWS: usize = 20;

impl LabelMap {
    /// The map for `task` trained on `train`.
    ///
    /// GLUE's classification tasks have their own names, unless the file names as many; a file may give the name or the class index. For `classify`, names that the file
    /// gives beside its integers keep that order; labels that are all
    /// integers are ordered as numbers (so 0..k−1 keep their place; `1.0` is 1), others by their bytes. Errors if a label
    /// is missing or all are the same. A word such as `NA` is a missing label where all others are numbers, else a class.
    pub fn of(task: Task, train: &Examples) -> Result<Self> {
        if let Some(names) = task.labels() {
            let names = names_of_file(task, &train.classes).unwrap_or_else(|| owned(names));
            return Ok(Self::of_model(task, names));
        }
        if task.is_regression() {
            return Ok(LabelMap::Value);
        }
        let labels: BTreeSet<&str> = train.rows.iter().filter_map(|e| e.label.as_deref()).collect();
        let (perhaps, certain): (Vec<&str>, Vec<&str>) = labels.iter().partition(|label| is_perhaps_missing(label));
        let numbers = !certain.is_empty() && certain.iter().all(|label| label.parse::<f64>().is_ok());
        let mut problems = Problems::default();
        for example in &train.rows {
            match example.label.as_deref() {
                None => problems.add(example.line, missing("")),
                Some(label) if numbers && is_perhaps_missing(label) => problems.add(example.line, missing(label)),
                // a word among words
                Some(label) if numbers && label.parse::<f64>().is_ok_and(f64::is_infinite) => {
                    problems.add(example.line, infinite(label));
                }
                Some(_) => {}
            }
        }
        problems.finish(&train.unit.to_string()).map_err(|e| train.in_source(e))?;

        let integers: Option<BTreeSet<i128>> = labels.iter().map(|label| integer(label)).collect();
        let mut names: Vec<String> = match &integers {
            _ if !train.classes.is_empty() => train.classes.clone(),
            Some(numbers) => numbers.iter().map(i128::to_string).collect(),
            None => labels.iter().map(|&label| label.to_owned()).collect(),
        };
        let merged = integers.is_some() && train.classes.is_empty();
        let found = if train.classes.is_empty() { names.len() } else { labels.len() };
        if found < 2 {
            let found = labels.first().map_or("none".to_owned(), |name| format!("only {name:?}"));
            return Err(train
                .in_source(Error::new(format!("expected at least two different labels, found {found}")))
                .hint("for a number as label, use task = \"regress\""));
        }
        let mut seen = HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        let mut classes = Classes { indices_are_told: !train.classes.is_empty(), ..Classes::new(names) };
        classes.notes.extend(perhaps.iter().map(|label| format!("label {label:?} is read as the name of a class")));
        let spelled = same_integers(labels.iter().copied().filter(|_| train.classes.is_empty()));
        classes.notes.extend(spelled.iter().take(SHOWN).map(|(number, labels)| {
            let are = if merged {
                format!("are read as one class, {number}")
            } else {
                "spell one number, and are several classes".into()
            };
            format!("labels {} {are}", in_quotes(labels))
        }));
        if numbers && labels.iter().any(|label| integer(label).is_none()) {
            classes.notes.push(format!(
                "the labels are numbers with fractions and are read as {}; for a number to predict, use task = \"regress\"",
                in_rows(found, train)
            ));
        } else if train.rows.len() >= FEW_ROWS && 2 * found > train.rows.len() {
            classes.notes.push(in_rows(found, train) + ": is this the label's column?" + OTHER_COLUMN);
        }
        Ok(LabelMap::Names(classes))
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::Labels;
    use super::super::tests::{classes, examples, words};
    use super::*;

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
        assert_eq!(message, "unknown label \"meh\"\n  in line 3\n  in a.csv\n  hint: known: 1, neg, pos");
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
    fn a_task_takes_the_names_of_a_file() {
        let named = |classes: &[&str], labels: &[&str]| Examples { classes: words(classes), ..examples(labels) };
        let map = |classes: &[&str]| LabelMap::of(Task::Sst2, &named(classes, &[])).unwrap();
        for (classes, names, labels, want) in [
            (["bad", "good"], ["bad", "good"], ["good", "bad"], [1, 0]),
            (["negative", "positive"], ["negative", "positive"], ["positive", "negative"], [1, 0]),
            // what is 0 in the file is 1 in the task, whose words are T5's
            (["Positive", "Negative"], ["Negative", "Positive"], ["Positive", "Negative"], [1, 0]),
        ] {
            let map = map(&classes);
            assert_eq!(map.names(), names);
            assert_eq!(map.resolve(&named(&classes, &labels)).unwrap(), Labels::Class(want.to_vec()), "{classes:?}");
            // a file without names gives the task's numbers
            assert_eq!(map.resolve(&examples(&["1", "0"])).unwrap(), Labels::Class(vec![1, 0]), "{classes:?}");
        }
        assert_eq!(map(&["a", "b", "c"]).names(), ["0", "1"]);
    }

    #[test]
    fn names_that_are_nearly_one_are_named() {
        let train = examples(&["Yes", "yes", "no", "not  so", "not so"]);
        let map = LabelMap::of(Task::Classify, &train).unwrap();
        assert_eq!(map.outputs(), 5);
        let warnings = map.warnings(&train);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert_eq!(
            warnings[0],
            "labels \"not  so\" and \"not so\" differ only by case or white space, and are two classes"
        );
        assert!(warnings[1].contains("\"Yes\" and \"yes\""));
        // which of the two is meant cannot be known
        assert!(map.resolve(&examples(&["YES"])).is_err());
        assert_eq!(map.resolve(&examples(&["NO"])).unwrap(), Labels::Class(vec![map.class("no").unwrap()]));
    }

    #[test]
    fn spellings_of_one_number_are_named() {
        let told = |labels: &[&str]| {
            let train = examples(labels);
            LabelMap::of(Task::Classify, &train).map(|map| (map.names().join(" "), map.warnings(&train).join("\n")))
        };
        let (names, notes) = told(&["007", "7", "7.0", "1", "0"]).unwrap();
        assert_eq!((&*names, &*notes), ("0 1 7", "labels \"007\", \"7\" and \"7.0\" are read as one class, 7"));
        let (names, notes) = told(&["007", "7", "x"]).unwrap();
        assert_eq!(
            (&*names, &*notes),
            ("007 7 x", "labels \"007\" and \"7\" spell one number, and are several classes")
        );
        let (names, notes) = told(&["18446744073709551616", "18446744073709551617", "5"]).unwrap();
        assert_eq!((&*names, &*notes), ("5 18446744073709551616 18446744073709551617", ""));
        for infinite in ["inf", "-inf", "Infinity", "1e999"] {
            let message = told(&["1", "2", infinite]).unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("expected a finite number as label, found {infinite}\n  in line 4")),
                "{message}"
            );
        }
        assert_eq!(told(&["inf", "word"]).unwrap().0, "inf word");
    }

    #[test]
    fn names_that_look_the_same_are_named() {
        let train = examples(&["caf\u{e9}", "cafe\u{301}", "no", "n\u{200b}o"]);
        let map = LabelMap::of(Task::Classify, &train).unwrap();
        let warnings = map.warnings(&train);
        assert_eq!((map.outputs(), warnings.len()), (4, 2), "{warnings:?}");
        let how = "differ only in how Unicode spells what looks the same, and are two classes";
        assert_eq!(warnings[0], format!("labels \"cafe\\u{{301}}\" and \"caf\\u{{e9}}\" {how}"));
        // in another file it is the class that it looks like
        let map = LabelMap::from_names(words(&["caf\u{e9}", "no"]));
        let other = examples(&["cafe\u{301}", "no"]);
        assert_eq!(map.resolve(&other).unwrap(), Labels::Class(vec![0, 1]));
        assert!(
            map.warnings(&other)[0].contains("is read as \"caf\\u{e9}\", from which it differs only in how Unicode")
        );
    }

    #[test]
    fn words_for_no_value_are_judged_by_the_others() {
        let message = LabelMap::of(Task::Classify, &examples(&["0", "NA", "1", "None"])).unwrap_err().to_string();
        assert!(
            message.starts_with("2 problems\n  line 3: the label is missing: found \"NA\"\n  line 5: "),
            "{message}"
        );
        let train = examples(&["favor", "none", "against"]);
        let map = LabelMap::of(Task::Classify, &train).unwrap();
        assert_eq!(map.names(), ["against", "favor", "none"]);
        assert_eq!(map.warnings(&train), ["label \"none\" is read as the name of a class"]);
        let message = LabelMap::Value.resolve(&examples(&["1", "n/a"])).unwrap_err().to_string();
        assert!(message.starts_with("the label is missing: found \"n/a\"\n  in line 3"), "{message}");
    }

    #[test]
    fn a_label_for_each_row_is_told() {
        let ids: Vec<String> = (0..500).map(|i| format!("id-{i}")).collect();
        let floats: Vec<String> = (0..500).map(|i| (f64::from(i) / 7.0).to_string()).collect();
        for (labels, more) in [(ids, "is this the label's column?"), (floats, "numbers with fractions")] {
            let train = examples(&labels.iter().map(String::as_str).collect::<Vec<_>>());
            let told = LabelMap::of(Task::Classify, &train).unwrap().warnings(&train).join("\n");
            assert!(
                told.contains("500 labels in 500 rows") && told.contains(more) && told.contains("\"regress\""),
                "{told}"
            );
        }
        let few = examples(&["a", "b", "c"]);
        assert_eq!(LabelMap::of(Task::Classify, &few).unwrap().warnings(&few), [""; 0]);
    }
}
