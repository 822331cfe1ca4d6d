//! TOML to [`Recipe`]: one walk that takes each key by name, so that the walk itself knows which keys there are.
//!
//! Nothing stops at the first problem. A table reads the keys it knows; what is left over is unknown, and is explained
//! at the end, when every known key has been asked for once.

use std::collections::BTreeMap;

use colrow_tensor::{BaseWeights, Result};
use globset::Glob;

use super::document::{At, Document, Entries, Node, Problem, Value, report};
use super::rules::{
    LIKE, MOST_STEPS, bytes, choice, day, every, flag, glob, label, number, ratio, text, whole_number, wrong,
};
use super::{BatchSize, Data, Keeping, Lora, Method, Model, Optim, Recipe, SiteException, Train};
use crate::chat::Keys;
use crate::step::Hyperparameters;
use crate::unknown::nearest;

/// See [`Recipe::parse`].
pub(super) fn parse(text: &str, file: &str, sets: &[String]) -> Result<Recipe> {
    let mut doc = Document::read(text, sets);
    let mut walk = Walk { sets, ..Walk::default() };
    let recipe = recipe(&mut walk, std::mem::take(&mut doc.root), doc.broken.is_empty());
    walk.explain_unknown();
    // Around broken syntax the parser guesses; problems with its guesses would only distract.
    let certain = |p: &Problem| match p.at {
        At::Line(line) => !doc.broken.contains(&line) && doc.lost_from.is_none_or(|lost| line < lost),
        At::File | At::Set(_) => true,
    };
    doc.problems.extend(walk.problems.into_iter().filter(certain));
    if doc.problems.is_empty() { Ok(recipe) } else { Err(report(doc.problems, file, sets)) }
}

/// See [`super::keys`].
pub(super) fn keys() -> Vec<String> {
    let mut walk = Walk::default();
    recipe(&mut walk, Entries::new(), false);
    let is_table = |path: &str| walk.known.iter().any(|(table, _)| table == path);
    let paths = walk.known.iter().map(|(table, key)| join(table, key));
    paths.filter(|path| !["keep.sites", "data.roles"].contains(&path.as_str()) && !is_table(path)).collect()
}

/// See [`Recipe::check_train`].
pub(super) fn check_train(recipe: &Recipe, file: &str) -> Result<()> {
    let needed = [
        (recipe.output.is_none(), "`output`: expected the run folder"),
        (recipe.data.train.is_none(), "`data.train`: expected a GLUE folder or a file"),
    ];
    let problems: Vec<_> = needed
        .into_iter()
        .filter(|(missing, _)| *missing)
        .map(|(_, key)| Problem { at: At::File, text: format!("missing key {key}") })
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(report(problems, file, &[])) }
}

/// What to do where `model.base` has nothing to hold.
pub(crate) const HELD_IF_FROZEN: &str = "train adapters (train.method = \"lora\") or biases (\"bitfit\"), name what stays as it is in train.freeze, or leave out model.base";

/// Most tokens of an example: beyond what any model reads.
const MOST_LENGTH: i128 = 1 << 20;
/// The same of an answer.
const MOST_TARGET_LENGTH: i128 = 1 << 16;
/// Most sequences or tokens in a batch, and batches in a step: numbers of rows have 32 bits.
const MOST_BATCH: i128 = 1_000_000_000;
/// Most rows of an adapter's A: beyond the width of any model.
const MOST_RANK: i128 = 1 << 16;

/// Also as the 32-bit float that it is used as.
fn probability(x: f64) -> bool {
    x >= 0.0 && (x as f32) < 1.0
}

fn recipe(walk: &mut Walk<'_>, entries: Entries, whole: bool) -> Recipe {
    let d = Recipe::default();
    let mut t = Table { walk, path: String::new(), at: At::File, entries };
    let update = t.at_within("optim", "update").unwrap_or(At::File);
    let base = t.at_within("model", "base").unwrap_or(At::File);
    let weights = t.at_within("train", "weights").unwrap_or(At::File);
    let recipe = Recipe {
        task: t.get("task", text).unwrap_or(d.task),
        seed: t.get("seed", whole_number(0..=i128::from(u64::MAX))).unwrap_or(d.seed),
        output: t.get("output", text),
        model: t.table("model", |t| model(t, whole)),
        data: t.table("data", data),
        train: t.table("train", train),
        lora: t.table("lora", lora),
        optim: t.table("optim", optim),
        keep: t.table("keep", keep),
    };
    for reason in Hyperparameters::from(&recipe.optim).refusals(recipe.train.accumulate) {
        t.problem(update, reason);
    }
    let Recipe { model, train, .. } = &recipe;
    if let Some(reason) = train.weights_refusal() {
        t.problem(weights, reason);
    }
    if model.base != BaseWeights::F32 && train.method == Method::Full && train.freeze.is_empty() {
        let held = format!(
            "`model.base` = \"{}\" is for what is not trained, and train.method = \"full\" trains all",
            model.base
        );
        t.problem(base, format!("{held}; {HELD_IF_FROZEN}"));
    }
    t.finish();
    recipe
}

fn model(t: &mut Table<'_, '_>, whole: bool) -> Model {
    let d = Model::default();
    if whole && t.at_of("path").is_none() {
        t.problem(t.at, "missing key `model.path`: expected a folder or a hub id");
    }
    Model {
        path: t.get("path", text).unwrap_or(d.path),
        revision: t.get("revision", text).unwrap_or(d.revision),
        dropout: t.get("dropout", number("a number in [0, 1)", probability)),
        init_missing: t.get("init_missing", flag).unwrap_or(d.init_missing),
        base: t.get("base", choice).unwrap_or(d.base),
    }
}

fn data(t: &mut Table<'_, '_>) -> Data {
    let d = Data::default();
    Data {
        train: t.get("train", text),
        dev: t.get("dev", text),
        text: t.get("text", text),
        pair: t.get("pair", text),
        label: t.get("label", text),
        positive: t.get("positive", label),
        keys: Keys {
            messages: t.get("messages", text),
            role: t.get("role", text),
            content: t.get("content", text),
            roles: t.table("roles", roles),
            prompt: t.get("prompt", text),
            completion: t.get("completion", text),
        },
        train_on: t.get("train_on", choice),
        date: t.get("date", day),
        max_length: t.get("max_length", whole_number(1..=MOST_LENGTH)).unwrap_or(d.max_length),
        max_target_length: t
            .get("max_target_length", whole_number(2..=MOST_TARGET_LENGTH))
            .unwrap_or(d.max_target_length),
        limit: t.get("limit", whole_number(1..=MOST_STEPS)),
        dev_share: t.get("dev_share", number("a number in (0, 1)", |x| x > 0.0 && x < 1.0)).unwrap_or(d.dev_share),
    }
}

/// The role that each name stands for.
fn roles(t: &mut Table<'_, '_>) -> BTreeMap<String, String> {
    let entries = std::mem::take(&mut t.entries);
    entries.into_iter().filter_map(|(name, node)| t.judge(&name, &node, text).map(|role| (name, role))).collect()
}

fn train(t: &mut Table<'_, '_>) -> Train {
    let d = Train::default();
    t.exclude("batch", "batch_tokens");
    let sequences = t.get("batch", whole_number(1..=MOST_BATCH)).map(BatchSize::Sequences);
    let tokens = t.get("batch_tokens", whole_number(1..=MOST_BATCH)).map(BatchSize::Tokens);
    Train {
        epochs: t
            .get("epochs", number("a number above 0 and at most 10000", |x| x > 0.0 && x <= 1e4))
            .unwrap_or(d.epochs),
        steps: t.get("steps", whole_number(1..=MOST_STEPS)),
        batch: sequences.or(tokens).unwrap_or(d.batch),
        accumulate: t.get("accumulate", whole_number(1..=MOST_BATCH)).unwrap_or(d.accumulate),
        precision: t.get("precision", choice).unwrap_or(d.precision),
        weights: t.get("weights", choice).unwrap_or(d.weights),
        method: t.get("method", choice).unwrap_or(d.method),
        modules_to_save: t.list("modules_to_save", glob).or(d.modules_to_save),
        eval_every: t.get("eval_every", every).unwrap_or(d.eval_every),
        save_every: t.get("save_every", every).unwrap_or(d.save_every),
        keep_checkpoints: t.get("keep_checkpoints", whole_number(1..=MOST_BATCH)).unwrap_or(d.keep_checkpoints),
        best_metric: t.get("best_metric", text),
        patience: t.get("patience", whole_number(1..=MOST_STEPS)),
        freeze: t.list("freeze", glob).unwrap_or(d.freeze),
        log_every: t.get("log_every", whole_number(1..=MOST_STEPS)).unwrap_or(d.log_every),
        log: t.list("log", choice).unwrap_or(d.log),
    }
}

fn lora(t: &mut Table<'_, '_>) -> Lora {
    let d = Lora::default();
    Lora {
        rank: t.get("rank", whole_number(1..=MOST_RANK)).unwrap_or(d.rank),
        alpha: t
            .get("alpha", number("a number above 0 and at most 1000000", |x| x > 0.0 && x <= 1e6))
            .unwrap_or(d.alpha),
        dropout: t.get("dropout", number("a number in [0, 1)", probability)).unwrap_or(d.dropout),
        rank_stabilised: t.get("rank_stabilised", flag).unwrap_or(d.rank_stabilised),
        targets: t.list("targets", glob).or(d.targets),
    }
}

fn optim(t: &mut Table<'_, '_>) -> Optim {
    let d = Optim::default();
    let decay = || number("a number in [0, 1)", probability);
    let warmup = number("a share in [0, 1) or a whole number of steps, at most 1000000000000", |x| {
        (0.0..1.0).contains(&x) || (1.0..=MOST_STEPS as f64).contains(&x) && x % 1.0 == 0.0
    });
    let clip = number("a number of at least 0 and at most 1000000000 (0 clips nothing)", |x| (0.0..=1e9).contains(&x));
    let eps = number("a number above 0 (in 32-bit floats) and at most 1", |x| x as f32 > 0.0 && x <= 1.0);
    Optim {
        lr: t.get("lr", number("a number of at least 0", |x| x >= 0.0)).unwrap_or(d.lr),
        schedule: t.get("schedule", choice).unwrap_or(d.schedule),
        warmup: t.get("warmup", warmup).unwrap_or(d.warmup),
        weight_decay: t
            .get("weight_decay", number("a number of at least 0 and at most 1000", |x| (0.0..=1e3).contains(&x)))
            .unwrap_or(d.weight_decay),
        beta1: t.get("beta1", decay()).unwrap_or(d.beta1),
        beta2: t.get("beta2", decay()).unwrap_or(d.beta2),
        eps: t.get("eps", eps).unwrap_or(d.eps),
        clip: t.get("clip", clip).unwrap_or(d.clip),
        states: t.get("states", choice).unwrap_or(d.states),
        update: t.get("update", choice).unwrap_or(d.update),
    }
}

fn keep(t: &mut Table<'_, '_>) -> Keeping {
    let d = Keeping::default();
    let limit = t.at_of("bytes");
    let keep = Keeping {
        policy: t.get("policy", choice).unwrap_or(d.policy),
        estimator: t.get("estimator", choice).unwrap_or(d.estimator),
        ratio: t.get("ratio", ratio).unwrap_or(d.ratio),
        auto_every: t.get("auto_every", whole_number(1..=MOST_STEPS)).unwrap_or(d.auto_every),
        auto_share: t
            .get("auto_share", number("a number above 0 and at most 1000", |x| x > 0.0 && x <= 1e3))
            .unwrap_or(d.auto_share),
        bytes: t.get("bytes", bytes),
        norms: t.get("norms", choice),
        uniform: t.get("uniform", number("a number in [0, 1]", |x| (0.0..=1.0).contains(&x))).unwrap_or(d.uniform),
        cache: t.get("cache", choice).unwrap_or(d.cache),
        sites: t.table("sites", sites),
    };
    if let (Some(at), Some(_), false) = (limit, keep.bytes, keep.chooses_ratios()) {
        t.problem(at, "keep.bytes: limits ratios that the run chooses; set `keep.ratio` to \"auto\"");
    }
    keep
}

fn sites(t: &mut Table<'_, '_>) -> Vec<SiteException> {
    let mut entries = std::mem::take(&mut t.entries);
    // The first match wins, and the command line wins over the file.
    entries.sort_by_key(|(_, node)| !matches!(node.at, At::Set(_)));
    let mut sites = Vec::new();
    for (pattern, node) in entries {
        if let Err(e) = Glob::new(&pattern) {
            t.problem(node.at, format!("{}: expected a glob over site names: {}", t.path_of(&pattern), e.kind()));
        }
        sites.push(t.node_as_table(&pattern.clone(), Some(node), |t| site(t, pattern)));
    }
    sites
}

fn site(t: &mut Table<'_, '_>, pattern: String) -> SiteException {
    SiteException {
        pattern,
        keep: t.get("keep", choice),
        estimator: t.get("estimator", choice),
        ratio: t.get("ratio", ratio),
        norms: t.get("norms", choice),
    }
}

/// What the walk has met so far.
#[derive(Default)]
struct Walk<'s> {
    sets: &'s [String],
    problems: Vec<Problem>,
    /// Every key that was asked for: path of its table, name.
    known: Vec<(String, &'static str)>,
    /// Every key that nothing asked for: path of its table, name, place.
    unknown: Vec<(String, String, At)>,
}

impl Walk<'_> {
    fn explain_unknown(&mut self) {
        for (table, key, at) in std::mem::take(&mut self.unknown) {
            let here = || self.known.iter().filter(|(t, _)| *t == table).map(|(_, k)| *k);
            let elsewhere = || self.known.iter().find(|(_, k)| *k == key);
            let all = || self.known.iter().map(|(_, k)| *k);
            let meant = elsewhere()
                .map(|(t, k)| join(t, k))
                .or_else(|| nearest(&key, here(), LIKE).map(|k| join(&table, k)))
                .or_else(|| {
                    let near = nearest(&key, all(), LIKE)?;
                    self.known.iter().find(|(_, k)| *k == near).map(|(t, k)| join(t, k))
                });
            let advice = match (super::foreign::advice(&key), meant) {
                (Some(advice), _) => advice.to_owned(),
                (None, Some(path)) => format!("did you mean `{path}`?"),
                (None, None) => format!("there are `{}`", here().collect::<Vec<_>>().join("`, `")),
            };
            self.problems.push(Problem { at, text: format!("unknown key `{}`; {advice}", join(&table, &key)) });
        }
    }
}

/// A key's path as `--set` takes it.
fn join(table: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let key = if bare { key.to_string() } else { format!("{key:?}") };
    if table.is_empty() { key } else { format!("{table}.{key}") }
}

/// A table that is being read: the entries that nothing has asked for yet.
struct Table<'w, 's> {
    walk: &'w mut Walk<'s>,
    path: String,
    at: At,
    entries: Entries,
}

impl Table<'_, '_> {
    fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    fn at_of(&self, key: &str) -> Option<At> {
        self.entries.iter().find(|(k, _)| k == key).map(|(_, node)| node.at)
    }

    /// Where a key of the table `table` was written.
    fn at_within(&self, table: &str, key: &str) -> Option<At> {
        let (_, node) = self.entries.iter().find(|(k, _)| k == table)?;
        let Value::Table(inner) = &node.value else { return None };
        inner.iter().find(|(k, _)| k == key).map(|(_, node)| node.at)
    }

    fn problem(&mut self, at: At, text: impl Into<String>) {
        self.walk.problems.push(Problem { at, text: text.into() });
    }

    fn take(&mut self, key: &'static str) -> Option<Node> {
        self.walk.known.push((self.path.clone(), key));
        let i = self.entries.iter().position(|(k, _)| k == key)?;
        Some(self.entries.remove(i).1)
    }

    /// The value of a key; `None` if it is absent or, then with a problem, against the rule.
    fn get<T>(&mut self, key: &'static str, rule: impl Fn(&Node) -> Result<T, String>) -> Option<T> {
        let node = self.take(key)?;
        self.judge(key, &node, rule)
    }

    /// A list whose items all follow the rule.
    fn list<T>(&mut self, key: &'static str, rule: impl Fn(&Node) -> Result<T, String>) -> Option<Vec<T>> {
        let node = self.take(key)?;
        match &node.value {
            Value::List(items) => {
                let judged: Vec<_> = items.iter().map(|item| self.judge(key, item, &rule)).collect();
                judged.into_iter().collect()
            }
            _ => self.judge(key, &node, |node| wrong("a list", node)),
        }
    }

    fn judge<T>(&mut self, key: &str, node: &Node, rule: impl Fn(&Node) -> Result<T, String>) -> Option<T> {
        rule(node).map_err(|text| self.problem(node.at, format!("{}: {text}", self.path_of(key)))).ok()
    }

    /// Reads a table; an absent one as if it were empty, so that the walk meets its keys.
    fn table<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Table<'_, '_>) -> T) -> T {
        let node = self.take(key);
        self.node_as_table(key, node, read)
    }

    fn node_as_table<T>(&mut self, key: &str, node: Option<Node>, read: impl FnOnce(&mut Table<'_, '_>) -> T) -> T {
        let at = node.as_ref().map_or(At::File, |node| node.at);
        let entries = match node {
            Some(Node { value: Value::Table(entries), .. }) => entries,
            Some(node) => self.judge(key, &node, |node| wrong("a table", node)).unwrap_or_default(),
            None => Entries::new(),
        };
        let path = self.path_of(key);
        let mut table = Table { walk: self.walk, path, at, entries };
        let value = read(&mut table);
        table.finish();
        value
    }

    /// Of two keys that say the same thing only one may be given. The command line silently wins over the file.
    fn exclude(&mut self, a: &'static str, b: &'static str) {
        let (Some(at_a), Some(at_b)) = (self.at_of(a), self.at_of(b)) else { return };
        let drop = match (at_a, at_b) {
            (At::Set(_), At::Line(_)) => b,
            (At::Line(_), At::Set(_)) => a,
            _ => {
                let ((first, at), (second, other)) =
                    if at_a <= at_b { ((a, at_a), (b, at_b)) } else { ((b, at_b), (a, at_a)) };
                let other = match other {
                    At::File => String::new(),
                    At::Line(line) => format!(" (line {line})"),
                    At::Set(i) => format!(" (--set {})", self.walk.sets[i]),
                };
                let (first_path, second_path) = (self.path_of(first), self.path_of(second));
                self.problem(at, format!("`{first_path}` and `{second_path}`{other} exclude each other; keep one"));
                second
            }
        };
        self.entries.retain(|(key, _)| key != drop);
    }

    fn finish(self) {
        let path = self.path;
        self.walk.unknown.extend(self.entries.into_iter().map(|(key, node)| (path.clone(), key, node.at)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;

    const MODEL: &str = "[model]\npath = \"m\"\n";

    fn read(text: &str, sets: &[&str]) -> Result<Recipe> {
        let sets: Vec<_> = sets.iter().map(|s| s.to_string()).collect();
        Recipe::parse(text, "r.toml", &sets)
    }

    /// The only problem of a recipe: the report's second line.
    fn problem(text: &str, sets: &[&str]) -> String {
        let report = read(text, sets).unwrap_err().to_string();
        report.strip_prefix("1 problem in recipe\n  ").unwrap_or_else(|| panic!("{report}")).to_string()
    }

    /// The only problem of a `--set` argument over a recipe without problems.
    fn set_problem(set: &str) -> String {
        let report = problem(MODEL, &[set]);
        report.strip_prefix(&format!("in --set {set}: ")).unwrap_or_else(|| panic!("{report}")).to_string()
    }

    #[test]
    fn all_problems_are_reported_in_order() {
        let text = "task = sst2\nlr = 1\n[model]\npath = \"m\"\n[optim]\nlrr = 1\n[keep]\nratio = 1.5\n\
                    norms = \"cashed\"\n[train]\nfreeze = [\"a\", 1,\n2]\n";
        let error = read(text, &["optim.lrr=1", "optim.eps=0", "optim.lrrr=2"]).unwrap_err();
        assert_eq!(error.kind(), colrow_tensor::Kind::Usage);
        let expected = "9 problems in recipe
  r.toml:1: not TOML: string values must be quoted, expected literal string
  r.toml:2: unknown key `lr`; did you mean `optim.lr`?
  r.toml:8: keep.ratio: expected a number in (0, 1] or \"auto\", found 1.5
  r.toml:9: keep.norms: expected one of \"current\", \"cached\", \"running\", \"uniform\", \
                        found the string \"cashed\"; did you mean \"cached\"?
  r.toml:11: train.freeze: expected a string that is not empty, found 1
  r.toml:12: train.freeze: expected a string that is not empty, found 2
  in --set optim.lrr=1: unknown key `optim.lrr`; did you mean `optim.lr`?
  in --set optim.eps=0: optim.eps: expected a number above 0 (in 32-bit floats) and at most 1, found 0
  in --set optim.lrrr=2: unknown key `optim.lrrr`; did you mean `optim.lr`?";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn ranges_and_types() {
        let cases = [
            ("seed=-1", "seed: expected a whole number of at least 0, found -1"),
            ("seed=1.0", "seed: expected a whole number of at least 0, found 1.0"),
            ("seed=-1", "seed: expected a whole number of at least 0, found -1"),
            ("task=", "task: expected a string that is not empty, found the string \"\""),
            ("output=[]", "output: expected a string that is not empty, found a list"),
            ("model.dropout=1", "model.dropout: expected a number in [0, 1), found 1"),
            ("model.init_missing=yes", "model.init_missing: expected true or false, found the string \"yes\""),
            ("data.max_length=0", "data.max_length: expected a whole number of at least 1, found 0"),
            ("data.limit=0", "data.limit: expected a whole number of at least 1, found 0"),
            ("data.dev_share=0", "data.dev_share: expected a number in (0, 1), found 0"),
            ("data.dev_share=1.0", "data.dev_share: expected a number in (0, 1), found 1.0"),
            ("train.epochs=0", "train.epochs: expected a number above 0 and at most 10000, found 0"),
            ("train.epochs=inf", "train.epochs: expected a number above 0 and at most 10000, found inf"),
            ("train.steps=0", "train.steps: expected a whole number of at least 1, found 0"),
            ("train.batch=0", "train.batch: expected a whole number of at least 1, found 0"),
            ("train.batch_tokens=0", "train.batch_tokens: expected a whole number of at least 1, found 0"),
            ("train.accumulate=0", "train.accumulate: expected a whole number of at least 1, found 0"),
            (
                "train.precision=fp16",
                "train.precision: expected one of \"f32\", \"bf16\", found the string \"fp16\"; did you mean \"bf16\"?",
            ),
            (
                "train.weights=fp16",
                "train.weights: expected one of \"f32\", \"bf16\", found the string \"fp16\"; did you mean \"bf16\"?",
            ),
            (
                "train.method=loraa",
                "train.method: expected one of \"full\", \"lora\", \"lora-fa\", \"bitfit\", found the string \"loraa\"; \
                 did you mean \"lora\"?",
            ),
            ("lora.rank=0", "lora.rank: expected a whole number of at least 1, found 0"),
            ("lora.alpha=0", "lora.alpha: expected a number above 0 and at most 1000000, found 0"),
            ("lora.dropout=1.0", "lora.dropout: expected a number in [0, 1), found 1.0"),
            ("lora.rank_stabilised=1", "lora.rank_stabilised: expected true or false, found 1"),
            (
                "train.save_every=0",
                "train.save_every: expected \"epoch\" or a whole number of steps of at least 1, found 0",
            ),
            ("train.keep_checkpoints=0", "train.keep_checkpoints: expected a whole number of at least 1, found 0"),
            ("train.patience=0", "train.patience: expected a whole number of at least 1, found 0"),
            ("train.freeze=a", "train.freeze: expected a list, found the string \"a\""),
            ("train.log_every=0", "train.log_every: expected a whole number of at least 1, found 0"),
            ("optim.lr=-1e-5", "optim.lr: expected a number of at least 0, found -1e-5"),
            ("optim.lr=nan", "optim.lr: expected a number of at least 0, found nan"),
            ("optim.lr=1e999", "optim.lr: expected a number of at least 0, found 1e999"),
            ("optim.lr=true", "optim.lr: expected a number of at least 0, found true"),
            (
                "optim.schedule=linaer",
                "optim.schedule: expected one of \"linear\", \"cosine\", \"constant\", found the string \"linaer\"; did you mean \"linear\"?",
            ),
            ("optim.schedule=1", "optim.schedule: expected one of \"linear\", \"cosine\", \"constant\", found 1"),
            (
                "optim.warmup=-0.1",
                "optim.warmup: expected a share in [0, 1) or a whole number of steps, at most 1000000000000, found -0.1",
            ),
            (
                "optim.warmup=1.5",
                "optim.warmup: expected a share in [0, 1) or a whole number of steps, at most 1000000000000, found 1.5",
            ),
            ("optim.weight_decay=-1", "optim.weight_decay: expected a number of at least 0 and at most 1000, found -1"),
            ("optim.beta1=1", "optim.beta1: expected a number in [0, 1), found 1"),
            ("optim.beta2=-0.1", "optim.beta2: expected a number in [0, 1), found -0.1"),
            ("optim.eps=0.0", "optim.eps: expected a number above 0 (in 32-bit floats) and at most 1, found 0.0"),
            (
                "optim.clip=-1",
                "optim.clip: expected a number of at least 0 and at most 1000000000 (0 clips nothing), found -1",
            ),
            ("optim.states=int8", "optim.states: expected one of \"f32\", \"8bit\", found the string \"int8\""),
            (
                "optim.update=in_backward",
                "optim.update: expected one of \"after-backward\", \"in-backward\", found the string \"in_backward\"; did you mean \"in-backward\"?",
            ),
            ("optim=3", "optim: expected a table, found 3"),
            ("keep.ratio=0", "keep.ratio: expected a number in (0, 1] or \"auto\", found 0"),
            (
                "keep.ratio=automatic",
                "keep.ratio: expected a number in (0, 1] or \"auto\", found the string \"automatic\"",
            ),
            ("keep.auto_every=0", "keep.auto_every: expected a whole number of at least 1, found 0"),
            ("keep.auto_share=0", "keep.auto_share: expected a number above 0 and at most 1000, found 0"),
            (
                "keep.bytes=many",
                "keep.bytes: expected a size such as \"200MiB\" or a number of bytes, found the string \"many\"",
            ),
            ("keep.bytes=0", "keep.bytes: expected a size such as \"200MiB\" or a number of bytes, found 0"),
            ("keep.bytes=1MiB", "keep.bytes: limits ratios that the run chooses; set `keep.ratio` to \"auto\""),
            ("keep.uniform=1.1", "keep.uniform: expected a number in [0, 1], found 1.1"),
            ("keep.cache={}", "keep.cache: expected one of \"memory\", \"file\", found a table"),
            ("keep.sites.\"a*\"=1", "keep.sites.\"a*\": expected a table, found 1"),
            ("keep.sites.\"a*\".ratio=2", "keep.sites.\"a*\".ratio: expected a number in (0, 1] or \"auto\", found 2"),
            (
                "keep.sites.a.keep=all",
                "keep.sites.a.keep: expected one of \"rows\", \"exact\", \"rebuild\", \"int8\", \"int4\", \"bf16\", \"recompute\", found the string \"all\"",
            ),
        ];
        for (set, expected) in cases {
            assert_eq!(set_problem(set), expected);
        }
        assert!(
            set_problem("keep.sites.\"{a\".ratio=1")
                .starts_with("keep.sites.\"{a\": expected a glob over site names: ")
        );
        assert!(set_problem("train.freeze=['[']").starts_with("train.freeze: expected a glob, found \"[\": "));
    }

    /// Every number of a recipe has an upper end, or takes all that its type has.
    #[test]
    fn numbers_beyond_any_sense_are_range_errors() {
        let whole = [
            ("data.max_length", 1_048_576_u64),
            ("data.max_target_length", 65_536),
            ("data.limit", 1_000_000_000_000),
            ("train.steps", 1_000_000_000_000),
            ("train.batch", 1_000_000_000),
            ("train.batch_tokens", 1_000_000_000),
            ("train.accumulate", 1_000_000_000),
            ("train.eval_every", 1_000_000_000_000),
            ("train.save_every", 1_000_000_000_000),
            ("train.keep_checkpoints", 1_000_000_000),
            ("train.patience", 1_000_000_000_000),
            ("train.log_every", 1_000_000_000_000),
            ("lora.rank", 65_536),
            ("keep.auto_every", 1_000_000_000_000),
        ];
        let huge = ["9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616"];
        let beyond = format!("1{}", "0".repeat(60));
        for (key, most) in whole {
            for n in huge.into_iter().chain([beyond.as_str(), (most + 1).to_string().as_str()]) {
                let problem = set_problem(&format!("{key}={n}"));
                let end = format!(" of at most {most}, found {n}");
                assert!(problem.starts_with(&format!("{key}: expected ")) && problem.ends_with(&end), "{problem}");
            }
            assert!(read(MODEL, &[&format!("{key}={most}")]).is_ok(), "{key}");
        }
        let seed = "seed: expected a whole number of at most 18446744073709551615, found 18446744073709551616";
        assert_eq!(set_problem("seed=18446744073709551616"), seed);
        for (set, expected) in [
            ("keep.bytes=9223372036854775808", "a size such as"),
            ("train.epochs=1e300", "a number above 0 and at most 10000"),
            ("optim.eps=1e-300", "a number above 0 (in 32-bit floats)"),
            ("lora.dropout=0.9999999999999999", "a number in [0, 1)"),
            ("model.dropout=0.9999999999999999", "a number in [0, 1)"),
            ("optim.lr=1e309", "a number of at least 0"),
        ] {
            assert!(set_problem(set).contains(&format!(": expected {expected}")), "{set}: {}", set_problem(set));
        }
        for n in huge.into_iter().chain(["1e300"]) {
            assert!(read(MODEL, &[&format!("optim.lr={n}")]).is_ok(), "optim.lr={n} is odd, and no error here");
        }
        let numbers = [
            ("optim.warmup", "1000000000000"),
            ("optim.weight_decay", "1000"),
            ("optim.clip", "1000000000"),
            ("optim.eps", "1"),
            ("lora.alpha", "1000000"),
            ("keep.auto_share", "1000"),
        ];
        for (key, most) in numbers {
            assert!(read(MODEL, &[&format!("{key}={most}")]).is_ok(), "{key}={most}");
            for n in huge.into_iter().chain(["1e300", "1000000000001"]) {
                let problem = set_problem(&format!("{key}={n}"));
                assert!(
                    problem.starts_with(&format!("{key}: expected a ")) && problem.contains(&format!("at most {most}")),
                    "{problem}"
                );
            }
        }
        for decay in ["optim.beta1", "optim.beta2"] {
            let problem = set_problem(&format!("{decay}=0.99999999999"));
            assert!(problem.contains("a number in [0, 1), found 0.99999999999"), "{problem}");
        }
    }

    #[test]
    fn ends_of_ranges_are_accepted() {
        for set in [
            "seed=18446744073709551615",
            "model.dropout=0",
            "train.epochs=0.01",
            "train.eval_every=7",
            "optim.lr=0",
            "optim.warmup=0.999",
            "optim.warmup=1",
            "optim.beta1=0",
            "optim.clip=0",
            "keep.ratio=1",
            "keep.uniform=0",
            "keep.uniform=1",
            "train.freeze=[]",
        ] {
            assert!(read(MODEL, &[set]).is_ok(), "{set}");
        }
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        let cases = [
            ("lr=1", "unknown key `lr`; did you mean `optim.lr`?"),
            ("learning_rate=1", "unknown key `learning_rate`; here it is `optim.lr`"),
            ("lora.r=8", "unknown key `lora.r`; here it is `lora.rank`"),
            ("train.weight_decay=0", "unknown key `train.weight_decay`; did you mean `optim.weight_decay`?"),
            ("train.max-grad-norm=1", "unknown key `train.max-grad-norm`; here it is `optim.clip`"),
            ("data.ratio=1", "unknown key `data.ratio`; did you mean `keep.ratio`?"),
            ("optimizer.lr=1", "unknown key `optimizer`; did you mean `optim`?"),
            ("train.epoch=1", "unknown key `train.epoch`; did you mean `train.epochs`?"),
            ("model.weight_deacy=1", "unknown key `model.weight_deacy`; did you mean `optim.weight_decay`?"),
            ("model.qqq=1", "unknown key `model.qqq`; there are `path`, `revision`, `dropout`, `init_missing`, `base`"),
            (
                "keep.sites.\"a.b\".ratios=1",
                "unknown key `keep.sites.\"a.b\".ratios`; did you mean `keep.sites.\"a.b\".ratio`?",
            ),
        ];
        for (set, expected) in cases {
            assert_eq!(set_problem(set), expected);
        }
    }

    #[test]
    fn batch_and_batch_tokens_exclude_each_other() {
        let both = format!("{MODEL}[train]\nbatch_tokens = 512\nbatch = 8\n");
        let expected = "r.toml:4: `train.batch_tokens` and `train.batch` (line 5) exclude each other; keep one";
        assert_eq!(problem(&both, &[]), expected);
        let expected = "in --set train.batch=1: `train.batch` and `train.batch_tokens` (--set train.batch_tokens=2) \
                        exclude each other; keep one";
        assert_eq!(problem(MODEL, &["train.batch=1", "train.batch_tokens=2"]), expected);

        let sequences = format!("{MODEL}[train]\nbatch = 8\n");
        assert_eq!(read(&sequences, &[]).unwrap().train.batch, BatchSize::Sequences(8));
        assert_eq!(read(&sequences, &["train.batch_tokens=512"]).unwrap().train.batch, BatchSize::Tokens(512));
    }

    #[test]
    fn updates_in_the_backward_pass_say_what_they_exclude() {
        let update = format!("{MODEL}[optim]\nlr = 1\nupdate = \"in-backward\"\n");
        let clip = "`optim.update` = \"in-backward\" cannot be combined with `optim.clip` = 1: the global norm is known when all gradients \
                    are, and by then the weights are updated; set optim.clip = 0";
        assert_eq!(problem(&update, &[]), format!("r.toml:5: {clip}"));
        assert_eq!(
            problem(&update, &["optim.clip=0", "train.accumulate=4"]),
            "r.toml:5: `optim.update` = \"in-backward\" cannot be combined with `train.accumulate` = 4: gradients that are to be added up \
             must stay; set train.accumulate = 1 and a larger train.batch"
        );
        let both =
            read(MODEL, &["optim.update=in-backward", "train.accumulate=2", "optim.clip=0.5"]).unwrap_err().to_string();
        assert!(
            both.starts_with("2 problems in recipe\n  in --set optim.update=in-backward: `optim.update`"),
            "{both}"
        );
        assert!(read(&update, &["optim.clip=0"]).is_ok() && read(&update, &["optim.update=after-backward"]).is_ok());
    }

    #[test]
    fn missing_keys() {
        let hint = "missing key `model.path`: expected a folder or a hub id";
        assert_eq!(problem("", &[]), format!("r.toml: {hint}"));
        assert_eq!(problem("\n[model]\n", &[]), format!("r.toml:2: {hint}"));
        let recipe = read(MODEL, &[]).unwrap();
        let error = recipe.check_train("r.toml").unwrap_err().to_string();
        assert_eq!(error.lines().count(), 3);
        assert!(error.contains("r.toml: missing key `output`") && error.contains("r.toml: missing key `data.train`"));
        assert!(read(MODEL, &["output=o", "data.train=t"]).unwrap().check_train("r.toml").is_ok());
    }

    #[test]
    fn broken_syntax_hides_what_it_makes_doubtful() {
        let text = format!("lrr = 1\n{MODEL}[optim\nlr = -1\n");
        let report = read(&text, &[]).unwrap_err().to_string();
        assert!(report.starts_with("2 problems in recipe\n  r.toml:1: unknown key"), "{report}");
        assert!(report.contains("\n  r.toml:4: not TOML: "), "{report}");
        assert_eq!(problem("seed = 1\nseed = 2", &[]), "r.toml:2: not TOML: duplicate key");
    }

    #[test]
    fn values_from_the_command_line() {
        let sets = ["model.revision=1234", "model.path=a/b", "data.train=2024-01-01", "optim.lr=1", "train.steps=5"];
        let recipe = read(MODEL, &sets).unwrap();
        assert_eq!((recipe.model.revision.as_str(), recipe.model.path.as_str()), ("1234", "a/b"));
        assert_eq!(recipe.data.train.as_deref(), Some("2024-01-01"));
        assert_eq!((recipe.optim.lr, recipe.train.steps), (1.0, Some(5)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..Default::default() })]

        #[test]
        fn no_text_panics(text in "(?s).{0,200}", set in "(?s).{0,40}") {
            let _ = read(&text, &[&set]);
        }

        #[test]
        fn no_text_of_toml_pieces_panics(
            pieces in prop::collection::vec(prop::sample::select(vec![
                "[", "]", "{", "}", "=", ".", "\n", "\"", "'", "'''", "#", ",", " ", "1", "-", "e9", "nan", "true",
                "1979-05-27", "model", "path", "keep", "sites", "ratio", "train", "batch", "freeze", "é", "\r", "\u{feff}",
            ]), 0..60),
            split in 0usize..60,
        ) {
            let split = split.min(pieces.len());
            let _ = read(&pieces[..split].concat(), &[&pieces[split..].concat()]);
        }
    }
}
