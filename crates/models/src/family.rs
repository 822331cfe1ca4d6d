//! What a model family is to the rest of the program.

/// What stands behind a family's layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// Logits of labels, or one number: the model answers with a label.
    Classifier,
    /// Logits of tokens: the model answers in text.
    Language,
}

/// A model family: how its files name things, and what is usual for its models.
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
