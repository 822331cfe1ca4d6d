//! AdamW over a model's parameters, as in `transformers`: decoupled decay, none for biases and norms, and clipping of the
//! gradient's global norm as in `torch.nn.utils.clip_grad_norm_`.

use colrow_autograd::{Grads, Params};
use colrow_tensor::{AdamW, Class, Error, Result, Tensor};

/// What stays the same over a run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
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
}

/// Moments of every trainable parameter.
#[derive(Debug)]
pub struct Optimizer {
    settings: Settings,
    /// First and second moment, by parameter; none where frozen.
    pub moments: Vec<Option<[Tensor; 2]>>,
}

impl Optimizer {
    /// Moments of zero.
    pub fn new(settings: Settings, params: &Params) -> Self {
        let zeros = |t: &Tensor| params.device().zeros(Class::Optimizer, t.dtype(), t.shape());
        let moments = params.iter().map(|(_, p)| p.trainable.then(|| [zeros(&p.value), zeros(&p.value)])).collect();
        Self { settings, moments }
    }

    /// Step number `step` (from 1) at learning rate `lr`. Returns the gradient's norm before clipping.
    ///
    /// # Errors
    /// A gradient that is not finite; names its parameter. Nothing is changed then.
    pub fn step(&mut self, params: &mut Params, grads: &Grads, lr: f64, step: u64) -> Result<f64> {
        let Settings { beta1, beta2, eps, weight_decay, clip } = self.settings;
        let device = params.device().clone();
        let kernels = device.kernels();
        let mut squares = 0.0;
        for (id, param) in params.iter() {
            let square = grads.of(id).map_or(0.0, |g| kernels.sum_squares(g));
            if !square.is_finite() {
                return Err(Error::new("the gradient is not finite").at(&param.name));
            }
            squares += square;
        }
        let norm = squares.sqrt();
        // the 1e-6 is PyTorch's
        let grad_scale = if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        for ((id, param), moments) in params.iter_mut().zip(&mut self.moments) {
            let (Some(g), Some([m, v])) = (grads.of(id), moments) else { continue };
            let weight_decay = if param.decay { weight_decay } else { 0.0 };
            let how = AdamW { lr, beta1, beta2, eps, weight_decay, step, grad_scale };
            kernels.adamw(&how, g, &mut param.value, m, v);
        }
        Ok(norm)
    }
}
