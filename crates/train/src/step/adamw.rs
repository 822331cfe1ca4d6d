//! AdamW over a model's parameters, as in `transformers`: decoupled decay, none for biases and norms, and clipping of the
//! gradient's global norm as in `torch.nn.utils.clip_grad_norm_`.

use std::sync::Arc;

use colrow_autograd::{Param, ParamId, Params};
use colrow_tensor::rng::Key;
use colrow_tensor::{AdamW, Class, DType, Device, Error, MOMENT_BLOCK, Result, Tensor, Weight, named};

use super::gradient::Update;
use crate::comm::Spread;

/// Parameters with fewer elements keep their moments in floats under [`States::EightBit`]: biases and norms, which are few and sensitive
/// (as in bitsandbytes).
const FEW: usize = 4096;

/// Names of moments in checkpoints: first and second; codes and scales of the first and of the root of the second.
const FLOAT: &[&str] = &["m", "v"];
const EIGHT_BIT: &[&str] = &["m.codes", "m.scale", "r.codes", "r.scale"];

named! {
    /// How AdamW holds the moments of large parameters.
    States {
        /// 32-bit floats: 8 bytes a weight.
        F32 = "f32",
        /// Eight bits in blocks of 256 that share a scale: 2 bytes a weight.
        EightBit = "8bit",
    }
}

named! {
    /// When weights are updated.
    When {
        /// After the backward pass, when all gradients are there.
        AfterBackward = "after-backward",
        /// During the backward pass, each as soon as its gradient is final, which is then freed.
        InBackward = "in-backward",
    }
}

/// What stays the same over a run.
#[derive(Clone, Copy, Debug)]
pub struct Hyperparameters {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0 for none.
    pub clip: f64,
    /// How the moments of large parameters are held.
    pub states: States,
    /// When weights are updated.
    pub update: When,
}

impl Hyperparameters {
    /// Why these settings cannot be combined with each other or with steps of `accumulate` batches; empty if they can.
    pub fn refusals(&self, accumulate: usize) -> Vec<String> {
        let excluded = |key: &str, value: f64, reason: &str| {
            format!("`optim.update` = \"{}\" cannot be combined with `{key}` = {value}: {reason}", self.update)
        };
        let mut refusals = Vec::new();
        if self.update == When::InBackward && self.clip > 0.0 {
            let reason = "the global norm is known when all gradients are, and by then the weights are updated; set optim.clip = 0";
            refusals.push(excluded("optim.clip", self.clip, reason));
        }
        if self.update == When::InBackward && accumulate > 1 {
            let reason =
                "gradients that are to be added up must stay; set train.accumulate = 1 and a larger train.batch";
            refusals.push(excluded("train.accumulate", accumulate as f64, reason));
        }
        refusals
    }
}

/// Both moments of a parameter.
#[derive(Debug)]
pub enum Moments {
    /// First and second, in the parameter's type.
    Float([Tensor; 2]),
    /// Codes and scales of the first, codes and scales of the root of the second: see
    /// [`Kernels::adamw_8bit`](colrow_tensor::Kernels::adamw_8bit).
    EightBit([Tensor; 4]),
}

impl Moments {
    /// Zeros in floats, of as many elements of a weight.
    pub fn float(value: &Weight, elements: usize) -> Self {
        Self::Float([(); 2].map(|()| value.device().zeros(Class::Optimizer, value.dtype(), &[elements])))
    }

    /// Zeros in eight bits, of as many elements of a weight.
    pub fn eight_bit(value: &Weight, elements: usize) -> Self {
        let zeros = |dtype, length| value.device().zeros(Class::Optimizer, dtype, &[length]);
        let codes = || zeros(DType::U8, elements);
        let scale = || zeros(DType::F32, elements.div_ceil(MOMENT_BLOCK));
        Self::EightBit([codes(), scale(), codes(), scale()])
    }

    fn new(states: States, value: &Weight, elements: usize) -> Self {
        match states {
            States::EightBit if value.len() >= FEW => Self::eight_bit(value, elements),
            States::EightBit | States::F32 => Self::float(value, elements),
        }
    }

    /// The tensors by name, as checkpoints have them.
    pub fn tensors(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        match self {
            Self::Float(tensors) => FLOAT.iter().copied().zip(&tensors[..]),
            Self::EightBit(tensors) => EIGHT_BIT.iter().copied().zip(&tensors[..]),
        }
    }

    /// As [`Moments::tensors`], writable.
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Tensor)> {
        match self {
            Self::Float(tensors) => FLOAT.iter().copied().zip(&mut tensors[..]),
            Self::EightBit(tensors) => EIGHT_BIT.iter().copied().zip(&mut tensors[..]),
        }
    }
}

/// Moments of every trainable parameter, and the step that is under way.
#[derive(Debug)]
pub struct Optimizer {
    settings: Hyperparameters,
    device: Device,
    /// By parameter, of this process's part of it; none where frozen, or another process has it.
    pub moments: Vec<Option<Moments>>,
    /// Who else has parts.
    spread: Option<Arc<Spread>>,
    /// Root of the random numbers by which weights in bf16 are rounded.
    pub key: Key,
    step: u64,
    lr: f64,
    /// What gradients are multiplied with; NaN where a sum is not finite, and then nothing changes (1, f64).
    factor: Option<Tensor>,
    /// Gradients that wait for the others, by parameter.
    gradients: Vec<Option<Tensor>>,
}

impl Optimizer {
    /// Moments of zero.
    pub fn new(settings: Hyperparameters, params: &Params) -> Self {
        Self::of_part(settings, params, None)
    }

    /// Moments of zero of this process's part of the parameters.
    pub fn of_part(settings: Hyperparameters, params: &Params, spread: Option<Arc<Spread>>) -> Self {
        let elements = |id: ParamId, value: &Weight| match &spread {
            Some(spread) => spread.part(id.index()).len(),
            None => value.len(),
        };
        let moments = |(id, p): (ParamId, &Param)| {
            let elements = elements(id, &p.value);
            (p.trainable && (elements > 0 || spread.is_none()))
                .then(|| Moments::new(settings.states, &p.value, elements))
        };
        let moments: Vec<_> = params.iter().map(moments).collect();
        let gradients = moments.iter().map(|_| None).collect();
        let (device, key) = (params.device().clone(), Key::new(0));
        Self { settings, device, moments, spread, key, step: 0, lr: 0.0, factor: None, gradients }
    }

    /// The moments of a whole weight, as checkpoints have them: name, type and shape.
    pub fn layout(&self, value: &Weight) -> impl Iterator<Item = (&'static str, DType, Vec<usize>)> {
        let is_short = self.settings.states == States::F32 || value.len() < FEW;
        let (names, dtype) = if is_short { (FLOAT, value.dtype()) } else { (EIGHT_BIT, DType::U8) };
        let (shape, blocks) = (value.shape(), value.len().div_ceil(MOMENT_BLOCK));
        names.iter().map(move |&name| match name.ends_with(".scale") {
            true => (name, DType::F32, vec![blocks]),
            false => (name, dtype, shape.clone()),
        })
    }

    /// The first element that this process has of a parameter's moments of this name.
    pub fn first(&self, id: ParamId, name: &str) -> usize {
        let first = self.spread.as_ref().map_or(0, |spread| spread.part(id.index()).start);
        if name.ends_with(".scale") { first / MOMENT_BLOCK } else { first }
    }

    fn update(&mut self, id: ParamId, param: &mut Param, gradient: &Tensor) {
        let (Some(moments), Some(factor)) = (&mut self.moments[id.index()], &self.factor) else { return };
        let Hyperparameters { beta1, beta2, eps, weight_decay, .. } = self.settings;
        let weight_decay = if param.decay { weight_decay } else { 0.0 };
        let first = self.spread.as_ref().map_or(0, |spread| spread.part(id.index()).start);
        let how = AdamW { lr: self.lr, beta1, beta2, eps, weight_decay, step: self.step, first };
        let kernels = self.device.kernels();
        // of step and place alone, so that a run that is resumed draws what it would have drawn
        let weight = param.value.stored_mut(self.key.child(self.step).named(&param.name));
        match moments {
            Moments::Float([m, v]) => kernels.adamw(&how, factor, gradient, weight, m, v),
            Moments::EightBit([m, m_scale, r, r_scale]) => {
                kernels.adamw_8bit(&how, factor, gradient, weight, [m, m_scale], [r, r_scale]);
            }
        }
    }
}

impl Update for Optimizer {
    fn begin_step(&mut self, step: u64, lr: f64, shards: usize) -> Result<()> {
        if let Some(refusal) = self.settings.refusals(shards).first() {
            return Err(Error::usage(refusal.as_str()));
        }
        // of a step that failed
        self.end_step();
        (self.step, self.lr) = (step, lr);
        self.factor = Some(self.device.zeros(Class::Workspace, DType::F64, &[1]));
        Ok(())
    }

    fn take(&mut self, params: &mut Params, id: ParamId, gradient: Tensor, sums: &mut Tensor) {
        // parts come when the backward pass is over
        if self.settings.update == When::AfterBackward || self.spread.is_some() {
            self.gradients[id.index()] = Some(gradient);
            return;
        }
        self.device.kernels().sum_squares(&gradient, 1 + id.index(), sums);
        if let Some(factor) = &mut self.factor {
            self.device.kernels().clip(sums, 0.0, factor);
        }
        self.update(id, &mut params[id], &gradient);
    }

    fn finish(&mut self, params: &mut Params, sums: &mut Tensor) -> Result<()> {
        let gradients = std::mem::take(&mut self.gradients);
        match &self.spread {
            Some(spread) => spread.squares(&gradients, sums)?,
            None => {
                for (i, gradient) in gradients.iter().enumerate() {
                    if let Some(gradient) = gradient {
                        self.device.kernels().sum_squares(gradient, 1 + i, sums);
                    }
                }
            }
        }
        if let Some(factor) = &mut self.factor {
            self.device.kernels().clip(sums, self.settings.clip, factor);
        }
        for ((id, param), gradient) in params.iter_mut().zip(&gradients) {
            if let Some(gradient) = gradient {
                self.update(id, param, gradient);
            }
        }
        self.gradients = gradients;
        Ok(())
    }

    fn end_step(&mut self) {
        self.factor = None;
        self.gradients.iter_mut().for_each(|gradient| *gradient = None);
    }

    /// Names the parameter nearest to the loss, where the backward pass met it first. Weights are as they were then; but with
    /// [`When::InBackward`], those nearer to the loss are updated.
    fn grad_norm(&self, sums: &[f64], params: &Params) -> Result<f64> {
        let squares = sums.get(1..).unwrap_or_default();
        if let Some(place) = squares.iter().rposition(|square| !square.is_finite()) {
            let text = match self.settings.update {
                When::AfterBackward => "the gradient is not finite",
                When::InBackward => {
                    "the gradient is not finite; with updates in the backward pass, weights nearer to the loss are updated already"
                }
            };
            let name = params.iter().nth(place).map_or("a parameter", |(_, p)| p.name.as_str());
            return Err(Error::new(text).at(name));
        }
        Ok(squares.iter().fold(0.0, |sum, square| sum + square).sqrt())
    }
}
