//! From the labels of a file to class indices or numbers.

use super::alike::{difference, in_quotes, integer, same_integers};
use super::classes::{Classes, SHOWN, is_unnamed, listed, names_of_file};
use super::missing::missing;
use super::problems::Problems;
use super::{Example, Examples};
use crate::tasks::Task;
use colrow_models::config::{Config, ProblemType};
use colrow_tensor::{Error, Result};
use std::collections::{BTreeSet, HashSet};

/// The labels of a set of examples, in its order.
#[derive(Clone, Debug, PartialEq)]
pub enum Labels {
    /// Class indices.
    Class(Vec<u32>),
    /// Numbers to regress to; finite.
    Value(Vec<f32>),
}

impl Labels {
    /// Number of examples.
    pub fn len(&self) -> usize {
        match self {
            Labels::Class(v) => v.len(),
            Labels::Value(v) => v.len(),
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
        }
    }
}

/// How labels become what the loss needs. Made from the training data or from a model's `config.json`, and applied to
/// every other file, so that a class has the same index everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelMap {
    /// The label is a class.
    Names(Classes),
    /// The label is a number.
    Value,
}

/// Rows below which nearly as many labels as rows say nothing.
const FEW_ROWS: usize = 20;

/// Words that programs write for no value, and that may also be the name of a class.
const PERHAPS_MISSING: [&str; 6] = ["na", "n/a", "none", "null", "nil", "missing"];

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

    /// The same classes in the order of a checkpoint's head, whose output `i` is called `head[i]`: each row of it stays with its name.
    /// A head of as many other names keeps its rows and takes these.
    #[must_use]
    pub fn in_order_of(self, task: Task, head: &[String], train: &Examples) -> Self {
        let LabelMap::Names(mut classes) = self else { return self };
        if head.len() != classes.names.len() || is_unnamed(head) || head == classes.names {
            return LabelMap::Names(classes);
        }
        let others = Classes::new(head.to_vec());
        if task.labels().is_some() {
            let LabelMap::Names(mut of_head) = Self::of_model(task, head.to_vec()) else { return LabelMap::Value };
            if of_head.by_index.iter().all(Option::is_some)
                && of_head.names.len() == of_head.by_index.len()
                && of_head.notes.is_empty()
            {
                of_head.notes = classes.notes;
                return LabelMap::Names(of_head);
            }
            classes.notes.push(renamed(head, &classes.names));
            return LabelMap::Names(classes);
        }
        let mut places: Vec<Option<String>> = vec![None; head.len()];
        let mut rest = classes.names.clone();
        for find in [Classes::exact as fn(&Classes, &str) -> Option<u32>, Classes::find] {
            rest.retain(|name| match find(&others, name).map(|i| i as usize) {
                Some(i) if places[i].is_none() => {
                    places[i] = Some(name.clone());
                    false
                }
                _ => true,
            });
        }
        if rest.len() == head.len() {
            classes.notes.push(renamed(head, &classes.names));
            return LabelMap::Names(classes);
        }
        let mut rest = rest.into_iter();
        let names: Vec<String> = places.into_iter().filter_map(|place| place.or_else(|| rest.next())).collect();
        let mut ordered = Classes { notes: classes.notes, ..Classes::new(names) };
        if ordered.names != head {
            ordered.notes.push(renamed(head, &ordered.names));
        }
        if !train.classes.is_empty() {
            // an index in another file of this data is the data's
            ordered.by_index = train.classes.iter().map(|name| ordered.exact(name)).collect();
            ordered.indices_are_told = true;
        }
        LabelMap::Names(ordered)
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

fn renamed(from: &[String], to: &[String]) -> String {
    format!("the labels of the checkpoint's head, {}, become {}, in this order", listed(from), listed(to))
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
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
    use super::super::Example;
    use super::*;

    fn examples(labels: &[&str]) -> Examples {
        let row = |(i, label): (usize, &&str)| Example {
            text: String::new(),
            pair: None,
            label: (!label.is_empty()).then(|| label.to_string()),
            line: i as u64 + 2,
            row: i as u64,
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
        assert_eq!(message, "unknown label \"meh\"\n  in line 3\n  in a.csv\n  hint: known: 1, neg, pos");
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

    fn words(names: &[&str]) -> Vec<String> {
        owned(names)
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
    fn a_heads_rows_stay_with_their_names() {
        let train = examples(&["a", "b", "c"]);
        let of = |head: &[&str]| {
            LabelMap::of(Task::Classify, &train).unwrap().in_order_of(Task::Classify, &words(head), &train)
        };
        let told = |head: &[&str]| of(head).warnings(&train).join("\n");
        assert_eq!(of(&["c", "a", "b"]).names(), ["c", "a", "b"]);
        assert_eq!(of(&["c", "a", "b"]).resolve(&train).unwrap(), Labels::Class(vec![1, 2, 0]));
        assert_eq!(told(&["c", "a", "b"]), "");
        // by case, with a word; the data's writing stays
        assert_eq!(of(&["C", "a", "B"]).names(), ["c", "a", "b"]);
        assert!(told(&["C", "a", "B"]).contains("C, a, B, become c, a, b, in this order"));
        assert_eq!(of(&["c", "x", "a"]).names(), ["c", "b", "a"]);
        assert!(told(&["c", "x", "a"]).contains("c, x, a, become c, b, a"));
        assert_eq!(of(&["x", "y", "z"]).names(), ["a", "b", "c"]);
        assert!(told(&["x", "y", "z"]).contains("x, y, z, become a, b, c"));
        for other in [&["LABEL_0", "LABEL_1", "LABEL_2"][..], &["0", "1", "2"], &["b", "a"]] {
            assert_eq!((of(other).names().join(" "), told(other)), ("a b c".into(), String::new()));
        }
        // an index stays that of the file's own names
        let named = Examples { classes: words(&["a", "b", "c"]), ..examples(&["a", "b", "c"]) };
        let map =
            LabelMap::of(Task::Classify, &named).unwrap().in_order_of(Task::Classify, &words(&["c", "a", "b"]), &named);
        assert_eq!(map.resolve(&examples(&["0", "1", "2"])).unwrap(), Labels::Class(vec![1, 2, 0]));
    }

    #[test]
    fn a_tasks_head_keeps_its_names() {
        let train = examples(&["0", "1", "2"]);
        let of = |task, head: &[&str]| LabelMap::of(task, &train).unwrap().in_order_of(task, &words(head), &train);
        let map = of(Task::Mnli, &["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]);
        assert_eq!(map.names(), ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]);
        assert_eq!(map.resolve(&train).unwrap(), Labels::Class(vec![2, 1, 0]));
        assert_eq!(
            of(Task::Mnli, &["LABEL_0", "LABEL_1", "LABEL_2"]).names(),
            ["entailment", "neutral", "contradiction"]
        );
        assert_eq!(of(Task::Sst2, &["positive", "negative"]).class("1"), Some(0));
        let other = of(Task::Mnli, &["x", "y", "z"]);
        assert_eq!(other.names(), ["entailment", "neutral", "contradiction"]);
        assert!(other.warnings(&train)[0].contains("x, y, z, become entailment, neutral, contradiction"));
        assert_eq!(of(Task::Stsb, &["LABEL_0"]), LabelMap::Value);
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

    #[test]
    fn errors_come_together() {
        let labels: Vec<&str> = (0..40).map(|i| if i % 2 == 0 { "yes" } else { "maybe" }).collect();
        let message = LabelMap::from_names(words(&["no", "yes"])).resolve(&examples(&labels)).unwrap_err().to_string();
        let want = "unknown label \"maybe\"\n  in lines 3, 5, 7, 9, 11 and 15 more\n  in a.csv\n  hint: known: no, yes";
        assert_eq!(message, want);
        let message = LabelMap::from_names(words(&["no", "yes"])).resolve(&examples(&["-1"])).unwrap_err().to_string();
        assert!(message.contains("is this a test split?"), "{message}");
    }

    #[test]
    fn many_labels_take_no_longer_each() {
        let labels: Vec<String> = (0..200_000).map(|i| format!("label {}", i % 100_000)).collect();
        let train = examples(&labels.iter().map(String::as_str).collect::<Vec<_>>());
        let clock = std::time::Instant::now();
        let map = LabelMap::of(Task::Classify, &train).unwrap();
        let head: Vec<String> = map.names().iter().rev().cloned().collect();
        let map = map.in_order_of(Task::Classify, &head, &train);
        assert_eq!((map.names(), map.resolve(&train).unwrap().len()), (&head[..], 200_000));
        assert!(map.warnings(&train).is_empty());
        // a search through all names for each row takes minutes
        assert!(clock.elapsed().as_secs() < 20, "{:?}", clock.elapsed());
    }
}
