//! LoRA (Hu et al. 2022): which linears are adapted, and adapters as files in PEFT's format.

mod config;
mod selection;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use colrow_autograd::{LowRank, glob_matches};
use colrow_tensor::rng::Key;
use colrow_tensor::{Error, Result};
use serde_json::json;

pub use config::{AdapterConfig, Base, Patterns, config_from_json, read_config};
pub use selection::Selection;

use crate::files::{first_ten, shape_text};
use crate::model::Model;
use crate::registry::{Entry, Init, Part, Registry};
use crate::weights::{Saved, Weights};

/// The file with an adapter's settings; its presence makes a folder an adapter's.
pub const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";
/// The file with an adapter's tensors.
pub const ADAPTER_WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// The same as pickled by `torch.save`, which is not read.
const PICKLED_FILE: &str = "adapter_model.bin";
/// What PEFT puts before every key.
const PREFIX: &str = "base_model.model.";
const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";

/// Settings of an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rows of A and columns of B, at least 1.
    pub lora_rank: usize,
    /// The adapter's output is multiplied by alpha/rank, or alpha/√rank if rank-stabilised.
    pub alpha: f64,
    /// Probability that an element of the input is dropped on its way to A.
    pub dropout: f64,
    /// Whether the factor is alpha/√rank (Kalajdzievski 2023).
    pub rank_stabilised: bool,
    /// Which linears: names of modules, or their ends ("query"), or globs; see [`names_module`].
    pub targets: Vec<String>,
    /// Other modules that are trained and saved whole, with all that they hold, named in the same way: the head.
    pub modules_to_save: Vec<String>,
    /// Modules with another rank.
    pub rank_pattern: Patterns<usize>,
    /// Modules with another alpha.
    pub alpha_pattern: Patterns<f64>,
}

impl Default for LoraConfig {
    /// PEFT's defaults, and no module.
    fn default() -> Self {
        Self {
            lora_rank: 8,
            alpha: 8.0,
            dropout: 0.0,
            rank_stabilised: false,
            targets: Vec::new(),
            modules_to_save: Vec::new(),
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
        }
    }
}

impl LoraConfig {
    /// The rank of a module's adapter.
    pub fn rank_of(&self, module: &str) -> usize {
        self.rank_pattern.get(module).unwrap_or(self.lora_rank)
    }

    /// The factor of the output of a module's adapter.
    pub fn scale_of(&self, module: &str) -> f64 {
        let (rank, alpha) = (self.rank_of(module) as f64, self.alpha_pattern.get(module).unwrap_or(self.alpha));
        alpha / if self.rank_stabilised { rank.sqrt() } else { rank }
    }
}

/// Whether `pattern` names the module of a checkpoint: its whole name or an end of it after a dot, where `*` stands for anything.
pub fn names_module(pattern: &str, module: &str) -> bool {
    glob_matches(pattern, module) || glob_matches(&format!("*.{pattern}"), module)
}

/// Whether a key of a registry is one of an adapter.
pub fn is_adapter_key(key: &str) -> bool {
    key.ends_with(A) || key.ends_with(B)
}

/// Whether a key of a registry is an adapter's A.
pub fn is_a_key(key: &str) -> bool {
    key.ends_with(A)
}

/// Whether a key belongs to one of the modules that are saved whole, or to a module within one.
pub fn is_saved_whole(modules_to_save: &[String], key: &str) -> bool {
    let mut holders = key.rmatch_indices('.').map(|(end, _)| &key[..end]);
    holders.any(|module| modules_to_save.iter().any(|pattern| names_module(pattern, module)))
}

/// Adds adapters to the linears that `config` names. A is uniform in ±1/√in from `seed`, as PEFT initialises it, and B zero, so that
/// the model computes what it did.
///
/// # Errors
/// A pattern that names no linear; no linear to adapt.
pub fn adapt(model: &mut Model, config: &LoraConfig, seed: u64) -> Result<()> {
    let (mut linears, registry) = model.linears_mut();
    for pattern in &config.targets {
        let modules = || linears.iter().flat_map(|d| d.modules()).map(|(m, _)| m.as_str());
        if !modules().any(|m| names_module(pattern, m)) {
            let nearest: BTreeSet<&str> = modules().filter_map(|m| m.rsplit('.').next()).collect();
            let mut nearest: Vec<_> = nearest.into_iter().collect();
            nearest.sort_by(|a, b| strsim::jaro_winkler(b, pattern).total_cmp(&strsim::jaro_winkler(a, pattern)));
            return Err(Error::usage(format!("lora.targets: `{pattern}` names no linear of this model"))
                .hint(format!("linears end in {}", nearest.join(", "))));
        }
    }
    let before = registry.entries.len();
    for dense in &mut linears {
        let is_target = |m: &str| {
            config.targets.iter().any(|p| names_module(p, m))
                && !is_saved_whole(&config.modules_to_save, &format!("{m}.weight"))
        };
        let modules: Vec<_> = dense.modules().iter().filter(|(m, _)| is_target(m)).cloned().collect();
        if modules.is_empty() {
            continue;
        }
        let input = dense.inputs();
        let init = Init::Uniform(1.0 / (input as f64).sqrt());
        // what is stacked has one rank and one factor; `read` fits others to them, so the factor is not 0
        let rank = modules.iter().map(|(m, _)| config.rank_of(m)).max().expect("there is a module");
        let scale = modules.iter().map(|(m, _)| config.scale_of(m)).find(|&s| s != 0.0).unwrap_or(1.0);
        let a = modules.iter().map(|(m, _)| Part { key: format!("{m}{A}"), rows: rank, dims: &[], init });
        let a = registry.add_stacked(&a.collect::<Vec<_>>(), &[input]);
        let b = modules
            .iter()
            .map(|(m, rows)| (registry.add(&format!("{m}{B}"), &[rows.len(), rank], &[], Init::Zeros), rows.start));
        let b = b.collect();
        *dense.adapter_mut() = Some(LowRank { a, b, scale, dropout: config.dropout as f32 });
    }
    if registry.entries.len() == before {
        return Err(Error::usage("lora.targets: names no linear but those that train.modules_to_save trains whole")
            .hint("name others, or use train.method = \"bitfit\" to train the head and the biases"));
    }
    let key = Key::new(seed).named("lora");
    (before..registry.entries.len()).for_each(|i| registry.init(i, key));
    Ok(())
}

/// Adds every adapter's `s·B·A` to its weight and removes it: the model computes the same without it.
pub fn merge(model: &mut Model) {
    let (linears, registry) = model.linears_mut();
    for dense in linears {
        let Some(LowRank { a, b, scale, .. }) = dense.adapter_mut().take() else { continue };
        let a = registry.params[a].value.to_f64();
        let (weight, input) = (dense.weight(), dense.inputs());
        for (j, (b, first)) in b.into_iter().enumerate() {
            let b = &registry.params[b].value;
            let (out, rank, b) = (b.rows(), b.cols(), b.to_f64());
            let a = &a[j * rank * input..];
            registry.edit_rows(weight, first..first + out, |i, w| {
                for (c, w) in w.iter_mut().enumerate() {
                    let sum: f64 = (0..rank).map(|r| b[i * rank + r] * a[r * input + c]).sum();
                    *w = (f64::from(*w) + scale * sum) as f32;
                }
            });
        }
    }
    registry.entries.retain(|e| !is_adapter_key(&e.key));
}

/// `adapter_config.json` as PEFT reads it, for a model fine-tuned from `base` (a path or hub id).
pub fn to_json(config: &LoraConfig, model: &Model, base: &str) -> String {
    // globs mean nothing to PEFT: what they named is listed in full
    let plain = |patterns: &[String]| patterns.iter().all(|p| !p.contains(['*', '?', '[', '{']));
    let list = |patterns: &[String], modules: Vec<String>| if plain(patterns) { patterns.to_vec() } else { modules };
    let adapted = model.registry.entries.iter().filter_map(|e| e.key.strip_suffix(A).map(str::to_owned)).collect();
    let saved: BTreeSet<String> = model
        .registry
        .entries
        .iter()
        .filter(|e| !is_adapter_key(&e.key) && is_saved_whole(&config.modules_to_save, &e.key))
        .filter_map(|e| e.key.rsplit_once('.').map(|(m, _)| m.to_owned()))
        .collect();
    let json = json!({
        "peft_type": "LORA",
        "task_type": model.config.family().peft_task,
        "base_model_name_or_path": base,
        "inference_mode": true,
        "r": config.lora_rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rank_stabilised,
        "target_modules": list(&config.targets, adapted),
        "modules_to_save": list(&config.modules_to_save, saved.into_iter().collect()),
        "bias": "none",
        "fan_in_fan_out": false,
        "use_dora": false,
    });
    serde_json::to_string_pretty(&json).expect("JSON of plain values") + "\n"
}

/// The tensors of an adapter as PEFT names them: A and B, and the modules that are saved whole.
pub fn saved<'r>(registry: &'r Registry, config: &LoraConfig) -> Vec<Saved<'r>> {
    let mine = |e: &Entry| is_adapter_key(&e.key) || is_saved_whole(&config.modules_to_save, &e.key);
    registry.saved(mine).into_iter().map(|s| Saved { name: format!("{PREFIX}{}", s.name), ..s }).collect()
}

/// The modules that an adapter's file adapts, and the number of labels of the classifier in it, if there is one.
///
/// # Errors
/// A file that cannot be read or holds no adapter.
pub fn contents(dir: &Path) -> Result<(Vec<String>, Option<usize>)> {
    let weights = open(dir)?;
    let modules: Vec<String> =
        weights.names().filter_map(|n| Some(n.strip_prefix(PREFIX)?.strip_suffix(A)?.to_owned())).collect();
    if modules.is_empty() {
        return Err(
            Error::new("expected tensors of an adapter, found none").at(dir.join(ADAPTER_WEIGHTS_FILE).display())
        );
    }
    let labels = weights.shape(&format!("{PREFIX}classifier.weight")).and_then(|s| s.first().copied());
    Ok((modules, labels))
}

fn open(dir: &Path) -> Result<Weights> {
    let path = dir.join(ADAPTER_WEIGHTS_FILE);
    if !path.exists() && dir.join(PICKLED_FILE).exists() {
        return Err(Error::new(format!("expected {ADAPTER_WEIGHTS_FILE}, found {PICKLED_FILE}"))
            .at(dir.display())
            .hint("only safetensors are read: load the adapter in PEFT, and save_pretrained(..) it again"));
    }
    Weights::open_file(&path)
}

/// Reads an adapter's tensors into a model that was adapted by the adapter's settings, and returns the keys of the base model's own
/// tensors that the adapter brings: of modules that were saved whole, biases, embeddings.
///
/// # Errors
/// Tensors that are missing, of another shape, or not of this model: the adapter of another base or rank.
pub fn read(model: &mut Model, config: &LoraConfig, dir: &Path) -> Result<BTreeSet<String>> {
    let weights = open(dir)?;
    let scales = scales(model);
    let registry = &mut model.registry;
    let numbers: BTreeMap<String, usize> =
        registry.entries.iter().enumerate().map(|(i, e)| (e.key.clone(), i)).collect();
    let (mut problems, mut brought) = (Vec::new(), BTreeSet::new());
    for (name, found) in weights.shapes() {
        // with all biases PEFT stores that of a module that is saved whole three times: as it was, as it is, and as we know it
        if name.contains(".original_module.") || name.contains(".modules_to_save.") {
            continue;
        }
        // PEFT's name for the bias of a linear that has an adapter
        let key = name.strip_prefix(PREFIX).unwrap_or(name).replace(".base_layer.", ".");
        let Some(&i) = numbers.get(&key) else {
            problems.push(format!("{name} belongs to no module of this model"));
            continue;
        };
        let mut shape = registry.entries[i].shape.clone();
        let module = key.strip_suffix(A).or(key.strip_suffix(B));
        if let Some(module) = module {
            shape[usize::from(!is_a_key(&key))] = config.rank_of(module);
        }
        if found != shape {
            problems.push(format!("{name}: expected shape {}, found {}", shape_text(&shape), shape_text(found)));
            continue;
        }
        match module {
            Some(module) => read_factor(registry, i, &weights, name, config.scale_of(module) / scales[module])?,
            None => registry.read(i, &weights, name)?,
        }
        brought.insert(key);
    }
    let needed = |key: &str| is_adapter_key(key) || is_saved_whole(&config.modules_to_save, key);
    let missing = numbers.keys().filter(|key| needed(key) && weights.shape(&format!("{PREFIX}{key}")).is_none());
    problems.extend(missing.map(|key| format!("{PREFIX}{key} is not there")));
    if problems.is_empty() {
        brought.retain(|key| !is_adapter_key(key));
        return Ok(brought);
    }
    Err(Error::new(format!("the adapter does not fit its base model: {}", first_ten(&problems)))
        .at(dir.join(ADAPTER_WEIGHTS_FILE).display())
        .hint("is it the adapter of another base model, or of another rank than adapter_config.json says?"))
}

/// The factor that the model applies to each adapted module.
fn scales(model: &mut Model) -> BTreeMap<String, f64> {
    let (linears, registry) = model.linears_mut();
    let mut scales = BTreeMap::new();
    for dense in linears {
        let Some(LowRank { b, scale, .. }) = dense.adapter_mut() else { continue };
        for (param, _) in b {
            let entries = registry.entries.iter().filter(|e| e.param == *param);
            scales.extend(entries.filter_map(|e| Some((e.key.strip_suffix(B)?.to_owned(), *scale))));
        }
    }
    scales
}

/// Reads an A or a B that may have a lower rank than its entry, whose other rows or columns are then zero, and, if it is a B, times
/// `factor`.
fn read_factor(registry: &mut Registry, i: usize, weights: &Weights, name: &str, factor: f64) -> Result<()> {
    let Entry { key, shape, .. } = &registry.entries[i];
    let found = weights.shape(name).unwrap_or_default();
    if found == shape && (factor == 1.0 || is_a_key(key)) {
        return registry.read(i, weights, name);
    }
    let factor = if is_a_key(key) { 1.0 } else { factor };
    let (from, to) = (found[1], shape[1]);
    let mut numbers = vec![0.0; found[0] * from];
    weights.read(name, &mut numbers)?;
    registry.write(i, |first, out| {
        for (out, place) in out.iter_mut().zip(first..) {
            let (row, column) = (place / to, place % to);
            let x = if column < from { numbers.get(row * from + column) } else { None };
            *out = x.map_or(0.0, |&x| (f64::from(x) * factor) as f32);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use colrow_tensor::{DType, Device};

    use super::*;
    use crate::config::Config;
    use crate::weights::write;

    fn model() -> Model {
        let json = br#"{"model_type":"bert","hidden_size":6,"num_hidden_layers":2,"num_attention_heads":2,
            "intermediate_size":10,"vocab_size":5}"#;
        let config = Config::from_json(json, Path::new("config.json")).unwrap();
        let mut model = Model::new(config, &Device::cpu(), DType::F32);
        model.init(1);
        model
    }

    fn numbers(registry: &Registry, i: usize) -> Vec<f64> {
        let entry = &registry.entries[i];
        registry.params[entry.param].value.to_f64()[entry.range()].to_vec()
    }

    fn settings(targets: &[&str]) -> LoraConfig {
        LoraConfig {
            lora_rank: 2,
            alpha: 4.0,
            targets: targets.iter().map(|&t| t.to_owned()).collect(),
            modules_to_save: vec!["classifier".to_owned()],
            ..LoraConfig::default()
        }
    }

    fn adapted(targets: &[&str]) -> Vec<String> {
        let mut model = model();
        adapt(&mut model, &settings(targets), 1).unwrap();
        model.registry.entries.iter().filter_map(|e| e.key.strip_suffix(A).map(str::to_owned)).collect()
    }

    #[test]
    fn patterns_name_modules_as_in_peft() {
        let query = |i: usize| format!("bert.encoder.layer.{i}.attention.self.query");
        assert_eq!(adapted(&["query"]), [query(0), query(1)]);
        assert_eq!(adapted(&["layer.1.attention.self.query"]), [query(1)]);
        assert_eq!(adapted(&[&query(0)]), [query(0)]);
        assert_eq!(adapted(&["layer.0.*.dense", "pooler.dense"]).len(), 4);
        // the head is trained whole, so it has no adapter
        assert_eq!(adapted(&["*"]).len(), 2 * 6 + 1);
        assert!(!names_module("uery", &query(0)) && !names_module("que", &query(0)));
    }

    #[test]
    fn containers_are_saved_whole() {
        let whole = |modules: &[&str], key: &str| {
            is_saved_whole(&modules.iter().map(|&m| m.to_owned()).collect::<Vec<_>>(), key)
        };
        for pattern in ["pooler", "bert.pooler", "pooler.dense", "*ooler"] {
            assert!(whole(&[pattern], "bert.pooler.dense.weight"), "{pattern}");
        }
        assert!(!whole(&["ooler", "dense.weight", "classifier"], "bert.pooler.dense.weight"));
        // nothing of it has an adapter
        let mut model = model();
        let settings = LoraConfig { modules_to_save: vec!["classifier".into(), "pooler".into()], ..settings(&["*"]) };
        adapt(&mut model, &settings, 1).unwrap();
        assert!(!model.registry.entries.iter().any(|e| e.key.contains("pooler") && is_adapter_key(&e.key)));
        let json = to_json(&LoraConfig { modules_to_save: vec!["*ooler".into()], ..settings }, &model, "base");
        assert!(json.contains("\"bert.pooler.dense\""), "{json}");
    }

    #[test]
    fn an_unknown_target_is_told_the_nearest() {
        let error = adapt(&mut model(), &settings(&["querry"]), 1).unwrap_err().to_string();
        assert!(error.contains("`querry` names no linear") && error.contains("linears end in query, "), "{error}");
    }

    #[test]
    fn an_adapter_adapts_something() {
        for targets in [&[][..], &["classifier"]] {
            let error = adapt(&mut model(), &settings(targets), 1).unwrap_err().to_string();
            assert!(error.contains("names no linear but those"), "{error}");
        }
    }

    #[test]
    fn a_fresh_adapter_changes_nothing_and_depends_on_the_seed() {
        let of = |seed| {
            let mut model = model();
            adapt(&mut model, &settings(&["query"]), seed).unwrap();
            let entry = |end: &str| model.registry.entries.iter().position(|e| e.key.ends_with(end)).unwrap();
            let part = |i: usize| numbers(&model.registry, i);
            (part(entry(A)), part(entry(B)))
        };
        let (a, b) = of(1);
        assert!(b.iter().all(|&x| x == 0.0));
        let bound = 1.0 / 6_f64.sqrt();
        assert!(a.iter().all(|x| x.abs() <= bound) && a.iter().any(|x| x.abs() > 0.5 * bound));
        assert!(a == of(1).0 && a != of(2).0);
    }

    #[test]
    fn pickled_weights_have_their_own_words() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(PICKLED_FILE), "").unwrap();
        let error = contents(dir.path()).unwrap_err().to_string();
        assert!(error.contains("found adapter_model.bin") && error.contains("in PEFT"), "{error}");
    }

    /// Of three stacked modules all, or the first alone, has a factor of 0.
    #[test]
    fn an_alpha_of_0_switches_modules_off() {
        let dir = tempfile::tempdir().unwrap();
        let targets = settings(&["query", "key", "value"]);
        let mut small = model();
        adapt(&mut small, &targets, 1).unwrap();
        for i in 0..small.registry.entries.len() {
            if small.registry.entries[i].key.ends_with(B) {
                small.registry.write(i, |_, b| b.fill(0.5));
            }
        }
        write(&dir.path().join(ADAPTER_WEIGHTS_FILE), &saved(&small.registry, &targets), &[]).unwrap();
        let all = r#""lora_alpha":0"#;
        let one = r#""lora_alpha":4,"alpha_pattern":{"query":0}"#;
        for (alphas, is_off) in [(all, &[true; 3]), (one, &[true, false, false])] {
            let json = format!(
                r#"{{"peft_type":"LORA","r":2,"target_modules":["query","key","value"],"modules_to_save":["classifier"],{alphas}}}"#
            );
            let config =
                LoraConfig { targets: targets.targets.clone(), ..config_from_json(json.as_bytes()).unwrap().lora };
            let (mut base, mut changed) = (model(), model());
            adapt(&mut changed, &config, 1).unwrap();
            read(&mut changed, &config, dir.path()).unwrap();
            merge(&mut changed);
            let weight = |model: &mut Model, module: &str| {
                let key = format!("bert.encoder.layer.0.attention.self.{module}.weight");
                let r = &model.registry;
                let i = r.entries.iter().position(|e| e.key == key).unwrap();
                numbers(r, i)
            };
            for (module, &off) in ["query", "key", "value"].into_iter().zip(is_off) {
                let (before, after) = (weight(&mut base, module), weight(&mut changed, module));
                assert_eq!(before == after, off, "{alphas}: {module}");
                assert!(after.iter().all(|x| x.is_finite()));
            }
        }
    }

    #[test]
    fn the_adapter_of_another_base_or_rank_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut small = model();
        adapt(&mut small, &settings(&["query"]), 1).unwrap();
        write(&dir.path().join(ADAPTER_WEIGHTS_FILE), &saved(&small.registry, &settings(&["query"])), &[]).unwrap();
        let refused = |config: &LoraConfig| {
            let mut model = model();
            adapt(&mut model, config, 1).unwrap();
            read(&mut model, config, dir.path()).unwrap_err().to_string()
        };
        let rank = refused(&LoraConfig { lora_rank: 3, ..settings(&["query"]) });
        assert!(rank.contains("query.lora_A.weight: expected shape (3, 6), found (2, 6)"), "{rank}");
        assert!(refused(&settings(&["query", "key"])).contains("key.lora_A.weight is not there"));
        assert!(refused(&settings(&["key"])).contains("query.lora_A.weight belongs to no module"));
        let mut same = model();
        adapt(&mut same, &settings(&["query"]), 2).unwrap();
        read(&mut same, &settings(&["query"]), dir.path()).unwrap();
    }
}
