//! A model's tokenizer at work on one text or pair: to token ids, cut to a maximum length and never padded, and back.
//!
//! What it was made from is in `tokenizer_files`, and whole sets of examples are in `tokenise`.

use super::quietly::quietly;
use super::tokenizer_files::{self, Built};
use super::truncation::longest_first;
use colrow_models::checkpoint::names::TOKENIZER_FILE;
use colrow_models::config::Config;
use colrow_tensor::rng::Key;
use colrow_tensor::{Error, Result};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokenizers::{Encoding, PostProcessor};

/// A model's tokenizer, without the padding and truncation that its files may ask for.
///
/// Every call of the library stands behind a guard: a file that contradicts itself can make it panic at any text.
#[derive(Clone)]
pub struct Tokeniser {
    pub(super) built: Arc<Built>,
    /// Token ids and types of the model.
    sizes: (usize, usize),
    /// In training, what a BPE's dropout draws with.
    key: Option<Key>,
    source: PathBuf,
}

impl fmt::Debug for Tokeniser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokeniser").field("source", &self.source).finish_non_exhaustive()
    }
}

/// The tokens of a text, and where each stands in it.
pub(crate) struct Placed {
    /// Token ids.
    pub(crate) ids: Vec<u32>,
    /// Bytes of the text; none of a token that the tokenizer added.
    pub(crate) places: Vec<Range<usize>>,
}

/// The tokens of one example.
pub(super) struct Encoded {
    /// Token ids.
    pub(super) ids: Vec<u32>,
    /// Token types.
    pub(super) types: Vec<u8>,
    /// Whether the tokenizer added the token.
    pub(super) special: Vec<bool>,
    /// Tokens that were cut off.
    pub(super) dropped: usize,
    /// Whether all tokens of its texts, of which there are some, are unknown.
    pub(super) unknown: bool,
    /// Whether the tokenizer knows types that the model is not given.
    pub(super) untold: bool,
}

impl Tokeniser {
    /// Reads the tokenizer of a model folder as `transformers` does: `tokenizer.json` and the files beside it.
    ///
    /// # Errors
    /// A file that is missing or damaged, with its name.
    pub fn load(dir: &Path, model: &Config) -> Result<Self> {
        let built = Arc::new(tokenizer_files::build(dir, model)?);
        let sizes = (model.architecture.vocab_size(), model.architecture.type_vocab_size());
        Ok(Self { built, sizes, key: None, source: dir.join(TOKENIZER_FILE) })
    }

    /// The tokenizer with the dropout that its file asks for; the draws are those of the seed and of an example's place in its file.
    #[must_use]
    pub fn for_training(&self, seed: u64) -> Self {
        Self { key: Some(Key::new(seed).named("tokenizer")), ..self.clone() }
    }

    /// Its `tokenizer.json`.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// What the user should know of its files, in lines.
    pub fn notes(&self) -> &[String] {
        &self.built.notes
    }

    /// Most tokens of a text that the model was made for (`model_max_length`), where its files say it.
    pub fn longest(&self) -> Option<usize> {
        self.built.longest
    }

    /// Number of special tokens that are added to a text or to a pair.
    pub fn added(&self, pair: bool) -> usize {
        self.built.around.as_ref().map_or(0, |p| p.added_tokens(pair))
    }

    /// Special tokens that have a name, such as `eos_token`, in text.
    pub fn named(&self) -> &BTreeMap<&'static str, String> {
        &self.built.named
    }

    /// The token that ends a text, if the tokenizer's files name one.
    pub fn end(&self) -> Option<u32> {
        self.id(self.built.named.get("eos_token")?)
    }

    /// The texts of all special tokens, in order.
    pub fn special(&self) -> Vec<String> {
        let tokens = quietly(|| self.built.tokenizer.get_added_tokens_decoder()).unwrap_or_default();
        let mut texts: Vec<String> =
            tokens.into_values().filter(|token| token.special).map(|token| token.content).collect();
        texts.sort();
        texts
    }

    /// The token of this text.
    pub fn id(&self, text: &str) -> Option<u32> {
        quietly(|| self.built.tokenizer.token_to_id(text)).flatten()
    }

    /// The token ids of a text that a template has made, which has its special tokens already.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn rendered(&self, text: &str) -> Result<Vec<u32>> {
        self.placed(text, false, 0).map(|placed| placed.ids)
    }

    /// A token's own text.
    pub fn token(&self, id: u32) -> Option<String> {
        quietly(|| self.built.tokenizer.id_to_token(id)).flatten()
    }

    /// The tokens of a text and their places; `around` says whether the tokenizer adds its special tokens, and `line` is the text's place in its
    /// file, by which dropout draws.
    ///
    /// # Errors
    /// A text that the tokenizer cannot read, or that has a token which the model does not have.
    pub(crate) fn placed(&self, text: &str, around: bool, line: u64) -> Result<Placed> {
        let encoding = self.guarded(|tokenizer| {
            let encoding = match self.built.dropout.as_ref().zip(self.key) {
                Some((dropout, key)) => dropout.encode(tokenizer, text, key.child(line).child(0))?,
                None => tokenizer.encode(text, false)?,
            };
            if around { self.surround(encoding, None) } else { Ok(encoding) }
        })?;
        let places = encoding.get_offsets().iter().zip(encoding.get_special_tokens_mask());
        let places = places.map(|(&(start, end), &special)| if special != 0 { 0..0 } else { start..end.max(start) });
        Ok(Placed { places: places.collect(), ids: self.check(encoding.get_ids().to_vec())? })
    }

    /// The token ids of each text, with the special tokens that the tokenizer adds.
    pub fn texts(&self, texts: &[String]) -> Result<Vec<Vec<u32>>> {
        let one = |text: &String| {
            self.guarded(|t| Ok(self.surround(t.encode_fast(text.as_str(), false)?, None)?.get_ids().to_vec()))
                .and_then(|ids| self.check(ids))
        };
        texts.par_iter().map(one).collect()
    }

    /// The text of token ids, without special tokens and surrounding white space.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        Ok(self.guarded(|t| t.decode(ids, true))?.trim().to_owned())
    }

    /// The text of token ids that are a part of a text, without special tokens.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn part(&self, ids: &[u32]) -> Result<String> {
        self.guarded(|t| t.decode(ids, true))
    }

    /// The tokens of a text or a pair, at most `max_length`; `line` is its place in its file, by which dropout draws.
    pub(super) fn tokens(&self, text: &str, pair: Option<&str>, max_length: usize, line: u64) -> Result<Encoded> {
        let room = max_length.saturating_sub(self.added(pair.is_some()));
        let (encoding, dropped) = self.guarded(|tokenizer| {
            let encode = |text: &str, which: u64| match self.built.dropout.as_ref().zip(self.key) {
                Some((dropout, key)) => dropout.encode(tokenizer, text, key.child(line).child(which)),
                None => tokenizer.encode_fast(text, false),
            };
            let text = encode(text, 0)?;
            let pair = pair.map(|pair| encode(pair, 1)).transpose()?;
            let (n1, n2) = (text.len(), pair.as_ref().map_or(0, Encoding::len));
            let (k1, k2) = longest_first(n1, n2, room);
            let pair = pair.map(|pair| {
                let mut pair = self.cut(pair, k2);
                // A tokenizer without post-processor leaves the types as they are.
                pair.set_type_ids(vec![1; k2]);
                pair
            });
            Ok((self.surround(self.cut(text, k1), pair)?, n1 + n2 - k1 - k2))
        })?;
        if encoding.is_empty() {
            return Err(Error::new("the tokenizer makes no token of the text").hint("leave the row out"));
        }
        if encoding.len() > max_length {
            let what = format!("the tokenizer makes {} tokens of at most {max_length}", encoding.len());
            return Err(self
                .failed(&what)
                .hint("its post_processor writes a text or special tokens more often than it says"));
        }
        let special: Vec<bool> = encoding.get_special_tokens_mask().iter().map(|&flag| flag != 0).collect();
        let kinds = encoding.get_type_ids();
        let types = if self.built.types { kinds.to_vec() } else { vec![0; kinds.len()] };
        if let Some(kind) = types.iter().find(|&&kind| kind as usize >= self.sizes.1.min(256)) {
            let what = format!("token type {kind} is not below type_vocab_size = {}", self.sizes.1);
            return Err(self.failed(&what).hint("do tokenizer.json and config.json belong to the same model?"));
        }
        let ids = self.check(encoding.get_ids().to_vec())?;
        let mut own = ids.iter().zip(&special).filter(|&(_, special)| !special).map(|(id, _)| Some(*id)).peekable();
        let unknown = self.built.unknown.is_some() && own.peek().is_some() && own.all(|id| id == self.built.unknown);
        let untold = !self.built.types && self.sizes.1 > 1 && self.sizes.1 < 256 && kinds.iter().any(|&kind| kind > 0);
        Ok(Encoded { types: types.iter().map(|&kind| kind as u8).collect(), ids, special, dropped, unknown, untold })
    }

    /// Puts special tokens around texts.
    fn surround(&self, text: Encoding, pair: Option<Encoding>) -> tokenizers::Result<Encoding> {
        match &self.built.around {
            Some(around) => around.process(text, pair, true),
            None => self.built.tokenizer.post_process(text, pair, true),
        }
    }

    /// Keeps `length` tokens.
    fn cut(&self, mut encoding: Encoding, length: usize) -> Encoding {
        encoding.truncate(length, 0, self.built.side);
        // What was cut off stays attached, and post-processing would combine all of it with all of the other text.
        encoding.take_overflowing();
        encoding
    }

    /// Errors if the model lacks one of the tokens.
    fn check(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        match ids.iter().find(|&&id| id as usize >= self.sizes.0) {
            None => Ok(ids),
            Some(&id) => {
                let text = quietly(|| self.built.tokenizer.id_to_token(id)).flatten();
                let text = text.map_or(String::new(), |text| format!(" ({text:?})"));
                let what = format!("token id {id}{text} is not below vocab_size = {}", self.sizes.0);
                Err(Error::new(what)
                    .at(self.source.display())
                    .hint("do tokenizer.json and config.json belong to the same model?"))
            }
        }
    }

    /// The one way to the library: its errors and panics are errors.
    fn guarded<T>(&self, work: impl FnOnce(&tokenizers::Tokenizer) -> tokenizers::Result<T>) -> Result<T> {
        match quietly(|| work(&self.built.tokenizer)) {
            Some(result) => result.map_err(|e| self.failed(&*e)),
            None => Err(self.failed("its file contradicts itself")),
        }
    }

    fn failed(&self, why: &(impl fmt::Display + ?Sized)) -> Error {
        Error::new(format!("the tokenizer failed: {why}")).at(self.source.display())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::{Example, Examples, TokenisedSet};
    use super::*;
    use serde_json::{Value, json};
    use std::fs;
    use tokenizers::utils::truncation::TruncationParams;

    /// A WordPiece tokenizer of ten tokens; its file asks for padding and truncation.
    pub(in crate::data) fn wordpiece() -> Value {
        let vocab: serde_json::Map<_, _> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "##s", "good", "."]
            .iter()
            .enumerate()
            .map(|(i, token)| (token.to_string(), json!(i)))
            .collect();
        let special = |id: u32, token: &str| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        };
        json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                        "pad_type_id": 0, "pad_token": "[PAD]"},
            "added_tokens": [special(2, "[CLS]"), special(3, "[SEP]")],
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                           "strip_accents": null, "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
            "decoder": null,
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": 100, "vocab": vocab},
        })
    }

    /// A model of `family` with that many tokens and types.
    pub(crate) fn model(family: &str, vocab_size: usize, types: usize) -> Config {
        let json = json!({"model_type": family, "vocab_size": vocab_size, "type_vocab_size": types, "hidden_size": 8, "num_hidden_layers": 1,
                          "num_attention_heads": 2, "intermediate_size": 8, "d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 8,
                          "num_layers": 1, "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0});
        Config::from_json(json.to_string().as_bytes(), Path::new("config.json")).unwrap()
    }

    /// The tokenizer in a folder of these files.
    pub(crate) fn load_files(files: &[(&str, &[u8])], model: &Config) -> Result<Tokeniser> {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, bytes)| fs::write(folder.path().join(name), bytes).unwrap());
        Tokeniser::load(folder.path(), model)
    }

    /// `tokenizer.json` as it is, for a model of ten tokens.
    pub(in crate::data) fn load(json: &Value) -> Result<Tokeniser> {
        let file = json.to_string();
        let class = br#"{"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["token_type_ids"]}"#;
        let files: [(&str, &[u8]); 2] = [(TOKENIZER_FILE, file.as_bytes()), ("tokenizer_config.json", class)];
        load_files(&files, &model("bert", 10, 3))
    }

    pub(crate) fn examples(texts: &[(&str, Option<&str>)]) -> Examples {
        let row = |(&(text, pair), line): (&(&str, Option<&str>), u64)| Example {
            text: text.into(),
            pair: pair.map(str::to_owned),
            line,
            ..Example::default()
        };
        Examples { rows: texts.iter().zip(1..).map(row).collect(), source: "a.csv".into(), ..Examples::default() }
    }

    /// The token ids of example `i`.
    pub(in crate::data) fn tokens(set: &TokenisedSet, i: usize) -> &[u32] {
        &set.ids[set.bounds[i]..set.bounds[i + 1]]
    }

    #[test]
    fn same_ids_as_the_library_encoding_pairs_itself() {
        let mut json = wordpiece();
        let template = json!({"type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 2}}],
            "special_tokens": {"[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}});
        for processor in [json["post_processor"].clone(), template, Value::Null] {
            json["post_processor"] = processor;
            let tokeniser = load(&json).unwrap();
            for max_length in [4, 5, 6, 9, 40] {
                let params = TruncationParams { max_length, ..TruncationParams::default() };
                let mut library = tokeniser.built.tokenizer.clone();
                library.with_post_processor(tokeniser.built.around.clone()).with_truncation(Some(params)).unwrap();
                for (text, pair) in
                    [("a b c a", "good"), ("a", "b b b b b b"), ("a b a b a", "c c c c c"), ("", "a [SEP]")]
                {
                    let want = library.encode((text, pair), true).unwrap();
                    let set = tokeniser.tokenise(&examples(&[(text, Some(pair))]), None, max_length).unwrap();
                    assert_eq!(set.ids, want.get_ids());
                    assert_eq!(set.types, want.get_type_ids().iter().map(|&v| v as u8).collect::<Vec<_>>());
                    assert_eq!(set.special, want.get_special_tokens_mask().iter().map(|&v| v == 1).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn no_sequence_is_empty_or_too_long() {
        let mut json = wordpiece();
        json["post_processor"] = Value::Null;
        let read = |json: &Value, text| load(json).unwrap().tokenise(&examples(&[("a", None), (text, None)]), None, 4);
        let message = read(&json, " ").unwrap_err().to_string();
        assert!(
            message.starts_with("the tokenizer makes no token of the text\n  in line 2\n  in a.csv\n"),
            "{message}"
        );
        let template =
            |single: Value| json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}});
        json["post_processor"] = template(json!([]));
        assert!(read(&json, "a").unwrap_err().to_string().contains("no token"));
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        json["post_processor"] = template(json!([text, text]));
        assert_eq!(read(&json, "a b").unwrap().bounds, [0, 2, 6]);
        let message = read(&json, "a b c").unwrap_err().to_string();
        assert!(message.contains("makes 6 tokens of at most 4\n") && message.contains("line 2"), "{message}");
        // a special token that the template does not define makes the library panic
        json["post_processor"] = template(json!([text, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]));
        let message = read(&json, "a").unwrap_err().to_string();
        assert!(message.contains("contradicts itself") && message.contains("line 1"), "{message}");
        json["post_processor"] = template(json!([text, {"Sequence": {"id": "A", "type_id": 300}}]));
        assert!(read(&json, "a").unwrap_err().to_string().contains("token type 300"));
    }

    #[test]
    fn dropout_is_for_training_and_follows_the_seed() {
        let vocab: serde_json::Map<_, _> =
            ["[UNK]", "g", "o", "go", "d"].iter().zip(0..).map(|(t, i)| (t.to_string(), json!(i))).collect();
        let mut json = wordpiece();
        json["post_processor"] = Value::Null;
        json["model"] = json!({"type": "BPE", "dropout": 0.5, "unk_token": "[UNK]", "continuing_subword_prefix": null, "end_of_word_suffix": null,
                               "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": [["g", "o"]]});
        json["added_tokens"] = json!([]);
        let tokeniser = load(&json).unwrap();
        let texts = examples(&[("go go go go go go go go", Some("go go go go go go go go")); 2]);
        let set = |tokeniser: &Tokeniser| tokeniser.tokenise(&texts, None, 64).unwrap();
        assert_eq!(set(&tokeniser).ids, [3; 32]);
        let (one, two) = (tokeniser.for_training(1), tokeniser.for_training(2));
        assert_eq!(set(&one), set(&one));
        assert_ne!(set(&one), set(&two));
        assert_ne!(tokens(&set(&one), 0), tokens(&set(&one), 1));
        assert!(set(&one).ids.iter().all(|id| (1..4).contains(id)));
    }

    #[test]
    fn a_damaged_file_is_refused_or_used() {
        let good = wordpiece().to_string().into_bytes();
        let class: &[u8] = br#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#;
        let mut refused = 0;
        for i in 0..good.len() {
            for byte in [b'0', b'9', b' '] {
                let mut bytes = good.clone();
                bytes[i] = byte;
                let config = if i % 2 == 0 { class } else { b"{}" };
                let read =
                    load_files(&[(TOKENIZER_FILE, &bytes), ("tokenizer_config.json", config)], &model("bert", 10, 2));
                refused += usize::from(read.is_err());
                let texts = examples(&[("a goods. x", Some("b")), ("", None)]);
                let _ = read.and_then(|t| t.tokenise(&texts, None, 6));
            }
        }
        assert!(refused > good.len(), "{refused}");
    }
}
