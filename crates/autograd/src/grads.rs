//! Gradients, and when they are final.

use std::collections::BTreeSet;

use colrow_tensor::{Class, Device, Tensor};

use crate::param::{Handle, ParamId, Params};
use crate::timeline::Mark;

/// Names the gradient of a variable in a backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VarId(pub(crate) usize);

/// Gradients: of tape variables while a backward pass runs, of parameters until they are taken.
pub struct Grads {
    pub(crate) device: Device,
    pub(crate) vars: Vec<Option<Tensor>>,
    pub(crate) params: Vec<Option<Tensor>>,
    /// The parameters that have a gradient. Where gradients are taken on the way they are few, in models of any depth.
    present: BTreeSet<ParamId>,
    /// Whether a parameter's gradient was final and is taken.
    taken: Vec<bool>,
    /// The memory timeline of the last pass, if its tape noted one.
    pub timeline: Vec<Mark>,
}

impl Grads {
    /// No gradients yet.
    pub fn new(params: &Params) -> Self {
        let none = (0..params.len()).map(|_| None).collect();
        let taken = vec![false; params.len()];
        let device = params.device().clone();
        Self { device, vars: Vec::new(), params: none, present: BTreeSet::new(), taken, timeline: Vec::new() }
    }

    /// Adds to the gradient of a variable, in place where there is one already; without a variable does nothing.
    pub fn add(&mut self, id: Option<VarId>, dx: Tensor) {
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
    pub fn param(&mut self, param: &Handle) -> (&mut Tensor, f64) {
        let (id, like) = (param.id, &param.value);
        assert!(!self.taken[id.0], "an op holds a parameter as long as it may add to its gradient");
        self.present.insert(id);
        let slot = &mut self.params[id.0];
        let beta = if slot.is_some() { 1.0 } else { 0.0 };
        let new = || self.device.empty(Class::Gradients, like.dtype(), &like.shape());
        (slot.get_or_insert_with(new), beta)
    }

    /// The gradient of a parameter to add to.
    pub fn param_sum(&mut self, param: &Handle) -> &mut Tensor {
        let device = self.device.clone();
        let (dw, beta) = self.param(param);
        if beta == 0.0 {
            device.kernels().zero(dw);
        }
        dw
    }

    /// Adds a gradient of a parameter that is there.
    pub(crate) fn add_param(&mut self, param: &Handle, dw: Tensor) {
        if self.of(param.id).is_some() {
            self.device.clone().kernels().add(&dw, self.param(param).0);
        } else {
            self.put_sum(param, dw);
        }
    }

    /// As [`Grads::param_sum`], taken out, to be put back by [`Grads::put_sum`].
    pub(crate) fn take_sum(&mut self, param: &Handle) -> Tensor {
        let like = &param.value;
        self.present.remove(&param.id);
        let zeros = || self.device.zeros(Class::Gradients, like.dtype(), &like.shape());
        self.params[param.id.0].take().unwrap_or_else(zeros)
    }

    pub(crate) fn put_sum(&mut self, Handle { id, .. }: &Handle, sum: Tensor) {
        let id = *id;
        self.present.insert(id);
        self.params[id.0] = Some(sum);
    }

    /// The gradient of a parameter, if it has one.
    pub fn of(&self, id: ParamId) -> Option<&Tensor> {
        self.params[id.0].as_ref()
    }

    /// Takes out the gradient of a parameter that no recorded op has yet to add to, or to read the value of: of those that have one the last in
    /// `params` that no [`Handle`] holds.
    pub fn take_final(&mut self, params: &Params) -> Option<(ParamId, Tensor)> {
        let id = self.present.iter().rev().copied().find(|&id| !params[id].in_use())?;
        self.present.remove(&id);
        self.taken[id.0] = true;
        self.params[id.0].take().map(|gradient| (id, gradient))
    }

    /// Takes out the gradients of parameters that are left.
    pub fn take_rest(&mut self) -> Vec<(ParamId, Tensor)> {
        let left = std::mem::take(&mut self.present);
        left.into_iter().filter_map(|id| Some((id, self.params[id.0].take()?))).collect()
    }

    /// Takes all gradients of parameters out.
    pub fn clear(&mut self) {
        self.present.clear();
        self.params.iter_mut().for_each(|p| *p = None);
        self.taken.fill(false);
    }
}
