//! Labels as a model writes them, and its answers as labels.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use colrow_tensor::{Error, Result};

use super::wording::{Wording, number};
use crate::data::{Examples, Labels, Targets, TokenisedSet, Tokeniser};

/// What the labels become as a model writes them, and back.
///
/// A tokenizer may be unable to write a label: T5's vocabulary has no "<", so that "<5" comes back as "5". What each label comes back as is
/// found out once, here, and an answer that says it is an answer that names the label.
#[derive(Clone, Debug)]
pub struct Answers {
    /// The task in words.
    pub(super) wording: Wording,
    /// The model's tokenizer; none where there are no texts, as in plans, and every answer is then empty.
    tokeniser: Option<Tokeniser>,
    /// Most tokens of an answer, the last one included.
    pub(super) longest: usize,
    /// The token that ends a text.
    eos: u32,
    /// The labels of a classification by class, as they are written.
    written: Vec<Written>,
    /// The label that comes back as this text, where it is another text.
    names: HashMap<String, String>,
}

/// A text as the model learns to write it.
#[derive(Clone, Debug)]
struct Written {
    /// Its tokens with the one that ends it, however many there are.
    ids: Vec<u32>,
    /// What they say.
    says: String,
}

impl Answers {
    /// Answers of at most `longest` tokens, `eos` at their end included.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn new(wording: Wording, tokeniser: Tokeniser, eos: u32, longest: usize) -> Result<Self> {
        let mut answers = Self { tokeniser: Some(tokeniser), eos, ..Self::without_tokeniser(wording, longest) };
        answers.written = answers.write(&answers.wording.words)?;
        let pairs = answers.wording.words.iter().zip(&answers.written);
        let other = pairs.filter(|(word, written)| **word != written.says && !written.says.is_empty());
        answers.names = other.map(|(word, written)| (written.says.clone(), word.clone())).collect();
        Ok(answers)
    }

    /// Answers that nobody reads: all that a plan knows.
    pub fn without_tokeniser(wording: Wording, longest: usize) -> Self {
        Self { wording, tokeniser: None, longest, eos: 0, written: Vec::new(), names: HashMap::new() }
    }

    fn tokeniser(&self) -> Result<&Tokeniser> {
        self.tokeniser.as_ref().ok_or_else(|| Error::new("a text cannot be written without a tokenizer"))
    }

    /// What is wrong with labels that cannot be learned: they come back from their tokens as nothing or as each other, or do not fit.
    pub fn fault(&self) -> Option<Error> {
        let words = &self.wording.words;
        let mut first: HashMap<&str, &str> = HashMap::new();
        let (mut same, mut long) = (Vec::new(), Vec::new());
        for (word, Written { ids, says }) in words.iter().zip(&self.written) {
            if says.is_empty() {
                same.push(format!("{word:?} becomes nothing"));
            } else if let Some(other) = first.insert(says, word) {
                same.push(format!("{other:?} and {word:?} both become {says:?}"));
            }
            if ids.len() > self.longest {
                long.push((ids.len(), word));
            }
        }
        if !same.is_empty() {
            return Some(
                Error::new(format!("labels that the model's tokenizer cannot write apart: {}", some(&same)))
                    .at(self.tokeniser.as_ref().map(|t| t.source().display().to_string()).unwrap_or_default())
                    .hint("rename these labels in the data, in characters and words of the model's vocabulary"),
            );
        }
        let (most, _) = long.iter().max()?;
        let list: Vec<_> = long.iter().map(|(n, word)| format!("{word:?} takes {n}")).collect();
        Some(
            Error::usage(format!(
                "data.max_target_length: expected room for every label and the token that ends it, found {}: {}",
                self.longest,
                some(&list)
            ))
            .hint(format!("set data.max_target_length = {most}, or shorten the labels")),
        )
    }

    /// What the user should know of labels that are written otherwise than they read.
    pub fn warning(&self) -> Option<String> {
        let pairs = self.wording.words.iter().zip(&self.written);
        let other = pairs.filter(|(word, Written { says, .. })| *word != says && !says.is_empty());
        let list: Vec<_> = other.map(|(word, Written { says, .. })| format!("{word:?} as {says:?}")).collect();
        (!list.is_empty()).then(|| {
            format!(
                "the model's tokenizer writes {}; answers are read back as the labels here, but not by other programs",
                some(&list)
            )
        })
    }

    /// Sources of at most `max_length` tokens, and with `labels` the targets that are those; targets that [`fault`](Self::fault) finds too
    /// long are cut.
    ///
    /// # Errors
    /// Those of the tokenizer; a number that does not come back from its tokens or does not fit.
    pub fn tokenise(
        &self,
        tokeniser: &Tokeniser,
        examples: &Examples,
        labels: Option<&Labels>,
        max_length: usize,
    ) -> Result<TokenisedSet> {
        let set = tokeniser.tokenise_as(examples, max_length, |e| (Cow::Owned(self.wording.source(e)), None))?;
        let targets = match labels {
            None => return Ok(set),
            Some(Labels::Class(classes)) => {
                self.tokeniser()?;
                classes.iter().map(|&class| self.target(&self.written[class as usize])).collect()
            }
            Some(labels) => self.numbers(examples, labels)?,
        };
        let mut all = Targets { bounds: vec![0], ..Targets::default() };
        for target in targets {
            all.ids.extend(target);
            all.bounds.push(all.ids.len());
        }
        Ok(TokenisedSet { targets: Some(all), ..set })
    }

    /// The targets of numbers, each checked.
    fn numbers(&self, examples: &Examples, labels: &Labels) -> Result<Vec<Vec<u32>>> {
        let texts: Vec<String> = (0..labels.len()).map(|i| self.wording.target(labels, i)).collect();
        let distinct: Vec<String> = texts.iter().collect::<BTreeSet<_>>().into_iter().cloned().collect();
        let written = self.write(&distinct)?;
        let by_text: HashMap<&str, &Written> = distinct.iter().map(String::as_str).zip(&written).collect();
        let target = |(i, text): (usize, &String)| {
            let written = by_text[text.as_str()];
            if number(&written.says) != number(text) {
                let what = format!("the model's tokenizer cannot write {text}: it becomes {:?}", written.says);
                return Err(examples.place(Error::new(what), i).hint("choose a model whose vocabulary has numbers"));
            }
            if written.ids.len() > self.longest {
                let what = format!(
                    "data.max_target_length: expected room for every number and the token that ends it, found {}: {text} takes {}",
                    self.longest,
                    written.ids.len()
                );
                let hint =
                    format!("raise data.max_target_length to {} or more, or round the labels", written.ids.len());
                return Err(examples.place(Error::usage(what), i).hint(hint));
            }
            Ok(self.target(written))
        };
        texts.iter().enumerate().map(target).collect()
    }

    /// Answers in words; what a label comes back as is that label.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn decode(&self, answers: &[Vec<u32>]) -> Result<Vec<String>> {
        let Some(tokeniser) = &self.tokeniser else { return Ok(vec![String::new(); answers.len()]) };
        let name = |text: String| self.names.get(&text).cloned().unwrap_or(text);
        answers.iter().map(|ids| tokeniser.decode(ids).map(name)).collect()
    }

    fn write(&self, texts: &[String]) -> Result<Vec<Written>> {
        let end = |mut ids: Vec<u32>| {
            ids.retain(|&id| id != self.eos);
            let says = self.tokeniser()?.decode(&ids)?;
            ids.push(self.eos);
            Ok(Written { ids, says })
        };
        self.tokeniser()?.texts(texts)?.into_iter().map(end).collect()
    }

    /// What the model learns to write, its end included even where the rest is cut.
    fn target(&self, written: &Written) -> Vec<u32> {
        let mut ids = written.ids.clone();
        if ids.len() > self.longest {
            ids.truncate(self.longest - 1);
            ids.push(self.eos);
        }
        ids
    }
}

/// The first few of a list in words.
fn some(list: &[String]) -> String {
    const SHOWN: usize = 5;
    let more = if list.len() > SHOWN { format!(", and {} more", list.len() - SHOWN) } else { String::new() };
    list[..list.len().min(SHOWN)].join(", ") + &more
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::data::LabelMap;
    use crate::data::tokeniser::tests::{examples, load_files, model};
    use crate::metrics::Predictions;
    use crate::tasks::Task;

    fn targets(answers: &Answers, examples: &Examples, labels: &Labels) -> Result<Vec<Vec<u32>>> {
        let set = answers.tokenise(answers.tokeniser()?, examples, Some(labels), 8)?;
        let Targets { ids, bounds, .. } = set.targets.unwrap();
        Ok(bounds.windows(2).map(|w| ids[w[0]..w[1]].to_vec()).collect())
    }

    const PIECES: [&str; 24] = [
        "<pad>",
        "</s>",
        "<unk>",
        "▁",
        "▁5",
        "5",
        "▁big",
        "▁Big",
        "▁very",
        "▁good",
        "0",
        "1",
        "2",
        "3",
        "4",
        "6",
        "7",
        "8",
        "9",
        ".",
        "-",
        "▁a",
        "▁positive",
        "▁negative",
    ];

    fn tokeniser(pieces: &[&str], lower: bool) -> Tokeniser {
        let special = |(id, token): (usize, &&str)| json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
        let vocab: Vec<_> = pieces.iter().zip(1..).map(|(piece, i)| json!([piece, -f64::from(i) / 8.0])).collect();
        let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": pieces[..3].iter().enumerate().map(special).collect::<Vec<_>>(),
            "normalizer": if lower { json!({"type": "Lowercase"}) } else { json!(null) }, "pre_tokenizer": metaspace,
            "post_processor": null, "decoder": metaspace,
            "model": {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": false},
        });
        let class = if lower { "PreTrainedTokenizerFast" } else { "T5Tokenizer" };
        let class = json!({"tokenizer_class": class}).to_string();
        let files = [("tokenizer.json", file.to_string()), ("tokenizer_config.json", class)];
        let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
        load_files(&files, &model("t5", 24, 1)).unwrap()
    }

    fn labelled(names: &[&str], tokeniser: Tokeniser, longest: usize) -> Answers {
        let wording =
            Wording::new(Task::Classify, &LabelMap::from_names(names.iter().map(|&name| name.to_owned()).collect()));
        Answers::new(wording, tokeniser, 1, longest).unwrap()
    }

    fn fault(names: &[&str], longest: usize) -> String {
        labelled(names, tokeniser(&PIECES, false), longest).fault().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn labels_come_back_from_their_tokens() {
        let answers = labelled(&["<5", "big", "very  good", " a"], tokeniser(&PIECES, false), 8);
        assert!(answers.fault().is_none());
        assert_eq!(
            answers.warning().unwrap(),
            "the model's tokenizer writes \"<5\" as \"5\", \"very  good\" as \"very good\", \" a\" as \"a\"; answers are read back as the \
             labels here, but not by other programs"
        );
        let targets = targets(&answers, &examples(&[("big", None); 4]), &Labels::Class(vec![0, 1, 2, 3])).unwrap();
        assert_eq!(targets, [vec![3, 2, 5, 1], vec![6, 1], vec![8, 9, 1], vec![21, 1]]);
        let said = answers.decode(&targets).unwrap();
        assert_eq!(said, ["<5", "big", "very  good", " a"]);
        assert_eq!(answers.wording.read(&said), Predictions::Classes(vec![0, 1, 2, 3]));
        let plain = labelled(&["big", "Big"], tokeniser(&PIECES, false), 8);
        assert!(plain.fault().is_none() && plain.warning().is_none());
    }

    #[test]
    fn labels_that_cannot_be_learned_are_named() {
        let both = fault(&["<5", ">5", "big"], 8);
        assert!(
            both.starts_with(
                "labels that the model's tokenizer cannot write apart: \"<5\" and \">5\" both become \"5\"\n"
            ),
            "{both}"
        );
        assert!(both.contains("tokenizer.json\n  hint: rename"), "{both}");
        assert!(fault(&["5", "<5"], 8).contains("\"5\" and \"<5\" both become \"5\""));
        assert!(fault(&["big", "</s>"], 8).contains("\"</s>\" becomes nothing"));
        assert!(fault(&["big", "→"], 8).contains("\"→\" becomes nothing"));
        let lower = labelled(&["Big", "big"], tokeniser(&PIECES, true), 8).fault().unwrap().to_string();
        assert!(lower.contains("\"Big\" and \"big\" both become \"big\""), "{lower}");
        let names: Vec<String> = (0..9).map(|i| format!("→{i}←")).chain(["0".into()]).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(fault(&names, 8).contains("\"→0←\" and \"0\" both become \"0\""));
    }

    #[test]
    fn labels_that_do_not_fit_are_named() {
        assert_eq!(fault(&["very good", "big"], 3), "");
        let long = fault(&["very good", "big", "very very good"], 2);
        assert!(
            long.starts_with(
                "data.max_target_length: expected room for every label and the token that ends it, found 2: \"very good\" takes 3, \"very \
                 very good\" takes 4\n  hint: set data.max_target_length = 4"
            ),
            "{long}"
        );
        let short = labelled(&["very good", "big"], tokeniser(&PIECES, false), 2);
        assert_eq!(targets(&short, &examples(&[("a", None)]), &Labels::Class(vec![0])).unwrap(), [[8, 1]]);
    }

    #[test]
    fn numbers_come_back_from_their_tokens() {
        let of = |task: Task, pieces: &[&str], longest| {
            let wording = Wording::new(task, &LabelMap::Value);
            Answers::new(wording, tokeniser(pieces, false), 1, longest).unwrap()
        };
        let buckets: Vec<f32> = (0..=25).map(|i| i as f32 / 5.0).collect();
        let texts = examples(&[("a", None); 26]);
        let whole = of(Task::Stsb, &PIECES, 8);
        let written = targets(&whole, &texts, &Labels::Value(buckets.clone())).unwrap();
        let Predictions::Values(read) = whole.wording.read(&whole.decode(&written).unwrap()) else { panic!() };
        assert!(read.iter().zip(&buckets).all(|(read, bucket)| (read - f64::from(*bucket)).abs() < 1e-6), "{read:?}");

        let mut dotless = PIECES;
        dotless[19] = "x";
        let refused = |answers: Answers, values: &[f32]| {
            let labels = Labels::Value(values.to_vec());
            targets(&answers, &examples(&[("a", None); 2]), &labels).unwrap_err().to_string()
        };
        let message = refused(of(Task::Stsb, &dotless, 8), &[1.0, 2.0]);
        assert!(
            message.starts_with("the model's tokenizer cannot write 1.0: it becomes \"10\"\n  in line 1\n"),
            "{message}"
        );
        let message = refused(of(Task::Regress, &PIECES, 5), &[-1.5, 0.125]);
        assert!(
            message.contains("found 5: -1.5 takes 6\n  in line 1") && message.contains("to 6 or more"),
            "{message}"
        );
        let message = refused(of(Task::Regress, &PIECES, 8), &[5.0, 1e-9]);
        assert!(message.contains("found 8: 0.000000001 takes 13\n  in line 2"), "{message}");
    }
}
