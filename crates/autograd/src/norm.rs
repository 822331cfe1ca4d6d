//! Layer norm (Ba et al. 2016): `ẑ = (x − mean)/σ`, `y = γ⊙ẑ + β` over each row of x (n, d); and the root mean square norm (Zhang &
//! Sennrich 2019), which takes no mean off and has no β.
//!
//! Keeps ẑ, as it is or in fewer bits, and 1/σ: `dx = (g − mean g − ẑ·mean(g⊙ẑ))/σ` with `g = γ⊙dy`. A linear that reads y may rebuild it
//! from ẑ.

use std::sync::Arc;

use colrow_tensor::{Class, Coded, DType, Format, Norm, Result, Rows, StoredMut, Tensor};

use crate::compress::GROUP;
use crate::kept::{Kept, Rebuild};
use crate::param::{Handle, ParamId};
use crate::policy::Keep;
use crate::tape::{Grads, Op, Tape, Var, VarId};

struct LayerNorm {
    x: Option<VarId>,
    held: Arc<Held>,
}

/// What the norm keeps, and its output's recipe.
#[derive(Debug)]
struct Held {
    z: Kept,
    r: Kept,
    gamma: Handle,
    /// None in a root mean square norm.
    beta: Option<Handle>,
    eps: f64,
}

impl Held {
    fn norm(&self) -> Norm<'_> {
        Norm { gamma: self.gamma.value.dense(), beta: self.beta.as_ref().map(|beta| beta.value.dense()), eps: self.eps }
    }

    fn scaled(&self, z: &Rows<'_>) -> Tensor {
        let device = self.gamma.value.device();
        let mut y = device.empty(Class::Workspace, z.of.dtype(), &[z.len(), z.of.cols()]);
        device.kernels().scale_rows(&self.norm(), z, &mut y);
        y
    }
}

impl Rebuild for Held {
    fn whole(&self) -> Tensor {
        self.scaled(&self.z.picked(None))
    }

    fn rows(&self, index: &Tensor) -> Tensor {
        self.scaled(&self.z.picked(Some(index)))
    }
}

impl Tape<'_> {
    /// Layer norm of the rows of `x`, with σ² = var + `eps`.
    pub fn layer_norm(&mut self, site: &str, x: &Var, gamma: ParamId, beta: ParamId, eps: f64) -> Var {
        self.norm(site, x, gamma, Some(beta), eps)
    }

    /// What `run` gives, which writes ẑ of so many rows and columns, as the site keeps it, and 1/σ; and those.
    pub(crate) fn normalised<R>(
        &self,
        site: &str,
        ([rows, cols], dtype): ([usize; 2], DType),
        run: impl FnOnce((StoredMut<'_>, &mut Tensor)) -> R,
    ) -> (R, Kept, Kept) {
        let device = self.device();
        let mut r = device.empty(Class::Workspace, dtype, &[rows]);
        let (done, z) = match self.keep(site) {
            Keep::Quantised(bits) => {
                let format = Format { code: bits.code(), group: GROUP };
                let mut z = Coded::empty(device, Class::Workspace, dtype, [rows, cols], format);
                let done = run((StoredMut::Coded(self.rounding_key(site), &mut z), &mut r));
                (done, Kept::Quantised(z))
            }
            _ => {
                let mut z = device.empty(Class::Workspace, dtype, &[rows, cols]);
                let done = run((StoredMut::Exact(&mut z), &mut r));
                (done, Kept::Exact(z))
            }
        };
        (done, z, Kept::Exact(r))
    }

    /// Root mean square norm of the rows of `x`, with σ² = mean x² + `eps`.
    pub fn rms_norm(&mut self, site: &str, x: &Var, gamma: ParamId, eps: f64) -> Var {
        self.norm(site, x, gamma, None, eps)
    }

    fn norm(&mut self, site: &str, x: &Var, gamma: ParamId, beta: Option<ParamId>, eps: f64) -> Var {
        let (gamma, beta) = (self.handle(gamma), beta.map(|beta| self.handle(beta)));
        let device = self.device().clone();
        let norm = Norm { gamma: gamma.value.dense(), beta: beta.as_ref().map(|beta| beta.value.dense()), eps };
        let learns = x.id.is_some() || gamma.trainable || beta.as_ref().is_some_and(|beta| beta.trainable);
        let mut y = x.value.empty_like();
        if !(learns && self.records()) {
            device.kernels().layer_norm(&x.value, &norm, &mut y, None);
            return self.unrecorded(site, y);
        }
        let size = [x.value.rows(), x.value.cols()];
        let ((), z, r) = self.normalised(site, (size, x.value.dtype()), |kept| {
            device.kernels().layer_norm(&x.value, &norm, &mut y, Some(kept));
        });
        let held = Arc::new(Held { z, r, gamma, beta, eps });
        let op = LayerNorm { x: x.id, held: held.clone() };
        let y = self.output(site, y, learns, || op);
        Var { source: Some(held), ..y }
    }
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        if self.held.beta.is_some() { "layer_norm" } else { "rms_norm" }
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        vec![("normalised", &self.held.z), ("1/sigma", &self.held.r)]
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let device = dy.device().clone();
        let held = &*self.held;
        let mut dx = dy.into_owned();
        // both sums are taken out of `grads` for the one pass that needs them together
        let mut take = |param: Option<&'_ Handle>| {
            let param = param.filter(|param| param.trainable)?;
            Some((param.clone(), grads.take_sum(param)))
        };
        let (mut gamma, mut beta) = (take(Some(&held.gamma)), take(held.beta.as_ref()));
        let sums = [gamma.as_mut().map(|(_, sum)| sum), beta.as_mut().map(|(_, sum)| sum)];
        let wanted = self.x.is_some();
        device.kernels().layer_norm_backward(&held.z.stored(), held.r.exact(), &held.norm(), &mut dx, wanted, sums);
        gamma.into_iter().chain(beta).for_each(|(param, sum)| grads.put_sum(&param, sum));
        if wanted {
            grads.add(self.x, dx);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::rng::Key;
    use colrow_tensor::{DType, Device};

    use crate::testing::{check_gradients, check_precision, leaf, random_params, training};
    use crate::{Params, Policy, Tape, Var};

    #[test]
    fn gradients_of_input_and_parameters() {
        let device = Device::cpu();
        // more columns than one vector, and a number that fills none
        for d in [2, 5, 37] {
            let (mut params, [x, g, b]) =
                random_params(&device, DType::F64, [("x", &[6, d]), ("gamma", &[d]), ("beta", &[d])]);
            let mode = training(Key::new(1), false, Policy::exact(), None);
            // an epsilon large enough to show in the gradient
            let f = |tape: &mut Tape<'_>| -> Var {
                let x = leaf(tape, x);
                tape.layer_norm("norm", &x, g, b, 0.3)
            };
            let learned = |params: &mut Params, which: [bool; 3]| {
                params.iter_mut().zip(which).for_each(|((_, p), learned)| p.trainable = learned);
            };
            for which in [[true; 3], [true, false, false], [false, true, false], [false, false, true]] {
                learned(&mut params, which);
                check_gradients(&mut params, &mode, 3 * d, f).unwrap();
            }
            learned(&mut params, [true; 3]);
            check_precision(&mut params, &mode, 6 + 3 * d, f).unwrap();
            let rms = |tape: &mut Tape<'_>| -> Var {
                let x = leaf(tape, x);
                tape.rms_norm("norm", &x, g, 0.3)
            };
            for which in [[true; 3], [true, false, false], [false, true, false]] {
                learned(&mut params, which);
                check_gradients(&mut params, &mode, 3 * d, rms).unwrap();
            }
            check_precision(&mut params, &mode, 6 + 3 * d, rms).unwrap();
        }
    }

    /// (3, 4)/√(12.5 + ε) times γ.
    #[test]
    fn the_root_mean_square_norm_takes_no_mean_off() {
        let device = Device::cpu();
        let (mut params, [x, g]) = random_params(&device, DType::F64, [("x", &[1, 2]), ("gamma", &[2])]);
        params[x].value.dense_mut().write(&[3.0, 4.0]);
        params[g].value.dense_mut().write(&[2.0, -1.0]);
        let mut tape = Tape::new(&params, crate::Mode::Inference);
        let x = leaf(&mut tape, x);
        let y = tape.rms_norm("norm", &x, g, 3.5).value.to_f64();
        assert!(y.iter().zip([1.5, -1.0]).all(|(y, want)| (y - want).abs() < 1e-15), "{y:?}");
    }
}
