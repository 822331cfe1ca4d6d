//! The seams of a step: how a shard gives a gradient, and how weights follow the sum of a step's shards.

use std::time::{Duration, Instant};

use colrow_autograd::{Ledger, Mark, ParamId, Params};
use colrow_models::model::Model;
use colrow_tensor::{Result, Tensor};

use super::join::Join;
use crate::data::Batch;
use crate::objective::Objective;

/// A part of a step's batch that passes through the model at once. How a step is cut into shards is the recipe's affair and not the
/// machine's: random draws are keyed by step and shard, and the sum of their gradients does not depend on who computed which.
#[derive(Clone, Copy, Debug)]
pub struct Shard<'a> {
    /// The step's number, from 1.
    pub step: u64,
    /// Its number in the step, from 0.
    pub number: usize,
    /// Its examples.
    pub batch: &'a Batch,
    /// What it weighs in the step's loss; the shards' sum to 1.
    pub share: f64,
    /// What the step's loss is a mean of: the sum of what the objective says its shards weigh.
    pub weight: f64,
}

/// What a shard tells besides its gradient.
#[derive(Clone, Debug)]
pub struct ShardStats {
    /// Most bytes kept for its backward pass, by the meter.
    pub kept_bytes: usize,
    /// What is kept where.
    pub ledger: Ledger,
    /// Live bytes over the shard, if asked for.
    pub timeline: Vec<Mark>,
}

/// How a shard gives a gradient, and what is remembered of it for later steps.
pub trait Gradient {
    /// Begins a step.
    fn begin_step(&mut self, _step: u64) {}
    /// Hands the loss and the gradients of a shard to `sink`, each parameter's when nothing needs its value any more; with `timeline`, notes
    /// live bytes on the way.
    ///
    /// # Errors
    /// A batch that is none of the objective's; what cannot be computed again in a backward pass.
    fn shard(
        &mut self,
        model: &mut Model,
        objective: &dyn Objective,
        shard: &Shard<'_>,
        timeline: bool,
        sink: &mut Sink<'_>,
    ) -> Result<ShardStats>;
    /// Tensors of the last shard that are to be read with the step's numbers, so that the host waits once, by name.
    fn recorded(&self) -> Vec<(String, Tensor)> {
        Vec::new()
    }
    /// Gets the numbers of [`Gradient::recorded`] of a shard, which another process may have computed; shards come in order.
    fn remember(&mut self, _shard: &Shard<'_>, _numbers: Vec<(String, Vec<f64>)>) {}
    /// Ends a step that went well. Whether it measured something, so that what is kept may change.
    fn end_step(&mut self) -> bool {
        false
    }
    /// Where the first number was not finite, after a step whose loss is not.
    ///
    /// # Errors
    /// As [`Gradient::shard`].
    fn not_finite(&self, model: &Model, objective: &dyn Objective, shards: &[Shard<'_>]) -> Result<Option<String>>;
}

/// How weights follow the sum of a step's gradients. Its numbers stay on the device: `sums` (1 + parameters, f64) holds the loss, and by parameter
/// Σg².
pub trait Update {
    /// Begins step number `step` (from 1) of `shards` shards at learning rate `lr`.
    ///
    /// # Errors
    /// Settings that exclude each other.
    fn begin_step(&mut self, step: u64, lr: f64, shards: usize) -> Result<()>;
    /// Takes a parameter's gradient of the whole step. Nothing holds the parameter any more.
    fn take(&mut self, params: &mut Params, id: ParamId, gradient: Tensor, sums: &mut Tensor);
    /// Updates what is not updated yet, unless a sum is not finite.
    ///
    /// # Errors
    /// Processes that are gone or do not answer, where weights are spread over several.
    fn finish(&mut self, params: &mut Params, sums: &mut Tensor) -> Result<()>;
    /// Lets go of the step's gradients.
    fn end_step(&mut self);
    /// The norm of the step's gradient, before clipping, of its sums as they were read.
    ///
    /// # Errors
    /// A gradient that is not finite; names its parameter.
    fn grad_norm(&self, sums: &[f64], params: &Params) -> Result<f64>;
}

/// Where a shard's loss and gradients go.
pub struct Sink<'a> {
    pub(super) sums: &'a mut Tensor,
    /// Where the loss goes: by round of shards, where several processes share a step.
    pub(super) losses: Option<(&'a mut Tensor, usize)>,
    pub(super) join: &'a mut Join,
    pub(super) update: &'a mut dyn Update,
    /// Whether the shard is the step's last, or one of its last round.
    pub(super) last: bool,
    /// What the update took.
    pub(super) seconds: Duration,
}

impl Sink<'_> {
    /// Adds `share` times a loss (1) to the step's.
    pub fn loss(&mut self, share: f64, loss: &Tensor) {
        match &mut self.losses {
            Some((losses, round)) => loss.device().kernels().accumulate(share, loss, *round, losses),
            None => loss.device().kernels().accumulate(share, loss, 0, self.sums),
        }
    }

    /// Takes the shard's gradient of a parameter, once a shard.
    pub fn gradient(&mut self, params: &mut Params, id: ParamId, gradient: Tensor) {
        if let Some(sum) = self.join.add(self.last, id, gradient) {
            self.update(params, id, sum);
        }
    }

    /// The round is done. After the last, the sums are whole of parameters that its last shard gave no gradient of too.
    pub(super) fn end(&mut self, params: &mut Params) {
        if self.last {
            for (id, sum) in self.join.rest(params) {
                self.update(params, id, sum);
            }
        }
    }

    fn update(&mut self, params: &mut Params, id: ParamId, sum: Tensor) {
        let clock = Instant::now();
        self.update.take(params, id, sum, self.sums);
        self.seconds += clock.elapsed();
    }
}
