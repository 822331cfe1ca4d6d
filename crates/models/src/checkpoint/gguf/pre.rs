//! How byte-level tokenizers cut a text before they merge: GGUF has a name for it, `tokenizer.json` the steps.

use colrow_tensor::{Error, Result};
use serde_json::{Value as Json, json};

/// A way to cut, by llama.cpp's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pre {
    Gpt2,
    Smollm,
    LlamaBpe,
    Qwen2,
    Default,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// One step of cutting.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// Each digit by itself.
    Digits,
    /// At every match.
    Split(String),
    /// Bytes become letters; with GPT-2's expression before that, or without.
    Bytes { cut: bool },
}

impl Pre {
    const ALL: [Self; 5] = [Self::Gpt2, Self::Smollm, Self::LlamaBpe, Self::Qwen2, Self::Default];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt-2",
            Self::Smollm => "smollm",
            Self::LlamaBpe => "llama-bpe",
            Self::Qwen2 => "qwen2",
            Self::Default => "default",
        }
    }

    /// By the name in a file. Some names mean the same.
    pub(super) fn of_name(name: &str) -> Result<Self> {
        Ok(match name {
            "gpt-2" | "phi-2" => Self::Gpt2,
            "smollm" | "starcoder" => Self::Smollm,
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" => Self::LlamaBpe,
            "qwen2" | "deepseek-r1-qwen" => Self::Qwen2,
            "default" => Self::Default,
            other => {
                let known = Self::ALL.map(Self::name).join(", ");
                return Err(Error::new(format!(
                    "tokenizer.ggml.pre: expected one of the ways to cut text that are known, {known}; found {other:?}"
                )));
            }
        })
    }

    /// Whether a text that is a token is not merged from its bytes.
    pub(super) fn ignores_merges(self) -> bool {
        self == Self::LlamaBpe
    }

    /// Whether texts begin with a token of their own, where a file does not say it.
    pub(super) fn begins(self) -> bool {
        self == Self::LlamaBpe
    }

    /// What is done to a text before.
    pub(super) fn normalizer(self) -> Json {
        if self == Self::Qwen2 { json!({"type": "NFC"}) } else { Json::Null }
    }

    fn steps(self) -> Vec<Step> {
        let cut = |patterns: &[&str]| {
            let splits = patterns.iter().map(|pattern| Step::Split(pattern.to_string()));
            splits.chain([Step::Bytes { cut: false }]).collect()
        };
        match self {
            Self::Gpt2 => vec![Step::Bytes { cut: true }],
            Self::Smollm => vec![Step::Digits, Step::Bytes { cut: true }],
            Self::LlamaBpe => cut(&[LLAMA3]),
            Self::Qwen2 => cut(&[QWEN2]),
            Self::Default => cut(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
        }
    }

    /// `pre_tokenizer` of `tokenizer.json`.
    pub(super) fn to_json(self) -> Json {
        let mut steps: Vec<_> = self.steps().iter().map(Step::to_json).collect();
        if steps.len() == 1 {
            return steps.remove(0);
        }
        json!({"type": "Sequence", "pretokenizers": steps})
    }

    /// By `pre_tokenizer` of `tokenizer.json`.
    pub(super) fn from_json(json: &Json) -> Result<Self> {
        let steps = match json.get("pretokenizers").and_then(Json::as_array) {
            Some(steps) => steps.iter().map(Step::from_json).collect::<Option<Vec<_>>>(),
            None => Step::from_json(json).map(|step| vec![step]),
        };
        steps.and_then(|steps| Self::ALL.into_iter().find(|pre| pre.steps() == steps)).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            Error::new(format!(
                "pre_tokenizer: GGUF has names for ways to cut text, of which {known} are written here; found another"
            ))
        })
    }
}

impl Step {
    fn to_json(&self) -> Json {
        match self {
            Self::Digits => json!({"type": "Digits", "individual_digits": true}),
            Self::Split(pattern) => {
                json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
            }
            Self::Bytes { cut } => {
                json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": cut})
            }
        }
    }

    /// `None` for what no step here is.
    fn from_json(json: &Json) -> Option<Self> {
        let is = |key: &str, expected: bool| json.get(key).and_then(Json::as_bool) == Some(expected);
        match json.get("type")?.as_str()? {
            "Digits" if is("individual_digits", true) => Some(Self::Digits),
            "Split" if is("invert", false) && json.get("behavior")?.as_str()? == "Isolated" => {
                Some(Self::Split(json.get("pattern")?.get("Regex")?.as_str()?.to_string()))
            }
            "ByteLevel" if is("add_prefix_space", false) => Some(Self::Bytes { cut: !is("use_regex", false) }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_cut_go_both_ways_by_name_and_by_steps() {
        for pre in Pre::ALL {
            assert_eq!(Pre::of_name(pre.name()).unwrap(), pre);
            assert_eq!(Pre::from_json(&pre.to_json()).unwrap(), pre);
        }
        let e = Pre::of_name("tekken").unwrap_err();
        assert!(e.what().contains("found \"tekken\""), "{e}");
        for json in [json!(null), json!({"type": "Whitespace"}), json!({"type": "Sequence", "pretokenizers": []})] {
            assert!(Pre::from_json(&json).unwrap_err().what().contains("found another"));
        }
    }
}
