//! Texts to token ids: truncated to a maximum length, never padded, stored end to end.

use super::quietly::quietly;
use super::{Example, Labels};
use colrow_models::files;
use colrow_tensor::{Error, Result};
use std::path::{Path, PathBuf};
use tokenizers::utils::truncation::TruncationDirection;
use tokenizers::{Encoding, PostProcessor, Tokenizer};

/// Texts that are encoded at a time: encodings hold strings and offsets, many times the size of the ids.
const CHUNK: usize = 4096;

/// More than any `tokenizer.json` needs: those with a million tokens have some 50 MB.
const MOST_BYTES: u64 = 1 << 30;

/// A model's tokenizer, without the padding and truncation that its file may ask for.
#[derive(Clone, Debug)]
pub struct Tokeniser {
    inner: Tokenizer,
    source: PathBuf,
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
    /// Example `i` has the tokens `bounds[i]..bounds[i + 1]`.
    pub bounds: Vec<usize>,
    /// The labels, if they are known.
    pub labels: Option<Labels>,
    /// Where the labels are texts, example `i` has the tokens `target_bounds[i]..target_bounds[i + 1]` of all their tokens.
    pub target_bounds: Vec<usize>,
    /// Number of examples that were cut to the maximum length.
    pub truncated: usize,
    /// Number of tokens that were cut off.
    pub dropped: usize,
}

impl Tokeniser {
    /// Reads a `tokenizer.json`.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = files::read(path, MOST_BYTES).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::new("no such file").at(path.display()).hint(
                "a model folder needs the tokenizer.json of its fast tokenizer; \
                 AutoTokenizer.from_pretrained(…).save_pretrained(…) writes one",
            ),
            _ => Error::from(e).at(path.display()),
        })?;
        // Its decoding of some parts ends in a panic instead of an error.
        let mut inner = quietly(|| Tokenizer::from_bytes(bytes))
            .unwrap_or_else(|| Err("the file contradicts itself".into()))
            .map_err(|e| Error::new(format!("cannot be read as a tokenizer.json: {e}")).at(path.display()))?;
        let disabled = inner.with_padding(None).with_truncation(None).map(|_| ());
        disabled.map_err(|e| Error::new(e.to_string()).at(path.display()))?;
        Ok(Self { inner, source: path.to_owned() })
    }

    /// Number of special tokens that are added to a text or to a pair.
    pub fn added(&self, pair: bool) -> usize {
        self.inner.get_post_processor().map_or(0, |p| p.added_tokens(pair))
    }

    /// Tokenises `examples` in parallel.
    ///
    /// An example longer than `max_length` tokens, special ones included, loses tokens at the end of the longer text
    /// until both are equally long, then of both (longest first, as in `transformers`). `labels` are those of
    /// `examples`. Errors if `max_length` leaves no room for a token, or if the sizes differ.
    pub fn tokenise(&self, examples: &[Example], labels: Option<Labels>, max_length: usize) -> Result<TokenisedSet> {
        if let Some(labels) = labels.as_ref().filter(|labels| labels.len() != examples.len()) {
            return Err(Error::new(format!("expected {} labels, found {}", examples.len(), labels.len())));
        }
        let added = self.added(examples.iter().any(|e| e.pair.is_some()));
        if max_length <= added {
            return Err(Error::usage(format!(
                "expected a maximum length of at least {} tokens, found {max_length}: the tokenizer adds {added} special \
                 tokens to each example",
                added + 1
            )));
        }
        let mut set = TokenisedSet { bounds: vec![0], labels, ..TokenisedSet::default() };
        for chunk in examples.chunks(CHUNK) {
            let encode = |texts: Vec<&str>| self.inner.encode_batch_fast(texts, false).map_err(|e| self.failed(&*e));
            let mut pairs = encode(chunk.iter().filter_map(|e| e.pair.as_deref()).collect())?.into_iter();
            let texts = encode(chunk.iter().map(|e| e.text.as_str()).collect())?;
            for (text, example) in texts.into_iter().zip(chunk) {
                let pair = example.pair.as_ref().and_then(|_| pairs.next());
                self.append(&mut set, text, pair, max_length)?;
            }
        }
        Ok(set)
    }

    /// The token ids of each text, with the special tokens that the tokenizer adds.
    pub fn texts(&self, texts: &[String]) -> Result<Vec<Vec<u32>>> {
        let mut all = Vec::with_capacity(texts.len());
        for chunk in texts.chunks(CHUNK) {
            let texts: Vec<&str> = chunk.iter().map(String::as_str).collect();
            let encodings = self.inner.encode_batch_fast(texts, true).map_err(|e| self.failed(&*e))?;
            all.extend(encodings.iter().map(|encoding| encoding.get_ids().to_vec()));
        }
        Ok(all)
    }

    /// The text of token ids, without special tokens and surrounding white space.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = self.inner.decode(ids, true).map_err(|e| self.failed(&*e))?;
        Ok(text.trim().to_owned())
    }

    fn append(&self, set: &mut TokenisedSet, text: Encoding, pair: Option<Encoding>, max_length: usize) -> Result<()> {
        let (n1, n2) = (text.len(), pair.as_ref().map_or(0, Encoding::len));
        let room = max_length - self.added(pair.is_some());
        let (k1, k2) = longest_first(n1, n2, room);
        set.truncated += usize::from(k1 + k2 < n1 + n2);
        set.dropped += n1 + n2 - k1 - k2;
        let text = cut(text, k1);
        let pair = pair.map(|pair| {
            let mut pair = cut(pair, k2);
            // A tokenizer without post-processor leaves the types as they are.
            pair.set_type_ids(vec![1; k2]);
            pair
        });
        let encoding = self.inner.post_process(text, pair, true).map_err(|e| self.failed(&*e))?;
        set.ids.extend(encoding.get_ids());
        set.special.extend(encoding.get_special_tokens_mask().iter().map(|&flag| flag != 0));
        for &kind in encoding.get_type_ids() {
            set.types.push(u8::try_from(kind).map_err(|_| self.failed(&format!("token type {kind} is above 255")))?);
        }
        set.bounds.push(set.ids.len());
        Ok(())
    }

    fn failed(&self, why: &(impl std::fmt::Display + ?Sized)) -> Error {
        Error::new(format!("the tokenizer failed: {why}")).at(self.source.display())
    }
}

/// Keeps the first `length` tokens.
fn cut(mut encoding: Encoding, length: usize) -> Encoding {
    encoding.truncate(length, 0, TruncationDirection::Right);
    // What was cut off stays attached, and post-processing would combine all of it with all of the other text.
    encoding.take_overflowing();
    encoding
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

    /// The lengths of the examples' targets, where the labels are texts.
    pub fn target_lengths(&self) -> Option<Vec<u32>> {
        match &self.labels {
            Some(Labels::Text(targets)) => Some(targets.iter().map(|target| target.len() as u32).collect()),
            _ => None,
        }
    }

    /// Errors if a token id or type is outside the model's embedding tables.
    pub fn check_vocab(&self, vocab_size: usize, type_vocab_size: usize) -> Result<()> {
        let hint = "do tokenizer.json and config.json belong to the same model?";
        if let Some(id) = self.ids.iter().max().filter(|&&id| id as usize >= vocab_size) {
            return Err(Error::new(format!("token id {id} is not below vocab_size = {vocab_size}")).hint(hint));
        }
        if let Some(kind) = self.types.iter().max().filter(|&&kind| usize::from(kind) >= type_vocab_size) {
            let what = format!("token type {kind} is not below type_vocab_size = {type_vocab_size}");
            return Err(Error::new(what).hint(hint));
        }
        Ok(())
    }

    /// What the user should know about truncation.
    pub fn warning(&self, max_length: usize) -> Option<String> {
        let total = self.ids.len() + self.dropped;
        (self.truncated > 0).then(|| {
            format!(
                "{} of {} examples were cut to {max_length} tokens ({} of {total} tokens left out)",
                self.truncated,
                self.len(),
                self.dropped
            )
        })
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

    fn load(json: &Value) -> Result<Tokeniser> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        fs::write(&path, json.to_string()).unwrap();
        Tokeniser::load(&path)
    }

    fn example(text: &str, pair: Option<&str>) -> Example {
        Example { text: text.into(), pair: pair.map(str::to_owned), label: None, line: 1, row: 0 }
    }

    fn tokens(set: &TokenisedSet, i: usize) -> &[u32] {
        &set.ids[set.bounds[i]..set.bounds[i + 1]]
    }

    #[test]
    fn single_texts_without_padding() {
        let examples = [example("Goods.", None), example("", None), example("zzz a", None)];
        let set = load(&wordpiece()).unwrap().tokenise(&examples, Some(Labels::Class(vec![0, 1, 0])), 128).unwrap();
        assert_eq!(tokens(&set, 0), [2, 8, 7, 9, 3]);
        assert_eq!(tokens(&set, 1), [2, 3]);
        assert_eq!(tokens(&set, 2), [2, 1, 4, 3]);
        assert_eq!((set.lengths(), set.truncated, set.warning(128)), (vec![5, 2, 4], 0, None));
        assert_eq!(set.special[..6], [true, false, false, false, true, true]);
        assert!(set.types.iter().all(|&kind| kind == 0));
        assert_eq!(set.labels, Some(Labels::Class(vec![0, 1, 0])));
    }

    #[test]
    fn pairs_have_types_and_are_cut_longest_first() {
        let tokeniser = load(&wordpiece()).unwrap();
        let pair = [example("a b", Some("c c c c c")), example("a", Some(""))];
        let set = tokeniser.tokenise(&pair, None, 7).unwrap();
        assert_eq!(tokens(&set, 0), [2, 4, 5, 3, 6, 6, 3]);
        assert_eq!(set.types[..7], [0, 0, 0, 0, 1, 1, 1]);
        assert_eq!(set.special[..7], [true, false, false, true, false, false, true]);
        assert_eq!(tokens(&set, 1), [2, 4, 3, 3]);
        assert_eq!((set.truncated, set.dropped), (1, 3));
        assert_eq!(set.warning(7).unwrap(), "1 of 2 examples were cut to 7 tokens (3 of 14 tokens left out)");
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
                let mut library = tokeniser.inner.clone();
                library.with_truncation(Some(params)).unwrap();
                for (text, pair) in
                    [("a b c a", "good"), ("a", "b b b b b b"), ("a b a b a", "c c c c c"), ("", "a [SEP]")]
                {
                    let want = library.encode((text, pair), true).unwrap();
                    let set = tokeniser.tokenise(&[example(text, Some(pair))], None, max_length).unwrap();
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
        let examples: Vec<_> = (0..9000).map(|i| example(text(i), (i % 2 == 0).then_some("good"))).collect();
        let tokeniser = load(&wordpiece()).unwrap();
        let set = tokeniser.tokenise(&examples, None, 64).unwrap();
        assert_eq!(set.len(), 9000);
        for i in [0, 1, 4095, 4096, 4097, 8999] {
            assert_eq!(tokens(&set, i), tokeniser.tokenise(&examples[i..=i], None, 64).unwrap().ids);
        }
    }

    #[test]
    fn errors() {
        let tokeniser = load(&wordpiece()).unwrap();
        let (single, pair) = ([example("a", None)], [example("a", Some("b"))]);
        for (examples, least) in [(&single, 3), (&pair, 4)] {
            assert!(tokeniser.tokenise(examples, None, least).is_ok());
            let error = tokeniser.tokenise(examples, None, least - 1).unwrap_err();
            assert_eq!(error.kind(), colrow_tensor::Kind::Usage);
            let want =
                format!("at least {least} tokens, found {}: the tokenizer adds {} special", least - 1, least - 1);
            assert!(error.to_string().contains(&want), "{error}");
        }
        assert!(tokeniser.tokenise(&single, Some(Labels::Value(vec![])), 8).is_err());

        let set = tokeniser.tokenise(&[example("good", Some("a"))], None, 8).unwrap();
        assert!(set.check_vocab(9, 2).is_ok());
        let message = set.check_vocab(8, 2).unwrap_err().to_string();
        assert!(message.contains("token id 8 is not below vocab_size = 8"), "{message}");
        assert!(set.check_vocab(9, 1).unwrap_err().to_string().contains("token type 1"));

        let missing = Tokeniser::load(Path::new("no/tokenizer.json")).unwrap_err().to_string();
        assert!(missing.contains("no such file\n  in no/tokenizer.json\n  hint: "), "{missing}");
        for bad in [json!({"version": "1.0"}), json!([]), json!("x")] {
            let message = load(&bad).unwrap_err().to_string();
            assert!(message.contains("cannot be read as a tokenizer.json: ") && message.contains("in /"), "{message}");
        }
    }

    #[test]
    fn a_damaged_file_is_refused_or_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let good = wordpiece().to_string().into_bytes();
        let mut refused = 0;
        for i in 0..good.len() {
            for byte in [b'0', b'9', b' '] {
                let mut bytes = good.clone();
                bytes[i] = byte;
                fs::write(&path, bytes).unwrap();
                let read = Tokeniser::load(&path);
                refused += usize::from(read.is_err());
                let _ = read.and_then(|t| t.tokenise(&[example("a goods. x", Some("b")), example("", None)], None, 6));
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
            let set = tokeniser.tokenise(&[example(&text, Some(&pair)), example(&pair, None)], None, max_length).unwrap();
            prop_assert!(set.lengths().iter().all(|&n| (2..=max_length as u32).contains(&n)));
            prop_assert!(set.check_vocab(10, 2).is_ok());
        }
    }
}
