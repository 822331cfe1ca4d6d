//! Picking rows of a matrix, such as each sequence's first. Keeps the row numbers.

use colrow_tensor::{Class, Result, Tensor};

use crate::kept::Kept;
use crate::sample::gather;
use crate::tape::{Grads, Op, Tape, Var, VarId};

struct Rows {
    x: Option<VarId>,
    index: Kept,
    of: usize,
}

impl Tape<'_> {
    /// The rows `index` (k, u32, distinct) of x (n, d).
    pub fn rows(&mut self, site: &str, x: &Var, index: &Tensor) -> Var {
        let y = gather(&x.value, index, None);
        let of = x.value.rows();
        self.output(site, y, x.id.is_some(), || Rows { x: x.id, index: Kept::Exact(index.clone()), of })
    }
}

impl Op for Rows {
    fn name(&self) -> &'static str {
        "rows"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        vec![("index", &self.index)]
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        if let Kept::Exact(index) = &self.index {
            let mut dx = dy.device().empty(Class::Workspace, dy.dtype(), &[self.of, dy.cols()]);
            dy.device().kernels().scatter_rows(&dy, index, &mut dx);
            grads.add(self.x, dx);
        }
        Ok(())
    }
}
