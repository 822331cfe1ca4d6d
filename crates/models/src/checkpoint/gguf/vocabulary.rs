//! The tokens of a GGUF file, and how texts become tokens.

use std::collections::HashMap;

use colrow_tensor::{Error, Result};

use super::pre::Pre;
use super::value::{List, Metadata, Value, needed};

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A piece of text.
    Normal,
    /// Stands for what is not in the vocabulary.
    Unknown,
    /// Steers: the end of a turn.
    Control,
    /// A text that is a token wherever it stands.
    User,
    /// Fills a row of the embedding that no token uses.
    Unused,
    /// A byte of what is not in the vocabulary.
    Byte,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Normal, Self::Unknown, Self::Control, Self::User, Self::Unused, Self::Byte];

    /// Its number in files.
    fn number(self) -> i64 {
        Self::ALL.iter().position(|&kind| kind == self).map_or(0, |i| i as i64 + 1)
    }

    fn of_number(number: i64) -> Option<Self> {
        usize::try_from(number - 1).ok().and_then(|i| Self::ALL.get(i).copied())
    }
}

/// How texts become tokens.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Model {
    /// BPE of bytes written as letters.
    Bytes {
        pre: Pre,
        /// Two tokens each, with a space between.
        merges: Vec<String>,
    },
    /// SentencePiece's BPE: the merge whose result scores most comes first.
    Pieces {
        scores: Vec<f32>,
        /// Whether a text begins as if a space stood before it.
        space_prefix: bool,
    },
}

/// A vocabulary in neither format.
#[derive(Clone, Debug, PartialEq)]
pub struct Vocabulary {
    /// By id; rows of the embedding that no token uses are not there.
    pub(super) tokens: Vec<Option<(String, Kind)>>,
    pub(super) model: Model,
    pub(super) bos: Option<usize>,
    pub(super) unknown: Option<usize>,
    pub(super) padding: Option<usize>,
    /// Ends of answers; the first is the tokenizer's own.
    pub(super) ends: Vec<usize>,
    pub(super) add_bos: bool,
    pub(super) add_eos: bool,
    /// By name; the first is "default".
    pub(super) templates: Vec<(String, String)>,
}

/// What no token uses, by its row.
fn unused(id: usize) -> String {
    format!("[PAD{id}]")
}

const TEMPLATE: &str = "tokenizer.chat_template";
const ENDS: [&str; 3] = ["eos", "eot", "eom"];

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

impl Vocabulary {
    /// By the metadata of a file whose embedding has `rows`. What a file leaves open follows from `architecture`.
    ///
    /// # Errors
    /// A tokenizer of another kind; a vocabulary that is larger than the embedding; what is missing or absurd.
    pub fn from_metadata(metadata: &Metadata, rows: usize, architecture: &str) -> Result<Self> {
        let text = |name: &str| metadata.text(&key(name));
        let flag = |name: &str| metadata.flag(&key(name));
        let texts = needed(&key("tokens"), metadata.texts(&key("tokens"))?)?;
        if texts.len() > rows {
            return Err(too_large(texts.len(), rows));
        }
        let kinds = metadata.wholes(&key("token_type"))?.unwrap_or_else(|| vec![1; texts.len()]);
        let found = kinds.len();
        if found != texts.len() {
            return Err(Error::new(format!("{}: expected {} types, found {found}", key("token_type"), texts.len())));
        }
        let token = |(id, (text, &number)): (usize, (&String, &i64))| match Kind::of_number(number) {
            Some(Kind::Unused) if *text == unused(id) => Ok(None),
            Some(kind) => Ok(Some((text.clone(), kind))),
            None => Err(Error::new(format!("{}: expected types from 1 to 6, found {number}", key("token_type")))),
        };
        let tokens = texts.iter().zip(&kinds).enumerate().map(token).collect::<Result<Vec<_>>>()?;
        let model = match needed(&key("model"), text("model")?)? {
            "gpt2" => {
                let pre = match (text("pre")?, architecture) {
                    (Some(name), _) => Pre::of_name(name)?,
                    (None, "qwen2" | "qwen3") => Pre::Qwen2,
                    (None, _) => {
                        let what = "is missing, which says how texts are cut: the file is older than that";
                        return Err(Error::new(format!("{} {what}", key("pre"))));
                    }
                };
                let merges = needed(&key("merges"), metadata.texts(&key("merges"))?)?.to_vec();
                Model::Bytes { pre, merges }
            }
            "llama" => {
                let scores = needed(&key("scores"), metadata.numbers(&key("scores"))?)?.to_vec();
                if scores.len() != texts.len() {
                    let (expected, found) = (texts.len(), scores.len());
                    return Err(Error::new(format!("{}: expected {expected} numbers, found {found}", key("scores"))));
                }
                Model::Pieces { scores, space_prefix: flag("add_space_prefix")?.unwrap_or(true) }
            }
            other => {
                return Err(Error::new(format!("{}: expected gpt2 or llama, found {other:?}", key("model"))));
            }
        };
        let id = |name: &str| {
            let key = key(&format!("{name}_token_id"));
            match metadata.count(&key)? {
                Some(id) if tokens.get(id).is_none_or(Option::is_none) => {
                    Err(Error::new(format!("{key}: no token has the number {id}")))
                }
                id => Ok(id),
            }
        };
        let begins = match &model {
            Model::Bytes { pre, .. } => pre.begins(),
            Model::Pieces { .. } => true,
        };
        let mut ends = Vec::new();
        for name in ENDS {
            ends.extend(id(name)?.filter(|end| !ends.contains(end)));
        }
        let mut templates = Vec::new();
        templates.extend(metadata.text(TEMPLATE)?.map(|text| ("default".to_string(), text.to_string())));
        for name in metadata.texts("tokenizer.chat_templates")?.unwrap_or_default() {
            if let Some(text) = metadata.text(&format!("{TEMPLATE}.{name}"))? {
                templates.push((name.clone(), text.to_string()));
            }
        }
        let bos = id("bos")?;
        Self {
            bos,
            unknown: id("unknown")?,
            padding: id("padding")?,
            add_bos: flag("add_bos_token")?.unwrap_or(begins) && bos.is_some(),
            add_eos: flag("add_eos_token")?.unwrap_or(false) && !ends.is_empty(),
            ends,
            templates,
            tokens,
            model,
        }
        .checked()
    }

    /// That each text is one token, and each merge names tokens.
    pub(super) fn checked(self) -> Result<Self> {
        let mut ids = HashMap::new();
        for (id, (text, _)) in self.tokens.iter().enumerate().filter_map(|(id, token)| Some((id, token.as_ref()?))) {
            if let Some(first) = ids.insert(text.as_str(), id) {
                return Err(Error::new(format!("the tokens {first} and {id} are both {text:?}")));
            }
        }
        if let Model::Bytes { merges, .. } = &self.model {
            let is_token = |text: &str| ids.contains_key(text);
            let named = |merge: &&String| {
                merge.split_once(' ').is_some_and(|(a, b)| is_token(a) && is_token(b) && is_token(&format!("{a}{b}")))
            };
            if let Some(merge) = merges.iter().find(|merge| !named(merge)) {
                return Err(Error::new(format!("the merge {merge:?} is not of two tokens into one")));
            }
        }
        Ok(self)
    }

    /// Puts it into the metadata, with a token for each of the embedding's `rows`.
    pub fn put_into(&self, metadata: &mut Metadata, rows: usize) {
        let mut set = |name: &str, value: Value| metadata.set(key(name), value);
        let padded = |id: usize| self.tokens.get(id).and_then(Option::as_ref);
        let texts = (0..rows).map(|id| padded(id).map_or_else(|| unused(id), |(text, _)| text.clone()));
        set("tokens", texts.collect::<Vec<_>>().into());
        let kinds = (0..rows).map(|id| padded(id).map_or(Kind::Unused, |(_, kind)| *kind).number());
        set("token_type", Value::List(List::Signed(kinds.collect())));
        match &self.model {
            Model::Bytes { pre, merges } => {
                set("model", "gpt2".into());
                set("pre", pre.name().into());
                set("merges", merges.clone().into());
            }
            Model::Pieces { scores, space_prefix } => {
                set("model", "llama".into());
                set("pre", "default".into());
                let mut scores = scores.clone();
                scores.resize(rows, -1e4);
                set("scores", Value::List(List::F32(scores)));
                set("add_space_prefix", (*space_prefix).into());
            }
        }
        let ends = ENDS.into_iter().zip(self.ends.iter().map(|&end| Some(end)));
        for (name, id) in ends.chain([("bos", self.bos), ("unknown", self.unknown), ("padding", self.padding)]) {
            id.into_iter().for_each(|id| set(&format!("{name}_token_id"), id.into()));
        }
        set("add_bos_token", self.add_bos.into());
        set("add_eos_token", self.add_eos.into());
        let (default, named): (Vec<_>, Vec<_>) = self.templates.iter().partition(|(name, _)| name == "default");
        default.into_iter().for_each(|(_, text)| metadata.set(TEMPLATE, text.as_str()));
        if !named.is_empty() {
            metadata.set("tokenizer.chat_templates", named.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
            named.iter().for_each(|(name, text)| metadata.set(format!("{TEMPLATE}.{name}"), text.as_str()));
        }
    }

    /// The text of a token.
    pub(super) fn text(&self, id: usize) -> Option<&str> {
        self.tokens.get(id)?.as_ref().map(|(text, _)| text.as_str())
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.tokens.iter().flatten().count()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// More tokens than rows.
pub(super) fn too_large(tokens: usize, rows: usize) -> Error {
    Error::new(format!("the vocabulary of {tokens} tokens is larger than the embedding, which has {rows} rows"))
        .hint("the tokenizer is of another model")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Metadata {
        let mut m = Metadata::default();
        let tokens = ["<s>", "a", "b", "ab", "[PAD4]", "<x>"].map(str::to_string).to_vec();
        m.set("tokenizer.ggml.tokens", tokens);
        m.set("tokenizer.ggml.token_type", Value::List(List::Signed(vec![3, 1, 1, 1, 5, 4])));
        m.set("tokenizer.ggml.model", "gpt2");
        m.set("tokenizer.ggml.pre", "smollm");
        m.set("tokenizer.ggml.merges", vec!["a b".to_string()]);
        m.set("tokenizer.ggml.bos_token_id", 0);
        m.set("tokenizer.ggml.eos_token_id", 0);
        m.set("tokenizer.ggml.eot_token_id", 5);
        m.set("tokenizer.chat_template", "{{ messages }}");
        m.set("tokenizer.chat_templates", vec!["tools".to_string()]);
        m.set("tokenizer.chat_template.tools", "{{ tools }}");
        m
    }

    #[test]
    fn a_vocabulary_is_the_same_both_ways() {
        let vocabulary = Vocabulary::from_metadata(&metadata(), 8, "llama").unwrap();
        assert_eq!((vocabulary.len(), vocabulary.text(4), vocabulary.text(5)), (5, None, Some("<x>")));
        assert_eq!(vocabulary.ends, [0, 5]);
        let mut again = Metadata::default();
        vocabulary.put_into(&mut again, 8);
        let texts = again.texts("tokenizer.ggml.tokens").unwrap().unwrap();
        assert_eq!(texts[4..], ["[PAD4]", "<x>", "[PAD6]", "[PAD7]"]);
        let mut twice = Vocabulary::from_metadata(&again, 8, "llama").unwrap();
        twice.tokens.truncate(6);
        assert_eq!(twice, vocabulary);
    }

    #[test]
    fn pieces_begin_with_a_token_unless_a_file_says_otherwise() {
        let mut m = metadata();
        m.set("tokenizer.ggml.model", "llama");
        m.set("tokenizer.ggml.scores", Value::List(List::F32(vec![0.0; 6])));
        let vocabulary = Vocabulary::from_metadata(&m, 6, "llama").unwrap();
        assert!(vocabulary.add_bos);
        assert!(matches!(vocabulary.model, Model::Pieces { space_prefix: true, .. }));
        m.set("tokenizer.ggml.add_bos_token", false);
        assert!(!Vocabulary::from_metadata(&m, 6, "llama").unwrap().add_bos);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |name: &str, value: Value| {
            let mut m = metadata();
            m.set(key(name), value);
            Vocabulary::from_metadata(&m, 6, "llama").unwrap_err().to_string()
        };
        for (name, value, expected) in [
            (
                "tokens",
                vec!["a".to_string(); 7].into(),
                "the vocabulary of 7 tokens is larger than the embedding, which has 6 rows",
            ),
            ("tokens", vec!["a".to_string(); 6].into(), "the tokens 0 and 1 are both \"a\""),
            ("token_type", Value::List(List::Signed(vec![1; 5])), "expected 6 types, found 5"),
            ("token_type", Value::List(List::Signed(vec![7; 6])), "expected types from 1 to 6, found 7"),
            ("model", "bert".into(), "expected gpt2 or llama, found \"bert\""),
            ("pre", "tekken".into(), "found \"tekken\""),
            ("merges", vec!["a c".to_string()].into(), "the merge \"a c\" is not of two tokens into one"),
            ("bos_token_id", 9.into(), "tokenizer.ggml.bos_token_id: no token has the number 9"),
        ] {
            let e = with(name, value);
            assert!(e.contains(expected), "{e}");
        }
        let mut m = metadata();
        m.0.remove("tokenizer.ggml.pre");
        assert!(
            Vocabulary::from_metadata(&m, 6, "llama").unwrap_err().what().contains("tokenizer.ggml.pre is missing")
        );
        let qwen = Vocabulary::from_metadata(&m, 6, "qwen2").unwrap();
        assert!(matches!(qwen.model, Model::Bytes { pre: Pre::Qwen2, .. }));
    }
}
