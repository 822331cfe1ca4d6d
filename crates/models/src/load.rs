//! From a checkpoint folder to a model with weights.

use std::path::{Path, PathBuf};

use colrow_tensor::rng::Key;
use colrow_tensor::{DType, Device, Error, Result};

use crate::config::Config;
use crate::hub::{self, CONFIG_FILE, Needs, TOKENIZER_FILE};
use crate::lora;
use crate::matching::{Wanted, match_keys};
use crate::model::Model;
use crate::weights::Weights;

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "shared.weight";

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

/// Reads a model's weights from `dir`. What the checkpoint lacks is initialised from `seed` and named in a warning; with
/// `reinit_head` so is a classifier of another number of labels.
///
/// # Errors
/// Weights that are not there, not readable, or not this configuration's.
pub fn model(
    dir: &Path,
    config: Config,
    device: &Device,
    dtype: DType,
    seed: u64,
    reinit_head: bool,
) -> Result<Loaded> {
    let weights = Weights::open(dir)?;
    let mut model = Model::new(config, device, dtype);
    let wanted: Vec<Wanted> = model
        .registry
        .entries
        .iter()
        .map(|e| Wanted { key: e.key.clone(), shape: e.shape.clone(), dims: e.dims })
        .collect();
    let mut matched = match_keys(model.family(), &wanted, weights.shapes(), reinit_head, dir)?;
    // an untied head that was saved as if it were tied
    let head = |i: usize| model.registry.entries[i].key == HEAD && weights.shape(EMBEDDING).is_some();
    let copied: Vec<usize> = (0..matched.keys.len()).filter(|&i| matched.keys[i].is_none() && head(i)).collect();
    for i in copied {
        matched.keys[i] = Some(EMBEDDING.to_owned());
        matched.missing.retain(|key| key != HEAD);
    }
    for (i, name) in matched.keys.iter().enumerate() {
        match name {
            Some(name) => model.registry.read(i, &weights, name)?,
            None => model.registry.init(i, Key::new(seed).named("init")),
        }
    }
    let warnings = matched.warnings();
    let initialised = [matched.missing, matched.replaced].concat();
    Ok(Loaded { model, tokenizer_dir: dir.to_owned(), read_from: vec![dir.to_owned()], initialised, warnings })
}

/// Reads the adapter in `dir` and its base model: `base` (a folder or hub id), or the one that the adapter names. `relabel` gives the base
/// model's configuration the adapter's labels. The adapter stays beside the weights; see [`lora::merge`].
///
/// # Errors
/// Those of [`model`]; an adapter of another base, or with settings that this program does not have.
pub fn adapted(
    dir: &Path,
    base: Option<&str>,
    relabel: impl FnOnce(&mut Config),
    device: &Device,
    dtype: DType,
) -> Result<Loaded> {
    let (mut settings, named) = lora::read_config(dir)?;
    let (modules, labels) = lora::contents(dir)?;
    settings.targets = modules;
    let Some(base) = base.or(named.as_deref()) else {
        return Err(Error::new("base_model_name_or_path: expected the adapter's base model, found nothing")
            .at(dir.join(lora::ADAPTER_CONFIG_FILE).display())
            .hint("name it by --base"));
    };
    let base = hub::resolve(base, "main", Needs::Weights).map_err(|e| {
        e.at(dir.join(lora::ADAPTER_CONFIG_FILE).display()).hint("name the adapter's base model by --base")
    })?;
    // adapters of older versions of this program have the labels in a `config.json`
    let mut config = Config::open(if dir.join(CONFIG_FILE).exists() { dir } else { &base })?;
    relabel(&mut config);
    if let Some(labels) = labels.filter(|&n| n != config.num_labels()) {
        config.labels = (0..labels).map(|i| format!("LABEL_{i}")).collect();
    }
    let mut loaded = model(&base, config, device, dtype, 0, true)?;
    lora::adapt(&mut loaded.model, &settings, 0)?;
    lora::read(&mut loaded.model, &settings, dir)?;
    // what the adapter brings is not worth a warning
    loaded.initialised.retain(|key| !lora::is_saved_whole(&settings.modules_to_save, key));
    loaded.warnings.clear();
    loaded.read_from.push(dir.to_owned());
    // PEFT may write an adapter without its tokenizer
    if dir.join(TOKENIZER_FILE).exists() {
        loaded.tokenizer_dir = dir.to_owned();
    }
    Ok(loaded)
}
