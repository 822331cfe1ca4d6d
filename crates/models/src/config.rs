//! `config.json` of a BERT: read, checked, and written back with everything else that it held.

use std::path::Path;

use colrow_tensor::{Error, Gelu, Result};
use serde_json::{Map, Value, json};

use crate::files::read_json_bytes;
use crate::hub::CONFIG_FILE;

/// More labels than any classifier here can sensibly have.
const MOST_LABELS: usize = 100_000;
/// More parameters than fit into any machine this is for; below it, no product of sizes overflows.
const MOST_PARAMETERS: u64 = 100_000_000_000;

/// What the classifier's outputs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemType {
    /// One number.
    Regression,
    /// Logits of which one label is right.
    Classification,
}

impl ProblemType {
    const ALL: [(&str, Self); 2] =
        [("regression", Self::Regression), ("single_label_classification", Self::Classification)];
}

/// The configuration of a BERT, with the names and defaults that `transformers` gives them.
#[derive(Clone, Debug, PartialEq)]
pub struct BertConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of encoder layers.
    pub num_hidden_layers: usize,
    /// Heads per layer; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width between the feed-forward linears.
    pub intermediate_size: usize,
    /// Number of word pieces.
    pub vocab_size: usize,
    /// Longest sequence in tokens.
    pub max_position_embeddings: usize,
    /// Number of segments.
    pub type_vocab_size: usize,
    /// Between the feed-forward linears.
    pub hidden_act: Gelu,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f64,
    /// Dropout of embeddings and of each block's output.
    pub hidden_dropout_prob: f64,
    /// Dropout of attention probabilities.
    pub attention_probs_dropout_prob: f64,
    /// Dropout before the classifier; `hidden_dropout_prob` where the file has none.
    pub classifier_dropout: f64,
    /// Standard deviation of new weights.
    pub initializer_range: f64,
    /// The token that pads; nothing is padded here, but exported tokenizers name it.
    pub pad_token_id: usize,
    /// Label names by number.
    pub labels: Vec<String>,
    /// `None` where the file does not say.
    pub problem_type: Option<ProblemType>,
    /// The file as it was, for the keys that are not above.
    original: Map<String, Value>,
}

impl BertConfig {
    /// Reads `config.json` of a model folder.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        Self::from_json(&read_json_bytes(&path)?, &path)
    }

    /// Reads the text of `file`. All that is wrong is in one error, by key.
    pub fn from_json(json: &[u8], file: &Path) -> Result<Self> {
        let at = |what: String| Error::new(what).at(file.display());
        let original: Map<String, Value> =
            serde_json::from_slice(json).map_err(|e| at(format!("expected a JSON object: {e}")))?;
        match original.get("model_type") {
            None | Some(Value::Null) => {}
            Some(Value::String(family)) if family == "bert" => {}
            Some(other) => {
                let other = shown(Some(other));
                return Err(at(format!("config of another family: found model_type {other}; supported: \"bert\"")));
            }
        }
        let mut fields = Fields { json: &original, problems: Vec::new() };
        let config = Self::from_fields(&mut fields);
        let problems = fields.problems;
        if !problems.is_empty() {
            return Err(at(problems.join("\n")));
        }
        Ok(Self { original, ..config })
    }

    fn from_fields(f: &mut Fields<'_>) -> Self {
        const POSITIVE: (&str, fn(f64) -> bool) = ("a number above 0 and at most 1", |x| x > 0.0 && x <= 1.0);
        const PROBABILITY: (&str, fn(f64) -> bool) = ("a number from 0 to below 1", |x| (0.0..1.0).contains(&x));
        let hidden_dropout_prob = f.number("hidden_dropout_prob", 0.1, PROBABILITY);
        let config = Self {
            hidden_size: f.size("hidden_size", None, 1 << 16),
            num_hidden_layers: f.size("num_hidden_layers", None, 1 << 10),
            num_attention_heads: f.size("num_attention_heads", None, 1 << 12),
            intermediate_size: f.size("intermediate_size", None, 1 << 20),
            vocab_size: f.size("vocab_size", None, 1 << 24),
            max_position_embeddings: f.size("max_position_embeddings", Some(512), 1 << 20),
            type_vocab_size: f.size("type_vocab_size", Some(2), 1 << 16),
            hidden_act: f.hidden_act(),
            layer_norm_eps: f.number("layer_norm_eps", 1e-12, POSITIVE),
            hidden_dropout_prob,
            attention_probs_dropout_prob: f.number("attention_probs_dropout_prob", 0.1, PROBABILITY),
            classifier_dropout: f.number("classifier_dropout", hidden_dropout_prob, PROBABILITY),
            initializer_range: f.number("initializer_range", 0.02, POSITIVE),
            pad_token_id: f.pad_token_id(),
            labels: f.labels(),
            problem_type: f.problem_type(),
            original: Map::new(),
        };
        if f.get("position_embedding_type").is_some_and(|v| v != "absolute") {
            f.problem("position_embedding_type", "\"absolute\"");
        }
        for key in ["is_decoder", "add_cross_attention"] {
            if f.get(key).is_some_and(|v| v != false) {
                f.problem(key, "false (an encoder)");
            }
        }
        if !f.problems.is_empty() {
            return config;
        }
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            f.problem("num_attention_heads", &format!("a divisor of hidden_size = {}", config.hidden_size));
        }
        if config.pad_token_id >= config.vocab_size {
            f.problem("pad_token_id", &format!("less than vocab_size = {}", config.vocab_size));
        }
        if config.parameters() > MOST_PARAMETERS {
            let parameters = config.parameters();
            f.problems.push(format!("these sizes make {parameters} parameters; expected at most {MOST_PARAMETERS}"));
        }
        config
    }

    /// Number of outputs of the classifier.
    pub fn num_labels(&self) -> usize {
        self.labels.len()
    }

    /// Width of an attention head.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Number of parameters of the model with pooler and classifier.
    pub fn parameters(&self) -> u64 {
        let wide = |n: usize| n as u64;
        let (d, f, labels) = (wide(self.hidden_size), wide(self.intermediate_size), wide(self.num_labels()));
        let embeddings =
            (wide(self.vocab_size) + wide(self.max_position_embeddings) + wide(self.type_vocab_size) + 2) * d;
        let layer = 4 * (d * d + d) + (f * d + f) + (d * f + d) + 4 * d;
        embeddings + wide(self.num_hidden_layers) * layer + (d * d + d) + labels * (d + 1)
    }

    /// The text of `config.json` for the model as it is now saved: all that was in the file read, with the labels, the problem type, the
    /// architecture and the number type (f32) of what is written.
    pub fn to_json(&self) -> String {
        let mut json = self.original.clone();
        let numbered = || self.labels.iter().enumerate();
        let id2label: Map<_, _> = numbered().map(|(i, label)| (i.to_string(), json!(label))).collect();
        let label2id: Map<_, _> = numbered().map(|(i, label)| (label.clone(), json!(i))).collect();
        json.insert("model_type".to_string(), json!("bert"));
        json.insert("architectures".to_string(), json!(["BertForSequenceClassification"]));
        json.insert("id2label".to_string(), id2label.into());
        json.insert("label2id".to_string(), label2id.into());
        match self.problem_type {
            Some(problem) => {
                let name = ProblemType::ALL.iter().find(|(_, p)| *p == problem).map(|(name, _)| *name);
                json.insert("problem_type".to_string(), json!(name));
            }
            None => _ = json.shift_remove("problem_type"),
        }
        // The number of labels is that of id2label; a second statement of it could contradict.
        for key in ["num_labels", "_num_labels"] {
            json.shift_remove(key);
        }
        for key in ["torch_dtype", "dtype"] {
            if let Some(dtype) = json.get_mut(key) {
                *dtype = json!("float32");
            }
        }
        format!("{:#}\n", Value::Object(json))
    }
}

/// Reads single keys; notes what is wrong and goes on with a harmless value.
struct Fields<'a> {
    json: &'a Map<String, Value>,
    problems: Vec<String>,
}

impl<'a> Fields<'a> {
    /// A value that is there and not null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|v| !v.is_null())
    }

    fn problem(&mut self, key: &str, expected: &str) {
        let found = shown(self.json.get(key));
        self.problems.push(format!("{key}: expected {expected}, found {found}"));
    }

    fn size(&mut self, key: &str, default: Option<usize>, most: usize) -> usize {
        let found = match (self.get(key), default) {
            (None, Some(default)) => return default,
            (found, _) => found.and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()),
        };
        found.filter(|n| (1..=most).contains(n)).unwrap_or_else(|| {
            self.problem(key, &format!("a whole number from 1 to {most}"));
            1
        })
    }

    fn number(&mut self, key: &str, default: f64, (expected, holds): (&str, fn(f64) -> bool)) -> f64 {
        let Some(found) = self.get(key) else { return default };
        found.as_f64().filter(|&x| holds(x)).unwrap_or_else(|| {
            self.problem(key, expected);
            default
        })
    }

    fn pad_token_id(&mut self) -> usize {
        let Some(found) = self.get("pad_token_id") else { return 0 };
        found.as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or_else(|| {
            self.problem("pad_token_id", "a token number");
            0
        })
    }

    fn hidden_act(&mut self) -> Gelu {
        match self.get("hidden_act").map(Value::as_str) {
            None | Some(Some("gelu")) => Gelu::Erf,
            Some(Some("gelu_new" | "gelu_pytorch_tanh")) => Gelu::Tanh,
            Some(_) => {
                self.problem("hidden_act", "\"gelu\", \"gelu_new\" or \"gelu_pytorch_tanh\"");
                Gelu::Erf
            }
        }
    }

    fn problem_type(&mut self) -> Option<ProblemType> {
        let found = self.get("problem_type")?;
        let known = ProblemType::ALL.iter().find(|(name, _)| found == name).map(|(_, problem)| *problem);
        if known.is_none() {
            let names = ProblemType::ALL.map(|(name, _)| format!("{name:?}"));
            self.problem("problem_type", &names.join(" or "));
        }
        known
    }

    /// From `id2label`, else `label2id`, else `num_labels`, else two.
    fn labels(&mut self) -> Vec<String> {
        let unnamed = |n: usize| (0..n).map(|i| format!("LABEL_{i}")).collect();
        let (key, pairs) = if let Some(map) = self.get("id2label") {
            (
                "id2label",
                map.as_object().map(|map| map.iter().map(|(id, l)| Some((id.parse().ok()?, l.as_str()?))).collect()),
            )
        } else if let Some(map) = self.get("label2id") {
            let id = |id: &Value| usize::try_from(id.as_u64()?).ok();
            ("label2id", map.as_object().map(|map| map.iter().map(|(l, i)| Some((id(i)?, l.as_str()))).collect()))
        } else {
            return unnamed(self.size("num_labels", Some(2), MOST_LABELS));
        };
        let mut pairs: Vec<(usize, &str)> = pairs.flatten().unwrap_or_default();
        pairs.sort_unstable();
        if pairs.is_empty() || pairs.len() > MOST_LABELS || pairs.iter().enumerate().any(|(i, (id, _))| *id != i) {
            self.problem(key, &format!("names for the labels 0, 1, 2, … (at most {MOST_LABELS})"));
            return unnamed(2);
        }
        pairs.into_iter().map(|(_, label)| label.to_string()).collect()
    }
}

/// A JSON value as an error shows it.
fn shown(value: Option<&Value>) -> String {
    let Some(value) = value else { return "nothing".to_string() };
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn small() -> Value {
        json!({
            "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 36, "num_hidden_layers": 2,
            "num_attention_heads": 3, "intermediate_size": 40, "vocab_size": 50, "something_else": {"b": 1, "a": [2]}
        })
    }

    fn with(key: &str, value: Value) -> Value {
        let mut json = small();
        json[key] = value;
        json
    }

    fn read(json: &Value) -> Result<BertConfig> {
        BertConfig::from_json(json.to_string().as_bytes(), Path::new("dir/config.json"))
    }

    #[track_caller]
    fn fails(json: &Value, expected: &str) {
        let e = read(json).unwrap_err().to_string();
        assert!(e.contains(expected) && e.contains("\n  in dir/config.json"), "{e:?} does not contain {expected:?}");
    }

    #[test]
    fn absent_keys_have_the_usual_values() {
        let config = read(&small()).unwrap();
        assert_eq!((config.max_position_embeddings, config.type_vocab_size, config.pad_token_id), (512, 2, 0));
        assert_eq!((config.layer_norm_eps, config.initializer_range), (1e-12, 0.02));
        assert_eq!((config.hidden_dropout_prob, config.classifier_dropout), (0.1, 0.1));
        assert_eq!((config.hidden_act, config.problem_type), (Gelu::Erf, None));
        assert_eq!((config.labels.join(" "), config.head_size()), ("LABEL_0 LABEL_1".to_string(), 12));
    }

    #[test]
    fn given_keys_are_used() {
        let mut json = small();
        for (key, value) in [
            ("hidden_act", json!("gelu_new")),
            ("hidden_dropout_prob", json!(0)),
            ("classifier_dropout", json!(0.25)),
            ("layer_norm_eps", json!(1e-5)),
            ("problem_type", json!("regression")),
            ("position_embedding_type", json!("absolute")),
            ("id2label", json!({"1": "yes", "0": "no", "2": "perhaps"})),
            ("pad_token_id", json!(3)),
        ] {
            json[key] = value;
        }
        let config = read(&json).unwrap();
        assert_eq!((config.hidden_act, config.problem_type), (Gelu::Tanh, Some(ProblemType::Regression)));
        assert_eq!((config.hidden_dropout_prob, config.classifier_dropout), (0.0, 0.25));
        assert_eq!((config.layer_norm_eps, config.pad_token_id), (1e-5, 3));
        assert_eq!(config.labels, ["no", "yes", "perhaps"]);
        assert_eq!(read(&with("classifier_dropout", Value::Null)).unwrap().classifier_dropout, 0.1);
        assert_eq!(read(&with("label2id", json!({"b": 1, "a": 0}))).unwrap().labels, ["a", "b"]);
        assert_eq!(read(&with("num_labels", json!(5))).unwrap().num_labels(), 5);
    }

    #[test]
    fn parameters_are_those_of_the_published_models() {
        let base = json!({"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "vocab_size": 30522, "num_labels": 2});
        assert_eq!(read(&base).unwrap().parameters(), 109_483_778);
    }

    #[test]
    fn another_family_is_named() {
        fails(
            &with("model_type", json!("t5")),
            "config of another family: found model_type \"t5\"; supported: \"bert\"",
        );
    }

    #[test]
    fn each_wrong_key_is_named() {
        for (key, value, expected) in [
            ("hidden_size", json!(0), "hidden_size: expected a whole number from 1 to 65536, found 0"),
            ("hidden_size", json!("768"), "found \"768\""),
            ("vocab_size", json!(-1), "vocab_size: expected a whole number from 1 to 16777216, found -1"),
            ("vocab_size", Value::Null, "vocab_size: expected a whole number from 1 to 16777216, found null"),
            ("num_hidden_layers", json!(1.5), "found 1.5"),
            ("intermediate_size", json!(1e30), "found 1e+30"),
            ("num_attention_heads", json!(5), "num_attention_heads: expected a divisor of hidden_size = 36, found 5"),
            (
                "hidden_act",
                json!("swish"),
                "hidden_act: expected \"gelu\", \"gelu_new\" or \"gelu_pytorch_tanh\", found \"swish\"",
            ),
            ("layer_norm_eps", json!(0), "layer_norm_eps: expected a number above 0"),
            ("hidden_dropout_prob", json!(1), "hidden_dropout_prob: expected a number from 0 to below 1, found 1"),
            ("position_embedding_type", json!("relative_key"), "expected \"absolute\", found \"relative_key\""),
            ("is_decoder", json!(true), "is_decoder: expected false"),
            ("problem_type", json!("multi_label_classification"), "\"regression\" or \"single_label_classification\""),
            ("pad_token_id", json!(50), "pad_token_id: expected less than vocab_size = 50, found 50"),
            ("pad_token_id", json!(-1), "pad_token_id: expected a token number, found -1"),
            ("num_labels", json!(1u64 << 40), "num_labels: expected"),
            ("id2label", json!({"0": "a", "2": "b"}), "id2label: expected names for the labels 0, 1, 2"),
            ("id2label", json!({}), "id2label"),
            ("id2label", json!(["a", "b"]), "found [\"a\",\"b\"]"),
            ("label2id", json!({"a": 0, "b": 0}), "label2id"),
        ] {
            fails(&with(key, value), expected);
        }
        fails(&json!({}), "num_hidden_layers: expected a whole number from 1 to 1024, found nothing");
        let mut large = small();
        large["vocab_size"] = json!(1 << 24);
        large["hidden_size"] = json!(3 << 14);
        fails(&large, "expected at most 100000000000");
    }

    #[test]
    fn all_that_is_wrong_is_in_one_error() {
        let mut json = with("hidden_size", json!(0));
        json["hidden_act"] = json!("relu");
        fails(&json, "found 0\nhidden_act");
    }

    #[test]
    fn text_that_is_no_object_is_named() {
        for text in ["", "[]", "{", "\u{0}"] {
            let e = BertConfig::from_json(text.as_bytes(), Path::new("c")).unwrap_err();
            assert!(e.what().contains("expected a JSON object"), "{e}");
        }
        assert!(BertConfig::from_json(b"{\"a\": \"\xff\"}", Path::new("c")).is_err());
    }

    #[test]
    fn all_else_is_written_back() {
        let mut original = with("torch_dtype", json!("float16"));
        original["num_labels"] = json!(4);
        original["problem_type"] = json!("regression");
        let mut config = read(&original).unwrap();
        config.labels = vec!["no".to_string(), "yes".to_string(), "perhaps".to_string()];
        config.problem_type = Some(ProblemType::Classification);
        let text = config.to_json();
        let mut expected = original;
        expected.as_object_mut().unwrap().shift_remove("num_labels");
        expected["torch_dtype"] = json!("float32");
        expected["architectures"] = json!(["BertForSequenceClassification"]);
        expected["id2label"] = json!({"0": "no", "1": "yes", "2": "perhaps"});
        expected["label2id"] = json!({"no": 0, "yes": 1, "perhaps": 2});
        expected["problem_type"] = json!("single_label_classification");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
        assert!(text.find("architectures") < text.find("hidden_size"), "the order stays");
        let again = BertConfig::from_json(text.as_bytes(), Path::new("c")).unwrap();
        assert_eq!((&again.labels, again.problem_type), (&config.labels, config.problem_type));
        config.problem_type = None;
        assert!(!config.to_json().contains("problem_type"));
    }

    #[test]
    fn numbers_are_written_back_to_the_last_digit() {
        for number in ["1e-45", "0.22008521077073762", "2.2250738585072014e-308"] {
            let numbers = format!(r#"{{"layer_norm_eps":{number},"other":{number},"#);
            let text = small().to_string().replacen('{', &numbers, 1);
            let config = BertConfig::from_json(text.as_bytes(), Path::new("c")).unwrap();
            assert_eq!(config.layer_norm_eps, number.parse::<f64>().unwrap());
            assert!(config.to_json().contains(&format!("\"other\": {number}")), "{}", config.to_json());
        }
    }

    proptest! {
        #![proptest_config(crate::files::fixed_cases(1024))]

        #[test]
        fn any_text_is_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = BertConfig::from_json(&bytes, Path::new("c"));
        }

        #[test]
        fn any_values_are_read_without_panic(
            key in prop::sample::select(vec!["hidden_size", "num_attention_heads", "vocab_size", "num_hidden_layers",
                "hidden_act", "id2label", "label2id", "num_labels", "pad_token_id", "layer_norm_eps", "problem_type"]),
            value in r#"-?[0-9]{1,25}(e[0-9]{1,3})?|"[a-z]{0,9}"|\[\]|\{"[0-9a]{1,3}":("x"|[0-9])\}|null|true|"é{100}""#,
        ) {
            let text = small().to_string();
            let text = format!("{},\"{key}\":{value}}}", text.strip_suffix('}').unwrap());
            if let Ok(config) = BertConfig::from_json(text.as_bytes(), Path::new("c")) {
                prop_assert!(BertConfig::from_json(config.to_json().as_bytes(), Path::new("c")).is_ok());
            }
        }
    }
}
