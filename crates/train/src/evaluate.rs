//! Running a model over a set of examples without learning from it.

use colrow_tensor::{Error, Named, Result};
use serde_json::{Map, Value, json};

use crate::data::{Answers, Batch, BatchBy, Labels, Sampler, TokenisedSet, collate};
use crate::engine::Engine;
use crate::metrics::Metric;
use crate::score::{Classes, MOST_CONFUSED, Scorer, Tally};

/// What an evaluation measured.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// The task's metrics and the loss.
    pub metrics: Vec<(Metric, f64)>,
    /// Number of examples.
    pub examples: usize,
    /// The class that F1 is of, if F1 is among the metrics.
    pub positive: Option<String>,
    /// How each class fares; `None` for regression.
    pub classes: Option<Classes>,
}

impl Evaluation {
    /// A metric's value.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        let listed = self.metrics.iter().find(|(m, _)| *m == metric).map(|&(_, x)| x);
        listed.or_else(|| self.classes.as_ref().filter(|_| metric == Metric::MacroF1).map(|c| c.macro_f1))
    }

    /// Metrics by name, each with `prefix` before it.
    pub fn to_json(&self, prefix: &str) -> Map<String, Value> {
        self.metrics.iter().map(|(m, x)| (format!("{prefix}{}", m.name()), json!(x))).collect()
    }

    /// Class by class: `positive`, the class that F1 is of; `macro_f1`; `classes` (name, precision, recall, f1, support); `confusion`, see
    /// [`Classes`].
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

/// What a model makes of a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Outputs {
    /// Logits, row-major (examples, labels).
    Logits(Vec<f32>),
    /// Answers in text.
    Answers(Vec<String>),
}

fn finite(logits: Vec<f32>) -> Result<Vec<f32>> {
    match logits.iter().find(|x| !x.is_finite()) {
        None => Ok(logits),
        Some(x) => Err(Error::new(format!("expected finite logits, found {x}"))
            .hint("the model's weights are damaged, or were when they were saved")),
    }
}

/// Hands what a model makes of all examples to `each`, batch by batch in the examples' order; `words` for a model that answers in text.
///
/// # Errors
/// An example longer than a batch by tokens may be; a model that answers in another way; those of the tokenizer and of `each`.
pub fn outputs(
    engine: &Engine,
    words: Option<&Answers>,
    set: &TokenisedSet,
    by: BatchBy,
    mut each: impl FnMut(Outputs) -> Result<()>,
) -> Result<()> {
    for examples in Sampler::new(set.lengths(), by, None)?.epoch(0) {
        let batch = collate(set, &examples);
        each(match words {
            None => Outputs::Logits(finite(engine.logits(&batch)?)?),
            Some(words) => Outputs::Answers(words.decode(&engine.generate(&batch, words.longest)?)?),
        })?;
    }
    Ok(())
}

/// Mean loss of a set with its labels or targets.
fn mean_loss(engine: &Engine, set: &TokenisedSet, by: BatchBy, mut done: impl FnMut() -> Result<()>) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for examples in Sampler::new(set.lengths(), by, None)?.epoch(0) {
        let (loss, losses) = engine.loss(collate(set, &examples))?;
        sum += loss * losses as f64;
        count += losses;
        done()?;
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

/// Loss and metrics of a labelled set; `words` for a model that answers in text. `done` is told after each batch how many examples are done,
/// and may end it there by an error.
///
/// # Errors
/// As [`outputs`], and those of the metrics.
pub fn evaluate(
    engine: &Engine,
    scorer: &Scorer,
    set: &TokenisedSet,
    labels: &Labels,
    words: Option<&Answers>,
    by: BatchBy,
    mut done: impl FnMut(usize) -> Result<()>,
) -> Result<Evaluation> {
    let (predictions, loss) = match words {
        None => {
            let mut tally = Tally::new(scorer, labels)?;
            outputs(engine, None, set, by, |batch| {
                if let Outputs::Logits(logits) = batch {
                    done(tally.add(&logits)?)?;
                }
                Ok(())
            })?;
            tally.finish()?
        }
        Some(words) => {
            let mut answers = Vec::new();
            outputs(engine, Some(words), set, by, |batch| {
                if let Outputs::Answers(batch) = batch {
                    answers.extend(batch);
                    done(answers.len())?;
                }
                Ok(())
            })?;
            (words.wording.read(&answers), mean_loss(engine, set, by, || done(set.len()))?)
        }
    };
    let mut metrics = scorer.score(&predictions, labels)?;
    metrics.push((Metric::Loss, loss));
    Ok(Evaluation {
        metrics,
        examples: predictions.len(),
        positive: scorer.positive().map(str::to_owned),
        classes: scorer.classes(&predictions, labels),
    })
}
