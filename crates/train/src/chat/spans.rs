//! What of a conversation's text counts in a loss: by characters of the one full rendering.
//!
//! A turn is found by rendering the conversation again with another content in its place and comparing the two: what stands before and behind is
//! the template's and the other turns', whatever the template makes of them. That needs no rendering of the beginning of the conversation to be
//! the beginning of its rendering, which templates that rewrite earlier turns do not give. From there
//! - a turn begins where the generation prompt ends, if the text has that before it: what stands between (`<think>`) the model writes itself;
//! - it ends behind the special token that the template writes behind it.

use std::collections::HashMap;
use std::ops::Range;

use colrow_tensor::{Error, Result, named};
use serde_json::{Value, json};

use super::conversation::{ASSISTANT, Conversation, calls_tools, content, message, role};
use super::marks;
use super::template::{ChatTemplate, Given};

named! {
    /// What of an example counts in the loss.
    TrainOn {
        /// All that the assistant says.
        Assistant = "assistant",
        /// What follows the prompt.
        Completion = "completion",
        /// The assistant's last turn.
        Last = "last",
        /// Everything.
        All = "all",
    }
}

/// A conversation's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// All of it.
    pub text: String,
    /// What counts, in bytes, in order.
    pub counts: Vec<Range<usize>>,
    /// Whether turns count behind which the template writes no special token, so that the model does not learn to end them.
    pub open: bool,
}

impl Conversation {
    /// Its text by `template`, and what of that counts in a loss; `special` are the texts of the tokenizer's special tokens.
    ///
    /// # Errors
    /// What the template refuses; a turn that cannot be found in the text.
    pub fn render(&self, template: &ChatTemplate, train_on: TrainOn, special: &[String]) -> Result<Rendered> {
        rendered(self, template, train_on, special)
    }
}

/// What a turn's content is replaced by: no text has these characters, of Unicode's last private plane.
fn marker(i: usize) -> String {
    format!("\u{10ffe0}{i}\u{10ffe1}")
}

/// See [`Conversation::render`].
pub(super) fn rendered(
    conversation: &Conversation,
    template: &ChatTemplate,
    train_on: TrainOn,
    special: &[String],
) -> Result<Rendered> {
    let Conversation { messages, tools, prompt } = conversation;
    let work = Work { messages, tools: tools.as_ref(), template, special };
    let text = work.run(messages, false)?;
    if text.is_empty() {
        return Err(Error::new("the chat template makes no text of the conversation"));
    }
    let said: Vec<usize> = (0..messages.len()).filter(|&i| role(&messages[i]) == ASSISTANT).collect();
    let turns = match train_on {
        TrainOn::All => return Ok(Rendered { counts: std::iter::once(0..text.len()).collect(), text, open: false }),
        TrainOn::Assistant => &said[..],
        TrainOn::Completion => &said[said.partition_point(|i| i < prompt)..],
        TrainOn::Last => &said[said.len().saturating_sub(1)..],
    };
    if let Some(counts) = work.by_marks(&text, &said, turns)? {
        return Ok(Rendered { text, counts, open: false });
    }
    let counts = match work.all_at_once(&text, turns) {
        Some(found) => found,
        None => turns.iter().map(|&i| work.alone(&text, i)).collect::<Result<Vec<_>>>()?,
    };
    let starts = work.starts(&text, turns, &counts);
    let ends = work.ends(&text, turns, &counts);
    let open = ends.is_none() && !turns.is_empty();
    let ends = ends.unwrap_or_else(|| counts.iter().map(|range| range.end).collect());
    let counts = starts.into_iter().zip(ends).map(|(start, end)| start..end).filter(|range| !range.is_empty());
    Ok(Rendered { counts: counts.collect(), text, open })
}

struct Work<'a> {
    messages: &'a [Value],
    tools: Option<&'a Value>,
    template: &'a ChatTemplate,
    special: &'a [String],
}

impl Work<'_> {
    fn run(&self, messages: &[Value], prompt: bool) -> Result<String> {
        let given = Given { messages, tools: self.tools, documents: None, add_generation_prompt: prompt };
        self.template.run(&given, false)
    }

    /// What the template itself marks, if it does: of the assistant's turns `said`, those of `turns`.
    fn by_marks(&self, text: &str, said: &[usize], turns: &[usize]) -> Result<Option<Vec<Range<usize>>>> {
        if !self.template.marks_generation() {
            return Ok(None);
        }
        let (messages, tools) = (self.messages, self.tools);
        let given = Given { messages, tools, documents: None, add_generation_prompt: false };
        let marked = marks::read(&self.template.run(&given, true)?);
        let marked = marked.filter(|(other, ranges)| other == text && ranges.len() == said.len());
        Ok(marked.map(|(_, ranges)| {
            let ranges = said.iter().zip(ranges).filter(|(turn, range)| turns.contains(turn) && !range.is_empty());
            ranges.map(|(_, range)| range).collect()
        }))
    }

    /// All turns by one more rendering, where the template writes each as it is or without white space around it.
    fn all_at_once(&self, text: &str, turns: &[usize]) -> Option<Vec<Range<usize>>> {
        let mut messages = self.messages.to_vec();
        for &i in turns {
            let fields = messages[i].as_object()?;
            if !fields.keys().all(|key| key == "role" || key == "content") {
                return None;
            }
            messages[i] = message(ASSISTANT, marker(i));
        }
        let marked = self.run(&messages, false).ok()?;
        let (mut pieces, mut rest) = (Vec::new(), marked.as_str());
        for &i in turns {
            let (before, behind) = rest.split_once(&marker(i))?;
            pieces.push(before);
            rest = behind;
        }
        pieces.push(rest);
        let mut ranges = Vec::new();
        let mut place = pieces[0].len();
        if pieces.iter().any(|piece| piece.contains('\u{10ffe0}')) || !text.starts_with(pieces[0]) {
            return None;
        }
        for (k, &i) in turns.iter().enumerate() {
            let content = content(&self.messages[i])?;
            let (rest, next) = (&text[place..], pieces[k + 1]);
            let fits = |content: &&str| {
                let behind = rest.strip_prefix(*content);
                behind
                    .is_some_and(|behind| if k + 1 == turns.len() { behind == next } else { behind.starts_with(next) })
            };
            let content = [content, content.trim_end(), content.trim_start(), content.trim()].into_iter().find(fits)?;
            ranges.push(place..place + content.len());
            place += content.len() + next.len();
        }
        Some(ranges)
    }

    /// One turn by renderings with another in its place.
    fn alone(&self, text: &str, i: usize) -> Result<Range<usize>> {
        let marker = marker(i);
        let with = |form: Value| {
            let mut messages = self.messages.to_vec();
            messages[i] = form;
            let marked = self.run(&messages, false).ok()?;
            let first = marked.find(&marker)?;
            let last = marked.rfind(&marker)? + marker.len();
            Some((marked[..first].to_owned(), marked[last..].to_owned()))
        };
        if let Some((before, behind)) = with(message(ASSISTANT, marker.clone())) {
            let start = common_prefix(text, &before);
            let end = text[start..].strip_suffix(&*behind).map(|rest| start + rest.len());
            // where the template writes something else before it, what it is must be seen
            if let Some(end) = end.filter(|&end| start == before.len() || self.is_within(i, &text[start..end])) {
                return Ok(start..end);
            }
        }
        // a template may not do without calls where their results follow
        if calls_tools(&self.messages[i])
            && let Some((before, behind)) = with(other_calls(&self.messages[i], &marker))
            && text.starts_with(&before)
        {
            let rest = &text[before.len()..];
            return Ok(before.len()..text.len() - common_suffix(rest, &behind));
        }
        Err(Error::new(format!("message {} (assistant) cannot be found in what the chat template writes", i + 1)).hint(
            "the template does not write it as it is; data.train_on = \"all\" counts everything, and {% generation %} in the template says what counts",
        ))
    }

    /// Whether a text has what message `i` says at its end.
    fn is_within(&self, i: usize, text: &str) -> bool {
        let content = content(&self.messages[i]).unwrap_or_default();
        let answer = content.rsplit("</think>").next().unwrap_or_default();
        text.contains(answer.trim())
    }

    /// Where the turns begin that were found at `found`.
    fn starts(&self, text: &str, turns: &[usize], found: &[Range<usize>]) -> Vec<usize> {
        // by the role of the message before
        let mut prompts: HashMap<&str, Option<String>> = HashMap::new();
        let mut least = 0;
        let start = |(&i, range): (&usize, &Range<usize>)| {
            let from = std::mem::replace(&mut least, range.end);
            let Some(before) = i.checked_sub(1).map(|i| &self.messages[i]) else { return range.start };
            let said = content(before).unwrap_or_default().trim();
            if said.is_empty() || from > range.start {
                return range.start;
            }
            let prompt = prompts.entry(role(before)).or_insert_with(|| {
                let text = self.run(&self.messages[..i], true).ok()?;
                Some(text[text.rfind(said)? + said.len()..].to_owned())
            });
            let between = text[from..range.start].rfind(said).map(|place| from + place + said.len());
            let begins =
                between.zip(prompt.as_ref()).filter(|(at, prompt)| text[*at..range.start].starts_with(&***prompt));
            begins.map_or(range.start, |(at, prompt)| at + prompt.len())
        };
        turns.iter().zip(found).map(start).collect()
    }

    /// Where they end, with the special token behind them; `None` if there is none.
    fn ends(&self, text: &str, turns: &[usize], found: &[Range<usize>]) -> Option<Vec<usize>> {
        let (&last, range) = turns.last().zip(found.last())?;
        // what follows a turn behind which nothing is said
        let alone;
        let behind = match last + 1 == self.messages.len() {
            true => &text[range.end..],
            false => {
                let said = content(&self.messages[last])?.trim();
                alone = self.run(&self.messages[..=last], false).ok()?;
                &alone[alone.rfind(said)? + said.len()..]
            }
        };
        let usual = &behind[..self.end_in(behind)?];
        let end = |(&i, range): (&usize, &Range<usize>)| {
            let rest = &text[range.end..];
            if rest.starts_with(usual) {
                return range.end + usual.len();
            }
            // such as the other token behind a call; before the next message's own
            let next = self.messages.get(i + 1).map(|next| content(next).unwrap_or_default().trim());
            let own = match next {
                None => rest,
                Some(next) => &rest[..rest.find(next).unwrap_or(0)],
            };
            range.end + self.end_in(own).unwrap_or(0)
        };
        Some(turns.iter().zip(found).map(end).collect())
    }

    /// The end of the first special token in a text.
    fn end_in(&self, text: &str) -> Option<usize> {
        let places = self.special.iter().filter(|token| !token.is_empty());
        let places =
            places.filter_map(|token| text.find(token.as_str()).map(|at| (at, std::cmp::Reverse(token.len()))));
        places.min().map(|(at, length)| at + length.0)
    }
}

/// The message with other functions called.
fn other_calls(message: &Value, marker: &str) -> Value {
    let mut other = message.clone();
    if let Some(calls) = other.get_mut("tool_calls").and_then(Value::as_array_mut) {
        for call in calls {
            let function = if call.get("function").is_some() { &mut call["function"] } else { call };
            let Some(function) = function.as_object_mut() else { continue };
            function.insert("name".into(), marker.into());
            let arguments = if function.get("arguments").is_some_and(Value::is_string) {
                marker.into()
            } else {
                json!({ marker: marker })
            };
            function.insert("arguments".into(), arguments);
        }
    }
    other
}

/// Bytes of whole characters that two texts end with.
fn common_suffix(a: &str, b: &str) -> usize {
    a.chars().rev().zip(b.chars().rev()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum()
}

/// Bytes of whole characters that two texts begin with.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum()
}
