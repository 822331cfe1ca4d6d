//! Texts that a model goes on with: each token after those before it, of which some count.

use std::ops::Range;

use colrow_autograd::{Tape, Var};
use colrow_models::config::Config;
use colrow_models::model::Model;
use colrow_tensor::{Error, Result};
use rayon::prelude::*;

use super::{Objective, Outcome};
use crate::data::tokenise::{CHUNK, Odd};
use crate::data::{Batch, Counted, Example, Examples, Labels, Lengths, TokenisedSet, Tokeniser};
use crate::metrics::{Metric, Predictions, TokenCounts};
use crate::score::Evaluation;
use crate::tasks::Task;

/// The loss is the mean cross-entropy of the tokens that count, over a whole step.
///
/// A token counts if a character of it does, by [`Example::counted`]; the first of a sequence never does, as nothing is before it. A text that
/// has not all its special tokens gets those that the tokenizer adds, and the one that ends it counts.
#[derive(Clone, Debug)]
pub struct Causal {
    end: Option<u32>,
}

/// An example as a model gets it.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// Its text.
    pub text: String,
    /// Token ids, as they are cut.
    pub ids: Vec<u32>,
    /// How much each counts in the loss.
    pub weights: Vec<f32>,
    /// Where each stands in the text, in bytes; none of a token that was added.
    pub places: Vec<Range<usize>>,
    /// Tokens that were cut off.
    pub dropped: usize,
}

impl Causal {
    /// Texts that have not their special tokens end with the token `end`.
    pub fn new(end: Option<u32>) -> Self {
        Self { end }
    }

    /// Texts end with the token that the tokenizer's files name for it, or else with the first that the model's do.
    pub fn of(config: &Config, tokeniser: &Tokeniser) -> Self {
        Self::new(tokeniser.end().or_else(|| config.architecture.end_tokens().first().copied()))
    }

    /// An example's tokens, at most `max_length`, cut at the end.
    ///
    /// # Errors
    /// A text that the tokenizer cannot read; an example of another task.
    pub fn show(&self, tokeniser: &Tokeniser, example: &Example, max_length: usize) -> Result<Shown> {
        let Some(counted) = &example.counted else {
            return Err(Error::new("nothing says what counts in this text: it was read for another task"));
        };
        let Counted { ranges, whole } = &**counted;
        let mut tokens = tokeniser.placed(&example.text, !whole, example.line)?;
        let mut weights: Vec<f32> =
            tokens.places.iter().map(|place| if overlaps(place, ranges) { 1.0 } else { 0.0 }).collect();
        if !whole {
            match (tokens.ids.last(), self.end) {
                // the tokenizer ends texts itself
                (Some(last), Some(end)) if *last == end => weights.iter_mut().last().into_iter().for_each(|w| *w = 1.0),
                (_, Some(end)) => {
                    tokens.ids.push(end);
                    tokens.places.push(0..0);
                    weights.push(1.0);
                }
                (_, None) => {}
            }
        }
        if let Some(first) = weights.first_mut() {
            *first = 0.0;
        }
        let dropped = tokens.ids.len().saturating_sub(max_length);
        tokens.ids.truncate(max_length);
        tokens.places.truncate(max_length);
        weights.truncate(max_length);
        Ok(Shown { text: example.text.clone(), ids: tokens.ids, weights, places: tokens.places, dropped })
    }
}

/// Whether a part of `place` is in one of the `ranges`, which are in order.
fn overlaps(place: &Range<usize>, ranges: &[Range<usize>]) -> bool {
    let next = ranges.partition_point(|range| range.end <= place.start);
    !place.is_empty() && ranges.get(next).is_some_and(|range| range.start < place.end)
}

impl Objective for Causal {
    /// Examples of which nothing counts, once they are cut, are left out.
    fn tokenise(
        &self,
        tokeniser: &Tokeniser,
        examples: &Examples,
        _labels: Option<Labels>,
        max_length: usize,
    ) -> Result<TokenisedSet> {
        let mut set = TokenisedSet { bounds: vec![0], weight: Some(Vec::new()), ..TokenisedSet::default() };
        let (mut dropped, mut all) = (0, 0);
        let mut without = Odd::default();
        for (chunk, first) in examples.rows.chunks(CHUNK).zip((0..).step_by(CHUNK)) {
            let shown = chunk.par_iter().map(|example| self.show(tokeniser, example, max_length));
            for (i, shown) in (first..).zip(shown.collect::<Vec<_>>()) {
                let shown = shown.map_err(|e| examples.place(e, i))?;
                set.truncated += usize::from(shown.dropped > 0);
                dropped += shown.dropped;
                all += shown.ids.len() + shown.dropped;
                let counts = shown.weights.iter().any(|&weight| weight > 0.0);
                without.count(i, !counts);
                if counts {
                    set.ids.extend(shown.ids);
                    set.weight.iter_mut().for_each(|all| all.extend(&shown.weights));
                    set.bounds.push(set.ids.len());
                }
            }
        }
        (set.types, set.special) = (vec![0; set.ids.len()], vec![false; set.ids.len()]);
        let rows = examples.rows.len();
        if set.is_empty() {
            let error = Error::new(format!("of {rows} examples none has a token that counts in the loss"));
            let hint = match set.truncated {
                0 => "what counts is what data.train_on says, in conversations the assistant's turns: is there any?"
                    .to_owned(),
                n => format!("{n} of them were cut to {max_length} tokens: raise data.max_length"),
            };
            return Err(examples.in_source(error).hint(hint));
        }
        if set.truncated > 0 {
            set.warnings.push(format!(
                "{} of {rows} examples were cut to {max_length} tokens ({dropped} of {all} tokens left out)",
                set.truncated
            ));
        }
        set.warnings.extend(without.warning("have no token that counts in the loss and are left out", examples));
        Ok(set)
    }

    fn loss(&self, model: &Model, tape: &mut Tape<'_>, batch: &Batch) -> Result<Var> {
        model.next_token_loss(tape, &batch.tokens)
    }

    fn weight(&self, batch: &Batch) -> f64 {
        batch.tokens.total_weight()
    }

    fn evaluate(&self, model: &Model, batch: &Batch) -> Result<Outcome> {
        let scores = model.next_token_scores(&batch.tokens)?;
        let weight = self.weight(batch);
        let (examples, tokens) = (batch.tokens.sequences(), batch.tokens.ids.len());
        let counts = TokenCounts { examples, tokens, labels: scores.labels, right: scores.right };
        Ok(Outcome { predictions: Predictions::Tokens(counts), losses: vec![(scores.loss * weight, weight)] })
    }

    fn metrics(&self) -> &[Metric] {
        Task::Text.metrics(0)
    }

    fn score(&self, predictions: &Predictions, _labels: Option<&Labels>) -> Result<Evaluation> {
        let Predictions::Tokens(counts) = predictions else {
            return Err(Error::new("expected predictions of tokens, found others"));
        };
        let accuracy = counts.right as f64 / counts.labels.max(1) as f64;
        let metrics = vec![(Metric::TokenAccuracy, accuracy)];
        Ok(Evaluation { metrics, examples: counts.examples, tokens: Some(*counts), ..Evaluation::default() })
    }

    /// All tokens count but the first of each sequence: no data of these lengths needs more.
    fn batch_of_lengths(&self, lengths: &Lengths) -> Batch {
        let mut batch = Batch::of_lengths(lengths);
        let mut weight = vec![1.0; batch.tokens.ids.len()];
        for first in batch.tokens.bounds.windows(2).filter(|w| w[0] < w[1]).map(|w| w[0]) {
            weight[first as usize] = 0.0;
        }
        batch.tokens.weight = Some(weight);
        batch
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::chat::{ChatTemplate, Keys, Moment, TrainOn};
    use crate::data::json;
    use crate::data::record::Reading;
    use crate::data::tokeniser::tests::{load_files, model};
    use crate::objective::{Conversations, PlainTexts};

    /// Each character is a token; `<s>` is before texts, and `</s>` ends and pads.
    fn tokeniser(adds_bos: bool) -> Tokeniser {
        let characters = (' '..='~').chain(['é', '\n']).map(String::from);
        let all = ["<s>", "</s>", "<|u|>", "<|a|>"].map(str::to_owned).into_iter().chain(characters);
        let vocab: serde_json::Map<_, _> = all.enumerate().map(|(i, token)| (token, json!(i))).collect();
        let special = |id: u32, token: &str| json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
        let around = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        });
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
            "added_tokens": [special(0, "<s>"), special(1, "</s>"), special(2, "<|u|>"), special(3, "<|a|>")],
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": false},
            "post_processor": if adds_bos { around } else { Value::Null },
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": " "},
        });
        let settings = json!({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": {"content": "</s>"}});
        let files = [("tokenizer.json", file.to_string()), ("tokenizer_config.json", settings.to_string())];
        let files = files.each_ref().map(|(name, text)| (*name, text.as_bytes()));
        load_files(&files, &model("llama", 4 + 95 + 2, 0)).unwrap()
    }

    const TEMPLATE: &str = "<s>{% for m in messages %}<|{{ m.role[0] }}|>{{ m.content }}</s>{% endfor %}\
        {% if add_generation_prompt %}<|a|>{% endif %}";

    fn read(lines: &str, train_on: Option<TrainOn>) -> Result<Examples> {
        let keys = Keys::default();
        let template = ChatTemplate::new(TEMPLATE, Default::default(), Moment::now());
        let special = tokeniser(true).special();
        json::json(lines.as_bytes(), &Conversations { keys: &keys, template, train_on, special })
    }

    /// The tokens that count, as text, of each example.
    fn counted(examples: &Examples, max_length: usize) -> Vec<String> {
        let tokeniser = tokeniser(true);
        let causal = Causal::new(tokeniser.end());
        let one = |example: &Example| {
            let shown = causal.show(&tokeniser, example, max_length).unwrap();
            assert_eq!(shown.ids.len(), shown.weights.len());
            assert_eq!(shown.weights[0], 0.0, "nothing is before the first");
            let counts = shown.ids.iter().zip(&shown.weights).filter(|(_, weight)| **weight == 1.0);
            counts.map(|(&id, _)| tokeniser.token(id).unwrap()).collect()
        };
        examples.rows.iter().map(one).collect()
    }

    const TWO: &str = r#"{"messages": [{"role": "user", "content": "u1"}, {"role": "assistant", "content": "é1"}, {"role": "user", "content": "u2"}, {"role": "assistant", "content": "a2"}]}"#;

    /// The end counts though it is the padding token too, and there is one beginning.
    #[test]
    fn turns_count_with_their_end() {
        let examples = read(TWO, None).unwrap();
        assert_eq!(examples.rows[0].text, "<s><|u|>u1</s><|a|>é1</s><|u|>u2</s><|a|>a2</s>");
        assert_eq!(counted(&examples, 100), ["é1</s>a2</s>"]);
        let set = Causal::new(None).tokenise(&tokeniser(true), &examples, None, 100).unwrap();
        assert_eq!(set.ids.iter().filter(|&&id| id == 0).count(), 1);
        assert_eq!((set.len(), set.bounds, set.labels), (1, vec![0, 17], None));
        assert_eq!(set.weight.unwrap().iter().sum::<f32>(), 6.0);
        assert_eq!(counted(&read(TWO, Some(TrainOn::Last)).unwrap(), 100), ["a2</s>"]);
        let all = counted(&read(TWO, Some(TrainOn::All)).unwrap(), 100);
        assert_eq!(all, ["<|u|>u1</s><|a|>é1</s><|u|>u2</s><|a|>a2</s>"]);
    }

    #[test]
    fn texts_get_their_special_tokens() {
        let texts = json::json("{\"text\": \"ab\"}\n{\"text\": \"c\"}".as_bytes(), &PlainTexts { text: None }).unwrap();
        assert_eq!(counted(&texts, 100), ["ab</s>", "c</s>"]);
        let set = Causal::new(Some(1)).tokenise(&tokeniser(true), &texts, None, 100).unwrap();
        assert_eq!((set.ids[0], set.ids[3], &set.bounds[..]), (0, 1, &[0, 4, 7][..]));
        let bare = Causal::new(Some(1)).tokenise(&tokeniser(false), &texts, None, 100).unwrap();
        assert_eq!((bare.bounds, bare.weight.unwrap()), (vec![0, 3, 5], vec![0.0, 1.0, 1.0, 0.0, 1.0]));
        let completion = read("{\"prompt\": \"Q:\", \"completion\": \" A\"}", None).unwrap();
        assert_eq!(counted(&completion, 100), [" A</s>"]);
        let all = read("{\"prompt\": \"Q:\", \"completion\": \" A\"}", Some(TrainOn::All)).unwrap();
        assert_eq!(counted(&all, 100), ["Q: A</s>"]);
    }

    #[test]
    fn what_is_long_is_cut_at_the_end_and_what_has_no_label_is_left_out() {
        let short = TWO.replace("u1", "a question");
        let examples = read(&format!("{TWO}\n{short}\n{TWO}"), None).unwrap();
        let cut = |length| Causal::new(None).tokenise(&tokeniser(true), &examples, None, length);
        let set = cut(10).unwrap();
        assert_eq!((set.len(), set.truncated, &set.bounds[..]), (2, 3, &[0, 10, 20][..]));
        assert_eq!(
            set.warnings,
            [
                "3 of 3 examples were cut to 10 tokens (29 of 59 tokens left out)",
                "1 of 3 examples have no token that counts in the loss and are left out; the first is in line 2",
            ]
        );
        let error = cut(4).unwrap_err().to_string();
        assert!(error.starts_with("of 3 examples none has a token that counts in the loss"), "{error}");
        assert!(error.contains("3 of them were cut to 4 tokens: raise data.max_length"), "{error}");
        let user = r#"{"messages": [{"role": "user", "content": "u"}]}"#;
        let error = Causal::new(None).tokenise(&tokeniser(true), &read(user, None).unwrap(), None, 99).unwrap_err();
        assert!(
            error.to_string().contains("what data.train_on says, in conversations the assistant's turns"),
            "{error}"
        );
    }

    #[test]
    fn a_token_counts_if_a_part_of_it_does() {
        let ranges = [2..4, 8..9];
        let counts: Vec<bool> =
            [0..2, 1..3, 3..5, 4..8, 5..9, 9..12, 3..3].iter().map(|p| overlaps(p, &ranges)).collect();
        assert_eq!(counts, [false, true, true, false, true, false, false]);
    }

    #[test]
    fn forms_of_records_become_conversations() {
        let text = |line: &str| read(line, None).map(|e| e.rows[0].text.clone()).map_err(|e| e.to_string());
        let share = r#"{"id": 1, "conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]}"#;
        assert_eq!(text(share).unwrap(), "<s><|u|>u</s><|a|>a</s>");
        let alpaca = r#"{"instruction": "I", "input": "J", "output": "a"}"#;
        assert_eq!(text(alpaca).unwrap(), "<s><|u|>I\n\nJ</s><|a|>a</s>");
        let second = format!("{}\n{alpaca}", r#"{"instruction": "I", "output": "a"}"#);
        let both = read(&second, None).unwrap();
        assert_eq!(
            both.rows.iter().map(|e| e.text.as_str()).collect::<Vec<_>>(),
            ["<s><|u|>I</s><|a|>a</s>", "<s><|u|>I\n\nJ</s><|a|>a</s>"]
        );
        assert_eq!(counted(&both, 99), ["a</s>", "a</s>"]);
        let lists =
            r#"{"prompt": [{"role": "user", "content": "u"}], "completion": [{"role": "assistant", "content": "a"}]}"#;
        assert_eq!(counted(&read(lists, None).unwrap(), 99), ["a</s>"]);
        for (lines, expected) in [
            (
                "{\"a\": 1}",
                "expected the columns messages, or conversations, or prompt and completion, or instruction and output, for task chat, found columns: a\n  in line 1\n  hint: name the columns",
            ),
            ("{\"text\": \"x\"}", "plain texts are read by task = \"text\""),
            (
                "{\"messages\": [{\"role\": \"user\", \"content\": \"u\"}, {\"role\": \"assistant\", \"content\": \"\"}]}",
                "message 2 (assistant) is empty: there is nothing to learn from it\n  in line 1",
            ),
            (
                "{\"messages\": [{\"content\": \"u\"}]}\n{\"messages\": [{\"content\": \"u\"}]}",
                "message 1 has no role; found keys: content\n  in lines 1, 2",
            ),
            ("{\"conversations\": [{\"from\": \"bing\", \"value\": \"u\"}]}", "message 1 is from \"bing\""),
            ("{\"prompt\": \"x\", \"completion\": \" \"}", "the completion is empty"),
        ] {
            let message = read(lines, None).unwrap_err().to_string();
            assert!(message.contains(expected), "{lines}: {message}");
        }
        let error = read(TWO, Some(TrainOn::Completion)).unwrap_err().to_string();
        assert!(error.contains("\"completion\" is for prompts and completions"), "{error}");
        let keys = Keys::default();
        let lines = Conversations { keys: &keys, template: Err(Error::new("none")), train_on: None, special: vec![] };
        assert!(lines.lines().unwrap_err().to_string().contains("found lines of text alone"));
        let error = json::json(TWO.as_bytes(), &lines).unwrap_err().to_string();
        assert_eq!(error, "none\n  in line 1");
        let completion = "{\"prompt\": \"Q\", \"completion\": \"A\"}";
        assert!(json::json(completion.as_bytes(), &lines).is_ok(), "texts need no template");
    }

    #[test]
    fn roles_that_few_templates_know_are_told_once() {
        let line = |role: &str| {
            json!({"messages": [{"role": role, "content": "u"}, {"role": "assistant", "content": "a"}]}).to_string()
        };
        let told = |roles: &[&str]| {
            let lines: Vec<String> = roles.iter().map(|role| line(role)).collect();
            read(&lines.join("\n"), None).unwrap().warnings()
        };
        assert_eq!(
            told(&["user", "asistant", "bot"]),
            [
                "some messages have a role that few templates know, such as \"asistant\", and only what the assistant says counts; the first is in line 2"
            ]
        );
        assert!(told(&["user", "tool"]).is_empty());
    }

    #[test]
    fn keys_of_a_recipe_name_columns_and_roles() {
        let keys = Keys {
            messages: Some("talk".into()),
            role: Some("who".into()),
            content: Some("said".into()),
            roles: [("bot".to_owned(), "assistant".to_owned())].into(),
            ..Keys::default()
        };
        let template = ChatTemplate::new(TEMPLATE, Default::default(), Moment::now());
        let reading = Conversations { keys: &keys, template, train_on: None, special: tokeniser(true).special() };
        let line = r#"{"messages": 3, "talk": [{"who": "user", "said": "u"}, {"who": "bot", "said": "a"}]}"#;
        let read = json::json(line.as_bytes(), &reading).unwrap();
        assert_eq!(counted(&read, 99), ["a</s>"]);
        let error = json::json(TWO.as_bytes(), &reading).unwrap_err().to_string();
        assert!(error.contains("no column \"talk\" (the recipe's data.messages); found columns: messages"), "{error}");
    }
}
