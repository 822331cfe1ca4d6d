//! BERT (Devlin et al. 2019) with a classification or regression head, as `BertForSequenceClassification`.
//!
//! q, k and v are one (3d, d) weight in memory, three in the checkpoint. Batches are ragged: rows of all sequences follow each
//! other, without padding. Only the pooled row of each sequence is read behind the last layer, so that layer computes no other: every row gives k
//! and v there, the pooled rows alone q, the attention's output and the feed-forward's.

mod config;

use std::sync::Arc;

use colrow_autograd::{Attend, ParamId, RowsOf, Sequences, Tape, Var};
use colrow_tensor::{Class, Tensor};

use crate::family::{Alias, Architecture, Family, HeadKind, Keys, TOKENIZER_FILES};
use crate::layers::{Dense, Module, Norm, Width};
use crate::net::{Net, Site, SiteKind};
use crate::registry::{Init, NUM_LABELS, Registry};
use crate::tokens::Tokens;

pub use config::BertConfig;

/// The family. A masked language model has no pooler, and its decoder is the embedding.
pub static FAMILY: Family = Family {
    model_type: "bert",
    name: "BERT",
    head: HeadKind::Classifier,
    saved_class: "BertForSequenceClassification",
    tokenizer_class: "BertTokenizer",
    tokenizer_files: TOKENIZER_FILES,
    architecture: |fields, labels| Box::new(BertConfig::from_fields(fields, labels)),
    keys: Keys {
        prefix: "bert.",
        body: &["embeddings.", "encoder.", "pooler."],
        head: &["bert.pooler."],
        ignored: &["embeddings.position_ids", "embeddings.token_type_ids"],
        aliases: &[Alias {
            key: "bert.embeddings.word_embeddings.weight",
            others: &["cls.predictions.decoder.weight"],
            tied: None,
        }],
        siblings: &[],
    },
    adapter_targets: &["query", "key", "value"],
    modules_to_save: &["classifier"],
    peft_task: "SEQ_CLS",
};

impl Architecture for BertConfig {
    fn net(&self, labels: usize, registry: &mut Registry) -> Box<dyn Net> {
        Box::new(Bert::new(self.clone(), labels, registry))
    }

    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn layers(&self) -> usize {
        self.num_hidden_layers
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn type_vocab_size(&self) -> usize {
        self.type_vocab_size
    }

    fn longest(&self) -> Option<usize> {
        Some(self.max_position_embeddings)
    }

    fn set_dropout(&mut self, p: f64) {
        (self.hidden_dropout_prob, self.attention_probs_dropout_prob, self.classifier_dropout) = (p, p, p);
    }
}

#[derive(Debug)]
enum Projections {
    /// Of every row: q, k and v side by side.
    Packed(Dense),
    /// q of the pooled rows, k and v of every row.
    Pooled { q: Dense, kv: Dense },
}

impl Projections {
    fn linears(&self) -> Vec<&Dense> {
        match self {
            Self::Packed(qkv) => vec![qkv],
            Self::Pooled { q, kv } => vec![kv, q],
        }
    }

    fn linears_mut(&mut self) -> Vec<&mut Dense> {
        match self {
            Self::Packed(qkv) => vec![qkv],
            Self::Pooled { q, kv } => vec![kv, q],
        }
    }
}

/// The pooled rows of the layer's input, and as sequences of one row.
#[derive(Clone)]
struct Pooled {
    rows: Tensor,
    alone: Sequences,
}

#[derive(Debug)]
struct Layer {
    name: String,
    projections: Projections,
    attention_output: Dense,
    attention_norm: Norm,
    intermediate: Dense,
    output: Dense,
    output_norm: Norm,
}

/// The layers of a BERT with its head.
#[derive(Debug)]
pub struct Bert {
    config: Arc<BertConfig>,
    word: ParamId,
    position: ParamId,
    kind: ParamId,
    embedding_norm: Norm,
    layers: Vec<Arc<Layer>>,
    pooler: Dense,
    classifier: Dense,
}

impl Bert {
    /// A model of zeros with so many labels.
    pub fn new(config: BertConfig, labels: usize, r: &mut Registry) -> Self {
        let (d, eps, std) = (config.hidden_size, config.layer_norm_eps, config.initializer_range);
        let f = config.intermediate_size;
        let width = Width { d, dims: &["hidden_size"] };
        let mut table = |name: &str, rows: usize, dims| {
            r.add(&format!("bert.embeddings.{name}_embeddings.weight"), &[rows, d], dims, Init::Normal(std))
        };
        let word = table("word", config.vocab_size, &["vocab_size", "hidden_size"]);
        let position = table("position", config.max_position_embeddings, &["max_position_embeddings", "hidden_size"]);
        let kind = table("token_type", config.type_vocab_size, &["type_vocab_size", "hidden_size"]);
        let embedding_norm = Norm::new(r, "bert.", "embeddings.LayerNorm", width, eps);
        let square = |name: String| Module { name, outputs: d, dims: &["hidden_size", "hidden_size"], std };
        let up = |name: String| Module { name, outputs: f, dims: &["intermediate_size", "hidden_size"], std };
        let down = |name: String| Module { name, outputs: d, dims: &["hidden_size", "intermediate_size"], std };
        let dense = |r: &mut Registry, site: &str, module: &dyn Fn(String) -> Module, inputs: usize| {
            Dense::new(r, site, &[module(format!("bert.{site}"))], inputs, true)
        };
        let layer = |r: &mut Registry, i: usize| {
            let name = format!("encoder.layer.{i}");
            let site = |part: &str| format!("{name}.{part}");
            let parts = ["query", "key", "value"].map(|p| square(format!("bert.{name}.attention.self.{p}")));
            let mut project =
                |name: &str, parts: &[Module]| Dense::new(r, &site(&format!("attention.self.{name}")), parts, d, true);
            let projections = match i + 1 == config.num_hidden_layers {
                false => Projections::Packed(project("qkv", &parts)),
                true => Projections::Pooled { q: project("query", &parts[..1]), kv: project("kv", &parts[1..]) },
            };
            Arc::new(Layer {
                projections,
                attention_output: dense(r, &site("attention.output.dense"), &square, d),
                attention_norm: Norm::new(r, "bert.", &site("attention.output.LayerNorm"), width, eps),
                intermediate: dense(r, &site("intermediate.dense"), &up, d),
                output: dense(r, &site("output.dense"), &down, f),
                output_norm: Norm::new(r, "bert.", &site("output.LayerNorm"), width, eps),
                name,
            })
        };
        let layers = (0..config.num_hidden_layers).map(|i| layer(r, i)).collect();
        let pooler = dense(r, "pooler.dense", &square, d);
        let head = Module { name: "classifier".into(), outputs: labels, dims: &[NUM_LABELS, "hidden_size"], std };
        let classifier = Dense::new(r, "classifier", &[head], d, true);
        Self { config: Arc::new(config), word, position, kind, embedding_norm, layers, pooler, classifier }
    }

    /// Logits (b, labels).
    fn forward(&self, tape: &mut Tape<'_>, tokens: &Tokens) -> Var {
        let c = &self.config;
        let hidden = c.hidden_dropout_prob as f32;
        let device = tape.device().clone();
        let tensor = |data: &[u32]| device.tensor(Class::Workspace, &[data.len()], data);
        let positions: Vec<u32> = tokens.positions().collect();
        let (ids, positions, types) = (tensor(&tokens.ids), tensor(&positions), tensor(&tokens.types));
        let sequences = Sequences::new(&device, &tokens.bounds);
        let lookups = [(&ids, self.word), (&positions, self.position), (&types, self.kind)];
        let mut x = tape.embedding("embeddings", &lookups);
        drop((ids, positions, types));
        x = self.embedding_norm.forward(tape, &x);
        x = tape.dropout("embeddings.dropout", x, hidden);
        let alone: Vec<u32> = (0..=sequences.count() as u32).collect();
        let pooled =
            Pooled { rows: tensor(&tokens.bounds[..sequences.count()]), alone: Sequences::new(&device, &alone) };
        for layer in &self.layers {
            let (block, sequences, pooled, c) = (layer.clone(), sequences.clone(), pooled.clone(), self.config.clone());
            let attend = move |tape: &mut Tape<'_>, inputs| block.attend(tape, only(inputs), &sequences, &pooled, &c);
            let (block, c) = (layer.clone(), self.config.clone());
            x = tape.block(&layer.name, vec![x], attend, move |tape, h| block.feed_forward(tape, h, &c));
        }
        drop(pooled);
        x = self.pooler.forward(tape, &x);
        x = tape.tanh("pooler.activation", x);
        x = tape.dropout("classifier.dropout", x, c.classifier_dropout as f32);
        self.classifier.forward(tape, &x)
    }
}

impl Net for Bert {
    fn sites(&self) -> Vec<Site> {
        let mut sites = vec![Site::new(self.embedding_norm.site(), RowsOf::Tokens, SiteKind::Norm)];
        self.layers.iter().for_each(|layer| layer.sites(&mut sites));
        [&self.pooler, &self.classifier]
            .iter()
            .for_each(|dense| sites.extend(Site::of_dense(dense, RowsOf::Sequences, false)));
        sites
    }

    fn linears_mut(&mut self) -> Vec<&mut Dense> {
        let layers = self.layers.iter_mut().flat_map(|l| {
            let l = Arc::get_mut(l).expect("a model is not changed while a tape holds its blocks");
            let mut linears = l.projections.linears_mut();
            linears.extend([&mut l.attention_output, &mut l.intermediate, &mut l.output]);
            linears
        });
        layers.chain([&mut self.pooler, &mut self.classifier]).collect()
    }

    fn logits(&self, tape: &mut Tape<'_>, tokens: &Tokens) -> Option<Var> {
        Some(self.forward(tape, tokens))
    }
}

/// The input of a block that has one.
fn only(mut inputs: Vec<Var>) -> Var {
    inputs.pop().expect("a block gets as many inputs as it was given")
}

impl Layer {
    fn at(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    fn sites(&self, sites: &mut Vec<Site>) {
        let rows = match self.projections {
            Projections::Packed(_) => RowsOf::Tokens,
            Projections::Pooled { .. } => RowsOf::Sequences,
        };
        // behind its projections the last layer has next to nothing to compute again
        if rows == RowsOf::Tokens {
            sites.push(Site::new(&self.name, rows, SiteKind::Block));
        }
        let projections = self.projections.linears();
        sites.extend(Site::of_dense(projections[0], RowsOf::Tokens, false));
        projections[1..].iter().for_each(|q| sites.extend(Site::of_dense(q, rows, false)));
        // k and v are of every row
        sites.push(Site::new(&self.at("attention.self"), RowsOf::Tokens, SiteKind::Attention));
        sites.extend(Site::of_dense(&self.attention_output, rows, true));
        sites.push(Site::new(self.attention_norm.site(), rows, SiteKind::Norm));
        sites.extend(Site::of_dense(&self.intermediate, rows, true));
        sites.push(Site::new(&self.at("intermediate.activation"), rows, SiteKind::Activation));
        sites.extend(Site::of_dense(&self.output, rows, true));
        sites.push(Site::new(self.output_norm.site(), rows, SiteKind::Norm));
    }

    /// x (n, d), or of the last layer its pooled rows (b, d), and what attention adds to them.
    fn attend(&self, tape: &mut Tape, mut x: Var, sequences: &Sequences, pooled: &Pooled, c: &BertConfig) -> Var {
        let at = |part: &str| self.at(part);
        let attend = Attend {
            dropout: c.attention_probs_dropout_prob as f32,
            ..Attend::new(c.num_attention_heads, 1.0 / (c.head_size() as f64).sqrt())
        };
        let site = at("attention.self");
        // `h` is assigned rather than shadowed, so that what only the next op reads is dropped there
        let mut h = match &self.projections {
            Projections::Packed(qkv) => {
                let qkv = qkv.forward(tape, &x);
                tape.attention(&site, &attend, (qkv, sequences), None)
            }
            Projections::Pooled { q, kv } => {
                let kv = kv.forward(tape, &x);
                x = tape.rows(&at("first"), &x, &pooled.rows);
                let q = q.forward(tape, &x);
                tape.attention(&site, &attend, (q, &pooled.alone), Some((kv, sequences)))
            }
        };
        h = self.attention_output.forward(tape, &h);
        h = tape.dropout(&at("attention.output.dropout"), h, c.hidden_dropout_prob as f32);
        tape.add(&at("attention.output.residual"), h, &x)
    }

    /// From that sum to the layer's output, (n, d) to (n, d).
    fn feed_forward(&self, tape: &mut Tape, h: Var, c: &BertConfig) -> Var {
        let at = |part: &str| self.at(part);
        let x = self.attention_norm.forward(tape, &h);
        drop(h);
        let mut h = self.intermediate.forward(tape, &x);
        h = tape.activate(&at("intermediate.activation"), c.hidden_act, h);
        h = self.output.forward(tape, &h);
        h = tape.dropout(&at("output.dropout"), h, c.hidden_dropout_prob as f32);
        h = tape.add(&at("output.residual"), h, &x);
        drop(x);
        self.output_norm.forward(tape, &h)
    }
}
