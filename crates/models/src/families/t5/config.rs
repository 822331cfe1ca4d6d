//! The configuration of a T5 (Raffel et al. 2020): v1.0, and v1.1 as Flan-T5 has it (Shazeer 2020).

use colrow_tensor::Buckets;
use serde_json::Value;

use crate::fields::{Fields, POSITIVE, PROBABILITY, Rule};
use crate::layers::Width;

/// What stands between the feed-forward linears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForward {
    /// v1.0.
    Relu,
    /// v1.1: one linear's GELU (tanh form) times another linear.
    GatedGelu,
}

/// The configuration of a T5.
#[derive(Clone, Debug, PartialEq)]
pub struct T5Config {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of an attention head.
    pub d_kv: usize,
    /// Width between the feed-forward linears.
    pub d_ff: usize,
    /// Layers of the encoder.
    pub num_layers: usize,
    /// Layers of the decoder.
    pub num_decoder_layers: usize,
    /// Heads per attention.
    pub num_heads: usize,
    /// Number of word pieces.
    pub vocab_size: usize,
    /// Buckets of relative positions.
    pub relative_attention_num_buckets: usize,
    /// From here on all distances are one.
    pub relative_attention_max_distance: usize,
    /// Dropout everywhere.
    pub dropout_rate: f64,
    /// Added to the mean square in norms.
    pub layer_norm_epsilon: f64,
    /// Scales new weights.
    pub initializer_factor: f64,
    /// Between the feed-forward linears.
    pub feed_forward_proj: FeedForward,
    /// Whether the head is the embedding: v1.0. Newer files say of all heads that they are tied; one whose outputs are not scaled is not.
    pub tie_word_embeddings: bool,
    /// Whether the head's input is scaled by d_model^−½. Older files do not say it: there a tied head's is.
    pub scale_decoder_outputs: bool,
    /// The decoder's first input.
    pub decoder_start_token_id: usize,
    /// Ends a sequence.
    pub eos_token_id: usize,
}

impl T5Config {
    /// Reads it.
    pub fn from_fields(f: &mut Fields<'_>) -> Self {
        const FACTOR: Rule = ("a number above 0", |x| x > 0.0 && x < 1e9);
        let num_layers = f.size("num_layers", Some(6), 1 << 10);
        let tied = f.flag("tie_word_embeddings", true);
        let scaled = f.flag("scale_decoder_outputs", tied);
        let config = Self {
            d_model: f.size("d_model", None, 1 << 16),
            d_kv: f.size("d_kv", Some(64), 1 << 16),
            d_ff: f.size("d_ff", None, 1 << 20),
            num_layers,
            num_decoder_layers: f.size("num_decoder_layers", Some(num_layers), 1 << 10),
            num_heads: f.size("num_heads", Some(8), 1 << 12),
            vocab_size: f.size("vocab_size", None, 1 << 24),
            relative_attention_num_buckets: f.size("relative_attention_num_buckets", Some(32), 1 << 16),
            relative_attention_max_distance: f.size("relative_attention_max_distance", Some(128), 1 << 24),
            dropout_rate: f.number("dropout_rate", 0.1, PROBABILITY),
            layer_norm_epsilon: f.number("layer_norm_epsilon", 1e-6, POSITIVE),
            initializer_factor: f.number("initializer_factor", 1.0, FACTOR),
            feed_forward_proj: feed_forward(f),
            tie_word_embeddings: tied && scaled,
            scale_decoder_outputs: scaled,
            decoder_start_token_id: f.token("decoder_start_token_id", 0),
            eos_token_id: f.token("eos_token_id", 1),
        };
        if !f.problems.is_empty() {
            return config;
        }
        let (buckets, distance) = (config.relative_attention_num_buckets, config.relative_attention_max_distance);
        if buckets < 4 || buckets % 4 != 0 {
            f.problem("relative_attention_num_buckets", "a multiple of 4");
        }
        if distance <= buckets / 2 {
            f.problem("relative_attention_max_distance", &format!("more than {}, half of the buckets", buckets / 2));
        }
        for (key, token) in
            [("decoder_start_token_id", config.decoder_start_token_id), ("eos_token_id", config.eos_token_id)]
        {
            if token >= config.vocab_size {
                f.problem(key, &format!("less than vocab_size = {}", config.vocab_size));
            }
        }
        f.check_parameters(config.parameters());
        config
    }

    /// Columns of q: all heads.
    pub fn inner(&self) -> usize {
        self.num_heads * self.d_kv
    }

    /// The residual stream.
    pub(super) fn width(&self) -> Width {
        Width { d: self.d_model, dims: &["d_model"] }
    }

    /// The buckets of relative positions in the encoder, or the decoder.
    pub fn buckets(&self, bidirectional: bool) -> Buckets {
        Buckets {
            count: self.relative_attention_num_buckets,
            max_distance: self.relative_attention_max_distance,
            bidirectional,
        }
    }

    /// Number of parameters.
    pub fn parameters(&self) -> u64 {
        let wide = |n: usize| n as u64;
        let (d, f, inner) = (wide(self.d_model), wide(self.d_ff), wide(self.num_heads) * wide(self.d_kv));
        let attention = 4 * d * inner + d;
        let up = if self.feed_forward_proj == FeedForward::GatedGelu { 2 } else { 1 };
        let feed_forward = (up + 1) * d * f + d;
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        tables * wide(self.vocab_size) * d
            + 2 * wide(self.relative_attention_num_buckets) * wide(self.num_heads)
            + wide(self.num_layers) * (attention + feed_forward)
            + wide(self.num_decoder_layers) * (2 * attention + feed_forward)
            + 2 * d
    }
}

fn feed_forward(f: &mut Fields<'_>) -> FeedForward {
    match f.get("feed_forward_proj").map(Value::as_str) {
        None | Some(Some("relu")) => FeedForward::Relu,
        Some(Some("gated-gelu")) => FeedForward::GatedGelu,
        Some(_) => {
            f.problem("feed_forward_proj", "\"relu\" or \"gated-gelu\"");
            FeedForward::Relu
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::config::Config;

    fn read(json: &Value) -> Result<T5Config, String> {
        let config = Config::from_json(json.to_string().as_bytes(), Path::new("dir/config.json"));
        Ok(config.map_err(|e| e.to_string())?.architecture.downcast_ref::<T5Config>().expect("a T5").clone())
    }

    fn small() -> Value {
        json!({"model_type": "t5", "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
            "vocab_size": 32128})
    }

    #[test]
    fn parameters_are_those_of_the_published_models() {
        let of = |changes: &[(&str, Value)]| {
            let mut json = small();
            changes.iter().for_each(|(key, value)| json[key] = value.clone());
            read(&json).unwrap().parameters()
        };
        assert_eq!(of(&[]), 60_506_624);
        let base = [("d_model", 768), ("d_ff", 3072), ("num_layers", 12), ("num_heads", 12)];
        assert_eq!(of(&base.map(|(key, n)| (key, json!(n)))), 222_903_552);
        let large = [("d_model", 1024), ("d_ff", 4096), ("num_layers", 24), ("num_heads", 16)];
        assert_eq!(of(&large.map(|(key, n)| (key, json!(n)))), 737_668_096);
        let xl = [("d_model", 1024), ("d_kv", 128), ("d_ff", 16384), ("num_layers", 24), ("num_heads", 32)];
        assert_eq!(of(&xl.map(|(key, n)| (key, json!(n)))), 2_851_598_336);
        let v11 = [
            ("feed_forward_proj", json!("gated-gelu")),
            ("tie_word_embeddings", json!(false)),
            ("d_ff", json!(1024)),
            ("num_layers", json!(8)),
            ("num_heads", json!(6)),
        ];
        assert_eq!(of(&v11), 76_961_152);
    }

    #[test]
    fn wrong_keys_are_named() {
        for (key, value, expected) in [
            ("d_model", Value::Null, "d_model: expected a whole number from 1 to 65536, found null"),
            ("feed_forward_proj", json!("gated-silu"), "feed_forward_proj: expected \"relu\" or \"gated-gelu\""),
            ("tie_word_embeddings", json!("no"), "tie_word_embeddings: expected true or false, found \"no\""),
            ("relative_attention_num_buckets", json!(6), "relative_attention_num_buckets: expected a multiple of 4"),
            ("relative_attention_max_distance", json!(16), "expected more than 16, half of the buckets, found 16"),
            ("eos_token_id", json!(40_000), "eos_token_id: expected less than vocab_size = 32128"),
            ("dropout_rate", json!(1), "dropout_rate: expected a number from 0 to below 1"),
        ] {
            let mut json = small();
            json[key] = value;
            let error = read(&json).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    /// What transformers 5.24 makes of the two keys, with the head that its checkpoints then have.
    #[test]
    fn old_and_new_files_say_whether_outputs_are_scaled() {
        for (tied, scaled, expected) in [
            (None, None, (true, true)),
            (None, Some(false), (false, false)),
            (Some(true), Some(true), (true, true)),
            (Some(true), Some(false), (false, false)),
            (Some(false), None, (false, false)),
            (Some(false), Some(true), (false, true)),
            (Some(false), Some(false), (false, false)),
        ] {
            let mut json = small();
            for (key, value) in [("tie_word_embeddings", tied), ("scale_decoder_outputs", scaled)] {
                value.into_iter().for_each(|value: bool| json[key] = value.into());
            }
            let config = read(&json).unwrap();
            assert_eq!((config.tie_word_embeddings, config.scale_decoder_outputs), expected, "{json}");
        }
    }

    #[test]
    fn absent_keys_have_the_usual_values() {
        let config = read(&small()).unwrap();
        assert_eq!((config.num_decoder_layers, config.feed_forward_proj), (6, FeedForward::Relu));
        assert_eq!((config.decoder_start_token_id, config.eos_token_id, config.tie_word_embeddings), (0, 1, true));
        assert_eq!(config.buckets(true), Buckets { count: 32, max_distance: 128, bidirectional: true });
    }
}
