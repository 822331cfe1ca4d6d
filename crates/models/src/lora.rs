//! LoRA (Hu et al. 2022): which linears are adapted, and adapters as files in PEFT's format.

use std::collections::BTreeSet;
use std::path::Path;

use colrow_autograd::LowRank;
use colrow_tensor::rng::Key;
use colrow_tensor::{Error, Result};
use globset::Glob;
use serde_json::{Map, Value, json};

use crate::files::{first_ten, read_json_bytes, shape_text};
use crate::layers::{Entry, Init, Registry};
use crate::model::Model;
use crate::weights::{Saved, Weights};

/// The file with an adapter's settings; its presence makes a folder an adapter's.
pub const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";
/// The file with an adapter's tensors.
pub const ADAPTER_WEIGHTS_FILE: &str = "adapter_model.safetensors";
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
    /// Other modules that are trained and saved whole, named in the same way: the head.
    pub modules_to_save: Vec<String>,
}

impl LoraConfig {
    /// The factor of an adapter's output.
    pub fn scale(&self) -> f64 {
        let rank = self.lora_rank as f64;
        self.alpha / if self.rank_stabilised { rank.sqrt() } else { rank }
    }
}

/// Whether `pattern` names the module of a checkpoint: its whole name or an end of it after a dot, where `*` stands for anything.
pub fn names_module(pattern: &str, module: &str) -> bool {
    let matches = |pattern: &str| Glob::new(pattern).is_ok_and(|g| g.compile_matcher().is_match(module));
    matches(pattern) || matches(&format!("*.{pattern}"))
}

/// Whether a key of a registry is one of an adapter.
pub fn is_adapter_key(key: &str) -> bool {
    key.ends_with(A) || key.ends_with(B)
}

/// Whether a key of a registry is an adapter's A.
pub fn is_a_key(key: &str) -> bool {
    key.ends_with(A)
}

/// Whether a key belongs to one of the modules that are saved whole.
pub fn is_saved_whole(modules_to_save: &[String], key: &str) -> bool {
    let module = key.rsplit_once('.').map_or(key, |(module, _)| module);
    modules_to_save.iter().any(|pattern| names_module(pattern, module))
}

/// Adds adapters to the linears that `config` names. A is uniform in ±1/√in from `seed`, as PEFT initialises it, and B zero, so that
/// the model computes what it did.
///
/// # Errors
/// A pattern that names no linear; no linear to adapt.
pub fn adapt(model: &mut Model, config: &LoraConfig, seed: u64) -> Result<()> {
    let (mut linears, registry) = model.linears_mut();
    for pattern in &config.targets {
        let modules = || linears.iter().flat_map(|d| d.modules()).map(String::as_str);
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
        let [out, input] = dense.size();
        let is_target = |m: &str| {
            config.targets.iter().any(|p| names_module(p, m))
                && !config.modules_to_save.iter().any(|p| names_module(p, m))
        };
        let modules: Vec<(usize, String)> =
            dense.modules().iter().cloned().enumerate().filter(|(_, m)| is_target(m)).collect();
        if modules.is_empty() {
            continue;
        }
        let keys: Vec<_> = modules.iter().map(|(_, m)| format!("{m}{A}")).collect();
        let bound = 1.0 / (input as f64).sqrt();
        let a = registry.add(&keys, &[config.lora_rank, input], &[], Init::Uniform(bound));
        let b = modules.iter().map(|(part, m)| {
            let keys = [format!("{m}{B}")];
            (registry.add(&keys, &[out, config.lora_rank], &[], Init::Zeros), part * out)
        });
        let b = b.collect();
        *dense.adapter_mut() = Some(LowRank { a, b, scale: config.scale(), dropout: config.dropout as f32 });
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
        let (weight, [_, input]) = (dense.weight(), dense.size());
        for (j, (b, first)) in b.into_iter().enumerate() {
            let b = &registry.params[b].value;
            let (out, rank, b) = (b.rows(), b.cols(), b.to_f64());
            let a = &a[j * rank * input..];
            let add = |w: &mut [f32]| {
                for (i, w) in w.chunks_exact_mut(input).enumerate() {
                    for (c, w) in w.iter_mut().enumerate() {
                        let sum: f64 = (0..rank).map(|r| b[i * rank + r] * a[r * input + c]).sum();
                        *w = (f64::from(*w) + scale * sum) as f32;
                    }
                }
                Ok(())
            };
            registry.edit(weight, first * input..(first + out) * input, add).expect("adding does not fail");
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
        .filter(|e| !is_adapter_key(&e.key))
        .filter_map(|e| e.key.rsplit_once('.').map(|(m, _)| m.to_owned()))
        .filter(|m| config.modules_to_save.iter().any(|p| names_module(p, m)))
        .collect();
    let json = json!({
        "peft_type": "LORA",
        "task_type": if model.config.is_text_to_text() { "SEQ_2_SEQ_LM" } else { "SEQ_CLS" },
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

/// An adapter's file of settings, and the base model that it names, if it names one.
///
/// # Errors
/// Settings that this program does not have, by name.
pub fn read_config(dir: &Path) -> Result<(LoraConfig, Option<String>)> {
    let path = dir.join(ADAPTER_CONFIG_FILE);
    config_from_json(&read_json_bytes(&path)?).map_err(|e| e.at(path.display()))
}

/// As [`read_config`], from the text of the file.
///
/// # Errors
/// As there.
pub fn config_from_json(json: &[u8]) -> Result<(LoraConfig, Option<String>)> {
    let json = serde_json::from_slice(json).map_err(|e| Error::new(format!("expected an object: {e}")))?;
    parse_config(&json)
}

fn parse_config(json: &Map<String, Value>) -> Result<(LoraConfig, Option<String>)> {
    let get = |key: &str| json.get(key).filter(|v| !v.is_null());
    let wrong = |key: &str, expected: &str| {
        let found = get(key).map_or("nothing".to_owned(), Value::to_string);
        Error::new(format!("{key}: expected {expected}, found {found}"))
    };
    if get("peft_type").and_then(Value::as_str) != Some("LORA") {
        return Err(wrong("peft_type", "\"LORA\"").hint("other adapters than LoRA cannot be read"));
    }
    let empty = |v: &Value| match v {
        Value::Bool(b) => !b,
        Value::Object(o) => o.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::String(s) => s == "none",
        _ => false,
    };
    for key in [
        "bias",
        "use_dora",
        "fan_in_fan_out",
        "rank_pattern",
        "alpha_pattern",
        "lora_bias",
        "layers_to_transform",
        "use_qalora",
        "trainable_token_indices",
        "target_parameters",
        "exclude_modules",
        "layer_replication",
    ] {
        if get(key).is_some_and(|v| !empty(v)) {
            return Err(wrong(key, "nothing").hint("merge the adapter into its model in PEFT, and use that model"));
        }
    }
    let number = |key: &str, ok: fn(f64) -> bool, expected: &str| {
        get(key).and_then(Value::as_f64).filter(|&x| ok(x)).ok_or_else(|| wrong(key, expected))
    };
    let names = |key: &str| -> Result<Vec<String>> {
        let list = get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        list.iter().map(|v| v.as_str().map(str::to_owned).ok_or_else(|| wrong(key, "a list of names"))).collect()
    };
    let config = LoraConfig {
        lora_rank: number("r", |x| x >= 1.0 && x.fract() == 0.0 && x < 1e9, "a whole number of at least 1")? as usize,
        alpha: number("lora_alpha", f64::is_finite, "a number")?,
        dropout: get("lora_dropout")
            .map_or(Ok(0.0), |_| number("lora_dropout", |x| (0.0..1.0).contains(&x), "a number in [0, 1)"))?,
        rank_stabilised: get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        targets: names("target_modules")?,
        modules_to_save: names("modules_to_save")?,
    };
    Ok((config, get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned)))
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
    Weights::open_file(&dir.join(ADAPTER_WEIGHTS_FILE))
}

/// Reads an adapter's tensors into a model that was adapted by the adapter's settings.
///
/// # Errors
/// Tensors that are missing, of another shape, or not of this model: the adapter of another base or rank.
pub fn read(model: &mut Model, config: &LoraConfig, dir: &Path) -> Result<()> {
    let weights = open(dir)?;
    let (mut problems, mut known) = (Vec::new(), BTreeSet::new());
    for i in 0..model.registry.entries.len() {
        let Entry { key, shape, .. } = &model.registry.entries[i];
        if !is_adapter_key(key) && !is_saved_whole(&config.modules_to_save, key) {
            continue;
        }
        let name = format!("{PREFIX}{key}");
        match weights.shape(&name) {
            Some(found) if found == shape => {
                model.registry.read(i, &weights, &name)?;
            }
            Some(found) => {
                problems.push(format!("{name}: expected shape {}, found {}", shape_text(shape), shape_text(found)));
            }
            None => problems.push(format!("{name} is not there")),
        }
        known.insert(name);
    }
    problems.extend(
        weights.names().filter(|n| !known.contains(*n)).map(|n| format!("{n} belongs to no module of this model")),
    );
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!("the adapter does not fit its base model: {}", first_ten(&problems)))
        .at(dir.join(ADAPTER_WEIGHTS_FILE).display())
        .hint("is it the adapter of another base model, or of another rank than adapter_config.json says?"))
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

    fn settings(targets: &[&str]) -> LoraConfig {
        LoraConfig {
            lora_rank: 2,
            alpha: 4.0,
            dropout: 0.0,
            rank_stabilised: false,
            targets: targets.iter().map(|&t| t.to_owned()).collect(),
            modules_to_save: vec!["classifier".to_owned()],
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
            let part = |i: usize| model.registry.part(i, &model.registry.params[model.registry.entries[i].param].value);
            (part(entry(A)), part(entry(B)))
        };
        let (a, b) = of(1);
        assert!(b.iter().all(|&x| x == 0.0));
        let bound = 1.0 / 6_f64.sqrt();
        assert!(a.iter().all(|x| x.abs() <= bound) && a.iter().any(|x| x.abs() > 0.5 * bound));
        assert!(a == of(1).0 && a != of(2).0);
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

    #[test]
    fn settings_that_mean_something_else_are_refused() {
        let parse = |text: &str| parse_config(&serde_json::from_str(text).unwrap());
        let good = r#"{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":["q"],"bias":"none","use_dora":false}"#;
        assert_eq!(parse(good).unwrap().0.scale(), 2.0);
        for (from, to, message) in [
            ("LORA", "IA3", "peft_type: expected \"LORA\", found \"IA3\""),
            ("none", "all", "bias: expected nothing, found \"all\""),
            ("false", "true", "use_dora: expected nothing, found true"),
            (":4", ":0", "r: expected a whole number of at least 1, found 0"),
            (":8", ":\"8\"", "lora_alpha: expected a number, found \"8\""),
        ] {
            let error = parse(&good.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
