//! Running a model over a set of examples without learning from it.

use colrow_tensor::Result;

use crate::data::{BatchBy, Labels, Sampler, TokenisedSet, collate};
use crate::engine::Engine;
use crate::metrics;
use crate::tasks::Task;

/// What an evaluation measured.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// Mean loss: cross-entropy or squared error.
    pub loss: f64,
    /// The task's metrics by name.
    pub metrics: Vec<(&'static str, f64)>,
    /// Number of examples.
    pub examples: usize,
}

impl Evaluation {
    /// A metric by name; `loss` is one.
    pub fn get(&self, name: &str) -> Option<f64> {
        if name == "loss" { Some(self.loss) } else { self.metrics.iter().find(|(n, _)| *n == name).map(|&(_, x)| x) }
    }
}

/// Logits of all examples in order, row-major (examples, labels).
///
/// # Errors
/// An example longer than a batch by tokens may be.
pub fn logits(engine: &Engine, set: &TokenisedSet, by: BatchBy, mut done: impl FnMut(usize)) -> Result<Vec<f32>> {
    let sampler = Sampler::new(set.lengths(), by, None)?;
    let mut all = Vec::new();
    for examples in sampler.epoch(0) {
        all.extend(engine.logits(&collate(set, &examples)));
        done(all.len() / engine.model.config.num_labels());
    }
    Ok(all)
}

/// Loss and metrics of a labelled set.
///
/// # Errors
/// As [`logits`], and those of the metrics.
pub fn evaluate(
    engine: &Engine,
    task: Task,
    set: &TokenisedSet,
    labels: &Labels,
    by: BatchBy,
    done: impl FnMut(usize),
) -> Result<Evaluation> {
    let logits = logits(engine, set, by, done)?;
    let c = engine.model.config.num_labels();
    let metrics = metrics::evaluate(task, c, &logits, labels)?;
    Ok(Evaluation {
        loss: mean_loss(&logits, c, labels),
        metrics: metrics.into_iter().map(|(m, x)| (m.name(), x)).collect(),
        examples: labels.len(),
    })
}

fn mean_loss(logits: &[f32], c: usize, labels: &Labels) -> f64 {
    let rows = logits.chunks_exact(c);
    let total: f64 = match labels {
        Labels::Value(values) => {
            rows.zip(values).map(|(x, &y)| (f64::from(x[0]) - f64::from(y)).powi(2)).sum()
        }
        Labels::Class(classes) => rows
            .zip(classes)
            .map(|(x, &label)| {
                let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = x.iter().map(|&x| f64::from(x - max).exp()).sum();
                f64::from(max - x[label as usize]) + sum.ln()
            })
            .sum(),
    };
    total / labels.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_is_the_mean_over_examples() {
        let want = ((1.0_f64.exp() + 1.0).ln() + (1.0 + 2.0_f64.exp()).ln() - 2.0) / 2.0;
        let got = mean_loss(&[1.0, 0.0, 0.0, 2.0], 2, &Labels::Class(vec![1, 1]));
        assert!((got - want).abs() < 1e-12);
        assert_eq!(mean_loss(&[1.0, 4.0], 1, &Labels::Value(vec![2.0, 2.0])), 2.5);
    }
}
