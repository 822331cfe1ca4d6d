//! Running a model over a set of examples without learning from it.

use colrow_tensor::{Error, Result};

use crate::data::{Batch, BatchBy, Sampler, TokenisedSet};
use crate::metrics::{Metric, Predictions, ratio};
use crate::objective::Outputs;
use crate::score::Evaluation;
use crate::step::Engine;

/// Hands what a model makes of all examples to `each`, batch by batch in the examples' order.
///
/// # Errors
/// An example longer than a batch by tokens may be; those of the objective and of `each`.
pub fn outputs(
    engine: &Engine,
    set: &TokenisedSet,
    by: BatchBy,
    mut each: impl FnMut(Outputs) -> Result<()>,
) -> Result<()> {
    for examples in Sampler::new(set.lengths(), by, None)?.epoch(0) {
        each(engine.objective.outputs(&engine.model, &Batch::of(set, &examples))?)?;
    }
    Ok(())
}

/// Loss and metrics of a labelled set. `done` is told after each batch how many examples are done, and may end it there by an error.
///
/// # Errors
/// An example longer than a batch by tokens may be; a set without labels; those of the objective.
pub fn evaluate(
    engine: &Engine,
    set: &TokenisedSet,
    by: BatchBy,
    mut done: impl FnMut(usize) -> Result<()>,
) -> Result<Evaluation> {
    // or tokens that count
    if set.labels.is_none() && set.weight.is_none() {
        return Err(Error::new("an evaluation needs labels"));
    }
    let mut predictions = Predictions::default();
    let (mut loss, mut weight, mut examples) = (0.0, 0.0, 0);
    for batch in Sampler::new(set.lengths(), by, None)?.epoch(0) {
        let outcome = engine.objective.evaluate(&engine.model, &Batch::of(set, &batch))?;
        predictions.extend(outcome.predictions);
        for (part, weighs) in outcome.losses {
            loss += part;
            weight += weighs;
        }
        examples += batch.len();
        done(examples)?;
    }
    let mut evaluation = engine.objective.score(&predictions, set.labels.as_ref())?;
    let loss = ratio(loss, weight);
    if engine.objective.metrics().contains(&Metric::Perplexity) {
        evaluation.metrics.push((Metric::Perplexity, loss.exp()));
    }
    evaluation.metrics.push((Metric::Loss, loss));
    Ok(Evaluation { examples, ..evaluation })
}
