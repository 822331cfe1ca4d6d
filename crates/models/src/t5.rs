//! T5 (Raffel et al. 2020), v1.0 and v1.1, as `T5ForConditionalGeneration`.
//!
//! Norms stand before each sublayer, take no mean off and have no shift; linears have no bias; scores are not scaled; every attention
//! of a sequence to itself adds the stack's one bias by relative position. Batches are ragged, sources and targets.

mod generate;

use std::sync::Arc;

use colrow_autograd::{Attend, Head, ParamId, RowsOf, Sequences, Tape, Var};
use colrow_tensor::{Class, Gelu};

use crate::config::{FeedForward, T5Config};
use crate::family::{Alias, Family, HeadKind, Keys, Sibling};
use crate::layers::{Dense, DenseSize, Init, Norm, Registry};
use crate::model::{Site, SiteKind};
use crate::tokens::Tokens;
use generate::Cache;

/// The family. The embedding of v1.0 is also the encoder's, the decoder's and the head; the published checkpoints hold a bias of the
/// attention to the encoder that has no effect.
pub static FAMILY: Family = Family {
    model_type: "t5",
    name: "T5",
    head: HeadKind::Language,
    saved_class: "T5ForConditionalGeneration",
    tokenizer_class: "T5Tokenizer",
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
    name: String,
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
        let std = config.initializer_factor;
        let table = |r: &mut Registry, key: &str| {
            let shape = [config.vocab_size, config.d_model];
            r.add(&[key.to_owned()], &shape, &["vocab_size", "d_model"], Init::Normal(std))
        };
        let shared = table(r, "shared.weight");
        let encoder = Stack::new(&config, "encoder", config.num_layers, r);
        let decoder = Stack::new(&config, "decoder", config.num_decoder_layers, r);
        let head = Head {
            weight: if config.tie_word_embeddings { shared } else { table(r, "lm_head.weight") },
            scale: if config.scale_decoder_outputs { 1.0 / (config.d_model as f64).sqrt() } else { 1.0 },
        };
        Self { config: Arc::new(config), shared, encoder, decoder, head }
    }

    /// The sites, in the order of the forward pass.
    pub(crate) fn sites(&self) -> Vec<Site> {
        let mut sites = Vec::new();
        for (stack, rows) in [(&self.encoder, RowsOf::Tokens), (&self.decoder, RowsOf::Targets)] {
            stack.blocks.iter().for_each(|block| block.sites(rows, &self.config, &mut sites));
            sites.push(Site::new(stack.norm.site(), rows, SiteKind::Norm));
        }
        sites
    }

    /// The linears, to adapt them.
    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Dense> {
        let blocks = self.encoder.blocks.iter_mut().chain(&mut self.decoder.blocks);
        let blocks = blocks.map(|b| Arc::get_mut(b).expect("a model is not changed while a tape holds its blocks"));
        blocks.flat_map(Block::linears_mut).collect()
    }

    /// The encoder's output (n, d_model).
    fn encode(&self, tape: &mut Tape, input: &Tokens, sequences: &Sequences) -> Var {
        self.encoder.forward(tape, self, &input.ids, &mut Reads::Alone(sequences))
    }

    /// The mean cross-entropy over all rows of `targets`, each after those before it, by their weights.
    pub fn loss(&self, tape: &mut Tape, input: &Tokens, targets: &Tokens) -> Var {
        let device = tape.device().clone();
        let sources = Sequences::new(&device, &input.bounds);
        let memory = self.encode(tape, input, &sources);
        let start = self.config.decoder_start_token_id as u32;
        let mut ids = Vec::with_capacity(targets.ids.len());
        for (_, before) in targets.iter().filter_map(<[u32]>::split_last) {
            ids.push(start);
            ids.extend(before);
        }
        let sequences = Sequences::new(&device, &targets.bounds);
        let mut reads = Reads::Encoder { sequences: &sequences, memory: &memory, sources: &sources };
        let x = self.decoder.forward(tape, self, &ids, &mut reads);
        drop(memory);
        tape.head_loss("lm_head", &x, self.head, &targets.ids, targets.weight.as_deref())
    }
}

/// What a stack's rows attend to.
enum Reads<'a> {
    /// Their own sequence.
    Alone(&'a Sequences),
    /// The rows before them in their sequence, and the encoder's output.
    Encoder { sequences: &'a Sequences, memory: &'a Var, sources: &'a Sequences },
    /// The same for one new row a sequence, with what earlier rows gave.
    Cache(&'a mut Cache),
}

const INPUTS: &str = "a block gets as many inputs as it was given";

/// How a block computes.
struct How {
    config: Arc<T5Config>,
    /// Attention to the encoder.
    plain: Attend,
    /// A sequence's attention to itself.
    positioned: Attend,
    /// The block's place in its stack.
    index: usize,
}

impl Stack {
    fn new(config: &T5Config, name: &'static str, layers: usize, r: &mut Registry) -> Self {
        let shape = [config.relative_attention_num_buckets, config.num_heads];
        let std = config.initializer_factor / (config.d_model as f64).sqrt();
        let key = format!("{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        let dims = &["relative_attention_num_buckets", "num_heads"];
        let bias = r.add(&[key], &shape, dims, Init::Normal(std));
        let block = |i| Block::new(config, &format!("{name}.block.{i}"), name == "decoder", r);
        let blocks = (0..layers).map(block).map(Arc::new).collect();
        let norm = Norm::rms(r, &format!("{name}.final_layer_norm"), config.d_model, config.layer_norm_epsilon);
        Self { name, blocks, bias, norm }
    }

    fn forward(&self, tape: &mut Tape, t5: &T5, ids: &[u32], reads: &mut Reads<'_>) -> Var {
        let (c, p) = (&t5.config, t5.config.dropout_rate as f32);
        let at = |part: &str| format!("{}.{part}", self.name);
        let ids = tape.device().tensor(Class::Workspace, &[ids.len()], ids);
        let mut x = tape.embedding(&at("embed_tokens"), &[(&ids, t5.shared)]);
        drop(ids);
        x = tape.dropout(&at("embed_tokens.dropout"), x, p);
        let alone = matches!(reads, Reads::Alone(_));
        let plain = Attend { heads: c.num_heads, scale: 1.0, causal: false, first_position: 0, dropout: p, bias: None };
        let positioned = Attend { causal: !alone, bias: Some((self.bias, c.buckets(alone))), ..plain };
        for (i, block) in self.blocks.iter().enumerate() {
            let how = How { config: t5.config.clone(), plain, positioned, index: i };
            let again = block.clone();
            x = match reads {
                Reads::Cache(_) => block.forward(tape, x, &how, reads),
                Reads::Alone(sequences) => {
                    let sequences = sequences.clone();
                    tape.block(&block.name, vec![x], move |tape, mut inputs| {
                        let x = inputs.pop().expect(INPUTS);
                        again.forward(tape, x, &how, &mut Reads::Alone(&sequences))
                    })
                }
                Reads::Encoder { sequences, memory, sources } => {
                    let (sequences, sources) = (sequences.clone(), sources.clone());
                    tape.block(&block.name, vec![x, memory.clone()], move |tape, mut inputs| {
                        let (memory, x) = (inputs.pop().expect(INPUTS), inputs.pop().expect(INPUTS));
                        let mut reads = Reads::Encoder { sequences: &sequences, memory: &memory, sources: &sources };
                        again.forward(tape, x, &how, &mut reads)
                    })
                }
            };
        }
        x = self.norm.forward(tape, &x);
        tape.dropout(&at("dropout"), x, p)
    }
}

impl Block {
    fn new(config: &T5Config, name: &str, decoder: bool, r: &mut Registry) -> Self {
        let attention = Attention::new(config, &format!("{name}.layer.0"), "SelfAttention", false, r);
        let cross = decoder.then(|| Attention::new(config, &format!("{name}.layer.1"), "EncDecAttention", true, r));
        let feed_forward = FeedForwardLayer::new(config, &format!("{name}.layer.{}", 1 + usize::from(decoder)), r);
        Self { name: name.to_owned(), attention, cross, feed_forward }
    }

    fn forward(&self, tape: &mut Tape, mut x: Var, how: &How, reads: &mut Reads<'_>) -> Var {
        let (c, p, i) = (&how.config, how.config.dropout_rate as f32, how.index);
        x = self.attention.forward(tape, x, p, |tape, q, _| match reads {
            Reads::Alone(sequences) | Reads::Encoder { sequences, .. } => {
                tape.attention(&self.attention.site, &how.positioned, (q, sequences), None)
            }
            Reads::Cache(cache) => cache.attend(tape, &self.attention.site, i, &how.positioned, &q),
        });
        if let Some(cross) = &self.cross {
            x = cross.forward(tape, x, p, |tape, q, kv| match reads {
                Reads::Alone(_) => q,
                Reads::Encoder { sequences, memory, sources } => {
                    let kv = kv.map(|kv| (kv.forward(tape, memory), *sources));
                    tape.attention(&cross.site, &how.plain, (q, sequences), kv)
                }
                Reads::Cache(cache) => cache.attend_encoder(tape, &cross.site, i, &how.plain, q),
            });
        }
        self.feed_forward.forward(tape, x, c)
    }

    fn sites(&self, rows: RowsOf, c: &T5Config, sites: &mut Vec<Site>) {
        sites.push(Site::new(&self.name, rows, SiteKind::Block));
        for a in [Some(&self.attention), self.cross.as_ref()].into_iter().flatten() {
            sites.push(Site::new(a.norm.site(), rows, SiteKind::Norm));
            sites.extend(Site::of_dense(&a.q, rows));
            a.kv.iter().for_each(|kv| sites.extend(Site::of_dense(kv, RowsOf::Tokens)));
            sites.push(Site::new(&a.site, rows, SiteKind::Attention));
            sites.extend(Site::of_dense(&a.o, rows));
        }
        let FeedForwardLayer { norm, wi, wo, .. } = &self.feed_forward;
        let kind = match c.feed_forward_proj {
            FeedForward::Relu => SiteKind::Relu,
            FeedForward::GatedGelu => SiteKind::Gelu,
        };
        sites.push(Site::new(norm.site(), rows, SiteKind::Norm));
        sites.extend(Site::of_dense(wi, rows));
        sites.push(Site::new(&self.feed_forward.act(), rows, kind));
        sites.extend(Site::of_dense(wo, rows));
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
        let size = DenseSize { size: [inner, d], dims: &["num_heads", "d_model"] };
        let site = format!("{layer}.{kind}");
        let of = |width: usize| factor / (width as f64).sqrt();
        let part = |part: &str| format!("{site}.{part}");
        let [q, k, v, o] = ["q", "k", "v", "o"].map(part);
        let (q, k, v) = ((q.as_str(), of(d * config.d_kv)), (k.as_str(), of(d)), (v.as_str(), of(d)));
        let (q, kv) = match cross {
            false => (Dense::new(r, &part("qkv"), &[q, k, v], size, false), None),
            true => {
                let q = Dense::new(r, &part("q"), &[q], size, false);
                (q, Some(Dense::new(r, &part("kv"), &[k, v], size, false)))
            }
        };
        let back = DenseSize { size: [d, inner], dims: &["d_model", "num_heads"] };
        let o = Dense::new(r, &o, &[(&o, of(inner))], back, false);
        let norm = Norm::rms(r, &format!("{layer}.layer_norm"), d, config.layer_norm_epsilon);
        Self { site, norm, q, kv, o }
    }

    /// x and what attention adds to it; `attend` gets the projections and the layer of k and v.
    fn forward(
        &self,
        tape: &mut Tape,
        x: Var,
        dropout: f32,
        attend: impl FnOnce(&mut Tape, Var, Option<&Dense>) -> Var,
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
        let std = factor / (d as f64).sqrt();
        let up = DenseSize { size: [f, d], dims: &["d_ff", "d_model"] };
        let wi = |parts: &[&str], r: &mut Registry| {
            let parts: Vec<_> = parts.iter().map(|part| format!("{site}.{part}")).collect();
            let parts: Vec<_> = parts.iter().map(|part| (part.as_str(), std)).collect();
            Dense::new(r, &format!("{site}.wi"), &parts, up, false)
        };
        let wi = match config.feed_forward_proj {
            FeedForward::Relu => wi(&["wi"], r),
            FeedForward::GatedGelu => wi(&["wi_0", "wi_1"], r),
        };
        let down = DenseSize { size: [d, f], dims: &["d_model", "d_ff"] };
        let wo = format!("{site}.wo");
        let wo = Dense::new(r, &wo, &[(&wo, factor / (f as f64).sqrt())], down, false);
        let norm = Norm::rms(r, &format!("{layer}.layer_norm"), d, config.layer_norm_epsilon);
        Self { site, norm, wi, wo }
    }

    /// The site of the activation.
    fn act(&self) -> String {
        format!("{}.act", self.site)
    }

    fn forward(&self, tape: &mut Tape, x: Var, c: &T5Config) -> Var {
        let (at, p) = (|part: &str| format!("{}.{part}", self.site), c.dropout_rate as f32);
        let mut h = self.norm.forward(tape, &x);
        h = self.wi.forward(tape, &h);
        h = match c.feed_forward_proj {
            FeedForward::Relu => tape.relu(&self.act(), h, p),
            FeedForward::GatedGelu => {
                h = tape.gated_gelu(&self.act(), Gelu::Tanh, h);
                tape.dropout(&at("act.dropout"), h, p)
            }
        };
        h = self.wo.forward(tape, &h);
        h = tape.dropout(&at("dropout"), h, p);
        tape.add(&at("residual"), h, &x)
    }
}
