//! Losses, averaged over their rows. The gradient is known with the loss; it is all that is kept.

use colrow_tensor::{Class, Result, Tensor};

use crate::kept::Kept;
use crate::tape::{Grads, Op, Tape, Var, VarId};

struct Loss {
    name: &'static str,
    x: Option<VarId>,
    dx: Kept,
}

impl Tape<'_> {
    /// `mean_i −log softmax(logits_i)[labels_i]`; logits (b, c), labels (b, u32). Gives one number.
    pub fn cross_entropy(&mut self, site: &str, logits: &Var, labels: &Tensor) -> Var {
        self.loss("cross_entropy", site, logits, |loss, dx| {
            let kernels = logits.value.device().kernels();
            kernels.copy(&logits.value, dx);
            kernels.cross_entropy(dx, labels, loss, true);
        })
    }

    /// `mean (x − target)²` over all elements. Gives one number.
    pub fn mean_squared_error(&mut self, site: &str, x: &Var, target: &Tensor) -> Var {
        self.loss("mean_squared_error", site, x, |loss, dx| {
            x.value.device().kernels().mean_squared_error(&x.value, target, loss, dx);
        })
    }

    fn loss(&mut self, name: &'static str, site: &str, x: &Var, compute: impl FnOnce(&mut Tensor, &mut Tensor)) -> Var {
        let mut loss = self.device().empty(Class::Workspace, x.value.dtype(), &[1]);
        let mut dx = x.value.empty_like();
        compute(&mut loss, &mut dx);
        self.output(site, loss, x.id.is_some(), || Loss { name, x: x.id, dx: Kept::Exact(dx) })
    }
}

impl Op for Loss {
    fn name(&self) -> &'static str {
        self.name
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        vec![("gradient", &self.dx)]
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        if let Some(mut dx) = self.dx.taken() {
            dy.device().kernels().scale(1.0, Some(&dy), &mut dx);
            grads.add(self.x, dx);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::rng::Key;
    use colrow_tensor::{DType, Device};

    use super::*;
    use crate::testing::{check_gradients, check_precision, leaf, random, random_params, training};
    use crate::{Grads, Policy};

    #[test]
    fn gradients_of_losses() {
        let device = Device::cpu();
        let (b, c) = (7, 4);
        let (mut params, [x]) = random_params(&device, DType::F64, [("x", &[b, c])]);
        let labels = device.tensor(Class::Workspace, &[b], &[0_u32, 3, 1, 1, 2, 0, 3]);
        let mode = training(Key::new(1), false, Policy::exact(), None);
        let entropy = |tape: &mut Tape<'_>| {
            let x = leaf(tape, x);
            tape.cross_entropy("loss", &x, &labels)
        };
        let squares = |tape: &mut Tape<'_>| {
            let x = leaf(tape, x);
            let target = random(tape.device(), x.value.dtype(), Key::new(8), &[b, c]);
            tape.mean_squared_error("loss", &x, &target)
        };
        check_gradients(&mut params, &mode, b * c, entropy).unwrap();
        check_gradients(&mut params, &mode, b * c, squares).unwrap();
        check_precision(&mut params, &mode, b * c, entropy).unwrap();
        check_precision(&mut params, &mode, b * c, squares).unwrap();
    }

    /// Means over rows; logits of 1000 neither overflow nor lose the gradient.
    #[test]
    fn known_values() {
        let device = Device::cpu();
        let (mut params, [x]) = random_params(&device, DType::F64, [("x", &[2, 2])]);
        params[x].value.dense_mut().write(&[1000.0, 1000.0, 0.0, 3_f64.ln()]);
        let labels = device.tensor(Class::Workspace, &[2], &[0_u32, 1]);
        let target = device.tensor(Class::Workspace, &[2, 2], &[1000.0, 998.0, 0.0, 3_f64.ln()]);
        let mut tape = Tape::new(&params, training(Key::new(1), false, Policy::exact(), None));
        let v = leaf(&mut tape, x);
        assert_eq!(tape.mean_squared_error("mse", &v, &target).value.scalar(), 1.0);
        let loss = tape.cross_entropy("loss", &v, &labels);
        drop(v);
        let want = (2_f64.ln() + (4_f64 / 3.0).ln()) / 2.0;
        assert!((loss.value.scalar() - want).abs() < 1e-12);
        let mut grads = Grads::new(&params);
        tape.backward(loss, 4.0, &mut grads).unwrap();
        let got = grads.of(x).unwrap().to_f64();
        assert!(got.iter().zip([-1.0, 1.0, 0.5, -0.5]).all(|(g, w)| (g - w).abs() < 1e-12), "{got:?}");
    }
}
