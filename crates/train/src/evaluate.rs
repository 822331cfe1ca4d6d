//! Running a model over a set of examples without learning from it.

use colrow_tensor::Result;
use serde_json::{Map, Value, json};

use crate::data::{BatchBy, Labels, Sampler, TokenisedSet, collate};
use crate::engine::Engine;
use crate::metrics::{self, Metric};
use crate::tasks::Task;

/// What an evaluation measured.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// The task's metrics and the loss.
    pub metrics: Vec<(Metric, f64)>,
    /// Number of examples.
    pub examples: usize,
}

impl Evaluation {
    /// A metric's value.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        self.metrics.iter().find(|(m, _)| *m == metric).map(|&(_, x)| x)
    }

    /// Metrics by name, each with `prefix` before it.
    pub fn to_json(&self, prefix: &str) -> Map<String, Value> {
        self.metrics.iter().map(|(m, x)| (format!("{prefix}{}", m.name()), json!(x))).collect()
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
    let metrics = metrics::evaluate(task, engine.model.config.num_labels(), &logits, labels)?;
    Ok(Evaluation { metrics, examples: labels.len() })
}
