//! The layers of a model, whatever its family: what the rest of the program asks of them.

use std::fmt;

use colrow_autograd::{Head, RowsOf, Tape, Var};

use crate::decode::Decoder;
use crate::layers::Dense;
use crate::tokens::Tokens;

/// What an op at a site is: it decides what the site can keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteKind {
    /// A linear or its adapters: an input.
    Linear,
    /// A head of tokens and its loss: an input.
    Head,
    /// A norm: ẑ.
    Norm,
    /// Attention: q, k and v.
    Attention,
    /// A GELU, gated or not: its input.
    Activation,
    /// A ReLU: signs, or its output.
    Relu,
    /// A block of ops: its input, if it is to run again.
    Block,
}

/// An op that keeps something by a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its place in policies and ledger.
    pub name: String,
    /// What the rows of what it keeps are.
    pub rows: RowsOf,
    /// What it is.
    pub kind: SiteKind,
    /// Whether the published system samples it: attention output and feed-forward linears (Liu et al. 2023, section 4), and with LoRA the
    /// inputs of the adapters.
    pub in_paper: bool,
}

impl Site {
    /// An op by its name.
    pub fn new(name: &str, rows: RowsOf, kind: SiteKind) -> Self {
        Self { name: name.to_owned(), rows, kind, in_paper: false }
    }

    /// A linear and its adapters; `in_paper` says whether the published system samples the linear.
    pub fn of_dense(dense: &Dense, rows: RowsOf, in_paper: bool) -> Vec<Self> {
        let site = |name: &str, in_paper| Self { in_paper, ..Self::new(name, rows, SiteKind::Linear) };
        let adapter = dense.adapter_site().map(|name| site(&name, true));
        std::iter::once(site(dense.site(), in_paper)).chain(adapter).collect()
    }
}

/// The layers of a model. Its parameters are in the model's [`Registry`](crate::registry::Registry); a tape that runs the layers has them.
pub trait Net: fmt::Debug + Send + Sync {
    /// The ops that keep something by a policy, in the order of the forward pass.
    fn sites(&self) -> Vec<Site>;

    /// The linears, to adapt them. No tape holds the net meanwhile.
    fn linears_mut(&mut self) -> Vec<&mut Dense>;

    /// Logits (b, labels), or a number a sequence; `None` if the net has no such head.
    fn logits(&self, _tape: &mut Tape<'_>, _tokens: &Tokens) -> Option<Var> {
        None
    }

    /// The net as one that writes text; `None` if it is none.
    fn language(&self) -> Option<&dyn Language> {
        None
    }
}

/// A net with a head of tokens.
pub trait Language {
    /// The head, which reads hidden rows.
    fn head(&self) -> Head;

    /// For each row of `targets` the hidden row (d) that predicts it from `tokens` and the rows before it in its sequence; `None` if the net
    /// reads no other text than the one that it goes on with.
    fn answer(&self, _tape: &mut Tape<'_>, _tokens: &Tokens, _targets: &Tokens) -> Option<Var> {
        None
    }

    /// The hidden rows (n, d) of `tokens`, each of which predicts the next token of its sequence and sees none after itself; `None` if the
    /// net answers to another text.
    fn continuation(&self, _tape: &mut Tape<'_>, _tokens: &Tokens) -> Option<Var> {
        None
    }

    /// Reads `tokens`, so that answers to them can be decoded token by token.
    fn decoder<'n>(&'n self, tape: &mut Tape<'_>, tokens: &Tokens) -> Box<dyn Decoder + 'n>;
}
