//! A model of any family: its parameters, its sites, what it makes of tokens.

use colrow_autograd::{RowsOf, Tape, Var};
use colrow_tensor::rng::Key;
use colrow_tensor::{DType, Device, Error, Result};

use crate::bert::Bert;
use crate::config::{Architecture, Config};
use crate::layers::{Dense, Registry};
use crate::t5::T5;
use crate::tokens::Tokens;

/// The sites that the published system samples: attention output and feed-forward linears (Liu et al. 2023, section 4), and with LoRA
/// the inputs of the adapters.
pub const PAPER_SITES: [&str; 5] = [
    "encoder.layer.*.output.dense",
    "encoder.layer.*.intermediate.dense",
    "*coder.block.*Attention.o",
    "*coder.block.*.DenseReluDense.w*",
    "*.lora",
];

/// What an op at a site is: it decides what the site can keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteKind {
    /// A linear or its adapters: an input.
    Linear,
    /// A norm: ẑ.
    Norm,
    /// Attention: q, k and v.
    Attention,
    /// A GELU, gated or not: its input.
    Gelu,
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
}

impl Site {
    pub(crate) fn new(name: &str, rows: RowsOf, kind: SiteKind) -> Self {
        Self { name: name.to_owned(), rows, kind }
    }

    /// A linear and its adapters.
    pub(crate) fn of_dense(dense: &Dense, rows: RowsOf) -> Vec<Self> {
        let names = [Some(dense.site().to_owned()), dense.adapter_site()];
        names.iter().flatten().map(|name| Self::new(name, rows, SiteKind::Linear)).collect()
    }
}

#[derive(Debug)]
enum Net {
    Bert(Bert),
    T5(T5),
}

/// A model.
#[derive(Debug)]
pub struct Model {
    /// Its `config.json`.
    pub config: Config,
    /// Its parameters.
    pub registry: Registry,
    net: Net,
}

impl Model {
    /// A model of zeros, to be read or initialised.
    pub fn new(config: Config, device: &Device, dtype: DType) -> Self {
        let mut registry = Registry::new(device, dtype);
        let net = match &config.architecture {
            Architecture::Bert(c) => Net::Bert(Bert::new(c.clone(), config.num_labels(), &mut registry)),
            Architecture::T5(c) => Net::T5(T5::new(c.clone(), &mut registry)),
        };
        Self { config, registry, net }
    }

    /// Initialises every parameter as for pre-training.
    pub fn init(&mut self, seed: u64) {
        (0..self.registry.entries.len()).for_each(|i| self.registry.init(i, Key::new(seed)));
    }

    /// Sites that keep something by a policy, in the order of the forward pass.
    pub fn sites(&self) -> Vec<Site> {
        match &self.net {
            Net::Bert(net) => net.sites(),
            Net::T5(net) => net.sites(),
        }
    }

    /// The linears, and the registry of their parameters, to adapt them.
    pub(crate) fn linears_mut(&mut self) -> (Vec<&mut Dense>, &mut Registry) {
        let linears = match &mut self.net {
            Net::Bert(net) => net.linears_mut(),
            Net::T5(net) => net.linears_mut(),
        };
        (linears, &mut self.registry)
    }

    /// Logits (b, labels) of a classifier or regressor.
    ///
    /// # Errors
    /// A model that answers in text.
    pub fn logits(&self, tape: &mut Tape, tokens: &Tokens) -> Result<Var> {
        match &self.net {
            Net::Bert(net) => Ok(net.forward(tape, tokens)),
            Net::T5(_) => Err(Error::usage("expected a model with a classifier, found one that answers in text")),
        }
    }

    /// The mean cross-entropy of the rows of `targets`, each after those before it in its sequence, given `tokens`; rows count by their weights.
    ///
    /// # Errors
    /// A model that does not answer in text.
    pub fn text_loss(&self, tape: &mut Tape, tokens: &Tokens, targets: &Tokens) -> Result<Var> {
        match &self.net {
            Net::T5(net) => Ok(net.loss(tape, tokens, targets)),
            Net::Bert(_) => Err(Error::usage("expected labels, found texts as targets")),
        }
    }

    /// Greedy answers, at most `longest` tokens each: token ids up to the one that ends a text, which is left out.
    ///
    /// # Errors
    /// A model that does not answer in text.
    pub fn generate(&self, tokens: &Tokens, longest: usize) -> Result<Vec<Vec<u32>>> {
        match &self.net {
            Net::T5(net) => Ok(net.generate(&self.registry.params, tokens, longest)),
            Net::Bert(_) => Err(Error::usage("expected a model that answers in text, found a classifier")),
        }
    }
}
