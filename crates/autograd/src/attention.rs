//! Bidirectional attention within each sequence of a ragged batch (Vaswani et al. 2017, eq. 1, by head).
//!
//! Keeps q, k, v and each row's log-sum-exp; probabilities and their dropout mask are rebuilt tile by tile.

use colrow_tensor::{Attention, Class, Dropout, Result, Tensor};

use crate::kept::Kept;
use crate::tape::{Grads, Op, Tape, Var, VarId};

struct SelfAttention {
    spec: Attention,
    longest: usize,
    qkv_id: Option<VarId>,
    qkv: Kept,
    lse: Kept,
    bounds: Kept,
}

impl Tape<'_> {
    /// Attention over `qkv` (n, 3d), which holds q, k, v side by side; `bounds` (b+1) are the sequences' first rows and the end,
    /// `longest` the length of the longest, `dropout` the probability that a probability is dropped. Gives (n, d).
    pub fn attention(
        &mut self,
        site: &str,
        qkv: Var,
        bounds: &Tensor,
        longest: usize,
        heads: usize,
        dropout: f32,
    ) -> Var {
        let device = self.device().clone();
        let kernels = device.kernels();
        let key = self.dropout_key(site).filter(|_| dropout > 0.0);
        let spec = Attention { heads, dropout: key.map(|key| Dropout { key, p: dropout }) };
        let Var { value: qkv, id, .. } = qkv;
        let (n, dtype) = (qkv.rows(), qkv.dtype());
        let mut out = device.empty(Class::Workspace, dtype, &[n, qkv.cols() / 3]);
        let mut lse = device.empty(Class::Workspace, dtype, &[n, heads]);
        let mut scratch = device.empty(Class::Workspace, dtype, &[kernels.attention_scratch(longest)]);
        kernels.attention(&spec, &qkv, bounds, &mut scratch, &mut out, &mut lse);
        drop(scratch);
        self.output(site, out, id.is_some(), || SelfAttention {
            spec,
            longest,
            qkv_id: id,
            qkv: Kept::Exact(qkv),
            lse: Kept::Exact(lse),
            bounds: Kept::Exact(bounds.clone()),
        })
    }
}

impl Op for SelfAttention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        vec![("q, k, v", &self.qkv), ("log-sum-exp", &self.lse), ("bounds", &self.bounds)]
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let (Kept::Exact(qkv), Kept::Exact(lse), Kept::Exact(bounds)) = (&self.qkv, &self.lse, &self.bounds) else {
            unreachable!("attention keeps exact tensors");
        };
        let device = dy.device().clone();
        let kernels = device.kernels();
        let mut scratch = device.empty(Class::Workspace, dy.dtype(), &[kernels.attention_scratch(self.longest)]);
        let mut dqkv = qkv.empty_like();
        kernels.attention_backward(&self.spec, qkv, bounds, lse, &dy, &mut scratch, &mut dqkv);
        grads.add(self.qkv_id, dqkv);
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

    /// Sequences of one token, of more than one tile of 64 rows, and of a few.
    #[test]
    fn gradients_in_ragged_batches() {
        let device = Device::cpu();
        for (bounds, heads, h) in [(vec![0_u32, 1, 6, 10], 3, 2), (vec![0, 1, 71], 2, 3)] {
            let n = *bounds.last().unwrap() as usize;
            let bounds = device.tensor(Class::Workspace, &[bounds.len()], &bounds);
            for (dropout, p) in [(false, 0.1), (true, 0.0), (true, 0.3)] {
                let (mut params, [x]) = random_params(&device, DType::F64, [("qkv", &[n, 3 * heads * h])]);
                let mode = training(Key::new(2), dropout, Policy::exact(), None);
                let f = |tape: &mut Tape<'_>| {
                    let qkv = leaf(tape, x);
                    tape.attention("attention", qkv, &bounds, n, heads, p)
                };
                check_gradients(&mut params, &mode, 2 * n + 2 * h, f).unwrap();
                check_precision(&mut params, &mode, 3 * n + 3 * h, f).unwrap();
            }
        }
    }

    /// Two sites drop different probabilities; one site drops the same ones again.
    #[test]
    fn every_site_has_its_own_mask() {
        let device = Device::cpu();
        let bounds = device.tensor(Class::Workspace, &[2], &[0_u32, 20]);
        let (params, [x]) = random_params(&device, DType::F64, [("qkv", &[20, 12])]);
        let run = |site: &str| {
            let mut tape = Tape::new(&params, training(Key::new(2), true, Policy::exact(), None));
            let qkv = leaf(&mut tape, x);
            tape.attention(site, qkv, &bounds, 20, 2, 0.3).value.to_f64()
        };
        assert!(run("layer.0") == run("layer.0") && run("layer.0") != run("layer.1"));
    }

    /// What a sequence gives does not depend on its neighbours.
    #[test]
    fn sequences_are_independent() {
        let device = Device::cpu();
        let (params, [x]) = random_params(&device, DType::F64, [("qkv", &[8, 6])]);
        let mut tape = Tape::new(&params, crate::Mode::Inference);
        let mut run = |value: Tensor, bounds: &[u32]| {
            let bounds = device.tensor(Class::Workspace, &[bounds.len()], bounds);
            let x = tape.constant(value);
            tape.attention("attention", x, &bounds, 8, 1, 0.0).value.to_f64()
        };
        let all = params[x].value.to_f64();
        let part = |from: usize, to: usize| device.tensor(Class::Workspace, &[to - from, 6], &all[6 * from..6 * to]);
        let together = run(part(0, 8), &[0, 3, 8]);
        assert_eq!(together[..6], run(part(0, 3), &[0, 3]));
        assert_eq!(together[6..], run(part(3, 8), &[0, 5]));
    }
}
