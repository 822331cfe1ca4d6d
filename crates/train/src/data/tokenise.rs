//! Sets of examples to token ids, stored end to end, and what the user should know of them. One text's tokens are `tokeniser`'s.

use super::{Example, Examples, Labels, TokenisedSet, Tokeniser};
use colrow_tensor::{Error, Result};
use rayon::prelude::*;
use std::borrow::Cow;
use tokenizers::utils::truncation::TruncationDirection;

/// Texts that are encoded at a time: encodings hold strings and offsets, many times the size of the ids.
pub(crate) const CHUNK: usize = 4096;

impl Tokeniser {
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
}

/// How many examples are odd in some way, and the first.
#[derive(Default)]
pub(crate) struct Odd {
    number: usize,
    first: usize,
}

impl Odd {
    pub(crate) fn count(&mut self, i: usize, is_odd: bool) {
        if is_odd && self.number == 0 {
            self.first = i;
        }
        self.number += usize::from(is_odd);
    }

    pub(crate) fn warning(&self, how: &str, examples: &Examples) -> Option<String> {
        let all = examples.rows.len();
        (self.number > 0)
            .then(|| format!("{} of {all} examples {how}; the first is in {}", self.number, examples.line(self.first)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokeniser::tests::{examples, load, load_files, model, tokens, wordpiece};
    use super::*;
    use colrow_models::checkpoint::names::TOKENIZER_FILE;
    use proptest::prelude::*;
    use serde_json::json;
    use std::path::Path;

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

    proptest! {
        #![proptest_config(super::super::fixed_cases())]

        #[test]
        fn any_text_is_tokenised(text in ".{0,40}", pair in ".{0,40}", max_length in 4..20_usize) {
            let tokeniser = load(&wordpiece()).unwrap();
            let set = tokeniser.tokenise(&examples(&[(text.as_str(), Some(pair.as_str())), (pair.as_str(), None)]), None, max_length).unwrap();
            prop_assert!(set.lengths().iter().all(|&n| (2..=max_length as u32).contains(&n)));
            prop_assert!(set.ids.iter().all(|&id| id < 10));
        }
    }
}
