//! From the labels of a file to class indices or numbers: the map, and reading labels by it. How it is made from training data, and how
//! it takes the order of a checkpoint's head, are in its folder.

mod from_training;
mod head_order;

use super::alike::difference;
use super::classes::{Classes, SHOWN};
use super::missing::missing;
use super::problems::Problems;
use super::{Example, Examples, Labels};
use crate::tasks::Task;
use colrow_models::config::{Config, ProblemType};
use colrow_tensor::{Error, Result};
use std::collections::BTreeSet;

/// How labels become what the loss needs. Made from the training data or from a model's `config.json`, and applied to
/// every other file, so that a class has the same index everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelMap {
    /// The label is a class.
    Names(Classes),
    /// The label is a number.
    Value,
}

/// Words that programs write for no value, and that may also be the name of a class.
const PERHAPS_MISSING: [&str; 6] = ["na", "n/a", "none", "null", "nil", "missing"];

impl LabelMap {
    /// The map of a model whose output `i` is called `names[i]`.
    pub fn from_names(names: Vec<String>) -> Self {
        LabelMap::Names(Classes::new(names))
    }

    /// The map of a model whose output `i` is called `names[i]`, for data of `task`.
    ///
    /// The classes of a GLUE task reach the outputs of their names, whatever their order, case and white space, by the task's names and by
    /// its indices; by number alone where the model's outputs have no names of the task.
    pub fn of_model(task: Task, names: Vec<String>) -> Self {
        if task.is_regression() {
            return LabelMap::Value;
        }
        let mut classes = Classes::new(names);
        if let (Some(labels), Some(words)) = (task.labels(), task.class_names()) {
            classes.speak(task, labels, words);
        }
        LabelMap::Names(classes)
    }

    /// The names by class index; empty for regression.
    pub fn names(&self) -> &[String] {
        match self {
            LabelMap::Names(classes) => &classes.names,
            LabelMap::Value => &[],
        }
    }

    /// Number of outputs that a model needs: the number of classes, or 1.
    pub fn outputs(&self) -> usize {
        match self {
            LabelMap::Names(classes) => classes.names.len(),
            LabelMap::Value => 1,
        }
    }

    /// Gives a model's configuration these labels.
    pub fn write_to(&self, config: &mut Config) {
        match self {
            LabelMap::Value => config.set_head(vec!["LABEL_0".into()], ProblemType::Regression),
            LabelMap::Names(_) => config.set_head(self.names().to_vec(), ProblemType::Classification),
        }
    }

    /// The class that a label means, by name or index.
    pub fn class(&self, label: &str) -> Option<u32> {
        match self {
            LabelMap::Names(classes) => classes.class(label),
            LabelMap::Value => None,
        }
    }

    /// Resolves the labels of `examples`. The error names the lines.
    pub fn resolve(&self, examples: &Examples) -> Result<Labels> {
        let mut problems = Problems::default();
        let labels = match self {
            LabelMap::Names(classes) => {
                let class = classes.reader(examples);
                Labels::Class(each(examples, &mut problems, |label| class(label).ok_or_else(|| classes.unknown(label))))
            }
            LabelMap::Value => Labels::Value(each(examples, &mut problems, value)),
        };
        problems.finish(&examples.unit.to_string()).map_err(|e| examples.in_source(e))?;
        Ok(labels)
    }

    /// What the user should know about the classes and how the labels of `examples` reach them.
    pub fn warnings(&self, examples: &Examples) -> Vec<String> {
        let LabelMap::Names(classes) = self else { return vec![] };
        let by_case = |label: &&str| classes.as_written(label).is_none();
        let labels: BTreeSet<&str> = examples.rows.iter().filter_map(|e| e.label.as_deref()).filter(by_case).collect();
        let read = labels.iter().filter_map(|label| Some((label, classes.class(label)?))).take(SHOWN);
        let said = read.map(|(label, class)| {
            let name = &classes.names[class as usize];
            let (label, name, how) = difference(label, name);
            format!("label {label} is read as {name}, from which it differs only {how}")
        });
        classes.notes.iter().cloned().chain(said).chain(classes.by_place(examples)).collect()
    }
}

/// The labels of all examples by `read`; those that are missing or refused are added to `problems`.
fn each<T>(examples: &Examples, problems: &mut Problems, read: impl Fn(&str) -> Result<T>) -> Vec<T> {
    let read = |example: &Example| match example.label.as_deref().ok_or_else(|| missing("")).and_then(&read) {
        Ok(label) => Some(label),
        Err(e) => {
            problems.add(example.line, e);
            None
        }
    };
    examples.rows.iter().filter_map(read).collect()
}

/// What to do where nearly every row has a label of its own.
pub(crate) const OTHER_COLUMN: &str = " For numbers to predict use task = \"regress\"; data.label names another column";

/// `500 labels in 500 rows`.
pub(crate) fn in_rows(labels: usize, examples: &Examples) -> String {
    format!("{labels} labels in {} rows", examples.rows.len())
}

fn is_perhaps_missing(label: &str) -> bool {
    PERHAPS_MISSING.iter().any(|word| label.eq_ignore_ascii_case(word))
}

fn infinite(label: &str) -> Error {
    Error::new(format!("expected a finite number as label, found {label}"))
}

fn value(label: &str) -> Result<f32> {
    if is_perhaps_missing(label) {
        return Err(missing(label));
    }
    match label.parse::<f32>() {
        Ok(v) if v.is_finite() => Ok(v),
        Ok(_) => Err(infinite(label)),
        Err(_) => Err(Error::new(format!("expected a number as label, found {label:?}"))
            .hint("for labels that are classes, use task = \"classify\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn examples(labels: &[&str]) -> Examples {
        let row = |(i, label): (usize, &&str)| Example {
            label: (!label.is_empty()).then(|| label.to_string()),
            line: i as u64 + 2,
            row: i as u64,
            ..Example::default()
        };
        Examples { rows: labels.iter().enumerate().map(row).collect(), source: "a.csv".into(), ..Examples::default() }
    }

    pub(super) fn classes(task: Task, train: &[&str], labels: &[&str]) -> Result<Labels> {
        LabelMap::of(task, &examples(train)).unwrap().resolve(&examples(labels))
    }

    pub(super) fn words(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
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
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..30).map(|i| format!("c{i}")).collect();
        let message = LabelMap::from_names(names).resolve(&examples(&["x"])).unwrap_err().to_string();
        assert!(message.contains("c19 and 10 more"), "{message}");
    }

    #[test]
    fn a_task_reaches_the_outputs_of_its_names() {
        let want = Labels::Class(vec![2, 1, 0]);
        // names in another order and case, as roberta-large-mnli has them
        let names = words(&["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]);
        let map = LabelMap::of_model(Task::Mnli, names.clone());
        assert_eq!(map.names(), names);
        for labels in [["0", "1", "2"], ["0.0", "1.0", "2.0"], ["entailment", "neutral", "contradiction"]] {
            assert_eq!(map.resolve(&examples(&labels)).unwrap(), want);
            assert_eq!(map.warnings(&examples(&labels)), [""; 0]);
        }
        let cased = examples(&["ENTAILMENT", " neutral", "Contradiction "]);
        assert_eq!(map.resolve(&cased).unwrap(), want);
        // sentiment, whose classes GLUE's files know by number alone
        let map = LabelMap::of_model(Task::Sst2, words(&["POSITIVE", "NEGATIVE"]));
        assert_eq!(map.resolve(&examples(&["0", "1", "positive"])).unwrap(), Labels::Class(vec![1, 0, 0]));
        assert_eq!(LabelMap::of_model(Task::Stsb, words(&["LABEL_0"])), LabelMap::Value);
    }

    #[test]
    fn outputs_without_names_are_numbers() {
        for names in [&["LABEL_0", "LABEL_1", "LABEL_2"], &["0", "1", "2"]] {
            let map = LabelMap::of_model(Task::Mnli, words(names));
            let labels = ["0", "2", "neutral"];
            assert_eq!(map.resolve(&examples(&labels)).unwrap(), Labels::Class(vec![0, 2, 1]));
            assert_eq!(map.warnings(&examples(&labels)), [""; 0]);
        }
        let map = LabelMap::of_model(Task::Sst2, words(&["bad", "good"]));
        assert_eq!(map.resolve(&examples(&["0", "1"])).unwrap(), Labels::Class(vec![0, 1]));
        let warnings = map.warnings(&examples(&[]));
        assert!(warnings[0].contains("labels bad, good are none of sst2's negative, positive"), "{warnings:?}");
        // two of three
        let map = LabelMap::of_model(Task::Mnli, words(&["contradiction", "entailment"]));
        assert_eq!(map.resolve(&examples(&["0", "2"])).unwrap(), Labels::Class(vec![1, 0]));
        assert!(map.resolve(&examples(&["1"])).unwrap_err().to_string().contains("unknown label \"1\""));
    }

    #[test]
    fn integers_read_by_place_alone_are_told() {
        let said = |map: &LabelMap, labels: &[&str]| map.warnings(&examples(labels)).join("\n");
        let map = LabelMap::from_names(words(&["eggs", "ham"]));
        let by_place = "integer labels are read by their place in the model's outputs: 0 as \"eggs\", 1 as \"ham\"";
        assert_eq!(said(&map, &["1", "0", "1"]), by_place);
        assert_eq!(said(&map, &["ham", "eggs"]), "");
        // the file names them, the task does, or there is nothing else to go by
        let named = Examples { classes: words(&["ham", "eggs"]), ..examples(&["ham", "eggs"]) };
        assert_eq!(map.warnings(&named), Vec::<String>::new());
        assert_eq!(said(&LabelMap::of(Task::Classify, &named).unwrap(), &["0", "1"]), "");
        assert_eq!(said(&LabelMap::of_model(Task::Sst2, words(&["positive", "negative"])), &["0", "1"]), "");
        assert_eq!(said(&LabelMap::from_names(words(&["LABEL_0", "LABEL_1"])), &["0", "1"]), "");
    }

    #[test]
    fn integers_that_a_file_names_are_these_names() {
        let named = |labels: &[&str]| Examples { classes: words(&["neg", "pos", "meh"]), ..examples(labels) };
        let train = named(&["pos", "neg", "pos"]);
        let map = LabelMap::of(Task::Classify, &train).unwrap();
        assert_eq!(map.names(), ["neg", "pos", "meh"], "the order of the file, with what is not there");
        assert_eq!(map.resolve(&examples(&["2", "neg"])).unwrap(), Labels::Class(vec![2, 0]));
        let model = LabelMap::of_model(Task::Classify, words(&["meh", "Pos", "neg"]));
        assert_eq!(model.resolve(&train).unwrap(), Labels::Class(vec![1, 2, 1]));
        assert!(model.warnings(&train)[0].contains("label \"pos\" is read as \"Pos\""));
        for unnamed in [["LABEL_0", "LABEL_1", "LABEL_2"], ["0", "1", "2"]] {
            let model = LabelMap::of_model(Task::Classify, words(&unnamed));
            assert_eq!(model.resolve(&train).unwrap(), Labels::Class(vec![1, 0, 1]));
        }
        let model = LabelMap::of_model(Task::Classify, words(&["no", "yes", "other"]));
        assert!(model.resolve(&train).is_err(), "not by position where names are known");
        // names that are numbers, of integers from 0
        let stars = Examples { classes: words(&["1", "2"]), ..examples(&["1", "2"]) };
        let model = LabelMap::of_model(Task::Classify, words(&["LABEL_0", "LABEL_1"]));
        assert_eq!(model.resolve(&stars).unwrap(), Labels::Class(vec![0, 1]));
    }

    #[test]
    fn truth_values_are_the_same_in_every_format() {
        let (zero, words) = (["0", "1", "0"], ["False", "true", "FALSE"]);
        for (train, test) in [(zero, words), (["False", "True", "False"], zero)] {
            let map = LabelMap::of(Task::Classify, &examples(&train)).unwrap();
            assert_eq!(map.resolve(&examples(&test)).unwrap(), Labels::Class(vec![0, 1, 0]), "{train:?}");
        }
        let three = LabelMap::of(Task::Classify, &examples(&["0", "1", "2"])).unwrap();
        assert!(three.resolve(&examples(&["true"])).is_err());
    }

    #[test]
    fn errors_come_together() {
        let labels: Vec<&str> = (0..40).map(|i| if i % 2 == 0 { "yes" } else { "maybe" }).collect();
        let message = LabelMap::from_names(words(&["no", "yes"])).resolve(&examples(&labels)).unwrap_err().to_string();
        let want = "unknown label \"maybe\"\n  in lines 3, 5, 7, 9, 11 and 15 more\n  in a.csv\n  hint: known: no, yes";
        assert_eq!(message, want);
        let message = LabelMap::from_names(words(&["no", "yes"])).resolve(&examples(&["-1"])).unwrap_err().to_string();
        assert!(message.contains("is this a test split?"), "{message}");
    }
}
