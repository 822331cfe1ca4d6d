//! Running a model over a set of examples without learning from it.

use colrow_tensor::Result;
use serde_json::{Map, Value, json};

use crate::data::{Answers, Batch, BatchBy, Labels, Sampler, TokenisedSet, collate};
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
/// An example longer than a batch by tokens may be; a model that answers in text.
pub fn logits(engine: &Engine, set: &TokenisedSet, by: BatchBy, mut done: impl FnMut(usize)) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    for examples in Sampler::new(set.lengths(), by, None)?.epoch(0) {
        all.extend(engine.logits(&collate(set, &examples))?);
        done(all.len() / engine.model.config.num_labels());
    }
    Ok(all)
}

/// A text-to-text model's answers to all examples in order.
///
/// # Errors
/// An example longer than a batch by tokens may be; a model that does not answer in text; those of the tokenizer.
pub fn answers(
    engine: &Engine,
    answers: &Answers,
    set: &TokenisedSet,
    by: BatchBy,
    mut done: impl FnMut(usize),
) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for examples in Sampler::new(set.lengths(), by, None)?.epoch(0) {
        all.extend(answers.decode(&engine.generate(&collate(set, &examples), answers.longest)?)?);
        done(all.len());
    }
    Ok(all)
}

/// Mean loss of a set with its labels or targets.
fn mean_loss(engine: &Engine, set: &TokenisedSet, by: BatchBy) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for examples in Sampler::new(set.lengths(), by, None)?.epoch(0) {
        let (loss, losses) = engine.loss(collate(set, &examples))?;
        sum += loss * losses as f64;
        count += losses;
    }
    Ok(sum / count as f64)
}

/// What [`evaluate`] runs of one batch, for plans: the same passes, their results dropped.
///
/// # Errors
/// Labels of another kind than the model's.
pub(crate) fn batch(engine: &Engine, batch: Batch, longest_answer: usize) -> Result<()> {
    if engine.model.config.is_text_to_text() {
        engine.generate(&batch, longest_answer)?;
        engine.loss(batch)?;
    } else {
        engine.logits(&batch)?;
    }
    Ok(())
}

/// Loss and metrics of a labelled set; `words` for a model that answers in text.
///
/// # Errors
/// As [`logits`] and [`answers`], and those of the metrics.
pub fn evaluate(
    engine: &Engine,
    task: Task,
    set: &TokenisedSet,
    labels: &Labels,
    words: Option<&Answers>,
    by: BatchBy,
    done: impl FnMut(usize),
) -> Result<Evaluation> {
    let n_labels = engine.model.config.num_labels();
    let metrics = match words {
        None => metrics::evaluate(task, n_labels, &logits(engine, set, by, done)?, labels)?,
        Some(words) => {
            let predictions = words.wording.read(&answers(engine, words, set, by, done)?);
            let mut metrics = metrics::score(task, n_labels, &predictions, labels)?;
            metrics.push((Metric::Loss, mean_loss(engine, set, by)?));
            metrics
        }
    };
    Ok(Evaluation { metrics, examples: labels.len() })
}
