//! Attention by sequence and head, in tiles of query rows. Probabilities live in a tile and die there: the backward pass
//! rebuilds them from q, k and each row's log-sum-exp.

use rayon::prelude::*;

use super::matmul::{View, gemm};
use super::rowwise::{mask_row, threshold};
use super::vectorised;
use crate::dtype::Float;
use crate::kernels::{Attention, Dropout};
use crate::rng::Key;

/// Query rows of a tile.
const TILE: usize = 64;

/// Elements of scratch: per thread two tiles (probabilities and their gradient) and one row of a dropout mask.
pub(crate) fn scratch(threads: usize, longest: usize) -> usize {
    threads * (2 * TILE + 1) * longest
}

/// An address that tasks share; each writes its own rows and columns.
struct Shared<T>(*mut T);
// SAFETY: a task writes only the rows of its sequence, the columns of its head and the scratch of its thread.
unsafe impl<T> Sync for Shared<T> {}

/// Dropout of the probabilities of one head: the mask of query row i is that of batch row i.
#[derive(Clone, Copy)]
struct HeadDropout {
    key: Key,
    dropped: u32,
    factor: f64,
}

impl HeadDropout {
    fn new(dropout: Option<Dropout>, head: usize) -> Option<Self> {
        dropout.map(|Dropout { key, p }| {
            let (dropped, factor) = threshold(p);
            Self { key: key.child(head as u64), dropped, factor }
        })
    }

    fn row<T: Float>(self, row: usize, mask: &mut [T]) {
        mask_row(self.key, row as u32, self.dropped, T::of(self.factor), mask);
    }
}

vectorised! {
    /// Softmax of `s` in place; returns its log-sum-exp.
    fn softmax<T: Float>(s: &mut [T]) -> T {
        let max = s.iter().fold(T::NEG_INFINITY, |m, &x| Float::max(m, x));
        let mut acc = [T::ZERO; 16];
        for s in s.chunks_mut(16) {
            for (s, a) in s.iter_mut().zip(&mut acc) {
                *s = (*s - max).exp();
                *a += *s;
            }
        }
        let sum = acc.iter().fold(T::ZERO, |t, &a| t + a);
        let inv = T::ONE / sum;
        s.iter_mut().for_each(|s| *s *= inv);
        max + T::of(sum.f64().ln())
    }

    fn multiply<T: Float>(x: &[T], y: &mut [T]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y *= x);
    }

    /// From scores `s` and the gradient `dp` of the dropped-out probabilities to those probabilities (in `s`) and the
    /// gradient of the scores (in `dp`).
    fn backward_row<T: Float>(lse: T, mask: Option<&[T]>, s: &mut [T], dp: &mut [T]) {
        s.iter_mut().for_each(|s| *s = (*s - lse).exp());
        if let Some(mask) = mask {
            dp.iter_mut().zip(mask).for_each(|(dp, &m)| *dp *= m);
        }
        let mut acc = [T::ZERO; 16];
        for (s, dp) in s.chunks(16).zip(dp.chunks(16)) {
            acc.iter_mut().zip(s.iter().zip(dp)).for_each(|(a, (&s, &dp))| *a += s * dp);
        }
        let along = acc.iter().fold(T::ZERO, |t, &a| t + a);
        dp.iter_mut().zip(&*s).for_each(|(dp, &p)| *dp = p * (*dp - along));
        if let Some(mask) = mask {
            s.iter_mut().zip(mask).for_each(|(s, &m)| *s *= m);
        }
    }
}

/// One sequence and head.
#[derive(Clone, Copy)]
struct Task {
    start: usize,
    len: usize,
    head: usize,
}

/// Runs `body` for every sequence and head with its thread's scratch of `2·TILE·len` elements and a mask row of `len`.
fn for_each_head<T: Float>(
    bounds: &[u32],
    heads: usize,
    scratch: &mut [T],
    body: impl Fn(Task, &mut [T], &mut [T]) + Sync,
) {
    let tasks: Vec<Task> = bounds
        .windows(2)
        .flat_map(|w| {
            let (start, len) = (w[0] as usize, (w[1] - w[0]) as usize);
            (0..heads).map(move |head| Task { start, len, head })
        })
        .filter(|t| t.len > 0)
        .collect();
    let longest = tasks.iter().map(|t| t.len).max().unwrap_or(0);
    let each = self::scratch(1, longest);
    assert!(each * rayon::current_num_threads() <= scratch.len(), "scratch for every thread");
    let base = Shared(scratch.as_mut_ptr());
    let base = &base;
    tasks.into_par_iter().with_max_len(8).for_each(|task| {
        let slot = rayon::current_thread_index().unwrap_or(0);
        // SAFETY: each thread of the pool has its own part of the scratch, and the body does not yield to the pool.
        let own = unsafe { std::slice::from_raw_parts_mut(base.0.add(slot * each), each) };
        let (tiles, mask) = own.split_at_mut(2 * TILE * longest);
        body(task, &mut tiles[..2 * TILE * task.len], &mut mask[..task.len]);
    });
}

/// The q, k and v of one head: (len, h) views into the packed rows.
fn projections<T>(qkv: *const T, d: usize, h: usize, task: Task) -> [View<*const T>; 3] {
    [0, 1, 2].map(|part| {
        // SAFETY: row `start` and column `part·d + head·h` lie inside the packed matrix.
        let ptr = unsafe { qkv.add(task.start * 3 * d + part * d + task.head * h) };
        View::new(ptr, task.len, h, 3 * d)
    })
}

/// Rows `first..first + rows` of a view.
fn tile<T>(v: View<*const T>, first: usize, rows: usize) -> View<*const T> {
    // SAFETY: the caller keeps `first + rows` within the view.
    View { ptr: unsafe { v.ptr.add(first * v.row_stride) }, rows, ..v }
}

pub(super) fn forward<T: Float>(
    spec: &Attention,
    d: usize,
    qkv: &[T],
    bounds: &[u32],
    scratch: &mut [T],
    out: &mut [T],
    lse: &mut [T],
) {
    let (heads, h) = (spec.heads, d / spec.heads);
    let scale = 1.0 / (h as f64).sqrt();
    let (out, lse) = (Shared(out.as_mut_ptr()), Shared(lse.as_mut_ptr()));
    let (out, lse) = (&out, &lse);
    for_each_head(bounds, heads, scratch, |task, tiles, mask| {
        let [q, k, v] = projections(qkv.as_ptr(), d, h, task);
        let dropout = HeadDropout::new(spec.dropout, task.head);
        for first in (0..task.len).step_by(TILE) {
            let rows = TILE.min(task.len - first);
            let scores = &mut tiles[..rows * task.len];
            let s = View::new(scores.as_mut_ptr(), rows, task.len, task.len);
            // SAFETY: the views lie in `qkv` and in this thread's scratch.
            unsafe { gemm(scale, tile(q, first, rows), k.t(), 0.0, s, false) };
            for (i, s) in scores.chunks_exact_mut(task.len).enumerate() {
                let row = task.start + first + i;
                let row_lse = softmax(s);
                // SAFETY: this task's rows and head.
                unsafe { *lse.0.add(row * heads + task.head) = row_lse };
                if let Some(dropout) = dropout {
                    dropout.row(row, mask);
                    multiply(mask, s);
                }
            }
            let p = View::new(scores.as_ptr(), rows, task.len, task.len);
            // SAFETY: this task's rows and columns of `out`.
            unsafe {
                let o = View::new(out.0.add((task.start + first) * d + task.head * h), rows, h, d);
                gemm(1.0, p, v, 0.0, o, false);
            }
        }
    });
}

pub(super) fn backward<T: Float>(
    spec: &Attention,
    d: usize,
    (qkv, lse, dout): (&[T], &[T], &[T]),
    bounds: &[u32],
    scratch: &mut [T],
    dqkv: &mut [T],
) {
    let (heads, h) = (spec.heads, d / spec.heads);
    let scale = 1.0 / (h as f64).sqrt();
    let dqkv = Shared(dqkv.as_mut_ptr());
    let dqkv = &dqkv;
    for_each_head(bounds, heads, scratch, |task, tiles, mask| {
        let n = task.len;
        let [q, k, v] = projections(qkv.as_ptr(), d, h, task);
        let dropout = HeadDropout::new(spec.dropout, task.head);
        // SAFETY: row `start` and the columns of this head, written by this task alone.
        let grad = |part: usize, row: usize, rows: usize| unsafe {
            View::new(dqkv.0.add((task.start + row) * 3 * d + part * d + task.head * h), rows, h, 3 * d)
        };
        let (scores, dscores) = tiles.split_at_mut(TILE * n);
        for first in (0..n).step_by(TILE) {
            let rows = TILE.min(n - first);
            let (scores, dscores) = (&mut scores[..rows * n], &mut dscores[..rows * n]);
            let (qt, s) = (tile(q, first, rows), View::new(scores.as_mut_ptr(), rows, n, n));
            let ds = View::new(dscores.as_mut_ptr(), rows, n, n);
            // SAFETY: row and columns of this task inside `dout`.
            let dot = unsafe { dout.as_ptr().add((task.start + first) * d + task.head * h) };
            let dot = View::new(dot, rows, h, d);
            // SAFETY: the views lie in `qkv`, `dout` and this thread's scratch.
            unsafe {
                gemm(scale, qt, k.t(), 0.0, s, false);
                gemm(1.0, dot, v.t(), 0.0, ds, false);
            }
            for (i, (s, ds)) in scores.chunks_exact_mut(n).zip(dscores.chunks_exact_mut(n)).enumerate() {
                let row = task.start + first + i;
                let lse = lse[row * heads + task.head];
                match dropout {
                    Some(dropout) => {
                        dropout.row(row, mask);
                        backward_row(lse, Some(&*mask), s, ds);
                    }
                    None => backward_row(lse, None, s, ds),
                }
            }
            let p = View::new(scores.as_ptr(), rows, n, n);
            let ds = View::new(dscores.as_ptr(), rows, n, n);
            // the first tile writes dk and dv, later ones add
            let beta = if first == 0 { 0.0 } else { 1.0 };
            // SAFETY: this task's rows and columns of `dqkv`.
            unsafe {
                gemm(scale, ds, k, 0.0, grad(0, first, rows), false);
                gemm(scale, ds.t(), qt, beta, grad(1, 0, n), false);
                gemm(1.0, p.t(), dot, beta, grad(2, 0, n), false);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use crate::{Attention, Class, DType, Device, Dropout, rng::Key};

    fn random(device: &Device, seed: u64, shape: &[usize]) -> crate::Tensor {
        let data: Vec<f64> = (0..shape.iter().product()).map(|i: usize| Key::new(seed).normal(i as u64)).collect();
        device.tensor(Class::Workspace, shape, &data)
    }

    /// Sequences of 1, 70 (two tiles) and 5 tokens: equal to softmax by definition, and independent of each other.
    #[test]
    fn matches_the_definition() {
        let (device, heads, h) = (Device::cpu(), 2, 3);
        let (d, bounds) = (heads * h, [0_u32, 1, 71, 76]);
        let n = 76;
        let qkv = random(&device, 1, &[n, 3 * d]);
        let mut scratch = device.empty(Class::Workspace, DType::F64, &[device.kernels().attention_scratch(70)]);
        let mut out = device.empty(Class::Workspace, DType::F64, &[n, d]);
        let mut lse = device.empty(Class::Workspace, DType::F64, &[n, heads]);
        let spec = Attention { heads, dropout: None };
        let b = device.tensor(Class::Workspace, &[4], &bounds);
        device.kernels().attention(&spec, &qkv, &b, &mut scratch, &mut out, &mut lse);
        let x = qkv.as_slice::<f64>();
        let at = |row: usize, part: usize, head: usize, c: usize| x[row * 3 * d + part * d + head * h + c];
        for w in bounds.windows(2) {
            let rows = w[0] as usize..w[1] as usize;
            for (i, head) in rows.clone().flat_map(|i| (0..heads).map(move |head| (i, head))) {
                let score = |j| (0..h).map(|c| at(i, 0, head, c) * at(j, 1, head, c)).sum::<f64>() / (h as f64).sqrt();
                let total: f64 = rows.clone().map(|j| score(j).exp()).sum();
                for c in 0..h {
                    let want: f64 = rows.clone().map(|j| score(j).exp() / total * at(j, 2, head, c)).sum();
                    assert!((out.as_slice::<f64>()[i * d + head * h + c] - want).abs() < 1e-12);
                }
                assert!((lse.as_slice::<f64>()[i * heads + head] - total.ln()).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn dropout_of_probabilities_keeps_the_mean() {
        let (device, n) = (Device::cpu(), 40);
        let qkv = random(&device, 2, &[n, 6]);
        let bounds = device.tensor(Class::Workspace, &[2], &[0, n as u32]);
        let run = |dropout| {
            let k = device.kernels();
            let mut scratch = device.empty(Class::Workspace, DType::F64, &[k.attention_scratch(n)]);
            let mut out = device.empty(Class::Workspace, DType::F64, &[n, 2]);
            let mut lse = device.empty(Class::Workspace, DType::F64, &[n, 1]);
            k.attention(&Attention { heads: 1, dropout }, &qkv, &bounds, &mut scratch, &mut out, &mut lse);
            out.to_f64()
        };
        let (exact, trials) = (run(None), 4000);
        let draws: Vec<Vec<f64>> = (0..trials).map(|t| run(Some(Dropout { key: Key::new(t), p: 0.3 }))).collect();
        for (i, want) in exact.iter().enumerate() {
            let mean = draws.iter().map(|d| d[i]).sum::<f64>() / trials as f64;
            let var = draws.iter().map(|d| (d[i] - mean).powi(2)).sum::<f64>() / (trials - 1) as f64;
            assert!((mean - want).abs() < 4.5 * (var / trials as f64).sqrt(), "element {i}");
        }
    }
}
