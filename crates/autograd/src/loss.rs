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
            logits.value.device().kernels().cross_entropy(&logits.value, labels, loss, dx);
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
        if let Kept::Exact(dx) = self.dx {
            let mut dx = dx.into_owned();
            dy.device().kernels().scale(dy.scalar(), &mut dx);
            grads.add(self.x, dx);
        }
        Ok(())
    }
}
