//! T5 (Raffel et al. 2020), v1.0 and v1.1, as `T5ForConditionalGeneration`.
//!
//! Norms stand before each sublayer, take no mean off and have no shift; linears have no bias; scores are not scaled; every attention
//! of a sequence to itself adds the stack's one bias by relative position. Batches are ragged, sources and targets.

mod config;

use std::sync::Arc;

use colrow_autograd::{Attend, Head, ParamId, RowsOf, Sequences, Tape, Var};
use colrow_tensor::{Activation, Class};
use serde_json::{Map, Value, json};

use crate::decode::{Cache, CacheSize, Decoder};
use crate::family::{Alias, Architecture, Family, HeadKind, Keys, Sibling, TOKENIZER_FILES};
use crate::layers::{Dense, Module, Norm};
use crate::net::{Language, Net, Site, SiteKind};
use crate::registry::{Init, Registry};
use crate::tokens::Tokens;

pub use config::{FeedForward, T5Config};

/// The family. The embedding of v1.0 is also the encoder's, the decoder's and the head; the published checkpoints hold a bias of the
/// attention to the encoder that has no effect.
pub static FAMILY: Family = Family {
    model_type: "t5",
    name: "T5",
    head: HeadKind::Language,
    saved_class: "T5ForConditionalGeneration",
    tokenizer_class: "T5Tokenizer",
    tokenizer_files: TOKENIZER_FILES,
    architecture: |fields, _| Box::new(T5Config::from_fields(fields)),
    keys: Keys {
        prefix: "",
        body: &["shared.", "encoder.", "decoder."],
        head: &[],
        ignored: &["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"],
        aliases: &[
            Alias {
                key: "shared.weight",
                others: &["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"],
                tied: Some(
                    "for a T5 whose head is its own, set tie_word_embeddings = false and scale_decoder_outputs = true in config.json",
                ),
            },
            // an untied head that was saved as if it were tied
            Alias {
                key: "lm_head.weight",
                others: &["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"],
                tied: None,
            },
        ],
        siblings: &[
            Sibling {
                part: ".wi_0.",
                hint: "wi_0 and wi_1 are of T5 v1.1 or Flan-T5, whose config.json says feed_forward_proj = \"gated-gelu\"",
            },
            Sibling { part: ".wi.", hint: "wi is of T5 v1.0, whose config.json says feed_forward_proj = \"relu\"" },
        ],
    },
    adapter_targets: &["q", "k", "v"],
    modules_to_save: &[],
    peft_task: "SEQ_2_SEQ_LM",
};

impl Architecture for T5Config {
    fn net(&self, _labels: usize, registry: &mut Registry) -> Box<dyn Net> {
        Box::new(T5::new(self.clone(), registry))
    }

    fn hidden_size(&self) -> usize {
        self.d_model
    }

    fn layers(&self) -> usize {
        self.num_layers
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn end_tokens(&self) -> Vec<u32> {
        vec![self.eos_token_id as u32]
    }

    fn set_dropout(&mut self, p: f64) {
        self.dropout_rate = p;
    }

    fn settle(&self, json: &mut Map<String, Value>) {
        json.insert("tie_word_embeddings".to_owned(), json!(self.tie_word_embeddings));
    }
}

/// Attention with its norm before and its projections.
#[derive(Debug)]
struct Attention {
    site: String,
    norm: Norm,
    /// q, k and v of a sequence's attention to itself, q of attention to the encoder.
    q: Dense,
    /// k and v of the encoder's output.
    kv: Option<Dense>,
    o: Dense,
}

#[derive(Debug)]
struct FeedForwardLayer {
    site: String,
    norm: Norm,
    wi: Dense,
    wo: Dense,
}

#[derive(Debug)]
struct Block {
    config: Arc<T5Config>,
    name: String,
    /// Its place in its stack.
    index: usize,
    attention: Attention,
    cross: Option<Attention>,
    feed_forward: FeedForwardLayer,
}

#[derive(Debug)]
struct Stack {
    name: &'static str,
    blocks: Vec<Arc<Block>>,
    /// By bucket and head.
    bias: ParamId,
    norm: Norm,
}

/// The layers of a T5.
#[derive(Debug)]
pub struct T5 {
    config: Arc<T5Config>,
    shared: ParamId,
    encoder: Stack,
    decoder: Stack,
    head: Head,
}

impl T5 {
    /// A model of zeros.
    pub fn new(config: T5Config, r: &mut Registry) -> Self {
        let config = Arc::new(config);
        let std = config.initializer_factor;
        let table = |r: &mut Registry, key: &str| {
            let shape = [config.vocab_size, config.d_model];
            r.add(key, &shape, &["vocab_size", "d_model"], Init::Normal(std))
        };
        let shared = table(r, "shared.weight");
        let encoder = Stack::new(&config, "encoder", config.num_layers, r);
        let decoder = Stack::new(&config, "decoder", config.num_decoder_layers, r);
        let weight = if config.tie_word_embeddings { shared } else { table(r, "lm_head.weight") };
        let scale = if config.scale_decoder_outputs { 1.0 / (config.d_model as f64).sqrt() } else { 1.0 };
        let head = Head::new(weight, scale);
        Self { config, shared, encoder, decoder, head }
    }

    /// The encoder's output (n, d_model).
    fn encode(&self, tape: &mut Tape<'_>, tokens: &Tokens, sequences: &Sequences) -> Var {
        self.encoder.forward(tape, self, &tokens.ids, &mut Attended::Own(sequences))
    }
}

impl Net for T5 {
    fn sites(&self) -> Vec<Site> {
        let mut sites = Vec::new();
        for (stack, rows) in [(&self.encoder, RowsOf::Tokens), (&self.decoder, RowsOf::Targets)] {
            stack.blocks.iter().for_each(|block| block.sites(rows, &mut sites));
            sites.push(Site::new(stack.norm.site(), rows, SiteKind::Norm));
        }
        sites
    }

    fn linears_mut(&mut self) -> Vec<&mut Dense> {
        let blocks = self.encoder.blocks.iter_mut().chain(&mut self.decoder.blocks);
        let blocks = blocks.map(|b| Arc::get_mut(b).expect("a model is not changed while a tape holds its blocks"));
        blocks.flat_map(Block::linears_mut).collect()
    }

    fn language(&self) -> Option<&dyn Language> {
        Some(self)
    }
}

impl Language for T5 {
    fn head(&self) -> Head {
        self.head
    }

    fn answer(&self, tape: &mut Tape<'_>, tokens: &Tokens, targets: &Tokens) -> Option<Var> {
        let device = tape.device().clone();
        let sources = Sequences::new(&device, &tokens.bounds);
        let memory = self.encode(tape, tokens, &sources);
        let start = self.config.decoder_start_token_id as u32;
        let mut ids = Vec::with_capacity(targets.ids.len());
        for (_, before) in targets.iter().filter_map(<[u32]>::split_last) {
            ids.push(start);
            ids.extend(before);
        }
        let sequences = Sequences::new(&device, &targets.bounds);
        let mut attended = Attended::Earlier { sequences: &sequences, memory: &memory, sources: &sources };
        Some(self.decoder.forward(tape, self, &ids, &mut attended))
    }

    fn decoder<'n>(&'n self, tape: &mut Tape<'_>, tokens: &Tokens) -> Box<dyn Decoder + 'n> {
        let sources = Sequences::new(tape.device(), &tokens.bounds);
        let memory = self.encode(tape, tokens, &sources);
        let kv = self
            .decoder
            .blocks
            .iter()
            .filter_map(|block| Some(block.cross.as_ref()?.kv.as_ref()?.forward(tape, &memory)));
        let kv = kv.collect();
        Box::new(Answering { t5: self, encoded: Encoded { kv, sources } })
    }
}

/// Answers to sources that the encoder has read.
struct Answering<'n> {
    t5: &'n T5,
    encoded: Encoded,
}

/// By layer of the decoder k and v of the encoder's output.
struct Encoded {
    kv: Vec<Var>,
    sources: Sequences,
}

impl Decoder for Answering<'_> {
    fn cached(&self) -> CacheSize {
        let c = &self.t5.config;
        CacheSize { layers: self.t5.decoder.blocks.len(), columns: 2 * c.inner(), head: c.d_kv }
    }

    fn first(&self) -> Vec<u32> {
        vec![self.t5.config.decoder_start_token_id as u32; self.encoded.sources.count()]
    }

    fn step(&self, tape: &mut Tape<'_>, tokens: &[u32], cache: &mut Cache) -> Var {
        let mut attended = Attended::Cached { cache, encoded: &self.encoded };
        self.t5.decoder.forward(tape, self.t5, tokens, &mut attended)
    }
}

/// What a stack's rows attend to.
enum Attended<'a> {
    /// In the encoder: the rows of their sequence.
    Own(&'a Sequences),
    /// In the decoder: the rows before them in their sequence, and the encoder's output.
    Earlier { sequences: &'a Sequences, memory: &'a Var, sources: &'a Sequences },
    /// The same for the next rows of each sequence, with what the encoder and earlier rows gave.
    Cached { cache: &'a mut Cache, encoded: &'a Encoded },
}

const INPUTS: &str = "a block gets as many inputs as it was given";

/// How rows attend: to their own sequence, by position, and to the encoder's output.
#[derive(Clone, Copy)]
struct Attends {
    own: Attend,
    encoder: Attend,
}

impl Stack {
    fn new(config: &Arc<T5Config>, name: &'static str, layers: usize, r: &mut Registry) -> Self {
        let shape = [config.relative_attention_num_buckets, config.num_heads];
        let std = config.initializer_factor / (config.d_model as f64).sqrt();
        let key = format!("{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        let dims = &["relative_attention_num_buckets", "num_heads"];
        let bias = r.add(&key, &shape, dims, Init::Normal(std));
        // attention reads it, not a product
        r.params[bias].matrix = false;
        let block = |i| Block::new(config, i, name, r);
        let blocks = (0..layers).map(block).map(Arc::new).collect();
        let norm = Norm::rms(r, "", &format!("{name}.final_layer_norm"), config.width(), config.layer_norm_epsilon);
        Self { name, blocks, bias, norm }
    }

    fn forward(&self, tape: &mut Tape<'_>, t5: &T5, ids: &[u32], attended: &mut Attended<'_>) -> Var {
        let (c, p) = (&t5.config, t5.config.dropout_rate as f32);
        let at = |part: &str| format!("{}.{part}", self.name);
        let ids = tape.device().tensor(Class::Workspace, &[ids.len()], ids);
        let mut x = tape.embedding(&at("embed_tokens"), &[(&ids, t5.shared)]);
        drop(ids);
        x = tape.dropout(&at("embed_tokens.dropout"), x, p);
        let encodes = matches!(attended, Attended::Own(_));
        let encoder = Attend { dropout: p, ..Attend::new(c.num_heads, 1.0) };
        let own = Attend { causal: !encodes, bias: Some((self.bias, c.buckets(encodes))), ..encoder };
        let attends = Attends { own, encoder };
        for block in &self.blocks {
            let (again, last) = (block.clone(), block.clone());
            let feed_forward = move |tape: &mut Tape<'_>, x| last.feed_forward.forward(tape, x, &last.config);
            x = match attended {
                Attended::Cached { .. } => {
                    let x = block.attend(tape, x, attends, attended);
                    feed_forward(tape, x)
                }
                Attended::Own(sequences) => {
                    let sequences = sequences.clone();
                    let attend = move |tape: &mut Tape<'_>, mut inputs: Vec<Var>| {
                        let x = inputs.pop().expect(INPUTS);
                        again.attend(tape, x, attends, &mut Attended::Own(&sequences))
                    };
                    tape.block(&block.name, vec![x], attend, feed_forward)
                }
                Attended::Earlier { sequences, memory, sources } => {
                    let (sequences, sources) = (sequences.clone(), sources.clone());
                    let attend = move |tape: &mut Tape<'_>, mut inputs: Vec<Var>| {
                        let (memory, x) = (inputs.pop().expect(INPUTS), inputs.pop().expect(INPUTS));
                        let mut attended =
                            Attended::Earlier { sequences: &sequences, memory: &memory, sources: &sources };
                        again.attend(tape, x, attends, &mut attended)
                    };
                    tape.block(&block.name, vec![x, memory.clone()], attend, feed_forward)
                }
            };
        }
        x = self.norm.forward(tape, &x);
        tape.dropout(&at("dropout"), x, p)
    }
}

impl Block {
    fn new(config: &Arc<T5Config>, index: usize, stack: &str, r: &mut Registry) -> Self {
        let name = format!("{stack}.block.{index}");
        let decodes = stack == "decoder";
        let attention = Attention::new(config, &format!("{name}.layer.0"), "SelfAttention", false, r);
        let cross = decodes.then(|| Attention::new(config, &format!("{name}.layer.1"), "EncDecAttention", true, r));
        let feed_forward = FeedForwardLayer::new(config, &format!("{name}.layer.{}", 1 + usize::from(decodes)), r);
        Self { config: config.clone(), name, index, attention, cross, feed_forward }
    }

    /// x and what its attentions add to it.
    fn attend(&self, tape: &mut Tape<'_>, mut x: Var, attends: Attends, attended: &mut Attended<'_>) -> Var {
        let (p, i) = (self.config.dropout_rate as f32, self.index);
        x = self.attention.forward(tape, x, p, |tape, q, _| match attended {
            Attended::Own(sequences) | Attended::Earlier { sequences, .. } => {
                tape.attention(&self.attention.site, &attends.own, (q, sequences), None)
            }
            Attended::Cached { cache, .. } => cache.attend(tape, &self.attention.site, i, &attends.own, &q),
        });
        if let Some(cross) = &self.cross {
            x = cross.forward(tape, x, p, |tape, q, kv| match attended {
                Attended::Own(_) => q,
                Attended::Earlier { sequences, memory, sources } => {
                    let kv = kv.map(|kv| (kv.forward(tape, memory), *sources));
                    tape.attention(&cross.site, &attends.encoder, (q, sequences), kv)
                }
                Attended::Cached { cache, encoded: Encoded { kv, sources } } => {
                    let kv = Some((kv[i].clone(), sources));
                    tape.attention(&cross.site, &attends.encoder, (q, cache.queries()), kv)
                }
            });
        }
        x
    }

    fn sites(&self, rows: RowsOf, sites: &mut Vec<Site>) {
        sites.push(Site::new(&self.name, rows, SiteKind::Block));
        for a in [Some(&self.attention), self.cross.as_ref()].into_iter().flatten() {
            sites.push(Site::new(a.norm.site(), rows, SiteKind::Norm));
            sites.extend(Site::of_dense(&a.q, rows, false));
            a.kv.iter().for_each(|kv| sites.extend(Site::of_dense(kv, RowsOf::Tokens, false)));
            sites.push(Site::new(&a.site, rows, SiteKind::Attention));
            sites.extend(Site::of_dense(&a.o, rows, true));
        }
        let FeedForwardLayer { norm, wi, wo, .. } = &self.feed_forward;
        let kind = match self.config.feed_forward_proj {
            FeedForward::Relu => SiteKind::Relu,
            FeedForward::GatedGelu => SiteKind::Activation,
        };
        sites.push(Site::new(norm.site(), rows, SiteKind::Norm));
        sites.extend(Site::of_dense(wi, rows, true));
        sites.push(Site::new(&self.feed_forward.act(), rows, kind));
        sites.extend(Site::of_dense(wo, rows, true));
    }

    fn linears_mut(&mut self) -> Vec<&mut Dense> {
        let mut linears = Vec::new();
        for a in [Some(&mut self.attention), self.cross.as_mut()].into_iter().flatten() {
            linears.push(&mut a.q);
            linears.extend(a.kv.as_mut());
            linears.push(&mut a.o);
        }
        linears.extend([&mut self.feed_forward.wi, &mut self.feed_forward.wo]);
        linears
    }
}

impl Attention {
    fn new(config: &T5Config, layer: &str, kind: &str, cross: bool, r: &mut Registry) -> Self {
        let (d, inner, factor) = (config.d_model, config.inner(), config.initializer_factor);
        let site = format!("{layer}.{kind}");
        let part = |part: &str| format!("{site}.{part}");
        let module = |name: &str, width: usize| {
            let std = factor / (width as f64).sqrt();
            Module { name: part(name), outputs: inner, dims: &["num_heads", "d_model"], std }
        };
        let [q, k, v] = [module("q", d * config.d_kv), module("k", d), module("v", d)];
        let (q, kv) = match cross {
            false => (Dense::new(r, &part("qkv"), &[q, k, v], d, false), None),
            true => {
                let q = Dense::new(r, &part("q"), &[q], d, false);
                (q, Some(Dense::new(r, &part("kv"), &[k, v], d, false)))
            }
        };
        let o = Module { outputs: d, dims: &["d_model", "num_heads"], ..module("o", inner) };
        let o = Dense::new(r, &part("o"), &[o], inner, false);
        let norm = Norm::rms(r, "", &format!("{layer}.layer_norm"), config.width(), config.layer_norm_epsilon);
        Self { site, norm, q, kv, o }
    }

    /// x and what attention adds to it; `attend` gets the projections and the layer of k and v.
    fn forward(
        &self,
        tape: &mut Tape<'_>,
        x: Var,
        dropout: f32,
        attend: impl FnOnce(&mut Tape<'_>, Var, Option<&Dense>) -> Var,
    ) -> Var {
        // `h` is assigned rather than shadowed, so that what only the next op reads is dropped there
        let mut h = self.norm.forward(tape, &x);
        h = self.q.forward(tape, &h);
        h = attend(tape, h, self.kv.as_ref());
        h = self.o.forward(tape, &h);
        h = tape.dropout(&format!("{}.dropout", self.site), h, dropout);
        tape.add(&format!("{}.residual", self.site), h, &x)
    }
}

impl FeedForwardLayer {
    fn new(config: &T5Config, layer: &str, r: &mut Registry) -> Self {
        let (d, f, factor) = (config.d_model, config.d_ff, config.initializer_factor);
        let site = format!("{layer}.DenseReluDense");
        let up = |part: &str| {
            let std = factor / (d as f64).sqrt();
            Module { name: format!("{site}.{part}"), outputs: f, dims: &["d_ff", "d_model"], std }
        };
        let up = match config.feed_forward_proj {
            FeedForward::Relu => vec![up("wi")],
            FeedForward::GatedGelu => vec![up("wi_0"), up("wi_1")],
        };
        let wi = Dense::new(r, &format!("{site}.wi"), &up, d, false);
        let std = factor / (f as f64).sqrt();
        let down = Module { name: format!("{site}.wo"), outputs: d, dims: &["d_model", "d_ff"], std };
        let wo = Dense::new(r, &format!("{site}.wo"), &[down], f, false);
        let norm = Norm::rms(r, "", &format!("{layer}.layer_norm"), config.width(), config.layer_norm_epsilon);
        Self { site, norm, wi, wo }
    }

    /// The site of the activation.
    fn act(&self) -> String {
        format!("{}.act", self.site)
    }

    fn forward(&self, tape: &mut Tape<'_>, x: Var, c: &T5Config) -> Var {
        let (at, p) = (|part: &str| format!("{}.{part}", self.site), c.dropout_rate as f32);
        let mut h = self.norm.forward(tape, &x);
        h = self.wi.forward(tape, &h);
        h = match c.feed_forward_proj {
            FeedForward::Relu => tape.relu(&self.act(), h, p),
            FeedForward::GatedGelu => {
                h = tape.gated(&self.act(), Activation::GeluTanh, h);
                tape.dropout(&at("act.dropout"), h, p)
            }
        };
        h = self.wo.forward(tape, &h);
        h = tape.dropout(&at("dropout"), h, p);
        tape.add(&at("residual"), h, &x)
    }
}
