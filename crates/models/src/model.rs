//! A model of any family: its parameters, its sites, what it makes of tokens.

use colrow_autograd::{Head, HeadScores, Mode, RowsOf, Tape, Var};
use colrow_tensor::rng::Key;
use colrow_tensor::{DType, Device, Error, Result};

use crate::choose::Choice;
use crate::config::Config;
use crate::decode::{self, Decoding, Text};
use crate::family::HeadKind;
use crate::layers::Dense;
use crate::net::{Language, Net, Site, SiteKind};
use crate::registry::Registry;
use crate::tokens::Tokens;

/// The site of a head of tokens and its loss.
const HEAD: &str = "lm_head";

/// A model.
#[derive(Debug)]
pub struct Model {
    /// Its `config.json`.
    pub config: Config,
    /// Its parameters.
    pub registry: Registry,
    net: Box<dyn Net>,
}

impl Model {
    /// A model of zeros, to be read or initialised.
    pub fn new(config: Config, device: &Device, dtype: DType) -> Self {
        let mut registry = Registry::new(device, dtype);
        let net = config.architecture.net(config.num_labels(), &mut registry);
        Self { config, registry, net }
    }

    /// Moves the model to a device, without its numbers: they are to be read or initialised, adapters' too.
    pub fn move_to(&mut self, device: &Device) {
        self.registry.params.move_to(device);
    }

    /// Initialises every parameter as for pre-training.
    pub fn init(&mut self, seed: u64) {
        (0..self.registry.entries.len()).for_each(|i| self.registry.init(i, Key::new(seed)));
    }

    /// Sites that keep something by a policy, in the order of the forward pass.
    pub fn sites(&self) -> Vec<Site> {
        let mut sites = self.net.sites();
        let rows = match self.config.family().head {
            HeadKind::Language => RowsOf::Targets,
            HeadKind::Classifier | HeadKind::Causal => RowsOf::Tokens,
        };
        sites.extend(self.net.language().map(|_| Site::new(HEAD, rows, SiteKind::Head)));
        sites
    }

    /// The linears, and the registry of their parameters, to adapt them.
    pub(crate) fn linears_mut(&mut self) -> (Vec<&mut Dense>, &mut Registry) {
        (self.net.linears_mut(), &mut self.registry)
    }

    /// The layers as those of a model that writes text, if they are.
    pub fn language(&self) -> Option<&dyn Language> {
        self.net.language()
    }

    fn as_language(&self, otherwise: &'static str) -> Result<&dyn Language> {
        self.language().ok_or_else(|| Error::usage(otherwise))
    }

    /// Logits (b, labels) of a classifier or regressor.
    ///
    /// # Errors
    /// A model that answers in text.
    pub fn logits(&self, tape: &mut Tape, tokens: &Tokens) -> Result<Var> {
        let logits = self.net.logits(tape, tokens);
        logits.ok_or_else(|| Error::usage("expected a model with a classifier, found one that answers in text"))
    }

    /// The mean cross-entropy of the rows of `targets`, each after those before it in its sequence, given `tokens`; rows count by their weights.
    ///
    /// # Errors
    /// A model that does not answer in text.
    pub fn text_loss(&self, tape: &mut Tape, tokens: &Tokens, targets: &Tokens) -> Result<Var> {
        let refusal = "expected labels, found texts as targets";
        let language = self.as_language(refusal)?;
        let x = language.answer(tape, tokens, targets).ok_or_else(|| Error::usage(refusal))?;
        Ok(tape.head_loss(HEAD, &x, language.head(), &targets.ids, targets.weight.as_deref()))
    }

    /// The mean cross-entropy of `tokens`, each but the first of its sequence after those before it; they count by their weights.
    ///
    /// # Errors
    /// A model that does not go on with texts.
    pub fn next_token_loss(&self, tape: &mut Tape, tokens: &Tokens) -> Result<Var> {
        let (x, head) = self.continuation(tape, tokens)?;
        let (labels, weights) = tokens.next();
        Ok(tape.head_loss(HEAD, &x, head, &labels, Some(&weights)))
    }

    /// The same loss without its gradient, and of how many tokens that count each is the most likely.
    ///
    /// # Errors
    /// A model that does not go on with texts.
    pub fn next_token_scores(&self, tokens: &Tokens) -> Result<HeadScores> {
        let mut tape = Tape::new(&self.registry.params, Mode::Inference);
        let (x, head) = self.continuation(&mut tape, tokens)?;
        let (labels, weights) = tokens.next();
        Ok(tape.head_scores(&x, head, &labels, Some(&weights)))
    }

    fn continuation(&self, tape: &mut Tape, tokens: &Tokens) -> Result<(Var, Head)> {
        let refusal = "expected a model that goes on with texts (a decoder), found another";
        let language = self.as_language(refusal)?;
        let x = language.continuation(tape, tokens).ok_or_else(|| Error::usage(refusal))?;
        Ok((x, language.head()))
    }

    /// Greedy answers, at most `longest` tokens each: token ids up to the one that ends a text, which is left out.
    ///
    /// # Errors
    /// A model that does not answer in text.
    pub fn generate(&self, tokens: &Tokens, longest: usize) -> Result<Vec<Vec<u32>>> {
        let language = self.as_language("expected a model that answers in text, found a classifier")?;
        let mut tape = Tape::new(&self.registry.params, Mode::Inference);
        let decoder = language.decoder(&mut tape, tokens);
        let ends = self.config.architecture.end_tokens();
        let how = Decoding { choice: Choice::greedy(), ends: &ends, longest, cache: None };
        let texts = decode::decode(&mut tape, &*decoder, language.head(), tokens.sequences(), &how, &mut |_, _| true)?;
        Ok(texts.into_iter().map(|text| text.tokens).collect())
    }

    /// Goes on with one text, as `how` says; `each` sees each token as it comes, and may stop by `false`.
    ///
    /// # Errors
    /// A model that does not go on with texts; no token to go on from.
    pub fn go_on(&self, prompt: &[u32], how: &Decoding<'_>, each: &mut dyn FnMut(u32) -> bool) -> Result<Text> {
        let refusal = "expected a model that goes on with texts (a decoder), found another";
        let language = self.as_language(refusal)?;
        if self.config.family().head != HeadKind::Causal {
            return Err(Error::usage(refusal));
        }
        if prompt.is_empty() {
            return Err(Error::usage("expected a prompt of at least one token, found none"));
        }
        let mut tape = Tape::new(&self.registry.params, Mode::Inference);
        let decoder = language.decoder(&mut tape, &Tokens::of([prompt]));
        let texts = decode::decode(&mut tape, &*decoder, language.head(), 1, how, &mut |_, token| each(token))?;
        Ok(texts.into_iter().next().unwrap_or_default())
    }
}
