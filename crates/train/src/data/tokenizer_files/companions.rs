//! The files beside `tokenizer.json` (`tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`): the settings and the
//! tokens that they name. They build no tokenizer.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use colrow_models::config::Config;
use colrow_tensor::{Error, Result};
use serde_json::{Map, Value};
use tokenizers::utils::truncation::TruncationDirection;
use tokenizers::{AddedToken, Tokenizer};

use super::class::Class;
use super::{Document, read};

pub(super) const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";

/// Special tokens that have a name, in the order in which `transformers` adds them.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The tokenizer's other files, with the class that reads them.
pub(super) struct Companions {
    /// Who builds the tokenizer.
    pub(super) class: Class,
    /// `tokenizer_config.json`; empty without one.
    pub(super) config: Map<String, Value>,
    /// Special tokens by name.
    pub(super) named: BTreeMap<&'static str, AddedToken>,
    /// Tokens beside the vocabulary, in the order in which they are added.
    pub(super) added: Vec<AddedToken>,
    /// What the user should know: which file decided.
    pub(super) notes: Vec<String>,
}

/// The object in a file of `dir`, if the file is there.
fn object(dir: &Path, name: &str) -> Result<Option<Map<String, Value>>> {
    let path = dir.join(name);
    let parse = |bytes: Vec<u8>| {
        serde_json::from_slice(&bytes)
            .map_err(|e| Error::new(format!("expected a JSON object: {e}")).at(path.display()))
    };
    read(&path)?.map(parse).transpose()
}

/// A token as these files give it: its text, or an object with the text and how it is found.
fn token(value: &Value, special: bool) -> Option<AddedToken> {
    if let Value::String(text) = value {
        return Some(AddedToken::from(text, special));
    }
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(special);
    let plain = AddedToken::from(value.get("content")?.as_str()?, special);
    let normalized = flag("normalized").unwrap_or(plain.normalized);
    let is = |name| flag(name).unwrap_or(false);
    Some(plain.single_word(is("single_word")).lstrip(is("lstrip")).rstrip(is("rstrip")).normalized(normalized))
}

impl Companions {
    /// Reads them, those that are there.
    ///
    /// # Errors
    /// A file that is damaged, or says what such a file cannot.
    pub(super) fn read(dir: &Path, model: &Config, document: &Document, file: &Tokenizer) -> Result<Self> {
        let config = object(dir, CONFIG)?;
        let mut notes = Vec::new();
        let class = Class::of(config.as_ref(), model, file, &mut notes);
        let config = config.unwrap_or_default();
        for key in ["do_lower_case", "strip_accents", "tokenize_chinese_chars", "split_special_tokens"] {
            if let Some(other) = config.get(key).filter(|value| !value.is_boolean() && !value.is_null()) {
                let what = format!("{key}: expected true or false, found {other}");
                return Err(Error::new(what).at(dir.join(CONFIG).display()));
            }
        }
        let wrong = |key: &str, name: &str| {
            Error::new(format!("{key}: expected a token or an object with its content")).at(dir.join(name).display())
        };
        // Without added_tokens_decoder the older files count too.
        let map = if config.contains_key("added_tokens_decoder") { None } else { object(dir, SPECIAL_TOKENS)? };
        let map = map.unwrap_or_default();
        let given = |key: &str| match map.get(key).filter(|value| !value.is_null()) {
            Some(value) => Some((value, SPECIAL_TOKENS)),
            None => config.get(key).filter(|value| !value.is_null()).map(|value| (value, CONFIG)),
        };
        let mut named = BTreeMap::new();
        for key in NAMED {
            let found = match given(key) {
                Some((value, name)) => Some(token(value, true).ok_or_else(|| wrong(key, name))?),
                None => class.default_token(key).map(|text| AddedToken::from(text, true)),
            };
            named.extend(found.map(|token| (key, token)));
        }
        let mut more = Vec::new();
        for key in ["extra_special_tokens", "additional_special_tokens"] {
            if let Some((list, name)) = given(key).filter(|(list, _)| list.is_array()) {
                let list = list.as_array().into_iter().flatten();
                more = list.map(|t| token(t, true).ok_or_else(|| wrong(key, name))).collect::<Result<Vec<_>>>()?;
                break;
            }
        }
        let is_sentinel = |token: &AddedToken| token.content.contains("<extra_id_");
        if class == Class::T5 && !more.iter().any(is_sentinel) {
            let count = config.get("extra_ids").and_then(Value::as_u64).unwrap_or(100).min(1000);
            more.extend((0..count).map(|i| AddedToken::from(format!("<extra_id_{i}>"), true)));
        }

        let mut numbered: BTreeMap<u64, AddedToken> = BTreeMap::new();
        if let Some(list) = config.get("added_tokens_decoder") {
            for (id, value) in list.as_object().into_iter().flatten() {
                let found = id.parse().ok().zip(token(value, false));
                let (id, token) = found.ok_or_else(|| wrong(&format!("added_tokens_decoder.{id}"), CONFIG))?;
                numbered.insert(id, token);
            }
        } else {
            for (text, id) in object(dir, ADDED_TOKENS)?.unwrap_or_default() {
                let special = named.values().chain(&more).any(|token| token.content == text);
                numbered
                    .insert(id.as_u64().ok_or_else(|| wrong(&text, ADDED_TOKENS))?, AddedToken::from(text, special));
            }
            numbered.extend(document.added_tokens.iter().map(|t| (u64::from(t.id), t.token.clone())));
        }
        let names: HashSet<String> = named.values().map(|token| token.content.clone()).collect();
        let mut added: Vec<AddedToken> = numbered.into_values().collect();
        let mut seen: HashSet<String> = added.iter().map(|token| token.content.clone()).collect();
        if class == Class::File {
            seen.extend(file.get_added_tokens_decoder().into_values().map(|token| token.content));
        }
        let rest = NAMED.iter().filter_map(|key| named.get(key)).chain(&more);
        added.extend(rest.filter(|token| seen.insert(token.content.clone())).cloned());
        for token in &mut added {
            token.special |= names.contains(&token.content);
        }
        Ok(Self { class, config, named, added, notes })
    }

    /// A setting that is true or false.
    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.config.get(key)?.as_bool()
    }

    /// The end at which texts are cut: by `tokenizer_config.json`, else as `tokenizer.json` does.
    pub(super) fn side(&self, file: Option<TruncationDirection>, dir: &Path) -> Result<TruncationDirection> {
        match self.config.get("truncation_side") {
            None | Some(Value::Null) => Ok(file.unwrap_or(TruncationDirection::Right)),
            Some(side) if side == "right" => Ok(TruncationDirection::Right),
            Some(side) if side == "left" => Ok(TruncationDirection::Left),
            Some(other) => Err(Error::new(format!("truncation_side: expected \"left\" or \"right\", found {other}"))
                .at(dir.join(CONFIG).display())),
        }
    }

    /// Whether the model is told which text of a pair a token is from.
    pub(super) fn types(&self) -> bool {
        match self.config.get("model_input_names").and_then(Value::as_array) {
            Some(names) => names.iter().any(|name| name == "token_type_ids"),
            None => self.class == Class::Bert { types: true },
        }
    }

    /// `model_max_length`, unless it is the large number that stands for none.
    pub(super) fn longest(&self) -> Option<usize> {
        let length = self.config.get("model_max_length").or(self.config.get("max_len"))?.as_f64()?;
        (1.0..1e9).contains(&length).then_some(length as usize)
    }

    /// The text and id of the special token of this name, else of the one for unknown text.
    pub(super) fn id(&self, tokenizer: &Tokenizer, name: &str) -> Option<(String, u32)> {
        let id = |key: &str| {
            let text = &self.named.get(key)?.content;
            Some((text.clone(), tokenizer.token_to_id(text)?))
        };
        id(name).or_else(|| id("unk_token"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::changed;
    use super::*;

    #[test]
    fn settings_of_another_kind_are_refused_by_name() {
        for (key, value, name) in [
            ("do_lower_case", json!("no"), CONFIG),
            ("strip_accents", json!(1), CONFIG),
            ("truncation_side", json!("up"), CONFIG),
            ("cls_token", json!(3), CONFIG),
            ("added_tokens_decoder", json!({"-1": {"content": "x"}}), CONFIG),
            ("added_tokens_decoder", json!({"1": {"text": "x"}}), CONFIG),
        ] {
            let error = changed("bert", |files| files[CONFIG] = json!({key: value})).unwrap_err().to_string();
            assert!(error.starts_with(key) && error.contains(name), "{error}");
        }
        let error = changed("bert", |files| files[CONFIG] = json!([])).unwrap_err().to_string();
        assert!(error.starts_with("expected a JSON object: ") && error.contains(CONFIG), "{error}");
        assert!(changed("bert", |files| files[CONFIG] = json!({"extra_ids": 1e18, "model_max_length": 1e30})).is_ok());
    }
}
