//! Recipes: one struct for everything that a run is told, read from TOML and written back.
//!
//! [`Recipe::load`] reports every problem of a file together, each with its line. [`Recipe::to_toml`] writes the recipe
//! with every default filled in; reading that again gives the same value. Paths are relative to the current folder.
//!
//! To add a key: a documented field here with its default, one line in `parse.rs`, one row in `docs/recipe.md` (tests
//! compare the three).

mod choice;
mod difference;
mod document;
mod foreign;
mod parse;
mod rules;

use std::path::Path;

use colrow_autograd::{NormSource, glob_matches};
use colrow_models::checkpoint::names::RECIPE;
use colrow_models::files;
use colrow_tensor::{BaseWeights, Error, Estimator, Precision, Result, TrainedWeights};
use serde::{Serialize, Serializer};

use crate::chat::{Keys, TrainOn};
use crate::step::{Hyperparameters, States, When};

pub use choice::{CacheIn, Estimate, Logger, Method, PolicyName, Schedule, SiteKeep};
pub use difference::Difference;
pub(crate) use parse::HELD_IF_FROZEN;
pub use rules::parse_bytes;

/// More than any recipe needs; a larger file is not one.
const MOST_BYTES: u64 = 4 << 20;

/// Everything a run is told.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    /// What is learned: a GLUE task's name (it brings its columns and metrics), `classify`, `regress`, `chat` or `text`. Not checked here.
    pub task: String,
    /// Fixes the run: data order, dropout, row samples and newly initialised weights all follow from it.
    pub seed: u64,
    /// The run folder. Training needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// The checkpoint to start from.
    pub model: Model,
    /// What to train and evaluate on.
    pub data: Data,
    /// How long and in what steps to train.
    pub train: Train,
    /// Low-rank adapters, for the methods that train them.
    pub lora: Lora,
    /// The optimizer (AdamW) and its learning rate.
    pub optim: Optim,
    /// What is kept for the backward pass.
    pub keep: Keeping,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            task: "classify".into(),
            seed: 0,
            output: None,
            model: Model::default(),
            data: Data::default(),
            train: Train::default(),
            lora: Lora::default(),
            optim: Optim::default(),
            keep: Keeping::default(),
        }
    }
}

/// `[model]`: the checkpoint to start from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Model {
    /// A folder in Hugging Face layout, or a hub id. Every recipe needs it; empty in the default value.
    pub path: String,
    /// Branch, tag or commit, if `path` is a hub id.
    pub revision: String,
    /// Replaces the hidden, attention and classifier dropout of `config.json`; in [0, 1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// Whether weights that the checkpoint lacks are initialised at random. Those of a head always are.
    pub init_missing: bool,
    /// How the matrices that are not trained are held.
    pub base: BaseWeights,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            path: String::new(),
            revision: "main".into(),
            dropout: None,
            init_missing: false,
            base: BaseWeights::F32,
        }
    }
}

/// `[data]`: what to train and evaluate on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Data {
    /// A GLUE folder or a file (CSV, TSV, JSON lines, Parquet). Training needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<String>,
    /// A GLUE folder or a file to evaluate on. Without it a GLUE folder's own, or else a share of the training data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dev: Option<String>,
    /// Column with the text, or with the first text of a pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Column with the second text of a pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pair: Option<String>,
    /// Column with the label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The label that F1 is of, for `classify`; without it the second of two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positive: Option<String>,
    /// How a file of conversations names things.
    #[serde(flatten)]
    pub keys: Keys,
    /// What counts in the loss, for the tasks `chat` and `text`; without it what is usual for the form of the data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_on: Option<TrainOn>,
    /// The day that chat templates take for today.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
    /// Longer examples are cut to this many tokens, special tokens included; at least 1.
    pub max_length: usize,
    /// Most tokens of a target and of an answer, the one that ends it included; at least 2. For models that answer in text.
    pub max_target_length: usize,
    /// Use this many training examples; at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Share of the training examples held out for evaluation where no other are given; in (0, 1).
    pub dev_share: f64,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            train: None,
            dev: None,
            text: None,
            pair: None,
            label: None,
            positive: None,
            keys: Keys::default(),
            train_on: None,
            date: None,
            max_length: 128,
            max_target_length: 32,
            limit: None,
            dev_share: 0.1,
        }
    }
}

/// `[train]`: how long and in what steps to train.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Train {
    /// Passes over the training examples, not necessarily whole; above 0.
    pub epochs: f64,
    /// Optimizer steps; if given, `epochs` does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Size of a batch: the key `batch` or the key `batch_tokens`.
    #[serde(flatten)]
    pub batch: BatchSize,
    /// Batches whose gradients are added up for one optimizer step; at least 1.
    pub accumulate: usize,
    /// What numbers matrix products multiply.
    pub precision: Precision,
    /// How the matrices that are trained are held.
    pub weights: TrainedWeights,
    /// Which parameters are trained.
    pub method: Method,
    /// Modules that are trained whole by every method: names, their ends after a dot, or globs.
    pub modules_to_save: Option<Vec<String>>,
    /// When to evaluate.
    pub eval_every: Every,
    /// When to write a checkpoint.
    pub save_every: Every,
    /// How many of the newest checkpoints stay on disk; at least 1.
    pub keep_checkpoints: usize,
    /// The metric that decides which model is the best; without it the task's first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_metric: Option<String>,
    /// Stop after this many evaluations without improvement; at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<u64>,
    /// Globs over parameter keys (`*` also crosses dots); what matches is not trained.
    pub freeze: Vec<String>,
    /// Optimizer steps between two lines of the log; at least 1.
    pub log_every: u64,
    /// Who gets the log.
    pub log: Vec<Logger>,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            epochs: 3.0,
            steps: None,
            batch: BatchSize::Sequences(32),
            accumulate: 1,
            precision: Precision::F32,
            weights: TrainedWeights::F32,
            method: Method::Full,
            modules_to_save: None,
            eval_every: Every::Epoch,
            save_every: Every::Epoch,
            keep_checkpoints: 1,
            best_metric: None,
            patience: None,
            freeze: Vec::new(),
            log_every: 10,
            log: vec![Logger::Jsonl],
        }
    }
}

impl Train {
    /// Why `weights` has nothing to hold, if the method says so; empty modules are none.
    pub(crate) fn weights_refusal(&self) -> Option<String> {
        let whole = self.method == Method::Full || self.modules_to_save.as_ref().is_some_and(|names| !names.is_empty());
        (self.weights != TrainedWeights::F32 && !whole).then(|| {
            format!(
                "`train.weights` = \"{}\" is for matrices that are trained whole, and train.method = \"{}\" trains others: adapters and biases \
                 stay in f32; hold what is not trained by model.base = \"bf16\", or name modules in train.modules_to_save",
                self.weights, self.method
            )
        })
    }

    /// Whether `freeze` names this parameter key.
    pub fn is_frozen(&self, key: &str) -> bool {
        self.freeze.iter().any(|glob| glob_matches(glob, key))
    }
}

/// `[lora]`: low-rank adapters, for the methods that train them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lora {
    /// Rank of an adapter; at least 1.
    pub rank: usize,
    /// The adapter's output is multiplied by alpha/rank; above 0.
    pub alpha: f64,
    /// Share of the adapter's input that is dropped; in [0, 1).
    pub dropout: f64,
    /// Multiply by alpha/√rank instead.
    pub rank_stabilised: bool,
    /// Which linears: names of modules, their ends after a dot, or globs.
    pub targets: Option<Vec<String>>,
}

impl Default for Lora {
    fn default() -> Self {
        Self { rank: 8, alpha: 8.0, dropout: 0.0, rank_stabilised: false, targets: None }
    }
}

/// `[optim]`: AdamW and its learning rate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Optim {
    /// Peak learning rate; at least 0.
    pub lr: f64,
    /// What the learning rate does after the warm-up.
    pub schedule: Schedule,
    /// Warm-up: below 1 a share of all steps, from 1 on a whole number of steps.
    pub warmup: f64,
    /// Decoupled weight decay, on everything but biases and norms; at least 0.
    pub weight_decay: f64,
    /// Decay of the first moment; in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment; in [0, 1).
    pub beta2: f64,
    /// Added to the root of the second moment; above 0.
    pub eps: f64,
    /// Largest global gradient norm; 0 turns clipping off.
    pub clip: f64,
    /// How the moments of large parameters are held.
    pub states: States,
    /// When weights are updated. In the backward pass there is no global norm to clip by, and nothing to accumulate.
    pub update: When,
}

impl Default for Optim {
    fn default() -> Self {
        Self {
            lr: 2e-5,
            schedule: Schedule::Linear,
            warmup: 0.0,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            clip: 1.0,
            states: States::F32,
            update: When::AfterBackward,
        }
    }
}

impl From<&Optim> for Hyperparameters {
    fn from(o: &Optim) -> Self {
        let &Optim { beta1, beta2, eps, weight_decay, clip, states, update, .. } = o;
        Self { beta1, beta2, eps, weight_decay, clip, states, update }
    }
}

/// `[keep]`: what is kept for the backward pass.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Keeping {
    /// Which sites keep all their rows and which keep a sample.
    pub policy: PolicyName,
    /// How the rows of a sampled site are chosen and weighted.
    pub estimator: Estimate,
    /// Share of the rows that a sampled site keeps.
    pub ratio: Ratio,
    /// Steps between two measurements of what the ratios that the run chooses follow; at least 1.
    pub auto_every: u64,
    /// Share of the minibatch's variance that sampling may add where the run chooses the ratio; above 0.
    pub auto_share: f64,
    /// Most bytes that the largest batch may keep where the run chooses ratios.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Where the norms of the output gradients come from; without it `cached` under the policies `exact` and `paper`, else `current`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norms: Option<NormSource>,
    /// Share λ of uniform probability mixed into estimated norms; in [0, 1].
    pub uniform: f64,
    /// Where the norm cache lives.
    pub cache: CacheIn,
    /// Exceptions by site; the first match wins.
    #[serde(serialize_with = "sites_as_table", skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<SiteException>,
}

impl Default for Keeping {
    fn default() -> Self {
        Self {
            policy: PolicyName::Exact,
            estimator: Estimate::By(Estimator::Pps),
            ratio: Ratio::Fixed(0.3),
            auto_every: 10,
            auto_share: 0.025,
            bytes: None,
            norms: None,
            uniform: 0.1,
            cache: CacheIn::Memory,
            sites: Vec::new(),
        }
    }
}

impl Keeping {
    /// Where the norms of the output gradients come from.
    pub fn norms(&self) -> NormSource {
        self.norms.unwrap_or(match self.policy {
            PolicyName::Lean | PolicyName::Leanest | PolicyName::Recompute => NormSource::Current,
            PolicyName::Exact | PolicyName::Paper => NormSource::Cached,
        })
    }

    /// Whether any ratio is left to the run.
    pub fn chooses_ratios(&self) -> bool {
        self.ratio == Ratio::Auto || self.sites.iter().any(|site| site.ratio == Some(Ratio::Auto))
    }

    /// The first exception that names a site and that `fits` it.
    pub fn exception(&self, site: &str, fits: impl Fn(&SiteException) -> bool) -> Option<&SiteException> {
        self.sites.iter().find(|s| glob_matches(&s.pattern, site) && fits(s))
    }
}

/// `[keep.sites]`: one exception. What it leaves out comes from `[keep]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SiteException {
    /// Glob over site names (`*` also crosses dots): the key of this entry.
    #[serde(skip)]
    pub pattern: String,
    /// All rows or a sample; without it as the policy says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<SiteKeep>,
    /// See [`Keeping::estimator`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimator: Option<Estimate>,
    /// See [`Keeping::ratio`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<Ratio>,
    /// See [`Keeping::norms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norms: Option<NormSource>,
}

fn sites_as_table<S: Serializer>(sites: &[SiteException], s: S) -> Result<S::Ok, S::Error> {
    s.collect_map(sites.iter().map(|site| (&site.pattern, site)))
}

/// Share of the rows that a site keeps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ratio {
    /// A number in (0, 1].
    Fixed(f64),
    /// What the run finds by measuring: `"auto"`.
    Auto,
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(ratio) => ratio.fmt(f),
            Self::Auto => f.write_str(rules::AUTO),
        }
    }
}

impl Serialize for Ratio {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Fixed(ratio) => s.serialize_f64(*ratio),
            Self::Auto => s.serialize_str(rules::AUTO),
        }
    }
}

/// Every key of a recipe by its path, but those of exceptions by site.
pub fn keys() -> Vec<String> {
    parse::keys()
}

/// Size of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum BatchSize {
    /// So many sequences, the last batch of an epoch fewer (`batch`); at least 1.
    #[serde(rename = "batch")]
    Sequences(usize),
    /// As many sequences as have together at most so many tokens, at least one (`batch_tokens`); at least 1.
    #[serde(rename = "batch_tokens")]
    Tokens(usize),
}

/// When something happens again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// At the end of each epoch: `"epoch"`.
    Epoch,
    /// After so many optimizer steps, at least 1: a whole number.
    Steps(u64),
}

impl Serialize for Every {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Epoch => s.serialize_str(rules::EPOCH),
            Self::Steps(n) => s.serialize_u64(*n),
        }
    }
}

impl Recipe {
    /// Reads a recipe file and applies `--set KEY=VALUE` arguments to it.
    ///
    /// # Errors
    /// A usage error if the file cannot be read as UTF-8, else as [`Recipe::parse`].
    pub fn load(path: &Path, sets: &[String]) -> Result<Self> {
        let file = path.display().to_string();
        if let Some((found, hint)) = other_than_a_recipe(path) {
            return Err(Error::usage(format!("{file}: expected a recipe (a TOML file), found {found}")).hint(hint));
        }
        let bytes = files::read(path, MOST_BYTES)
            .map_err(|e| Error::usage(format!("{file}: expected a recipe (a TOML file): {e}")))?;
        let text = std::str::from_utf8(&bytes).map_err(|e| {
            let line = 1 + bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count();
            Error::usage(format!("{file}:{line}: expected UTF-8 text, found other bytes"))
        })?;
        Self::parse(text, &file, sets)
    }

    /// Reads a recipe. `file` is its name in messages; `sets` are `KEY=VALUE` texts whose keys are paths such as
    /// `optim.lr`. A value is TOML, or else a bare string. They override the file, later ones earlier ones;
    /// new patterns under `keep.sites` come before those of the file.
    ///
    /// # Errors
    /// One usage error with every problem of the file and of `sets`, each with its line.
    pub fn parse(text: &str, file: &str, sets: &[String]) -> Result<Self> {
        parse::parse(text, file, sets)
    }

    /// Checks that the keys that only training needs are there.
    ///
    /// # Errors
    /// One usage error that names all that are missing; `file` is the recipe's name in it.
    pub fn check_train(&self, file: &str) -> Result<()> {
        parse::check_train(self, file)
    }

    /// The recipe as TOML with all defaults filled in; [`Recipe::parse`] reads it back to the same value.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe is a table of strings, numbers, lists and tables")
    }
}

/// What a path is that is no recipe, and what to do with it.
fn other_than_a_recipe(path: &Path) -> Option<(&'static str, String)> {
    let name = path.display();
    if path.is_dir() {
        let has = |file: &str| path.join(file).exists();
        return Some(match (has(RECIPE), has("config.json")) {
            (true, _) => ("a run's folder", format!("its recipe is {}", path.join(RECIPE).display())),
            (_, true) => ("a model", format!("colrow init --model {name} writes a recipe for it")),
            _ => ("a folder", format!("if it is data, colrow init --data {name} writes a recipe for it")),
        });
    }
    const DATA: [&str; 8] = ["csv", "tsv", "txt", "json", "jsonl", "ndjson", "parquet", "arrow"];
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    (path.exists() && DATA.contains(&extension.as_str()))
        .then(|| ("data", format!("colrow init --data {name} writes a recipe for it")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Every key given, none with its default but those of [`ONLY_DEFAULT`].
    const FULL: &str = r#"
        task = "rte"
        seed = 7
        output = "runs/x"
        [model]
        path = "models/m"
        base = "bf16"
        revision = "v2"
        dropout = 0.25
        init_missing = true
        [data]
        train = "a.csv"
        dev = "b.csv"
        text = "t"
        pair = "p"
        label = "l"
        positive = "yes"
        messages = "m"
        role = "who"
        content = "said"
        roles = { bot = "assistant" }
        prompt = "p"
        completion = "c"
        train_on = "last"
        date = "2026-11-28"
        max_length = 64
        max_target_length = 8
        limit = 10
        dev_share = 0.2
        [train]
        epochs = 1.5
        steps = 9
        batch_tokens = 512
        accumulate = 2
        precision = "bf16"
        weights = "bf16"
        method = "lora-fa"
        modules_to_save = ["pooler", "classifier"]
        eval_every = 5
        save_every = 6
        keep_checkpoints = 2
        best_metric = "f1"
        patience = 3
        freeze = ["embeddings.*", "quote\"d"]
        log_every = 1
        log = ["jsonl", "tensorboard"]
        [lora]
        rank = 32
        alpha = 16
        dropout = 0.1
        rank_stabilised = true
        targets = ["q*"]
        [optim]
        lr = 1e-300
        schedule = "cosine"
        warmup = 100
        weight_decay = 0.1
        beta1 = 0.8
        beta2 = 0.99
        eps = 1e-6
        clip = 0
        states = "8bit"
        update = "after-backward"
        [keep]
        policy = "paper"
        estimator = "wta"
        ratio = "auto"
        auto_every = 5
        auto_share = 0.1
        bytes = "1.5 MiB"
        norms = "running"
        uniform = 0.2
        cache = "file"
        [keep.sites]
        "z.*.dense" = { keep = "rows", estimator = "crs", ratio = 0.5, norms = "current" }
        "a.*" = { keep = "exact" }
        "é \"q\"" = {}
    "#;

    /// Updates in the backward pass exclude accumulation.
    const ONLY_DEFAULT: [&str; 1] = ["optim.update"];

    fn parse(text: &str) -> Recipe {
        Recipe::parse(text, "test", &[]).unwrap()
    }

    /// Every key of a TOML text by path, patterns of sites as `*`.
    fn keys(text: &str) -> BTreeMap<String, toml::Value> {
        fn walk(table: &toml::Table, prefix: &str, out: &mut BTreeMap<String, toml::Value>) {
            for (key, value) in table {
                let of_any_name = prefix == "keep.sites." || prefix == "data.roles.";
                let path = if of_any_name { format!("{prefix}*") } else { format!("{prefix}{key}") };
                match value {
                    toml::Value::Table(inner) => walk(inner, &format!("{path}."), out),
                    value => drop(out.insert(path, value.clone())),
                }
            }
        }
        let mut out = BTreeMap::new();
        walk(&text.parse().unwrap(), "", &mut out);
        out
    }

    #[test]
    fn a_written_recipe_reads_back_the_same() {
        let least = parse("model.path = 'm'");
        let full = parse(FULL);
        let sequences =
            Recipe { train: Train { batch: BatchSize::Sequences(3), ..full.train.clone() }, ..full.clone() };
        let in_backward = parse("model.path = 'm'\noptim = { clip = 0, update = 'in-backward' }");
        for recipe in [least, full, sequences, in_backward] {
            assert_eq!(parse(&recipe.to_toml()), recipe);
        }
    }

    #[test]
    fn the_least_recipe_is_the_default() {
        let default = Recipe { model: Model { path: "m".into(), ..Model::default() }, ..Recipe::default() };
        assert_eq!(parse("model.path = 'm'"), default);
    }

    #[test]
    fn no_key_is_lost() {
        let written: Vec<_> = keys(&parse(FULL).to_toml()).into_keys().collect();
        let given: Vec<_> = keys(FULL).into_keys().collect();
        assert_eq!(written, given);
        let least = keys(&parse("model.path = 'm'").to_toml());
        let full = keys(FULL);
        let same = |key: &&String| full[*key] == least[*key] && !ONLY_DEFAULT.contains(&key.as_str());
        let shared: Vec<_> = least.keys().filter(|key| full.contains_key(*key)).filter(same).collect();
        assert!(shared.is_empty(), "the full recipe must differ from the defaults in {shared:?}");
    }

    #[test]
    fn the_reference_has_every_key_with_its_default() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/recipe.md")).unwrap();
        let rows: BTreeMap<_, _> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
            // another table lists the ends of files
            .filter(|(key, _)| !key.starts_with('.'))
            .filter_map(|(key, rest)| Some((key.to_string(), rest.split_once(" |")?.0.trim().to_string())))
            .collect();
        let mut expected = keys(FULL);
        expected.insert("train.batch".into(), 32.into());
        assert_eq!(rows.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());

        let defaults = keys(&Recipe::default().to_toml());
        for (key, default) in rows {
            match default.strip_prefix('`').and_then(|d| d.strip_suffix('`')) {
                Some(default) => {
                    let value = keys(&format!("v = {default}")).remove("v");
                    let number = |v: &toml::Value| v.as_float().or(v.as_integer().map(|n| n as f64));
                    let (found, told) = (defaults.get(&key), value.as_ref());
                    assert!(
                        found == told || found.and_then(number) == told.and_then(number),
                        "{key}: {found:?}, {told:?}"
                    );
                }
                None => assert!(key == "model.path" || !defaults.contains_key(&key), "{key} has a default"),
            }
        }
    }

    #[test]
    fn sites_keep_their_order_and_the_command_line_comes_first() {
        let sets = ["keep.sites.'z.*.dense'.ratio=0.9".to_string(), "keep.sites.'q*'.ratio=0.8".to_string()];
        let keep = Recipe::parse(FULL, "test", &sets).unwrap().keep;
        let patterns: Vec<_> = keep.sites.iter().map(|s| s.pattern.as_str()).collect();
        assert_eq!(patterns, ["q*", "z.*.dense", "a.*", "é \"q\""]);
        assert_eq!(keep.sites[1].ratio, Some(Ratio::Fixed(0.9)));
        assert_eq!(keep.sites[1].estimator, Some(Estimate::By(Estimator::Crs)));
    }

    #[test]
    fn exceptions_match_by_glob() {
        let keep = parse(FULL).keep;
        let dense = keep.exception("z.layer.3.output.dense", |_| true).unwrap();
        assert_eq!((dense.keep, dense.ratio), (Some(SiteKeep::Rows), Some(Ratio::Fixed(0.5))));
        assert_eq!(keep.exception("a.b", |_| true).unwrap().keep, Some(SiteKeep::Exact));
        assert_eq!((keep.exception("b.a", |_| true), keep.exception("a.b", |_| false)), (None, None));
        let train = parse(FULL).train;
        assert!(train.is_frozen("embeddings.word.weight") && !train.is_frozen("encoder.embeddings"));
    }

    #[test]
    fn the_recipes_of_the_repository_are_sound() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../recipes"));
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            Recipe::load(&path, &[]).unwrap().check_train(&name).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.starts_with(&format!("# cargo run --release -- train recipes/{name}\n")), "{name}");
            assert!(text.lines().count() <= 30, "{name}");
            count += 1;
        }
        assert!((1..=10).contains(&count));
    }

    #[test]
    fn files_that_are_no_recipes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.toml");
        let load = |path: &Path| Recipe::load(path, &[]).unwrap_err();
        assert!(load(&path).to_string().contains("r.toml: expected a recipe (a TOML file): "));
        let found = |path: &Path, found: &str, hint: &str| {
            let error = load(path).to_string();
            assert!(error.contains(&format!(": expected a recipe (a TOML file), found {found}\n")), "{error}");
            assert!(error.ends_with(&format!("hint: {hint}")), "{error}");
        };
        let name = folder.path().display().to_string();
        found(folder.path(), "a folder", &format!("if it is data, colrow init --data {name} writes a recipe for it"));
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        found(folder.path(), "a model", &format!("colrow init --model {name} writes a recipe for it"));
        std::fs::write(folder.path().join("recipe.toml"), "").unwrap();
        found(folder.path(), "a run's folder", &format!("its recipe is {name}/recipe.toml"));
        let data = folder.path().join("a.CSV");
        assert!(load(&data).to_string().contains("expected a recipe (a TOML file): "), "no such file");
        std::fs::write(&data, "text,label\n").unwrap();
        found(&data, "data", &format!("colrow init --data {} writes a recipe for it", data.display()));
        std::fs::write(&path, b"a = 1\nb = \"\xff\"\n").unwrap();
        let error = load(&path);
        assert!(error.to_string().ends_with("r.toml:2: expected UTF-8 text, found other bytes"));
        assert_eq!(error.kind(), colrow_tensor::Kind::Usage);
        std::fs::write(&path, "model.path = 'm'").unwrap();
        assert_eq!(Recipe::load(&path, &[]).unwrap().model.path, "m");
    }
}
