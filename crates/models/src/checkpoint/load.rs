//! From a checkpoint folder to a model with weights.

use std::path::{Path, PathBuf};

use colrow_tensor::rng::Key;
use colrow_tensor::{BaseWeights, DType, Device, Error, Result};

use super::adapter::{self, AdapterConfig, AdapterWeights};
use super::hub::{self, Needs};
pub use super::matching::Anew;
use super::matching::{Tied, Wanted, match_keys};
use super::names::{ADAPTER_CONFIG_FILE, CONFIG_FILE, TOKENIZER_FILE};
use super::weights::Weights;
use crate::config::Config;
use crate::family::Family;
use crate::lora;
use crate::model::Model;
use crate::registry::{Entry, Origin};

/// A model and what the user should know about its weights.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub model: Model,
    /// The folder with the tokenizer's files.
    pub tokenizer_dir: PathBuf,
    /// The folders that it was read from: the model's, and the adapter's if there is one.
    pub read_from: Vec<PathBuf>,
    /// Keys that were initialised: those that the checkpoint lacks, or has for another number of labels.
    pub initialised: Vec<String>,
    /// Missing keys that were initialised, ignored ones.
    pub warnings: Vec<String>,
}

/// Reads a model's weights from `dir`. A head that the checkpoint lacks is initialised from `seed` and named in a warning; so is what may
/// be made `anew`.
///
/// # Errors
/// Weights that are not there, not readable, or not this configuration's; a head that cannot predict, unless it is made anew.
pub fn model(dir: &Path, config: Config, device: &Device, dtype: DType, seed: u64, anew: Anew) -> Result<Loaded> {
    if !anew.head {
        config.check_head().map_err(|e| e.at(dir.join(CONFIG_FILE).display()))?;
    }
    read(dir, Model::new(config, device, dtype), seed, anew)
}

/// As [`model`], into a model that may be adapted, frozen, and held in codes: what is, is rounded as it is read. Adapters stay as they are.
///
/// # Errors
/// As there.
pub fn read(dir: &Path, mut model: Model, seed: u64, anew: Anew) -> Result<Loaded> {
    let weights = Weights::open(dir)?;
    let entries = &model.registry.entries;
    let base: Vec<usize> = (0..entries.len()).filter(|&i| !lora::is_adapter_key(&entries[i].key)).collect();
    let wanted = base.iter().map(|&i| {
        let Entry { key, shape, dims, .. } = &entries[i];
        Wanted { key: key.clone(), shape: shape.clone(), dims }
    });
    let wanted: Vec<Wanted> = wanted.collect();
    let matched = match_keys(model.config.family(), &wanted, weights.shapes(), anew, dir)?;
    for Tied { keys: [a, b], hint } in &matched.tied {
        if !weights.are_equal(a, b)? {
            return Err(Error::new(format!("{a} and {b}: expected the same numbers, found different ones"))
                .at(dir.display())
                .hint(format!("this model has one tensor where the checkpoint has two; {hint}")));
        }
    }
    for (&i, name) in base.iter().zip(&matched.keys) {
        match name {
            Some(name) => model.registry.read(i, &weights, name)?,
            None => model.registry.init(i, Key::new(seed).named("init")),
        }
    }
    if model.registry.holds_frozen_codes() {
        let names = wanted.into_iter().zip(&matched.keys).filter_map(|(w, name)| Some((w.key, name.clone()?)));
        let names = names.collect();
        model.registry.origin = Some(Origin { weights, names });
    }
    let warnings = matched.warnings();
    let initialised = [matched.missing, matched.replaced].concat();
    Ok(Loaded { model, tokenizer_dir: dir.to_owned(), read_from: vec![dir.to_owned()], initialised, warnings })
}

/// Reads the adapter in `dir` and its base model: `base` (a folder or hub id), or the one that the adapter names, of one of `families`. `relabel` gives the base
/// model's configuration the adapter's labels. The adapter stays beside the weights; see [`lora::merge`].
///
/// # Errors
/// Those of [`model`]; an adapter of another base, or with settings that this program does not have.
pub fn adapted(
    dir: &Path,
    base: Option<&str>,
    families: &[&'static Family],
    relabel: impl FnOnce(&mut Config),
    device: &Device,
    dtype: DType,
) -> Result<Loaded> {
    adapted_onto(BaseWeights::F32, dir, base, families, relabel, device, dtype)
}

/// As [`adapted`], where the base model's matrices have the numbers that their codes mean: those that an adapter was trained over.
///
/// # Errors
/// Those of [`adapted`].
pub fn adapted_onto(
    codes: BaseWeights,
    dir: &Path,
    base: Option<&str>,
    families: &[&'static Family],
    relabel: impl FnOnce(&mut Config),
    device: &Device,
    dtype: DType,
) -> Result<Loaded> {
    let AdapterConfig { lora: mut settings, base: named, selection } = adapter::read_config(dir)?;
    let tensors = AdapterWeights::open(dir)?;
    let modules = tensors.modules()?;
    if let Some(module) = modules.iter().find(|module| !selection.selects(module)) {
        return Err(Error::new(format!(
            "expected adapters of the modules that {ADAPTER_CONFIG_FILE} selects, found one of {module}"
        ))
        .at(dir.display())
        .hint("PEFT passes it over: correct target_modules, exclude_modules or layers_to_transform"));
    }
    settings.targets = modules;
    let (base, revision) = match (base, &named) {
        (Some(base), _) => (base, None),
        (None, Some(named)) => (named.name.as_str(), named.revision.as_deref()),
        (None, None) => {
            return Err(Error::new("base_model_name_or_path: expected the adapter's base model, found nothing")
                .at(dir.join(ADAPTER_CONFIG_FILE).display())
                .hint("name it by --base"));
        }
    };
    let base = hub::resolve_of(families, base, revision.unwrap_or("main"), Needs::Weights)
        .map_err(|e| e.at(dir.join(ADAPTER_CONFIG_FILE).display()).hint("name the adapter's base model by --base"))?;
    // adapters of older versions of this program have the labels in a `config.json`
    let mut config = Config::open_of(families, if dir.join(CONFIG_FILE).exists() { dir } else { &base })?;
    relabel(&mut config);
    if let Some(labels) = tensors.labels(config.family()) {
        config.set_num_labels(labels);
    }
    config.check_head().map_err(|e| e.at(dir.display()))?;
    let mut loaded = model(&base, config, device, dtype, 0, Anew { head: true, body: false })?;
    loaded.model.registry.round_to(codes);
    lora::adapt(&mut loaded.model, &settings, 0).map_err(|e| {
        Error::new(format!("the adapter does not fit its base model: {}", e.what()))
            .at(dir.display())
            .hint("is it the adapter of another base model?")
    })?;
    let brought = tensors.read(&mut loaded.model, &settings)?;
    // what the adapter brings is not worth a warning
    loaded.initialised.retain(|key| !brought.contains(key));
    loaded.warnings.clear();
    loaded.read_from.push(dir.to_owned());
    // PEFT may write an adapter without its tokenizer
    if dir.join(TOKENIZER_FILE).exists() {
        loaded.tokenizer_dir = dir.to_owned();
    }
    Ok(loaded)
}
