//! Metrics of a model's outputs against the labels, in f64.

use crate::data::Labels;
use crate::tasks::{Task, unknown};
use colrow_tensor::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// One number that says how good the outputs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Metric {
    /// Share of examples whose largest logit is that of their label.
    Accuracy,
    /// Harmonic mean of precision and recall of class 1.
    F1,
    /// Matthews correlation of predicted and true classes.
    Matthews,
    /// Linear correlation of predicted and true values.
    Pearson,
    /// Linear correlation of their ranks.
    Spearman,
    /// Mean cross-entropy (natural logarithm), or mean squared error for regression.
    Loss,
}

impl Metric {
    /// Every metric.
    pub const ALL: [Metric; 6] =
        [Metric::Accuracy, Metric::F1, Metric::Matthews, Metric::Pearson, Metric::Spearman, Metric::Loss];

    /// The name in recipes and reports.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Accuracy => "accuracy",
            Metric::F1 => "f1",
            Metric::Matthews => "matthews",
            Metric::Pearson => "pearson",
            Metric::Spearman => "spearman",
            Metric::Loss => "loss",
        }
    }

    /// Whether a higher value is better.
    pub fn higher_is_better(self) -> bool {
        self != Metric::Loss
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Metric {
    type Err = Error;

    fn from_str(given: &str) -> Result<Self> {
        let plain = given.trim().to_lowercase();
        Metric::ALL
            .into_iter()
            .find(|metric| metric.name() == plain)
            .ok_or_else(|| unknown("metric", given, &plain, &Metric::ALL.map(Metric::name)))
    }
}

impl TryFrom<String> for Metric {
    type Error = Error;

    fn try_from(given: String) -> Result<Self> {
        given.parse()
    }
}

impl From<Metric> for String {
    fn from(metric: Metric) -> Self {
        metric.name().to_owned()
    }
}

/// What a model predicts, by example.
#[derive(Clone, Debug, PartialEq)]
pub enum Predictions {
    /// Classes; the number of labels stands for none of them.
    Classes(Vec<u32>),
    /// Numbers.
    Values(Vec<f64>),
}

/// The task's metrics of predictions.
///
/// A metric that is undefined, such as a correlation with constant predictions, is 0. Errors if predictions and labels do not fit each
/// other.
pub fn score(task: Task, n_labels: usize, predictions: &Predictions, labels: &Labels) -> Result<Vec<(Metric, f64)>> {
    let metrics = task.metrics(n_labels).iter();
    match (predictions, labels) {
        (Predictions::Classes(predicted), Labels::Class(truth)) if predicted.len() == truth.len() => {
            let value = |metric| match metric {
                Metric::Accuracy => Some(accuracy(predicted, truth)),
                Metric::F1 => Some(f1(predicted, truth)),
                // an answer that is no label is a class of its own
                Metric::Matthews => Some(matthews(predicted, truth, n_labels + 1)),
                Metric::Loss | Metric::Pearson | Metric::Spearman => None,
            };
            Ok(metrics.filter_map(|&metric| Some((metric, value(metric)?))).collect())
        }
        (Predictions::Values(x), Labels::Value(truth)) if x.len() == truth.len() => {
            let y: Vec<f64> = truth.iter().map(|&v| v.into()).collect();
            let value = |metric| match metric {
                Metric::Pearson => Some(pearson(x, &y)),
                Metric::Spearman => Some(spearman(x, &y)),
                Metric::Loss | Metric::Accuracy | Metric::F1 | Metric::Matthews => None,
            };
            Ok(metrics.filter_map(|&metric| Some((metric, value(metric)?))).collect())
        }
        _ => Err(Error::new(format!("the predictions do not fit the labels of task {task}"))),
    }
}

/// The task's metrics, then the loss, of `logits` (examples × labels, row-major; one column for regression).
///
/// A metric that is undefined, such as a correlation with constant predictions, is 0. Errors if the sizes of logits and
/// labels do not fit each other or the task.
pub fn evaluate(task: Task, n_labels: usize, logits: &[f32], labels: &Labels) -> Result<Vec<(Metric, f64)>> {
    let columns = if task.is_regression() { 1 } else { n_labels };
    if columns == 0 || logits.len() != labels.len() * columns {
        return Err(Error::new(format!(
            "expected {} logits ({} examples × {columns} labels), found {}",
            labels.len() * columns,
            labels.len(),
            logits.len()
        )));
    }
    let (predictions, loss) = match labels {
        Labels::Class(truth) if !task.is_regression() => {
            if let Some(label) = truth.iter().find(|&&label| label as usize >= n_labels) {
                return Err(Error::new(format!("class {label} is not below the number of labels, {n_labels}")));
            }
            let rows = logits.chunks_exact(n_labels);
            let loss = mean(rows.clone().zip(truth).map(|(row, &label)| cross_entropy(row, label)));
            (Predictions::Classes(rows.map(argmax).collect()), loss)
        }
        Labels::Value(truth) if task.is_regression() => {
            let x: Vec<f64> = logits.iter().map(|&v| v.into()).collect();
            let square = |(x, &y): (&f64, &f32)| (x - f64::from(y)).powi(2);
            let loss = mean(x.iter().zip(truth).map(square));
            (Predictions::Values(x), loss)
        }
        Labels::Value(_) => {
            return Err(Error::new(format!("task {task} needs labels that are classes, found numbers")));
        }
        _ => return Err(Error::new(format!("task {task} needs labels that are numbers, found classes"))),
    };
    let mut metrics = score(task, n_labels, &predictions, labels)?;
    metrics.push((Metric::Loss, loss));
    Ok(metrics)
}

/// Index of the largest value, the first one of equals; NaN is never the largest.
pub fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (i, v) in row.iter().enumerate() {
        if *v > row[best] || row[best].is_nan() {
            best = i;
        }
    }
    best as u32
}

/// Share of equal entries; 0 without any.
pub fn accuracy(predicted: &[u32], truth: &[u32]) -> f64 {
    mean(predicted.iter().zip(truth).map(|(p, t)| f64::from(p == t)))
}

/// `2·tp / (2·tp + fp + fn)` for class 1; 0 without a true positive.
pub fn f1(predicted: &[u32], truth: &[u32]) -> f64 {
    let both = predicted.iter().zip(truth).filter(|&(&p, &t)| p == 1 && t == 1).count();
    let either = predicted.iter().chain(truth).filter(|&&v| v == 1).count();
    ratio(2.0 * both as f64, either as f64)
}

/// Matthews correlation, in the form for any number of classes; 0 if all predictions or all labels are the same.
///
/// Entries must be below `n_labels`.
pub fn matthews(predicted: &[u32], truth: &[u32], n_labels: usize) -> f64 {
    let count = |values: &[u32]| {
        let mut counts = vec![0.0_f64; n_labels];
        values.iter().for_each(|&v| counts[v as usize] += 1.0);
        counts
    };
    let (p, t) = (count(predicted), count(truth));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let n = truth.len() as f64;
    let right = predicted.iter().zip(truth).filter(|(p, t)| p == t).count() as f64;
    ratio(right * n - dot(&p, &t), ((n * n - dot(&p, &p)) * (n * n - dot(&t, &t))).sqrt())
}

/// Pearson correlation; 0 if one side is constant, NaN if a value is not finite.
pub fn pearson(x: &[f64], y: &[f64]) -> f64 {
    let (mx, my) = (mean(x.iter().copied()), mean(y.iter().copied()));
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        xy += (x - mx) * (y - my);
        xx += (x - mx) * (x - mx);
        yy += (y - my) * (y - my);
    }
    ratio(xy, (xx * yy).sqrt())
}

/// Spearman correlation: Pearson's of the ranks, where equal values share the average of their ranks.
pub fn spearman(x: &[f64], y: &[f64]) -> f64 {
    pearson(&ranks(x), &ranks(y))
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut smaller = 0.0;
    for ties in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let average = smaller + (ties.len() as f64 + 1.0) / 2.0;
        ties.iter().for_each(|&i| ranks[i] = average);
        smaller += ties.len() as f64;
    }
    ranks
}

fn cross_entropy(row: &[f32], label: u32) -> f64 {
    let max = row.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v.into()));
    let sum: f64 = row.iter().map(|&v| (f64::from(v) - max).exp()).sum();
    max + sum.ln() - f64::from(row[label as usize])
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    ratio(values.sum(), n)
}

fn ratio(numerator: f64, denominator: f64) -> f64 {
    if denominator == 0.0 { 0.0 } else { numerator / denominator }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    // tp 3, fp 1, fn 2, tn 4.
    const PREDICTED: [u32; 10] = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0];
    const TRUTH: [u32; 10] = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0];

    #[test]
    fn counts_by_hand() {
        near(accuracy(&PREDICTED, &TRUTH), 0.7);
        near(f1(&PREDICTED, &TRUTH), 6.0 / 9.0);
        // (tp·tn − fp·fn) / √((tp+fp)(tp+fn)(tn+fp)(tn+fn))
        near(matthews(&PREDICTED, &TRUTH, 2), 10.0 / (4.0_f64 * 5.0 * 5.0 * 6.0).sqrt());
    }

    #[test]
    fn matthews_of_three_classes_by_hand() {
        // right 5 of 6, predicted (2, 3, 1), true (2, 2, 2): (5·6 − 12) / √((36 − 14)(36 − 12))
        near(matthews(&[0, 0, 1, 1, 1, 2], &[0, 0, 1, 1, 2, 2], 3), 18.0 / (22.0_f64 * 24.0).sqrt());
    }

    #[test]
    fn correlations_by_hand() {
        // deviations (−1.5, −0.5, 0.5, 1.5) and (−1.5, 0.5, −0.5, 1.5)
        near(pearson(&[1.0, 2.0, 3.0, 4.0], &[1.0, 3.0, 2.0, 4.0]), 0.8);
        near(pearson(&[1.0, 2.0, 3.0], &[30.0, 20.0, 10.0]), -1.0);
        assert_eq!(ranks(&[10.0, 30.0, 20.0, 20.0, -5.0]), [2.0, 5.0, 3.5, 3.5, 1.0]);
        near(spearman(&[1.0, 2.0, 3.0, 4.0], &[1.0, 8.0, 27.0, 64.0]), 1.0);
        // ranks (1, 2.5, 2.5, 4) and (1, 2, 3, 4): 4.5 / √(4.5 · 5)
        near(spearman(&[1.0, 2.0, 2.0, 3.0], &[1.0, 2.0, 3.0, 4.0]), 4.5 / 22.5_f64.sqrt());
    }

    #[test]
    fn undefined_is_zero() {
        near(matthews(&[1, 1, 1], &[0, 1, 1], 2), 0.0);
        near(f1(&[0, 0], &[0, 0]), 0.0);
        near(pearson(&[2.0, 2.0], &[1.0, 3.0]), 0.0);
        near(spearman(&[], &[]), 0.0);
        near(accuracy(&[], &[]), 0.0);
        assert!(pearson(&[f64::NAN, 2.0], &[1.0, 3.0]).is_nan());
    }

    #[test]
    fn evaluates_logits() {
        let labels = Labels::Class(vec![1, 0, 1]);
        let got = evaluate(Task::Mrpc, 2, &[0.0, 1.0, 0.0, 2.0, 3.0, 5.0], &labels).unwrap();
        let loss = [(1.0 + (-1.0_f64).exp()).ln(), (1.0 + 2.0_f64.exp()).ln(), (1.0 + (-2.0_f64).exp()).ln()];
        let want = [(Metric::Accuracy, 2.0 / 3.0), (Metric::F1, 0.8), (Metric::Loss, loss.iter().sum::<f64>() / 3.0)];
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert_eq!(got.0, want.0);
            near(got.1, want.1);
        }

        let got = evaluate(Task::Stsb, 1, &[1.0, 2.0, 4.0], &Labels::Value(vec![1.0, 2.0, 3.0])).unwrap();
        assert_eq!(got.iter().map(|v| v.0.name()).collect::<Vec<_>>(), ["pearson", "spearman", "loss"]);
        near(got[0].1, 3.0 / (14.0_f64 / 3.0 * 2.0).sqrt());
        near(got[1].1, 1.0);
        near(got[2].1, 1.0 / 3.0);
    }

    /// An answer that is no label is wrong in accuracy, not class 1 in F1, and a third class in Matthews: right 2 of 4, predicted
    /// (1, 2, 1), true (2, 2, 0): (2·4 − 6) / √((16 − 6)(16 − 8)).
    #[test]
    fn answers_that_are_no_label() {
        let (predicted, truth) = (Predictions::Classes(vec![0, 1, 1, 2]), Labels::Class(vec![0, 1, 0, 1]));
        let of = |task| score(task, 2, &predicted, &truth).unwrap();
        near(of(Task::Mrpc)[0].1, 0.5);
        near(of(Task::Mrpc)[1].1, 0.5);
        near(of(Task::Cola)[0].1, 2.0 / 80.0_f64.sqrt());
        assert!(score(Task::Cola, 2, &predicted, &Labels::Class(vec![0])).is_err());
        assert!(score(Task::Cola, 2, &predicted, &Labels::Value(vec![0.0; 4])).is_err());
    }

    #[test]
    fn sizes_and_kinds_must_fit() {
        let classes = Labels::Class(vec![0, 2]);
        let message = |r: Result<_>| r.map(|_: Vec<(Metric, f64)>| ()).unwrap_err().to_string();
        assert!(message(evaluate(Task::Rte, 2, &[0.0; 3], &classes)).contains("expected 4 logits"));
        assert!(message(evaluate(Task::Rte, 2, &[0.0; 4], &classes)).contains("class 2 is not below"));
        assert!(message(evaluate(Task::Regress, 1, &[0.0; 2], &classes)).contains("found classes"));
        assert!(message(evaluate(Task::Rte, 1, &[0.0], &Labels::Value(vec![0.0]))).contains("found numbers"));
        assert!(evaluate(Task::Classify, 0, &[], &Labels::Class(vec![])).is_err());
    }

    #[test]
    fn argmax_takes_the_first_and_skips_nan() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
        assert_eq!(argmax(&[f32::NAN, -1.0, -2.0]), 1);
        assert_eq!(argmax(&[]), 0);
    }

    #[test]
    fn names_parse_back() {
        for metric in Metric::ALL {
            assert_eq!(metric.name().to_uppercase().parse::<Metric>().unwrap(), metric);
        }
        assert!("acuracy".parse::<Metric>().unwrap_err().to_string().contains("did you mean accuracy?"));
        assert!(!Metric::Loss.higher_is_better() && Metric::F1.higher_is_better());
    }
}
