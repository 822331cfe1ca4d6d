//! Low-rank adaptation (LoRA; Hu et al. 2022, eq. 3): `y + s·B·A·drop(x)`, x (n, in), A (r, in), B (out, r).
//!
//! Several adapters that read the same x are one op: their A are stacked to (t·r, in), and each has its own B, which writes its own
//! columns of y (q, k and v of a packed projection, say). One input, one dropout mask, one row sample.
//!
//! Keeps x for `dA = dhᵀ·drop(x)` as the policy of its site says, nothing if A is frozen (LoRA-FA; Zhang et al. 2023); and
//! `h = s·A·drop(x)` (n, t·r) for `dB = dyᵀ·h`. The mask is replayed. Where the linear's output and x can be rebuilt, so can the sum.

use std::sync::Arc;

use colrow_tensor::{Class, Dropout, Result, Tensor};

use crate::dropout::{Dropped, replay};
use crate::input::HeldInput;
use crate::kept::{Kept, Rebuild};
use crate::param::{Handle, ParamId};
use crate::sample::{gather, numbers};
use crate::tape::{Grads, Op, Tape, Var, VarId};

/// Adapters of linears that read the same input.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// All A, stacked by rows (t·r, in).
    pub a: ParamId,
    /// For each adapter its B (out, r) and the first of the `out` columns of y that it writes.
    pub b: Vec<(ParamId, usize)>,
    /// The factor s.
    pub scale: f64,
    /// Probability that an element of x is dropped on its way to A.
    pub dropout: f32,
}

struct Adapter {
    y: Option<VarId>,
    x: Option<VarId>,
    input: HeldInput,
    hidden: Kept,
    dropout: Option<Dropout>,
    scale: f64,
    a: Handle,
    b: Vec<(Handle, usize)>,
}

/// The adapters' sum, rebuilt from the linear's output and from what the adapters read.
#[derive(Debug)]
struct Sum {
    y: Arc<dyn Rebuild>,
    x: Arc<dyn Rebuild>,
    a: Handle,
    b: Vec<(Handle, usize)>,
    scale: f64,
}

impl Rebuild for Sum {
    fn whole(&self) -> Tensor {
        add_adapters(self.y.whole(), &self.x.whole(), &self.a, &self.b, self.scale).0
    }

    fn rows(&self, index: &Tensor) -> Tensor {
        add_adapters(self.y.rows(index), &self.x.rows(index), &self.a, &self.b, self.scale).0
    }
}

/// `y + h·Bᵀ` by adapter, and `h = s·A·x`.
pub(crate) fn add_adapters(y: Tensor, x: &Tensor, a: &Handle, b: &[(Handle, usize)], scale: f64) -> (Tensor, Tensor) {
    let a = a.value.dense();
    let device = x.device().clone();
    let kernels = device.kernels();
    let mut hidden = device.empty(Class::Workspace, x.dtype(), &[x.rows(), a.rows()]);
    kernels.linear(x, &a.into(), None, &mut hidden);
    kernels.scale(scale, None, &mut hidden);
    let mut sum = y.into_owned();
    let rank = a.rows() / b.len();
    kernels.matmul(&hidden, false, &side_by_side(b, rank, sum.cols()), true, 1.0, &mut sum);
    (sum, hidden)
}

/// The B that is there for all outputs, if there is one.
fn alone(b: &[(Handle, usize)], out: usize) -> Option<&Handle> {
    match b {
        [(b, _)] if b.value.rows() == out => Some(b),
        _ => None,
    }
}

/// The B of adapters as one matrix (out, t·r), each in the rows of its outputs and the columns of its A, with zeros elsewhere: one product
/// reads what is there for all of them once, and products of few columns take as long as those of some more.
fn side_by_side(b: &[(Handle, usize)], rank: usize, out: usize) -> Tensor {
    if let Some(b) = alone(b, out) {
        return b.value.dense().clone();
    }
    let like = b[0].0.value.dense();
    let device = like.device().clone();
    let kernels = device.kernels();
    let mut all = device.zeros(Class::Workspace, like.dtype(), &[out, rank * b.len()]);
    for (j, (b, first)) in b.iter().enumerate() {
        let b = b.value.dense();
        let mut wide = device.zeros(Class::Workspace, b.dtype(), &[b.rows(), all.cols()]);
        kernels.write_columns(b, j * rank, &mut wide);
        kernels.scatter_rows(&wide, &numbers(&device, *first..first + b.rows()), &mut all);
    }
    all
}

impl Tape<'_> {
    /// Adds the adapters' output to y (n, out), which is the output of the linear that reads x (n, in).
    pub fn low_rank(&mut self, site: &str, y: Var, x: &Var, spec: &LowRank) -> Var {
        let a = self.handle(spec.a);
        let b: Vec<_> = spec.b.iter().map(|&(id, first)| (self.handle(id), first)).collect();
        let key = self.dropout_key(site).filter(|_| spec.dropout > 0.0);
        let dropped = key.map(|key| {
            let dropout = Dropout { key, p: spec.dropout };
            (dropout, replay(dropout, None, x.value.copied()))
        });
        let read = dropped.as_ref().map_or(&x.value, |(_, read)| read);
        let (sum, hidden) = add_adapters(y.value, read, &a, &b, spec.scale);
        let learns_b = b.iter().any(|(b, _)| b.trainable);
        let learns = y.id.is_some() || x.id.is_some() || a.trainable || learns_b;
        let input = match a.trainable {
            true => HeldInput::new(self, site, x, dropped.as_ref().map(|(dropout, read)| (*dropout, read))),
            false => HeldInput::nothing(),
        };
        let dropout = dropped.map(|(dropout, _)| dropout);
        let source = y.source.zip(x.source.clone()).map(|(y, x)| {
            let x = match dropout {
                Some(dropout) => Arc::new(Dropped { source: x, dropout }),
                None => x,
            };
            Arc::new(Sum { y, x, a: a.clone(), b: b.clone(), scale: spec.scale }) as Arc<dyn Rebuild>
        });
        let sum = self.output(site, sum, learns, || Adapter {
            y: y.id,
            x: x.id,
            input,
            hidden: if learns_b { Kept::Exact(hidden) } else { Kept::Nothing },
            dropout,
            scale: spec.scale,
            a,
            b,
        });
        Var { source, ..sum }
    }
}

impl Adapter {
    /// Adds to the gradients of the B, which are parts of `dyᵀ·hidden` (out, t·r): the other parts cost less than to read dy by columns.
    fn add_gradients(&self, dy: &Tensor, hidden: &Tensor, grads: &mut Grads) {
        let device = dy.device().clone();
        let kernels = device.kernels();
        if let Some(b) = alone(&self.b, dy.cols()) {
            let (db, beta) = grads.param(b);
            return kernels.matmul(dy, true, hidden, false, beta, db);
        }
        let mut all = device.empty(Class::Workspace, dy.dtype(), &[dy.cols(), hidden.cols()]);
        kernels.matmul(dy, true, hidden, false, 0.0, &mut all);
        let rank = hidden.cols() / self.b.len();
        for (j, (b, first)) in self.b.iter().enumerate().filter(|(_, (b, _))| b.trainable) {
            let part = gather(&all, &numbers(&device, *first..first + b.value.rows()), None);
            let mut of_b = device.empty(Class::Gradients, dy.dtype(), &b.value.shape());
            kernels.read_columns(&part, j * rank, &mut of_b);
            grads.add_param(b, of_b);
        }
    }
}

impl Op for Adapter {
    fn name(&self) -> &'static str {
        "low_rank"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        self.input.kept().into_iter().chain([("hidden", &self.hidden)]).collect()
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let device = dy.device().clone();
        let kernels = device.kernels();
        let rank = self.a.value.rows() / self.b.len();
        if let Kept::Exact(hidden) = &self.hidden {
            self.add_gradients(&dy, hidden, grads);
        }
        if self.a.trainable || self.x.is_some() {
            let mut dh = device.empty(Class::Workspace, dy.dtype(), &[dy.rows(), self.a.value.rows()]);
            kernels.linear_backward(&dy, &(&side_by_side(&self.b, rank, dy.cols())).into(), &mut dh);
            kernels.scale(self.scale, None, &mut dh);
            if let Some((dz, x)) = self.input.operands(&dh) {
                let (da, beta) = grads.param(&self.a);
                kernels.matmul(&dz, true, &x, false, beta, da);
            }
            if self.x.is_some() {
                let mut dx = device.empty(Class::Workspace, dy.dtype(), &[dy.rows(), self.a.value.cols()]);
                kernels.linear_backward(&dh, &self.a.value.stored(), &mut dx);
                if let Some(dropout) = self.dropout {
                    kernels.dropout(dropout, None, &mut dx);
                }
                grads.add(self.x, dx);
            }
        }
        grads.add(self.y, dy);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::rng::Key;
    use colrow_tensor::{DType, Device, Estimator};

    use super::*;
    use crate::testing::{check_gradients, check_precision, check_unbiased, leaf, random_params, run, training};
    use crate::{Keep, Mode, NormSource, Params, Policy, Sampling};

    const N: usize = 11;
    /// Input, y, stacked A of two adapters of rank 2, their B on columns 0..3 and 5..9 of 9.
    const SHAPES: [(&str, &[usize]); 5] =
        [("x", &[N, 4]), ("y", &[N, 9]), ("a", &[4, 4]), ("b0", &[3, 2]), ("b1", &[4, 2])];

    fn mode(keep: Keep, trial: u64) -> Mode {
        training(Key::new(3).child(trial), true, Policy::everywhere(keep), None)
    }

    fn pair(tape: &mut Tape<'_>, [x, y, a, b0, b1]: [ParamId; 5], dropout: f32) -> Var {
        let (x, y) = (leaf(tape, x), leaf(tape, y));
        tape.low_rank("site.lora", y, &x, &LowRank { a, b: vec![(b0, 0), (b1, 5)], scale: 0.7, dropout })
    }

    #[test]
    fn gradients_whatever_is_frozen() {
        let device = Device::cpu();
        let (mut params, ids) = random_params(&device, DType::F64, SHAPES);
        for (dropout, learned) in [0.0, 0.4].into_iter().flat_map(|p| (1..32_u8).map(move |l| (p, l))) {
            params.iter_mut().enumerate().for_each(|(i, (_, p))| p.trainable = learned >> i & 1 > 0);
            let f = |tape: &mut Tape<'_>| pair(tape, ids, dropout);
            let run = run(&params, &mode(Keep::Exact, 0), f).unwrap();
            let has: Vec<bool> = run.gradients.iter().map(Option::is_some).collect();
            assert_eq!(has, (0..5).map(|i| learned >> i & 1 > 0).collect::<Vec<_>>());
            check_gradients(&mut params, &mode(Keep::Exact, 0), 30, f).unwrap();
            check_precision(&mut params, &mode(Keep::Exact, 0), 40, f).unwrap();
        }
    }

    /// One adapter over all columns takes shorter ways; it is the definition still.
    #[test]
    fn one_adapter_over_all_columns() {
        let device = Device::cpu();
        let shapes: [(&str, &[usize]); 4] = [("x", &[N, 4]), ("y", &[N, 5]), ("a", &[2, 4]), ("b", &[5, 2])];
        let (mut params, [x, y, a, b]) = random_params(&device, DType::F64, shapes);
        let f = |tape: &mut Tape<'_>| {
            let (x, y) = (leaf(tape, x), leaf(tape, y));
            tape.low_rank("site.lora", y, &x, &LowRank { a, b: vec![(b, 0)], scale: 0.7, dropout: 0.0 })
        };
        check_gradients(&mut params, &mode(Keep::Exact, 0), 30, f).unwrap();
        let got = f(&mut Tape::new(&params, Mode::Inference)).value.to_f64();
        let value =
            |id: ParamId, i: usize, j: usize| params[id].value.dense().to_f64()[i * params[id].value.cols() + j];
        for (i, j) in (0..N).flat_map(|i| (0..5).map(move |j| (i, j))) {
            let h = |r: usize| (0..4).map(|c| value(a, r, c) * value(x, i, c)).sum::<f64>();
            let want = value(y, i, j) + 0.7 * (0..2).map(|r| value(b, j, r) * h(r)).sum::<f64>();
            assert!((got[i * 5 + j] - want).abs() < 1e-13);
        }
    }

    /// dA and dB are linear in drop(x), so that over masks and draws together their means are the gradients without dropout.
    #[test]
    fn sampled_gradients_are_unbiased() {
        let device = Device::cpu();
        let (params, ids) = random_params(&device, DType::F64, SHAPES);
        let gradient = |keep: Keep, dropout: f32, trial: u64, which: usize| {
            let mut run = run(&params, &mode(keep, trial), |tape| pair(tape, ids, dropout))?;
            Ok(run.gradients[which].take().unwrap_or_default())
        };
        for norms in [NormSource::Current, NormSource::Uniform] {
            for estimator in [Estimator::Crs, Estimator::Wta, Estimator::Pps] {
                let keep = Keep::Rows(Sampling { estimator, ratio: 0.3, norms, uniform: 0.1 });
                for which in [2, 3] {
                    let exact = gradient(Keep::Exact, 0.0, 0, which).unwrap();
                    check_unbiased(&exact, 4000, |t| gradient(keep, 0.4, t, which)).unwrap();
                }
            }
        }
    }

    /// All rows, however they are kept and through dropout: the same bits.
    #[test]
    fn every_way_to_keep_all_rows_is_exact() {
        let device = Device::cpu();
        let (params, ids) = random_params(&device, DType::F32, SHAPES);
        let f = |tape: &mut Tape<'_>| pair(tape, ids, 0.4);
        let exact = run(&params, &mode(Keep::Exact, 0), f).unwrap();
        let all = |norms| Keep::Rows(Sampling { estimator: Estimator::Pps, ratio: 1.0, norms, uniform: 0.1 });
        for keep in [Keep::Nothing, all(NormSource::Current), all(NormSource::Uniform)] {
            assert!(run(&params, &mode(keep, 0), f).unwrap().same_bits(&exact), "{keep:?}");
        }
        // half of the rows, early or late, with the same probabilities, draw the same rows of the same dropped-out input
        let half = |norms| Keep::Rows(Sampling { estimator: Estimator::TopK, ratio: 0.5, norms, uniform: 0.0 });
        let sampled = run(&params, &mode(half(NormSource::Current), 0), f).unwrap();
        assert!(!sampled.same_bits(&exact) && sampled.output == exact.output);
    }

    #[test]
    fn what_is_kept() {
        let device = Device::cpu();
        let (mut params, ids) = random_params(&device, DType::F32, SHAPES);
        let kept = |params: &Params| {
            let mut tape = Tape::new(params, mode(Keep::Exact, 0));
            let _y = pair(&mut tape, ids, 0.4);
            let ledger = tape.ledger();
            assert_eq!(ledger.total(), device.meter().live().kept);
            let of = |what: &str| {
                ledger.entries.iter().filter(|e| e.op == "low_rank" && e.what == what).map(|e| e.bytes).sum::<usize>()
            };
            (of("input"), of("hidden"))
        };
        let mut learn = |names: &[&str]| {
            params.iter_mut().for_each(|(_, p)| p.trainable = names.contains(&p.name.as_str()));
            kept(&params)
        };
        assert_eq!(learn(&["a", "b0", "b1"]), (N * 4 * 4, N * 4 * 4));
        assert_eq!(learn(&["b0", "b1"]), (0, N * 4 * 4), "LoRA-FA keeps no input");
        assert_eq!(learn(&["y"]), (0, 0));
    }
}
