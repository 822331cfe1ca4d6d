//! Makes training data of the conversations of the chitchat challenge (Myers, Etchart & Fulda 2020).

use std::fmt::Write;

use colrow_tensor::{Error, Result};
use serde_json::{Map, Value, json};

/// Conversations that are held out.
const HELD_OUT: usize = 200;
/// Changing it changes the split, and with it every figure reported on the held-out part.
const SPLIT_SEED: u64 = 0x00c0_110e;
/// Turns below which there is no conversation.
const TURNS: usize = 4;

/// The files, each as its whole text.
#[derive(Debug)]
pub(crate) struct Split {
    /// JSON lines of `{"messages": [{"role", "content"}, …]}`.
    pub(crate) train: String,
    /// As `train`.
    pub(crate) valid: String,
    /// Where the data comes from and how it was made.
    pub(crate) readme: String,
}

/// Splits the published file: an object of conversations by id, each with `messages`: a list of turns, a turn a list of what one of two people
/// wrote before the other answered.
///
/// Whoever begins is the user and the other one the assistant; what a turn holds becomes its lines. Conversations of fewer than four turns, of
/// one person alone or of three, are left out.
///
/// # Errors
/// Bytes that are no such object.
pub(crate) fn split(bytes: &[u8]) -> Result<Split> {
    let all: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(|e| Error::new(format!("expected a JSON object: {e}")))?;
    let found = all.len();
    let mut conversations: Vec<_> =
        all.iter().filter_map(|(id, conversation)| Some((order(id), id, messages(conversation)?))).collect();
    conversations.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
    if conversations.len() <= HELD_OUT {
        let what = format!("expected more than {HELD_OUT} conversations, found {}", conversations.len());
        return Err(Error::new(what));
    }
    let (valid, train) = conversations.split_at(HELD_OUT);
    let lines = |part: &[(u64, &String, Vec<Value>)]| {
        let mut text = String::new();
        for (_, _, messages) in part {
            let _ = writeln!(text, "{}", json!({"messages": messages}));
        }
        text
    };
    let readme = format!(
        "Conversations of two people about whatever they liked.

train.jsonl  {} conversations
valid.jsonl  {HELD_OUT} conversations

Source: the chitchat dataset of the BYU Perception, Control and Cognition
  Laboratory (W. Myers, T. Etchart, N. Fulda. Conversational Scaffolding. 2020),
as distributed in the Python package chitchat-dataset 0.9.0 (MIT licence).

Who begins is the user, the other one the assistant; what somebody wrote before
the other answered are the lines of one message. {} of {found} conversations were
left out: they have fewer than {TURNS} turns, or not two people.
Split: by a fixed hash of the conversation's id; the same on every machine.
",
        train.len(),
        found - conversations.len(),
    );
    Ok(Split { train: lines(train), valid: lines(valid), readme })
}

/// A conversation's messages in turns, if two people have it.
fn messages(conversation: &Value) -> Option<Vec<Value>> {
    let mut people: Vec<&str> = Vec::new();
    let mut messages: Vec<(usize, String)> = Vec::new();
    for said in conversation["messages"].as_array()?.iter().flat_map(|turn| turn.as_array().into_iter().flatten()) {
        let (text, sender) = (said["text"].as_str()?.trim(), said["sender"].as_str()?);
        if text.is_empty() {
            continue;
        }
        let who = people.iter().position(|&p| p == sender).unwrap_or_else(|| {
            people.push(sender);
            people.len() - 1
        });
        match messages.last_mut().filter(|(last, _)| *last == who) {
            Some((_, lines)) => {
                lines.push('\n');
                lines.push_str(text);
            }
            None => messages.push((who, text.to_owned())),
        }
    }
    let message = |(who, text): (usize, String)| {
        let role = if who == 0 { "user" } else { "assistant" };
        json!({"role": role, "content": text})
    };
    (people.len() == 2 && messages.len() >= TURNS).then(|| messages.into_iter().map(message).collect())
}

/// FNV-1a over the id, then the finaliser of SplitMix64, so that ids that differ in one digit end far apart.
pub(crate) fn order(id: &str) -> u64 {
    let fnv = |h: u64, byte: u8| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let mut h = id.bytes().fold(0xcbf2_9ce4_8422_2325 ^ SPLIT_SEED, fnv);
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ (h >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(said: &[(&str, &str)]) -> Value {
        let turns: Vec<_> = said.iter().map(|(sender, text)| json!([{"sender": sender, "text": text}])).collect();
        json!({"messages": turns})
    }

    #[test]
    fn turns_become_messages() {
        let found =
            messages(&conversation(&[("a", "Hi"), ("a", " there "), ("b", "yo"), ("a", ""), ("a", "so"), ("b", "?")]));
        let message = |role: &str, content: &str| json!({"role": role, "content": content});
        let expected = [
            message("user", "Hi\nthere"),
            message("assistant", "yo"),
            message("user", "so"),
            message("assistant", "?"),
        ];
        assert_eq!(found.unwrap(), expected);
        for none in [
            conversation(&[("a", "1"), ("b", "2"), ("a", "3")]),
            conversation(&[("a", "1"), ("a", "2"), ("a", "3"), ("a", "4")]),
            conversation(&[("a", "1"), ("b", "2"), ("c", "3"), ("a", "4")]),
            json!({"messages": [[{"sender": "a"}]]}),
            json!({}),
        ] {
            assert_eq!(messages(&none), None, "{none}");
        }
    }

    #[test]
    fn the_split_is_fixed_and_whole() {
        let all: Map<_, _> = (0..300)
            .map(|i| (format!("id{i}"), conversation(&[("a", &format!("{i}")), ("b", "1"), ("a", "2"), ("b", "3")])))
            .chain([("none".to_owned(), json!({}))])
            .collect();
        let split = split(Value::Object(all).to_string().as_bytes()).unwrap();
        assert_eq!((split.valid.lines().count(), split.train.lines().count()), (200, 100));
        assert!(
            split.readme.contains("train.jsonl  100 conversations") && split.readme.contains("1 of 301 conversations")
        );
        let all: std::collections::BTreeSet<_> = split.valid.lines().chain(split.train.lines()).collect();
        assert_eq!(all.len(), 300);
        let error = super::split(b"{}").unwrap_err().to_string();
        assert!(error.contains("expected more than 200 conversations, found 0"), "{error}");
        assert!(super::split(b"[]").unwrap_err().to_string().contains("expected a JSON object"));
    }
}
