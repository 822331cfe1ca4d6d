//! BERT (Devlin et al. 2019) with a classification or regression head, as `BertForSequenceClassification`.
//!
//! q, k and v are one (3d, d) weight in memory, three in the checkpoint. Batches are ragged: rows of all sequences follow each
//! other, without padding.

use colrow_autograd::{Attend, ParamId, RowsOf, Sequences, Tape, Var};
use colrow_tensor::Class;

use crate::config::BertConfig;
use crate::layers::{Dense, DenseSize, Init, Norm, Registry};
use crate::matching::NUM_LABELS;
use crate::model::Input;

#[derive(Debug)]
struct Layer {
    name: String,
    qkv: Dense,
    attention_output: Dense,
    attention_norm: Norm,
    intermediate: Dense,
    output: Dense,
    output_norm: Norm,
}

/// The layers of a BERT with its head.
#[derive(Debug)]
pub struct Bert {
    config: BertConfig,
    word: ParamId,
    position: ParamId,
    kind: ParamId,
    embedding_norm: Norm,
    layers: Vec<Layer>,
    pooler: Dense,
    classifier: Dense,
}

impl Bert {
    /// A model of zeros with so many labels.
    pub fn new(config: BertConfig, labels: usize, r: &mut Registry) -> Self {
        let (d, eps, std) = (config.hidden_size, config.layer_norm_eps, config.initializer_range);
        let f = config.intermediate_size;
        let mut table = |name: &str, rows: usize, dims| {
            r.add(&[format!("bert.embeddings.{name}_embeddings.weight")], &[rows, d], dims, Init::Normal(std))
        };
        let word = table("word", config.vocab_size, &["vocab_size", "hidden_size"]);
        let position = table("position", config.max_position_embeddings, &["max_position_embeddings", "hidden_size"]);
        let kind = table("token_type", config.type_vocab_size, &["type_vocab_size", "hidden_size"]);
        let embedding_norm = Norm::new(r, "bert.", "embeddings.LayerNorm", d, eps);
        let square = DenseSize { size: [d, d], dims: &["hidden_size", "hidden_size"] };
        let up = DenseSize { size: [f, d], dims: &["intermediate_size", "hidden_size"] };
        let down = DenseSize { size: [d, f], dims: &["hidden_size", "intermediate_size"] };
        let head = DenseSize { size: [labels, d], dims: &[NUM_LABELS, "hidden_size"] };
        let dense =
            |r: &mut Registry, site: &str, size| Dense::new(r, site, &[(&format!("bert.{site}"), std)], size, true);
        let layer = |r: &mut Registry, i: usize| {
            let name = format!("encoder.layer.{i}");
            let site = |part: &str| format!("{name}.{part}");
            let parts = ["query", "key", "value"].map(|p| format!("bert.{name}.attention.self.{p}"));
            let parts = parts.each_ref().map(|part| (part.as_str(), std));
            Layer {
                qkv: Dense::new(r, &site("attention.self.qkv"), &parts, square, true),
                attention_output: dense(r, &site("attention.output.dense"), square),
                attention_norm: Norm::new(r, "bert.", &site("attention.output.LayerNorm"), d, eps),
                intermediate: dense(r, &site("intermediate.dense"), up),
                output: dense(r, &site("output.dense"), down),
                output_norm: Norm::new(r, "bert.", &site("output.LayerNorm"), d, eps),
                name,
            }
        };
        let layers = (0..config.num_hidden_layers).map(|i| layer(r, i)).collect();
        let pooler = dense(r, "pooler.dense", square);
        let classifier = Dense::new(r, "classifier", &[("classifier", std)], head, true);
        Self { config, word, position, kind, embedding_norm, layers, pooler, classifier }
    }

    /// The linears, and what their rows are.
    pub(crate) fn linears(&self) -> Vec<(&Dense, RowsOf)> {
        let layers = self.layers.iter().flat_map(|l| [&l.qkv, &l.attention_output, &l.intermediate, &l.output]);
        let head = [&self.pooler, &self.classifier].map(|dense| (dense, RowsOf::Sequences));
        layers.map(|dense| (dense, RowsOf::Tokens)).chain(head).collect()
    }

    /// The linears, to adapt them.
    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Dense> {
        let layers = self.layers.iter_mut();
        let layers = layers.flat_map(|l| [&mut l.qkv, &mut l.attention_output, &mut l.intermediate, &mut l.output]);
        layers.chain([&mut self.pooler, &mut self.classifier]).collect()
    }

    /// Logits (b, labels).
    pub fn forward(&self, tape: &mut Tape, input: &Input<'_>) -> Var {
        let c = &self.config;
        let hidden = c.hidden_dropout_prob as f32;
        let device = tape.device().clone();
        let tensor = |data: &[u32]| device.tensor(Class::Workspace, &[data.len()], data);
        let positions: Vec<u32> = input.bounds.windows(2).flat_map(|w| 0..w[1] - w[0]).collect();
        let (ids, positions, types) = (tensor(input.ids), tensor(&positions), tensor(input.types));
        let sequences = Sequences::new(&device, input.bounds);
        let lookups = [(&ids, self.word), (&positions, self.position), (&types, self.kind)];
        let mut x = tape.embedding("embeddings", &lookups);
        drop((ids, positions, types));
        x = self.embedding_norm.forward(tape, &x);
        x = tape.dropout("embeddings.dropout", x, hidden);
        for layer in &self.layers {
            x = layer.forward(tape, x, &sequences, c);
        }
        let first = tensor(&input.bounds[..sequences.count()]);
        x = tape.rows("pooler.first", &x, &first);
        drop(first);
        x = self.pooler.forward(tape, &x);
        x = tape.tanh("pooler.activation", x);
        x = tape.dropout("classifier.dropout", x, c.classifier_dropout as f32);
        self.classifier.forward(tape, &x)
    }
}

impl Layer {
    fn forward(&self, tape: &mut Tape, x: Var, sequences: &Sequences, c: &BertConfig) -> Var {
        let at = |part: &str| format!("{}.{part}", self.name);
        let qkv = self.qkv.forward(tape, &x);
        let attend = Attend {
            heads: c.num_attention_heads,
            scale: 1.0 / (c.head_size() as f64).sqrt(),
            causal: false,
            first_position: 0,
            dropout: c.attention_probs_dropout_prob as f32,
            bias: None,
        };
        // `h` is assigned rather than shadowed, so that what only the next op reads is dropped there
        let mut h = tape.attention(&at("attention.self"), &attend, (qkv, sequences), None);
        h = self.attention_output.forward(tape, &h);
        h = tape.dropout(&at("attention.output.dropout"), h, c.hidden_dropout_prob as f32);
        h = tape.add(&at("attention.output.residual"), h, &x);
        drop(x);
        let x = self.attention_norm.forward(tape, &h);
        drop(h);
        let mut h = self.intermediate.forward(tape, &x);
        h = tape.gelu(&at("intermediate.activation"), c.hidden_act, h);
        h = self.output.forward(tape, &h);
        h = tape.dropout(&at("output.dropout"), h, c.hidden_dropout_prob as f32);
        h = tape.add(&at("output.residual"), h, &x);
        drop(x);
        self.output_norm.forward(tape, &h)
    }
}
