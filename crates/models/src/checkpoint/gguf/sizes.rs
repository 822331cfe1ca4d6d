//! What a decoder is, by the metadata of a GGUF file and by `config.json`.

use std::path::Path;

use colrow_tensor::{Error, Result};
use serde_json::{Map, Value as Json, json};

use super::header::Header;
use super::rope::{self, Reach};
use super::value::{Metadata, Value, needed};
use crate::config::Config;
use crate::families::llama::LlamaConfig;
use crate::files::shape_text;

/// An architecture that both formats know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3, SmolLM2, and Mistral, which GGUF calls llama.
    Llama,
    /// Qwen 2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Qwen 3: norms of the heads of q and k.
    Qwen3,
}

impl Architecture {
    const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Qwen3];

    /// As GGUF and `model_type` call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

/// Sizes and positions of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Sizes {
    /// Which.
    pub architecture: Architecture,
    /// Blocks.
    pub layers: usize,
    /// Numbers of a token's vector.
    pub hidden: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of the keys and values.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
    /// Numbers within the feed-forward block.
    pub intermediate: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Whether the head of tokens is the embedding.
    pub tied: bool,
    /// Whether q, k and v have biases.
    pub attention_bias: bool,
    /// Whether the projection behind attention has one.
    pub output_bias: bool,
    /// Whether the feed-forward block has them.
    pub mlp_bias: bool,
    context: usize,
    epsilon: f64,
    theta: f64,
    pub(super) scaling: Reach,
}

/// Keys of metadata that would change what is computed, and what they speak of.
const REFUSED: [(&str, &str); 8] = [
    ("expert_count", "a mixture of experts"),
    ("attention.sliding_window", "a sliding window"),
    ("attention.logit_scale", "a scale of attention's logits"),
    ("attention.scale", "a scale of attention"),
    ("attn_logit_softcapping", "soft-capping"),
    ("logit_scale", "a scale of the logits"),
    ("residual_scale", "a scale of residuals"),
    ("embedding_scale", "a scale of the embedding"),
];

impl Sizes {
    /// By the header of a file; `divisors` are the numbers of `rope_freqs.weight`, if it is there.
    ///
    /// # Errors
    /// Another architecture; what is missing, absurd, or has no words in `config.json`.
    pub fn from_gguf(header: &Header, divisors: Option<&[f32]>) -> Result<Self> {
        let metadata = &header.metadata;
        let name = needed("general.architecture", metadata.text("general.architecture")?)?;
        let Some(architecture) = Architecture::ALL.into_iter().find(|a| a.name() == name) else {
            let expected = Architecture::names();
            return Err(Error::new(format!("expected a model of architecture {expected}; found {name:?}"))
                .hint("models of other families are used from their original checkpoint"));
        };
        let key = |part: &str| format!("{name}.{part}");
        let count = |part: &str| metadata.count(&key(part));
        let size = |part: &str| match needed(&key(part), count(part)?)? {
            0 => Err(Error::new(format!("{}: expected a whole number above 0, found 0", key(part)))),
            n => Ok(n),
        };
        for (part, what) in REFUSED {
            if metadata.number(&key(part))?.is_some_and(|x| x != 0.0) {
                return Err(Error::new(format!("{}: {what} is not computed for {name}", key(part))));
            }
        }
        let there = |tensor: &str| header.tensors.contains_key(tensor);
        let embedding = &needed("tensor token_embd.weight", header.tensors.get("token_embd.weight"))?.shape;
        let (hidden, heads) = (size("embedding_length")?, size("attention.head_count")?);
        let layers = size("block_count")?;
        let &[vocab, width] = &embedding[..] else {
            return Err(Error::new(format!(
                "token_embd.weight: expected a matrix, found shape {}",
                shape_text(embedding)
            )));
        };
        if width != hidden {
            let found = shape_text(embedding);
            return Err(Error::new(format!("token_embd.weight: expected rows of {hidden}, found shape {found}")));
        }
        let own = match count("attention.key_length")? {
            Some(n) => n,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(Error::new(format!(
                    "{}: {hidden} is no multiple of {heads} heads",
                    key("embedding_length")
                )));
            }
        };
        for part in ["attention.value_length", "rope.dimension_count"] {
            if let Some(n) = count(part)?.filter(|&n| n != own) {
                return Err(Error::new(format!("{}: expected the size of a head, {own}; found {n}", key(part))));
            }
        }
        let kv_heads = count("attention.head_count_kv")?.unwrap_or(heads);
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(Error::new(format!(
                "{}: expected a divisor of {heads}, found {kv_heads}",
                key("attention.head_count_kv")
            )));
        }
        if own == 0 || !own.is_multiple_of(2) {
            return Err(Error::new(format!(
                "{}: expected an even size of a head, found {own}",
                key("attention.key_length")
            )));
        }
        // the names of that many layers are made before they are looked for
        if layers > header.tensors.len() {
            let found = header.tensors.len();
            return Err(Error::new(format!("{}: {layers} blocks in a file of {found} tensors", key("block_count"))));
        }
        let theta = metadata.number(&key("rope.freq_base"))?.unwrap_or(10_000.0);
        if theta <= 0.0 {
            return Err(Error::new(format!("{}: expected a number above 0, found {theta}", key("rope.freq_base"))));
        }
        if let Some(found) = divisors.map(<[f32]>::len).filter(|&found| found != own / 2) {
            return Err(Error::new(format!("{}: expected {} numbers, found {found}", rope::FACTORS, own / 2)));
        }
        let epsilon = key("attention.layer_norm_rms_epsilon");
        Self {
            architecture,
            layers,
            hidden,
            heads,
            kv_heads,
            head_dim: own,
            intermediate: size("feed_forward_length")?,
            vocab,
            tied: !there("output.weight"),
            attention_bias: architecture == Architecture::Qwen2 || there("blk.0.attn_q.bias"),
            output_bias: there("blk.0.attn_output.bias"),
            mlp_bias: there("blk.0.ffn_down.bias"),
            context: size("context_length")?,
            epsilon: needed(&epsilon, metadata.number(&epsilon)?)?,
            theta,
            scaling: Reach::from_metadata(metadata, name, divisors, theta)?,
        }
        .checked()
    }

    /// Biases as `config.json` can say them.
    fn checked(self) -> Result<Self> {
        let (attention, output) = (self.attention_bias, self.output_bias);
        let sayable = match self.architecture {
            Architecture::Llama => attention == output,
            Architecture::Qwen2 => attention && !output && !self.mlp_bias,
            Architecture::Qwen3 => attention == output && !self.mlp_bias,
        };
        if sayable {
            return Ok(self);
        }
        let there: Vec<_> = [(attention, "attn_q"), (output, "attn_output"), (self.mlp_bias, "ffn_down")]
            .into_iter()
            .filter_map(|(is, name)| is.then_some(name))
            .collect();
        let name = self.architecture.name();
        Err(Error::new(format!("no model of type {name} has biases on {} and no others", there.join(", "))))
    }

    /// Most tokens of a text.
    pub(super) fn context(&self) -> usize {
        self.context
    }

    /// The divisors of the frequencies, if GGUF says the scaling by them.
    pub(super) fn divisors(&self) -> Option<Vec<f32>> {
        match &self.scaling {
            Reach::Llama3(scaling) => Some(scaling.divisors(self.theta, self.head_dim)),
            _ => None,
        }
    }

    /// Puts it into the metadata.
    pub fn put_into(&self, metadata: &mut Metadata) {
        let arch = self.architecture.name();
        metadata.set("general.architecture", arch);
        let mut set = |part: &str, value: Value| metadata.set(format!("{arch}.{part}"), value);
        for (part, n) in [
            ("block_count", self.layers),
            ("context_length", self.context),
            ("embedding_length", self.hidden),
            ("feed_forward_length", self.intermediate),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("rope.dimension_count", self.head_dim),
            ("vocab_size", self.vocab),
        ] {
            set(part, n.into());
        }
        set("rope.freq_base", Value::F32(self.theta as f32));
        set("attention.layer_norm_rms_epsilon", Value::F32(self.epsilon as f32));
        self.scaling.put_into(metadata, arch);
    }

    /// By `config.json`, the text of `file`; and what of it GGUF has no words for, in words.
    ///
    /// # Errors
    /// Another family; those of [`Config::from_json`]; positions that GGUF has no words for.
    pub fn from_json(json: &Map<String, Json>, file: &Path) -> Result<(Self, Vec<String>)> {
        let architecture = match json.get("model_type").and_then(Json::as_str).unwrap_or_default() {
            "llama" | "mistral" => Architecture::Llama,
            "qwen2" => Architecture::Qwen2,
            "qwen3" => Architecture::Qwen3,
            other => {
                return Err(Error::new(format!(
                    "model_type: expected llama, mistral, qwen2 or qwen3, found {other:?}"
                ))
                .at(file.display())
                .hint("other families are not written as GGUF"));
            }
        };
        let config = Config::from_json(Json::Object(json.clone()).to_string().as_bytes(), file)?;
        let Some(config) = config.architecture.downcast_ref::<LlamaConfig>() else {
            return Err(Error::new("expected a decoder of the Llama type").at(file.display()));
        };
        let rope = ["rope_scaling", "rope_parameters"].iter().find_map(|key| json.get(*key)?.as_object());
        let scaling = rope.map_or(Ok(Reach::None), Reach::from_json).map_err(|e| e.at(file.display()))?;
        let context = config.max_position_embeddings;
        let window = config.windows.iter().flatten().filter(|&&window| window < context).min();
        let unsaid = window.map(|window| {
            format!(
                "sliding_window = {window}: GGUF has no word for it, and its programs attend to all {context} tokens"
            )
        });
        let [attention_bias, output_bias] = config.attention_bias;
        let sizes = Self {
            architecture,
            layers: config.num_hidden_layers,
            hidden: config.hidden_size,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            intermediate: config.intermediate_size,
            vocab: config.vocab_size,
            tied: config.tie_word_embeddings,
            attention_bias,
            output_bias,
            mlp_bias: config.mlp_bias,
            context,
            epsilon: config.rms_norm_eps,
            theta: config.rope.theta,
            scaling,
        };
        Ok((sizes, unsaid.into_iter().collect()))
    }

    /// The keys of `config.json`.
    pub fn to_json(&self, dtype: &str) -> Map<String, Json> {
        let json = json!({
            "architectures": [self.architecture.class()],
            "model_type": self.architecture.name(),
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.epsilon,
            "rope_theta": self.theta,
            "rope_scaling": self.scaling.to_json(),
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "tie_word_embeddings": self.tied,
            "torch_dtype": dtype,
        });
        let Json::Object(mut json) = json else { unreachable!("braces make an object") };
        if self.architecture != Architecture::Llama {
            json.remove("mlp_bias");
            json.insert("use_sliding_window".into(), false.into());
        }
        if self.architecture == Architecture::Qwen2 {
            json.remove("attention_bias");
        }
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Map<String, Json> {
        serde_json::from_str(text).unwrap()
    }

    const LEAST: &str = r#"{"model_type": "qwen3", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64, "rope_theta": 1e6,
        "num_key_value_heads": 2, "max_window_layers": 0}"#;

    fn with(key: &str, value: Json) -> Map<String, Json> {
        let mut json = json(LEAST);
        json.insert(key.into(), value);
        json
    }

    fn read(json: &Map<String, Json>) -> Result<(Sizes, Vec<String>)> {
        Sizes::from_json(json, Path::new("config.json"))
    }

    #[test]
    fn a_configuration_is_the_same_both_ways() {
        for model_type in ["llama", "mistral", "qwen2", "qwen3"] {
            let (sizes, unsaid) = read(&with("model_type", model_type.into())).unwrap();
            assert!(unsaid.is_empty());
            assert_eq!(sizes.head_dim, if model_type == "qwen3" { 128 } else { 4 });
            assert_eq!(read(&sizes.to_json("float32")).unwrap().0, sizes);
        }
    }

    #[test]
    fn both_spellings_of_rope_are_read() {
        let mut json = with("rope_parameters", json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}));
        json.remove("rope_theta");
        let sizes = read(&json).unwrap().0;
        assert_eq!((sizes.theta, sizes.scaling), (5e5, Reach::Linear { factor: 2.0 }));
    }

    #[test]
    fn what_gguf_cannot_say_is_refused_or_told() {
        for (key, value, expected) in [
            ("model_type", json!("gemma2"), "found \"gemma2\""),
            ("hidden_act", json!("gelu"), "hidden_act: expected \"silu\""),
            ("hidden_size", json!(0), "hidden_size: expected a whole number from 1 to 65536, found 0"),
            (
                "num_key_value_heads",
                json!(3),
                "num_key_value_heads: expected a divisor of num_attention_heads = 2, found 3",
            ),
            ("partial_rotary_factor", json!(0.5), "partial_rotary_factor: expected 1"),
            ("num_experts", json!(4), "num_experts: expected nothing (not computed here: a mixture of experts"),
        ] {
            let e = read(&with(key, value)).unwrap_err().to_string();
            assert!(e.contains(expected), "{e}");
        }
        let mut json = with("sliding_window", json!(16));
        assert!(read(&json).unwrap().1.is_empty());
        json.insert("use_sliding_window".into(), true.into());
        assert!(read(&json).unwrap().1[0].starts_with("sliding_window = 16"));
    }
}
