//! How rotary positions reach further than they were trained: in the words of `config.json` and of GGUF.

use colrow_tensor::{Error, Result};
use serde_json::{Map, Value as Json, json};

use crate::families::llama::{Rope, Scaling};

use super::value::{Metadata, Value, needed};

/// The tensor that holds what each frequency is divided by.
pub(super) const FACTORS: &str = "rope_freqs.weight";

/// `rope_scaling` of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reach {
    None,
    Linear {
        factor: f64,
    },
    Yarn {
        factor: f64,
        original: usize,
        beta_fast: Option<f64>,
        beta_slow: Option<f64>,
    },
    /// GGUF has no keys for it, but the divisors that follow from it.
    Llama3(Llama3),
}

/// Long waves are stretched by `factor`, short ones stay, and between them it goes over smoothly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    original: usize,
}

impl Llama3 {
    /// What each of the `head_dim / 2` frequencies is divided by.
    pub(super) fn divisors(&self, theta: f64, head_dim: usize) -> Vec<f32> {
        let Self { factor, low, high, original } = *self;
        let scaling = Scaling::Llama3 { factor, high, low, original: original as f64 };
        let frequencies = |scaling| Rope { theta, scaling }.frequencies(head_dim, 0);
        let pairs = frequencies(Scaling::None).into_iter().zip(frequencies(scaling));
        pairs.map(|(plain, scaled)| (plain / scaled) as f32).collect()
    }

    /// The scaling with these divisors: its factor is the largest; the rest is tried, of what models have.
    pub(super) fn of_divisors(divisors: &[f32], theta: f64) -> Result<Self> {
        let factor = divisors.iter().fold(1.0_f32, |most, &x| most.max(x)).into();
        let near = |a: f32, b: f32| (a - b).abs() <= 1e-4 * b.abs();
        (10..=20)
            .map(|power| Self { factor, low: 1.0, high: 4.0, original: 1 << power })
            .find(|scaling| {
                let own = scaling.divisors(theta, divisors.len() * 2);
                divisors.iter().zip(&own).all(|(&a, &b)| near(a, b))
            })
            .ok_or_else(|| {
                Error::new(format!(
                    "{FACTORS}: expected divisors that follow from rope_scaling of type llama3, found others"
                ))
                .hint("use the original checkpoint instead")
            })
    }
}

impl Reach {
    /// By the metadata of an architecture, and the divisors if the file has them.
    pub(super) fn from_metadata(metadata: &Metadata, arch: &str, divisors: Option<&[f32]>, theta: f64) -> Result<Self> {
        let key = |name: &str| format!("{arch}.rope.scaling.{name}");
        let kind = metadata.text(&key("type"))?;
        for name in ["attn_factor", "yarn_ext_factor", "yarn_attn_factor", "yarn_log_multiplier"] {
            if metadata.number(&key(name))?.is_some_and(|x| x != 1.0) {
                return Err(Error::new(format!("{}: no config.json says this exactly", key(name)))
                    .hint("use the original checkpoint instead"));
            }
        }
        let factor = metadata.number(&key("factor"))?;
        let plain = matches!(kind, None | Some("none" | "linear")) && factor.is_none_or(|factor| factor == 1.0);
        if let Some(divisors) = divisors.filter(|divisors| divisors.iter().any(|&x| x != 1.0)) {
            return match plain {
                true => Llama3::of_divisors(divisors, theta).map(Self::Llama3),
                false => Err(Error::new(format!("{FACTORS}: no config.json has divisors beside {}", key("type")))),
            };
        }
        Ok(match kind {
            None | Some("none") => Self::None,
            Some("linear") if plain => Self::None,
            Some("linear") => Self::Linear { factor: needed(&key("factor"), factor)? },
            Some("yarn") => Self::Yarn {
                factor: needed(&key("factor"), factor)?,
                original: needed(&key("original_context_length"), metadata.count(&key("original_context_length"))?)?,
                beta_fast: metadata.number(&key("yarn_beta_fast"))?,
                beta_slow: metadata.number(&key("yarn_beta_slow"))?,
            },
            Some(other) => {
                return Err(Error::new(format!("{}: expected none, linear or yarn, found {other:?}", key("type"))));
            }
        })
    }

    /// Puts it into the metadata of an architecture.
    pub(super) fn put_into(&self, metadata: &mut Metadata, arch: &str) {
        let mut set = |name: &str, value: Value| metadata.set(format!("{arch}.rope.scaling.{name}"), value);
        match *self {
            Self::None | Self::Llama3(_) => {}
            Self::Linear { factor } => {
                set("type", "linear".into());
                set("factor", Value::F32(factor as f32));
            }
            Self::Yarn { factor, original, beta_fast, beta_slow } => {
                set("type", "yarn".into());
                set("factor", Value::F32(factor as f32));
                set("original_context_length", original.into());
                for (name, beta) in [("yarn_beta_fast", beta_fast), ("yarn_beta_slow", beta_slow)] {
                    beta.into_iter().for_each(|beta| set(name, Value::F32(beta as f32)));
                }
            }
        }
    }

    /// By `rope_scaling` or `rope_parameters` of `config.json`.
    pub(super) fn from_json(json: &Map<String, Json>) -> Result<Self> {
        let kind = ["rope_type", "type"].iter().find_map(|key| json.get(*key)).and_then(Json::as_str);
        let number = |key: &str| {
            let x = json.get(key).and_then(Json::as_f64);
            x.ok_or_else(|| Error::new(format!("rope_scaling: expected a number at {key}")))
        };
        let original = || number("original_max_position_embeddings").map(|x| x as usize);
        let mut known = vec!["rope_type", "type", "rope_theta", "factor"];
        let scaling = match kind.unwrap_or("default") {
            "default" => Self::None,
            "linear" => Self::Linear { factor: number("factor")? },
            "yarn" => {
                known.extend(["original_max_position_embeddings", "beta_fast", "beta_slow"]);
                let beta = |key: &str| json.get(key).and_then(Json::as_f64);
                let (beta_fast, beta_slow) = (beta("beta_fast"), beta("beta_slow"));
                Self::Yarn { factor: number("factor")?, original: original()?, beta_fast, beta_slow }
            }
            "llama3" => {
                known.extend(["low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]);
                let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
                Self::Llama3(Llama3 { factor: number("factor")?, low, high, original: original()? })
            }
            other => return Err(Error::new(format!("rope_scaling: GGUF has no words for the type {other:?}"))),
        };
        match json.iter().find(|(key, value)| !known.contains(&key.as_str()) && !value.is_null()) {
            Some((key, _)) => Err(Error::new(format!("rope_scaling: GGUF has no words for {key:?}"))),
            None => Ok(scaling),
        }
    }

    /// `rope_scaling` of `config.json`.
    pub(super) fn to_json(&self) -> Json {
        match *self {
            Self::None => Json::Null,
            Self::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            Self::Yarn { factor, original, beta_fast, beta_slow } => {
                let mut json =
                    json!({"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original});
                for (key, beta) in [("beta_fast", beta_fast), ("beta_slow", beta_slow)] {
                    beta.into_iter().for_each(|beta| json[key] = beta.into());
                }
                json
            }
            Self::Llama3(Llama3 { factor, low, high, original }) => {
                json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                    "original_max_position_embeddings": original})
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalings_go_both_ways() {
        let llama3 = Llama3 { factor: 32.0, low: 1.0, high: 4.0, original: 8192 };
        let divisors = llama3.divisors(500_000.0, 64);
        // of Llama 3.2: the first frequencies stay, the last are divided by the factor
        assert_eq!((divisors[0], divisors[31]), (1.0, 32.0));
        assert!(divisors.is_sorted());
        assert_eq!(Llama3::of_divisors(&divisors, 500_000.0).unwrap(), llama3);
        let e = Llama3::of_divisors(&[1.0, 2.0, 1.5, 7.0], 500_000.0).unwrap_err();
        assert!(e.what().contains("rope_freqs.weight"), "{e}");
        let yarn = Reach::Yarn { factor: 4.0, original: 32768, beta_fast: Some(16.0), beta_slow: None };
        for (scaling, divisors) in [
            (Reach::None, None),
            (Reach::Linear { factor: 2.5 }, None),
            (yarn, None),
            (Reach::Llama3(llama3), Some(&divisors[..])),
        ] {
            let mut metadata = Metadata::default();
            scaling.put_into(&mut metadata, "llama");
            assert_eq!(Reach::from_metadata(&metadata, "llama", divisors, 500_000.0).unwrap(), scaling);
            if let Json::Object(json) = scaling.to_json() {
                assert_eq!(Reach::from_json(&json).unwrap(), scaling);
            }
        }
    }

    #[test]
    fn what_cannot_be_said_is_refused() {
        let json = |text: &str| serde_json::from_str::<Map<String, Json>>(text).unwrap();
        for (text, expected) in [
            (r#"{"rope_type": "dynamic", "factor": 2.0}"#, "no words for the type \"dynamic\""),
            (r#"{"rope_type": "linear"}"#, "expected a number at factor"),
            (
                r#"{"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 9, "mscale": 1.5}"#,
                "no words for \"mscale\"",
            ),
        ] {
            let e = Reach::from_json(&json(text)).unwrap_err();
            assert!(e.what().contains(expected), "{e}");
        }
        let mut metadata = Metadata::default();
        metadata.set("llama.rope.scaling.type", "longrope");
        let e = Reach::from_metadata(&metadata, "llama", None, 1e4).unwrap_err();
        assert!(e.what().contains("found \"longrope\""), "{e}");
        metadata.set("llama.rope.scaling.attn_factor", Value::F32(1.5));
        let e = Reach::from_metadata(&metadata, "llama", None, 1e4).unwrap_err();
        assert!(e.what().contains("llama.rope.scaling.attn_factor"), "{e}");
    }
}
