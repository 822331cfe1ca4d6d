//! Dropout (Srivastava et al. 2014): each element is 0 with probability p, else divided by 1−p.
//!
//! Keeps nothing: the mask is replayed from the generator. Also the residual sum, which keeps nothing either.

use colrow_tensor::{Dropout, Result, Tensor};

use crate::kept::Kept;
use crate::tape::{Grads, Op, Tape, Var, VarId};

struct DropoutOp {
    x: Option<VarId>,
    dropout: Dropout,
}

struct Add {
    terms: [Option<VarId>; 2],
}

impl Tape<'_> {
    /// Drops elements of x (n, d) with probability `p`; without effect outside training.
    pub fn dropout(&mut self, site: &str, x: Var, p: f32) -> Var {
        let Some(key) = self.dropout_key(site).filter(|_| p > 0.0) else { return x };
        let dropout = Dropout { key, p };
        let mut y = x.value.into_owned();
        self.device().kernels().dropout(dropout, &mut y);
        self.output(site, y, x.id.is_some(), || DropoutOp { x: x.id, dropout })
    }

    /// `x + y`, in the memory of `x` where nothing else holds it.
    pub fn add(&mut self, site: &str, x: Var, y: &Var) -> Var {
        let mut sum = x.value.into_owned();
        self.device().kernels().add(&y.value, &mut sum);
        self.output(site, sum, x.id.is_some() || y.id.is_some(), || Add { terms: [x.id, y.id] })
    }
}

impl Op for DropoutOp {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        vec![]
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let (device, mut dx) = (dy.device().clone(), dy.into_owned());
        device.kernels().dropout(self.dropout, &mut dx);
        grads.add(self.x, dx);
        Ok(())
    }
}

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        vec![]
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let [x, y] = self.terms;
        grads.add(x, dy.clone());
        grads.add(y, dy);
        Ok(())
    }
}
