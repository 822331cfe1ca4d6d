//! GELU, gated GELU, ReLU and tanh. A GELU keeps its input: derivative and output are functions of it, and a linear that reads
//! the output may rebuild it. ReLU keeps a bit an element, of its output after dropout. Tanh keeps its output: `dx = dy(1 − y²)`.

use std::sync::Arc;

use colrow_tensor::{Class, DType, Dropout, Gelu, Result, Tensor};

use crate::kept::{Kept, Rebuild};
use crate::sample;
use crate::tape::{Grads, Op, Tape, Var, VarId};

/// A GELU's input: all that its gradient and its output need.
#[derive(Debug)]
struct Input {
    form: Gelu,
    /// Whether the left half of the columns gates the right half.
    gated: bool,
    kept: Kept,
}

impl Input {
    fn apply(&self, x: &Tensor) -> Tensor {
        let kernels = x.device().kernels();
        if self.gated {
            let mut y = x.device().empty(Class::Workspace, x.dtype(), &[x.rows(), x.cols() / 2]);
            kernels.gated_gelu(self.form, x, &mut y);
            return y;
        }
        let mut y = x.empty_like();
        kernels.gelu(self.form, x, &mut y);
        y
    }
}

impl Rebuild for Input {
    fn whole(&self) -> Tensor {
        self.apply(self.kept.exact())
    }

    fn rows(&self, index: &Tensor) -> Tensor {
        self.apply(&sample::gather(self.kept.exact(), index, None))
    }

    fn row_norms(&self) -> Tensor {
        sample::row_norms(&self.whole())
    }
}

struct GeluOp {
    x: Option<VarId>,
    input: Arc<Input>,
}

struct Relu {
    x: Option<VarId>,
    bits: Kept,
    dropout: Option<Dropout>,
}

struct Tanh {
    x: Option<VarId>,
    output: Kept,
}

impl Tape<'_> {
    /// GELU in either form.
    pub fn gelu(&mut self, site: &str, form: Gelu, x: Var) -> Var {
        self.gelu_of(site, form, false, x)
    }

    /// `gelu(x[:, ..f])⊙x[:, f..]` of x (n, 2f) (GEGLU; Shazeer 2020): (n, f).
    pub fn gated_gelu(&mut self, site: &str, form: Gelu, x: Var) -> Var {
        self.gelu_of(site, form, true, x)
    }

    fn gelu_of(&mut self, site: &str, form: Gelu, gated: bool, x: Var) -> Var {
        let input = Arc::new(Input { form, gated, kept: Kept::Exact(x.value) });
        let y = input.whole();
        let op = GeluOp { x: x.id, input: input.clone() };
        let mut y = self.output(site, y, x.id.is_some(), || op);
        y.source = y.id.map(|_| input as Arc<dyn Rebuild>);
        y
    }

    /// `max(x, 0)`, then dropout with probability `p`, which acts in training only.
    pub fn relu(&mut self, site: &str, x: Var, p: f32) -> Var {
        let dropout = self.dropout_key(site).filter(|_| p > 0.0).map(|key| Dropout { key, p });
        let mut y = x.value.into_owned();
        let mut bits = y.device().empty(Class::Workspace, DType::U8, &[y.rows(), y.cols().div_ceil(8)]);
        y.device().clone().kernels().relu(dropout, &mut y, &mut bits);
        self.output(site, y, x.id.is_some(), || Relu { x: x.id, bits: Kept::Exact(bits), dropout })
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
        if self.input.gated { "gated_gelu" } else { "gelu" }
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        vec![("input", &self.input.kept)]
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let device = dy.device().clone();
        let (form, x) = (self.input.form, self.input.kept.exact());
        let dx = if self.input.gated {
            let mut dx = x.empty_like();
            device.kernels().gated_gelu_backward(form, x, &dy, &mut dx);
            dx
        } else {
            let mut dx = dy.into_owned();
            device.kernels().gelu_backward(form, x, &mut dx);
            dx
        };
        grads.add(self.x, dx);
        Ok(())
    }
}

impl Op for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        vec![("sign", &self.bits)]
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let (device, mut dx) = (dy.device().clone(), dy.into_owned());
        device.kernels().relu_backward(self.dropout, self.bits.exact(), &mut dx);
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
        device.kernels().tanh_backward(self.output.exact(), &mut dx);
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
        let apply: [fn(&mut Tape<'_>, Var) -> Var; 7] = [
            |tape, x| tape.gelu("gelu", Gelu::Erf, x),
            |tape, x| tape.gelu("gelu", Gelu::Tanh, x),
            |tape, x| tape.gated_gelu("gelu", Gelu::Erf, x),
            |tape, x| tape.gated_gelu("gelu", Gelu::Tanh, x),
            |tape, x| tape.relu("relu", x, 0.0),
            |tape, x| tape.relu("relu", x, 0.4),
            |tape, x| tape.tanh("tanh", x),
        ];
        for apply in apply {
            let (mut params, [x]) = random_params(&device, DType::F64, [("x", &[9, 22])]);
            let mode = training(Key::new(1), true, Policy::exact(), None);
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

    /// Dropout behind ReLU is the dropout op's; what is kept is a bit an element.
    #[test]
    fn relu_keeps_a_bit() {
        let device = Device::cpu();
        let (params, [x]) = random_params(&device, DType::F32, [("x", &[50, 19])]);
        let mode = training(Key::new(5), true, Policy::exact(), None);
        let mut tape = Tape::new(&params, mode);
        let (a, b) = (leaf(&mut tape, x), leaf(&mut tape, x));
        let y = tape.relu("site", a, 0.3).value.to_f64();
        let bytes: Vec<_> = tape.ledger().entries.into_iter().filter(|e| e.op == "relu").map(|e| e.bytes).collect();
        assert_eq!(bytes, [50 * 3]);
        let plain = tape.relu("other", b, 0.0);
        let dropped = tape.dropout("site", plain, 0.3).value.to_f64();
        assert_eq!(y, dropped);
        let share = |v: &[f64]| v.iter().filter(|&&y| y > 0.0).count() as f64 / v.len() as f64;
        assert!((share(&y) - 0.35).abs() < 0.06, "{}", share(&y));
    }

    /// gelu(1)·3 by the error function.
    #[test]
    fn the_left_half_gates() {
        let device = Device::cpu();
        let params = crate::Params::new(&device, DType::F64);
        let mut tape = Tape::new(&params, crate::Mode::Inference);
        let x = tape.constant(device.tensor(Class::Workspace, &[1, 2], &[1.0_f64, 3.0]));
        let y = tape.gated_gelu("gelu", Gelu::Erf, x).value.scalar();
        assert!((y - 3.0 * 0.841_344_746_068_542_9).abs() < 1e-14);
    }
}
