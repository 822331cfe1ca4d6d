//! What a model is trained for: how examples become tokens and targets, the loss, and what an evaluation measures.
//!
//! An objective reads a model's logits, its text loss or that of the next token, and puts the tape's losses on them. Four are here; another crate may add its own:
//!
//! ```
//! use std::path::Path;
//!
//! use colrow_autograd::{Mode, Tape, Var};
//! use colrow_models::config::Config;
//! use colrow_models::model::Model;
//! use colrow_tensor::{Class, DType, Device, Result};
//! use colrow_train::data::{Batch, Lengths};
//! use colrow_train::objective::Objective;
//!
//! /// Says how long a text is.
//! #[derive(Debug)]
//! struct Length;
//!
//! impl Objective for Length {
//!     fn loss(&self, model: &Model, tape: &mut Tape<'_>, batch: &Batch) -> Result<Var> {
//!         let x = model.logits(tape, &batch.tokens)?;
//!         let lengths = batch.tokens.iter().map(|ids| ids.len() as f64);
//!         let mut target = tape.device().empty(Class::Workspace, x.value.dtype(), &[batch.tokens.sequences(), 1]);
//!         target.write_f64(lengths);
//!         Ok(tape.mean_squared_error("loss", &x, &target))
//!     }
//! }
//!
//! let config = r#"{"model_type": "bert", "vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
//!     "intermediate_size": 8, "max_position_embeddings": 8, "id2label": {"0": "length"}}"#;
//! let config = Config::from_json(config.as_bytes(), Path::new("config.json"))?;
//! // of zeros, so that its output is 0
//! let model = Model::new(config, &Device::cpu(), DType::F32);
//! let batch = Length.batch_of_lengths(&Lengths { sources: vec![3, 5], targets: None });
//! let mut tape = Tape::new(&model.registry.params, Mode::Inference);
//! let loss = Length.loss(&model, &mut tape, &batch)?;
//! assert_eq!((loss.value.scalar(), Length.weight(&batch)), ((9.0 + 25.0) / 2.0, 2.0));
//! # Ok::<(), colrow_tensor::Error>(())
//! ```

mod answers;
mod causal;
mod classify;
mod conversations;
mod labelled_texts;
mod plain_texts;
mod regress;
mod text_to_text;
mod wording;

use std::fmt::Debug;
use std::sync::Arc;

use colrow_autograd::{Mode, Tape, Var};
use colrow_models::config::Config;
use colrow_models::family::HeadKind;
use colrow_models::model::Model;
use colrow_tensor::{Error, Result};

pub use answers::Answers;
pub use causal::{Causal, Shown};
pub use classify::Classify;
pub use conversations::Conversations;
pub use labelled_texts::LabelledTexts;
pub use plain_texts::PlainTexts;
pub use regress::Regress;
pub use text_to_text::TextToText;
pub use wording::Wording;

use crate::data::{Batch, Examples, LabelMap, Labels, Lengths, TokenisedSet, Tokeniser};
use crate::metrics::{Metric, Predictions};
use crate::score::{Evaluation, Scorer};
use crate::tasks::Task;

/// What a model is trained for.
pub trait Objective: Debug + Send + Sync {
    /// Tokens of `examples`, at most `max_length` each, and what the loss compares with, if their `labels` are known.
    ///
    /// # Errors
    /// Those of [`Tokeniser::tokenise`]; a label that the model cannot learn.
    fn tokenise(
        &self,
        tokeniser: &Tokeniser,
        examples: &Examples,
        labels: Option<Labels>,
        max_length: usize,
    ) -> Result<TokenisedSet> {
        tokeniser.tokenise(examples, labels, max_length)
    }

    /// A batch's mean loss: one number, on the tape.
    ///
    /// # Errors
    /// A batch without what the loss compares with; a model with another head.
    fn loss(&self, model: &Model, tape: &mut Tape<'_>, batch: &Batch) -> Result<Var>;

    /// What that loss is a mean of, by which batches of one step are weighed: sequences, or the weights of rows.
    fn weight(&self, batch: &Batch) -> f64 {
        batch.tokens.sequences() as f64
    }

    /// What the model makes of a batch, without dropout.
    ///
    /// # Errors
    /// A model with another head; numbers that are not finite.
    fn outputs(&self, model: &Model, batch: &Batch) -> Result<Outputs> {
        logits(model, batch).map(Outputs::Logits)
    }

    /// What an evaluation sees of a labelled batch, without dropout.
    ///
    /// # Errors
    /// Those of [`Objective::outputs`] and [`Objective::loss`].
    fn evaluate(&self, model: &Model, batch: &Batch) -> Result<Outcome> {
        Ok(Outcome { predictions: Predictions::default(), losses: vec![self.mean_loss(model, batch)?] })
    }

    /// A batch's loss without dropout, times what it is a mean of, and that.
    ///
    /// # Errors
    /// Those of [`Objective::loss`].
    fn mean_loss(&self, model: &Model, batch: &Batch) -> Result<(f64, f64)> {
        let mut tape = Tape::new(&model.registry.params, Mode::Inference);
        let weight = self.weight(batch);
        Ok((self.loss(model, &mut tape, batch)?.value.scalar() * weight, weight))
    }

    /// The metrics of an evaluation, without the loss.
    fn metrics(&self) -> &[Metric] {
        &[]
    }

    /// The metrics of the predictions of all examples, whose labels are known if the objective has any.
    ///
    /// # Errors
    /// Predictions and labels that do not fit each other.
    fn score(&self, _predictions: &Predictions, _labels: Option<&Labels>) -> Result<Evaluation> {
        Ok(Evaluation::default())
    }

    /// A labelled batch of these lengths, all of token 0: what plans and benchmarks run.
    fn batch_of_lengths(&self, lengths: &Lengths) -> Batch {
        Batch::of_lengths(lengths)
    }

    /// Most bytes that an evaluation takes on the host for an example, beside its batch.
    fn host_bytes(&self) -> HostBytes {
        HostBytes::default()
    }

    /// What is wrong with the labels for this model, so that it cannot learn them.
    fn fault(&self) -> Option<Error> {
        None
    }

    /// What the user should know of the labels.
    fn warning(&self) -> Option<String> {
        None
    }
}

/// What a model makes of a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Outputs {
    /// Logits, row-major (b, labels).
    Logits(Vec<f32>),
    /// Answers in text, b.
    Answers(Vec<Answer>),
}

/// What a model answers to an example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The answer.
    pub text: String,
    /// Whether it is that of a label, or a number where numbers are asked for; `None` if no labels are known.
    pub is_label: Option<bool>,
}

/// What an evaluation sees of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// What the model predicts, by example.
    pub predictions: Predictions,
    /// Losses times what each weighs, and that: of each example in turn, or of the whole batch. The loss of a set is the sum of the former over
    /// that of the latter.
    pub losses: Vec<(f64, f64)>,
}

/// Bytes of an example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostBytes {
    /// While its batch is evaluated: what the model makes of it.
    pub outputs: usize,
    /// To the end of the evaluation: what is predicted.
    pub prediction: usize,
}

/// A logit on the host, in f64 and in f32.
const LOGIT_BYTES: usize = 8 + 4;

/// Logits of a batch, row-major (b, labels), without dropout.
fn logits(model: &Model, batch: &Batch) -> Result<Vec<f32>> {
    let mut tape = Tape::new(&model.registry.params, Mode::Inference);
    let logits = model.logits(&mut tape, &batch.tokens)?;
    if logits.value.device().is_meta() {
        // it has shapes alone
        return Ok(vec![0.0; logits.value.len()]);
    }
    let logits: Vec<f32> = logits.value.to_f64().into_iter().map(|x| x as f32).collect();
    match logits.iter().find(|x| !x.is_finite()) {
        None => Ok(logits),
        Some(x) => Err(Error::new(format!("expected finite logits, found {x}"))
            .hint("the model's weights are damaged, or were when they were saved")),
    }
}

/// The objective of what `scorer` measures, for a model of this configuration; answers in text have at most `longest` tokens.
///
/// # Errors
/// A label that the tokenizer cannot read; a task that the model's head is not for.
pub fn of_task(
    config: &Config,
    scorer: Scorer,
    map: &LabelMap,
    tokeniser: &Tokeniser,
    longest: usize,
) -> Result<Arc<dyn Objective>> {
    let task = scorer.task();
    check_head(config, task)?;
    if task.is_of_tokens() {
        return Ok(Arc::new(Causal::of(config, tokeniser)));
    }
    let Some(end) = config.architecture.end_tokens().first().copied() else { return Ok(of_classifier(scorer)) };
    let answers = Answers::new(Wording::new(task, map), tokeniser.clone(), end, longest)?;
    Ok(Arc::new(TextToText::new(scorer, answers)))
}

/// What a model's head is made for, where no data is known: plans and benchmarks.
pub fn of_model(config: &Config, longest: usize) -> Arc<dyn Objective> {
    let task = if config.num_labels() == 1 { Task::Regress } else { Task::Classify };
    let names = if task.is_regression() { &[][..] } else { &config.labels };
    let scorer = Scorer::of(task, names);
    match config.family().head {
        HeadKind::Classifier => return of_classifier(scorer),
        HeadKind::Causal => return Arc::new(Causal::new(None)),
        HeadKind::Language => {}
    }
    let wording = Wording::new(task, &LabelMap::of_model(task, names.to_vec()));
    Arc::new(TextToText::new(scorer, Answers::without_tokeniser(wording, longest)))
}

/// Whether a model of this configuration can do the task.
///
/// # Errors
/// One whose head is for other tasks.
pub fn check_head(config: &Config, task: Task) -> Result<()> {
    let goes_on = config.family().head == HeadKind::Causal;
    if goes_on == task.is_of_tokens() {
        return Ok(());
    }
    let name = config.family().name;
    Err(match goes_on {
        false => Error::usage(format!("task {task} is for models that go on with a text, and {name} is none"))
            .hint("choose a decoder, or another task"),
        true => Error::usage(format!("task {task} is for models with labels, and {name} goes on with texts"))
            .hint("choose the task chat or text; what is to be said of a text can be a conversation's answer"),
    })
}

/// The labels of what is scored.
fn known(labels: Option<&Labels>) -> Result<&Labels> {
    labels.ok_or_else(|| Error::new("an evaluation needs labels"))
}

fn of_classifier(scorer: Scorer) -> Arc<dyn Objective> {
    if scorer.task().is_regression() { Arc::new(Regress::new(scorer)) } else { Arc::new(Classify::new(scorer)) }
}
