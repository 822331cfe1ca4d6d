//! The configuration of a decoder of the Llama type.

use serde_json::Value;

use super::rope::Rope;
use crate::fields::{Fields, POSITIVE, PROBABILITY};

/// What the families of this type differ in, as `transformers` builds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    SmolLm3,
}

/// The configuration of a decoder of the Llama type, with the names and defaults that `transformers` gives them.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads of queries.
    pub num_attention_heads: usize,
    /// Heads of keys and values; a divisor of the former.
    pub num_key_value_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// Width between the feed-forward linears.
    pub intermediate_size: usize,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Positions that the model was made for; rotary positions go on behind them.
    pub max_position_embeddings: usize,
    /// Added to the mean square in norms.
    pub rms_norm_eps: f64,
    /// Dropout of attention probabilities.
    pub attention_dropout: f64,
    /// Whether q, k and v have biases, and whether the attention's output has.
    pub attention_bias: [bool; 2],
    /// Whether the feed-forward linears have biases.
    pub mlp_bias: bool,
    /// Whether each head of queries and keys has a norm.
    pub head_norms: bool,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether the head's weight was the embedding and is no more, which the file does not say yet.
    pub(super) unties: bool,
    /// Positions.
    pub rope: Rope,
    /// By layer whether queries and keys turn with their positions.
    pub rotates: Vec<bool>,
    /// By layer how many tokens a token sees, where that is limited.
    pub windows: Vec<Option<usize>>,
    /// Standard deviation of new weights.
    pub initializer_range: f64,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

/// Keys that change what a model computes, and what they are where it is what is computed here.
const REFUSED: [(&str, &str); 22] = [
    ("num_experts", "a mixture of experts"),
    ("num_local_experts", "a mixture of experts"),
    ("n_routed_experts", "a mixture of experts"),
    ("moe_intermediate_size", "a mixture of experts"),
    ("linear_num_key_heads", "linear attention"),
    ("attn_logit_softcapping", "soft-capping"),
    ("final_logit_softcapping", "soft-capping"),
    ("attention_chunk_size", "attention in chunks"),
    ("clip_qkv", "clipped projections"),
    ("embedding_multiplier", "a scaled embedding"),
    ("residual_multiplier", "scaled residuals"),
    ("attention_multiplier", "another scale of attention"),
    ("query_pre_attn_scalar", "another scale of attention"),
    ("logits_scaling", "scaled logits"),
    ("logit_scale", "scaled logits"),
    ("mrope_section", "positions of several axes"),
    ("vision_config", "pictures"),
    ("audio_config", "sounds"),
    ("quantization_config", "weights in codes of another program"),
    ("use_mrope", "positions of several axes"),
    ("attention_sinks", "attention sinks"),
    ("kv_lora_rank", "latent attention"),
];

impl LlamaConfig {
    pub(super) fn from_fields(f: &mut Fields<'_>, kind: Kind) -> Self {
        let (d, most_heads) = (f.size("hidden_size", None, 1 << 16), 1 << 12);
        let layers = f.size("num_hidden_layers", None, 1 << 10);
        let heads = f.size("num_attention_heads", None, most_heads);
        let usual_kv = match kind {
            Kind::Mistral => 8,
            Kind::SmolLm3 => 4,
            Kind::Llama | Kind::Qwen2 | Kind::Qwen3 => heads,
        };
        // null is as many as there are, nothing the family's own default
        let usual_kv = if f.json.contains_key("num_key_value_heads") { heads } else { usual_kv };
        let kv_heads = f.size("num_key_value_heads", Some(usual_kv), most_heads);
        let usual_dim = if kind == Kind::Qwen3 { 128 } else { d / heads };
        let head_dim = f.size("head_dim", Some(usual_dim.max(1)), 1 << 12);
        let longest = f.size("max_position_embeddings", Some(longest(kind)), 1 << 31);
        let theta = if kind == Kind::SmolLm3 { 2e6 } else { 1e4 };
        let biased = kind != Kind::Qwen2 && kind != Kind::Mistral && f.flag("attention_bias", false);
        let config = Self {
            hidden_size: d,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            intermediate_size: f.size("intermediate_size", None, 1 << 20),
            vocab_size: f.size("vocab_size", None, 1 << 24),
            max_position_embeddings: longest,
            rms_norm_eps: f.number("rms_norm_eps", 1e-6, POSITIVE),
            attention_dropout: f.number("attention_dropout", 0.0, PROBABILITY),
            attention_bias: [biased || kind == Kind::Qwen2, biased],
            mlp_bias: matches!(kind, Kind::Llama | Kind::SmolLm3) && f.flag("mlp_bias", false),
            head_norms: kind == Kind::Qwen3,
            tie_word_embeddings: f.flag("tie_word_embeddings", kind == Kind::SmolLm3),
            unties: false,
            rope: Rope::from_fields(f, head_dim, longest, theta),
            rotates: rotates(f, kind, layers),
            windows: Vec::new(),
            initializer_range: f.number("initializer_range", 0.02, POSITIVE),
            eos_token_ids: eos(f),
        };
        let windows = windows(f, kind, &config.rotates);
        let config = Self { windows, ..config };
        for (key, what) in REFUSED {
            let asks = |value: &Value| !matches!(value, Value::Bool(false)) && value.as_f64() != Some(0.0);
            if f.get(key).is_some_and(asks) {
                f.problem(key, &format!("nothing (not computed here: {what})"));
            }
        }
        if f.get("hidden_act").is_some_and(|v| v != "silu" && v != "swish") {
            f.problem("hidden_act", "\"silu\"");
        }
        if f.get("partial_rotary_factor").is_some_and(|x| x.as_f64() != Some(1.0)) {
            f.problem("partial_rotary_factor", "1 (heads that turn whole)");
        }
        if !f.problems.is_empty() {
            return config;
        }
        if f.get("head_dim").is_none() && kind != Kind::Qwen3 && !d.is_multiple_of(heads) {
            f.problem("num_attention_heads", &format!("a divisor of hidden_size = {d}"));
        }
        if !heads.is_multiple_of(kv_heads) {
            f.problem("num_key_value_heads", &format!("a divisor of num_attention_heads = {heads}"));
        }
        if !head_dim.is_multiple_of(2) {
            f.problems.push(format!("head_dim: expected an even number, found {head_dim}"));
        }
        if config.eos_token_ids.iter().any(|&id| id as usize >= config.vocab_size) {
            f.problem("eos_token_id", &format!("less than vocab_size = {}", config.vocab_size));
        }
        f.check_parameters(config.parameters());
        config
    }

    /// Width of all heads of queries.
    pub fn inner(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all heads of keys, and of those of values.
    pub fn kv_inner(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Number of parameters.
    pub fn parameters(&self) -> u64 {
        let wide = |n: usize| n as u64;
        let (d, f, q, kv) =
            (wide(self.hidden_size), wide(self.intermediate_size), wide(self.inner()), wide(self.kv_inner()));
        let [bias, out_bias] = self.attention_bias.map(u64::from);
        let norms = 2 * d + u64::from(self.head_norms) * 2 * wide(self.head_dim);
        let mlp = 3 * d * f + u64::from(self.mlp_bias) * (2 * f + d);
        let attention = d * (2 * q + 2 * kv) + bias * (q + 2 * kv) + out_bias * d;
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        tables * wide(self.vocab_size) * d + wide(self.num_hidden_layers) * (attention + mlp + norms) + d
    }
}

fn longest(kind: Kind) -> usize {
    match kind {
        Kind::Llama => 2048,
        Kind::Mistral => 4096 * 32,
        Kind::Qwen2 | Kind::Qwen3 | Kind::SmolLm3 => 32_768,
    }
}

/// One token, or several, or none.
fn eos(f: &mut Fields<'_>) -> Vec<u32> {
    let Some(found) = f.get("eos_token_id") else { return Vec::new() };
    let ids = match found {
        Value::Array(ids) => ids.clone(),
        id => vec![id.clone()],
    };
    let ids: Option<Vec<u32>> = ids.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect();
    ids.unwrap_or_else(|| {
        f.problem("eos_token_id", "a token number, or a list of them");
        Vec::new()
    })
}

/// By layer whether it turns queries and keys.
fn rotates(f: &mut Fields<'_>, kind: Kind, layers: usize) -> Vec<bool> {
    if kind != Kind::SmolLm3 {
        return vec![true; layers];
    }
    if let Some(list) = f.get("no_rope_layers") {
        let read = |list: &Vec<Value>| list.iter().map(|x| x.as_u64().map(|x| x != 0)).collect::<Option<Vec<_>>>();
        return match list.as_array().and_then(read).filter(|list| list.len() >= layers) {
            Some(list) => list[..layers].to_vec(),
            None => {
                f.problem("no_rope_layers", &format!("a 0 or 1 for each of {layers} layers"));
                vec![true; layers]
            }
        };
    }
    let interval = f.size("no_rope_layer_interval", Some(4), 1 << 10);
    (0..layers).map(|layer| !(layer + 1).is_multiple_of(interval)).collect()
}

/// By layer the tokens that a token sees.
fn windows(f: &mut Fields<'_>, kind: Kind, rotates: &[bool]) -> Vec<Option<usize>> {
    let layers = rotates.len();
    let none = vec![None; layers];
    // 0 is none
    let given = f.get("sliding_window").filter(|x| x.as_u64() != Some(0)).is_some();
    let width = match kind {
        Kind::Llama => None,
        // without the key a Mistral has the window of the first of them
        Kind::Mistral if !f.json.contains_key("sliding_window") => Some(4096),
        Kind::Mistral => given.then(|| f.size("sliding_window", None, 1 << 31)),
        Kind::SmolLm3 | Kind::Qwen2 | Kind::Qwen3 => {
            let usual = if f.json.contains_key("sliding_window") || kind == Kind::SmolLm3 { None } else { Some(4096) };
            let used = f.flag("use_sliding_window", false) && (given || usual.is_some());
            used.then(|| f.size("sliding_window", usual, 1 << 31))
        }
    };
    if let Some(types) = f.get("layer_types") {
        let known = |kind: &Value| match kind.as_str() {
            Some("full_attention") => Some(None),
            Some("sliding_attention") => Some(width),
            _ => None,
        };
        let by_layer = types.as_array().and_then(|types| types.iter().map(known).collect::<Option<Vec<_>>>());
        let Some(by_layer) = by_layer.filter(|types| types.len() >= layers) else {
            f.problem(
                "layer_types",
                &format!("\"full_attention\" or \"sliding_attention\" for each of {layers} layers"),
            );
            return none;
        };
        // those of a Mistral have no effect in other programs, so that they may only say what is so anyway
        let fixed = matches!(kind, Kind::Llama | Kind::Mistral);
        if fixed && by_layer[..layers].iter().any(|window| *window != width) {
            f.problem("layer_types", "the same attention in all layers, that of sliding_window");
        }
        return by_layer[..layers].to_vec();
    }
    match kind {
        Kind::Llama | Kind::Mistral => vec![width; layers],
        Kind::SmolLm3 => rotates.iter().map(|rotates| width.filter(|_| !rotates)).collect(),
        Kind::Qwen2 | Kind::Qwen3 => {
            // the first layers see all
            let full = f.get("max_window_layers").map_or(Some(28), Value::as_u64).unwrap_or_else(|| {
                f.problem("max_window_layers", "a whole number");
                0
            });
            (0..layers as u64).map(|layer| width.filter(|_| layer >= full)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::config::Config;
    use crate::family::Architecture;

    fn small(model_type: &str) -> Value {
        json!({"model_type": model_type, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 50, "something_else": {"b": 1, "a": [2]}})
    }

    fn with(model_type: &str, changes: &Value) -> Value {
        let mut json = small(model_type);
        changes.as_object().unwrap().iter().for_each(|(key, value)| json[key] = value.clone());
        json
    }

    fn read(json: &Value) -> Result<LlamaConfig, String> {
        let config = Config::from_json(json.to_string().as_bytes(), Path::new("dir/config.json"));
        config.map(|c| c.architecture.downcast_ref::<LlamaConfig>().unwrap().clone()).map_err(|e| e.to_string())
    }

    /// As `transformers` 5.24 has them.
    #[test]
    fn absent_keys_have_the_usual_values() {
        for (family, biases, tied, theta, windows) in [
            ("llama", [false; 2], false, 1e4, [None; 4]),
            ("mistral", [false; 2], false, 1e4, [Some(4096); 4]),
            ("qwen2", [true, false], false, 1e4, [None; 4]),
            ("qwen3", [false; 2], false, 1e4, [None; 4]),
            ("smollm3", [false; 2], true, 2e6, [None; 4]),
        ] {
            let config = read(&small(family)).unwrap();
            assert_eq!((config.attention_bias, config.tie_word_embeddings), (biases, tied), "{family}");
            assert_eq!((config.rope.theta, &config.windows[..]), (theta, &windows[..]), "{family}");
            assert_eq!(config.head_dim, if family == "qwen3" { 128 } else { 12 });
            assert_eq!((config.rms_norm_eps, config.head_norms), (1e-6, family == "qwen3"));
            let rotates = if family == "smollm3" { [true, true, true, false] } else { [true; 4] };
            assert_eq!(config.rotates, rotates, "{family}");
        }
        let mut json = small("llama");
        json.as_object_mut().unwrap().remove("num_key_value_heads");
        assert_eq!(read(&json).unwrap().num_key_value_heads, 4);
    }

    #[test]
    fn windows_in_use_are_computed() {
        let windows = |family, changes| read(&with(family, &changes)).map(|c| c.windows).unwrap();
        for none in [json!({"sliding_window": null}), json!({"sliding_window": 0})] {
            assert_eq!(windows("mistral", none), [None; 4]);
        }
        assert_eq!(windows("mistral", json!({"sliding_window": 4})), [Some(4); 4]);
        assert_eq!(windows("qwen2", json!({"sliding_window": 4, "use_sliding_window": false})), [None; 4]);
        let used = json!({"sliding_window": 4, "use_sliding_window": true, "max_window_layers": 3});
        assert_eq!(windows("qwen2", used), [None, None, None, Some(4)]);
        let kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"];
        let by_layer = json!({"sliding_window": 4, "use_sliding_window": true, "layer_types": kinds});
        assert_eq!(windows("qwen3", by_layer), [None, Some(4), None, Some(4)]);
        let none = json!({"sliding_window": 4, "use_sliding_window": true, "no_rope_layers": [1, 0, 1, 1]});
        assert_eq!(windows("smollm3", none), [None, Some(4), None, None]);
    }

    #[test]
    fn what_is_not_computed_is_refused_by_key() {
        for (family, changes, expected) in [
            (
                "llama",
                json!({"num_local_experts": 8}),
                "num_local_experts: expected nothing (not computed here: a mixture of experts), found 8",
            ),
            (
                "qwen3",
                json!({"final_logit_softcapping": 30.0}),
                "final_logit_softcapping: expected nothing (not computed here: soft-capping",
            ),
            ("llama", json!({"rope_scaling": {"rope_type": "longrope"}}), "rope_scaling.rope_type: expected"),
            ("llama", json!({"quantization_config": {"bits": 4}}), "quantization_config: expected nothing"),
            (
                "qwen2",
                json!({"layer_types": ["full_attention", "linear_attention"]}),
                "layer_types: expected \"full_attention\" or",
            ),
            ("mistral", json!({"layer_types": vec!["full_attention"; 4]}), "layer_types: expected the same attention"),
            ("llama", json!({"hidden_act": "gelu"}), "hidden_act: expected \"silu\", found \"gelu\""),
            ("llama", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor: expected 1"),
            (
                "llama",
                json!({"num_key_value_heads": 3}),
                "num_key_value_heads: expected a divisor of num_attention_heads = 4",
            ),
            (
                "llama",
                json!({"num_attention_heads": 5, "num_key_value_heads": 5}),
                "a divisor of hidden_size = 48, found 5",
            ),
            ("llama", json!({"head_dim": 9}), "head_dim: expected an even number, found 9"),
            ("llama", json!({"eos_token_id": [1, 50]}), "eos_token_id: expected less than vocab_size = 50"),
            ("llama", json!({"eos_token_id": "</s>"}), "eos_token_id: expected a token number, or a list of them"),
            ("smollm3", json!({"no_rope_layers": [1, 0]}), "no_rope_layers: expected a 0 or 1 for each of 4 layers"),
        ] {
            let error = read(&with(family, &changes)).unwrap_err();
            assert!(error.contains(expected) && error.contains("in dir/config.json"), "{error}");
        }
        for changes in [json!({"num_experts": null}), json!({"attn_logit_softcapping": null, "use_mrope": false})] {
            read(&with("qwen2", &changes)).unwrap();
        }
    }

    /// Keys are saved as they were read, and no labels are added.
    #[test]
    fn keys_are_saved_as_they_were_read() {
        let changes = json!({"rope_theta": 5e5, "rope_scaling": {"factor": 2.0, "type": "linear"}, "eos_token_id": [1, 2],
            "architectures": ["LlamaForCausalLM"], "head_dim": null, "use_cache": true});
        let json = with("llama", &changes);
        let config = Config::from_json(json.to_string().as_bytes(), Path::new("c")).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&config.to_json()).unwrap(), json);
    }

    #[test]
    fn parameters_are_those_of_the_published_models() {
        let smollm2 = json!({"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
            "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": true});
        let qwen = json!({"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
            "intermediate_size": 4864, "vocab_size": 151_936, "tie_word_embeddings": true});
        for (family, json, parameters) in [("llama", smollm2, 134_515_008), ("qwen2", qwen, 494_032_768)] {
            let config = read(&with(family, &json)).unwrap();
            assert_eq!(config.parameters(), parameters);
            let mut registry =
                crate::registry::Registry::new(&colrow_tensor::Device::meta(1), colrow_tensor::DType::F32);
            config.net(0, &mut registry);
            assert_eq!(registry.params.iter().map(|(_, p)| p.value.len() as u64).sum::<u64>(), parameters);
        }
    }
}
