//! Metrics of a model's outputs against the labels, in f64.

use colrow_tensor::named;

named! {
    /// One number that says how good the outputs are.
    Metric {
        /// Share of examples whose largest logit is that of their label.
        Accuracy = "accuracy",
        /// Harmonic mean of precision and recall of the positive class.
        F1 = "f1",
        /// Mean of the F1 of every class that a label or a prediction names.
        MacroF1 = "macro_f1",
        /// Matthews correlation of predicted and true classes.
        Matthews = "matthews",
        /// Linear correlation of predicted and true values.
        Pearson = "pearson",
        /// Linear correlation of their ranks.
        Spearman = "spearman",
        /// Share of the tokens that count which are the most likely after those before them.
        TokenAccuracy = "token_accuracy",
        /// e to the mean cross-entropy of a token.
        Perplexity = "perplexity",
        /// Mean cross-entropy (natural logarithm), or mean squared error for regression.
        Loss = "loss",
    }
}

impl Metric {
    /// Whether a higher value is better.
    pub fn higher_is_better(self) -> bool {
        !matches!(self, Metric::Loss | Metric::Perplexity)
    }
}

/// What a model predicts, by example.
#[derive(Clone, Debug, PartialEq)]
pub enum Predictions {
    /// Classes; the number of labels stands for none of them.
    Classes(Vec<u32>),
    /// Numbers.
    Values(Vec<f64>),
    /// Of tokens, how many there are and how many are right.
    Tokens(TokenCounts),
}

/// Tokens of examples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct TokenCounts {
    /// Examples.
    #[serde(skip)]
    pub examples: usize,
    /// All of them.
    pub tokens: usize,
    /// Those that count in the loss.
    pub labels: usize,
    /// Those among these that were predicted.
    #[serde(skip)]
    pub right: usize,
}

impl Default for Predictions {
    fn default() -> Self {
        Self::Classes(Vec::new())
    }
}

impl Predictions {
    /// Adds those of the next examples.
    pub fn extend(&mut self, next: Self) {
        match (&mut *self, next) {
            (Self::Classes(all), Self::Classes(next)) => all.extend(next),
            (Self::Values(all), Self::Values(next)) => all.extend(next),
            (Self::Tokens(all), Self::Tokens(next)) => {
                all.examples += next.examples;
                all.tokens += next.tokens;
                all.labels += next.labels;
                all.right += next.right;
            }
            (_, next) => *self = next,
        }
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        match self {
            Predictions::Classes(classes) => classes.len(),
            Predictions::Values(values) => values.len(),
            Predictions::Tokens(counts) => counts.examples,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
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

/// `exp(x_i) / Σ exp(x_j)`, summed in f64.
pub fn softmax(row: &[f32]) -> Vec<f32> {
    let max = row.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v.into()));
    let exps: Vec<f64> = row.iter().map(|&v| (f64::from(v) - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|x| (x / sum) as f32).collect()
}

/// Share of equal entries; 0 without any.
pub fn accuracy(predicted: &[u32], truth: &[u32]) -> f64 {
    mean(predicted.iter().zip(truth).map(|(p, t)| f64::from(p == t)))
}

/// `2·tp / (2·tp + fp + fn)` for the class `positive`; 0 without a true positive.
pub fn f1(predicted: &[u32], truth: &[u32], positive: u32) -> f64 {
    let both = predicted.iter().zip(truth).filter(|&(&p, &t)| p == positive && t == positive).count();
    let either = predicted.iter().chain(truth).filter(|&&v| v == positive).count();
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

pub(crate) fn cross_entropy(row: &[f32], label: u32) -> f64 {
    let max = row.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v.into()));
    let sum: f64 = row.iter().map(|&v| (f64::from(v) - max).exp()).sum();
    max + sum.ln() - f64::from(row[label as usize])
}

pub(crate) fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    ratio(values.sum(), n)
}

pub(crate) fn ratio(numerator: f64, denominator: f64) -> f64 {
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
        near(f1(&PREDICTED, &TRUTH, 1), 6.0 / 9.0);
        near(f1(&PREDICTED, &TRUTH, 0), 8.0 / 11.0);
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
        near(f1(&[0, 0], &[0, 0], 1), 0.0);
        near(pearson(&[2.0, 2.0], &[1.0, 3.0]), 0.0);
        near(spearman(&[], &[]), 0.0);
        near(accuracy(&[], &[]), 0.0);
        assert!(pearson(&[f64::NAN, 2.0], &[1.0, 3.0]).is_nan());
    }

    #[test]
    fn argmax_takes_the_first_and_skips_nan() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
        assert_eq!(argmax(&[f32::NAN, -1.0, -2.0]), 1);
        assert_eq!(argmax(&[]), 0);
    }

    #[test]
    fn probabilities_by_hand() {
        assert_eq!(softmax(&[0.0, 3.0_f32.ln(), 0.0]), [0.2, 0.6, 0.2]);
        assert_eq!(softmax(&[1e4, 1e4, -1e30]), [0.5, 0.5, 0.0]);
        assert_eq!(softmax(&[-3.0]), [1.0]);
    }

    #[test]
    fn less_loss_is_better() {
        assert!(!Metric::Loss.higher_is_better() && Metric::F1.higher_is_better());
    }
}
