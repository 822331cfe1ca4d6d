//! What a model family is to the rest of the program.

use std::any::Any;
use std::fmt;

use serde_json::{Map, Value};

use crate::fields::Fields;
use crate::net::Net;
use crate::registry::Registry;

/// What stands behind a family's layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// Logits of labels, or one number: the model answers with a label.
    Classifier,
    /// Logits of tokens: the model answers in text to another text.
    Language,
    /// Logits of tokens: the model goes on with a text.
    Causal,
}

/// What is usual for [`Family::tokenizer_files`].
pub const TOKENIZER_FILES: &[&str] =
    &["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"];

/// A model family: how its files name things, and what is usual for its models.
///
/// [`FAMILIES`](crate::families::FAMILIES) are those that every command knows. One of another crate is given to
/// [`Config::from_json_of`](crate::config::Config::from_json_of):
///
/// ```
/// use std::path::Path;
///
/// use colrow_autograd::{Mode, ParamId, RowsOf, Tape, Var};
/// use colrow_models::config::Config;
/// use colrow_models::family::{Architecture, Family, HeadKind, Keys};
/// use colrow_models::layers::{Dense, Module};
/// use colrow_models::model::Model;
/// use colrow_models::net::{Net, Site};
/// use colrow_models::registry::{Init, NUM_LABELS, Registry};
/// use colrow_models::tokens::Tokens;
/// use colrow_tensor::{Class, DType, Device};
///
/// /// The first word of a text decides.
/// #[derive(Clone, Debug, PartialEq)]
/// struct FirstWord {
///     width: usize,
///     vocab_size: usize,
/// }
///
/// #[derive(Debug)]
/// struct Layers {
///     words: ParamId,
///     head: Dense,
/// }
///
/// impl Architecture for FirstWord {
///     fn net(&self, labels: usize, registry: &mut Registry) -> Box<dyn Net> {
///         let (shape, dims) = ([self.vocab_size, self.width], &["vocab_size", "width"]);
///         let words = registry.add("words.weight", &shape, dims, Init::Normal(0.02));
///         let head = Module { name: "head".into(), outputs: labels, dims: &[NUM_LABELS, "width"], std: 0.02 };
///         Box::new(Layers { words, head: Dense::new(registry, "head", &[head], self.width, true) })
///     }
///
///     fn hidden_size(&self) -> usize {
///         self.width
///     }
///
///     fn layers(&self) -> usize {
///         1
///     }
///
///     fn vocab_size(&self) -> usize {
///         self.vocab_size
///     }
///
///     fn set_dropout(&mut self, _: f64) {}
/// }
///
/// impl Net for Layers {
///     fn sites(&self) -> Vec<Site> {
///         Site::of_dense(&self.head, RowsOf::Sequences, false)
///     }
///
///     fn linears_mut(&mut self) -> Vec<&mut Dense> {
///         vec![&mut self.head]
///     }
///
///     fn logits(&self, tape: &mut Tape<'_>, tokens: &Tokens) -> Option<Var> {
///         let first: Vec<u32> = tokens.iter().map(|sequence| sequence[0]).collect();
///         let ids = tape.device().tensor(Class::Workspace, &[first.len()], &first);
///         let x = tape.embedding("words", &[(&ids, self.words)]);
///         Some(self.head.forward(tape, &x))
///     }
/// }
///
/// static FIRST_WORD: Family = Family {
///     model_type: "first-word",
///     name: "FirstWord",
///     head: HeadKind::Classifier,
///     saved_class: "FirstWordForSequenceClassification",
///     tokenizer_class: "BertTokenizer",
///     tokenizer_files: &[],
///     architecture: |fields, _| {
///         Box::new(FirstWord {
///             width: fields.size("width", None, 1 << 16),
///             vocab_size: fields.size("vocab_size", None, 1 << 24),
///         })
///     },
///     keys: Keys { prefix: "", body: &["words."], head: &[], ignored: &[], aliases: &[], siblings: &[] },
///     adapter_targets: &[],
///     modules_to_save: &["head"],
///     peft_task: "SEQ_CLS",
/// };
///
/// let json = br#"{"model_type": "first-word", "width": 4, "vocab_size": 30, "num_labels": 3}"#;
/// let config = Config::from_json_of(&[&FIRST_WORD], json, Path::new("config.json"))?;
/// let mut model = Model::new(config, &Device::cpu(), DType::F32);
/// model.init(1);
/// let mut tape = Tape::new(&model.registry.params, Mode::Inference);
/// let logits = model.logits(&mut tape, &Tokens::of([&[5, 8, 2][..], &[7]]))?;
/// assert_eq!(logits.value.shape(), [2, 3]);
/// # Ok::<(), colrow_tensor::Error>(())
/// ```
#[derive(Debug)]
pub struct Family {
    /// `model_type` of `config.json`: `bert`.
    pub model_type: &'static str,
    /// As users know it: `BERT`.
    pub name: &'static str,
    /// What stands behind its layers.
    pub head: HeadKind,
    /// The class that is written to `architectures`.
    pub saved_class: &'static str,
    /// The class of its tokenizer, where no file names one.
    pub tokenizer_class: &'static str,
    /// What other programs read of its tokenizers beside `tokenizer.json`: these files travel from a model to what is made of it, where
    /// they are.
    pub tokenizer_files: &'static [&'static str],
    /// Reads what is peculiar to it from `config.json`; the model is to have so many labels. What is wrong goes into the fields' problems.
    pub architecture: fn(&mut Fields<'_>, usize) -> Box<dyn Architecture>,
    /// How its checkpoints name tensors.
    pub keys: Keys,
    /// The linears that have adapters, unless a recipe names others.
    pub adapter_targets: &'static [&'static str],
    /// The modules that are trained whole beside adapters or biases, unless a recipe names others: the head of labels.
    pub modules_to_save: &'static [&'static str],
    /// `task_type` of an adapter, as PEFT names tasks.
    pub peft_task: &'static str,
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.model_type == other.model_type
    }
}

/// What a family's models are built by: their sizes and settings, by `config.json`.
pub trait Architecture: Compared + Any + fmt::Debug + Send + Sync {
    /// The layers of a model of zeros with so many labels, its parameters in the registry.
    fn net(&self, labels: usize, registry: &mut Registry) -> Box<dyn Net>;

    /// Width of the residual stream.
    fn hidden_size(&self) -> usize;

    /// Layers of the first stack.
    fn layers(&self) -> usize;

    /// Number of word pieces.
    fn vocab_size(&self) -> usize;

    /// Number of segments that a tokenizer may tell apart. A model that reads none lets it number them.
    fn type_vocab_size(&self) -> usize {
        usize::from(u8::MAX) + 1
    }

    /// Positions that the model has learned, where it computes any others too.
    fn learned_positions(&self) -> Option<usize> {
        None
    }

    /// Longest sequence in tokens, where there is a limit.
    fn longest(&self) -> Option<usize> {
        None
    }

    /// The tokens that end a text, of a model that writes text; the first is the one that it learns to write.
    fn end_tokens(&self) -> Vec<u32> {
        Vec::new()
    }

    /// Sets every dropout probability.
    fn set_dropout(&mut self, p: f64);

    /// Says that the head's weight is not the embedding's any more.
    fn untie(&mut self) {}

    /// Makes a saved `config.json` say what it left open when it was read.
    fn settle(&self, _json: &mut Map<String, Value>) {}
}

/// What lets an [`Architecture`] of unknown type be cloned and compared: every type that can be has it.
pub trait Compared {
    /// A copy.
    fn boxed(&self) -> Box<dyn Architecture>;

    /// Whether the other is of the same type and equal.
    fn equals(&self, other: &dyn Architecture) -> bool;
}

impl<T: Architecture + Clone + PartialEq> Compared for T {
    fn boxed(&self) -> Box<dyn Architecture> {
        Box::new(self.clone())
    }

    fn equals(&self, other: &dyn Architecture) -> bool {
        other.downcast_ref() == Some(self)
    }
}

impl dyn Architecture {
    /// It as a family's own type, if it is of that.
    pub fn downcast_ref<T: Architecture>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}

impl Clone for Box<dyn Architecture> {
    fn clone(&self) -> Self {
        self.boxed()
    }
}

impl PartialEq for dyn Architecture {
    fn eq(&self, other: &Self) -> bool {
        self.equals(other)
    }
}

// derive(PartialEq) of what holds one would move it out otherwise
impl PartialEq<&Self> for Box<dyn Architecture> {
    fn eq(&self, other: &&Self) -> bool {
        self.equals(&***other)
    }
}

/// How the checkpoints of a family name tensors.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    /// Before every key of the body; checkpoints of the bare model lack it: `bert.`.
    pub prefix: &'static str,
    /// Beginnings of the keys of the body, without the prefix: any other tensor is of a head.
    pub body: &'static [&'static str],
    /// Beginnings of keys that belong to the head though the body has them: pre-training leaves them out.
    pub head: &'static [&'static str],
    /// Ends of keys of the body that have no effect.
    pub ignored: &'static [&'static str],
    /// Tensors that go by several names.
    pub aliases: &'static [Alias],
    /// Models of the same `model_type` with other tensors.
    pub siblings: &'static [Sibling],
}

/// A tensor that goes by several names.
#[derive(Clone, Copy, Debug)]
pub struct Alias {
    /// The key that the model knows it by.
    pub key: &'static str,
    /// Where it is read from if there is no such key, best first.
    pub others: &'static [&'static str],
    /// If it is one tensor in the model, so that a checkpoint that has several may not hold different numbers: what to do with one that
    /// does.
    pub tied: Option<&'static str>,
}

/// A model that shares most keys with another of its family.
#[derive(Clone, Copy, Debug)]
pub struct Sibling {
    /// A part of keys that not all of the family have.
    pub part: &'static str,
    /// What to do with a checkpoint that has such keys where the configuration's model has none.
    pub hint: &'static str,
}
