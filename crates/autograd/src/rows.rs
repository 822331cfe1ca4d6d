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
            let mut dx = dy.device().zeros(Class::Workspace, dy.dtype(), &[self.of, dy.cols()]);
            dy.device().kernels().scatter_rows(&dy, index, &mut dx);
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
    use crate::Policy;
    use crate::testing::{check_gradients, check_precision, leaf, random_params, training};

    #[test]
    fn gradient_goes_to_the_picked_rows() {
        let device = Device::cpu();
        let (mut params, [x]) = random_params(&device, DType::F64, [("x", &[6, 3])]);
        let index = device.tensor(Class::Workspace, &[3], &[4_u32, 0, 3]);
        let mode = training(Key::new(1), false, Policy::exact(), None);
        let f = |tape: &mut Tape<'_>| {
            let x = leaf(tape, x);
            let picked = tape.rows("rows", &x, &index);
            tape.tanh("tanh", picked)
        };
        check_gradients(&mut params, &mode, 1, f).unwrap();
        check_precision(&mut params, &mode, 1, f).unwrap();
    }
}
