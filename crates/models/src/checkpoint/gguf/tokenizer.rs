//! A vocabulary as the files of a folder: `tokenizer.json`, `tokenizer_config.json`, `generation_config.json`.

use std::path::{Path, PathBuf};

use colrow_tensor::{Error, Result};
use serde_json::{Map, Value as Json, json};

use super::pieces;
use super::pre::Pre;
use super::vocabulary::{Kind, Model, Vocabulary, too_large};
use crate::checkpoint::names::TOKENIZER_FILE;
use crate::files::{io_error, read, read_json_bytes};
use crate::generation::GENERATION_CONFIG_FILE;

/// What `transformers` makes of a tokenizer beside `tokenizer.json`.
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// How the model answers unless told otherwise.
/// A chat template in a file of its own.
pub(super) const TEMPLATE_FILE: &str = "chat_template.jinja";

/// More than any `tokenizer.json` needs.
const MOST_TOKENIZER_BYTES: u64 = 1 << 28;

impl Vocabulary {
    /// `tokenizer.json`.
    pub(super) fn tokenizer_json(&self) -> Json {
        let added = |(id, token): (usize, &Option<(String, Kind)>)| match token {
            Some((text, kind @ (Kind::Control | Kind::User | Kind::Unknown))) if self.is_added(*kind) => {
                Some(json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": *kind != Kind::User}))
            }
            _ => None,
        };
        let added: Vec<_> = self.tokens.iter().enumerate().filter_map(added).collect();
        let vocab: Map<String, Json> = (self.tokens.iter().enumerate())
            .filter_map(|(id, token)| Some((token.as_ref()?.0.clone(), json!(id))))
            .collect();
        let mut model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false});
        let (normalizer, pre_tokenizer, sizes, merges) = match &self.model {
            Model::Bytes { pre, merges } => {
                model["ignore_merges"] = pre.ignores_merges().into();
                let sizes =
                    json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
                (pre.normalizer(), pre.to_json(), sizes, merges.clone())
            }
            Model::Pieces { scores, space_prefix } => {
                model["unk_token"] = self.unknown.and_then(|id| self.text(id)).into();
                model["fuse_unk"] = true.into();
                model["byte_fallback"] = true.into();
                let merges = pieces::merges(&self.tokens, scores).into_iter().map(|(a, b)| format!("{a} {b}"));
                (spaces(*space_prefix), Json::Null, spaces_back(*space_prefix), merges.collect())
            }
        };
        model["vocab"] = vocab.into();
        model["merges"] = merges.into();
        json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer, "post_processor": self.around(), "decoder": sizes, "model": model})
    }

    fn is_added(&self, kind: Kind) -> bool {
        match self.model {
            Model::Bytes { .. } => kind != Kind::Unknown,
            Model::Pieces { .. } => true,
        }
    }

    /// What puts tokens around texts.
    fn around(&self) -> Json {
        let bos = self.bos.filter(|_| self.add_bos);
        let eos = self.ends.first().copied().filter(|_| self.add_eos);
        if bos.is_none() && eos.is_none() {
            return Json::Null;
        }
        let token = |id: Option<usize>, side: u32| {
            id.and_then(|id| self.text(id)).map(|text| json!({"SpecialToken": {"id": text, "type_id": side}}))
        };
        let around = |name: &str, side: u32| {
            let text = json!({"Sequence": {"id": name, "type_id": side}});
            [token(bos, side), Some(text), token(eos, side)].into_iter().flatten()
        };
        let mut special = Map::new();
        for id in [bos, eos].into_iter().flatten() {
            let text = self.text(id).unwrap_or_default();
            special.insert(text.to_string(), json!({"id": text, "ids": [id], "tokens": [text]}));
        }
        let single: Vec<_> = around("A", 0).collect();
        let pair: Vec<_> = around("A", 0).chain(around("B", 1)).collect();
        json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special})
    }

    /// `tokenizer_config.json` of a model for texts of at most `context` tokens.
    pub(super) fn tokenizer_config(&self, context: usize) -> Json {
        let mut config = Map::new();
        let mut set = |key: &str, value: Json| config.insert(key.to_string(), value);
        set("tokenizer_class", "PreTrainedTokenizerFast".into());
        let named = [
            ("bos_token", self.bos),
            ("eos_token", self.ends.first().copied()),
            ("unk_token", self.unknown),
            ("pad_token", self.padding),
        ];
        for (key, text) in named.into_iter().filter_map(|(key, id)| Some((key, self.text(id?)?))) {
            set(key, text.into());
        }
        set("add_bos_token", self.add_bos.into());
        set("add_eos_token", self.add_eos.into());
        set("clean_up_tokenization_spaces", false.into());
        set("model_max_length", context.into());
        match &self.templates[..] {
            [] => {}
            [(name, text)] if name == "default" => {
                set("chat_template", text.as_str().into());
            }
            several => {
                let listed = several.iter().map(|(name, text)| json!({"name": name, "template": text}));
                set("chat_template", listed.collect());
            }
        }
        config.into()
    }

    /// The ids of special tokens, as `config.json` and `generation_config.json` say them.
    pub(super) fn ids(&self) -> Map<String, Json> {
        let ends = match self.ends[..] {
            [] => None,
            [end] => Some(json!(end)),
            _ => Some(json!(self.ends)),
        };
        let ids = [
            ("bos_token_id", self.bos.map(Json::from)),
            ("eos_token_id", ends),
            ("pad_token_id", self.padding.map(Json::from)),
        ];
        ids.into_iter().filter_map(|(key, id)| Some((key.to_string(), id?))).collect()
    }

    /// By the files of a folder, whose `config.json` is `config` and whose embedding has `rows`.
    ///
    /// # Errors
    /// A tokenizer that GGUF has no words for; one that is larger than the embedding; files that are not as they should be.
    pub(super) fn of_folder(dir: &Path, config: &Map<String, Json>, rows: usize) -> Result<Self> {
        let (path, tokenizer) = tokenizer_file(dir)?;
        let settings = object(&dir.join(TOKENIZER_CONFIG))?;
        let generation = object(&dir.join(GENERATION_CONFIG_FILE))?;
        let template = dir.join(TEMPLATE_FILE);
        let mut own = Vec::new();
        if template.exists() {
            let text = read_json_bytes(&template)?;
            own.push(("default".to_string(), String::from_utf8_lossy(&text).into_owned()));
        }
        let found = Self::of_json(&tokenizer, &settings, &generation, config, rows, own);
        found.map_err(|e| e.at(path.display()).or_hint("GGUF holds tokenizers of llama.cpp's kinds only"))
    }

    fn of_json(
        tokenizer: &Json,
        settings: &Map<String, Json>,
        generation: &Map<String, Json>,
        config: &Map<String, Json>,
        rows: usize,
        mut templates: Vec<(String, String)>,
    ) -> Result<Self> {
        let model = tokenizer.get("model").unwrap_or(&Json::Null);
        if model.get("type").and_then(Json::as_str) != Some("BPE") {
            let found = model.get("type").and_then(Json::as_str).unwrap_or("none");
            return Err(Error::new(format!("model: expected BPE, found {found}")));
        }
        let in_pieces = model.get("byte_fallback").and_then(Json::as_bool) == Some(true);
        let mut tokens: Vec<Option<(String, Kind)>> = Vec::new();
        let mut put = |text: &str, id: &Json, kind: Kind| {
            let id = id.as_u64().and_then(|id| usize::try_from(id).ok());
            let id = id.ok_or_else(|| Error::new(format!("the token {text:?} has no number")))?;
            if id >= rows {
                return Err(too_large(id + 1, rows));
            }
            if id >= tokens.len() {
                tokens.resize(id + 1, None);
            }
            tokens[id] = Some((text.to_string(), kind));
            Ok(())
        };
        let unknown = model.get("unk_token").and_then(Json::as_str);
        for (text, id) in model.get("vocab").and_then(Json::as_object).into_iter().flatten() {
            let is_byte = text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
            let kind = match () {
                () if in_pieces && unknown == Some(text) => Kind::Unknown,
                () if in_pieces && is_byte => Kind::Byte,
                () => Kind::Normal,
            };
            put(text, id, kind)?;
        }
        for token in tokenizer.get("added_tokens").and_then(Json::as_array).into_iter().flatten() {
            let text = token.get("content").and_then(Json::as_str).unwrap_or_default();
            let special = token.get("special").and_then(Json::as_bool) == Some(true);
            let kind = match () {
                () if in_pieces && unknown == Some(text) => Kind::Unknown,
                () if special => Kind::Control,
                () => Kind::User,
            };
            put(text, token.get("id").unwrap_or(&Json::Null), kind)?;
        }
        let merges = pairs(model.get("merges").and_then(Json::as_array).map_or(&[], Vec::as_slice))?;
        let model = if in_pieces {
            Model::Pieces { scores: pieces::scores(&tokens, &merges), space_prefix: has_space_prefix(tokenizer)? }
        } else {
            let pre = Pre::from_json(tokenizer.get("pre_tokenizer").unwrap_or(&Json::Null))?;
            Model::Bytes { pre, merges: merges.into_iter().map(|(a, b)| format!("{a} {b}")).collect() }
        };
        let id_of = |text: &str| tokens.iter().position(|token| token.as_ref().is_some_and(|(t, _)| t == text));
        // a name is a text, or an object with one
        let named = |key: &str| {
            let name = settings.get(key)?;
            id_of(name.as_str().or_else(|| name.get("content")?.as_str())?)
        };
        let ids = |key: &str| {
            let value = generation.get(key).or_else(|| config.get(key)).unwrap_or(&Json::Null);
            let ids = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
            let ids: Vec<_> = ids.iter().filter_map(|id| usize::try_from(id.as_u64()?).ok()).collect();
            ids.into_iter().filter(|&id| tokens.get(id).is_some_and(Option::is_some))
        };
        let mut ends: Vec<_> = named("eos_token").into_iter().collect();
        for end in ids("eos_token_id") {
            if !ends.contains(&end) {
                ends.push(end);
            }
        }
        let bos = named("bos_token").or_else(|| ids("bos_token_id").next());
        let (add_bos, add_eos) = added_around(tokenizer.get("post_processor").unwrap_or(&Json::Null));
        match settings.get("chat_template") {
            Some(Json::String(text)) if templates.is_empty() => templates.push(("default".into(), text.clone())),
            Some(Json::Array(list)) => {
                for entry in list {
                    let part = |key: &str| entry.get(key).and_then(Json::as_str);
                    if let (Some(name), Some(text)) = (part("name"), part("template"))
                        && !templates.iter().any(|(other, _)| other == name)
                    {
                        templates.push((name.into(), text.into()));
                    }
                }
            }
            _ => {}
        }
        templates.sort_by_key(|(name, _)| name != "default");
        Self {
            model,
            bos,
            unknown: named("unk_token").or_else(|| unknown.and_then(id_of)),
            padding: named("pad_token").or_else(|| ids("pad_token_id").next()),
            add_bos: add_bos && bos.is_some(),
            add_eos: add_eos && !ends.is_empty(),
            ends,
            templates,
            tokens,
        }
        .checked()
    }
}

/// A space is `▁`, and one stands before a text.
fn spaces(prefix: bool) -> Json {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let steps = if prefix { vec![json!({"type": "Prepend", "prepend": "▁"}), replace] } else { vec![replace] };
    json!({"type": "Sequence", "normalizers": steps})
}

fn spaces_back(prefix: bool) -> Json {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

/// Whether a tokenizer of pieces puts a space before texts.
fn has_space_prefix(tokenizer: &Json) -> Result<bool> {
    let part = |key: &str| tokenizer.get(key).unwrap_or(&Json::Null);
    let (normalizer, pre) = (part("normalizer"), part("pre_tokenizer"));
    for prefix in [true, false] {
        if *normalizer == spaces(prefix) && pre.is_null() {
            return Ok(prefix);
        }
    }
    let metaspace = pre.get("type").and_then(Json::as_str) == Some("Metaspace") && normalizer.is_null();
    match pre.get("prepend_scheme").and_then(Json::as_str).filter(|_| metaspace) {
        Some(scheme @ ("first" | "always" | "never")) => Ok(scheme != "never"),
        _ => Err(Error::new(
            "normalizer, pre_tokenizer: GGUF has words for spaces as SentencePiece has them; found others",
        )),
    }
}

/// Merges as texts or as pairs.
fn pairs(merges: &[Json]) -> Result<Vec<(String, String)>> {
    let pair = |merge: &Json| {
        let (a, b) = match merge {
            Json::String(text) => text.split_once(' ')?,
            _ => (merge.get(0)?.as_str()?, merge.get(1)?.as_str()?),
        };
        (!a.contains(' ') && !b.contains(' ')).then(|| (a.to_string(), b.to_string()))
    };
    let found =
        |merge: &Json| pair(merge).ok_or_else(|| Error::new(format!("expected a merge of two tokens, found {merge}")));
    merges.iter().map(found).collect()
}

/// Whether a post-processor puts a token before a text, and one behind it.
fn added_around(processor: &Json) -> (bool, bool) {
    if let Some(several) = processor.get("processors").and_then(Json::as_array) {
        let both = several.iter().map(added_around);
        return both.fold((false, false), |all, one| (all.0 || one.0, all.1 || one.1));
    }
    let single = processor.get("single").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
    let special = |piece: Option<&Json>| piece.is_some_and(|piece| piece.get("SpecialToken").is_some());
    (special(single.first()), special(single.last()))
}

/// `tokenizer.json` of a folder, and where it is.
pub(super) fn tokenizer_file(dir: &Path) -> Result<(PathBuf, Json)> {
    let path = dir.join(TOKENIZER_FILE);
    let bytes = read(&path, MOST_TOKENIZER_BYTES).map_err(|e| io_error("cannot read", &e, &path))?;
    let json = serde_json::from_slice(&bytes)
        .map_err(|e| Error::new(format!("the tokenizer is not as expected: {e}")).at(path.display()))?;
    Ok((path, json))
}

/// The object of a JSON file; an empty one if the file is not there.
fn object(path: &Path) -> Result<Map<String, Json>> {
    if !path.exists() {
        return Ok(Map::new());
    }
    serde_json::from_slice(&read_json_bytes(path)?)
        .map_err(|e| Error::new(format!("expected an object: {e}")).at(path.display()))
}
