//! A classification or regression put into words, for models with a language head.

use colrow_autograd::{Tape, Var};
use colrow_models::model::Model;
use colrow_tensor::{Error, Result};

use super::{Answer, Answers, HostBytes, Objective, Outcome, Outputs, known};
use crate::data::{Batch, Examples, Labels, TokenisedSet, Tokeniser};
use crate::metrics::{Metric, Predictions};
use crate::score::{Evaluation, Scorer};

/// The text is read, and the label is written: the loss is the mean cross-entropy of the labels' tokens.
#[derive(Clone, Debug)]
pub struct TextToText {
    scorer: Scorer,
    answers: Answers,
}

impl TextToText {
    /// Judged by `scorer`.
    pub fn new(scorer: Scorer, answers: Answers) -> Self {
        Self { scorer, answers }
    }

    fn decoded(&self, model: &Model, batch: &Batch) -> Result<Vec<String>> {
        self.answers.decode(&model.generate(&batch.tokens, self.answers.longest)?)
    }
}

impl Objective for TextToText {
    fn tokenise(
        &self,
        tokeniser: &Tokeniser,
        examples: &Examples,
        labels: Option<Labels>,
        max_length: usize,
    ) -> Result<TokenisedSet> {
        let set = self.answers.tokenise(tokeniser, examples, labels.as_ref(), max_length)?;
        Ok(TokenisedSet { labels, ..set })
    }

    fn loss(&self, model: &Model, tape: &mut Tape<'_>, batch: &Batch) -> Result<Var> {
        let Some(targets) = &batch.targets else { return Err(Error::usage("expected texts as targets, found labels")) };
        model.text_loss(tape, &batch.tokens, targets)
    }

    fn weight(&self, batch: &Batch) -> f64 {
        batch.targets.as_ref().map_or(0.0, |targets| targets.total_weight())
    }

    fn outputs(&self, model: &Model, batch: &Batch) -> Result<Outputs> {
        let answer = |text: String| Answer { is_label: self.answers.wording.is_label(&text), text };
        Ok(Outputs::Answers(self.decoded(model, batch)?.into_iter().map(answer).collect()))
    }

    fn evaluate(&self, model: &Model, batch: &Batch) -> Result<Outcome> {
        let predictions = self.answers.wording.read(&self.decoded(model, batch)?);
        Ok(Outcome { predictions, losses: vec![self.mean_loss(model, batch)?] })
    }

    fn metrics(&self) -> &[Metric] {
        self.scorer.metrics()
    }

    fn score(&self, predictions: &Predictions, labels: Option<&Labels>) -> Result<Evaluation> {
        self.scorer.evaluation(predictions, known(labels)?)
    }

    fn host_bytes(&self) -> HostBytes {
        // a list of tokens and a text of its own, each with what the allocator adds to it
        let answer = 2 * (24 + 32) + 4 * self.answers.longest;
        HostBytes { outputs: answer, prediction: answer }
    }

    fn fault(&self) -> Option<Error> {
        self.answers.fault()
    }

    fn warning(&self) -> Option<String> {
        self.answers.warning()
    }
}
