//! BPE dropout (Provilkov et al. 2020): merges are left out at random, so that a word is seen in more than one division.
//!
//! The library draws from a generator that cannot be seeded, and draws in evaluation too. Here it is switched off there, and in training the
//! draws are a function of the seed and the example.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use colrow_tensor::rng::Key;
use serde::Deserialize;
use tokenizers::models::bpe::BPE;
use tokenizers::{Encoding, Model, OffsetType, PreTokenizer, Token, Tokenizer};

/// A BPE that leaves out merges.
pub(super) struct BpeDropout {
    /// Probability that a merge is left out.
    share: f64,
    /// The model without any merge.
    parts: BPE,
    /// Rank and result of each merge.
    merges: HashMap<(u32, u32), (u32, u32)>,
}

#[derive(Deserialize)]
struct Written {
    vocab: HashMap<String, u32>,
    merges: Vec<(String, String)>,
}

impl BpeDropout {
    /// The dropout of `bpe`, if it has one.
    pub(super) fn of(bpe: &BPE) -> tokenizers::Result<Option<Self>> {
        let Some(share) = bpe.dropout.filter(|&share| share > 0.0) else { return Ok(None) };
        let Written { vocab, merges } = serde_json::from_value(serde_json::to_value(bpe)?)?;
        let prefix = bpe.continuing_subword_prefix.as_ref().map_or(0, String::len);
        let id = |text: &str| vocab.get(text).copied().ok_or("a merge is not in the vocabulary");
        let merge = |((a, b), rank): ((String, String), u32)| -> tokenizers::Result<_> {
            let merged = format!("{a}{}", b.get(prefix..).unwrap_or_default());
            Ok(((id(&a)?, id(&b)?), (rank, id(&merged)?)))
        };
        let merges = merges.into_iter().zip(0..).map(merge).collect::<tokenizers::Result<_>>()?;
        let mut parts = bpe.clone();
        parts.dropout = Some(1.0);
        Ok(Some(Self { share: f64::from(share), parts, merges }))
    }

    /// Encodes a text without special tokens; the draws are those of `key`.
    pub(super) fn encode(&self, tokenizer: &Tokenizer, text: &str, key: Key) -> tokenizers::Result<Encoding> {
        let added = tokenizer.get_added_vocabulary();
        let mut words = added.extract_and_normalize(tokenizer.get_normalizer(), text);
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut words)?;
        }
        let drawn = Cell::new(0);
        let left_out = || key.uniform(drawn.replace(drawn.get() + 1)) < self.share;
        words.tokenize(|word| {
            let tokens = self.merge(self.parts.tokenize(word.get())?, left_out);
            let named = |(id, offsets)| Token::new(id, tokenizer.id_to_token(id).unwrap_or_default(), offsets);
            Ok(tokens.into_iter().map(named).collect())
        })?;
        words.into_encoding(None, 0, OffsetType::Byte)
    }

    /// Merges neighbours, the best rank first. Each time, every merge that could be next is left out with the given probability.
    fn merge(&self, parts: Vec<Token>, left_out: impl Fn() -> bool) -> Vec<(u32, (usize, usize))> {
        let mut parts: Vec<_> = parts.into_iter().map(|token| Some((token.id, token.offsets))).collect();
        let mut next: Vec<usize> = (1..=parts.len()).collect();
        let mut before: Vec<Option<usize>> = (0..parts.len()).map(|i| i.checked_sub(1)).collect();
        let candidate = |parts: &[Option<(u32, _)>], i: usize, j: usize| {
            let pair = (parts[i]?.0, parts.get(j).copied().flatten()?.0);
            self.merges.get(&pair).map(|&(rank, id)| Reverse((rank, i, j, pair, id)))
        };
        let mut queue: BinaryHeap<_> = (0..parts.len()).filter_map(|i| candidate(&parts, i, i + 1)).collect();
        let mut skipped = Vec::new();
        while let Some(merge) = queue.pop() {
            let Reverse((_, i, j, pair, id)) = merge;
            // one of the two may have merged with another since
            let current =
                next[i] == j && parts[i].is_some_and(|p| p.0 == pair.0) && parts[j].is_some_and(|p| p.0 == pair.1);
            if !current {
                continue;
            }
            if left_out() {
                skipped.push(merge);
                continue;
            }
            queue.extend(skipped.drain(..));
            let ((_, (start, _)), (_, (_, end))) = (parts[i].unwrap_or_default(), parts[j].unwrap_or_default());
            (parts[i], parts[j], next[i]) = (Some((id, (start, end))), None, next[j]);
            if let Some(after) = before.get_mut(next[i]) {
                *after = Some(i);
            }
            queue.extend(candidate(&parts, i, next[i]));
            queue.extend(before[i].and_then(|h| candidate(&parts, h, i)));
        }
        parts.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Merges of the letters a to d into "abcd", and the tokenizer without dropout.
    fn letters(share: f64) -> (BpeDropout, Tokenizer) {
        let vocab = ["a", "b", "c", "d", "ab", "cd", "abcd", "bc"];
        let vocab: HashMap<_, _> = vocab.iter().zip(0..).collect();
        let file = |dropout| {
            json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
                   "model": {"type": "BPE", "dropout": dropout, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                             "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab,
                             "merges": [["a", "b"], ["c", "d"], ["ab", "cd"], ["b", "c"]]}})
        };
        let bpe = serde_json::from_str(&file(json!(share))["model"].to_string()).unwrap();
        (BpeDropout::of(&bpe).unwrap().unwrap(), Tokenizer::from_bytes(file(json!(null)).to_string()).unwrap())
    }

    fn ids(share: f64, text: &str, key: u64) -> Vec<u32> {
        let (dropout, tokenizer) = letters(share);
        dropout.encode(&tokenizer, text, Key::new(key)).unwrap().get_ids().to_vec()
    }

    #[test]
    fn the_ends_are_the_library_and_the_letters() {
        let text = "abcd abab dcba bcd abcdabcd";
        let (_, tokenizer) = letters(0.5);
        let whole = tokenizer.encode_fast(text, false).unwrap();
        assert_eq!(ids(1e-12, text, 0), whole.get_ids());
        let letters: Vec<u32> = text.bytes().filter(|b| *b != b' ').map(|b| u32::from(b - b'a')).collect();
        assert_eq!(ids(1.0, text, 0), letters);
        assert_eq!(ids(0.5, "", 0), [0; 0]);
    }

    #[test]
    fn draws_are_those_of_the_key() {
        let text = "abcd ".repeat(40);
        assert_eq!(ids(0.5, &text, 3), ids(0.5, &text, 3));
        assert_ne!(ids(0.5, &text, 3), ids(0.5, &text, 4));
    }

    /// Of "ab" the only merge is left out with the given probability. 4,000 draws at 0.3: the standard deviation of the share is 0.0072.
    #[test]
    fn merges_are_left_out_as_often_as_said() {
        let words = ids(0.3, &"ab ".repeat(4000), 1);
        let split = words.iter().filter(|&&id| id == 0).count() as f64 / 4000.0;
        assert!((split - 0.3).abs() < 4.0 * 0.0072, "{split}");
    }
}
