//! One optimizer step: gradients of its shards, their sum, the update. The same code runs on a device with data (training, `bench`) and on
//! the shape-only device (`plan`), so that the plan cannot drift from the run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use colrow_autograd::{CachePlace, Keep, Ledger, Mark, NormMemory, Phase, Policy};
use colrow_models::model::Model;
use colrow_models::net::Site;
use colrow_tensor::{Bytes, Class, DType, Error, Result, Tensor};

use super::adamw::{Hyperparameters, Optimizer};
use super::backprop::Backprop;
use super::gradient::{Gradient, Shard, Sink, Update};
use super::join::Join;
use crate::comm::{Spread, Together, Traffic};
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
    /// What this process sent to others, where several share the step.
    pub traffic: Option<Traffic>,
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
    /// The processes that share its steps, where they are several.
    pub spread: Option<Arc<Spread>>,
}

impl Engine {
    /// One that keeps all of everything, without dropout, for what the model's head is made for; see [`objective::of_model`].
    pub fn new(model: Model, optim: Hyperparameters) -> Self {
        Self {
            update: Optimizer::new(optim, &model.registry.params),
            objective: objective::of_model(&model.config, 0),
            model,
            gradient: Backprop::default(),
            spread: None,
        }
    }

    /// The same as one of several processes, each of which has a part of the optimizer's states. Nothing is updated yet.
    #[must_use]
    pub fn among(mut self, together: &Together, optim: Hyperparameters) -> Self {
        if together.size() > 1 {
            let params = &self.model.registry.params;
            let spread = Some(Arc::new(Spread::new(together.clone(), params)));
            self.update = Optimizer::of_part(optim, params, spread.clone());
            self.spread = spread;
        }
        self
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
        let spread = self.spread.clone();
        let together = spread.as_ref().map(|spread| spread.together().clone()).unwrap_or_default();
        let (rank, size) = (together.rank(), together.size());
        let mut losses =
            spread.as_ref().map(|_| device.zeros(Class::Workspace, DType::F64, &[shards.len().div_ceil(size)]));
        let mut join = Join::new(&self.model.registry.params, spread.clone());
        let (mut kept, mut marks, mut seconds) = (None::<(usize, Ledger)>, Vec::new(), Duration::ZERO);
        for (number, round) in shards.chunks(size).enumerate() {
            let Self { model, objective, gradient, update, .. } = &mut *self;
            let last = (number + 1) * size >= shards.len();
            let losses = losses.as_mut().map(|losses| (losses, number));
            let mut sink = Sink { sums: &mut sums, losses, join: &mut join, update, last, seconds };
            let own = round.get(rank);
            let stats = own.map(|shard| gradient.shard(model, &**objective, shard, timeline, &mut sink)).transpose();
            let stats = match &spread {
                Some(spread) => spread.waiting(|together| together.agree(stats))?,
                None => stats?,
            };
            sink.join.end_round(round.len())?;
            sink.end(&mut model.registry.params);
            seconds = sink.seconds;
            if let Some(stats) = stats {
                marks.extend(stats.timeline);
                if kept.as_ref().is_none_or(|(most, _)| stats.kept_bytes > *most) {
                    kept = Some((stats.kept_bytes, stats.ledger));
                }
            }
            match &spread {
                Some(_) => remember_all(gradient, own.is_some(), round, &together)?,
                None if !last => {
                    let recorded = gradient.recorded();
                    if !recorded.is_empty() {
                        let (names, tensors): (Vec<_>, Vec<_>) = recorded.into_iter().unzip();
                        let numbers = device.read(&tensors.iter().collect::<Vec<_>>());
                        gradient.remember(&round[0], names.into_iter().zip(numbers).collect());
                    }
                }
                None => {}
            }
        }
        let clock = Instant::now();
        if let Some(losses) = losses {
            sums.write_range(0, &[total_loss(&losses, shards.len(), &together)?]);
        }
        self.update.finish(&mut self.model.registry.params, &mut sums)?;
        if let (Some(spread), Some(present)) = (&spread, join.present()) {
            spread.hand_out(&mut self.model.registry.params, present)?;
        }
        // the one time that the host waits for the device
        let recorded = if spread.is_none() { self.gradient.recorded() } else { Vec::new() };
        let (names, recorded): (Vec<_>, Vec<_>) = recorded.into_iter().unzip();
        let mut read = device.read(&[&sums].into_iter().chain(&recorded).collect::<Vec<_>>()).into_iter();
        device.sync()?;
        seconds += clock.elapsed();
        let sums = read.next().unwrap_or_default();
        let loss = sums.first().copied().unwrap_or(0.0);
        let checked = match loss.is_finite() {
            true => self.update.grad_norm(&sums, &self.model.registry.params),
            false => Err(self.gradient.not_finite(&self.model, &*self.objective, &shards).map_or_else(
                |e| e,
                |site| {
                    let site = site.as_deref().unwrap_or("loss");
                    Error::new(format!("the loss is {loss}; the first output that is not finite is that of {site}"))
                },
            )),
        };
        let grad_norm = together.agree(checked)?;
        if let (Some(shard), false) = (shards.last(), names.is_empty()) {
            self.gradient.remember(shard, names.into_iter().zip(read).collect());
        }
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
            traffic: spread.map(|spread| spread.traffic()),
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

/// What the shards of a round recorded, whoever computed them, remembered in their order.
fn remember_all(gradient: &mut impl Gradient, computed: bool, round: &[Shard<'_>], together: &Together) -> Result<()> {
    let recorded = if computed { gradient.recorded() } else { Vec::new() };
    let (names, tensors): (Vec<String>, Vec<Tensor>) = recorded.into_iter().unzip();
    let numbers = match tensors.first() {
        Some(first) => first.device().read(&tensors.iter().collect::<Vec<_>>()),
        None => Vec::new(),
    };
    // as bits: not every text has words for what is not finite
    let bits = |numbers: Vec<f64>| numbers.into_iter().map(f64::to_bits).collect::<Vec<u64>>();
    let own: Vec<(String, Vec<u64>)> = names.into_iter().zip(numbers.into_iter().map(bits)).collect();
    for (shard, recorded) in round.iter().zip(together.values(&own)?) {
        let numbers = |(name, bits): (String, Vec<u64>)| (name, bits.into_iter().map(f64::from_bits).collect());
        gradient.remember(shard, recorded.into_iter().map(numbers).collect());
    }
    Ok(())
}

/// The sum of the shards' losses, in their order; `losses` are those of this process, by round.
fn total_loss(losses: &Tensor, shards: usize, together: &Together) -> Result<f64> {
    let own: Vec<u8> = losses.to_f64().into_iter().flat_map(f64::to_le_bytes).collect();
    let all = together.all(&own)?;
    let of = |shard: usize| {
        let (words, _) = all[shard % together.size()].as_chunks::<8>();
        words.get(shard / together.size()).map_or(0.0, |&word| f64::from_le_bytes(word))
    };
    Ok((0..shards).map(of).fold(0.0, |sum, loss| sum + loss))
}
