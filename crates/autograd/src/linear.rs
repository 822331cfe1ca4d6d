//! `y = x·Wᵀ + b`, x (n, in), W (out, in), y (n, out).
//!
//! Keeps its input for `dW = dyᵀ·x`, in full, in sampled rows, or not at all where it can be rebuilt: see [`Keep`]. With a frozen
//! weight it keeps nothing. `dx = dy·W` and `db = Σ_i dy_i` need no input.

use std::sync::Arc;

use colrow_tensor::rng::Key;
use colrow_tensor::{Class, Result, Tensor};

use crate::kept::Kept;
use crate::norms::NormMemory;
use crate::param::ParamId;
use crate::policy::{Keep, NormSource, Sampling};
use crate::sample::{Draw, RowSample, draw, gather, row_norms};
use crate::tape::{Grads, Mode, Op, Tape, Var, VarId};

struct Linear {
    site: String,
    x: Option<VarId>,
    /// `Exact`, `Rows` or `Rebuild`; `Nothing` if the weight is frozen.
    input: Kept,
    /// Set if rows are yet to be drawn, in the backward pass.
    late: Option<Draw>,
    /// Set if the norms of dZ are to be remembered.
    norms: Option<Arc<NormMemory>>,
    weight: (ParamId, Tensor),
    bias: Option<(ParamId, Tensor)>,
}

impl Tape<'_> {
    /// Applies the linear layer `weight`, `bias` at `site`.
    pub fn linear(&mut self, site: &str, x: &Var, weight: ParamId, bias: Option<ParamId>) -> Var {
        let params = self.params();
        let (w, b) = (&params[weight], bias.map(|b| &params[b]));
        let device = self.device().clone();
        let mut y = device.empty(Class::Workspace, x.value.dtype(), &[x.value.rows(), w.value.rows()]);
        let beta = match b {
            Some(b) => {
                device.kernels().broadcast_row(&b.value, &mut y);
                1.0
            }
            None => 0.0,
        };
        device.kernels().matmul(&x.value, false, &w.value, true, beta, &mut y);
        let learned_bias = bias.zip(b).filter(|(_, b)| b.trainable).map(|(id, b)| (id, b.value.clone()));
        let learns = x.id.is_some() || w.trainable || learned_bias.is_some();
        let held = if w.trainable { self.hold(site, x) } else { Held { input: Kept::Nothing, late: None, norms: None } };
        self.output(site, y, learns, || Linear {
            site: site.to_owned(),
            x: x.id,
            input: held.input,
            late: held.late,
            norms: held.norms,
            weight: (weight, w.value.clone()),
            bias: learned_bias,
        })
    }

    fn hold(&self, site: &str, x: &Var) -> Held {
        let Mode::Training { key, policy, norms, .. } = self.mode() else {
            return Held { input: Kept::Nothing, late: None, norms: None };
        };
        let whole = || Held { input: Kept::Exact(x.value.clone()), late: None, norms: None };
        let n = x.value.rows();
        match policy.keep(site) {
            Keep::Exact => whole(),
            Keep::Nothing => match &x.source {
                Some(source) => Held { input: Kept::Rebuild(source.clone()), ..whole() },
                None => whole(),
            },
            Keep::Rows(sampling) if sampling.rows_of(n) == n => whole(),
            Keep::Rows(sampling) => sampled(site, x, sampling, key.named(site).named("rows"), norms.as_ref()),
        }
    }
}

struct Held {
    input: Kept,
    late: Option<Draw>,
    norms: Option<Arc<NormMemory>>,
}

fn sampled(site: &str, x: &Var, sampling: Sampling, key: Key, norms: Option<&Arc<NormMemory>>) -> Held {
    let Sampling { estimator, norms: source, uniform, .. } = sampling;
    let how = Draw { estimator, rows: sampling.rows_of(x.value.rows()), uniform, key };
    if source == NormSource::Current {
        let input = x.source.clone().map_or_else(|| Kept::Exact(x.value.clone()), Kept::Rebuild);
        // true norms need no uniform share
        return Held { input, late: Some(Draw { uniform: 0.0, ..how }), norms: None };
    }
    let h = row_norms(&x.value);
    let dz = norms.and_then(|memory| memory.estimate(site, source, &h));
    let sample = draw(&how, &h, dz.as_ref());
    let rows = gather(&x.value, &sample.index, None);
    let norms = norms.filter(|_| source != NormSource::Uniform).cloned();
    Held { input: Kept::Rows { rows, sample }, late: None, norms }
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        vec![("input", &self.input)]
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let kernels = dy.device().kernels();
        if let Some((id, b)) = &self.bias {
            kernels.add_column_sum(&dy, grads.param_sum(*id, b));
        }
        if let Some(norms) = &self.norms {
            norms.record(&self.site, &row_norms(&dy));
        }
        let (id, w) = &self.weight;
        // products of drawn rows with their weighted gradients, or of everything
        let pair = match (&self.input, &self.late) {
            (Kept::Nothing, _) => None,
            (Kept::Rows { rows, sample }, _) => Some((weighted(&dy, sample), rows.clone())),
            (Kept::Exact(x), None) => Some((dy.clone(), x.clone())),
            (Kept::Rebuild(x), None) => Some((dy.clone(), x.whole())),
            (Kept::Exact(x), Some(how)) => {
                let sample = draw(how, &row_norms(x), Some(&row_norms(&dy)));
                Some((weighted(&dy, &sample), gather(x, &sample.index, None)))
            }
            (Kept::Rebuild(x), Some(how)) => {
                let sample = draw(how, &x.row_norms(), Some(&row_norms(&dy)));
                Some((weighted(&dy, &sample), x.rows(&sample.index)))
            }
        };
        if let Some((dz, x)) = pair {
            let (dw, beta) = grads.param(*id, w);
            kernels.matmul(&dz, true, &x, false, beta, dw);
        }
        let Self { x, input, .. } = *self;
        drop(input);
        if x.is_some() {
            let mut dx = dy.device().empty(Class::Workspace, dy.dtype(), &[dy.rows(), w.cols()]);
            kernels.matmul(&dy, false, w, false, 0.0, &mut dx);
            grads.add(x, dx);
        }
        Ok(())
    }
}

fn weighted(dy: &Tensor, sample: &RowSample) -> Tensor {
    gather(dy, &sample.index, Some(&sample.scale))
}
