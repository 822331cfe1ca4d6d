//! Scoring predictions against the labels: what is held grows with the examples and with the classes, not with their product.

use crate::data::{LabelMap, Labels};
use crate::metrics::{Metric, Predictions, TokenCounts, accuracy, f1, matthews, pearson, ratio, spearman};
use crate::tasks::Task;
use crate::unknown::unknown;
use colrow_tensor::{Error, Named, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Most classes of which a confusion matrix is made; it has their square in entries.
pub const MOST_CONFUSED: usize = 50;

/// What an evaluation measured.
#[derive(Clone, Debug, Default)]
pub struct Evaluation {
    /// The task's metrics and the loss.
    pub metrics: Vec<(Metric, f64)>,
    /// Number of examples.
    pub examples: usize,
    /// The class that F1 is of, if F1 is among the metrics.
    pub positive: Option<String>,
    /// How each class fares; `None` where there are no classes.
    pub classes: Option<ByClass>,
    /// How many tokens there were, where they are what is predicted.
    pub tokens: Option<TokenCounts>,
}

impl Evaluation {
    /// A metric's value.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        let listed = self.metrics.iter().find(|(m, _)| *m == metric).map(|&(_, x)| x);
        listed.or_else(|| self.classes.as_ref().filter(|_| metric == Metric::MacroF1).map(|c| c.macro_f1))
    }

    /// Metrics by name, and numbers of tokens, each with `prefix` before it.
    pub fn to_json(&self, prefix: &str) -> Map<String, Value> {
        let metrics = self.metrics.iter().map(|(m, x)| (format!("{prefix}{}", m.name()), json!(x)));
        let counts = self.tokens.iter().flat_map(|counts| [("labels", counts.labels), ("tokens", counts.tokens)]);
        metrics.chain(counts.map(|(name, n)| (format!("{prefix}{name}"), json!(n)))).collect()
    }

    /// Class by class: `positive`, the class that F1 is of; `macro_f1`; `classes` (name, precision, recall, f1, support); `confusion`, see
    /// [`ByClass`].
    pub fn by_class(&self) -> Map<String, Value> {
        let mut all = Map::new();
        all.extend(self.positive.iter().map(|name| ("positive".to_owned(), json!(name))));
        if let Some(Value::Object(classes)) = self.classes.as_ref().map(|classes| json!(classes)) {
            all.extend(classes);
        }
        all
    }

    /// As [`Evaluation::by_class`] for logs: no list of more than [`MOST_CONFUSED`] classes.
    pub fn by_class_in_short(&self) -> Map<String, Value> {
        let mut all = self.by_class();
        if self.classes.as_ref().is_some_and(|c| c.classes.len() > MOST_CONFUSED) {
            all.remove("classes");
        }
        all
    }

    /// What the user should know: that all predictions are one class.
    pub fn warning(&self) -> Option<String> {
        let classes = self.classes.as_ref()?;
        let only = &classes.classes[classes.only?];
        let others = classes.classes.iter().any(|c| c.support > 0 && c.name != only.name);
        others.then(|| {
            format!("every prediction is {:?}, the label of {} of {} examples", only.name, only.support, self.examples)
        })
    }
}

/// What is measured: a task's metrics over the classes of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scorer {
    task: Task,
    names: Vec<String>,
    positive: Option<u32>,
    metrics: Vec<Metric>,
}

impl Scorer {
    /// For `task` with the classes `names`, none for regression. F1 is that of the class `positive`, which `key` gave; without it that of
    /// the second of two: of a GLUE task the one that the task has second, wherever the model has it.
    ///
    /// # Errors
    /// A `positive` that is none of `names`, or that the task has no use for.
    pub fn new(task: Task, names: &[String], positive: Option<&str>, key: &str) -> Result<Self> {
        let mut scorer = Self::of(task, names);
        let Some(name) = positive else { return Ok(scorer) };
        if task != Task::Classify {
            return Err(Error::usage(format!("{key}: task {task} has its own metrics, found {name:?}"))
                .hint("leave it out, or use the task classify"));
        }
        if !scorer.metrics.contains(&Metric::F1) {
            scorer.metrics.push(Metric::F1);
        }
        let known: Vec<&str> = names.iter().map(String::as_str).take(20).collect();
        let index = names.iter().position(|n| n == name);
        scorer.positive = Some(index.ok_or_else(|| unknown("label", name, name, &known).at(key))? as u32);
        Ok(scorer)
    }

    /// For `task` with the classes `names`, none for regression, F1 being that of the usual class.
    pub fn of(task: Task, names: &[String]) -> Self {
        let positive = (names.len() == 2).then(|| second(task, names));
        Self { task, names: names.to_vec(), positive, metrics: task.metrics(names.len()).to_vec() }
    }

    /// The task.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Names of the classes; none for regression.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The metrics that are reported, without the loss.
    pub fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    /// The class that F1 is of, where F1 is reported.
    pub fn positive(&self) -> Option<&str> {
        let positive = self.positive.filter(|_| self.metrics.contains(&Metric::F1))?;
        Some(&self.names[positive as usize])
    }

    /// The metrics of predictions. One that is undefined, such as a correlation with constant predictions, is 0.
    ///
    /// # Errors
    /// Predictions and labels that do not fit each other.
    pub fn score(&self, predictions: &Predictions, labels: &Labels) -> Result<Vec<(Metric, f64)>> {
        let metrics = self.metrics.iter();
        match (predictions, labels) {
            (Predictions::Classes(predicted), Labels::Class(truth)) if predicted.len() == truth.len() => {
                let value = |metric| match metric {
                    Metric::Accuracy => Some(accuracy(predicted, truth)),
                    Metric::F1 => self.positive.map(|positive| f1(predicted, truth, positive)),
                    Metric::MacroF1 => Some(self.by_class(predicted, truth).macro_f1),
                    // an answer that is no label is a class of its own
                    Metric::Matthews => Some(matthews(predicted, truth, self.names.len() + 1)),
                    _ => None,
                };
                Ok(metrics.filter_map(|&metric| Some((metric, value(metric)?))).collect())
            }
            (Predictions::Values(x), Labels::Value(truth)) if x.len() == truth.len() => {
                let y: Vec<f64> = truth.iter().map(|&v| v.into()).collect();
                let value = |metric| match metric {
                    Metric::Pearson => Some(pearson(x, &y)),
                    Metric::Spearman => Some(spearman(x, &y)),
                    _ => None,
                };
                Ok(metrics.filter_map(|&metric| Some((metric, value(metric)?))).collect())
            }
            _ => Err(Error::new(format!("the predictions do not fit the labels of task {}", self.task))),
        }
    }

    /// What the predictions say of each class; `None` for regression.
    pub fn classes(&self, predictions: &Predictions, labels: &Labels) -> Option<ByClass> {
        match (predictions, labels) {
            (Predictions::Classes(predicted), Labels::Class(truth)) => Some(self.by_class(predicted, truth)),
            _ => None,
        }
    }

    /// All that is measured but the loss.
    ///
    /// # Errors
    /// Predictions and labels that do not fit each other.
    pub fn evaluation(&self, predictions: &Predictions, labels: &Labels) -> Result<Evaluation> {
        Ok(Evaluation {
            metrics: self.score(predictions, labels)?,
            examples: predictions.len(),
            positive: self.positive().map(str::to_owned),
            classes: self.classes(predictions, labels),
            tokens: None,
        })
    }

    fn by_class(&self, predicted: &[u32], truth: &[u32]) -> ByClass {
        let n = self.names.len();
        // answers that are no label come last
        let count = |values: &mut dyn Iterator<Item = u32>| {
            let mut counts = vec![0_u64; n + 1];
            values.for_each(|v| counts[v as usize] += 1);
            counts
        };
        let pairs = || predicted.iter().copied().zip(truth.iter().copied());
        let right = count(&mut pairs().filter(|(p, t)| p == t).map(|(p, _)| p));
        let found = count(&mut predicted.iter().copied());
        let support = count(&mut truth.iter().copied());
        let class = |i: usize| Class {
            name: self.names[i].clone(),
            precision: ratio(right[i] as f64, found[i] as f64),
            recall: ratio(right[i] as f64, support[i] as f64),
            f1: ratio(2.0 * right[i] as f64, (found[i] + support[i]) as f64),
            support: support[i],
        };
        let classes: Vec<Class> = (0..n).map(class).collect();
        let occurs = |i: &usize| found[*i] + support[*i] > 0;
        let present: Vec<f64> = (0..n).filter(occurs).map(|i| classes[i].f1).collect();
        let macro_f1 = ratio(present.iter().sum(), present.len() as f64);
        let confusion = (n <= MOST_CONFUSED).then(|| {
            let mut counts = vec![vec![0; n + usize::from(found[n] > 0)]; n];
            pairs().for_each(|(p, t)| counts[t as usize][p as usize] += 1);
            counts
        });
        let only = found.iter().position(|&c| c > 0 && c == truth.len() as u64);
        ByClass { macro_f1, classes, confusion, only: only.filter(|&i| i < n && truth.len() > 1) }
    }
}

/// How the classes fare.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ByClass {
    /// Mean of F1 over the classes that a label or a prediction names, as in scikit-learn.
    pub macro_f1: f64,
    /// Each class, in the order of the labels.
    pub classes: Vec<Class>,
    /// Examples of class i (row) by the class j that was predicted (column); one more column where answers were no label. `None` beyond
    /// [`MOST_CONFUSED`] classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confusion: Option<Vec<Vec<u64>>>,
    /// The class that all of several predictions are.
    #[serde(skip)]
    pub only: Option<usize>,
}

/// How one class fares; what is undefined is 0.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Class {
    /// Its name.
    pub name: String,
    /// Share of the predictions of this class that are right.
    pub precision: f64,
    /// Share of the examples of this class that are found.
    pub recall: f64,
    /// Harmonic mean of the two.
    pub f1: f64,
    /// Number of examples of this class.
    pub support: u64,
}

/// The second of two classes, as the task or else the model numbers them.
fn second(task: Task, names: &[String]) -> u32 {
    let of_task = |labels: &[&str]| LabelMap::of_model(task, names.to_vec()).class(labels[1]);
    task.labels().and_then(of_task).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn scorer(task: Task, classes: &[&str]) -> Scorer {
        Scorer::new(task, &names(classes), None, "data.positive").unwrap()
    }

    /// An answer that is no label is wrong in accuracy, not class 1 in F1, and a third class in Matthews: right 2 of 4, predicted
    /// (1, 2, 1), true (2, 2, 0): (2·4 − 6) / √((16 − 6)(16 − 8)).
    #[test]
    fn answers_that_are_no_label() {
        let (predicted, truth) = (Predictions::Classes(vec![0, 1, 1, 2]), Labels::Class(vec![0, 1, 0, 1]));
        let of = |task| scorer(task, &["0", "1"]).score(&predicted, &truth).unwrap();
        near(of(Task::Mrpc)[0].1, 0.5);
        near(of(Task::Mrpc)[1].1, 0.5);
        near(of(Task::Cola)[0].1, 2.0 / 80.0_f64.sqrt());
        let cola = scorer(Task::Cola, &["0", "1"]);
        assert!(cola.score(&predicted, &Labels::Class(vec![0])).is_err());
        assert!(cola.score(&predicted, &Labels::Value(vec![0.0; 4])).is_err());
        assert_eq!(cola.classes(&predicted, &truth).unwrap().confusion.unwrap(), [[1, 1, 0], [0, 1, 1]]);
    }

    /// `classification_report` and `f1_score(average="macro")` of scikit-learn: the class that occurs nowhere does not count.
    #[test]
    fn classes_by_hand() {
        let truth = Labels::Class(vec![0, 0, 0, 1, 1, 2]);
        let predicted = Predictions::Classes(vec![0, 0, 1, 1, 2, 1]);
        let scorer = scorer(Task::Classify, &["a", "b", "c", "never"]);
        let all = scorer.classes(&predicted, &truth).unwrap();
        let of =
            |i: usize| (all.classes[i].precision, all.classes[i].recall, all.classes[i].f1, all.classes[i].support);
        assert_eq!(of(0), (1.0, 2.0 / 3.0, 0.8, 3));
        assert_eq!(of(1), (1.0 / 3.0, 0.5, 0.4, 2));
        assert_eq!(of(2), (0.0, 0.0, 0.0, 1));
        assert_eq!(of(3), (0.0, 0.0, 0.0, 0));
        near(all.macro_f1, 0.4);
        assert_eq!(all.confusion.unwrap(), [[2, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0], [0; 4]]);
        assert_eq!((all.only, all.classes[3].name.as_str()), (None, "never"));
        assert_eq!(
            scorer.score(&predicted, &truth).unwrap(),
            [(Metric::Accuracy, 0.5), (Metric::MacroF1, all.macro_f1)]
        );
        let all = scorer.classes(&Predictions::Classes(vec![1; 6]), &truth).unwrap();
        assert_eq!(all.only, Some(1));
        assert_eq!(scorer.classes(&Predictions::Values(vec![]), &Labels::Value(vec![])), None);
    }

    /// A hundred thousand classes take what their names take, and no square of it.
    #[test]
    fn many_classes() {
        let many: Vec<String> = (0..100_000).map(|i| i.to_string()).collect();
        let scorer = Scorer::new(Task::Classify, &many, None, "").unwrap();
        let truth: Vec<u32> = (0..100_000).collect();
        let all = scorer.classes(&Predictions::Classes(truth.clone()), &Labels::Class(truth)).unwrap();
        assert_eq!((all.confusion, all.macro_f1, all.classes.len()), (None, 1.0, 100_000));
    }

    #[test]
    fn the_positive_class_is_chosen_by_name() {
        let three = names(&["bad", "fine", "good"]);
        let with = |task, names: &[String], positive| Scorer::new(task, names, Some(positive), "data.positive");
        assert_eq!(scorer(Task::Classify, &["a", "b"]).positive(), Some("b"));
        assert_eq!(scorer(Task::Mrpc, &["0", "1"]).positive(), Some("1"));
        assert_eq!(scorer(Task::Mrpc, &["equivalent", "not_equivalent"]).positive(), Some("equivalent"));
        assert_eq!(scorer(Task::Rte, &["entailment", "not_entailment"]).positive(), None);
        assert_eq!(scorer(Task::Classify, &["a", "b", "c"]).positive(), None);

        let (predicted, truth) = (Predictions::Classes(vec![0, 1, 1, 0]), Labels::Class(vec![0, 1, 0, 0]));
        let bad = with(Task::Classify, &three[..2], "bad").unwrap();
        assert_eq!(bad.score(&predicted, &truth).unwrap()[1], (Metric::F1, 0.8));
        let fine = with(Task::Classify, &three, "fine").unwrap();
        assert_eq!(fine.positive(), Some("fine"));
        assert_eq!(fine.metrics(), [Metric::Accuracy, Metric::MacroF1, Metric::F1]);
        near(fine.score(&predicted, &truth).unwrap()[2].1, 2.0 / 3.0);

        let error = with(Task::Classify, &three, "god").unwrap_err().to_string();
        assert!(error.contains("unknown label \"god\"\n  in data.positive\n  hint: did you mean good?"), "{error}");
        let error = with(Task::Mrpc, &names(&["0", "1"]), "0").unwrap_err().to_string();
        assert!(error.contains("data.positive: task mrpc has its own metrics"), "{error}");
        assert!(with(Task::Regress, &[], "1").is_err());
    }
}
