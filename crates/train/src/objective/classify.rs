//! Classification: which of some classes a text is.

use colrow_autograd::{Tape, Var};
use colrow_models::model::Model;
use colrow_tensor::{Class, Error, Result};

use super::{HostBytes, LOGIT_BYTES, Objective, Outcome, known, logits};
use crate::data::{Batch, Labels, Lengths};
use crate::metrics::{Metric, Predictions, argmax, cross_entropy};
use crate::score::{Evaluation, Scorer};

/// A logit a class; the loss is the mean cross-entropy.
#[derive(Clone, Debug)]
pub struct Classify {
    scorer: Scorer,
}

impl Classify {
    /// Over the classes of `scorer`.
    pub fn new(scorer: Scorer) -> Self {
        Self { scorer }
    }

    fn classes<'a>(&self, batch: &'a Batch) -> Result<&'a [u32]> {
        match &batch.labels {
            Some(Labels::Class(classes)) => Ok(classes),
            _ => Err(Error::new(format!("task {} needs labels that are classes", self.scorer.task()))),
        }
    }

    /// What logits (b, classes), row-major, say of examples with these labels.
    fn read(&self, logits: &[f32], labels: &[u32]) -> Result<Outcome> {
        let n = self.scorer.names().len();
        if n == 0 || logits.len() != labels.len() * n {
            let (b, found) = (labels.len(), logits.len());
            return Err(Error::new(format!("expected {} logits ({b} examples × {n} labels), found {found}", b * n)));
        }
        if let Some(label) = labels.iter().find(|&&label| label as usize >= n) {
            return Err(Error::new(format!("class {label} is not below the number of labels, {n}")));
        }
        let rows = || logits.chunks_exact(n);
        Ok(Outcome {
            predictions: Predictions::Classes(rows().map(argmax).collect()),
            losses: rows().zip(labels).map(|(row, &label)| (cross_entropy(row, label), 1.0)).collect(),
        })
    }
}

impl Objective for Classify {
    fn loss(&self, model: &Model, tape: &mut Tape<'_>, batch: &Batch) -> Result<Var> {
        let classes = self.classes(batch)?;
        let logits = model.logits(tape, &batch.tokens)?;
        let labels = tape.device().tensor(Class::Workspace, &[classes.len()], classes);
        Ok(tape.cross_entropy("loss", &logits, &labels))
    }

    fn evaluate(&self, model: &Model, batch: &Batch) -> Result<Outcome> {
        self.read(&logits(model, batch)?, self.classes(batch)?)
    }

    fn metrics(&self) -> &[Metric] {
        self.scorer.metrics()
    }

    fn score(&self, predictions: &Predictions, labels: Option<&Labels>) -> Result<Evaluation> {
        self.scorer.evaluation(predictions, known(labels)?)
    }

    fn batch_of_lengths(&self, lengths: &Lengths) -> Batch {
        Batch { labels: Some(Labels::Class(vec![0; lengths.sources.len()])), ..Batch::of_lengths(lengths) }
    }

    fn host_bytes(&self) -> HostBytes {
        HostBytes { outputs: self.scorer.names().len() * LOGIT_BYTES, prediction: size_of::<f64>() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::Task;

    fn classify(task: Task, classes: &[&str]) -> Classify {
        let names: Vec<String> = classes.iter().map(|&name| name.to_owned()).collect();
        Classify::new(Scorer::new(task, &names, None, "data.positive").unwrap())
    }

    #[test]
    fn logits_by_hand() {
        let mrpc = classify(Task::Mrpc, &["0", "1"]);
        let Outcome { predictions, losses } = mrpc.read(&[0.0, 1.0, 0.0, 2.0, 3.0, 5.0], &[1, 0, 1]).unwrap();
        assert_eq!(predictions, Predictions::Classes(vec![1; 3]));
        let want = [(1.0 + (-1.0_f64).exp()).ln(), (1.0 + 2.0_f64.exp()).ln(), (1.0 + (-2.0_f64).exp()).ln()];
        for ((loss, weight), want) in losses.into_iter().zip(want) {
            assert!((loss - want).abs() < 1e-12 && weight == 1.0, "{loss} is not {want}");
        }
        let evaluation = mrpc.score(&predictions, Some(&Labels::Class(vec![1, 0, 1]))).unwrap();
        assert_eq!(evaluation.metrics.len(), 2);
        let near = |metric, want: f64| (evaluation.get(metric).unwrap() - want).abs() < 1e-12;
        assert!(near(Metric::Accuracy, 2.0 / 3.0) && near(Metric::F1, 0.8));
    }

    /// However the rows are cut into batches, the same bits come out.
    #[test]
    fn batches_do_not_matter() {
        let three = classify(Task::Classify, &["a", "b", "c"]);
        let logit = |i: u64| (16.0 * colrow_tensor::rng::Key::new(3).uniform(i) - 8.0) as f32;
        let logits: Vec<f32> = (0..300).map(logit).collect();
        let labels: Vec<u32> = (0..100).map(|i| i * i % 3).collect();
        let whole = three.read(&logits, &labels).unwrap();
        for size in [1, 7, 99] {
            let mut parts = Outcome { predictions: Predictions::default(), losses: Vec::new() };
            for (logits, labels) in logits.chunks(3 * size).zip(labels.chunks(size)) {
                let part = three.read(logits, labels).unwrap();
                parts.predictions.extend(part.predictions);
                parts.losses.extend(part.losses);
            }
            assert_eq!(parts, whole);
        }
    }

    #[test]
    fn sizes_and_kinds_must_fit() {
        let (two, three) = (classify(Task::Classify, &["a", "b"]), classify(Task::Classify, &["a", "b", "c"]));
        let message = |objective: &Classify, logits: &[f32]| objective.read(logits, &[0, 2]).unwrap_err().to_string();
        assert!(message(&three, &[0.0; 4]).contains("expected 6 logits"));
        assert!(message(&three, &[0.0; 9]).contains("expected 6 logits"));
        assert!(message(&three, &[0.0; 3]).contains("(2 examples × 3 labels), found 3"));
        assert!(message(&two, &[0.0; 4]).contains("class 2 is not below"));
        assert!(classify(Task::Classify, &[]).read(&[], &[]).is_err());
        let numbers = Batch { labels: Some(Labels::Value(vec![0.0])), ..Batch::default() };
        assert!(two.classes(&numbers).unwrap_err().to_string().contains("needs labels that are classes"));
    }
}
