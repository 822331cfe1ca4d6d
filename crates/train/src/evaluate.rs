//! Running a model over a set of examples without learning from it.

use colrow_tensor::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::comm::Together;
use crate::data::{Batch, BatchBy, Sampler, TokenisedSet};
use crate::metrics::{Metric, Predictions, TokenCounts, ratio};
use crate::objective::{Outcome, Outputs};
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
    let together = engine.spread.as_ref().map(|spread| spread.together());
    // each of several processes takes one batch of a round
    let (rank, size) = together.map_or((0, 1), |together| (together.rank(), together.size()));
    for round in Sampler::new(set.lengths(), by, None)?.epoch(0).chunks(size) {
        let evaluate = |batch: &Vec<u32>| engine.objective.evaluate(&engine.model, &Batch::of(set, batch));
        let own = round.get(rank).map(evaluate).transpose();
        let outcomes = match together {
            Some(together) => shared(together.agree(own)?, together)?,
            None => own?.into_iter().collect(),
        };
        for outcome in outcomes {
            predictions.extend(outcome.predictions);
            for (part, weighs) in outcome.losses {
                loss += part;
                weight += weighs;
            }
        }
        examples += round.iter().map(Vec::len).sum::<usize>();
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

/// An outcome on its way to other processes; numbers as bits, for not every text has words for what is not finite.
#[derive(Serialize, Deserialize)]
struct Sent {
    classes: Option<Vec<u32>>,
    values: Option<Vec<u64>>,
    tokens: Option<[usize; 4]>,
    losses: Vec<[u64; 2]>,
}

impl From<Outcome> for Sent {
    fn from(Outcome { predictions, losses }: Outcome) -> Self {
        let losses = losses.into_iter().map(|(part, weighs)| [part, weighs].map(f64::to_bits)).collect();
        let none = Self { classes: None, values: None, tokens: None, losses };
        match predictions {
            Predictions::Classes(classes) => Self { classes: Some(classes), ..none },
            Predictions::Values(values) => {
                Self { values: Some(values.into_iter().map(f64::to_bits).collect()), ..none }
            }
            Predictions::Tokens(TokenCounts { examples, tokens, labels, right }) => {
                Self { tokens: Some([examples, tokens, labels, right]), ..none }
            }
        }
    }
}

impl From<Sent> for Outcome {
    fn from(Sent { classes, values, tokens, losses }: Sent) -> Self {
        let values = values.map(|values| Predictions::Values(values.into_iter().map(f64::from_bits).collect()));
        let tokens = tokens.map(|[examples, tokens, labels, right]| {
            Predictions::Tokens(TokenCounts { examples, tokens, labels, right })
        });
        Self {
            predictions: classes.map(Predictions::Classes).or(values).or(tokens).unwrap_or_default(),
            losses: losses.into_iter().map(|[part, weighs]| (f64::from_bits(part), f64::from_bits(weighs))).collect(),
        }
    }
}

/// What all processes found, in the order of their batches.
fn shared(own: Option<Outcome>, together: &Together) -> Result<Vec<Outcome>> {
    let all = together.values(&own.map(Sent::from))?;
    Ok(all.into_iter().flatten().map(Outcome::from).collect())
}
