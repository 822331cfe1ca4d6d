//! `config.json` of a model: read, checked, and written back with everything else that it held.

use std::path::Path;

use colrow_tensor::{Error, Result};
use serde_json::{Map, Value, json};

use crate::checkpoint::names::CONFIG_FILE;
use crate::families::FAMILIES;
use crate::family::{Architecture, Family, HeadKind};
use crate::fields::{Fields, shown};
use crate::files::read_json_bytes;

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

/// More labels than any classifier here can sensibly have.
const MOST_LABELS: usize = 100_000;

/// The configuration of a model, with the names and defaults that `transformers` gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    family: &'static Family,
    /// What is peculiar to its family.
    pub architecture: Box<dyn Architecture>,
    /// Label names by number.
    pub labels: Vec<String>,
    /// `None` where the file does not say.
    pub problem_type: Option<ProblemType>,
    /// What is wrong with the names of the labels, and with the problem type: of a head that training replaces, and that cannot predict.
    head_problems: [Option<String>; 2],
    /// The file as it was, for the keys that are not above.
    original: Map<String, Value>,
}

impl Config {
    /// Reads `config.json` of a model folder, of one of the families here.
    ///
    /// # Errors
    /// As [`Config::open_of`].
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_of(FAMILIES, dir)
    }

    /// Reads `config.json` of the folder of a model of one of `families`.
    ///
    /// # Errors
    /// A file that cannot be read; those of [`Config::from_json_of`].
    pub fn open_of(families: &[&'static Family], dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        Self::from_json_of(families, &read_json_bytes(&path)?, &path)
    }

    /// Reads the text of `file`, of one of the families here.
    ///
    /// # Errors
    /// As [`Config::from_json_of`].
    pub fn from_json(json: &[u8], file: &Path) -> Result<Self> {
        Self::from_json_of(FAMILIES, json, file)
    }

    /// Reads the text of `file`, which is of one of `families`: of the first, if it does not say. What is wrong with the head alone is for
    /// [`Config::check_head`] to say.
    ///
    /// # Errors
    /// Another family; all that is wrong, by key, in one error.
    pub fn from_json_of(families: &[&'static Family], json: &[u8], file: &Path) -> Result<Self> {
        let at = |what: String| Error::new(what).at(file.display());
        let original: Map<String, Value> =
            serde_json::from_slice(json).map_err(|e| at(format!("expected a JSON object: {e}")))?;
        let mut fields = Fields { json: &original, problems: Vec::new() };
        let (labels, problem_type) = (labels(&fields), problem_type(&fields));
        let head_problems = [labels.as_ref().err().cloned(), problem_type.as_ref().err().cloned()];
        let (labels, problem_type) = (labels.unwrap_or_else(|_| unnamed(2)), problem_type.ok().flatten());
        let found = original.get("model_type").filter(|name| !name.is_null());
        let class = original.get("architectures").and_then(|classes| classes.get(0)).and_then(Value::as_str);
        let of_class = |class: &str| {
            let class = class.to_lowercase();
            families.iter().find(|family| class.starts_with(family.model_type))
        };
        let family = match found {
            None => class.map_or(families.first(), of_class),
            Some(name) => families.iter().find(|family| name == family.model_type),
        };
        let Some(family) = family else {
            let names: Vec<_> = families.iter().map(|family| format!("{:?}", family.model_type)).collect();
            let names = match names.split_last() {
                Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
                _ => names.concat(),
            };
            let found = match (found, class) {
                (None, Some(class)) => format!("no model_type, and the class {class}"),
                _ => format!("model_type {}", shown(found)),
            };
            return Err(at(format!("config of another family: found {found}; supported: {names}")));
        };
        let architecture = (family.architecture)(&mut fields, labels.len());
        let problems = fields.problems;
        if !problems.is_empty() {
            return Err(at(problems.join("\n")));
        }
        Ok(Self { family, architecture, labels, problem_type, head_problems, original })
    }

    /// Gives the model a new head.
    pub fn set_head(&mut self, labels: Vec<String>, problem_type: ProblemType) {
        (self.labels, self.problem_type) = (labels, Some(problem_type));
        self.head_problems = [None, None];
    }

    /// Says that the head has so many labels. Their names stay if they are as many.
    pub(crate) fn set_num_labels(&mut self, n: usize) {
        if self.head_problems[0].take().is_some() || n != self.num_labels() {
            self.labels = unnamed(n);
        }
    }

    /// Checks that the head is one that can predict: a model that answers in text has none.
    ///
    /// # Errors
    /// Labels that are not numbered from 0, more than one right label.
    pub fn check_head(&self) -> Result<()> {
        let problems: Vec<&str> = self.head_problems.iter().flatten().map(String::as_str).collect();
        if problems.is_empty() || self.family().head != HeadKind::Classifier {
            return Ok(());
        }
        Err(Error::new(problems.join("\n"))
            .hint("this head cannot be used; colrow train replaces it by one for the labels of its data"))
    }

    /// Number of outputs of the classifier.
    pub fn num_labels(&self) -> usize {
        self.labels.len()
    }

    /// The model's family.
    pub fn family(&self) -> &'static Family {
        self.family
    }

    /// The class that the file names for the tokenizer, if it does.
    pub fn tokenizer_class(&self) -> Option<&str> {
        self.original.get("tokenizer_class")?.as_str()
    }

    /// The text of `config.json` for the model as it is now saved: all that was in the file read, with the labels, the problem type, the
    /// architecture and the number type (f32) of what is written.
    pub fn to_json(&self) -> String {
        self.json_of("float32")
    }

    /// As [`Config::to_json`], of a model some of whose tensors are saved in bf16.
    pub(crate) fn to_json_of_bf16(&self) -> String {
        self.json_of("bfloat16")
    }

    fn json_of(&self, number: &str) -> String {
        let mut json = self.original.clone();
        let numbered = || self.labels.iter().enumerate();
        let id2label: Map<_, _> = numbered().map(|(i, label)| (i.to_string(), json!(label))).collect();
        let label2id: Map<_, _> = numbered().map(|(i, label)| (label.clone(), json!(i))).collect();
        json.insert("model_type".to_string(), json!(self.family.model_type));
        json.insert("architectures".to_string(), json!([self.family.saved_class]));
        if self.family.head != HeadKind::Causal {
            json.insert("id2label".to_string(), id2label.into());
            json.insert("label2id".to_string(), label2id.into());
        }
        match self.problem_type {
            Some(problem) => {
                let name = ProblemType::ALL.iter().find(|(_, p)| *p == problem).map(|(name, _)| *name);
                json.insert("problem_type".to_string(), json!(name));
            }
            None => _ = json.shift_remove("problem_type"),
        }
        self.architecture.settle(&mut json);
        // The number of labels is that of id2label; a second statement of it could contradict.
        for key in ["num_labels", "_num_labels"] {
            json.shift_remove(key);
        }
        let names = ["torch_dtype", "dtype"];
        // a file that names none is of f32
        if number != "float32" && !names.iter().any(|&name| json.contains_key(name)) {
            json.insert("torch_dtype".to_owned(), json!(number));
        }
        for name in names {
            if let Some(dtype) = json.get_mut(name) {
                *dtype = json!(number);
            }
        }
        format!("{:#}\n", Value::Object(json))
    }
}

/// What the head's outputs are, if the file says so, or what is wrong with what it says.
fn problem_type(fields: &Fields<'_>) -> Result<Option<ProblemType>, String> {
    let Some(found) = fields.get("problem_type") else { return Ok(None) };
    match ProblemType::ALL.iter().find(|(name, _)| found == name) {
        Some((_, problem)) => Ok(Some(*problem)),
        None => {
            let names = ProblemType::ALL.map(|(name, _)| format!("{name:?}"));
            Err(fields.wrong("problem_type", &names.join(" or ")))
        }
    }
}

/// From `id2label`, else `label2id`, else `num_labels`, else two; or what is wrong with them.
fn labels(fields: &Fields<'_>) -> Result<Vec<String>, String> {
    let (key, pairs) = if let Some(map) = fields.get("id2label") {
        (
            "id2label",
            map.as_object().map(|map| map.iter().map(|(id, l)| Some((id.parse().ok()?, l.as_str()?))).collect()),
        )
    } else if let Some(map) = fields.get("label2id") {
        let id = |id: &Value| usize::try_from(id.as_u64()?).ok();
        ("label2id", map.as_object().map(|map| map.iter().map(|(l, i)| Some((id(i)?, l.as_str()))).collect()))
    } else {
        let Some(n) = fields.get("num_labels") else { return Ok(unnamed(2)) };
        let n = n.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=MOST_LABELS).contains(n));
        return n
            .map(unnamed)
            .ok_or_else(|| fields.wrong("num_labels", &format!("a whole number from 1 to {MOST_LABELS}")));
    };
    let mut pairs: Vec<(usize, &str)> = pairs.flatten().unwrap_or_default();
    pairs.sort_unstable();
    if pairs.is_empty() || pairs.len() > MOST_LABELS || pairs.iter().enumerate().any(|(i, (id, _))| *id != i) {
        return Err(fields.wrong(key, &format!("names for the labels 0, 1, 2, … (at most {MOST_LABELS})")));
    }
    Ok(pairs.into_iter().map(|(_, label)| label.to_string()).collect())
}

/// The names of so many labels that have none.
fn unnamed(labels: usize) -> Vec<String> {
    (0..labels).map(|i| format!("LABEL_{i}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use colrow_tensor::Activation;

    use super::*;
    use crate::families::bert::BertConfig;

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

    fn read(json: &Value) -> Result<Config> {
        Config::from_json(json.to_string().as_bytes(), Path::new("dir/config.json"))
    }

    fn bert(json: &Value) -> BertConfig {
        read(json).unwrap().architecture.downcast_ref::<BertConfig>().unwrap().clone()
    }

    #[track_caller]
    fn fails(json: &Value, expected: &str) {
        let e = read(json).unwrap_err().to_string();
        assert!(e.contains(expected) && e.contains("\n  in dir/config.json"), "{e:?} does not contain {expected:?}");
    }

    #[test]
    fn absent_keys_have_the_usual_values() {
        let (config, all) = (bert(&small()), read(&small()).unwrap());
        assert_eq!((config.max_position_embeddings, config.type_vocab_size, config.pad_token_id), (512, 2, 0));
        assert_eq!((config.layer_norm_eps, config.initializer_range), (1e-12, 0.02));
        assert_eq!((config.hidden_dropout_prob, config.classifier_dropout), (0.1, 0.1));
        assert_eq!((config.hidden_act, all.problem_type), (Activation::Gelu, None));
        assert_eq!((all.labels.join(" "), config.head_size()), ("LABEL_0 LABEL_1".to_string(), 12));
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
        let (config, all) = (bert(&json), read(&json).unwrap());
        assert_eq!((config.hidden_act, all.problem_type), (Activation::GeluTanh, Some(ProblemType::Regression)));
        assert_eq!((config.hidden_dropout_prob, config.classifier_dropout), (0.0, 0.25));
        assert_eq!((config.layer_norm_eps, config.pad_token_id), (1e-5, 3));
        assert_eq!(all.labels, ["no", "yes", "perhaps"]);
        assert_eq!(bert(&with("classifier_dropout", Value::Null)).classifier_dropout, 0.1);
        assert_eq!(read(&with("label2id", json!({"b": 1, "a": 0}))).unwrap().labels, ["a", "b"]);
        assert_eq!(read(&with("num_labels", json!(5))).unwrap().num_labels(), 5);
    }

    #[test]
    fn parameters_are_those_of_the_published_models() {
        let base = json!({"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "vocab_size": 30522, "num_labels": 2});
        assert_eq!(bert(&base).parameters(2), 109_483_778);
    }

    #[test]
    fn another_family_is_named() {
        fails(
            &with("model_type", json!("gpt2")),
            "config of another family: found model_type \"gpt2\"; supported: \"bert\", \"t5\", \"llama\", \"mistral\", \"qwen2\", \"qwen3\" and \"smollm3\"",
        );
        // without it the class tells, and without that it is a BERT as of old
        let of = |class: Value| {
            let mut json = with("model_type", Value::Null);
            json["architectures"] = class;
            json
        };
        fails(&of(json!(["GPT2LMHeadModel"])), "found no model_type, and the class GPT2LMHeadModel; supported");
        for json in [of(json!(["BertForMaskedLM"])), of(Value::Null)] {
            assert_eq!(read(&json).unwrap().family().model_type, "bert");
        }
        let mut llama = of(json!(["LlamaForCausalLM"]));
        llama["rms_norm_eps"] = json!(1e-5);
        assert_eq!(read(&llama).unwrap().family().model_type, "llama");
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
            ("pad_token_id", json!(50), "pad_token_id: expected less than vocab_size = 50, found 50"),
            ("pad_token_id", json!(-1), "pad_token_id: expected a token number, found -1"),
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
    fn a_head_that_cannot_predict_may_be_replaced() {
        for (key, value, expected) in [
            ("problem_type", json!("multi_label_classification"), "\"regression\" or \"single_label_classification\""),
            ("num_labels", json!(1u64 << 40), "num_labels: expected"),
            ("id2label", json!({"1": "a", "2": "b"}), "id2label: expected names for the labels 0, 1, 2"),
            ("id2label", json!({"0": "a", "2": "b"}), "id2label: expected names for the labels 0, 1, 2"),
            ("id2label", json!({}), "id2label"),
            ("id2label", json!(["a", "b"]), "found [\"a\",\"b\"]"),
            ("label2id", json!({"a": 0, "b": 0}), "label2id"),
        ] {
            let mut config = read(&with(key, value)).unwrap();
            let error = config.check_head().unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("hint: this head cannot be used"), "{error}");
            config.set_head(vec!["no".into(), "yes".into()], ProblemType::Classification);
            config.check_head().unwrap();
            let again = Config::from_json(config.to_json().as_bytes(), Path::new("c")).unwrap();
            assert_eq!((again.check_head().unwrap(), again.labels), ((), config.labels));
        }
        read(&small()).unwrap().check_head().unwrap();
        // an adapter that brings a head of three labels says how many there are, not that several may be right
        let mut config = read(&with("id2label", json!({"1": "a"}))).unwrap();
        config.set_num_labels(3);
        assert_eq!((config.check_head().unwrap(), config.num_labels()), ((), 3));
        let mut config = read(&with("problem_type", json!("multi_label_classification"))).unwrap();
        config.set_num_labels(3);
        config.check_head().unwrap_err();
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
            let e = Config::from_json(text.as_bytes(), Path::new("c")).unwrap_err();
            assert!(e.what().contains("expected a JSON object"), "{e}");
        }
        assert!(Config::from_json(b"{\"a\": \"\xff\"}", Path::new("c")).is_err());
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
        let again = Config::from_json(text.as_bytes(), Path::new("c")).unwrap();
        assert_eq!((&again.labels, again.problem_type), (&config.labels, config.problem_type));
        config.problem_type = None;
        assert!(!config.to_json().contains("problem_type"));
    }

    #[test]
    fn numbers_are_written_back_to_the_last_digit() {
        for number in ["1e-45", "0.22008521077073762", "2.2250738585072014e-308"] {
            let numbers = format!(r#"{{"layer_norm_eps":{number},"other":{number},"#);
            let text = small().to_string().replacen('{', &numbers, 1);
            let config = Config::from_json(text.as_bytes(), Path::new("c")).unwrap();
            assert_eq!(bert(&serde_json::from_str(&text).unwrap()).layer_norm_eps, number.parse::<f64>().unwrap());
            assert!(config.to_json().contains(&format!("\"other\": {number}")), "{}", config.to_json());
        }
    }

    proptest! {
        #![proptest_config(crate::files::fixed_cases(1024))]

        #[test]
        fn any_text_is_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Config::from_json(&bytes, Path::new("c"));
        }

        #[test]
        fn any_values_are_read_without_panic(
            key in prop::sample::select(vec!["hidden_size", "num_attention_heads", "vocab_size", "num_hidden_layers",
                "hidden_act", "id2label", "label2id", "num_labels", "pad_token_id", "layer_norm_eps", "problem_type"]),
            value in r#"-?[0-9]{1,25}(e[0-9]{1,3})?|"[a-z]{0,9}"|\[\]|\{"[0-9a]{1,3}":("x"|[0-9])\}|null|true|"é{100}""#,
        ) {
            let text = small().to_string();
            let text = format!("{},\"{key}\":{value}}}", text.strip_suffix('}').unwrap());
            if let Ok(config) = Config::from_json(text.as_bytes(), Path::new("c")) {
                prop_assert!(Config::from_json(config.to_json().as_bytes(), Path::new("c")).is_ok());
            }
        }
    }
}
