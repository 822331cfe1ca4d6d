//! What a trained model needs to be used, and `config.json` has no place for: `colrow.json` in its folder, which other programs ignore.

use std::path::Path;

use colrow_models::checkpoint::names::USAGE_FILE;
use colrow_models::checkpoint::save::usage_text;
use colrow_models::config::Config;
use colrow_models::family::HeadKind;
use colrow_tensor::{BaseWeights, Error, Named, Precision, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::chat::{Keys, TrainOn};
use crate::data::{LabelMap, Names};
use crate::recipe::{BatchSize, Recipe};
use crate::score::Scorer;
use crate::tasks::Task;

/// The layout that this program writes and reads.
const VERSION: u64 = 1;

const KEYS: [&str; 13] = [
    "version",
    "task",
    "labels",
    "positive",
    "columns",
    "conversations",
    "train_on",
    "max_length",
    "max_target_length",
    "batch",
    "batch_tokens",
    "precision",
    "base",
];

/// What a model's run was told.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Usage {
    version: u64,
    /// What is predicted.
    pub task: Task,
    /// Names of the labels in the order of the model's outputs; none for regression.
    pub labels: Vec<String>,
    /// The label that F1 is of, where the run reported F1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positive: Option<String>,
    /// The columns of the training data, if it had columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Names>,
    /// How the training data named what is in a conversation, for the task `chat`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversations: Option<Keys>,
    /// What counted in the loss, where the recipe said it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_on: Option<TrainOn>,
    /// Longer examples are cut to this many tokens.
    pub max_length: usize,
    /// Most tokens of an answer, for a model that answers in text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_target_length: Option<usize>,
    /// Batches of evaluations: how products are cut decides their last bits.
    #[serde(flatten)]
    pub batch: BatchSize,
    /// What matrix products multiply.
    pub precision: Precision,
    /// How the matrices that were not trained were held.
    #[serde(skip_serializing_if = "is_f32")]
    pub base: BaseWeights,
}

fn is_f32(base: &BaseWeights) -> bool {
    *base == BaseWeights::F32
}

impl Usage {
    /// What `recipe` says, with the labels and columns that its data turned out to have.
    pub fn new(recipe: &Recipe, config: &Config, scorer: &Scorer, columns: Option<Names>) -> Self {
        let data = &recipe.data;
        Self {
            version: VERSION,
            task: scorer.task(),
            labels: scorer.names().to_vec(),
            positive: scorer.positive().map(str::to_owned),
            columns,
            conversations: None,
            train_on: None,
            max_length: data.max_length,
            max_target_length: (config.family().head == HeadKind::Language).then_some(data.max_target_length),
            batch: recipe.train.batch,
            precision: recipe.train.precision,
            base: recipe.model.base,
        }
    }

    /// What `recipe` says of a task whose loss is over tokens.
    pub fn of_tokens(recipe: &Recipe, task: Task) -> Self {
        let data = &recipe.data;
        Self {
            version: VERSION,
            task,
            labels: Vec::new(),
            positive: None,
            columns: data.text.clone().map(|text| Names { text, pair: None, label: None }),
            conversations: (data.keys != Keys::default()).then(|| data.keys.clone()),
            train_on: data.train_on,
            max_length: data.max_length,
            max_target_length: None,
            batch: recipe.train.batch,
            precision: recipe.train.precision,
            base: recipe.model.base,
        }
    }

    /// What is said of the model that the adapter is merged into.
    #[must_use]
    pub fn of_merged(self) -> Self {
        Self { base: BaseWeights::F32, ..self }
    }

    /// The text of the file.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain values") + "\n"
    }

    /// Reads the file of a model's folder; `None` if it has none.
    ///
    /// # Errors
    /// A file that cannot be read, or says what cannot be; the key is named.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let Some(text) = usage_text(dir)? else { return Ok(None) };
        Self::parse(&text).map(Some).map_err(|e| in_file(e, dir))
    }

    fn parse(text: &[u8]) -> Result<Self> {
        let json: Map<String, Value> =
            serde_json::from_slice(text).map_err(|e| Error::new(format!("expected a JSON object: {e}")))?;
        let version: u64 = required(&json, "version")?;
        if version != VERSION {
            return Err(Error::new(format!("version: expected {VERSION}, found {version}")).hint(
                "this model was saved by another version of colrow; use that one, or leave the file out and pass flags",
            ));
        }
        if let Some(key) = json.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(Error::new(format!("{key}: unknown key")).hint(format!("known: {}", KEYS.join(", "))));
        }
        let at_least = |key: &str, least: usize| match optional::<usize>(&json, key)? {
            Some(n) if n < least => Err(Error::new(format!("{key}: expected at least {least}, found {n}"))),
            n => Ok(n),
        };
        let task: Task = required::<String>(&json, "task")?.parse().map_err(|e: Error| named("task", &e))?;
        let labels: Vec<String> = required(&json, "labels")?;
        let has_none = task.is_regression() || task.is_of_tokens();
        if labels.is_empty() != has_none || labels.len() == 1 {
            let expected = if has_none { "none" } else { "at least two names" };
            return Err(Error::new(format!("labels: expected {expected} for task {task}, found {}", labels.len())));
        }
        let mut sorted: Vec<&String> = labels.iter().collect();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::new(format!("labels: expected different names, found {:?} twice", twice[0])));
        }
        let positive: Option<String> = optional(&json, "positive")?;
        if let Some(name) = positive.as_ref().filter(|name| !labels.contains(name)) {
            return Err(Error::new(format!("positive: expected one of the labels, found {name:?}")));
        }
        let batch = match (at_least("batch", 1)?, at_least("batch_tokens", 1)?) {
            (Some(n), None) => BatchSize::Sequences(n),
            (None, Some(n)) => BatchSize::Tokens(n),
            _ => return Err(Error::new("batch: expected either batch or batch_tokens")),
        };
        let train_on = optional::<String>(&json, "train_on")?.map(|name| {
            TrainOn::find(&name).ok_or_else(|| {
                let names: Vec<_> = TrainOn::ALL.iter().map(|t| t.name()).collect();
                Error::new(format!("train_on: expected one of {}, found {name:?}", names.join(", ")))
            })
        });
        let train_on = train_on.transpose()?;
        let precision: String = required(&json, "precision")?;
        let precision = Precision::find(&precision).ok_or_else(|| {
            let names: Vec<_> = Precision::ALL.iter().map(|p| p.name()).collect();
            Error::new(format!("precision: expected {}, found {precision:?}", names.join(" or ")))
        })?;
        let base = optional::<String>(&json, "base")?.map(|name| {
            BaseWeights::find(&name).ok_or_else(|| {
                let names: Vec<_> = BaseWeights::ALL.iter().map(|b| b.name()).collect();
                Error::new(format!("base: expected one of {}, found {name:?}", names.join(", ")))
            })
        });
        let base = base.transpose()?;
        Ok(Self {
            version,
            task,
            labels,
            positive,
            columns: optional(&json, "columns")?,
            conversations: optional(&json, "conversations")?,
            train_on,
            max_length: at_least("max_length", 1)?.ok_or_else(|| missing("max_length"))?,
            max_target_length: at_least("max_target_length", 2)?,
            batch,
            precision,
            base: base.unwrap_or(BaseWeights::F32),
        })
    }

    /// Gives the configuration of an adapter's base model the adapter's labels.
    pub fn relabel(&self, config: &mut Config) {
        if self.task.is_of_tokens() {
            return;
        }
        let map = if self.task.is_regression() { LabelMap::Value } else { LabelMap::from_names(self.labels.clone()) };
        map.write_to(config);
    }

    /// Checks that this is said of a model of this configuration, whose folder is `dir`.
    ///
    /// # Errors
    /// The key that is not.
    pub fn check(&self, config: &Config, dir: &Path) -> Result<()> {
        if self.task.is_of_tokens() {
            return self.check_length(config, dir);
        }
        let outputs = if self.task.is_regression() { 1 } else { self.labels.len() };
        let problem = if outputs != config.num_labels() {
            format!("labels: expected {}, as many as the model has outputs, found {outputs}", config.num_labels())
        } else if !self.task.is_regression() && self.labels != config.labels {
            let first = self.labels.iter().zip(&config.labels).find(|(a, b)| a != b);
            let (here, there) = first.unwrap_or((&self.labels[0], &config.labels[0]));
            format!("labels: expected the names of config.json, there {there:?}, found {here:?}")
        } else {
            return self.check_length(config, dir);
        };
        Err(in_file(Error::new(problem), dir))
    }

    fn check_length(&self, config: &Config, dir: &Path) -> Result<()> {
        match config.architecture.longest().filter(|&longest| self.max_length > longest) {
            None => Ok(()),
            Some(longest) => {
                let found = self.max_length;
                let what = format!(
                    "max_length: expected at most {longest} (max_position_embeddings of the model), found {found}"
                );
                Err(in_file(Error::new(what), dir))
            }
        }
    }
}

fn in_file(e: Error, dir: &Path) -> Error {
    e.at(dir.join(USAGE_FILE).display())
}

fn named(key: &str, e: &Error) -> Error {
    Error::new(format!("{key}: {}", e.what()))
}

fn missing(key: &str) -> Error {
    Error::new(format!("{key}: expected a value, found nothing"))
}

fn optional<T: DeserializeOwned>(json: &Map<String, Value>, key: &str) -> Result<Option<T>> {
    let value = json.get(key).cloned().unwrap_or(Value::Null);
    serde_json::from_value(value).map_err(|e| Error::new(format!("{key}: {e}")))
}

fn required<T: DeserializeOwned>(json: &Map<String, Value>, key: &str) -> Result<T> {
    optional(json, key)?.ok_or_else(|| missing(key))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn usage() -> Usage {
        Usage {
            version: VERSION,
            task: Task::Classify,
            labels: vec!["bad".into(), "good".into()],
            positive: Some("bad".into()),
            columns: Some(Names { text: "review".into(), pair: None, label: Some("mood".into()) }),
            conversations: None,
            train_on: None,
            max_length: 64,
            max_target_length: Some(8),
            batch: BatchSize::Sequences(8),
            precision: Precision::Bf16,
            base: BaseWeights::Nf4,
        }
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let regression = Usage { task: Task::Stsb, labels: vec![], positive: None, ..usage() };
        let least = Usage {
            columns: None,
            max_target_length: None,
            base: BaseWeights::F32,
            batch: BatchSize::Tokens(512),
            ..regression.clone()
        };
        let keys =
            Keys { role: Some("who".into()), roles: [("bot".into(), "assistant".into())].into(), ..Keys::default() };
        let chat = Usage {
            task: Task::Chat,
            conversations: Some(keys),
            train_on: Some(TrainOn::Last),
            max_target_length: None,
            ..regression.clone()
        };
        for usage in [usage(), regression, least, chat] {
            assert_eq!(Usage::parse(usage.to_json().as_bytes()).unwrap(), usage);
        }
        let json: Value = serde_json::from_str(&usage().to_json()).unwrap();
        assert_eq!(
            json,
            json!({"version": 1, "task": "classify", "labels": ["bad", "good"], "positive": "bad",
                "columns": {"text": "review", "label": "mood"}, "max_length": 64, "max_target_length": 8, "batch": 8,
                "precision": "bf16", "base": "nf4"})
        );
        let all: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert!(all.iter().all(|key| KEYS.contains(key)));
    }

    #[test]
    fn each_wrong_key_is_named() {
        let with = |key: &str, value: Value| {
            let mut json: Value = serde_json::from_str(&usage().to_json()).unwrap();
            json[key] = value;
            Usage::parse(json.to_string().as_bytes()).unwrap_err().to_string()
        };
        for (key, value, message) in [
            ("version", json!(2), "version: expected 1, found 2\n  hint: this model was saved by another version"),
            ("version", json!("1"), "version: invalid type"),
            ("task", json!("clasify"), "task: unknown task \"clasify\""),
            ("task", json!("regress"), "labels: expected none for task regress, found 2"),
            ("labels", json!(null), "labels: expected a value, found nothing"),
            ("labels", json!(["a", 1]), "labels: invalid type: integer `1`, expected a string"),
            ("labels", json!([]), "labels: expected at least two names for task classify, found 0"),
            ("labels", json!(["a", "b", "a"]), "labels: expected different names, found \"a\" twice"),
            ("positive", json!("fine"), "positive: expected one of the labels, found \"fine\""),
            ("columns", json!({"text": 3}), "columns: invalid type"),
            ("columns", json!({"txt": "a", "text": "b"}), "columns: unknown field `txt`"),
            ("max_length", json!(0), "max_length: expected at least 1, found 0"),
            ("max_length", json!(-5), "max_length: invalid value"),
            ("max_length", json!(null), "max_length: expected a value, found nothing"),
            ("max_target_length", json!(1), "max_target_length: expected at least 2, found 1"),
            ("batch", json!(0), "batch: expected at least 1, found 0"),
            ("batch_tokens", json!(5), "batch: expected either batch or batch_tokens"),
            ("precision", json!("f16"), "precision: expected f32 or bf16, found \"f16\""),
            ("base", json!("nf3"), "base: expected one of f32, bf16, int8, nf4, found \"nf3\""),
            ("max_lenght", json!(5), "max_lenght: unknown key"),
        ] {
            let error = with(key, value.clone());
            assert!(error.starts_with(message), "{key} = {value}: {error}");
        }
        for text in ["", "[]", "{", "\u{0}", "{\"version\": 1e400}"] {
            assert!(Usage::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn it_must_be_said_of_this_model() {
        let json = json!({"model_type": "bert", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1,
            "intermediate_size": 4, "vocab_size": 9, "max_position_embeddings": 64, "id2label": {"0": "bad", "1": "good"}});
        let config = Config::from_json(json.to_string().as_bytes(), Path::new("config.json")).unwrap();
        let wrong = |usage: &Usage| usage.check(&config, Path::new("model")).unwrap_err().to_string();
        usage().check(&config, Path::new("model")).unwrap();
        let three = Usage { labels: vec!["a".into(), "b".into(), "c".into()], ..usage() };
        assert_eq!(
            wrong(&three),
            "labels: expected 2, as many as the model has outputs, found 3\n  in model/colrow.json"
        );
        let swapped = Usage { labels: vec!["good".into(), "bad".into()], ..usage() };
        assert!(wrong(&swapped).contains("expected the names of config.json, there \"bad\", found \"good\""));
        assert!(wrong(&Usage { max_length: 65, ..usage() }).contains("max_length: expected at most 64"));

        let mut base = config.clone();
        three.relabel(&mut base);
        assert_eq!(base.labels, ["a", "b", "c"]);
        Usage { task: Task::Stsb, labels: vec![], ..usage() }.relabel(&mut base);
        assert_eq!((base.num_labels(), base.problem_type), (1, Some(colrow_models::config::ProblemType::Regression)));
    }
}
