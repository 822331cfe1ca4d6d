//! What a run needs of a recipe: tokens, policy, sampler; its plan, its model and its engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use colrow_autograd::{CachePlace, Keep, Policy, RowsOf};
use colrow_models::checkpoint::load::{self, Anew};
use colrow_models::config::Config;
use colrow_models::lora;
use colrow_models::model::Model;
use colrow_models::net::Site;
use colrow_tensor::rng::Key;
use colrow_tensor::{Device, Error, Result};

use crate::comm::Together;
use crate::data::{BatchBy, Fingerprint, Lengths, Sampler, TokenisedSet, outermost};
use crate::fit::{self, Fit};
use crate::keeping::{auto_sites, policy, site_keep};
use crate::machine::Resident;
use crate::objective::Objective;
use crate::odd::{self, Facts};
use crate::plan::{self, Plan, Shape};
use crate::ratios::{self, Ratios};
use crate::recipe::{self, CacheIn, Recipe};
use crate::schedule::{lr_at, warmup_steps};
use crate::step::{Engine, Hyperparameters};
use crate::tasks::Task;
use crate::trained::{self, choose_trained, lora_config};
use crate::usage::Usage;

/// A labelled development set.
#[derive(Debug)]
pub struct DevSet {
    /// Prefix of its metrics; empty for the only or first one.
    pub prefix: &'static str,
    /// Its tokens, with its labels.
    pub set: TokenisedSet,
}

/// A recipe with its data read and its model looked at, but no weight read.
#[derive(Debug)]
pub struct Job {
    /// The recipe.
    pub recipe: Recipe,
    /// Its task.
    pub task: Task,
    /// The model's folder.
    pub model_dir: PathBuf,
    /// The model's configuration, with this data's labels.
    pub config: Config,
    /// Training tokens.
    pub train: TokenisedSet,
    /// Development sets; the first decides which model is best.
    pub dev: Vec<DevSet>,
    /// What the model is trained for.
    pub objective: Arc<dyn Objective>,
    /// What is written beside the model.
    pub usage: Usage,
    /// Draws batches.
    pub sampler: Sampler,
    /// What linears keep; at sites whose ratio the run chooses, where it starts.
    pub policy: Arc<Policy>,
    /// Those sites, and what their rows are.
    pub auto: Vec<(String, RowsOf)>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// The processes that share its steps.
    pub together: Together,
    /// Sites of the model.
    pub(crate) sites: Vec<Site>,
    /// What the process holds with all of this read.
    pub(crate) resident: Resident,
}

/// How batches are cut.
pub fn batch_by(batch: recipe::BatchSize) -> BatchBy {
    match batch {
        recipe::BatchSize::Sequences(n) => BatchBy::Examples(n),
        recipe::BatchSize::Tokens(n) => BatchBy::Tokens(n),
    }
}

/// What a label takes as it is counted, told and written: its name in two maps of `config.json`, its figures in an evaluation and in the log.
const LABEL_BYTES: usize = 1536;

/// As many batches as an epoch may have.
fn most_batches(batch: recipe::BatchSize, examples: usize, tokens: usize) -> usize {
    match batch {
        recipe::BatchSize::Sequences(n) => examples.div_ceil(n),
        // two batches that follow each other have more tokens than one may have
        recipe::BatchSize::Tokens(n) => examples.min(2 * tokens.div_ceil(n)),
    }
}

/// Lengths of a set's sources under a recipe, which may cut them further.
fn lengths_of(set: &TokenisedSet, recipe: &Recipe) -> Vec<u32> {
    set.lengths().into_iter().map(|length| length.min(recipe.data.max_length as u32)).collect()
}

/// Rows of a batch are numbered by 32 bits.
fn check_tokens(lengths: &[u32]) -> Result<()> {
    let tokens: u64 = lengths.iter().map(|&length| u64::from(length)).sum();
    if tokens <= u64::from(u32::MAX) {
        return Ok(());
    }
    Err(Error::usage(format!("train.batch: expected batches of fewer than 2^32 tokens, found one of {tokens}"))
        .hint("a smaller train.batch, and train.accumulate for as many sequences a step"))
}

impl Job {
    /// The learning rate after `step` steps of `total`.
    pub(crate) fn learning_rate(&self, step: u64, total: u64) -> f64 {
        let optim = &self.recipe.optim;
        lr_at(optim.schedule, optim.lr, step, warmup_steps(optim.warmup, total), total)
    }

    /// Optimizer steps of epoch `epoch`.
    pub(crate) fn steps_in(&self, epoch: u64) -> u64 {
        let batches = match self.recipe.train.batch {
            recipe::BatchSize::Sequences(n) => self.train.len().div_ceil(n),
            recipe::BatchSize::Tokens(_) => self.sampler.epoch(epoch).len(),
        };
        batches.div_ceil(self.recipe.train.accumulate) as u64
    }

    /// Optimizer steps of a whole run of the length that `train` tells: whole epochs and a part of the last.
    pub(crate) fn total_steps(&self, train: &recipe::Train) -> u64 {
        if let Some(steps) = train.steps {
            return steps;
        }
        let epochs = train.epochs;
        let whole = match train.batch {
            recipe::BatchSize::Sequences(_) => (epochs as u64).saturating_mul(self.steps_in(0)),
            recipe::BatchSize::Tokens(_) => (0..epochs as u64).map(|e| self.steps_in(e)).sum(),
        };
        let part = epochs.fract();
        let rest = if part > 0.0 { (part * self.steps_in(epochs as u64) as f64).ceil() as u64 } else { 0 };
        whole.saturating_add(rest).max(1)
    }

    /// What the run learns from and is judged by: training data, development data.
    pub(crate) fn fingerprints(&self) -> [Fingerprint; 2] {
        let names = &self.config.labels;
        let dev = self.dev.iter().map(|dev| (&dev.set, dev.set.labels.as_ref()));
        [Fingerprint::of([(&self.train, None)], names), Fingerprint::of(dev, names)]
    }

    pub(crate) fn cached_tokens(&self) -> usize {
        self.train.ids.len() + self.train.targets.as_ref().map_or(0, |targets| targets.ids.len())
    }

    pub(crate) fn facts(&self) -> Facts {
        Facts {
            examples: self.train.len(),
            batches: self.sampler.epoch(0).len(),
            steps: self.total_steps(&self.recipe.train),
            longest: self.train.lengths().into_iter().max().unwrap_or(0) as usize,
            evaluated: self.dev.iter().map(|dev| dev.set.len()).sum(),
            known: self.dev.iter().map(|dev| odd::known(&self.train, &dev.set)).sum(),
            positions: self.config.architecture.learned_positions(),
        }
    }

    /// The lengths of the largest batch that the sampler can produce. For a model that answers in text, of the longest sources and
    /// the longest targets, whose ever they are: no batch needs more.
    fn largest_batch(&self, recipe: &Recipe) -> Result<Lengths> {
        let by = batch_by(recipe.train.batch);
        let sources = Sampler::new(lengths_of(&self.train, recipe), by, Some(recipe.seed))?.largest_batch();
        check_tokens(&sources)?;
        let mut targets = self.train.target_lengths();
        if let Some(targets) = &mut targets {
            targets.sort_unstable_by(|a, b| b.cmp(a));
            targets.truncate(sources.len());
        }
        Ok(Lengths { sources, targets })
    }

    /// What a run holds on the host beside the batch that is being run: the order of an epoch and of an evaluation, the batches of a step
    /// that wait, predictions, and what is said of each label.
    fn host_bytes(&self, recipe: &Recipe, largest: &Lengths) -> usize {
        // numbers in one list and in one list a batch, which has a header and what the allocator adds
        let order = |examples: usize, tokens: usize| {
            let batches = most_batches(recipe.train.batch, examples, tokens);
            // lists that grow take up to twice their length
            8 * examples + (4 + 4) * examples + (2 * 24 + 32 + 16) * batches
        };
        let training = order(self.train.len(), self.train.ids.len());
        let evaluation = self.dev.iter().map(|DevSet { set, .. }| {
            order(set.len(), set.ids.len()) + (4 + self.objective.host_bytes().prediction) * set.len()
        });
        let waiting = (recipe.train.accumulate - 1).saturating_mul(largest.host_bytes());
        // no more than all examples
        let all = Lengths { sources: lengths_of(&self.train, recipe), targets: self.train.target_lengths() };
        let labels = LABEL_BYTES * self.config.num_labels();
        training + evaluation.max().unwrap_or(0) + waiting.min(all.host_bytes()) + labels
    }

    /// What chooses ratios, if the recipe leaves any to the run, by the plan of all rows.
    fn ratios(&self, plan: &Plan) -> Result<Option<Ratios>> {
        let keep = &self.recipe.keep;
        if self.auto.is_empty() {
            return Ok(None);
        }
        // a frozen linear keeps nothing and has no gradient to follow
        let sites: Vec<_> = self.auto.iter().filter(|(site, _)| plan.measured.contains(site)).cloned().collect();
        let settings = ratios::AutoRatio { every: keep.auto_every, share: keep.auto_share };
        let mut ratios = Ratios::new(settings, &sites);
        if let Some(limit) = keep.bytes {
            let largest = self.largest_batch(&self.recipe)?;
            let sum = |lengths: &[u32]| lengths.iter().map(|&l| l as usize).sum();
            let rows = sites.iter().map(|(_, rows)| match rows {
                RowsOf::Tokens => sum(&largest.sources),
                RowsOf::Targets => sum(largest.targets.as_deref().unwrap_or_default()),
                RowsOf::Sequences => largest.sources.len(),
            });
            ratios.limit(limit as usize, &plan.ledger, &rows.collect::<Vec<_>>())?;
        }
        Ok(Some(ratios))
    }

    /// The plan of the largest step that the sampler can produce, and of the evaluations; where the run chooses ratios, of a step that
    /// measures and keeps all rows there, though no more than `keep.bytes`.
    ///
    /// # Errors
    /// Those of [`Job::plan_as`]; a `keep.bytes` that no ratios meet.
    pub fn plan(&self) -> Result<Plan> {
        let mut plan = self.plan_as(&self.recipe)?;
        if let (Some(_), Some(limit)) = (self.ratios(&plan)?, self.recipe.keep.bytes) {
            plan.kept_bytes = plan.kept_bytes.min(limit as usize);
        }
        Ok(plan)
    }

    /// The plan with another recipe over the same model and data, which differs in `[keep]`, `[train]`, `[optim]` or a lower `data.max_length`.
    ///
    /// # Errors
    /// Frozen keys that split a stacked weight; examples longer than a batch by tokens may be; settings of the optimizer that exclude each
    /// other.
    pub fn plan_as(&self, recipe: &Recipe) -> Result<Plan> {
        let by = batch_by(recipe.train.batch);
        let mut evaluated = Vec::new();
        for DevSet { set, .. } in &self.dev {
            let (lengths, targets) = (lengths_of(set, recipe), set.target_lengths());
            let of = |batch: &[u32], lengths: &[u32]| batch.iter().map(|&i| lengths[i as usize]).collect();
            evaluated.extend(Sampler::new(lengths.clone(), by, None)?.epoch(0).iter().map(|batch| Lengths {
                sources: of(batch, &lengths),
                targets: targets.as_ref().map(|targets| of(batch, targets)),
            }));
        }
        let adapted;
        let sites = match recipe.train.method == self.recipe.train.method {
            true => &self.sites,
            false => {
                adapted = trained::meta_model(self.config.clone(), recipe)?.sites();
                &adapted
            }
        };
        let mut policy = policy(&recipe.keep, sites)?;
        let auto = auto_sites(&recipe.keep, sites);
        auto.iter().for_each(|(site, _)| policy.set_ratio(site, 1.0));
        let largest = self.largest_batch(recipe)?;
        let host = self.host_bytes(recipe, &largest);
        let remembered =
            sites.iter().filter(|site| matches!(site_keep(&recipe.keep, site), Keep::Rows(s) if s.remembers()));
        let cached = remembered.count() * self.cached_tokens();
        // the second shard's gradients are added to those of the first, and those after it need what it needs
        let processes = self.together.size();
        let distinct = recipe.train.accumulate.div_ceil(processes).min(2) * processes;
        let mut plan = plan::plan(&Shape {
            config: &self.config,
            objective: self.objective.clone(),
            choose_trained: &|model| choose_trained(model, recipe),
            optim: Hyperparameters::from(&recipe.optim),
            processes,
            rounds: recipe.train.accumulate.div_ceil(processes) as u64,
            policy: Arc::new(policy),
            auto: &auto,
            micros: &vec![largest; distinct],
            evaluated: &outermost(evaluated),
            cached_tokens: if recipe.keep.cache == CacheIn::Memory { self.cached_tokens() } else { 0 },
            threads: rayon::current_num_threads(),
            resident: self.resident,
            host,
            mapped: if recipe.keep.cache == CacheIn::File { cached } else { 0 },
        })?;
        // a step has no more batches than an epoch
        plan.tokens = (plan.tokens / distinct).saturating_mul(recipe.train.accumulate).min(self.train.ids.len());
        Ok(plan)
    }

    /// What of the recipe fits into `memory` bytes of this process; see [`fit::search`].
    ///
    /// # Errors
    /// Those of [`Job::plan_as`].
    pub fn fits(&self, memory: usize) -> Result<Vec<Fit>> {
        let lengths =
            [&self.train].into_iter().chain(self.dev.iter().map(|dev| &dev.set)).flat_map(TokenisedSet::lengths);
        let batches = match self.recipe.train.batch {
            // one sequence a step says nothing about a ratio
            recipe::BatchSize::Sequences(_) if !self.auto.is_empty() && self.recipe.train.accumulate == 1 => {
                2..=self.train.len()
            }
            recipe::BatchSize::Sequences(_) => 1..=self.train.len(),
            recipe::BatchSize::Tokens(_) => lengths.max().unwrap_or(1) as usize..=self.train.ids.len(),
        };
        fit::search(&self.recipe, memory, batches, &|recipe| self.plan_as(recipe))
    }

    /// The model with its weights.
    ///
    /// # Errors
    /// A checkpoint that does not fit its configuration; new weights that an adapter's folder would lack.
    pub fn model(&mut self) -> Result<Model> {
        let device = Device::cpu_with(self.recipe.train.precision);
        let anew = Anew { head: true, body: self.recipe.model.init_missing };
        // what is held in codes is known before anything is read
        let mut model = trained::meta_model(self.config.clone(), &self.recipe)?;
        model.move_to(&device);
        let loaded = load::read(&self.model_dir, model, self.recipe.seed, anew)?;
        self.warnings.extend(loaded.warnings);
        let mut model = loaded.model;
        lora::init(&mut model, self.recipe.seed);
        if let Some(settings) = lora_config(&self.recipe, &self.config) {
            let lost = |key: &&String| !lora::is_saved_whole(&settings.modules_to_save, key);
            if let Some(key) = loaded.initialised.iter().find(lost) {
                return Err(Error::usage(format!(
                    "train.modules_to_save: {key} is not in the checkpoint, and would not be in the adapter"
                ))
                .hint("name its module there too, so that it is trained and saved with the adapter"));
            }
        }
        Ok(model)
    }

    /// The model and all that its training needs. `cache` is the norm cache's file, where it lives in one.
    ///
    /// # Errors
    /// A norm cache that cannot be made.
    pub fn engine(&self, model: Model, cache: &Path) -> Result<Engine> {
        let store = match self.recipe.keep.cache {
            CacheIn::Memory => CachePlace::Memory,
            CacheIn::File => CachePlace::File(cache),
        };
        let ratios = self.ratios(&self.plan_as(&self.recipe)?)?;
        let mut policy = self.policy.clone();
        if let Some(ratios) = &ratios {
            ratios.apply(&mut policy);
        }
        let optim = Hyperparameters::from(&self.recipe.optim);
        let engine = Engine::new(model, optim).among(&self.together, optim);
        let engine = engine.keeping(policy, self.cached_tokens(), store)?;
        let objective = self.objective.clone();
        let mut engine = Engine { objective, ..engine };
        engine.gradient.ratios = ratios;
        engine.gradient.key = Key::new(self.recipe.seed).named("run");
        engine.gradient.dropout = true;
        engine.update.key = Key::new(self.recipe.seed).named("rounding");
        Ok(engine)
    }
}
