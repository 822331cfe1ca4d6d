//! A training step of a model that is only a configuration, planned without a weight, a tokenizer or data.

use std::sync::Arc;

use colrow_autograd::Policy;
use colrow_models::config::Config;
use colrow_models::family::HeadKind;
use colrow_tensor::Result;
use colrow_train::data::Lengths;
use colrow_train::machine::{self, Resident};
use colrow_train::objective::{self, Objective};
use colrow_train::plan::{self, Plan, Shape};
use colrow_train::recipe::Recipe;
use colrow_train::step::Hyperparameters;
use colrow_train::{fit, keeping, trained};

/// Most sequences and tokens of a batch: more than any machine's memory holds of what a step makes of them.
pub(crate) const MOST_SEQUENCES: u64 = 1 << 20;
pub(crate) const MOST_TOKENS: usize = 1 << 25;

/// A configuration with what is trained and kept.
pub(crate) struct Setup {
    pub(crate) config: Config,
    pub(crate) recipe: Recipe,
    pub(crate) policy: Arc<Policy>,
    pub(crate) objective: Arc<dyn Objective>,
    resident: Resident,
}

impl Setup {
    /// # Errors
    /// A recipe that does not suit the model.
    pub(crate) fn new(config: Config, recipe: Recipe) -> Result<Self> {
        let policy = Arc::new(keeping::policy(&recipe.keep, &trained::meta_model(config.clone(), &recipe)?.sites())?);
        let objective = objective::of_model(&config, 0);
        Ok(Self { config, recipe, policy, objective, resident: machine::resident() })
    }

    /// A batch of sequences, each with a target of so many tokens if the model answers in text.
    pub(crate) fn lengths(&self, sources: Vec<u32>, target: usize) -> Lengths {
        let targets = (self.config.family().head == HeadKind::Language).then(|| vec![target as u32; sources.len()]);
        Lengths { sources, targets }
    }

    /// The plan of one step.
    ///
    /// # Errors
    /// Those of [`plan::plan`].
    pub(crate) fn plan(&self, lengths: Lengths) -> Result<Plan> {
        plan::plan(&Shape {
            config: &self.config,
            objective: self.objective.clone(),
            choose_trained: &|model| trained::choose_trained(model, &self.recipe),
            processes: 1,
            rounds: 1,
            optim: Hyperparameters::from(&self.recipe.optim),
            policy: self.policy.clone(),
            auto: &[],
            cached_tokens: lengths.tokens(),
            micros: &[lengths],
            evaluated: &[],
            threads: rayon::current_num_threads(),
            resident: self.resident,
            host: 0,
            mapped: 0,
        })
    }

    /// The largest batch whose plan fits, none of whose sequences has more than `longest` tokens; `None` if not even one sequence does.
    ///
    /// # Errors
    /// Those of [`Setup::plan`].
    pub(crate) fn largest(
        &self,
        longest: usize,
        lengths: impl Fn(usize) -> Lengths,
        fits: impl Fn(&Plan) -> bool,
    ) -> Result<Option<usize>> {
        let most = (MOST_TOKENS / longest.max(1)).clamp(1, MOST_SEQUENCES as usize);
        fit::largest(1..=most, |batch| Ok(fits(&self.plan(lengths(batch))?)))
    }
}
