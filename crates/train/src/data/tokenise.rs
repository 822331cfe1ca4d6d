//! Texts to token ids: truncated to a maximum length, never padded, stored end to end.

use super::quietly::quietly;
use super::tokenizer_files::{self, Built};
use super::{Example, Examples, Labels};
use colrow_models::checkpoint::names::TOKENIZER_FILE;
use colrow_models::config::Config;
use colrow_tensor::rng::Key;
use colrow_tensor::{Error, Result};
use rayon::prelude::*;
use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokenizers::utils::truncation::TruncationDirection;
use tokenizers::{Encoding, PostProcessor};

/// Texts that are encoded at a time: encodings hold strings and offsets, many times the size of the ids.
const CHUNK: usize = 4096;

/// A model's tokenizer, without the padding and truncation that its files may ask for.
///
/// Every call of the library stands behind a guard: a file that contradicts itself can make it panic at any text.
#[derive(Clone)]
pub struct Tokeniser {
    built: Arc<Built>,
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

/// The tokens of a set of examples, end to end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenisedSet {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Token type of each token: 0, or 1 in the second text of a pair.
    pub types: Vec<u8>,
    /// Whether the tokenizer added the token, such as `[CLS]` and `[SEP]`.
    pub special: Vec<bool>,
    /// Example `i` has the tokens `bounds[i]..bounds[i + 1]`, of which there is at least one.
    pub bounds: Vec<usize>,
    /// The labels, if they are known.
    pub labels: Option<Labels>,
    /// What each example's text is to be answered with, where the objective has texts as targets.
    pub targets: Option<Targets>,
    /// How much each token counts where the loss is over tokens; see [`Tokens::weight`](colrow_models::tokens::Tokens::weight).
    pub weight: Option<Vec<f32>>,
    /// Number of examples that were cut to the maximum length.
    pub truncated: usize,
    /// What the user should know: of truncation, of unknown texts.
    pub warnings: Vec<String>,
}

/// The tokens of a set's targets, end to end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Example `i` has the tokens `bounds[i]..bounds[i + 1]`, of which there is at least one.
    pub bounds: Vec<usize>,
    /// How much each token counts in the loss; without it each as 1.
    pub weight: Option<Vec<f32>>,
}

/// The tokens of one example.
struct Encoded {
    ids: Vec<u32>,
    types: Vec<u8>,
    special: Vec<bool>,
    /// Tokens that were cut off.
    dropped: usize,
    /// Whether all tokens of its texts, of which there are some, are unknown.
    unknown: bool,
    /// Whether the tokenizer knows types that the model is not given.
    untold: bool,
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

    /// Tokenises `examples` in parallel.
    ///
    /// An example longer than `max_length` tokens, special ones included, loses tokens of the longer text until both are equally long, then
    /// of both (longest first, as in `transformers`), at the end unless the tokenizer's files name the other side. `labels` are those of
    /// `examples`.
    ///
    /// # Errors
    /// If `max_length` leaves no room for a token, or if the sizes differ; with its place, an example that the tokenizer cannot read, or
    /// of which it makes no token or one that the model does not have.
    pub fn tokenise(&self, examples: &Examples, labels: Option<Labels>, max_length: usize) -> Result<TokenisedSet> {
        if let Some(labels) = labels.as_ref().filter(|labels| labels.len() != examples.rows.len()) {
            return Err(Error::new(format!("expected {} labels, found {}", examples.rows.len(), labels.len())));
        }
        let set = self.tokenise_as(examples, max_length, |e| (Cow::Borrowed(&e.text), e.pair.as_deref()))?;
        Ok(TokenisedSet { labels, ..set })
    }

    /// As [`tokenise`](Self::tokenise), of the texts that `read` makes of an example.
    pub(crate) fn tokenise_as(
        &self,
        examples: &Examples,
        max_length: usize,
        read: impl Fn(&Example) -> (Cow<'_, str>, Option<&str>) + Sync,
    ) -> Result<TokenisedSet> {
        let rows = &examples.rows;
        let added = self.added(rows.iter().any(|e| read(e).1.is_some()));
        if max_length <= added {
            return Err(Error::usage(format!(
                "expected a maximum length of at least {} tokens, found {max_length}: the tokenizer adds {added} special \
                 tokens to each example",
                added + 1
            )));
        }
        let mut set = TokenisedSet { bounds: vec![0], ..TokenisedSet::default() };
        let (mut dropped, mut untold) = (0, false);
        let (mut unknown, mut long) = (Odd::default(), Odd::default());
        for (chunk, first) in rows.chunks(CHUNK).zip((0..).step_by(CHUNK)) {
            let tokens = chunk.par_iter().map(|example| {
                let (text, pair) = read(example);
                self.tokens(&text, pair, max_length, example.line)
            });
            for (i, tokens) in (first..).zip(tokens.collect::<Vec<_>>()) {
                let tokens = tokens.map_err(|e| examples.place(e, i))?;
                set.truncated += usize::from(tokens.dropped > 0);
                dropped += tokens.dropped;
                untold |= tokens.untold;
                unknown.count(i, tokens.unknown);
                long.count(i, self.built.longest.is_some_and(|longest| tokens.ids.len() > longest));
                set.ids.extend(tokens.ids);
                set.types.extend(tokens.types);
                set.special.extend(tokens.special);
                set.bounds.push(set.ids.len());
            }
        }
        if set.truncated > 0 {
            let side = if self.built.side == TruncationDirection::Left { ", at the start," } else { "" };
            set.warnings.push(format!(
                "{} of {} examples were cut{side} to {max_length} tokens ({dropped} of {} tokens left out)",
                set.truncated,
                set.len(),
                set.ids.len() + dropped
            ));
        }
        set.warnings.extend(unknown.warning("consist of nothing but tokens for unknown text", examples));
        set.warnings.extend(long.warning("are longer than the model_max_length of tokenizer_config.json", examples));
        if untold {
            set.warnings.push(
                "the model is not told which text of a pair a token is from, as in transformers 5: tokenizer_config.json's \
                 model_input_names lacks \"token_type_ids\""
                    .into(),
            );
        }
        Ok(set)
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

    fn tokens(&self, text: &str, pair: Option<&str>, max_length: usize, line: u64) -> Result<Encoded> {
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

/// How many examples are odd in some way, and the first.
#[derive(Default)]
struct Odd {
    number: usize,
    first: usize,
}

impl Odd {
    fn count(&mut self, i: usize, is_odd: bool) {
        if is_odd && self.number == 0 {
            self.first = i;
        }
        self.number += usize::from(is_odd);
    }

    fn warning(&self, how: &str, examples: &Examples) -> Option<String> {
        let all = examples.rows.len();
        (self.number > 0)
            .then(|| format!("{} of {all} examples {how}; the first is in {}", self.number, examples.line(self.first)))
    }
}

/// How many of `n1` and `n2` tokens fit into `room`: the shorter text is whole if it needs at most half.
fn longest_first(n1: usize, n2: usize, room: usize) -> (usize, usize) {
    let half = room / 2;
    if n1 + n2 <= room {
        (n1, n2)
    } else if n1 <= half {
        (n1, room - n1)
    } else if n2 <= half {
        (room - n2, n2)
    } else if n1 > n2 {
        (room - half, half)
    } else {
        (half, room - half)
    }
}

impl TokenisedSet {
    /// Number of examples.
    pub fn len(&self) -> usize {
        self.bounds.len().saturating_sub(1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of tokens of each example.
    pub fn lengths(&self) -> Vec<u32> {
        self.bounds.windows(2).map(|w| (w[1] - w[0]) as u32).collect()
    }

    /// The lengths of the examples' targets, where there are targets.
    pub fn target_lengths(&self) -> Option<Vec<u32>> {
        let targets = self.targets.as_ref()?;
        Some(targets.bounds.windows(2).map(|w| (w[1] - w[0]) as u32).collect())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::fs;
    use tokenizers::utils::truncation::{TruncationParams, truncate_encodings};

    /// A WordPiece tokenizer of ten tokens; its file asks for padding and truncation.
    fn wordpiece() -> Value {
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
    fn load(json: &Value) -> Result<Tokeniser> {
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

    fn tokens(set: &TokenisedSet, i: usize) -> &[u32] {
        &set.ids[set.bounds[i]..set.bounds[i + 1]]
    }

    #[test]
    fn single_texts_without_padding() {
        let examples = examples(&[("Goods.", None), ("", None), ("zzz a", None)]);
        let set = load(&wordpiece()).unwrap().tokenise(&examples, Some(Labels::Class(vec![0, 1, 0])), 128).unwrap();
        assert_eq!(tokens(&set, 0), [2, 8, 7, 9, 3]);
        assert_eq!(tokens(&set, 1), [2, 3]);
        assert_eq!(tokens(&set, 2), [2, 1, 4, 3]);
        assert_eq!((set.lengths(), set.truncated), (vec![5, 2, 4], 0));
        assert_eq!(set.warnings, [""; 0]);
        assert_eq!(set.special[..6], [true, false, false, false, true, true]);
        assert!(set.types.iter().all(|&kind| kind == 0));
        assert_eq!(set.labels, Some(Labels::Class(vec![0, 1, 0])));
    }

    #[test]
    fn pairs_have_types_and_are_cut_longest_first() {
        let tokeniser = load(&wordpiece()).unwrap();
        let pair = examples(&[("a b", Some("c c c c c")), ("a", Some(""))]);
        let set = tokeniser.tokenise(&pair, None, 7).unwrap();
        assert_eq!(tokens(&set, 0), [2, 4, 5, 3, 6, 6, 3]);
        assert_eq!(set.types[..7], [0, 0, 0, 0, 1, 1, 1]);
        assert_eq!(set.special[..7], [true, false, false, true, false, false, true]);
        assert_eq!(tokens(&set, 1), [2, 4, 3, 3]);
        assert_eq!(set.truncated, 1);
        assert_eq!(set.warnings[0], "1 of 2 examples were cut to 7 tokens (3 of 14 tokens left out)");
        // one token of room
        assert_eq!(tokens(&tokeniser.tokenise(&pair, None, 4).unwrap(), 0).len(), 4);
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
    fn more_examples_than_a_chunk_stay_in_order() {
        let text = |i: usize| ["a", "b b", "c c c"][i % 3];
        let texts: Vec<_> = (0..9000).map(|i| (text(i), (i % 2 == 0).then_some("good"))).collect();
        let tokeniser = load(&wordpiece()).unwrap();
        let set = tokeniser.tokenise(&examples(&texts), None, 64).unwrap();
        assert_eq!(set.len(), 9000);
        for i in [0, 1, 4095, 4096, 4097, 8999] {
            assert_eq!(tokens(&set, i), tokeniser.tokenise(&examples(&texts[i..=i]), None, 64).unwrap().ids);
        }
    }

    #[test]
    fn errors() {
        let tokeniser = load(&wordpiece()).unwrap();
        let (single, pair) = (examples(&[("a", None)]), examples(&[("a", Some("b"))]));
        for (examples, least) in [(&single, 3), (&pair, 4)] {
            assert!(tokeniser.tokenise(examples, None, least).is_ok());
            let error = tokeniser.tokenise(examples, None, least - 1).unwrap_err();
            assert_eq!(error.kind(), colrow_tensor::Kind::Usage);
            let want =
                format!("at least {least} tokens, found {}: the tokenizer adds {} special", least - 1, least - 1);
            assert!(error.to_string().contains(&want), "{error}");
        }
        assert!(tokeniser.tokenise(&single, Some(Labels::Value(vec![])), 8).is_err());

        let missing = Tokeniser::load(Path::new("no"), &model("bert", 10, 2)).unwrap_err().to_string();
        assert!(missing.contains("no such file\n  in no/tokenizer.json\n  hint: "), "{missing}");
        for bad in [json!({"version": "1.0"}), json!([]), json!("x")] {
            let message = load(&bad).unwrap_err().to_string();
            assert!(message.contains("cannot be read as a tokenizer.json: ") && message.contains("in /"), "{message}");
        }
    }

    #[test]
    fn tokens_that_the_model_lacks_are_refused_with_their_place() {
        let class = br#"{"do_lower_case": true}"#;
        let file = wordpiece().to_string();
        let files: [(&str, &[u8]); 2] = [(TOKENIZER_FILE, file.as_bytes()), ("tokenizer_config.json", class)];
        let message = |vocab, types| {
            let texts = examples(&[("a", None), ("good", Some("a"))]);
            let set = load_files(&files, &model("bert", vocab, types)).unwrap().tokenise(&texts, None, 8);
            set.err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert_eq!(message(9, 2), "");
        let lacks = message(8, 2);
        assert!(
            lacks.starts_with("token id 8 (\"good\") is not below vocab_size = 8\n") && lacks.contains("in line 2\n"),
            "{lacks}"
        );
        let lacks = message(9, 1);
        assert!(
            lacks.contains("token type 1 is not below type_vocab_size = 1") && lacks.contains("in line 2\n"),
            "{lacks}"
        );
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
    fn unknown_and_long_texts_are_counted() {
        let file = wordpiece().to_string();
        let config = br#"{"model_max_length": 5}"#;
        let files: [(&str, &[u8]); 2] = [(TOKENIZER_FILE, file.as_bytes()), ("tokenizer_config.json", config)];
        let tokeniser = load_files(&files, &model("bert", 10, 2)).unwrap();
        assert_eq!(tokeniser.longest(), Some(5));
        let set = tokeniser
            .tokenise(&examples(&[("a x", None), ("x y", None), ("", None), ("a b c a", None)]), None, 8)
            .unwrap();
        assert_eq!(
            set.warnings,
            [
                "1 of 4 examples consist of nothing but tokens for unknown text; the first is in line 2",
                "1 of 4 examples are longer than the model_max_length of tokenizer_config.json; the first is in line 4",
            ]
        );
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

    proptest! {
        #![proptest_config(super::super::fixed_cases())]

        #[test]
        fn truncation_agrees_with_the_library(n1 in 0..40_usize, n2 in 0..40_usize, room in 1..50_usize) {
            let tokens = |n: usize| {
                let token = |i| tokenizers::Token::new(i as u32, String::new(), (0, 0));
                Encoding::from_tokens((0..n).map(token).collect(), 0)
            };
            let params = TruncationParams { max_length: room, ..TruncationParams::default() };
            let (a, b) = truncate_encodings(tokens(n1), Some(tokens(n2)), &params).unwrap();
            prop_assert_eq!(longest_first(n1, n2, room), (a.len(), b.unwrap().len()));
            let (a, _) = truncate_encodings(tokens(n1), None, &params).unwrap();
            prop_assert_eq!(longest_first(n1, 0, room), (a.len(), 0));
        }

        #[test]
        fn any_text_is_tokenised(text in ".{0,40}", pair in ".{0,40}", max_length in 4..20_usize) {
            let tokeniser = load(&wordpiece()).unwrap();
            let set = tokeniser.tokenise(&examples(&[(text.as_str(), Some(pair.as_str())), (pair.as_str(), None)]), None, max_length).unwrap();
            prop_assert!(set.lengths().iter().all(|&n| (2..=max_length as u32).contains(&n)));
            prop_assert!(set.ids.iter().all(|&id| id < 10));
        }
    }
}
