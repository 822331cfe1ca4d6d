//! Adapters as files in PEFT's format.

mod config;
mod selection;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use colrow_autograd::LowRank;
use colrow_tensor::{Error, Result};
use serde_json::json;

pub use config::{AdapterConfig, Base, config_from_json, read_config};
pub use selection::Selection;

use super::names::ADAPTER_WEIGHTS_FILE;
use super::safetensors::Saved;
use super::weights::Weights;
use crate::family::Family;
use crate::files::{first_ten, shape_text};
use crate::lora::{A, B, LoraConfig, is_a_key, is_adapter_key, is_saved_whole};
use crate::model::Model;
use crate::registry::{Entry, Registry};

/// The tensors as pickled by `torch.save`, which are not read.
const PICKLED_FILE: &str = "adapter_model.bin";
/// What PEFT puts before every key.
const PREFIX: &str = "base_model.model.";

/// `adapter_config.json` as PEFT reads it, for a model fine-tuned from `base` (a path or hub id).
pub fn to_json(config: &LoraConfig, model: &Model, base: &str) -> String {
    // globs mean nothing to PEFT: what they named is listed in full
    let plain = |patterns: &[String]| patterns.iter().all(|p| !p.contains(['*', '?', '[', '{']));
    let list = |patterns: &[String], listed: bool, modules: Vec<String>| match plain(patterns) && !listed {
        true => patterns.to_vec(),
        false => modules,
    };
    let adapted = model.registry.entries.iter().filter_map(|e| e.key.strip_suffix(A).map(str::to_owned)).collect();
    // and what it saves whole it matches by the end of a name, wherever that begins: "norm" is "input_layernorm" too
    let taken = |module: &str| config.modules_to_save.iter().any(|pattern| module.ends_with(pattern.as_str()));
    let more = |(end, _): (usize, &str), key: &str| {
        taken(&key[..end]) && !is_saved_whole(&config.modules_to_save, &key[..=end])
    };
    let takes_more = model.registry.entries.iter().any(|e| e.key.match_indices('.').any(|dot| more(dot, &e.key)));
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
        "target_modules": list(&config.targets, false, adapted),
        "modules_to_save": list(&config.modules_to_save, takes_more, saved.into_iter().collect()),
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

/// The tensors of an adapter's folder.
#[derive(Debug)]
pub struct AdapterWeights {
    path: PathBuf,
    weights: Weights,
}

impl AdapterWeights {
    /// Opens the file of the folder `dir`.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(ADAPTER_WEIGHTS_FILE);
        if !path.exists() && dir.join(PICKLED_FILE).exists() {
            return Err(Error::new(format!("expected {ADAPTER_WEIGHTS_FILE}, found {PICKLED_FILE}"))
                .at(dir.display())
                .hint("only safetensors are read: load the adapter in PEFT, and save_pretrained(..) it again"));
        }
        let weights = Weights::open_file(&path)?;
        Ok(Self { path, weights })
    }

    /// The modules that have adapters.
    ///
    /// # Errors
    /// A file without an adapter.
    pub fn modules(&self) -> Result<Vec<String>> {
        let names = self.weights.names();
        let modules: Vec<_> = names.filter_map(|n| Some(n.strip_prefix(PREFIX)?.strip_suffix(A)?.to_owned())).collect();
        if modules.is_empty() {
            return Err(Error::new("expected tensors of an adapter, found none").at(self.path.display()));
        }
        Ok(modules)
    }

    /// The number of labels of the head that the file has, if it has one, for a model of this family.
    pub fn labels(&self, family: &Family) -> Option<usize> {
        let shape = |head: &&str| self.weights.shape(&format!("{PREFIX}{head}.weight"));
        family.modules_to_save.iter().find_map(shape)?.first().copied()
    }

    /// Reads the tensors into a model that was adapted by the adapter's settings, and returns the keys of the base model's own
    /// tensors that the adapter brings: of modules that were saved whole, biases, embeddings.
    ///
    /// # Errors
    /// Tensors that are missing, of another shape, or not of this model: the adapter of another base or rank.
    pub fn read(&self, model: &mut Model, config: &LoraConfig) -> Result<BTreeSet<String>> {
        let weights = &self.weights;
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
                // PEFT saves the weight of an adapted head, which here may be the embedding's
                let module = key.strip_suffix(".weight").filter(|_| name.contains(".base_layer."));
                if module.is_some_and(|module| numbers.contains_key(&format!("{module}{A}"))) {
                    continue;
                }
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
                Some(module) => read_factor(registry, i, weights, name, config.scale_of(module) / scales[module])?,
                None => registry.read(i, weights, name)?,
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
            .at(self.path.display())
            .hint("is it the adapter of another base model, or of another rank than adapter_config.json says?"))
    }
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

    use super::super::safetensors::write;
    use super::*;
    use crate::config::Config;
    use crate::lora::tests::{model, numbers, settings};
    use crate::lora::{adapt, merge};

    #[test]
    fn globs_are_written_as_what_they_name() {
        let (mut model, settings) = (model(), settings(&["query"]));
        adapt(&mut model, &settings, 1).unwrap();
        let settings = LoraConfig { modules_to_save: vec!["*ooler".into()], ..settings };
        let json = to_json(&settings, &model, "base");
        assert!(json.contains("\"bert.pooler.dense\"") && json.contains("\"SEQ_CLS\""), "{json}");
    }

    /// PEFT takes every module whose name ends so, inside a word too.
    #[test]
    fn ends_of_other_names_are_written_in_full() {
        let json = br#"{"model_type":"llama","hidden_size":6,"num_hidden_layers":2,"num_attention_heads":3,"intermediate_size":10,"vocab_size":5,
            "rms_norm_eps":1e-5}"#;
        let config = Config::from_json(json, Path::new("config.json")).unwrap();
        let mut model = Model::new(config, &Device::cpu(), DType::F32);
        let lora = LoraConfig { modules_to_save: Vec::new(), ..settings(&["q_proj"]) };
        adapt(&mut model, &lora, 1).unwrap();
        let written = |pattern: &str| {
            let lora = LoraConfig { modules_to_save: vec![pattern.into()], ..lora.clone() };
            let json: serde_json::Value = serde_json::from_str(&to_json(&lora, &model, "base")).unwrap();
            assert_eq!(json["task_type"], "CAUSAL_LM");
            json["modules_to_save"].clone()
        };
        assert_eq!(written("norm"), json!(["model.norm"]));
        assert_eq!(written("input_layernorm"), json!(["input_layernorm"]));
    }

    #[test]
    fn pickled_weights_have_their_own_words() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(PICKLED_FILE), "").unwrap();
        let error = AdapterWeights::open(dir.path()).unwrap_err().to_string();
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
            AdapterWeights::open(dir.path()).unwrap().read(&mut changed, &config).unwrap();
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
            AdapterWeights::open(dir.path()).unwrap().read(&mut model, config).unwrap_err().to_string()
        };
        let rank = refused(&LoraConfig { lora_rank: 3, ..settings(&["query"]) });
        assert!(rank.contains("query.lora_A.weight: expected shape (3, 6), found (2, 6)"), "{rank}");
        assert!(refused(&settings(&["query", "key"])).contains("key.lora_A.weight is not there"));
        assert!(refused(&settings(&["key"])).contains("query.lora_A.weight belongs to no module"));
        let mut same = model();
        adapt(&mut same, &settings(&["query"]), 2).unwrap();
        AdapterWeights::open(dir.path()).unwrap().read(&mut same, &settings(&["query"])).unwrap();
    }
}
