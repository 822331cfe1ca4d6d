//! Gradients by back-propagation: a forward pass that keeps what the policy says, and a backward pass.

use std::sync::Arc;

use colrow_autograd::{Grads, Mode, NormMemory, Policy, Probe, Tape};
use colrow_models::model::Model;
use colrow_tensor::rng::Key;
use colrow_tensor::{Result, Tensor};

use super::gradient::{Gradient, Shard, ShardStats, Sink};
use crate::objective::Objective;
use crate::ratios::Ratios;

/// What back-propagation keeps, and what it remembers.
#[derive(Debug)]
pub struct Backprop {
    /// What ops keep.
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
    /// Whether the step under way is measured.
    measured: bool,
}

impl Default for Backprop {
    /// All of everything is kept, without dropout.
    fn default() -> Self {
        let (policy, key) = (Arc::default(), Key::new(0));
        Self { policy, norms: None, ratios: None, probe: None, key, dropout: false, measured: false }
    }
}

impl Backprop {
    fn tape<'m>(&self, model: &'m Model, shard: &Shard<'_>) -> Tape<'m> {
        let key = self.key.child(shard.step).child(shard.number as u64);
        if let Some(norms) = &self.norms {
            norms.begin(shard.batch.batch_places(shard.weight));
        }
        let mode = Mode::Training {
            key,
            dropout: self.dropout,
            policy: self.policy.clone(),
            norms: self.norms.clone(),
            variances: self.ratios.as_ref().map(|ratios| ratios.variances().clone()),
            probe: self.probe.clone(),
        };
        Tape::new(&model.registry.params, mode)
    }
}

impl Gradient for Backprop {
    fn begin_step(&mut self, step: u64) {
        self.measured = self.ratios.as_ref().is_some_and(|ratios| ratios.measures(step));
    }

    fn shard(
        &mut self,
        model: &mut Model,
        objective: &dyn Objective,
        shard: &Shard<'_>,
        timeline: bool,
        sink: &mut Sink<'_>,
    ) -> Result<ShardStats> {
        if let Some(ratios) = &self.ratios {
            let probes = self.measured.then(|| self.key.child(shard.step).named("probes"));
            ratios.variances().begin(probes, shard.batch.bounds());
        }
        let mut tape = self.tape(model, shard);
        if timeline {
            tape = tape.with_timeline();
        }
        let loss = objective.loss(model, &mut tape, shard.batch)?;
        sink.loss(shard.share, &loss.value);
        let (kept_bytes, ledger) = (tape.device().meter().live().kept, tape.ledger());
        let recorded = tape.into_recorded();
        let params = &mut model.registry.params;
        let mut grads = Grads::new(params);
        recorded.backward(loss, shard.share, &mut grads, &mut |grads| {
            while let Some((id, gradient)) = grads.take_final(params) {
                sink.gradient(params, id, gradient);
            }
            Ok(())
        })?;
        for (id, gradient) in grads.take_rest() {
            sink.gradient(params, id, gradient);
        }
        Ok(ShardStats { kept_bytes, ledger, timeline: std::mem::take(&mut grads.timeline) })
    }

    fn recorded(&self) -> Vec<(String, Tensor)> {
        self.norms.as_ref().map(|norms| norms.recorded()).unwrap_or_default()
    }

    fn remember(&mut self, shard: &Shard<'_>, numbers: Vec<(String, Vec<f64>)>) {
        if let Some(norms) = &self.norms {
            norms.begin(shard.batch.batch_places(shard.weight));
            norms.remember(numbers);
        }
    }

    fn end_step(&mut self) -> bool {
        if let Some(norms) = &self.norms {
            norms.end_step();
        }
        if let Some(ratios) = self.ratios.as_mut().filter(|_| self.measured) {
            ratios.update();
            ratios.apply(&mut self.policy);
        }
        self.measured
    }

    /// Runs forward passes again, random numbers and all, to find the first site whose output is not finite.
    fn not_finite(&self, model: &Model, objective: &dyn Objective, shards: &[Shard<'_>]) -> Result<Option<String>> {
        for shard in shards {
            let mut tape = self.tape(model, shard).with_check();
            objective.loss(model, &mut tape, shard.batch)?;
            if let Some(site) = tape.not_finite() {
                return Ok(Some(site.to_owned()));
            }
        }
        Ok(None)
    }
}
