//! What of a model a recipe trains: adapters, modules that are saved whole, what is frozen.

use colrow_autograd::glob_matches;
use colrow_models::config::Config;
use colrow_models::lora::{self, LoraConfig};
use colrow_models::model::Model;
use colrow_models::registry::NUM_LABELS;
use colrow_tensor::{BaseWeights, DType, Device, Error, Result, TrainedWeights};

use crate::recipe::{self, HELD_IF_FROZEN, Method, Recipe};

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Modules that are trained whole beside adapters or biases: the recipe's, else the head.
fn modules_to_save(train: &recipe::Train, config: &Config) -> Vec<String> {
    train.modules_to_save.clone().unwrap_or_else(|| owned(config.family().modules_to_save))
}

/// The recipe's adapters, if its method trains any.
pub fn lora_config(recipe: &Recipe, config: &Config) -> Option<LoraConfig> {
    let recipe::Lora { rank, alpha, dropout, rank_stabilised, targets } = recipe.lora.clone();
    let targets = targets.unwrap_or_else(|| owned(config.family().adapter_targets));
    let modules_to_save = modules_to_save(&recipe.train, config);
    let config = LoraConfig {
        lora_rank: rank,
        alpha,
        dropout,
        rank_stabilised,
        targets,
        modules_to_save,
        ..LoraConfig::default()
    };
    matches!(recipe.train.method, Method::Lora | Method::LoraFa).then_some(config)
}

/// Whether the recipe leaves the parameter with this key as it is.
fn is_frozen(train: &recipe::Train, whole: &[String], key: &str) -> bool {
    let learned = match train.method {
        Method::Full => true,
        Method::Lora => lora::is_adapter_key(key),
        Method::LoraFa => lora::is_adapter_key(key) && !lora::is_a_key(key),
        Method::BitFit => key.ends_with(".bias"),
    };
    !learned && !lora::is_saved_whole(whole, key) || train.is_frozen(key)
}

/// Gives the model the recipe's adapters, freezes what the recipe does not train, and holds matrices as `model.base` and `train.weights` say.
///
/// # Errors
/// A pattern that names no linear, module or parameter, or a part of a stacked weight; patterns that freeze all parameters; a
/// `model.base` for which nothing is frozen, or a `train.weights` for which nothing is trained.
pub fn choose_trained(model: &mut Model, recipe: &Recipe) -> Result<()> {
    let train = &recipe.train;
    let entries = &model.registry.entries;
    let some = || entries.iter().take(4).map(|e| e.key.as_str()).collect::<Vec<_>>().join(", ");
    let whole = if train.method == Method::Full { vec![] } else { modules_to_save(train, &model.config) };
    for pattern in &whole {
        let within = |key: &str| lora::is_saved_whole(std::slice::from_ref(pattern), key);
        if entries.iter().all(|e| e.dims.contains(&NUM_LABELS) || within(&e.key)) {
            return Err(Error::usage(format!(
                "train.modules_to_save: `{pattern}` is the whole model: nothing would stay as it is"
            ))
            .hint("name modules within it, or train all by train.method = \"full\""));
        }
        if !entries.iter().any(|e| within(&e.key)) {
            return Err(Error::usage(format!("train.modules_to_save: `{pattern}` names no module of this model"))
                .hint(format!("a module is the beginning of a parameter, up to a dot; parameters are {}, …", some())));
        }
    }
    if let Some(config) = lora_config(recipe, &model.config) {
        lora::adapt(model, &config, recipe.seed)?;
    }
    let entries = &model.registry.entries;
    let some = || entries.iter().take(4).map(|e| e.key.as_str()).collect::<Vec<_>>().join(", ");
    for pattern in &train.freeze {
        if !entries.iter().any(|e| glob_matches(pattern, &e.key)) {
            return Err(Error::usage(format!("train.freeze: `{pattern}` names no parameter of this model"))
                .hint(format!("parameters are {}, …", some())));
        }
    }
    model.registry.freeze(|key| is_frozen(train, &whole, key))?;
    if !model.registry.params.iter().any(|(_, p)| p.trainable) {
        if train.method == Method::BitFit && !model.registry.entries.iter().any(|e| e.key.ends_with(".bias")) {
            return Err(Error::usage("train.method: \"bitfit\" trains biases, and this model has none")
                .hint("choose \"lora\" or \"full\", or name modules in train.modules_to_save"));
        }
        let head = model.config.family().modules_to_save.first();
        let least = head.map_or("some of the patterns".to_owned(), |head| format!("at least the {head}"));
        return Err(Error::usage("train.freeze: every parameter is frozen; nothing is left to learn")
            .hint(format!("leave out {least}")));
    }
    let base = recipe.model.base;
    if !model.registry.hold_frozen(base) && base != BaseWeights::F32 {
        return Err(Error::usage(format!("model.base: \"{base}\" is for matrices that are not trained, and all are"))
            .hint(HELD_IF_FROZEN));
    }
    if let Some(refusal) = train.weights_refusal() {
        return Err(Error::usage(refusal));
    }
    if !model.registry.hold_trained(train.weights) && train.weights != TrainedWeights::F32 {
        return Err(Error::usage(format!(
            "train.weights: \"{}\" is for matrices that are trained, and all are frozen",
            train.weights
        ))
        .hint("leave it out, or freeze less in train.freeze"));
    }
    Ok(())
}

/// A model as `recipe` trains it, without numbers and without memory; [`Model::move_to`] gives it a device.
///
/// # Errors
/// Those of [`choose_trained`].
pub fn meta_model(config: Config, recipe: &Recipe) -> Result<Model> {
    let mut model = Model::new(config, &Device::meta(1), DType::F32);
    choose_trained(&mut model, recipe)?;
    Ok(model)
}
