//! The frequencies of rotary positions, as `config.json` asks for them, in either of its spellings.

use std::f64::consts::PI;

use serde_json::{Map, Value};

use crate::fields::{Fields, Rule};

/// Rotary positions (Su et al. 2021).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base θ of the frequencies.
    pub theta: f64,
    /// How positions beyond those of pre-training are reached.
    pub scaling: Scaling,
}

/// How positions are stretched. Factors are at least 1.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All by a factor (Chen et al. 2023).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// The base grows with a sequence that is longer than `longest` (bloc97 2023, "Dynamic NTK").
    Dynamic {
        /// The factor.
        factor: f64,
        /// Tokens up to which nothing is stretched.
        longest: f64,
    },
    /// Low frequencies by a factor, high ones not at all, between them gradually (Llama 3.1; Grattafiori et al. 2024, section 3.4.2).
    Llama3 {
        /// The factor.
        factor: f64,
        /// Of the wave lengths in `original` tokens, above how many nothing is stretched.
        high: f64,
        /// And below how many all is.
        low: f64,
        /// Tokens of pre-training.
        original: f64,
    },
    /// The same by the number of turns, and a temperature of attention (Peng et al. 2023, section 3).
    Yarn {
        /// The factor.
        factor: f64,
        /// Columns below which nothing is stretched, and from which on all is.
        ramp: [f64; 2],
        /// What turned numbers are multiplied with.
        attention: f64,
    },
}

const BASE: Rule = ("a number above 0", |x| x > 0.0 && x.is_finite());
const FACTOR: Rule = ("a number of at least 1", |x| x >= 1.0 && x.is_finite());

/// Keys that some kind of scaling here reads.
const KNOWN: [&str; 14] = [
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "low_freq_factor",
    "high_freq_factor",
];

impl Rope {
    /// Reads `rope_theta` and `rope_scaling`, or `rope_parameters`, for heads of `h` columns; both may be there if they say the same.
    pub(super) fn from_fields(f: &mut Fields<'_>, h: usize, longest: usize, theta: f64) -> Self {
        let outer = f.number("rope_theta", theta, BASE);
        let mut read = |key: &str| {
            let value = f.get(key)?;
            let Some(map) = value.as_object() else {
                f.problem(key, "an object or null");
                return None;
            };
            let mut inner = Fields { json: map, problems: Vec::new() };
            let original = f.get("original_max_position_embeddings").and_then(Value::as_f64);
            let rope = of_map(&mut inner, h, longest as f64, original, outer);
            f.problems.extend(inner.problems.into_iter().map(|problem| format!("{key}.{problem}")));
            Some(rope)
        };
        let (old, new) = (read("rope_scaling"), read("rope_parameters"));
        let Some(new) = new else { return old.unwrap_or(Self { theta: outer, scaling: Scaling::None }) };
        if f.get("rope_theta").is_some() && new.theta != outer {
            f.problems.push(format!("rope_theta: found {outer} here and {} in rope_parameters", new.theta));
        }
        if old.is_some_and(|old| old.scaling != new.scaling) {
            f.problems.push("rope_scaling: differs from rope_parameters; expected one of them, or the same".to_owned());
        }
        new
    }

    /// Whether the frequencies are those of a sequence's length.
    pub(super) fn depends_on_length(&self) -> bool {
        matches!(self.scaling, Scaling::Dynamic { .. })
    }

    /// What turned numbers are multiplied with.
    pub fn factor(&self) -> f64 {
        if let Scaling::Yarn { attention, .. } = self.scaling { attention } else { 1.0 }
    }

    /// The angle a position of each pair of columns, for heads of `h` columns and a sequence of `length` tokens.
    pub fn frequencies(&self, h: usize, length: usize) -> Vec<f64> {
        let dim = h as f64;
        let theta = match self.scaling {
            Scaling::Dynamic { factor, longest } => {
                let stretch = factor * (length as f64).max(longest) / longest - (factor - 1.0);
                self.theta * stretch.powf(dim / (dim - 2.0))
            }
            _ => self.theta,
        };
        let scaled = |i: usize| {
            let frequency = theta.powf(-2.0 * i as f64 / dim);
            match self.scaling {
                Scaling::None | Scaling::Dynamic { .. } => frequency,
                Scaling::Linear { factor } => frequency / factor,
                Scaling::Llama3 { factor, high, low, original } => {
                    let waves = original * frequency / (2.0 * PI);
                    // 1 where nothing is stretched
                    let share = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                    share * frequency + (1.0 - share) * frequency / factor
                }
                Scaling::Yarn { factor, ramp: [start, end], .. } => {
                    let share = 1.0 - ((i as f64 - start) / (end - start)).clamp(0.0, 1.0);
                    share * frequency + (1.0 - share) * frequency / factor
                }
            }
        };
        (0..h / 2).map(scaled).collect()
    }
}

/// What one object says; `outer` is the base where it has none.
fn of_map(f: &mut Fields<'_>, h: usize, longest: f64, original: Option<f64>, outer: f64) -> Rope {
    let theta = f.number("rope_theta", outer, BASE);
    let json: &Map<String, Value> = f.json;
    for key in json.keys().filter(|key| !KNOWN.contains(&key.as_str())) {
        f.problems.push(format!("{key}: cannot be computed"));
    }
    if f.get("partial_rotary_factor").is_some_and(|x| x.as_f64() != Some(1.0)) {
        f.problem("partial_rotary_factor", "1 (heads that turn whole)");
    }
    let names = [f.get("rope_type"), f.get("type")];
    if let [Some(a), Some(b)] = names
        && a != b
    {
        f.problems.push(format!("rope_type: found {a}, and type {b}"));
    }
    let name = names.into_iter().flatten().next().map_or(Some("default"), Value::as_str);
    let original = original.unwrap_or_else(|| f.number("original_max_position_embeddings", longest, BASE));
    let mut needed = |key: &str, rule: Rule| {
        if f.get(key).is_none() {
            f.problem(key, rule.0);
        }
        f.number(key, 1.0, rule)
    };
    let scaling = match name {
        Some("default") => Scaling::None,
        Some("linear") => Scaling::Linear { factor: needed("factor", FACTOR) },
        Some("dynamic") => Scaling::Dynamic { factor: needed("factor", FACTOR), longest },
        Some("llama3") => {
            let factor = needed("factor", FACTOR);
            let (low, high) = (needed("low_freq_factor", BASE), needed("high_freq_factor", BASE));
            if high <= low && f.problems.is_empty() {
                f.problem("high_freq_factor", &format!("more than low_freq_factor = {low}"));
            }
            Scaling::Llama3 { factor, high, low, original }
        }
        Some("yarn") => yarn(f, h as f64, theta, longest, original),
        _ => {
            let known = "\"default\", \"linear\", \"dynamic\", \"llama3\" or \"yarn\"";
            let key = if f.get("rope_type").is_some() { "rope_type" } else { "type" };
            f.problem(key, known);
            Scaling::None
        }
    };
    Rope { theta, scaling }
}

fn yarn(f: &mut Fields<'_>, dim: f64, theta: f64, longest: f64, original: f64) -> Scaling {
    let factor = f.number("factor", (longest / original).max(1.0), FACTOR);
    let temperature = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let [scale, all] = ["mscale", "mscale_all_dim"].map(|key| f.number(key, 0.0, ("a number", f64::is_finite)));
    let usual = if scale != 0.0 && all != 0.0 { temperature(scale) / temperature(all) } else { temperature(1.0) };
    let attention = f.number("attention_factor", usual, BASE);
    let [fast, slow] = [("beta_fast", 32.0), ("beta_slow", 1.0)].map(|(key, usual)| f.number(key, usual, BASE));
    let whole = f.flag("truncate", true);
    // the column that turns so many times in the tokens of pre-training
    let column = |turns: f64| dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let (start, end) = (column(fast), column(slow));
    let (start, end) = if whole { (start.floor(), end.ceil()) } else { (start, end) };
    let (start, end) = (start.max(0.0), end.min(dim - 1.0));
    let end = if start == end { end + 0.001 } else { end };
    Scaling::Yarn { factor, ramp: [start, end], attention }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(json: &Value) -> Result<Rope, String> {
        let mut fields = Fields { json: json.as_object().unwrap(), problems: Vec::new() };
        let rope = Rope::from_fields(&mut fields, 8, 64, 10_000.0);
        if fields.problems.is_empty() { Ok(rope) } else { Err(fields.problems.join("\n")) }
    }

    /// Of heads of 16 columns and 32 positions; the reference is in f32.
    #[test]
    fn frequencies_are_those_of_transformers() {
        let text = include_bytes!("../../../../../tests/golden/llama-frequencies.json");
        let cases: Vec<Value> = serde_json::from_slice(text).unwrap();
        for case in cases {
            let json = json!({"rope_parameters": case["rope"]});
            let mut fields = Fields { json: json.as_object().unwrap(), problems: Vec::new() };
            let rope = Rope::from_fields(&mut fields, 16, 32, 10_000.0);
            assert!(fields.problems.is_empty(), "{:?}", fields.problems);
            let found = rope.frequencies(16, case["length"].as_u64().unwrap() as usize);
            let expected = case["frequencies"].as_array().unwrap();
            assert_eq!(found.len(), expected.len());
            for (f, e) in found.iter().zip(expected) {
                assert!((f / e.as_f64().unwrap() - 1.0).abs() < 2e-6, "{case}: {found:?}");
            }
            assert!((rope.factor() - case["factor"].as_f64().unwrap()).abs() < 1e-12, "{case}");
        }
    }

    /// By hand, for heads of 8 columns, 64 positions and θ = 10,000.
    #[test]
    fn known_frequencies() {
        for (json, length, factor, expected) in [
            (json!({}), 64, 1.0, [1.0, 0.1, 0.01, 0.001]),
            (json!({"rope_scaling": {"type": "linear", "factor": 4.0}}), 64, 1.0, [0.25, 0.025, 0.0025, 0.00025]),
            (json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}), 64, 1.0, [1.0, 0.1, 0.01, 0.001]),
            (
                json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
                128,
                1.0,
                [1.0, 0.069_336_13, 0.004_807_499, 0.000_333_333_3],
            ),
        ] {
            let rope = read(&json).unwrap();
            let found = rope.frequencies(8, length);
            assert!(
                found.iter().zip(expected).all(|(f, e): (&f64, f64)| (f / e - 1.0).abs() < 1e-6),
                "{json}: {found:?}"
            );
            assert!((rope.factor() - factor).abs() < 1e-12);
        }
    }

    #[test]
    fn both_spellings_say_the_same_or_are_refused() {
        let scaling = json!({"rope_type": "linear", "factor": 2.0});
        let parameters = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5});
        let old = read(&json!({"rope_theta": 5e5, "rope_scaling": scaling})).unwrap();
        assert_eq!(old, read(&json!({"rope_parameters": parameters})).unwrap());
        assert_eq!(
            old,
            read(&json!({"rope_theta": 5e5, "rope_scaling": scaling, "rope_parameters": parameters})).unwrap()
        );
        let error = read(&json!({"rope_theta": 1e4, "rope_parameters": parameters})).unwrap_err();
        assert_eq!(error, "rope_theta: found 10000 here and 500000 in rope_parameters");
        let other = json!({"rope_type": "linear", "factor": 3.0});
        let error = read(&json!({"rope_scaling": other, "rope_parameters": parameters})).unwrap_err();
        assert!(error.starts_with("rope_scaling: differs from rope_parameters"), "{error}");
        let bare = json!({"rope_scaling": null, "rope_parameters": {"rope_theta": 7.0}});
        assert_eq!(read(&bare).unwrap(), Rope { theta: 7.0, scaling: Scaling::None });
    }

    #[test]
    fn what_cannot_be_computed_is_refused_by_key() {
        for (json, expected) in [
            (
                json!({"rope_type": "longrope", "factor": 2.0}),
                "rope_scaling.rope_type: expected \"default\", \"linear\"",
            ),
            (json!({"type": "linear"}), "rope_scaling.factor: expected a number of at least 1, found nothing"),
            (
                json!({"type": "linear", "factor": 0.5}),
                "rope_scaling.factor: expected a number of at least 1, found 0.5",
            ),
            (
                json!({"type": "linear", "rope_type": "yarn", "factor": 2}),
                "rope_type: found \"yarn\", and type \"linear\"",
            ),
            (json!({"type": "default", "mrope_section": [1, 2]}), "rope_scaling.mrope_section: cannot be computed"),
            (json!({"partial_rotary_factor": 0.5}), "rope_scaling.partial_rotary_factor: expected 1"),
            (
                json!({"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}),
                "high_freq_factor: expected more than low_freq_factor = 4, found 4",
            ),
            (json!(3), "rope_scaling: expected an object or null, found 3"),
        ] {
            let error = read(&json!({"rope_scaling": json})).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
