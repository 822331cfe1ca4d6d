//! The configuration of a BERT.

use colrow_tensor::Activation;
use serde_json::Value;

use crate::fields::{Fields, POSITIVE, PROBABILITY};

/// The configuration of a BERT, with the names and defaults that `transformers` gives them.
#[derive(Clone, Debug, PartialEq)]
pub struct BertConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of encoder layers.
    pub num_hidden_layers: usize,
    /// Heads per layer; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width between the feed-forward linears.
    pub intermediate_size: usize,
    /// Number of word pieces.
    pub vocab_size: usize,
    /// Longest sequence in tokens.
    pub max_position_embeddings: usize,
    /// Number of segments.
    pub type_vocab_size: usize,
    /// Between the feed-forward linears.
    pub hidden_act: Activation,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f64,
    /// Dropout of embeddings and of each block's output.
    pub hidden_dropout_prob: f64,
    /// Dropout of attention probabilities.
    pub attention_probs_dropout_prob: f64,
    /// Dropout before the classifier; `hidden_dropout_prob` where the file has none.
    pub classifier_dropout: f64,
    /// Standard deviation of new weights.
    pub initializer_range: f64,
    /// The token that pads; nothing is padded here, but exported tokenizers name it.
    pub pad_token_id: usize,
}

impl BertConfig {
    /// Reads it for a model with so many labels.
    pub fn from_fields(f: &mut Fields<'_>, labels: usize) -> Self {
        let hidden_dropout_prob = f.number("hidden_dropout_prob", 0.1, PROBABILITY);
        let config = Self {
            hidden_size: f.size("hidden_size", None, 1 << 16),
            num_hidden_layers: f.size("num_hidden_layers", None, 1 << 10),
            num_attention_heads: f.size("num_attention_heads", None, 1 << 12),
            intermediate_size: f.size("intermediate_size", None, 1 << 20),
            vocab_size: f.size("vocab_size", None, 1 << 24),
            max_position_embeddings: f.size("max_position_embeddings", Some(512), 1 << 20),
            type_vocab_size: f.size("type_vocab_size", Some(2), 1 << 16),
            hidden_act: hidden_act(f),
            layer_norm_eps: f.number("layer_norm_eps", 1e-12, POSITIVE),
            hidden_dropout_prob,
            attention_probs_dropout_prob: f.number("attention_probs_dropout_prob", 0.1, PROBABILITY),
            classifier_dropout: f.number("classifier_dropout", hidden_dropout_prob, PROBABILITY),
            initializer_range: f.number("initializer_range", 0.02, POSITIVE),
            pad_token_id: f.token("pad_token_id", 0),
        };
        if f.get("position_embedding_type").is_some_and(|v| v != "absolute") {
            f.problem("position_embedding_type", "\"absolute\"");
        }
        for key in ["is_decoder", "add_cross_attention"] {
            if f.get(key).is_some_and(|v| v != false) {
                f.problem(key, "false (an encoder)");
            }
        }
        if !f.problems.is_empty() {
            return config;
        }
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            f.problem("num_attention_heads", &format!("a divisor of hidden_size = {}", config.hidden_size));
        }
        if config.pad_token_id >= config.vocab_size {
            f.problem("pad_token_id", &format!("less than vocab_size = {}", config.vocab_size));
        }
        f.check_parameters(config.parameters(labels));
        config
    }

    /// Width of an attention head.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Number of parameters of the model with pooler and a classifier of so many labels.
    pub fn parameters(&self, labels: usize) -> u64 {
        let wide = |n: usize| n as u64;
        let (d, f, labels) = (wide(self.hidden_size), wide(self.intermediate_size), wide(labels));
        let embeddings =
            (wide(self.vocab_size) + wide(self.max_position_embeddings) + wide(self.type_vocab_size) + 2) * d;
        let layer = 4 * (d * d + d) + (f * d + f) + (d * f + d) + 4 * d;
        embeddings + wide(self.num_hidden_layers) * layer + (d * d + d) + labels * (d + 1)
    }
}

fn hidden_act(f: &mut Fields<'_>) -> Activation {
    match f.get("hidden_act").map(Value::as_str) {
        None | Some(Some("gelu")) => Activation::Gelu,
        Some(Some("gelu_new" | "gelu_pytorch_tanh")) => Activation::GeluTanh,
        Some(_) => {
            f.problem("hidden_act", "\"gelu\", \"gelu_new\" or \"gelu_pytorch_tanh\"");
            Activation::Gelu
        }
    }
}
