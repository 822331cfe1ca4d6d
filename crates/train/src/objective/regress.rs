//! Regression: a number that a text stands for.

use colrow_autograd::{Tape, Var};
use colrow_models::model::Model;
use colrow_tensor::{Class, Error, Result};

use super::{HostBytes, LOGIT_BYTES, Objective, Outcome, known, logits};
use crate::data::{Batch, Labels, Lengths};
use crate::metrics::{Metric, Predictions};
use crate::score::{Evaluation, Scorer};

/// One output, the number; the loss is the mean squared error.
#[derive(Clone, Debug)]
pub struct Regress {
    scorer: Scorer,
}

impl Regress {
    /// Judged by `scorer`.
    pub fn new(scorer: Scorer) -> Self {
        Self { scorer }
    }

    fn values<'a>(&self, batch: &'a Batch) -> Result<&'a [f32]> {
        match &batch.labels {
            Some(Labels::Value(values)) => Ok(values),
            _ => Err(Error::new(format!("task {} needs labels that are numbers", self.scorer.task()))),
        }
    }

    /// What outputs (b, 1) say of examples with these labels.
    fn read(&self, outputs: &[f32], labels: &[f32]) -> Result<Outcome> {
        if outputs.len() != labels.len() {
            return Err(Error::new(format!("expected {} outputs, found {}", labels.len(), outputs.len())));
        }
        let square = |(&x, &y): (&f32, &f32)| ((f64::from(x) - f64::from(y)).powi(2), 1.0);
        Ok(Outcome {
            predictions: Predictions::Values(outputs.iter().copied().map(f64::from).collect()),
            losses: outputs.iter().zip(labels).map(square).collect(),
        })
    }
}

impl Objective for Regress {
    fn loss(&self, model: &Model, tape: &mut Tape<'_>, batch: &Batch) -> Result<Var> {
        let values = self.values(batch)?;
        let x = model.logits(tape, &batch.tokens)?;
        let mut target = tape.device().empty(Class::Workspace, model.registry.params.dtype(), &[values.len(), 1]);
        target.write_f64(values.iter().copied().map(f64::from));
        Ok(tape.mean_squared_error("loss", &x, &target))
    }

    fn evaluate(&self, model: &Model, batch: &Batch) -> Result<Outcome> {
        self.read(&logits(model, batch)?, self.values(batch)?)
    }

    fn metrics(&self) -> &[Metric] {
        self.scorer.metrics()
    }

    fn score(&self, predictions: &Predictions, labels: Option<&Labels>) -> Result<Evaluation> {
        self.scorer.evaluation(predictions, known(labels)?)
    }

    fn batch_of_lengths(&self, lengths: &Lengths) -> Batch {
        Batch { labels: Some(Labels::Value(vec![0.0; lengths.sources.len()])), ..Batch::of_lengths(lengths) }
    }

    fn host_bytes(&self) -> HostBytes {
        HostBytes { outputs: LOGIT_BYTES, prediction: size_of::<f64>() }
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::Named;

    use super::*;
    use crate::tasks::Task;

    #[test]
    fn outputs_by_hand() {
        let stsb = Regress::new(Scorer::new(Task::Stsb, &[], None, "").unwrap());
        let Outcome { predictions, losses } = stsb.read(&[1.0, 2.0, 4.0], &[1.0, 2.0, 3.0]).unwrap();
        assert_eq!(losses, [(0.0, 1.0), (0.0, 1.0), (1.0, 1.0)]);
        let evaluation = stsb.score(&predictions, Some(&Labels::Value(vec![1.0, 2.0, 3.0]))).unwrap();
        assert_eq!(evaluation.metrics.iter().map(|v| v.0.name()).collect::<Vec<_>>(), ["pearson", "spearman"]);
        assert!((evaluation.metrics[0].1 - 3.0 / (14.0_f64 / 3.0 * 2.0).sqrt()).abs() < 1e-12);
        assert!((evaluation.metrics[1].1 - 1.0).abs() < 1e-12);
        assert!(stsb.read(&[0.0; 2], &[0.0]).unwrap_err().to_string().contains("expected 1 outputs, found 2"));
        let classes = Batch { labels: Some(Labels::Class(vec![0])), ..Batch::default() };
        assert!(stsb.values(&classes).unwrap_err().to_string().contains("needs labels that are numbers"));
    }
}
