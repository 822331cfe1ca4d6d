//! One optimizer step: gradients of its shards, their sum, the update. The same code runs on a device with data (training, `bench`) and on
//! the shape-only device (`plan`), so that the plan cannot drift from the run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use colrow_autograd::{CachePlace, Keep, Ledger, Mark, NormMemory, Phase, Policy};
use colrow_models::model::Model;
use colrow_models::net::Site;
use colrow_tensor::{Bytes, Class, DType, Error, Result};

use super::adamw::{Hyperparameters, Optimizer};
use super::backprop::Backprop;
use super::gradient::{Gradient, Shard, Sink, Update};
use super::join::Join;
use crate::data::Batch;
use crate::objective::{self, Objective};

/// What a step measured.
#[derive(Clone, Debug)]
pub struct StepStats {
    /// Mean loss over the step's sequences, or the tokens of their targets.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens in the step.
    pub tokens: usize,
    /// Seconds of it that went into norms of gradients and updates of weights.
    pub optimizer_seconds: f64,
    /// Most bytes kept for a backward pass, by the meter.
    pub kept_bytes: usize,
    /// Live bytes by class at the moment of the step's peak.
    pub peak: Bytes,
    /// What is kept where, for the shard that keeps most.
    pub ledger: Ledger,
    /// Live bytes over the step, if asked for.
    pub timeline: Vec<Mark>,
    /// Whether the step was measured, so that ratios may have changed after it.
    pub measured: bool,
}

/// A model with what its training needs.
#[derive(Debug)]
pub struct Engine<G = Backprop, U = Optimizer> {
    /// The model.
    pub model: Model,
    /// What it is trained for.
    pub objective: Arc<dyn Objective>,
    /// How a shard gives a gradient.
    pub gradient: G,
    /// How weights follow it.
    pub update: U,
}

impl Engine {
    /// One that keeps all of everything, without dropout, for what the model's head is made for; see [`objective::of_model`].
    pub fn new(model: Model, optim: Hyperparameters) -> Self {
        Self {
            update: Optimizer::new(optim, &model.registry.params),
            objective: objective::of_model(&model.config, 0),
            model,
            gradient: Backprop::default(),
        }
    }

    /// The same under `policy`, with a memory of the norms that it draws by: of `cached_tokens` tokens, in `store`.
    ///
    /// # Errors
    /// A memory that cannot be made.
    pub fn keeping(mut self, policy: Arc<Policy>, cached_tokens: usize, store: CachePlace<'_>) -> Result<Self> {
        if policy.remembers_norms() {
            let draws = |site: &Site| matches!(policy.keep(&site.name), Keep::Rows(s) if s.remembers());
            let sites = self.model.sites().into_iter().filter(draws).map(|site| (site.name, site.rows));
            let sites: Vec<_> = sites.collect();
            let device = self.model.registry.params.device();
            self.gradient.norms = Some(Arc::new(NormMemory::new(device, &sites, cached_tokens, store)?));
        }
        self.gradient.policy = policy;
        Ok(self)
    }
}

impl<G: Gradient, U: Update> Engine<G, U> {
    /// Runs optimizer step number `step` (from 1) at learning rate `lr` over the shards `batches`; each weighs as the objective says: by its
    /// sequences, or the rows of its targets.
    ///
    /// # Errors
    /// A loss or gradient that is not finite, with the site where it first appeared. The weights are unchanged then; but where they are
    /// updated in the backward pass, those between the loss and a gradient that is not finite are updated by then, and a checkpoint is the
    /// way back. Settings of the optimizer that exclude each other, or several shards.
    pub fn step(&mut self, batches: &[Batch], lr: f64, step: u64, timeline: bool) -> Result<StepStats> {
        let done = self.run(batches, lr, step, timeline);
        // of a step that failed too
        self.update.end_step();
        done
    }

    fn run(&mut self, batches: &[Batch], lr: f64, step: u64, timeline: bool) -> Result<StepStats> {
        let device = self.model.registry.params.device().clone();
        let meter = device.meter();
        meter.reset_peak();
        let shards = self.shards(batches, step)?;
        self.update.begin_step(step, lr, batches.len())?;
        self.gradient.begin_step(step);
        let mut sums = device.zeros(Class::Workspace, DType::F64, &[1 + self.model.registry.params.len()]);
        let mut join = Join::new(&self.model.registry.params);
        let (mut kept, mut marks, mut seconds) = (None::<(usize, Ledger)>, Vec::new(), Duration::ZERO);
        for (i, shard) in shards.iter().enumerate() {
            let Self { model, objective, gradient, update } = &mut *self;
            let last = i + 1 == shards.len();
            let mut sink = Sink { sums: &mut sums, join: &mut join, update, last, seconds };
            let stats = gradient.shard(model, &**objective, shard, timeline, &mut sink)?;
            sink.end(&mut model.registry.params);
            seconds = sink.seconds;
            marks.extend(stats.timeline);
            if kept.as_ref().is_none_or(|(most, _)| stats.kept_bytes > *most) {
                kept = Some((stats.kept_bytes, stats.ledger));
            }
            if !last {
                let recorded = gradient.recorded();
                if !recorded.is_empty() {
                    gradient.remember(&mut device.read(&recorded.iter().collect::<Vec<_>>()).into_iter());
                }
            }
        }
        let clock = Instant::now();
        self.update.finish(&mut self.model.registry.params, &mut sums);
        // the one time that the host waits for the device
        let recorded = self.gradient.recorded();
        let mut read = device.read(&[&sums].into_iter().chain(&recorded).collect::<Vec<_>>()).into_iter();
        device.sync()?;
        seconds += clock.elapsed();
        let sums = read.next().unwrap_or_default();
        let loss = sums.first().copied().unwrap_or(0.0);
        if !loss.is_finite() {
            let site = self.gradient.not_finite(&self.model, &*self.objective, &shards)?;
            let site = site.as_deref().unwrap_or("loss");
            let what = format!("the loss is {loss}; the first output that is not finite is that of {site}");
            return Err(Error::new(what));
        }
        let grad_norm = self.update.grad_norm(&sums, &self.model.registry.params)?;
        self.gradient.remember(&mut read);
        let measured = self.gradient.end_step();
        if timeline {
            marks.push(Mark { phase: Phase::Optimizer, at: "optimizer".into(), live: meter.live() });
        }
        let (kept_bytes, ledger) = kept.unwrap_or_default();
        Ok(StepStats {
            loss,
            grad_norm,
            tokens: batches.iter().map(|batch| batch.tokens.ids.len()).sum(),
            optimizer_seconds: seconds.as_secs_f64(),
            kept_bytes,
            peak: meter.peak(),
            ledger,
            timeline: marks,
            measured,
        })
    }

    fn shards<'b>(&self, batches: &'b [Batch], step: u64) -> Result<Vec<Shard<'b>>> {
        let weights: Vec<f64> = batches.iter().map(|batch| self.objective.weight(batch)).collect();
        let weight: f64 = weights.iter().sum();
        if weight <= 0.0 {
            return Err(Error::new("nothing of this step's batch counts in the loss: every row has weight 0"));
        }
        let shard = |(number, (batch, own)): (usize, (&'b Batch, &f64))| Shard {
            step,
            number,
            batch,
            share: own / weight,
            weight,
        };
        Ok(batches.iter().zip(&weights).enumerate().map(shard).collect())
    }
}
