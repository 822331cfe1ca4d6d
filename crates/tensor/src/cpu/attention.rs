//! Attention by sequence and head, in tiles of query rows. Probabilities live in a tile and die there: the backward pass
//! rebuilds them from q, k and each row's log-sum-exp. A bias by relative position is one line of numbers a head, never a matrix.

use rayon::prelude::*;

use super::matmul::{View, gemm};
use super::rowwise::{mask_row, threshold};
use super::vectorised;
use crate::dtype::Float;
use crate::kernels::{Attention, AttentionInput, Dropout};
use crate::rng::Key;
use crate::tensor::Tensor;

/// Query rows of a tile.
const TILE: usize = 64;

/// Elements of scratch: per thread two tiles (probabilities and their gradient) and one row of a dropout mask, and with a bias its
/// line and the line's gradient.
pub(crate) fn scratch(threads: usize, spec: &Attention, longest: usize, kv_longest: usize) -> usize {
    let lines = if spec.buckets.is_some() { 2 * (longest + kv_longest) } else { 0 };
    threads * ((2 * TILE + 1) * kv_longest + lines)
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

    fn add<T: Float>(x: &[T], y: &mut [T]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y += x);
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

/// What attention reads, as slices, and where q, k and v stand in them.
#[derive(Clone, Copy)]
pub(super) struct Input<'a, T> {
    q: &'a [T],
    kv: &'a [T],
    bounds: &'a [u32],
    kv_bounds: &'a [u32],
    bias: Option<&'a [T]>,
    /// Columns of q, and those of one head.
    inner: usize,
    h: usize,
    q_stride: usize,
    kv_stride: usize,
    /// First columns of k and v.
    kv_columns: [usize; 2],
}

impl<'a, T: Float> Input<'a, T> {
    pub(super) fn new(spec: &Attention, input: &AttentionInput<'a>) -> Self {
        let AttentionInput { q, kv, bounds, bias } = *input;
        let inner = input.inner();
        let (q_stride, bounds) = (q.cols(), bounds.as_slice());
        let (kv, kv_bounds, kv_stride, kv_columns) = match kv {
            None => (q, bounds, q_stride, [inner, 2 * inner]),
            Some((kv, kv_bounds)) => (kv, kv_bounds.as_slice(), kv.cols(), [0, inner]),
        };
        let (q, kv, bias) = (q.as_slice(), kv.as_slice(), bias.map(Tensor::as_slice));
        Self { q, kv, bounds, kv_bounds, bias, inner, h: inner / spec.heads, q_stride, kv_stride, kv_columns }
    }

    /// Where a task's q stands, and its k and v.
    fn offsets(&self, task: Task) -> [usize; 3] {
        let [k, v] = self.kv_columns.map(|c| task.kv_start * self.kv_stride + c + task.head * self.h);
        [task.start * self.q_stride + task.head * self.h, k, v]
    }

    /// q, k and v of one head: (len, h), (kv_len, h) twice.
    fn projections(&self, task: Task) -> [View<*const T>; 3] {
        let [q, k, v] = self.offsets(task);
        // SAFETY: a task's rows and head lie inside the matrices.
        unsafe {
            [
                View::new(self.q.as_ptr().add(q), task.len, self.h, self.q_stride),
                View::new(self.kv.as_ptr().add(k), task.kv_len, self.h, self.kv_stride),
                View::new(self.kv.as_ptr().add(v), task.kv_len, self.h, self.kv_stride),
            ]
        }
    }
}

/// One sequence and head.
#[derive(Clone, Copy)]
struct Task {
    sequence: usize,
    start: usize,
    len: usize,
    kv_start: usize,
    kv_len: usize,
    head: usize,
}

impl Task {
    /// Tiles of query rows, last first: the first tile that runs sees every key, also where attention is causal. For each its first
    /// row, its rows, and the keys that it sees.
    fn tiles(self, spec: &Attention) -> impl Iterator<Item = (usize, usize, usize)> {
        let (causal, position) = (spec.causal, spec.first_position);
        (0..self.len).step_by(TILE).rev().map(move |first| {
            let rows = TILE.min(self.len - first);
            let keys = if causal { self.kv_len.min(position + first + rows) } else { self.kv_len };
            (first, rows, keys)
        })
    }

    /// The bucket of each entry of the bias line: entry `j − i + len − 1` is for query row i and key j.
    fn buckets(self, spec: &Attention) -> impl Iterator<Item = usize> {
        let (buckets, offset) = (spec.buckets, (self.len - 1 + spec.first_position) as i64);
        (0..self.len + self.kv_len - 1).map_while(move |x| buckets.map(|b| b.of(x as i64 - offset)))
    }

    /// The part of the bias line that query row `i` adds to its scores.
    fn line_of(self, i: usize, keys: usize) -> std::ops::Range<usize> {
        let first = self.len - 1 - i;
        first..first + keys
    }
}

/// What a thread works in.
struct Scratch<'a, T> {
    tiles: &'a mut [T],
    mask: &'a mut [T],
    line: &'a mut [T],
    dline: &'a mut [T],
}

/// Runs `body` for every sequence and head.
fn for_each_head<T: Float>(
    spec: &Attention,
    input: &Input<'_, T>,
    scratch: &mut [T],
    body: impl Fn(Task, Scratch<'_, T>) + Sync,
) {
    let windows =
        |bounds: &[u32]| bounds.windows(2).map(|w| (w[0] as usize, (w[1] - w[0]) as usize)).collect::<Vec<_>>();
    let sequences = windows(input.bounds).into_iter().zip(windows(input.kv_bounds)).enumerate();
    let tasks: Vec<Task> = sequences
        .flat_map(|(sequence, ((start, len), (kv_start, kv_len)))| {
            (0..spec.heads).map(move |head| Task { sequence, start, len, kv_start, kv_len, head })
        })
        .filter(|t| t.len > 0)
        .collect();
    let longest = tasks.iter().map(|t| t.len).max().unwrap_or(0);
    let kv_longest = tasks.iter().map(|t| t.kv_len).max().unwrap_or(0);
    let each = self::scratch(1, spec, longest, kv_longest);
    assert!(each * rayon::current_num_threads() <= scratch.len(), "scratch for every thread");
    let base = Shared(scratch.as_mut_ptr());
    let base = &base;
    tasks.into_par_iter().with_max_len(8).for_each(|task| {
        let slot = rayon::current_thread_index().unwrap_or(0);
        // SAFETY: each thread of the pool has its own part of the scratch, and the body does not yield to the pool.
        let own = unsafe { std::slice::from_raw_parts_mut(base.0.add(slot * each), each) };
        let (tiles, rest) = own.split_at_mut(2 * TILE * kv_longest);
        let (mask, lines) = rest.split_at_mut(kv_longest);
        let (line, dline) = lines.split_at_mut(lines.len() / 2);
        let used = if spec.buckets.is_some() { task.len + task.kv_len - 1 } else { 0 };
        body(task, Scratch { tiles, mask, line: &mut line[..used], dline: &mut dline[..used] });
    });
}

/// Rows `first..first + rows` of a view.
fn tile<T>(v: View<*const T>, first: usize, rows: usize) -> View<*const T> {
    v.part(first..first + rows, 0..v.cols)
}

/// Reads this head's bias line.
fn read_line<T: Float>(spec: &Attention, input: &Input<'_, T>, task: Task, line: &mut [T]) {
    if let Some(bias) = input.bias {
        line.iter_mut().zip(task.buckets(spec)).for_each(|(l, bucket)| *l = bias[bucket * spec.heads + task.head]);
    }
}

/// Turns products of query row `i` into scores: adds the bias, hides later keys.
fn finish_scores<T: Float>(spec: &Attention, task: Task, i: usize, line: &[T], scores: &mut [T]) {
    if !line.is_empty() {
        add(&line[task.line_of(i, scores.len())], scores);
    }
    if spec.causal {
        let seen = scores.len().min(spec.first_position + i + 1);
        scores[seen..].fill(T::NEG_INFINITY);
    }
}

pub(super) fn forward<T: Float>(
    spec: &Attention,
    input: &Input<'_, T>,
    scratch: &mut [T],
    out: &mut [T],
    lse: &mut [T],
) {
    let (heads, h, d) = (spec.heads, input.h, input.inner);
    let (out, lse) = (Shared(out.as_mut_ptr()), Shared(lse.as_mut_ptr()));
    let (out, lse) = (&out, &lse);
    for_each_head(spec, input, scratch, |task, Scratch { tiles, mask, line, .. }| {
        let [q, k, v] = input.projections(task);
        let dropout = HeadDropout::new(spec.dropout, task.head);
        read_line(spec, input, task, line);
        for (first, rows, keys) in task.tiles(spec) {
            let scores = &mut tiles[..rows * keys];
            let s = View::new(scores.as_mut_ptr(), rows, keys, keys);
            // SAFETY: the views lie in q, k and in this thread's scratch.
            unsafe { gemm(spec.scale, tile(q, first, rows), tile(k, 0, keys).t(), 0.0, s, false) };
            for (i, s) in scores.chunks_exact_mut(keys).enumerate() {
                finish_scores(spec, task, first + i, line, s);
                let row = task.start + first + i;
                let row_lse = softmax(s);
                // SAFETY: this task's rows and head.
                unsafe { *lse.0.add(row * heads + task.head) = row_lse };
                if let Some(dropout) = dropout {
                    dropout.row(row, &mut mask[..keys]);
                    multiply(&mask[..keys], s);
                }
            }
            let p = View::new(scores.as_ptr(), rows, keys, keys);
            // SAFETY: this task's rows and columns of `out`.
            unsafe {
                let o = View::new(out.0.add((task.start + first) * d + task.head * h), rows, h, d);
                gemm(1.0, p, tile(v, 0, keys), 0.0, o, false);
            }
        }
    });
}

/// What the backward pass writes: where k and v stand beside q, `dkv` is `None`.
pub(super) struct Gradients<'a, T> {
    pub(super) dq: &'a mut [T],
    pub(super) dkv: Option<&'a mut [T]>,
    /// (b, buckets·heads)
    pub(super) dbias: Option<&'a mut [T]>,
}

pub(super) fn backward<T: Float>(
    spec: &Attention,
    input: &Input<'_, T>,
    (lse, dout): (&[T], &[T]),
    scratch: &mut [T],
    gradients: Gradients<'_, T>,
) {
    let (heads, h, d) = (spec.heads, input.h, input.inner);
    let dq = Shared(gradients.dq.as_mut_ptr());
    let dkv = Shared(gradients.dkv.map_or(dq.0, <[T]>::as_mut_ptr));
    let dbias = gradients.dbias.map(|dbias| Shared(dbias.as_mut_ptr()));
    let (dq, dkv, dbias) = (&dq, &dkv, &dbias);
    for_each_head(spec, input, scratch, |task, Scratch { tiles, mask, line, dline }| {
        let [q, k, v] = input.projections(task);
        let [dq_at, dk_at, dv_at] = input.offsets(task);
        let dropout = HeadDropout::new(spec.dropout, task.head);
        read_line(spec, input, task, line);
        dline.fill(T::ZERO);
        let (scores, dscores) = tiles.split_at_mut(tiles.len() / 2);
        let mut beta = 0.0;
        for (first, rows, keys) in task.tiles(spec) {
            let (scores, dscores) = (&mut scores[..rows * keys], &mut dscores[..rows * keys]);
            let (qt, kt, vt) = (tile(q, first, rows), tile(k, 0, keys), tile(v, 0, keys));
            let s = View::new(scores.as_mut_ptr(), rows, keys, keys);
            let ds = View::new(dscores.as_mut_ptr(), rows, keys, keys);
            // SAFETY: row and columns of this task inside `dout`.
            let dot = unsafe { dout.as_ptr().add((task.start + first) * d + task.head * h) };
            let dot = View::new(dot, rows, h, d);
            // SAFETY: the views lie in q, k, v, `dout` and this thread's scratch.
            unsafe {
                gemm(spec.scale, qt, kt.t(), 0.0, s, false);
                gemm(1.0, dot, vt.t(), 0.0, ds, false);
            }
            for (i, (s, ds)) in scores.chunks_exact_mut(keys).zip(dscores.chunks_exact_mut(keys)).enumerate() {
                finish_scores(spec, task, first + i, line, s);
                let row = task.start + first + i;
                let lse = lse[row * heads + task.head];
                match dropout {
                    Some(dropout) => {
                        dropout.row(row, &mut mask[..keys]);
                        backward_row(lse, Some(&mask[..keys]), s, ds);
                    }
                    None => backward_row(lse, None, s, ds),
                }
                if !dline.is_empty() {
                    add(ds, &mut dline[task.line_of(first + i, keys)]);
                }
            }
            let p = View::new(scores.as_ptr(), rows, keys, keys);
            let ds = View::new(dscores.as_ptr(), rows, keys, keys);
            // SAFETY: this task's rows and columns of the gradients.
            unsafe {
                let grad = |at: *mut T, rows: usize, stride: usize| View::new(at, rows, h, stride);
                let dq = grad(dq.0.add(dq_at + first * input.q_stride), rows, input.q_stride);
                gemm(spec.scale, ds, kt, 0.0, dq, false);
                gemm(spec.scale, ds.t(), qt, beta, grad(dkv.0.add(dk_at), keys, input.kv_stride), false);
                gemm(1.0, p.t(), dot, beta, grad(dkv.0.add(dv_at), keys, input.kv_stride), false);
            }
            // the tile that ran first wrote all of dk and dv, later ones add
            beta = 1.0;
        }
        if let (Some(dbias), Some(buckets)) = (dbias, spec.buckets) {
            let at = |bucket: usize| (task.sequence * buckets.count + bucket) * heads + task.head;
            // SAFETY: this task's sequence and head.
            unsafe {
                (0..buckets.count).for_each(|bucket| *dbias.0.add(at(bucket)) = T::ZERO);
                dline.iter().zip(task.buckets(spec)).for_each(|(&x, bucket)| *dbias.0.add(at(bucket)) += x);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use crate::{Attention, AttentionInput, Class, DType, Device, Dropout, rng::Key};

    fn spec(heads: usize, h: usize, dropout: Option<Dropout>) -> Attention {
        let scale = 1.0 / (h as f64).sqrt();
        Attention { heads, scale, causal: false, first_position: 0, dropout, buckets: None }
    }

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
        let spec = spec(heads, h, None);
        let mut scratch =
            device.empty(Class::Workspace, DType::F64, &[device.kernels().attention_scratch(&spec, 70, 70)]);
        let mut out = device.empty(Class::Workspace, DType::F64, &[n, d]);
        let mut lse = device.empty(Class::Workspace, DType::F64, &[n, heads]);
        let b = device.tensor(Class::Workspace, &[4], &bounds);
        let input = AttentionInput { q: &qkv, kv: None, bounds: &b, bias: None };
        device.kernels().attention(&spec, &input, &mut scratch, &mut out, &mut lse);
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
            let spec = spec(1, 2, dropout);
            let mut scratch = device.empty(Class::Workspace, DType::F64, &[k.attention_scratch(&spec, n, n)]);
            let mut out = device.empty(Class::Workspace, DType::F64, &[n, 2]);
            let mut lse = device.empty(Class::Workspace, DType::F64, &[n, 1]);
            let input = AttentionInput { q: &qkv, kv: None, bounds: &bounds, bias: None };
            k.attention(&spec, &input, &mut scratch, &mut out, &mut lse);
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
