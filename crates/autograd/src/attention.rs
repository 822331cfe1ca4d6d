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
