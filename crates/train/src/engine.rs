//! One optimizer step: forward, backward, update. The same code runs on a device with data (training, `bench`) and on the
//! shape-only device (`plan`), so that the plan cannot drift from the run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use colrow_autograd::{Grads, Keep, Ledger, Mark, Mode, NormMemory, Phase, Policy, Probe, Store, Tape};
use colrow_models::model::Model;
use colrow_models::net::Site;
use colrow_tensor::rng::Key;
use colrow_tensor::{Bytes, Error, Result};

use crate::data::Batch;
use crate::objective::{self, Objective};
use crate::optim::{Optimizer, Settings};
use crate::ratios::Ratios;

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
    /// What is kept where, for the micro-batch that keeps most.
    pub ledger: Ledger,
    /// Live bytes over the step, if asked for.
    pub timeline: Vec<Mark>,
    /// Whether the step was measured, so that ratios may have changed after it.
    pub measured: bool,
}

/// A model with what its training needs.
#[derive(Debug)]
pub struct Engine {
    /// The model.
    pub model: Model,
    /// What it is trained for.
    pub objective: Arc<dyn Objective>,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// What linears keep.
    pub policy: Arc<Policy>,
    /// Remembered norms, if the policy draws by them.
    pub norms: Option<Arc<NormMemory>>,
    /// Ratios that follow the gradient, where the recipe leaves them to the run.
    pub ratios: Option<Ratios>,
    /// Sees the operands of weight gradients.
    pub probe: Option<Arc<dyn Probe>>,
    /// Root of the run's random numbers.
    pub key: Key,
    /// Whether dropout acts.
    pub dropout: bool,
}

impl Engine {
    /// One that keeps all of everything, without dropout, for what the model's head is made for; see [`objective::of_model`].
    pub fn new(model: Model, optim: Settings) -> Self {
        Self {
            optimizer: Optimizer::new(optim, &model.registry.params),
            objective: objective::of_model(&model.config, 0),
            model,
            policy: Arc::default(),
            norms: None,
            ratios: None,
            probe: None,
            key: Key::new(0),
            dropout: false,
        }
    }

    /// The same under `policy`, with a memory of the norms that it draws by: of `cached_tokens` tokens, in `store`.
    ///
    /// # Errors
    /// A memory that cannot be made.
    pub fn keeping(mut self, policy: Arc<Policy>, cached_tokens: usize, store: Store<'_>) -> Result<Self> {
        if policy.remembers_norms() {
            let draws = |site: &Site| matches!(policy.keep(&site.name), Keep::Rows(s) if s.remembers());
            let sites = self.model.sites().into_iter().filter(draws).map(|site| (site.name, site.rows));
            let sites: Vec<_> = sites.collect();
            let device = self.model.registry.params.device();
            self.norms = Some(Arc::new(NormMemory::new(device, &sites, cached_tokens, store)?));
        }
        self.policy = policy;
        Ok(self)
    }

    fn mode(&self, key: Key) -> Mode {
        Mode::Training {
            key,
            dropout: self.dropout,
            policy: self.policy.clone(),
            norms: self.norms.clone(),
            variances: self.ratios.as_ref().map(|ratios| ratios.variances().clone()),
            probe: self.probe.clone(),
        }
    }

    /// Runs optimizer step number `step` (from 1) at learning rate `lr` over `micros`; each weighs as the objective says: by its sequences, or the rows of
    /// its targets.
    ///
    /// # Errors
    /// A loss or gradient that is not finite, with the site where it first appeared. The weights are unchanged then; but where they are
    /// updated in the backward pass, those between the loss and a gradient that is not finite are updated by then, and a checkpoint is the
    /// way back. Settings of the optimizer that exclude each other, or several `micros`.
    pub fn step(&mut self, micros: &[Batch], lr: f64, step: u64, timeline: bool) -> Result<StepStats> {
        let device = self.model.registry.params.device().clone();
        let meter = device.meter();
        meter.reset_peak();
        let weight: f64 = micros.iter().map(|micro| self.objective.weight(micro)).sum();
        if weight <= 0.0 {
            return Err(Error::new("nothing of this step's batch counts in the loss: every row has weight 0"));
        }
        let (mut update, mut optimizer_time) = (self.optimizer.begin(step, lr, micros.len())?, Duration::ZERO);
        let mut grads = Grads::new(&self.model.registry.params);
        let measured = self.ratios.as_ref().is_some_and(|ratios| ratios.measures(step));
        let (mut kept_bytes, mut ledger, mut marks) = (0, None, Vec::new());
        for (i, micro) in micros.iter().enumerate() {
            let key = self.key.child(step).child(i as u64);
            if let Some(norms) = &self.norms {
                norms.begin(micro.batch_places(weight));
            }
            if let Some(ratios) = &self.ratios {
                let probes = measured.then(|| self.key.child(step).named("probes"));
                ratios.variances().begin(probes, micro.bounds());
            }
            let mut tape = Tape::new(&self.model.registry.params, self.mode(key));
            if timeline {
                tape = tape.with_timeline();
            }
            let share = self.objective.weight(micro) / weight;
            let of = self.objective.loss(&self.model, &mut tape, micro)?;
            device.kernels().accumulate(share, &of.value, 0, &mut update.sums);
            let kept = meter.live().kept;
            if ledger.is_none() || kept > kept_bytes {
                (kept_bytes, ledger) = (kept, Some(tape.ledger()));
            }
            let (recorded, Self { model, optimizer, .. }) = (tape.into_recorded(), &mut *self);
            recorded.backward(of, share, &mut grads, &mut |grads| {
                let clock = Instant::now();
                optimizer.update_final(&mut update, &mut model.registry.params, grads);
                optimizer_time += clock.elapsed();
                Ok(())
            })?;
            marks.append(&mut grads.timeline);
            if let Some(norms) = self.norms.as_ref().filter(|_| i + 1 < micros.len()) {
                let recorded = norms.recorded();
                norms.remember(device.read(&recorded.iter().collect::<Vec<_>>()));
            }
        }
        let clock = Instant::now();
        self.optimizer.finish(&mut update, &mut self.model.registry.params, &grads);
        // the one time that the host waits for the device
        let recorded = self.norms.as_ref().map(|norms| norms.recorded()).unwrap_or_default();
        let mut read = device.read(&[&[&update.sums][..], &recorded.iter().collect::<Vec<_>>()].concat()).into_iter();
        device.sync()?;
        optimizer_time += clock.elapsed();
        let sums = read.next().unwrap_or_default();
        let loss = sums.first().copied().unwrap_or(0.0);
        if !loss.is_finite() {
            return Err(self.not_finite(micros, step, weight, loss)?);
        }
        let grad_norm = self.optimizer.grad_norm(&sums, &self.model.registry.params)?;
        if let Some(norms) = &self.norms {
            norms.remember(read);
            norms.end_step();
        }
        if let Some(ratios) = self.ratios.as_mut().filter(|_| measured) {
            ratios.update();
            ratios.apply(&mut self.policy);
        }
        if timeline {
            marks.push(Mark { phase: Phase::Optimizer, at: "optimizer".into(), live: meter.live() });
        }
        Ok(StepStats {
            loss,
            grad_norm,
            tokens: micros.iter().map(|m| m.tokens.ids.len()).sum(),
            optimizer_seconds: optimizer_time.as_secs_f64(),
            kept_bytes,
            peak: meter.peak(),
            ledger: ledger.unwrap_or_default(),
            timeline: marks,
            measured,
        })
    }

    /// Runs forward passes again, random numbers and all, to find the first site whose output is not finite.
    fn not_finite(&self, micros: &[Batch], step: u64, weight: f64, loss: f64) -> Result<Error> {
        let params = &self.model.registry.params;
        let mut site = None;
        for (i, micro) in micros.iter().enumerate() {
            if let Some(norms) = &self.norms {
                norms.begin(micro.batch_places(weight));
            }
            let mut tape = Tape::new(params, self.mode(self.key.child(step).child(i as u64))).with_check();
            self.objective.loss(&self.model, &mut tape, micro)?;
            site = tape.not_finite().map(str::to_owned);
            if site.is_some() {
                break;
            }
        }
        let site = site.as_deref().unwrap_or("loss");
        Ok(Error::new(format!("the loss is {loss}; the first output that is not finite is that of {site}")))
    }
}
