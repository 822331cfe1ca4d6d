//! What the tests against `transformers` share.
#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::path::Path;

use colrow_autograd::{Keep, ParamId, Policy};
use colrow_models::checkpoint::load::{self, Anew};
use colrow_models::checkpoint::names::TOKENIZER_FILE;
use colrow_models::checkpoint::weights::Weights;
use colrow_models::config::Config;
use colrow_models::model::Model;
use colrow_tensor::rng::Key;
use colrow_tensor::{DType, Device, Result, Weight};
use colrow_train::data::Batch;
use colrow_train::objective::Outputs;
use colrow_train::recipe::Recipe;
use colrow_train::step::Hyperparameters;
use colrow_train::step::{Engine, StepStats};
use colrow_train::step::{States, When};

/// Those that the golden values were made with.
pub(crate) const ADAMW: Hyperparameters = Hyperparameters {
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.01,
    clip: 1.0,
    states: States::F32,
    update: When::AfterBackward,
};
/// With these, the first moment after a step is the gradient, to the bit.
pub(crate) const GRADIENT: Hyperparameters =
    Hyperparameters { beta1: 0.0, beta2: 0.0, eps: 1.0, weight_decay: 0.0, clip: 0.0, ..ADAMW };

/// Statistics of a step over `micros` with [`GRADIENT`], and the gradient of each of the checkpoint's tensors.
pub(crate) fn gradients(mut engine: Engine, micros: &[Batch]) -> (StepStats, Vec<(String, Vec<f64>)>) {
    let stats = engine.step(micros, 0.0, 1, false).unwrap();
    let Engine { model, update, .. } = engine;
    let moment = |id: ParamId| update.moments[id.index()].as_ref().unwrap().tensors().next().unwrap().1;
    let entries = model.registry.entries.iter().filter(|e| model.registry.is_trainable(e));
    (stats, entries.map(|e| (e.key.clone(), moment(e.param).to_f64()[e.range()].to_vec())).collect())
}

pub(crate) fn engine(dir: &Path, config: &Config, dtype: DType, settings: Hyperparameters) -> Engine {
    engine_of(load::model(dir, config.clone(), &Device::cpu(), dtype, 7, Anew::default()).unwrap().model, settings)
}

pub(crate) fn engine_of(model: Model, settings: Hyperparameters) -> Engine {
    let mut engine = Engine::new(model, settings);
    engine.gradient.key = Key::new(1);
    engine
}

/// Logits of a batch, row-major.
pub(crate) fn logits(engine: &Engine, batch: &Batch) -> Vec<f32> {
    match engine.objective.outputs(&engine.model, batch).unwrap() {
        Outputs::Logits(logits) => logits,
        Outputs::Answers(_) => panic!("answers in text have no logits"),
    }
}

/// What every site of a model, trained as `choose_trained` says, keeps by the first pattern that names it.
pub(crate) fn by_patterns(
    config: &Config,
    choose_trained: &dyn Fn(&mut Model) -> Result<()>,
    patterns: &[(&str, Keep)],
) -> Policy {
    let mut model = Model::new(config.clone(), &Device::meta(1), DType::F32);
    choose_trained(&mut model).unwrap();
    Policy::by_patterns(patterns, model.sites().iter().map(|site| site.name.as_str()))
}

/// The same where the published system's sites keep this.
pub(crate) fn paper(config: &Config, choose_trained: &dyn Fn(&mut Model) -> Result<()>, keep: Keep) -> Policy {
    let mut model = Model::new(config.clone(), &Device::meta(1), DType::F32);
    choose_trained(&mut model).unwrap();
    let sites = model.sites();
    let names: Vec<_> = sites.iter().filter(|site| site.in_paper).map(|site| (site.name.as_str(), keep)).collect();
    by_patterns(config, choose_trained, &names)
}

/// The numbers of a weight, in codes or not.
pub(crate) fn floats(weight: &Weight) -> Vec<f64> {
    match weight {
        Weight::Dense(x) => x.to_f64(),
        Weight::Coded(x) => {
            let mut numbers = vec![0.0; weight.len()];
            x.read_rows(0, &mut numbers);
            numbers.into_iter().map(f64::from).collect()
        }
    }
}

pub(crate) fn weights(engine: &Engine) -> Vec<(String, Vec<f64>)> {
    let registry = &engine.model.registry;
    let entries = registry.entries.iter();
    entries.map(|e| (e.key.clone(), floats(&registry.params[e.param].value)[e.range()].to_vec())).collect()
}

/// A tensor of a file.
pub(crate) fn numbers(weights: &Weights, key: &str) -> Vec<f64> {
    let shape = weights.shape(key).unwrap_or_else(|| panic!("{key} is not among the golden values"));
    let mut out = vec![0.0; shape.iter().product()];
    weights.read(key, &mut out).unwrap();
    out.into_iter().map(f64::from).collect()
}

pub(crate) fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

pub(crate) fn minus(x: &[f64], y: &[f64]) -> Vec<f64> {
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).map(|(x, y)| x - y).collect()
}

pub(crate) fn largest(x: impl IntoIterator<Item = f64>) -> f64 {
    // not `max`, which passes over NaN
    x.into_iter().fold(0.0, |m, x| if x.abs() <= m { m } else { x.abs() })
}

/// Fails unless `found` is within `limit`; a NaN is not.
pub(crate) fn within(what: &str, found: f64, limit: f64) {
    assert!(found <= limit, "{what}: expected at most {limit:e}, found {found:e}");
}

/// A folder for the tokenizer's files that a saved model copies; what is in them does not matter here.
pub(crate) fn tokenizer() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(TOKENIZER_FILE), "{}").unwrap();
    dir
}

/// A recipe with these settings.
pub(crate) fn recipe(sets: &[&str]) -> Recipe {
    let sets: Vec<String> = sets.iter().map(|&s| s.to_owned()).collect();
    Recipe::parse("model.path = 'm'", "test", &sets).unwrap()
}

/// A random model as a recipe trains it.
pub(crate) fn model(config: &Config, recipe: &Recipe) -> Model {
    let mut model = colrow_train::trained::meta_model(config.clone(), recipe).unwrap();
    model.move_to(&Device::cpu());
    model.init(3);
    colrow_models::lora::init(&mut model, recipe.seed);
    model
}
