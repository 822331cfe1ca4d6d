//! BERT (Devlin et al. 2019) with a classification or regression head, as `BertForSequenceClassification`.
//!
//! q, k and v are one (3d, d) weight in memory, three in the checkpoint. Batches are ragged: rows of all sequences follow each
//! other, without padding.

use colrow_autograd::{Attend, ParamId, Sequences, Tape, Var};
use colrow_tensor::rng::Key;
use colrow_tensor::{Class, DType, Device, Tensor};

use crate::config::BertConfig;
use crate::layers::{Dense, DenseSize, Init, Norm, Registry};
use crate::matching::NUM_LABELS;

/// The sites that the published system samples: attention output and both feed-forward linears (Liu et al. 2023, section 4), and
/// with LoRA the inputs of the adapters.
pub const PAPER_SITES: [&str; 3] = ["encoder.layer.*.output.dense", "encoder.layer.*.intermediate.dense", "*.lora"];

/// A ragged batch on a device.
#[derive(Clone, Debug)]
pub struct Input {
    ids: Tensor,
    types: Tensor,
    positions: Tensor,
    sequences: Sequences,
}

impl Input {
    /// From token ids (n), token types (n) and the sequences' first rows and the end (b+1).
    pub fn new(device: &Device, ids: &[u32], types: &[u32], bounds: &[u32]) -> Self {
        let positions: Vec<u32> = bounds.windows(2).flat_map(|w| 0..w[1] - w[0]).collect();
        let tensor = |data: &[u32]| device.tensor(Class::Workspace, &[data.len()], data);
        Self {
            ids: tensor(ids),
            types: tensor(types),
            positions: tensor(&positions),
            sequences: Sequences::new(device, bounds),
        }
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.sequences.count()
    }
}

/// What a batch's outputs are compared with.
#[derive(Clone, Debug)]
pub enum Target {
    /// Class numbers (b, u32).
    Classes(Tensor),
    /// Numbers (b), of the model's float type.
    Values(Tensor),
}

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

/// A BERT with its head.
#[derive(Debug)]
pub struct Bert {
    /// Its `config.json`.
    pub config: BertConfig,
    /// Its parameters.
    pub registry: Registry,
    word: ParamId,
    position: ParamId,
    kind: ParamId,
    embedding_norm: Norm,
    layers: Vec<Layer>,
    pooler: Dense,
    classifier: Dense,
}

impl Bert {
    /// A model of zeros, to be read or initialised.
    pub fn new(config: BertConfig, device: &Device, dtype: DType) -> Self {
        let mut registry = Registry::new(device, dtype);
        let r = &mut registry;
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
        let head = DenseSize { size: [config.num_labels(), d], dims: &[NUM_LABELS, "hidden_size"] };
        let dense = |r: &mut Registry, site: &str, size| Dense::new(r, site, &[&format!("bert.{site}")], size, std);
        let layer = |r: &mut Registry, i: usize| {
            let name = format!("encoder.layer.{i}");
            let site = |part: &str| format!("{name}.{part}");
            let parts = ["query", "key", "value"].map(|p| format!("bert.{name}.attention.self.{p}"));
            let parts = parts.each_ref().map(String::as_str);
            Layer {
                qkv: Dense::new(r, &site("attention.self.qkv"), &parts, square, std),
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
        let classifier = Dense::new(r, "classifier", &["classifier"], head, std);
        Self { config, registry, word, position, kind, embedding_norm, layers, pooler, classifier }
    }

    /// Initialises every parameter as for pre-training.
    pub fn init(&mut self, seed: u64) {
        (0..self.registry.entries.len()).for_each(|i| self.registry.init(i, Key::new(seed)));
    }

    /// Sites that keep an input by a policy, linears and their adapters, in the order of the forward pass.
    pub fn linear_sites(&self) -> Vec<String> {
        let layers = self.layers.iter().flat_map(|l| [&l.qkv, &l.attention_output, &l.intermediate, &l.output]);
        let linears = layers.chain([&self.pooler, &self.classifier]);
        linears.flat_map(|dense| [Some(dense.site().to_owned()), dense.adapter_site()]).flatten().collect()
    }

    /// The linears, and the registry of their parameters, to adapt them.
    pub(crate) fn linears_mut(&mut self) -> (Vec<&mut Dense>, &mut Registry) {
        let layers = self.layers.iter_mut();
        let layers = layers.flat_map(|l| [&mut l.qkv, &mut l.attention_output, &mut l.intermediate, &mut l.output]);
        (layers.chain([&mut self.pooler, &mut self.classifier]).collect(), &mut self.registry)
    }

    /// Logits (b, labels).
    pub fn forward(&self, tape: &mut Tape, input: &Input) -> Var {
        let c = &self.config;
        let hidden = c.hidden_dropout_prob as f32;
        let lookups = [(&input.ids, self.word), (&input.positions, self.position), (&input.types, self.kind)];
        let mut x = tape.embedding("embeddings", &lookups);
        x = self.embedding_norm.forward(tape, &x);
        x = tape.dropout("embeddings.dropout", x, hidden);
        for layer in &self.layers {
            x = layer.forward(tape, x, input, c);
        }
        let first = tape.device().tensor(Class::Workspace, &[input.sequences()], &self.first_rows(input));
        x = tape.rows("pooler.first", &x, &first);
        drop(first);
        x = self.pooler.forward(tape, &x);
        x = tape.tanh("pooler.activation", x);
        x = tape.dropout("classifier.dropout", x, c.classifier_dropout as f32);
        self.classifier.forward(tape, &x)
    }

    fn first_rows(&self, input: &Input) -> Vec<u32> {
        let bounds = &input.sequences.bounds;
        match bounds.device().is_meta() {
            true => vec![0; input.sequences()],
            false => bounds.as_slice::<u32>()[..input.sequences()].to_vec(),
        }
    }

    /// The batch's mean loss: cross-entropy over classes, squared error of values.
    pub fn loss(&self, tape: &mut Tape, logits: &Var, target: &Target) -> Var {
        match target {
            Target::Classes(labels) => tape.cross_entropy("loss", logits, labels),
            Target::Values(values) => tape.mean_squared_error("loss", logits, values),
        }
    }
}

impl Layer {
    fn forward(&self, tape: &mut Tape, x: Var, input: &Input, c: &BertConfig) -> Var {
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
        let mut h = tape.attention(&at("attention.self"), &attend, (qkv, &input.sequences), None);
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
