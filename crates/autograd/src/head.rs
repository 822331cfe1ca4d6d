//! A language model's head and its loss in one op: `Σ_i w_i·−log softmax(s·W·x_i)[labels_i] / Σ_i w_i`, x (n, d), W (v, d); without weights
//! the mean.
//!
//! Logits are computed in chunks of rows and never whole: v is in the ten thousands. As with any loss the gradients are known with it: they are
//! computed from a chunk's logits while these are there, and that of x is kept, as large as x. Where the policy says so of its site, x is kept
//! instead, in fewer bits (the loss is not linear in it: to the nearest), or nothing, if x can be rebuilt; the backward pass then computes each
//! chunk's logits again, one more product for n·v numbers that are not held. A chunk's rows have one weight, so that its mean counts by its rows
//! and that weight; rows of weight 0 are in none, and cost nothing.
//!
//! An adapter (LoRA; Hu et al. 2022, eq. 3) adds `t·B·A·drop(s·x_i)` to a row's logits. It reads what the head reads and keeps nothing more.

use std::collections::HashMap;

use colrow_tensor::{Class, DType, Dropout, Format, Result, Tensor};

use crate::compress::{GROUP, quantised};
use crate::dropout::replay;
use crate::kept::Kept;
use crate::low_rank::add_adapters;
use crate::param::{Handle, ParamId};
use crate::policy::Keep;
use crate::sample::gather;
use crate::tape::{Grads, Op, Tape, Var, VarId};

/// Logits that are in memory at once, 32 MiB of them, and the rows that are at least: every chunk packs the whole weight anew, which costs little beside
/// a product of so many rows.
const CHUNK: usize = 1 << 23;
const LEAST_ROWS: usize = 128;

/// A head without a bias.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// W (v, d).
    pub weight: ParamId,
    /// The factor s of the logits.
    pub scale: f64,
    /// What is added to the weight.
    pub adapter: Option<HeadAdapter>,
}

impl Head {
    /// A head without an adapter.
    pub fn new(weight: ParamId, scale: f64) -> Self {
        Self { weight, scale, adapter: None }
    }
}

/// An adapter of a head.
#[derive(Clone, Copy, Debug)]
pub struct HeadAdapter {
    /// A (r, d).
    pub a: ParamId,
    /// B (v, r).
    pub b: ParamId,
    /// The factor t.
    pub scale: f64,
    /// Probability that an element of its input is dropped on its way to A.
    pub dropout: f32,
}

struct HeadLoss {
    x: Option<VarId>,
    held: Held,
}

/// What leads to the gradients.
enum Held {
    /// They are there: that of x, and those of parameters, which are gradients like any other and not kept.
    Gradients { dx: Kept, params: Vec<(Handle, Tensor)> },
    /// What they are computed from.
    Input { x: Kept, n: usize, chunks: Box<Chunks> },
}

/// What is computed chunk by chunk.
struct Chunks {
    list: Vec<Chunk>,
    weight: Handle,
    scale: f64,
    adapter: Option<Adapter>,
}

struct Adapter {
    a: Handle,
    /// One, from column 0 on.
    b: [(Handle, usize); 1],
    scale: f64,
    dropout: Option<Dropout>,
}

/// What an adapter makes of a chunk: its input (c, d), and that times t·Aᵀ (c, r).
struct Adapted {
    x: Tensor,
    hidden: Tensor,
}

impl Adapter {
    /// The logits (c, v) of the rows `index`, whose input is x (c, d), and what is added to them.
    fn add(&self, x: &Tensor, index: &Tensor, logits: Tensor) -> (Tensor, Adapted) {
        let x = match self.dropout {
            Some(dropout) => replay(dropout, Some(index), x.copied()),
            None => x.clone(),
        };
        let (logits, hidden) = add_adapters(logits, &x, &self.a, &self.b, self.scale);
        (logits, Adapted { x, hidden })
    }

    /// Adds to the gradients of A and B, and to that of the chunk's input, if it is wanted.
    fn backward(
        &self,
        Adapted { x, hidden }: &Adapted,
        index: &Tensor,
        dlogits: &Tensor,
        dx: Option<&mut Tensor>,
        grads: &mut Grads,
    ) {
        let device = dlogits.device().clone();
        let (kernels, [(b, _)]) = (device.kernels(), &self.b);
        if b.trainable {
            let (db, beta) = grads.param(b);
            kernels.matmul(dlogits, true, hidden, false, beta, db);
        }
        let mut dh = hidden.empty_like();
        kernels.linear_backward(dlogits, &b.value.stored(), &mut dh);
        kernels.scale(self.scale, None, &mut dh);
        if self.a.trainable {
            let (da, beta) = grads.param(&self.a);
            kernels.matmul(&dh, true, x, false, beta, da);
        }
        if let Some(dx) = dx {
            let mut part = dx.empty_like();
            kernels.linear_backward(&dh, &self.a.value.stored(), &mut part);
            let part = match self.dropout {
                Some(dropout) => replay(dropout, Some(index), part),
                None => part,
            };
            kernels.add(&part, dx);
        }
    }
}

/// Rows of one weight.
struct Chunk {
    rows: Vec<u32>,
    labels: Kept,
    /// What its mean counts in that of all.
    share: f64,
}

/// A chunk's input (c, d), times s, its mean loss, and where something learns by it the gradient with respect to its logits (c, v).
struct Computed {
    index: Tensor,
    x: Tensor,
    adapted: Option<Adapted>,
    loss: Tensor,
    dlogits: Option<Tensor>,
}

impl Chunks {
    /// Those of the parameters that are learned.
    fn learned(&self) -> impl Iterator<Item = &Handle> {
        let adapter = self.adapter.iter().flat_map(|Adapter { a, b: [(b, _)], .. }| [a, b]);
        [&self.weight].into_iter().chain(adapter).filter(|param| param.trainable)
    }

    /// Adds to the gradients of parameters, each times `dy` (1), if it is there, and gives that of x (n, d), if it is wanted. `x` has the
    /// rows of x that an index names; `see` sees each chunk's loss and share.
    fn gradients(
        &self,
        (n, wanted): (usize, bool),
        dy: Option<&Tensor>,
        x: impl Fn(&Tensor) -> Tensor,
        grads: &mut Grads,
        mut see: impl FnMut(f64, &Tensor),
    ) -> Option<Tensor> {
        let weight = &self.weight;
        let device = weight.value.device().clone();
        let kernels = device.kernels();
        let rows: usize = self.list.iter().map(|chunk| chunk.rows.len()).sum();
        let mut dx = wanted.then(|| device.empty(Class::Workspace, weight.value.dtype(), &[n, weight.value.cols()]));
        if let Some(dx) = dx.as_mut().filter(|_| n > rows) {
            // some rows count for nothing, and no chunk writes them
            kernels.zero(dx);
        }
        for chunk in &self.list {
            let Computed { index, x, adapted, loss, dlogits } = self.compute(chunk, true, &x, |_| ());
            see(chunk.share, &loss);
            let Some(mut dlogits) = dlogits else { continue };
            kernels.scale(chunk.share, dy, &mut dlogits);
            if weight.trainable {
                let (dw, beta) = grads.param(weight);
                kernels.matmul(&dlogits, true, &x, false, beta, dw);
            }
            let mut part = dx.as_ref().map(|_| {
                let mut part = if adapted.is_some() { x.empty_like() } else { x };
                kernels.linear_backward(&dlogits, &weight.value.stored(), &mut part);
                part
            });
            if let (Some(adapter), Some(adapted)) = (&self.adapter, &adapted) {
                adapter.backward(adapted, &index, &dlogits, part.as_mut(), grads);
            }
            if let (Some(dx), Some(mut part)) = (&mut dx, part) {
                kernels.scale(self.scale, None, &mut part);
                kernels.scatter_rows(&part, &index, dx);
            }
        }
        dx
    }

    /// Each chunk's loss and share, without a gradient; arguments as in [`Chunks::gradients`].
    fn losses(&self, x: impl Fn(&Tensor) -> Tensor, mut see: impl FnMut(f64, &Tensor)) {
        self.list.iter().for_each(|chunk| see(chunk.share, &self.compute(chunk, false, &x, |_| ()).loss));
    }

    /// `see` sees the logits (c, v); their gradient is there if something `learns` by it.
    fn compute(
        &self,
        Chunk { rows, labels, .. }: &Chunk,
        learns: bool,
        x: impl Fn(&Tensor) -> Tensor,
        see: impl FnOnce(&Tensor),
    ) -> Computed {
        let weight = self.weight.value.stored();
        let (device, dtype) = (self.weight.value.device(), weight.dtype());
        let kernels = device.kernels();
        let index = device.tensor(Class::Workspace, &[rows.len()], rows);
        let mut x = x(&index);
        kernels.scale(self.scale, None, &mut x);
        let mut logits = device.empty(Class::Workspace, dtype, &[rows.len(), weight.rows()]);
        kernels.linear(&x, &weight, None, &mut logits);
        let (mut logits, adapted) = match &self.adapter {
            Some(adapter) => {
                let (logits, adapted) = adapter.add(&x, &index, logits);
                (logits, Some(adapted))
            }
            None => (logits, None),
        };
        see(&logits);
        let mut loss = device.empty(Class::Workspace, dtype, &[1]);
        kernels.cross_entropy(&mut logits, labels.exact(), &mut loss, learns);
        Computed { index, x, adapted, loss, dlogits: learns.then_some(logits) }
    }
}

/// The rows by weight, each weight with its rows in order; 0 is none.
fn by_weight(n: usize, weights: Option<&[f32]>) -> Vec<(f64, Vec<u32>)> {
    let rows = 0..n as u32;
    let Some(weights) = weights else { return vec![(1.0, rows.collect())] };
    let mut groups: Vec<(f64, Vec<u32>)> = Vec::new();
    let mut places = HashMap::new();
    for (row, &weight) in rows.zip(weights).filter(|(_, weight)| **weight != 0.0) {
        let place = *places.entry(weight.to_bits()).or_insert_with(|| {
            groups.push((weight.into(), Vec::new()));
            groups.len() - 1
        });
        groups[place].1.push(row);
    }
    groups
}

/// What a head makes of rows that nothing is learned from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HeadScores {
    /// The mean cross-entropy, by the rows' weights.
    pub loss: f64,
    /// Rows that count.
    pub labels: usize,
    /// Those of them whose label has the largest logit, the first of equals.
    pub right: usize,
}

impl Tape<'_> {
    /// The logits (n, v) of x (n, d), without dropout: those of a few rows.
    pub fn head_logits(&self, mut x: Tensor, head: Head) -> Tensor {
        let (device, weight) = (self.device().clone(), self.param(head.weight).value.stored());
        if head.scale != 1.0 {
            x = x.into_owned();
            device.kernels().scale(head.scale, None, &mut x);
        }
        let mut logits = device.empty(Class::Workspace, x.dtype(), &[x.rows(), weight.rows()]);
        device.kernels().linear(&x, &weight, None, &mut logits);
        if let Some(HeadAdapter { a, b, scale, .. }) = head.adapter {
            return add_adapters(logits, &x, &self.handle(a), &[(self.handle(b), 0)], scale).0;
        }
        logits
    }

    /// Loss and number of right predictions of the rows that count: [`Tape::head_loss`] without a gradient.
    pub fn head_scores(&self, x: &Var, head: Head, labels: &[u32], weights: Option<&[f32]>) -> HeadScores {
        let device = self.device().clone();
        let kernels = device.kernels();
        let chunks = self.chunks(head, None, labels, weights);
        let mut total = device.zeros(Class::Workspace, DType::F64, &[1]);
        let mut scores = HeadScores::default();
        for chunk in &chunks.list {
            let mut largest = device.empty(Class::Workspace, DType::U32, &[chunk.rows.len()]);
            let see = |logits: &Tensor| kernels.largest(logits, &mut largest);
            let Computed { loss, .. } = chunks.compute(chunk, false, |index| gather(&x.value, index, None), see);
            kernels.accumulate(chunk.share, &loss, 0, &mut total);
            let truth = chunk.rows.iter().map(|&row| labels[row as usize]);
            scores.right += largest.to_vec::<u32>().into_iter().zip(truth).filter(|(a, b)| a == b).count();
            scores.labels += chunk.rows.len();
        }
        scores.loss = total.scalar();
        scores
    }

    /// The chunks of the rows that count; an adapter's dropout acts at `site`, if there is one.
    fn chunks(&self, head: Head, site: Option<&str>, labels: &[u32], weights: Option<&[f32]>) -> Chunks {
        let device = self.device().clone();
        let weight = self.handle(head.weight);
        let each = (CHUNK / weight.value.rows()).max(LEAST_ROWS);
        let groups = by_weight(labels.len(), weights);
        let all: f64 = groups.iter().map(|(weight, rows)| weight * rows.len() as f64).sum();
        let mut chunks = Vec::new();
        for (weight, rows) in &groups {
            chunks.extend(rows.chunks(each).map(|rows| {
                let labels: Vec<u32> = rows.iter().map(|&row| labels[row as usize]).collect();
                let labels = Kept::Exact(device.tensor(Class::Workspace, &[rows.len()], &labels));
                Chunk { rows: rows.to_vec(), labels, share: weight * rows.len() as f64 / all }
            }));
        }
        let adapter = head.adapter.map(|HeadAdapter { a, b, scale, dropout: p }| {
            let key = site.and_then(|site| self.dropout_key(site)).filter(|_| p > 0.0);
            let b = [(self.handle(b), 0)];
            Adapter { a: self.handle(a), b, scale, dropout: key.map(|key| Dropout { key, p }) }
        });
        Chunks { list: chunks, weight, scale: head.scale, adapter }
    }

    /// The mean cross-entropy of `labels` (n) given x (n, d), by `weights` (n, finite, at least 0) if there are any: one number, 0 where
    /// nothing counts.
    pub fn head_loss(&mut self, site: &str, x: &Var, head: Head, labels: &[u32], weights: Option<&[f32]>) -> Var {
        let device = self.device().clone();
        let chunks = self.chunks(head, Some(site), labels, weights);
        let kernels = device.kernels();
        let mut total = device.zeros(Class::Workspace, DType::F64, &[1]);
        let see = |share, loss: &Tensor| kernels.accumulate(share, loss, 0, &mut total);
        let (n, learns) = (x.value.rows(), x.id.is_some() || chunks.learned().next().is_some());
        let rows = |index: &Tensor| gather(&x.value, index, None);
        let input = match (self.keep(site), &x.source) {
            (Keep::Quantised(bits), _) => {
                Some(Kept::Quantised(quantised(&x.value, Format { code: bits.code(), group: GROUP }, None)))
            }
            (Keep::Nothing, Some(source)) => Some(Kept::Rebuild(source.clone())),
            _ => None,
        };
        let held = match input {
            None if learns && self.records() => {
                let mut grads = self.no_gradients();
                let dx = chunks.gradients((n, x.id.is_some()), None, rows, &mut grads, see);
                let given = |param: &&Handle| grads.of(param.id).is_some();
                let learned: Vec<_> = chunks.learned().filter(given).cloned().collect();
                let params = learned.into_iter().map(|param| {
                    let dw = grads.take_sum(&param);
                    (param, dw)
                });
                let params = params.collect();
                Held::Gradients { dx: dx.map_or(Kept::Nothing, Kept::Exact), params }
            }
            input => {
                chunks.losses(rows, see);
                Held::Input { x: input.unwrap_or(Kept::Nothing), n, chunks: Box::new(chunks) }
            }
        };
        let mut loss = device.zeros(Class::Workspace, x.value.dtype(), &[1]);
        kernels.accumulate(1.0, &total, 0, &mut loss);
        drop(total);
        self.output(site, loss, learns, || HeadLoss { x: x.id, held })
    }
}

impl Op for HeadLoss {
    fn name(&self) -> &'static str {
        "head_loss"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        match &self.held {
            Held::Gradients { dx, .. } => vec![("gradient", dx)],
            Held::Input { x, chunks, .. } => {
                let labels = chunks.list.iter().map(|chunk| ("labels", &chunk.labels));
                [("input", x)].into_iter().chain(labels).collect()
            }
        }
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let kernels = dy.device().kernels();
        let dx = match self.held {
            Held::Gradients { dx, params } => {
                for (param, mut dw) in params {
                    kernels.scale(1.0, Some(&dy), &mut dw);
                    grads.add_param(&param, dw);
                }
                dx.taken().map(|mut dx| {
                    kernels.scale(1.0, Some(&dy), &mut dx);
                    dx
                })
            }
            Held::Input { x, n, chunks } => {
                chunks.gradients((n, self.x.is_some()), Some(&dy), |index| x.rows(index), grads, |_, _| ())
            }
        };
        if let Some(dx) = dx {
            grads.add(self.x, dx);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::Device;
    use colrow_tensor::rng::Key;

    use super::*;
    use crate::testing::{check_gradients, check_precision, leaf, random_params, rounding, run, training};
    use crate::{Bits, Mode, Params, Policy};

    /// Equal to a linear and its loss, whichever of input and weight is learned.
    #[test]
    fn gradients_and_loss() {
        let device = Device::cpu();
        let (n, v) = (7, 11);
        let (mut params, [x, w]) = random_params(&device, DType::F64, [("x", &[n, 5]), ("w", &[v, 5])]);
        let mode = training(Key::new(1), false, Policy::exact(), None);
        let labels: Vec<u32> = (0..n as u32).map(|i| i * 5 % v as u32).collect();
        let f = |tape: &mut Tape<'_>| {
            let x = leaf(tape, x);
            tape.head_loss("head", &x, Head::new(w, 0.4), &labels, None)
        };
        let plain = |tape: &mut Tape<'_>| {
            let x = leaf(tape, x);
            let mut scaled = x.value.copied();
            device.kernels().scale(0.4, None, &mut scaled);
            let x = tape.constant(scaled);
            let logits = tape.linear("head", &x, w, None);
            tape.cross_entropy("loss", &logits, &device.tensor(Class::Workspace, &[n], &labels))
        };
        for which in [[true, true], [true, false], [false, true]] {
            params.iter_mut().zip(which).for_each(|((_, p), learned)| p.trainable = learned);
            check_gradients(&mut params, &mode, v + 5, f).unwrap();
            check_precision(&mut params, &mode, v + 5 + n, f).unwrap();
        }
        let (ours, theirs) = (run(&params, &mode, f).unwrap(), run(&params, &mode, plain).unwrap());
        assert!((ours.output[0] - theirs.output[0]).abs() < 1e-14);
        let (ours, theirs) = (ours.gradients[1].clone().unwrap(), theirs.gradients[1].clone().unwrap());
        assert!(ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() < 1e-14));
    }

    /// An adapter learns, by its dropout too, and gives the loss and the gradients of a head whose weight has it in.
    #[test]
    fn an_adapter_is_added() {
        let device = Device::cpu();
        let (n, v, d) = (7, 11, 5);
        let shapes: [(&str, &[usize]); 4] = [("x", &[n, d]), ("w", &[v, d]), ("a", &[2, d]), ("b", &[v, 2])];
        let (mut params, [x, w, a, b]) = random_params(&device, DType::F64, shapes);
        let labels: Vec<u32> = (0..n as u32).map(|i| i * 5 % v as u32).collect();
        let weights = [1.0, 0.0, 2.0, 1.0, 1.0, 2.0, 1.0];
        let mode = training(Key::new(1), true, Policy::exact(), None);
        let f = |dropout: f32| {
            let labels = &labels;
            move |tape: &mut Tape<'_>| {
                let x = leaf(tape, x);
                let adapter = Some(HeadAdapter { a, b, scale: 0.7, dropout });
                tape.head_loss("head", &x, Head { adapter, ..Head::new(w, 0.4) }, labels, Some(&weights))
            }
        };
        for which in [[true, true, true, true], [false, false, true, true], [true, false, false, true]] {
            params.iter_mut().zip(which).for_each(|((_, p), learned)| p.trainable = learned);
            for dropout in [0.0, 0.3] {
                check_gradients(&mut params, &mode, v + d + 2, f(dropout)).unwrap();
                check_precision(&mut params, &mode, v + d + 2 + n, f(dropout)).unwrap();
            }
        }
        params.iter_mut().for_each(|(_, p)| p.trainable = true);
        let ours = run(&params, &mode, f(0.0)).unwrap();
        assert_ne!(ours.output, run(&params, &mode, f(0.3)).unwrap().output);
        let logits = |params: &Params, head: Head| {
            let tape = Tape::new(params, Mode::Inference);
            let x = tape.param(x).value.dense().copied();
            tape.head_logits(x, head).to_f64()
        };
        let adapted = Head { adapter: Some(HeadAdapter { a, b, scale: 0.7, dropout: 0.3 }), ..Head::new(w, 0.4) };
        let before = logits(&params, adapted);
        let [a, b] = [a, b].map(|id| params[id].value.dense().to_f64());
        let sum = |i: usize, j: usize| 0.7 * (b[2 * i] * a[j] + b[2 * i + 1] * a[d + j]);
        let merged: Vec<f64> = params[w].value.dense().to_f64();
        let merged = merged.into_iter().enumerate().map(|(at, w)| w + sum(at / d, at % d)).collect::<Vec<_>>();
        params[w].value.dense_mut().write_f64(merged);
        let plain = |tape: &mut Tape<'_>| {
            let x = leaf(tape, x);
            tape.head_loss("head", &x, Head::new(w, 0.4), &labels, Some(&weights))
        };
        let theirs = run(&params, &mode, plain).unwrap();
        let close = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-13);
        assert!(close(&ours.output, &theirs.output));
        for which in [0, 1] {
            assert!(close(ours.gradients[which].as_ref().unwrap(), theirs.gradients[which].as_ref().unwrap()));
        }
        assert!(close(&before, &logits(&params, Head::new(w, 0.4))));
    }

    /// The loss and its gradients are those of the rows that count, each as often as its weight says; weights of 1 change no bit.
    #[test]
    fn rows_count_by_their_weights() {
        let device = Device::cpu();
        let (n, v) = (5, 11);
        let (mut params, [x, w]) = random_params(&device, DType::F64, [("x", &[n, 5]), ("w", &[v, 5])]);
        let mode = training(Key::new(1), false, Policy::exact(), None);
        let labels: Vec<u32> = (0..n as u32).map(|i| i * 5 % v as u32).collect();
        let head = Head::new(w, 0.4);
        let weighted = |weights: Option<Vec<f32>>| {
            let labels = &labels;
            move |tape: &mut Tape<'_>| {
                let x = leaf(tape, x);
                tape.head_loss("head", &x, head, labels, weights.as_deref())
            }
        };
        let weights = vec![1.0, 0.0, 2.0, 0.5, 1.0];
        check_gradients(&mut params, &mode, v + 5, weighted(Some(weights.clone()))).unwrap();
        // by twice its weight: rows 0, 2 and 4 twice, four times and twice, row 3 once, row 1 never
        let picked = [0, 0, 2, 2, 2, 2, 3, 4, 4_u32];
        let repeated = |tape: &mut Tape<'_>| {
            let x = leaf(tape, x);
            let all: Vec<f64> = x.value.to_f64();
            let rows: Vec<f64> = picked.iter().flat_map(|&i| all[5 * i as usize..][..5].to_vec()).collect();
            let x = tape.constant(device.tensor(Class::Workspace, &[picked.len(), 5], &rows));
            let labels: Vec<u32> = picked.iter().map(|&i| labels[i as usize]).collect();
            tape.head_loss("head", &x, head, &labels, None)
        };
        let (ours, theirs) =
            (run(&params, &mode, weighted(Some(weights))).unwrap(), run(&params, &mode, repeated).unwrap());
        assert!((ours.output[0] - theirs.output[0]).abs() < 1e-14);
        let (dw, want) = (ours.gradients[1].clone().unwrap(), theirs.gradients[1].clone().unwrap());
        assert!(dw.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-14));
        let dx = ours.gradients[0].clone().unwrap();
        assert!(dx[5..10].iter().all(|&g| g == 0.0) && dx[..5].iter().all(|&g| g != 0.0), "{dx:?}");
        let (ones, plain) =
            (run(&params, &mode, weighted(Some(vec![1.0; n]))).unwrap(), run(&params, &mode, weighted(None)).unwrap());
        assert_eq!((ones.output, ones.gradients), (plain.output, plain.gradients));
        let none = run(&params, &mode, weighted(Some(vec![0.0; n]))).unwrap();
        assert_eq!(none.output, [0.0]);
        assert!(none.gradients.iter().flatten().flatten().all(|&g| g == 0.0));
    }

    /// The loss without a gradient is the loss, and right is what the largest logit says.
    #[test]
    fn scores_are_those_of_the_loss() {
        let device = Device::cpu();
        let (n, v) = (5, 11);
        let (params, [x, w]) = random_params(&device, DType::F64, [("x", &[n, 5]), ("w", &[v, 5])]);
        let mode = training(Key::new(1), false, Policy::exact(), None);
        let mut tape = Tape::new(&params, mode);
        let x = leaf(&mut tape, x);
        let head = Head::new(w, 0.4);
        let logits = tape.linear("head", &x, w, None).value.to_f64();
        let best = |row: &[f64]| (0..v).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32;
        let mut labels: Vec<u32> = logits.chunks_exact(v).map(best).collect();
        labels[2] = (labels[2] + 1) % v as u32;
        let weights = [1.0, 0.0, 2.0, 1.0, 0.5];
        let scores = tape.head_scores(&x, head, &labels, Some(&weights));
        assert_eq!((scores.labels, scores.right), (4, 3));
        let loss = tape.head_loss("head", &x, head, &labels, Some(&weights));
        assert!((scores.loss - loss.value.scalar()).abs() < 1e-14);
        let none = tape.head_scores(&x, head, &labels, Some(&[0.0; 5]));
        assert_eq!((none.loss, none.labels, none.right), (0.0, 0, 0));
    }

    /// Behind a norm and dropout the input is made again and none of it is kept; in fewer bits it is nearly the same. Else the gradient is kept,
    /// which is as large as the input.
    #[test]
    fn the_input_is_kept_as_the_site_says() {
        let device = Device::cpu();
        let (n, d, v) = (7, 70, 11);
        let labels: Vec<u32> = (0..n as u32).map(|i| i * 5 % v as u32).collect();
        let weights = [1.0, 0.0, 2.0, 1.0, 1.0, 2.0, 1.0];
        for dtype in [DType::F32, DType::F64] {
            let (mut params, [x, g, w]) =
                random_params(&device, dtype, [("x", &[n, d]), ("gamma", &[d]), ("w", &[v, d])]);
            let f = |tape: &mut Tape<'_>| {
                let x = leaf(tape, x);
                let mut x = tape.rms_norm("norm", &x, g, 1e-6);
                x = tape.dropout("dropout", x, 0.3);
                tape.head_loss("head", &x, Head::new(w, 0.4), &labels, Some(&weights))
            };
            let mode = |keep| training(Key::new(1), true, Policy::new([("head".to_owned(), keep)]), None);
            let kept = |keep| {
                let mut tape = Tape::new(&params, mode(keep));
                let loss = f(&mut tape);
                let ledger = tape.ledger();
                assert_eq!(ledger.total(), device.meter().live().kept);
                drop(loss);
                let of_head = ledger.entries.iter().filter(|e| e.site == "head" && e.what != "labels");
                let of_head: Vec<_> = of_head.map(|e| (e.what.clone(), e.keep, e.bytes)).collect();
                let [(what, keep, bytes)] = &of_head[..] else { panic!("{of_head:?}") };
                (format!("{what} {keep:?}"), *bytes)
            };
            let float = dtype.size();
            assert_eq!(kept(Keep::Exact), ("gradient Exact".to_owned(), n * d * float));
            assert_eq!(kept(Keep::Nothing), ("input Rebuild".to_owned(), 0));
            assert_eq!(kept(Keep::Quantised(Bits::Int8)), ("input Int8".to_owned(), n * d + 2 * n * float));
            assert_eq!(kept(Keep::Quantised(Bits::Bf16)), ("input Bf16".to_owned(), 2 * n * d));
            let flops = |work: &dyn Fn()| {
                device.profile().start();
                work();
                let costs = device.profile().stop();
                costs.iter().find(|(kernel, _)| *kernel == "matmul").map(|(_, cost)| cost.flops)
            };
            // of the rows that count, by weight: logits, dx and dW, and logits again
            let one = 2 * (n as u64 - 1) * (d * v) as u64;
            let products = |params: &Params, keep| flops(&|| drop(run(params, &mode(keep), f).unwrap()));
            let both = |params: &Params| (products(params, Keep::Exact), products(params, Keep::Nothing));
            assert_eq!(both(&params), (Some(3 * one), Some(4 * one)));
            // neither dW nor dx where it is not learned, and no gradient where none is asked for
            for (which, again) in [([true, true, false], 3), ([false, false, true], 2)] {
                params.iter_mut().zip(which).for_each(|((_, p), learned)| p.trainable = learned);
                assert_eq!(both(&params), (Some(2 * one), Some(again * one)), "{which:?}");
            }
            params.iter_mut().for_each(|(_, p)| p.trainable = true);
            assert_eq!(flops(&|| drop(f(&mut Tape::new(&params, Mode::Inference)))), Some(one));
            let exact = run(&params, &mode(Keep::Exact), f).unwrap();
            let bits = |bits| (Keep::Quantised(bits), 0.01);
            // the sum's gradient is a factor of the logits' or of what they lead to
            let rounded = (Keep::Nothing, rounding(dtype, v + d));
            for (keep, most) in [rounded, bits(Bits::Int8), bits(Bits::Bf16)] {
                let near = run(&params, &mode(keep), f).unwrap();
                assert_eq!(near.output, exact.output);
                let all =
                    |run: &crate::testing::Run| run.gradients.iter().flatten().flatten().copied().collect::<Vec<_>>();
                let (near, exact) = (all(&near), all(&exact));
                let size = exact.iter().map(|x| x * x).sum::<f64>().sqrt();
                let error = near.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
                assert!(error > 0.0 && error < most * size, "{keep:?}: {error} of {size}");
            }
            if dtype == DType::F64 {
                check_gradients(&mut params, &mode(Keep::Nothing), 200, f).unwrap();
            }
        }
    }

    /// With more logits than fit into a chunk the loss is the same, and no more than one chunk is in memory.
    #[test]
    fn logits_are_never_whole() {
        let device = Device::cpu();
        let (n, v) = (2 * LEAST_ROWS + 9, 1 << 17);
        let (params, [x, w]) = random_params(&device, DType::F32, [("x", &[n, 2]), ("w", &[v, 2])]);
        let labels: Vec<u32> = (0..n as u32).map(|i| i * 1009 % v as u32).collect();
        let mode = training(Key::new(1), false, Policy::exact(), None);
        let mut tape = Tape::new(&params, mode);
        let x = leaf(&mut tape, x);
        let numbers = (x.value.to_f64(), params[w].value.dense().to_f64());
        device.meter().reset_peak();
        let before = device.meter().live().total();
        let loss = tape.head_loss("head", &x, Head::new(w, 1.0), &labels, None);
        let extra = device.meter().peak().total() - before;
        // beside a chunk the gradient of W
        assert!(extra < LEAST_ROWS * v * 4 + 2 * v * 4 + 10_000, "{extra} bytes, all logits are {}", n * v * 4);
        let one = |i: usize| {
            let logit = |j: usize| numbers.0[2 * i] * numbers.1[2 * j] + numbers.0[2 * i + 1] * numbers.1[2 * j + 1];
            (0..v).map(|j| logit(j).exp()).sum::<f64>().ln() - logit(labels[i] as usize)
        };
        let want = (0..n).map(one).sum::<f64>() / n as f64;
        assert!((loss.value.scalar() / want - 1.0).abs() < 1e-6, "{} is not {want}", loss.value.scalar());
    }
}
