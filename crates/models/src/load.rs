//! From a checkpoint folder to a model with weights.

use std::path::Path;

use colrow_tensor::rng::Key;
use colrow_tensor::{DType, Device, Result};

use crate::bert::Bert;
use crate::config::BertConfig;
use crate::matching::{BERT, Wanted, match_keys};
use crate::weights::Weights;

/// A model and what the user should know about its weights.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub model: Bert,
    /// Keys that the checkpoint lacks and that were initialised.
    pub missing: Vec<String>,
    /// Missing keys that were initialised, ignored ones.
    pub warnings: Vec<String>,
}

/// Reads a BERT's weights from `dir`. What the checkpoint lacks is initialised from `seed` and named in a warning; with
/// `reinit_head` so is a classifier of another number of labels.
///
/// # Errors
/// Weights that are not there, not readable, or not this configuration's.
pub fn bert(
    dir: &Path,
    config: BertConfig,
    device: &Device,
    dtype: DType,
    seed: u64,
    reinit_head: bool,
) -> Result<Loaded> {
    let weights = Weights::open(dir)?;
    let mut model = Bert::new(config, device, dtype);
    let wanted: Vec<Wanted> = model
        .registry
        .entries
        .iter()
        .map(|e| Wanted { key: e.key.clone(), shape: e.shape.clone(), dims: e.dims })
        .collect();
    let matched = match_keys(&BERT, &wanted, weights.shapes(), reinit_head, dir)?;
    for (i, name) in matched.keys.iter().enumerate() {
        match name {
            Some(name) => model.registry.read(i, &weights, name)?,
            None => model.registry.init(i, Key::new(seed).named("init")),
        }
    }
    Ok(Loaded { model, warnings: matched.warnings(), missing: matched.missing })
}
