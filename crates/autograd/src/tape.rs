//! The tape: a list of ops that the backward pass pops in reverse, dropping each when it is done.

use std::sync::Arc;

use colrow_tensor::rng::Key;
use colrow_tensor::{Bytes, Class, Device, Error, Result, Tensor};

use crate::kept::{Kept, Ledger, Rebuild};
use crate::norms::NormMemory;
use crate::param::{Param, ParamId, Params};
use crate::policy::Policy;

/// An op that was recorded: what it needs for its gradient.
pub trait Op {
    /// The op's name: "linear", "layer_norm", …
    fn name(&self) -> &'static str;
    /// Everything it holds on to, by name.
    fn kept(&self) -> Vec<(&'static str, &Kept)>;
    /// From the gradient of its output to those of its inputs and parameters.
    ///
    /// # Errors
    /// Where a kept tensor cannot be made again.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()>;
}

/// A tensor on the tape.
#[derive(Clone, Debug)]
pub struct Var {
    /// Its numbers.
    pub value: Tensor,
    /// Names its gradient; none if nothing before it is learned.
    pub(crate) id: Option<VarId>,
    /// How to make it again from what its producer keeps.
    pub(crate) source: Option<Arc<dyn Rebuild>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VarId(usize);

/// What a pass is for.
#[derive(Clone, Debug)]
pub enum Mode {
    /// Predictions: no dropout, nothing recorded.
    Inference,
    /// A gradient: ops are recorded.
    Training {
        /// Stream of this step's random numbers.
        key: Key,
        /// Whether dropout acts.
        dropout: bool,
        /// What linears keep.
        policy: Arc<Policy>,
        /// Remembered norms of dZ, for policies that draw by them.
        norms: Option<Arc<NormMemory>>,
    },
}

/// Part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Forward pass.
    Forward,
    /// Backward pass.
    Backward,
    /// Weight update.
    Optimizer,
}

/// Live bytes after an op: a point of the memory timeline.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Mark {
    /// Part of the step.
    pub phase: Phase,
    /// The op's site.
    pub at: String,
    /// Live bytes by class.
    pub live: Bytes,
}

struct Node {
    site: String,
    output: VarId,
    op: Box<dyn Op>,
}

/// Records the ops of one forward pass and runs them backward.
pub struct Tape<'p> {
    params: &'p Params,
    mode: Mode,
    nodes: Vec<Node>,
    vars: usize,
    timeline: Option<Vec<Mark>>,
    /// Set: check every output, and note the first site whose output is not finite.
    check: bool,
    not_finite: Option<String>,
}

impl<'p> Tape<'p> {
    /// An empty tape over a model's parameters.
    pub fn new(params: &'p Params, mode: Mode) -> Self {
        Self { params, mode, nodes: Vec::new(), vars: 0, timeline: None, check: false, not_finite: None }
    }

    /// Notes live bytes after every op; see [`Grads::timeline`].
    #[must_use]
    pub fn with_timeline(mut self) -> Self {
        self.timeline = Some(Vec::new());
        self
    }

    /// Checks every output for numbers that are not finite; see [`Tape::not_finite`].
    #[must_use]
    pub fn with_check(mut self) -> Self {
        self.check = true;
        self
    }

    /// The first site whose output was not finite, if outputs are checked.
    pub fn not_finite(&self) -> Option<&str> {
        self.not_finite.as_deref()
    }

    /// Where the parameters live.
    pub fn device(&self) -> &Device {
        self.params.device()
    }

    /// A parameter.
    pub fn param(&self, id: ParamId) -> &'p Param {
        &self.params[id]
    }

    pub(crate) fn params(&self) -> &'p Params {
        self.params
    }

    pub(crate) fn mode(&self) -> &Mode {
        &self.mode
    }

    /// Whether ops are recorded.
    pub fn records(&self) -> bool {
        matches!(self.mode, Mode::Training { .. })
    }

    /// The stream of `site`'s dropout, if dropout acts.
    pub(crate) fn dropout_key(&self, site: &str) -> Option<Key> {
        match &self.mode {
            Mode::Training { key, dropout: true, .. } => Some(key.named(site).named("dropout")),
            _ => None,
        }
    }

    /// A tensor that is not learned.
    pub fn constant(&self, value: Tensor) -> Var {
        Var { value, id: None, source: None }
    }

    /// An output of `site`: recorded with `op` if `learns`, i.e. if a gradient flows through it to anything.
    pub(crate) fn output<O: Op + 'static>(
        &mut self,
        site: &str,
        value: Tensor,
        learns: bool,
        op: impl FnOnce() -> O,
    ) -> Var {
        let id = (learns && self.records()).then(|| {
            let op: Box<dyn Op> = Box::new(op());
            for (_, kept) in op.kept() {
                kept.tensors().into_iter().filter(|t| t.class() != Class::Kept).for_each(|t| t.reclass(Class::Kept));
            }
            let output = VarId(self.vars);
            self.vars += 1;
            self.nodes.push(Node { site: site.to_owned(), output, op });
            output
        });
        if self.check && self.not_finite.is_none() && !self.device().kernels().sum_squares(&value).is_finite() {
            self.not_finite = Some(site.to_owned());
        }
        if let Some(timeline) = &mut self.timeline {
            let live = self.params.device().meter().live();
            timeline.push(Mark { phase: Phase::Forward, at: site.to_owned(), live });
        }
        Var { value, id, source: None }
    }

    /// What the recorded ops keep.
    pub fn ledger(&self) -> Ledger {
        Ledger::of(self.nodes.iter().map(|n| (n.site.as_str(), &*n.op)))
    }

    /// Adds `scale` times the gradient of the sum of `of`'s elements to `grads`, popping every op.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn backward(mut self, of: Var, scale: f64, grads: &mut Grads) -> Result<()> {
        let mut dy = of.value.empty_like();
        dy.write_f64(std::iter::repeat_n(scale, of.value.len()));
        self.backward_from(of, dy, grads)
    }

    /// As [`Tape::backward`], from a given gradient `dy` of `of`.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn backward_from(&mut self, of: Var, dy: Tensor, grads: &mut Grads) -> Result<()> {
        grads.vars = (0..self.vars).map(|_| None).collect();
        grads.add(of.id, dy);
        drop(of);
        while let Some(Node { site, output, op }) = self.nodes.pop() {
            if let Some(dy) = grads.vars[output.0].take() {
                op.backward(dy, grads).map_err(|e: Error| e.at(&site))?;
            }
            if let Some(timeline) = &mut self.timeline {
                let live = self.params.device().meter().live();
                timeline.push(Mark { phase: Phase::Backward, at: site, live });
            }
        }
        grads.timeline = self.timeline.take().unwrap_or_default();
        Ok(())
    }
}

/// Gradients: of tape variables while a backward pass runs, of parameters until they are taken.
pub struct Grads {
    device: Device,
    vars: Vec<Option<Tensor>>,
    params: Vec<Option<Tensor>>,
    /// The memory timeline of the last pass, if its tape noted one.
    pub timeline: Vec<Mark>,
}

impl Grads {
    /// No gradients yet.
    pub fn new(params: &Params) -> Self {
        let none = (0..params.len()).map(|_| None).collect();
        Self { device: params.device().clone(), vars: Vec::new(), params: none, timeline: Vec::new() }
    }

    /// Adds to the gradient of a variable, in place where there is one already.
    pub(crate) fn add(&mut self, id: Option<VarId>, dx: Tensor) {
        let Some(id) = id else { return };
        let slot = &mut self.vars[id.0];
        *slot = Some(match slot.take() {
            None => dx,
            Some(sum) => {
                let (mut sum, other) = if sum.is_unique() { (sum, dx) } else { (dx.into_owned(), sum) };
                self.device.kernels().add(&other, &mut sum);
                sum
            }
        });
    }

    /// The gradient of a parameter to write to, and the factor (0 or 1) of what stands there.
    pub(crate) fn param(&mut self, id: ParamId, like: &Tensor) -> (&mut Tensor, f64) {
        let slot = &mut self.params[id.0];
        let beta = if slot.is_some() { 1.0 } else { 0.0 };
        let new = || self.device.empty(Class::Gradients, like.dtype(), like.shape());
        (slot.get_or_insert_with(new), beta)
    }

    /// The gradient of a parameter to add to.
    pub(crate) fn param_sum(&mut self, id: ParamId, like: &Tensor) -> &mut Tensor {
        let device = self.device.clone();
        let (dw, beta) = self.param(id, like);
        if beta == 0.0 {
            device.kernels().zero(dw);
        }
        dw
    }

    /// The gradient of a parameter, if it has one.
    pub fn of(&self, id: ParamId) -> Option<&Tensor> {
        self.params[id.0].as_ref()
    }

    /// Takes all gradients of parameters out.
    pub fn clear(&mut self) {
        self.params.iter_mut().for_each(|p| *p = None);
    }
}
