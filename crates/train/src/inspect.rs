//! The evidence for sampling on a real model and data: how the probability mass is spread over rows, and what every estimator's
//! error is, site by site (Liu et al. 2023, section 3.2 and figures 3 to 5); and the error of what the recipe itself keeps.

mod collector;

use std::sync::{Arc, Mutex, PoisonError};

use colrow_autograd::{CachePlace, NormMemory, NormSource, Policy};
use colrow_models::net::SiteKind;
use colrow_tensor::rng::Key;
use colrow_tensor::{Error, Precision, Result, Tensor};
use serde::Serialize;

use self::collector::{Collector, Look, mean_of};
use crate::data::Batch;
use crate::job::Job;
use crate::recipe::{Estimate, PolicyName, Ratio};

/// Shares of the rows, those with the largest probabilities.
pub const TOPS: [f64; 8] = [0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0];
/// Shares of the k rows that are kept for certain.
pub const CERTAIN: [f64; 11] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
/// Shares of the rows that are kept.
pub const RATIOS: [f64; 3] = [0.1, 0.3, 0.5];

/// What to inspect.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Batches that are looked at.
    pub steps: usize,
    /// Passes over these batches that train before, so that norms are remembered and the model is past its start.
    pub passes: usize,
    /// Draws by which an error is measured.
    pub draws: u64,
    /// A linear whose operands in the first batch that is looked at are wanted.
    pub export: Option<String>,
}

/// The probability mass of the rows with the largest probabilities.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mass {
    /// Share of the rows.
    pub top: f64,
    /// Their share of `Σ ‖H_i‖·‖dZ_i‖`.
    pub share: f64,
}

/// The probability mass of the rows that are kept for certain.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Certain {
    /// Their number over k, |C|/k.
    pub share: f64,
    /// Σ_C p. Above `share` the paper's condition holds.
    pub mass: f64,
}

/// An estimator's error.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EstimatorError {
    /// Its name.
    pub estimator: &'static str,
    /// Where the norms of dZ come from.
    pub norms: &'static str,
    /// `√(E‖Ĝ − G‖²)/‖G‖`.
    pub rmse: f64,
    /// `E‖Ĝ − G‖²` over the variance of the minibatch gradient; `None` with a single batch.
    pub variance_to_minibatch: Option<f64>,
}

/// The error of the weight gradients that the recipe's own `keep` gives, whatever it does to their operands and to the gradients that
/// come from above.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RecipeError {
    /// `√(E‖Ĝ − G‖²)/‖G‖`.
    pub rmse: f64,
    /// `E‖Ĝ − G‖²` over the variance of the minibatch gradient; `None` with a single batch.
    pub variance_to_minibatch: Option<f64>,
}

/// What holds when a share of the rows is kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AtRatio {
    /// The share, k/n.
    pub ratio: f64,
    /// The best number of certain rows, over k: |C| that minimises (1 − Σ_C p)/(k − |C|).
    pub certain_share: f64,
    /// Share of the batches where Σ_C p > |C|/k: the paper's condition for less variance than `crs` (its theorem 2).
    pub condition: f64,
    /// The mass of the largest rows, for any number of certain ones.
    pub certain: Vec<Certain>,
    /// By estimator and norm source.
    pub estimators: Vec<EstimatorError>,
}

/// A linear.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SiteEvidence {
    /// Its site; the last is the mean over all.
    pub name: String,
    /// Mean number of rows in a batch.
    pub rows: f64,
    /// Mass of the top rows.
    pub mass: Vec<Mass>,
    /// By ratio.
    pub ratios: Vec<AtRatio>,
    /// Of the recipe as it is.
    pub recipe: RecipeError,
}

/// What was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// The model's folder or hub id.
    pub model: String,
    /// The training data.
    pub data: String,
    /// The task.
    pub task: String,
    /// The policy of the recipe.
    pub policy: PolicyName,
    /// Its estimator.
    pub estimator: Estimate,
    /// Its share of the rows.
    pub ratio: Ratio,
    /// Where it has norms from.
    pub norms: NormSource,
    /// Passes that trained before.
    pub passes: usize,
}

/// A linear's input and output gradient, a row a token.
#[derive(Debug)]
pub struct Operands {
    /// Its input.
    pub x: Tensor,
    /// The gradient of its output.
    pub dz: Tensor,
}

/// All that was found.
#[derive(Debug, Serialize)]
pub struct Evidence {
    /// Of what.
    pub about: About,
    /// Batches looked at.
    pub steps: usize,
    /// Mean number of tokens in a batch.
    pub rows_per_step: f64,
    /// By site, in the order of the forward pass.
    pub sites: Vec<SiteEvidence>,
    /// The mean over sites.
    pub mean: SiteEvidence,
    /// What [`Inspection::export`] asked for.
    #[serde(skip)]
    pub operands: Option<Operands>,
}

/// Trains `passes` times over the first `steps` batches of the recipe's data, keeping everything, then looks at those batches without
/// learning: keeping everything, and once more, with the same dropout, as the recipe keeps it. `done` is told of every batch.
///
/// # Errors
/// Anything that is wrong with model or data; a recipe that trains no linear's weight.
pub fn inspect(job: &mut Job, settings: &Inspection, mut done: impl FnMut(usize, usize)) -> Result<Evidence> {
    let policies = [(Look::Exact, Arc::new(Policy::exact())), (Look::Recipe, job.policy.clone())];
    job.policy = policies[0].1.clone();
    // the errors of estimators, not of rounding
    job.recipe.train.precision = Precision::F32;
    job.auto.clear();
    let model = job.model()?;
    let device = model.registry.params.device().clone();
    let linears = model.sites().into_iter().filter(|site| site.kind == SiteKind::Linear);
    let sites: Vec<_> = linears.map(|site| (site.name, site.rows)).collect();
    if let Some(name) = settings.export.as_ref().filter(|name| !sites.iter().any(|(site, _)| site == *name)) {
        let known: Vec<&str> = sites.iter().map(|(site, _)| site.as_str()).collect();
        return Err(Error::usage(format!("expected a linear's site to export, found `{name}`"))
            .hint(format!("sites are {}", known.join(", "))));
    }
    let memory = Arc::new(NormMemory::new(&device, &sites, job.cached_tokens(), CachePlace::Memory)?);
    let mut engine = job.engine(model, std::path::Path::new(""))?;
    let collector = Arc::new(Collector {
        memory: memory.clone(),
        look: Mutex::new(Look::Train),
        uniform: job.recipe.keep.uniform.max(0.01) as f32,
        draws: settings.draws,
        key: Key::new(job.recipe.seed).named("inspect"),
        sites: Mutex::default(),
        export: settings.export.clone(),
        operands: Mutex::default(),
    });
    engine.gradient.norms = Some(memory);
    engine.gradient.probe = Some(collector.clone());
    let batches = job.sampler.epoch(0);
    let batches = &batches[..settings.steps.min(batches.len())];
    let total = batches.len() * (settings.passes + 1);
    let (mut step, mut tokens) = (0, 0);
    for pass in 0..=settings.passes {
        let measuring = pass == settings.passes;
        for examples in batches {
            let micro = Batch::placed(&job.train, examples);
            step += 1;
            if measuring {
                tokens += micro.tokens.ids.len();
                for (look, policy) in &policies {
                    collector.look(*look);
                    engine.gradient.policy = policy.clone();
                    engine.step(std::slice::from_ref(&micro), 0.0, step as u64, false)?;
                }
            } else {
                engine.step(&[micro], job.recipe.optim.lr, step as u64, false)?;
            }
            done(step, total);
        }
    }
    let sums = collector.sites.lock().unwrap_or_else(PoisonError::into_inner);
    let order = engine.model.sites();
    let found = order.iter().filter_map(|site| Some(sums.get(&site.name)?.evidence(&site.name)));
    let sites: Vec<_> = found.filter(|site| site.rows > 0.0).collect();
    if sites.is_empty() {
        return Err(Error::usage("this recipe trains no linear's weight; there is nothing to sample")
            .hint("inspect full fine-tuning: --set train.method=full"));
    }
    let rows_per_step = tokens as f64 / batches.len() as f64;
    let operands = collector.operands.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(name) = settings.export.as_ref().filter(|_| operands.is_none()) {
        return Err(Error::usage(format!(
            "this recipe does not train the weight of `{name}`; there is nothing to export"
        )));
    }
    let (recipe, keep) = (&job.recipe, &job.recipe.keep);
    let about = About {
        model: recipe.model.path.clone(),
        data: recipe.data.train.clone().unwrap_or_default(),
        task: recipe.task.clone(),
        policy: keep.policy,
        estimator: keep.estimator,
        ratio: keep.ratio,
        norms: keep.norms(),
        passes: settings.passes,
    };
    Ok(Evidence { about, steps: batches.len(), rows_per_step, mean: mean_of(&sites), sites, operands })
}
