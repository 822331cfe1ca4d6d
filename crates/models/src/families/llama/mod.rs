//! Decoders of the Llama type: Llama 2 and 3 (Touvron et al. 2023; Grattafiori et al. 2024) and SmolLM2, Mistral (Jiang et al. 2023),
//! Qwen2 and 2.5 (Yang et al. 2024), Qwen3 (2025), SmolLM3 (2025).
//!
//! Root mean square norms stand before each sublayer; queries and keys turn with their positions; several heads of queries share one of
//! keys and values; the feed-forward layer is a SwiGLU. Families differ in biases, in norms of heads, in windows, and in layers that do not
//! turn. Batches are ragged, positions those within a sequence.

mod config;
mod rope;

use std::sync::Arc;

use colrow_autograd::{Attend, Head, ParamId, Rotary, RowsOf, Sequences, Tape, Var};
use colrow_tensor::{Activation, Class};
use serde_json::{Map, Value, json};

use crate::decode::{Cache, CacheSize, Decoder};
use crate::family::{Alias, Architecture, Family, HeadKind, Keys};
use crate::fields::Fields;
use crate::layers::{Dense, Module, Norm, Width};
use crate::net::{Language, Net, Site, SiteKind};
use crate::registry::{Init, Registry};
use crate::tokens::Tokens;

use config::Kind;
pub use config::LlamaConfig;
pub use rope::{Rope, Scaling};

/// What other programs read of tokenizers and prompts beside `tokenizer.json`.
const FILES: &[&str] = &[
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

const KEYS: Keys = Keys {
    prefix: "model.",
    body: &["embed_tokens.", "layers.", "norm."],
    head: &[],
    ignored: &["rotary_emb.inv_freq"],
    aliases: &[Alias {
        key: "model.embed_tokens.weight",
        others: &["lm_head.weight"],
        tied: Some("for a model whose head is its own, set tie_word_embeddings = false in config.json"),
    }],
    siblings: &[],
};

/// All linears, as is usual since Dettmers et al. 2023 (section 4).
const TARGETS: &[&str] = &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

const fn family(
    model_type: &'static str,
    name: &'static str,
    saved_class: &'static str,
    tokenizer_class: &'static str,
    architecture: fn(&mut Fields<'_>, usize) -> Box<dyn Architecture>,
) -> Family {
    Family {
        model_type,
        name,
        head: HeadKind::Causal,
        saved_class,
        tokenizer_class,
        tokenizer_files: FILES,
        architecture,
        keys: KEYS,
        adapter_targets: TARGETS,
        modules_to_save: &[],
        peft_task: "CAUSAL_LM",
    }
}

/// Llama 2 and 3, SmolLM and SmolLM2.
pub static LLAMA: Family = family("llama", "Llama", "LlamaForCausalLM", "PreTrainedTokenizerFast", |fields, _| {
    Box::new(LlamaConfig::from_fields(fields, Kind::Llama))
});
/// Mistral.
pub static MISTRAL: Family =
    family("mistral", "Mistral", "MistralForCausalLM", "PreTrainedTokenizerFast", |fields, _| {
        Box::new(LlamaConfig::from_fields(fields, Kind::Mistral))
    });
/// Qwen2 and 2.5.
pub static QWEN2: Family = family("qwen2", "Qwen2", "Qwen2ForCausalLM", "Qwen2Tokenizer", |fields, _| {
    Box::new(LlamaConfig::from_fields(fields, Kind::Qwen2))
});
/// Qwen3.
pub static QWEN3: Family = family("qwen3", "Qwen3", "Qwen3ForCausalLM", "Qwen2Tokenizer", |fields, _| {
    Box::new(LlamaConfig::from_fields(fields, Kind::Qwen3))
});
/// SmolLM3.
pub static SMOLLM3: Family =
    family("smollm3", "SmolLM3", "SmolLM3ForCausalLM", "PreTrainedTokenizerFast", |fields, _| {
        Box::new(LlamaConfig::from_fields(fields, Kind::SmolLm3))
    });

impl Architecture for LlamaConfig {
    fn net(&self, _labels: usize, registry: &mut Registry) -> Box<dyn Net> {
        Box::new(Llama::new(self.clone(), registry))
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

    fn end_tokens(&self) -> Vec<u32> {
        self.eos_token_ids.clone()
    }

    fn learned_positions(&self) -> Option<usize> {
        Some(self.max_position_embeddings)
    }

    fn set_dropout(&mut self, p: f64) {
        self.attention_dropout = p;
    }

    fn untie(&mut self) {
        (self.tie_word_embeddings, self.unties) = (false, true);
    }

    fn settle(&self, json: &mut Map<String, Value>) {
        if self.unties {
            json.insert("tie_word_embeddings".to_owned(), json!(false));
        }
    }
}

#[derive(Debug)]
struct Block {
    config: Arc<LlamaConfig>,
    name: String,
    /// Its place among the blocks.
    index: usize,
    attention_norm: Norm,
    qkv: Dense,
    /// Scales of the norms of heads of queries and of keys.
    head_norms: Option<[ParamId; 2]>,
    o: Dense,
    mlp_norm: Norm,
    gate_up: Dense,
    down: Dense,
}

/// The layers of a decoder of the Llama type.
#[derive(Debug)]
pub struct Llama {
    config: Arc<LlamaConfig>,
    embedding: ParamId,
    blocks: Vec<Arc<Block>>,
    norm: Norm,
    head: Dense,
}

impl Llama {
    /// A model of zeros.
    pub fn new(config: LlamaConfig, r: &mut Registry) -> Self {
        let config = Arc::new(config);
        let init = Init::Normal(config.initializer_range);
        let shape = [config.vocab_size, config.hidden_size];
        let dims = &["vocab_size", "hidden_size"];
        let embedding = r.add("model.embed_tokens.weight", &shape, dims, init);
        let block = |i| Block::new(&config, i, r);
        let blocks = (0..config.num_hidden_layers).map(block).map(Arc::new).collect();
        let norm = Norm::rms(r, "model.", "norm", width(&config), config.rms_norm_eps);
        let head = if config.tie_word_embeddings {
            Dense::tied("lm_head", embedding, config.vocab_size, config.hidden_size)
        } else {
            let std = config.initializer_range;
            Dense::new(
                r,
                "lm_head",
                &[Module { name: "lm_head".into(), outputs: config.vocab_size, dims, std }],
                config.hidden_size,
                false,
            )
        };
        Self { config, embedding, blocks, norm, head }
    }

    /// The frequencies of sequences that have, with these, so many tokens.
    fn rotary(&self, tape: &Tape<'_>, lengths: impl Iterator<Item = usize>, first_position: usize) -> Rotary {
        let (c, rope) = (&self.config, &self.config.rope);
        let lengths: Vec<usize> = if rope.depends_on_length() { lengths.collect() } else { vec![0] };
        let numbers: Vec<f64> = lengths.iter().flat_map(|&length| rope.frequencies(c.head_dim, length)).collect();
        Rotary {
            frequencies: tape.device().tensor(Class::Workspace, &[lengths.len(), c.head_dim / 2], &numbers),
            factor: rope.factor(),
            heads: c.num_attention_heads + c.num_key_value_heads,
            first_position,
        }
    }

    /// `block` runs the block of a number on the rows that stand before it.
    fn forward(
        &self,
        tape: &mut Tape<'_>,
        ids: &[u32],
        mut block: impl FnMut(&mut Tape<'_>, &Arc<Block>, Var) -> Var,
    ) -> Var {
        let ids = tape.device().tensor(Class::Workspace, &[ids.len()], ids);
        let mut x = tape.embedding("embed_tokens", &[(&ids, self.embedding)]);
        drop(ids);
        for one in &self.blocks {
            x = block(tape, one, x);
        }
        self.norm.forward(tape, &x)
    }
}

fn width(c: &LlamaConfig) -> Width {
    Width { d: c.hidden_size, dims: &["hidden_size"] }
}

impl Net for Llama {
    fn sites(&self) -> Vec<Site> {
        let mut sites = Vec::new();
        self.blocks.iter().for_each(|block| block.sites(&mut sites));
        sites.push(Site::new(self.norm.site(), RowsOf::Tokens, SiteKind::Norm));
        sites
    }

    fn linears_mut(&mut self) -> Vec<&mut Dense> {
        let blocks = self.blocks.iter_mut();
        let blocks = blocks.map(|b| Arc::get_mut(b).expect("a model is not changed while a tape holds its blocks"));
        let linears = blocks.flat_map(|b| [&mut b.qkv, &mut b.o, &mut b.gate_up, &mut b.down]);
        linears.chain([&mut self.head]).collect()
    }

    fn language(&self) -> Option<&dyn Language> {
        Some(self)
    }
}

impl Language for Llama {
    fn head(&self) -> Head {
        self.head.head(1.0)
    }

    fn continuation(&self, tape: &mut Tape<'_>, tokens: &Tokens) -> Option<Var> {
        let sequences = Sequences::new(tape.device(), &tokens.bounds);
        let rotary = self.rotary(tape, tokens.iter().map(<[u32]>::len), 0);
        Some(self.forward(tape, &tokens.ids, |tape, block, x| {
            let (again, sequences, rotary) = (block.clone(), sequences.clone(), rotary.clone());
            let attend = move |tape: &mut Tape<'_>, mut inputs: Vec<Var>| {
                let x = inputs.pop().expect("a block gets as many inputs as it was given");
                again.attend(tape, x, (&rotary, &sequences), |tape, attend, qkv| {
                    tape.attention(&again.at("self_attn"), attend, (qkv, &sequences), None)
                })
            };
            let again = block.clone();
            tape.block(&block.name, vec![x], attend, move |tape, x| again.feed_forward(tape, x))
        }))
    }

    fn decoder<'n>(&'n self, _tape: &mut Tape<'_>, tokens: &Tokens) -> Box<dyn Decoder + 'n> {
        Box::new(GoingOn { llama: self, prompts: tokens.ids.clone() })
    }
}

/// Goes on with prompts of equal length.
struct GoingOn<'n> {
    llama: &'n Llama,
    prompts: Vec<u32>,
}

impl Decoder for GoingOn<'_> {
    fn cached(&self) -> CacheSize {
        let c = &self.llama.config;
        CacheSize { layers: self.llama.blocks.len(), columns: 2 * c.kv_inner(), head: c.head_dim }
    }

    fn first(&self) -> Vec<u32> {
        self.prompts.clone()
    }

    fn step(&self, tape: &mut Tape<'_>, tokens: &[u32], cache: &mut Cache) -> Var {
        let (count, position) = (cache.queries().count(), cache.position());
        let length = position + tokens.len() / count.max(1);
        let rotary = self.llama.rotary(tape, std::iter::repeat_n(length, count), position);
        self.llama.forward(tape, tokens, |tape, block, x| {
            let sequences = cache.queries().clone();
            let x = block.attend(tape, x, (&rotary, &sequences), |tape, attend, qkv| {
                cache.attend(tape, &block.at("self_attn"), block.index, attend, &qkv)
            });
            block.feed_forward(tape, x)
        })
    }
}

impl Block {
    fn new(c: &Arc<LlamaConfig>, index: usize, r: &mut Registry) -> Self {
        let name = format!("layers.{index}");
        let at = |part: &str| format!("{name}.{part}");
        let (d, f, eps) = (c.hidden_size, c.intermediate_size, c.rms_norm_eps);
        let module = |part: &str, outputs: usize, dims: &'static [&'static str; 2]| Module {
            name: format!("model.{name}.{part}"),
            outputs,
            dims,
            std: c.initializer_range,
        };
        let norm = |r: &mut Registry, part: &str| Norm::rms(r, "model.", &at(part), width(c), eps);
        let attention_norm = norm(r, "input_layernorm");
        let heads = &["num_attention_heads", "hidden_size"];
        let kv_heads = &["num_key_value_heads", "hidden_size"];
        let qkv = [
            module("self_attn.q_proj", c.inner(), heads),
            module("self_attn.k_proj", c.kv_inner(), kv_heads),
            module("self_attn.v_proj", c.kv_inner(), kv_heads),
        ];
        let [bias, out_bias] = c.attention_bias;
        let qkv = Dense::new(r, &at("self_attn.qkv_proj"), &qkv, d, bias);
        let head_norms = c.head_norms.then(|| {
            ["q_norm", "k_norm"].map(|part| {
                let key = format!("model.{}.weight", at(&format!("self_attn.{part}")));
                r.add(&key, &[c.head_dim], &["head_dim"], Init::Ones)
            })
        });
        let o = module("self_attn.o_proj", d, &["hidden_size", "num_attention_heads"]);
        let o = Dense::new(r, &at("self_attn.o_proj"), &[o], c.inner(), out_bias);
        let mlp_norm = norm(r, "post_attention_layernorm");
        let dims = &["intermediate_size", "hidden_size"];
        let gate_up = [module("mlp.gate_proj", f, dims), module("mlp.up_proj", f, dims)];
        let gate_up = Dense::new(r, &at("mlp.gate_up_proj"), &gate_up, d, c.mlp_bias);
        let down = module("mlp.down_proj", d, &["hidden_size", "intermediate_size"]);
        let down = Dense::new(r, &at("mlp.down_proj"), &[down], f, c.mlp_bias);
        Self { config: c.clone(), name, index, attention_norm, qkv, head_norms, o, mlp_norm, gate_up, down }
    }

    fn at(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    fn sites(&self, sites: &mut Vec<Site>) {
        let site = |name: &str, kind| Site::new(name, RowsOf::Tokens, kind);
        let dense = |dense: &Dense, in_paper| Site::of_dense(dense, RowsOf::Tokens, in_paper);
        sites.push(site(&self.name, SiteKind::Block));
        sites.push(site(self.attention_norm.site(), SiteKind::Norm));
        sites.extend(dense(&self.qkv, false));
        if self.head_norms.is_some() {
            sites.extend(["self_attn.q_norm", "self_attn.k_norm"].map(|part| site(&self.at(part), SiteKind::Norm)));
        }
        sites.push(site(&self.at("self_attn"), SiteKind::Attention));
        sites.extend(dense(&self.o, true));
        sites.push(site(self.mlp_norm.site(), SiteKind::Norm));
        sites.extend(dense(&self.gate_up, true));
        sites.push(site(&self.at("mlp.act_fn"), SiteKind::Activation));
        sites.extend(dense(&self.down, true));
    }

    /// x (n, d) and what attention adds to it; `attend` gets the projections, turned.
    fn attend(
        &self,
        tape: &mut Tape<'_>,
        x: Var,
        (rotary, sequences): (&Rotary, &Sequences),
        attend: impl FnOnce(&mut Tape<'_>, &Attend, Var) -> Var,
    ) -> Var {
        let c = &self.config;
        // `h` is assigned rather than shadowed, so that what only the next op reads is dropped there
        let mut h = self.attention_norm.forward(tape, &x);
        h = self.qkv.forward(tape, &h);
        if let Some([q, k]) = self.head_norms {
            let (heads, all) = (c.num_attention_heads, c.num_attention_heads + c.num_key_value_heads);
            h = tape.head_norm(&self.at("self_attn.q_norm"), h, 0..heads, q, c.rms_norm_eps);
            h = tape.head_norm(&self.at("self_attn.k_norm"), h, heads..all, k, c.rms_norm_eps);
        }
        if c.rotates[self.index] {
            h = tape.rotary(&self.at("self_attn.rotary"), h, rotary, sequences);
        }
        let how = Attend {
            kv_heads: c.num_key_value_heads,
            causal: true,
            window: c.windows[self.index],
            dropout: c.attention_dropout as f32,
            ..Attend::new(c.num_attention_heads, 1.0 / (c.head_dim as f64).sqrt())
        };
        h = attend(tape, &how, h);
        h = self.o.forward(tape, &h);
        tape.add(&self.at("self_attn.residual"), h, &x)
    }

    /// x (n, d) and what the feed-forward layer adds to it.
    fn feed_forward(&self, tape: &mut Tape<'_>, x: Var) -> Var {
        let mut h = self.mlp_norm.forward(tape, &x);
        h = self.gate_up.forward(tape, &h);
        h = tape.gated(&self.at("mlp.act_fn"), Activation::Silu, h);
        h = self.down.forward(tape, &h);
        tape.add(&self.at("mlp.residual"), h, &x)
    }
}
