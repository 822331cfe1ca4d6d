//! GELU and SiLU, gated or not, ReLU and tanh. A GELU or SiLU keeps its input, as it is or in fewer bits: derivative and output are functions of it, and a
//! linear that reads the output may rebuild it. ReLU keeps a bit an element, of its output after dropout, or that output in 8 bits, from which it
//! can be rebuilt. Tanh keeps its output: `dx = dy(1 − y²)`.

use std::sync::Arc;

use colrow_tensor::{Activation, Class, Code, DType, Device, Dropout, Result, Rows, Tensor};

use crate::kept::{Kept, Rebuild};
use crate::policy::Keep;
use crate::tape::{Grads, Op, Tape, Var, VarId};

/// The input of a GELU or SiLU: all that its gradient and its output need.
#[derive(Debug)]
struct Input {
    form: Activation,
    /// Whether the left half of the columns gates the right half.
    gated: bool,
    kept: Kept,
}

impl Input {
    fn apply(&self, device: &Device, x: &Rows<'_>) -> Tensor {
        let columns = if self.gated { x.of.cols() / 2 } else { x.of.cols() };
        let mut y = device.empty(Class::Workspace, x.of.dtype(), &[x.len(), columns]);
        match self.gated {
            true => device.kernels().gated(self.form, x, &mut y),
            false => device.kernels().activate(self.form, Some(x), &mut y),
        }
        y
    }
}

impl Rebuild for Input {
    fn whole(&self) -> Tensor {
        self.apply(self.kept.device(), &self.kept.picked(None))
    }

    fn rows(&self, index: &Tensor) -> Tensor {
        self.apply(self.kept.device(), &self.kept.picked(Some(index)))
    }
}

/// A ReLU's output.
#[derive(Debug)]
struct Output(Kept);

impl Rebuild for Output {
    fn whole(&self) -> Tensor {
        self.0.read(None)
    }

    fn rows(&self, index: &Tensor) -> Tensor {
        self.0.read(Some(index))
    }
}

struct ActivationOp {
    x: Option<VarId>,
    input: Arc<Input>,
}

struct Relu {
    x: Option<VarId>,
    /// Bits, or the output in codes that are above 0 where it is.
    above: Arc<Output>,
    dropout: Option<Dropout>,
}

struct Tanh {
    x: Option<VarId>,
    output: Kept,
}

impl Tape<'_> {
    /// GELU or SiLU.
    pub fn activate(&mut self, site: &str, form: Activation, x: Var) -> Var {
        self.activation(site, form, false, x)
    }

    /// `f(x[:, ..c])⊙x[:, c..]` of x (n, 2c) (GEGLU, SwiGLU; Shazeer 2020): (n, c).
    pub fn gated(&mut self, site: &str, form: Activation, x: Var) -> Var {
        self.activation(site, form, true, x)
    }

    fn activation(&mut self, site: &str, form: Activation, gated: bool, x: Var) -> Var {
        let learns = x.id.is_some() && self.records();
        let kept = match self.keep(site) {
            _ if !learns => Kept::Nothing,
            Keep::Quantised(bits) => Kept::quantised(&x.value, bits.code(), None),
            _ => Kept::Exact(x.value.clone()),
        };
        let input = Arc::new(Input { form, gated, kept });
        let y = match (&input.kept, gated) {
            (Kept::Exact(_), _) | (_, true) => input.apply(self.device(), &(&x.value).into()),
            _ => {
                let mut y = x.value.into_owned();
                self.device().kernels().activate(form, None, &mut y);
                y
            }
        };
        let op = ActivationOp { x: x.id, input: input.clone() };
        let y = self.output(site, y, learns, || op);
        Var { source: learns.then_some(input as Arc<dyn Rebuild>), ..y }
    }

    /// `max(x, 0)`, then dropout with probability `p`, which acts in training only.
    pub fn relu(&mut self, site: &str, x: Var, p: f32) -> Var {
        let dropout = self.dropout_key(site).filter(|_| p > 0.0).map(|key| Dropout { key, p });
        let learns = x.id.is_some() && self.records();
        let mut y = x.value.into_owned();
        let device = y.device().clone();
        if !learns {
            device.kernels().relu(dropout, &mut y, None);
            return self.unrecorded(site, y);
        }
        let (above, rebuilds) = match self.keep(site) {
            Keep::Quantised(_) => {
                device.kernels().relu(dropout, &mut y, None);
                (Kept::quantised(&y, Code::Positive8, self.rounding_key(site)), true)
            }
            _ => {
                let mut bits = device.empty(Class::Workspace, DType::U8, &[y.rows(), y.cols().div_ceil(8)]);
                device.kernels().relu(dropout, &mut y, Some(&mut bits));
                (Kept::Exact(bits), false)
            }
        };
        let above = Arc::new(Output(above));
        let y = self.output(site, y, learns, || Relu { x: x.id, above: above.clone(), dropout });
        Var { source: rebuilds.then_some(above as Arc<dyn Rebuild>), ..y }
    }

    /// Hyperbolic tangent.
    pub fn tanh(&mut self, site: &str, x: Var) -> Var {
        let mut y = x.value.into_owned();
        self.device().kernels().tanh(&mut y);
        self.output(site, y.clone(), x.id.is_some(), || Tanh { x: x.id, output: Kept::Exact(y) })
    }
}

impl Op for ActivationOp {
    fn name(&self) -> &'static str {
        match (self.input.form, self.input.gated) {
            (Activation::Silu, false) => "silu",
            (Activation::Silu, true) => "swiglu",
            (_, false) => "gelu",
            (_, true) => "gated_gelu",
        }
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        vec![("input", &self.input.kept)]
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let device = dy.device().clone();
        let (form, x) = (self.input.form, self.input.kept.stored());
        let dx = if self.input.gated {
            let mut dx = device.empty(Class::Workspace, dy.dtype(), &[dy.rows(), x.cols()]);
            device.kernels().gated_backward(form, &x, &dy, &mut dx);
            dx
        } else {
            let mut dx = dy.into_owned();
            device.kernels().activate_backward(form, &x, &mut dx);
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
        vec![(if matches!(self.above.0, Kept::Exact(_)) { "sign" } else { "output" }, &self.above.0)]
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let (device, mut dx) = (dy.device().clone(), dy.into_owned());
        let above = match &self.above.0 {
            Kept::Quantised(output) => &output.codes,
            bits => bits.exact(),
        };
        device.kernels().relu_backward(self.dropout, above, &mut dx);
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
        let apply: [fn(&mut Tape<'_>, Var) -> Var; 9] = [
            |tape, x| tape.activate("silu", Activation::Silu, x),
            |tape, x| tape.gated("swiglu", Activation::Silu, x),
            |tape, x| tape.activate("gelu", Activation::Gelu, x),
            |tape, x| tape.activate("gelu", Activation::GeluTanh, x),
            |tape, x| tape.gated("gelu", Activation::Gelu, x),
            |tape, x| tape.gated("gelu", Activation::GeluTanh, x),
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

    /// Φ(1) = 0.8413447460685429; the tanh form and SiLU by their own formulas.
    #[test]
    fn known_values() {
        let device = Device::cpu();
        let params = crate::Params::new(&device, DType::F64);
        let mut tape = Tape::new(&params, crate::Mode::Inference);
        let mut at_one = |form| {
            let one = tape.constant(device.tensor(colrow_tensor::Class::Workspace, &[1, 1], &[1.0_f64]));
            tape.activate("gelu", form, one).value.scalar()
        };
        assert!((at_one(Activation::Gelu) - 0.841_344_746_068_542_9).abs() < 1e-15);
        let inner = (2.0 / std::f64::consts::PI).sqrt() * 1.044_715;
        assert!((at_one(Activation::GeluTanh) - 0.5 * (1.0 + inner.tanh())).abs() < 1e-15);
        assert!((at_one(Activation::Silu) - 1.0 / (1.0 + (-1.0_f64).exp())).abs() < 1e-15);
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
        let y = tape.gated("gelu", Activation::Gelu, x).value.scalar();
        assert!((y - 3.0 * 0.841_344_746_068_542_9).abs() < 1e-14);
    }
}
