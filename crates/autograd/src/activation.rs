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

    fn len(&self) -> usize {
        self.tensor().rows()
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
