//! What a record says, as messages with role and content: of the OpenAI form (`role`, `content`), of ShareGPT's (`from`, `value`), or by the keys
//! that a recipe names.

use std::collections::BTreeMap;

use colrow_tensor::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a recipe says of how a file names things; the usual names are found without.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// Column with a conversation's messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<String>,
    /// Key of a message with who says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Key of a message with what is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The role that each name in the file stands for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub roles: BTreeMap<String, String>,
    /// Column with what a completion goes on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Column with the completion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion: Option<String>,
}

/// The role of what the model says.
pub(super) const ASSISTANT: &str = "assistant";

/// Roles of published templates.
const ROLES: [&str; 8] = ["system", "developer", "user", ASSISTANT, "tool", "function", "ipython", "environment"];

/// Names of ShareGPT's speakers.
const SHAREGPT: [(&str, &str); 6] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", ASSISTANT),
    (ASSISTANT, ASSISTANT),
    ("system", "system"),
    ("tool", "tool"),
];

/// A conversation, ready for a template.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// Objects with `role`, and `content` unless there are `tool_calls`; without keys that are null.
    pub(super) messages: Vec<Value>,
    pub(super) tools: Option<Value>,
    /// So many messages are the prompt of a completion.
    pub(super) prompt: usize,
}

impl Conversation {
    /// The conversation of a list of messages by the usual keys.
    ///
    /// # Errors
    /// What is no list of messages; a message without role or content.
    pub fn new(messages: Value) -> Result<Self> {
        Self::of(messages, &Keys::default())
    }

    /// The same, by `keys`.
    ///
    /// # Errors
    /// Those of [`Conversation::new`]; a speaker of ShareGPT's that is not known.
    pub fn of(messages: Value, keys: &Keys) -> Result<Self> {
        Self::checked(read(messages, keys)?, 0)
    }

    /// A prompt and its completion, each a text or a list of messages.
    ///
    /// # Errors
    /// Those of [`Conversation::of`].
    pub fn completed(prompt: Value, completion: Value, keys: &Keys) -> Result<Self> {
        let side = |value: Value, role: &str| match value {
            Value::String(text) => Ok(vec![message(role, text)]),
            list => read(list, keys),
        };
        let mut messages = side(prompt, "user")?;
        let prompt = messages.len();
        messages.extend(side(completion, ASSISTANT)?);
        Self::checked(messages, prompt)
    }

    /// The same with tools that the assistant may call: a list, or one in a text of JSON.
    ///
    /// # Errors
    /// What is no list.
    pub fn with_tools(self, tools: Value) -> Result<Self> {
        let parsed = |value: Value| match value {
            Value::String(text) if text.trim().is_empty() => Ok(Value::Null),
            Value::String(text) => serde_json::from_str(&text)
                .map_err(|e| Error::new(format!("tools: expected a list, found a text that is no JSON: {e}"))),
            other => Ok(other),
        };
        let tools = match parsed(tools)? {
            Value::Null => None,
            Value::Array(list) if list.is_empty() => None,
            Value::Array(list) => Some(list.into_iter().map(parsed).collect::<Result<Value>>()?),
            other => return Err(Error::new(format!("tools: expected a list, found {}", kind(&other)))),
        };
        Ok(Self { tools, ..self })
    }

    /// Its messages.
    pub fn messages(&self) -> &[Value] {
        &self.messages
    }

    /// The first role that is none of those that templates usually know.
    pub fn odd_role(&self) -> Option<&str> {
        self.messages.iter().map(role).find(|role| !ROLES.contains(role))
    }

    /// Its tools, if it has any.
    pub fn tools(&self) -> Option<&Value> {
        self.tools.as_ref()
    }

    fn checked(messages: Vec<Value>, prompt: usize) -> Result<Self> {
        if messages.is_empty() {
            return Err(Error::new("a conversation without messages").hint("leave the row out"));
        }
        for (i, message) in messages.iter().enumerate() {
            let is_empty = content(message).is_none_or(|text| text.trim().is_empty());
            if role(message) == ASSISTANT && is_empty && !calls_tools(message) {
                let what = format!("message {} (assistant) is empty: there is nothing to learn from it", i + 1);
                return Err(Error::new(what).hint("leave the turn out, with what it answers, or the row"));
            }
        }
        Ok(Self { messages, tools: None, prompt })
    }
}

/// A message in text.
pub(super) fn message(role: &str, content: String) -> Value {
    let fields = [("role", role.to_owned()), ("content", content)];
    Value::Object(fields.into_iter().map(|(key, text)| (key.to_owned(), Value::String(text))).collect())
}

pub(super) fn role(message: &Value) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn content(message: &Value) -> Option<&str> {
    message.get("content").and_then(Value::as_str)
}

pub(super) fn calls_tools(message: &Value) -> bool {
    message.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty())
}

fn read(messages: Value, keys: &Keys) -> Result<Vec<Value>> {
    let list = match messages {
        Value::Array(list) => list,
        // as some tables hold them
        Value::String(text) if text.trim_start().starts_with('[') => serde_json::from_str(&text)
            .map_err(|e| Error::new(format!("expected a list of messages, found a text that is no JSON: {e}")))?,
        Value::Null => Vec::new(),
        other => return Err(Error::new(format!("expected a list of messages, found {}", kind(&other)))),
    };
    let numbered = list.into_iter().enumerate();
    numbered.map(|(i, message)| one(message, keys).map_err(|what| in_message(i, what))).collect()
}

fn in_message(i: usize, (what, hint): (String, Option<&str>)) -> Error {
    let error = Error::new(format!("message {} {what}", i + 1));
    hint.map_or(error.clone(), |hint| error.hint(hint))
}

/// A message by role and content; or what is wrong with it, and perhaps what to do.
fn one(message: Value, keys: &Keys) -> Result<Value, (String, Option<&'static str>)> {
    const BY_KEY: &str = "name the keys in the recipe: data.role, data.content";
    let Value::Object(fields) = message else {
        return Err((format!("is {}, and not an object with role and content", kind(&message)), None));
    };
    let found = || fields.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let there = |key: &&str| fields.get(*key).is_some_and(|value| !value.is_null());
    let role_key = keys.role.as_deref().or_else(|| ["role", "from"].into_iter().find(there)).filter(there);
    let Some(role_key) = role_key else {
        return Err((format!("has no role; found keys: {}", found()), Some(BY_KEY)));
    };
    let content_key = keys.content.as_deref().or_else(|| {
        let usual = if role_key == "from" { ["value", "content"] } else { ["content", "value"] };
        usual.into_iter().find(there)
    });
    let Some(name) = fields[role_key].as_str() else {
        return Err((format!("has a role that is {}, and not a text", kind(&fields[role_key])), None));
    };
    let role = match keys.roles.get(name) {
        Some(role) => role.as_str(),
        None if role_key == "from" => match SHAREGPT.iter().find(|(other, _)| *other == name) {
            Some((_, role)) => role,
            None => {
                return Err((
                    format!("is from {name:?}, which is not known: human, gpt and system are"),
                    Some("say in the recipe which role it is: [data.roles] human = \"user\", gpt = \"assistant\", …"),
                ));
            }
        },
        None => name,
    };
    let mut all = Map::new();
    all.insert("role".into(), role.into());
    match content_key.and_then(|key| fields.get(key)).filter(|value| !value.is_null()) {
        Some(value) => {
            all.insert("content".into(), text(value).map_err(|what| (what, None))?.into());
        }
        None if there(&"tool_calls") => {}
        None => return Err((format!("({role}) has no content; found keys: {}", found()), Some(BY_KEY))),
    }
    let own = [Some(role_key), content_key, Some("role"), Some("content")];
    let others = fields.iter().filter(|(key, value)| !value.is_null() && !own.contains(&Some(key.as_str())));
    all.extend(others.map(|(key, value)| (key.clone(), value.clone())));
    Ok(Value::Object(all))
}

/// Content that is a text, or a list of parts that are.
fn text(content: &Value) -> Result<String, String> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => parts
            .iter()
            .map(|part| match (part, part.get("text").and_then(Value::as_str)) {
                (Value::String(text), _) => Ok(text.as_str()),
                (_, Some(text)) => Ok(text),
                _ => {
                    let what = part.get("type").and_then(Value::as_str).unwrap_or("no text");
                    Err(format!("has a part of type {what:?}, and only text can be read"))
                }
            })
            .collect(),
        other => Err(format!("has content that is {}, and not a text or a list of texts", kind(other))),
    }
}

/// What a value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn messages(value: Value, keys: &Keys) -> Result<Value, String> {
        Conversation::of(value, keys).map(|c| Value::Array(c.messages)).map_err(|e| e.to_string())
    }

    #[test]
    fn forms_of_messages_become_one() {
        let usual = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
        let none = Keys::default();
        assert_eq!(messages(usual.clone(), &none).unwrap(), usual);
        assert_eq!(messages(usual.to_string().into(), &none).unwrap(), usual);
        let share = json!([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": null}]);
        assert_eq!(messages(share, &none).unwrap(), usual);
        let parts = json!([{"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": ["b"], "tool_calls": null}]);
        assert_eq!(messages(parts, &none).unwrap(), usual);
        let keys = Keys {
            role: Some("who".into()),
            content: Some("said".into()),
            roles: [("bot", "assistant"), ("me", "user")].map(|(a, b)| (a.to_owned(), b.to_owned())).into(),
            ..Keys::default()
        };
        assert_eq!(messages(json!([{"said": "a", "who": "me"}, {"who": "bot", "said": "b"}]), &keys).unwrap(), usual);
        // what the template may read stays
        let call = json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            {"role": "tool", "content": "1", "tool_call_id": "x"}]);
        assert_eq!(messages(call.clone(), &none).unwrap(), call);
        let both = Conversation::completed("a".into(), json!([{"role": "assistant", "content": "b"}]), &none).unwrap();
        assert_eq!((Value::Array(both.messages), both.prompt), (usual, 1));
        let odd = |name: &str| {
            let messages = json!([{"role": "user", "content": "a"}, {"role": name, "content": "b"}]);
            Conversation::new(messages).unwrap().odd_role().map(str::to_owned)
        };
        assert_eq!((odd("asistant"), odd("tool")), (Some("asistant".to_owned()), None));
        let tools =
            |value: Value| Conversation::new(json!([{"role": "user", "content": "a"}])).unwrap().with_tools(value);
        for given in [json!([{"a": 1}]), json!("[{\"a\": 1}]"), json!(["{\"a\": 1}"])] {
            assert_eq!(tools(given).unwrap().tools, Some(json!([{"a": 1}])));
        }
        assert_eq!((tools(json!([])).unwrap().tools, tools(Value::Null).unwrap().tools), (None, None));
        assert!(tools(json!({})).unwrap_err().to_string().contains("tools: expected a list, found an object"));
    }

    #[test]
    fn what_is_no_conversation_is_refused_by_message() {
        for (value, refusal) in [
            (json!([]), "a conversation without messages"),
            (Value::Null, "a conversation without messages"),
            (json!({"role": "user"}), "expected a list of messages, found an object"),
            (json!("hello"), "expected a list of messages, found a string"),
            (json!(["hello"]), "message 1 is a string, and not an object with role and content"),
            (
                json!([{"content": "a", "name": "b"}]),
                "message 1 has no role; found keys: content, name\n  hint: name the keys",
            ),
            (json!([{"role": 1, "content": "a"}]), "message 1 has a role that is a number"),
            (
                json!([{"role": "user", "content": "a"}, {"role": "user"}]),
                "message 2 (user) has no content; found keys: role",
            ),
            (json!([{"role": "user", "content": 3}]), "message 1 has content that is a number"),
            (json!([{"role": "user", "content": [{"type": "image"}]}]), "message 1 has a part of type \"image\""),
            (
                json!([{"from": "human", "value": "a"}, {"from": "bing", "value": "b"}]),
                "message 2 is from \"bing\", which is not known: human, gpt and system are\n  hint: say in the recipe",
            ),
            (
                json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": " \n"}]),
                "message 2 (assistant) is empty",
            ),
        ] {
            let message = messages(value.clone(), &Keys::default()).unwrap_err();
            assert!(message.starts_with(refusal), "{value}: {message}");
        }
    }
}
