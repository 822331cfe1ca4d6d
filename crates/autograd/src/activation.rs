//! GELU and tanh. GELU keeps its input: derivative and output are functions of it, and a linear that reads the output may
//! rebuild it. Tanh keeps its output: `dx = dy(1 − y²)`.

use std::sync::Arc;

use colrow_tensor::{Gelu, Result, Tensor};

use crate::kept::{Kept, Rebuild};
use crate::sample;
use crate::tape::{Grads, Op, Tape, Var, VarId};

/// A GELU's input: all that its gradient and its output need.
#[derive(Debug)]
struct Input {
    form: Gelu,
    kept: Kept,
}

impl Input {
    fn tensor(&self) -> &Tensor {
        match &self.kept {
            Kept::Exact(t) => t,
            other => unreachable!("an activation keeps an exact tensor, not {other:?}"),
        }
    }

    fn apply(&self, x: &Tensor) -> Tensor {
        let mut y = x.empty_like();
        x.device().kernels().gelu(self.form, x, &mut y);
        y
    }
}

impl Rebuild for Input {
    fn whole(&self) -> Tensor {
        self.apply(self.tensor())
    }

    fn rows(&self, index: &Tensor) -> Tensor {
        self.apply(&sample::gather(self.tensor(), index, None))
    }

    fn row_norms(&self) -> Tensor {
        sample::row_norms(&self.whole())
    }
}

struct GeluOp {
    x: Option<VarId>,
    input: Arc<Input>,
}

struct Tanh {
    x: Option<VarId>,
    output: Kept,
}

impl Tape<'_> {
    /// GELU in either form.
    pub fn gelu(&mut self, site: &str, form: Gelu, x: Var) -> Var {
        let input = Arc::new(Input { form, kept: Kept::Exact(x.value) });
        let y = input.whole();
        let op = GeluOp { x: x.id, input: input.clone() };
        let mut y = self.output(site, y, x.id.is_some(), || op);
        y.source = y.id.map(|_| input as Arc<dyn Rebuild>);
        y
    }

    /// Hyperbolic tangent.
    pub fn tanh(&mut self, site: &str, x: Var) -> Var {
        let mut y = x.value.into_owned();
        self.device().kernels().tanh(&mut y);
        self.output(site, y.clone(), x.id.is_some(), || Tanh { x: x.id, output: Kept::Exact(y) })
    }
}

impl Op for GeluOp {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        vec![("input", &self.input.kept)]
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let (device, mut dx) = (dy.device().clone(), dy.into_owned());
        device.kernels().gelu_backward(self.input.form, self.input.tensor(), &mut dx);
        grads.add(self.x, dx);
        Ok(())
    }
}

impl Op for Tanh {
    fn name(&self) -> &'static str {
        "tanh"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        vec![("output", &self.output)]
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let (device, mut dx) = (dy.device().clone(), dy.into_owned());
        if let Kept::Exact(y) = &self.output {
            device.kernels().tanh_backward(y, &mut dx);
        }
        grads.add(self.x, dx);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::rng::Key;
    use colrow_tensor::{DType, Device};

    use super::*;
    use crate::Policy;
    use crate::testing::{check_gradients, check_precision, leaf, random_params, training};

    #[test]
    fn gradients() {
        let device = Device::cpu();
        let apply: [fn(&mut Tape<'_>, Var) -> Var; 3] = [
            |tape, x| tape.gelu("gelu", Gelu::Erf, x),
            |tape, x| tape.gelu("gelu", Gelu::Tanh, x),
            |tape, x| tape.tanh("tanh", x),
        ];
        for apply in apply {
            let (mut params, [x]) = random_params(&device, DType::F64, [("x", &[9, 11])]);
            let mode = training(Key::new(1), false, Policy::exact(), None);
            let f = |tape: &mut Tape<'_>| {
                let x = leaf(tape, x);
                apply(tape, x)
            };
            check_gradients(&mut params, &mode, 1, f).unwrap();
            check_precision(&mut params, &mode, 1, f).unwrap();
        }
    }

    /// Φ(1) = 0.8413447460685429; the tanh form by its own formula.
    #[test]
    fn known_values() {
        let device = Device::cpu();
        let params = crate::Params::new(&device, DType::F64);
        let mut tape = Tape::new(&params, crate::Mode::Inference);
        let mut at_one = |form| {
            let one = tape.constant(device.tensor(colrow_tensor::Class::Workspace, &[1, 1], &[1.0_f64]));
            tape.gelu("gelu", form, one).value.scalar()
        };
        assert!((at_one(Gelu::Erf) - 0.841_344_746_068_542_9).abs() < 1e-15);
        let inner = (2.0 / std::f64::consts::PI).sqrt() * 1.044_715;
        assert!((at_one(Gelu::Tanh) - 0.5 * (1.0 + inner.tanh())).abs() < 1e-15);
    }
}
