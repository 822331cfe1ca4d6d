//! Attention by sequence and head, in tiles of query rows. Probabilities live in a tile and die there: the backward pass
//! rebuilds them from q and k. A bias by relative position is one line of numbers a head, never a matrix. q, k and v that are kept in codes are
//! decoded head by head. Heads of q that share keys and values follow one another on one thread where gradients of those are summed.

use std::ops::Range;

use rayon::prelude::*;

use super::codes::Reader;
use super::product::gemm::gemm;
use super::rowwise::{largest, mask_row, sum, threshold};
use super::vectorised;
use super::view::View;
use crate::Precision;
use crate::dtype::Float;
use crate::kernels::{Attention, AttentionInput, Dropout};
use crate::rng::Key;
use crate::tensor::Tensor;

/// Query rows of a tile.
const TILE: usize = 64;

/// Elements of scratch: per thread two tiles (probabilities and their gradient), one row of a dropout mask, the head's k and v, a tile of q
/// and one of the output; and with a bias its line and the line's gradient.
pub(crate) fn scratch(threads: usize, spec: &Attention, h: usize, longest: usize, kv_longest: usize) -> usize {
    let lines = if spec.buckets.is_some() { 2 * (longest + kv_longest) } else { 0 };
    threads * ((2 * TILE + 1) * kv_longest + (2 * kv_longest + 2 * TILE) * h + lines)
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
        let max = largest(s, |s| s);
        s.iter_mut().for_each(|s| *s = (*s - max).exp());
        let sum = sum([&*s], |[s]| s);
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

    fn softmax_by<T: Float>(lse: T, s: &mut [T]) {
        s.iter_mut().for_each(|s| *s = (*s - lse).exp());
    }

    /// From probabilities `s` and the gradient `dp` of the dropped-out probabilities to those (in `s`) and the gradient of the scores (in
    /// `dp`).
    fn backward_row<T: Float>(mask: Option<&[T]>, s: &mut [T], dp: &mut [T]) {
        if let Some(mask) = mask {
            dp.iter_mut().zip(mask).for_each(|(dp, &m)| *dp *= m);
        }
        let along = sum([&*s, &*dp], |[s, dp]| s * dp);
        dp.iter_mut().zip(&*s).for_each(|(dp, &p)| *dp = p * (*dp - along));
        if let Some(mask) = mask {
            s.iter_mut().zip(mask).for_each(|(s, &m)| *s *= m);
        }
    }
}

/// What attention reads, and where q, k and v stand in it.
#[derive(Clone, Copy)]
pub(super) struct Input<'a, T> {
    precision: Precision,
    q: Reader<'a, T>,
    kv: Reader<'a, T>,
    bounds: &'a [u32],
    kv_bounds: &'a [u32],
    bias: Option<&'a [T]>,
    /// Columns of q, and those of one head.
    inner: usize,
    h: usize,
    /// First columns of k and v.
    kv_columns: [usize; 2],
}

impl<'a, T: Float> Input<'a, T> {
    pub(super) fn new(precision: Precision, spec: &Attention, input: &AttentionInput<'a>) -> Self {
        let AttentionInput { q, kv, bounds, bias } = *input;
        let h = input.head_size(spec);
        let (inner, kv_inner) = (spec.heads * h, spec.kv_heads * h);
        let bounds = bounds.as_slice();
        let q = Reader::new(&q.into());
        let (kv, kv_bounds, kv_columns) = match kv {
            None => (q, bounds, [inner, inner + kv_inner]),
            Some((kv, kv_bounds)) => (Reader::new(&kv.into()), kv_bounds.as_slice(), [0, kv_inner]),
        };
        let bias = bias.map(Tensor::as_slice);
        Self { precision, q, kv, bounds, kv_bounds, bias, inner, h, kv_columns }
    }

    /// `c = beta·c + alpha·a·b` on this thread.
    ///
    /// # Safety
    /// As [`gemm`].
    unsafe fn multiply(&self, alpha: f64, a: View<*const T>, b: View<*const T>, beta: f64, c: View<*mut T>) {
        // SAFETY: as this function requires.
        unsafe { gemm(self.precision, alpha, a, b, beta, c, false) }
    }

    /// Where a task's gradients of k and v stand.
    fn kv_offsets(&self, task: Task<'_>) -> [usize; 2] {
        self.kv_columns.map(|c| task.kv_start * self.kv.cols() + c + task.kv_head * self.h)
    }

    /// The task's k and v (kv_len, h): where they stand, or decoded into `panels`.
    fn keys_and_values(&self, task: Task<'_>, panels: &mut [T]) -> [View<*const T>; 2] {
        let (h, len) = (self.h, task.kv_len);
        let columns = self.kv_columns.map(|c| c + task.kv_head * h);
        if let Some(kv) = self.kv.exact() {
            let stride = self.kv.cols();
            return columns.map(|c| View::new(kv[task.kv_start * stride + c..].as_ptr(), len, h, stride));
        }
        for (panel, c) in panels.chunks_exact_mut(panels.len() / 2).zip(columns) {
            let rows = panel.chunks_exact_mut(h).take(len).enumerate();
            rows.for_each(|(i, row)| self.kv.read(task.kv_start + i, c, row));
        }
        let (k, v) = panels.split_at(panels.len() / 2);
        [k, v].map(|panel| View::new(panel.as_ptr(), len, h, h))
    }

    /// A head's queries `first..first + rows` (rows, h): where they stand, or copied into `panel`.
    fn queries(&self, task: Task<'_>, head: usize, Tile { first, rows, .. }: &Tile, panel: &mut [T]) -> View<*const T> {
        let (h, c, first, rows) = (self.h, head * self.h, *first, *rows);
        if let (Some(q), None) = (self.q.exact(), task.picked) {
            let stride = self.q.cols();
            return View::new(q[(task.start + first) * stride + c..].as_ptr(), rows, h, stride);
        }
        for (i, row) in panel.chunks_exact_mut(h).take(rows).enumerate() {
            self.q.read(task.start + task.query(first + i).0, c, row);
        }
        View::new(panel.as_ptr(), rows, h, h)
    }
}

/// One sequence, heads that share keys and values, and which of the sequence's query rows.
#[derive(Clone, Copy)]
struct Task<'a> {
    sequence: usize,
    start: usize,
    len: usize,
    kv_start: usize,
    kv_len: usize,
    /// The first of the heads, and their number.
    head: usize,
    heads: usize,
    kv_head: usize,
    /// Rows within the sequence, ascending, and the rows of the output that they belong to; `None` for all in their order.
    picked: Option<&'a [(usize, usize)]>,
}

impl Task<'_> {
    /// Number of queries.
    fn count(&self) -> usize {
        self.picked.map_or(self.len, <[_]>::len)
    }

    /// Query `j`: its row in the sequence and its row in the output.
    fn query(&self, j: usize) -> (usize, usize) {
        self.picked.map_or((j, self.start + j), |picked| picked[j])
    }

    /// Tiles of queries, last first: without a window the first tile that runs sees every key, also where attention is causal.
    fn tiles(self, spec: Attention) -> impl Iterator<Item = Tile> {
        (0..self.count()).step_by(TILE).rev().map(move |first| {
            let rows = TILE.min(self.count() - first);
            let [start, end] = [first, first + rows - 1].map(|i| seen(&spec, self.query(i).0, self.kv_len));
            Tile { first, rows, keys: start.start..end.end }
        })
    }

    /// The bucket of each entry of the bias line: entry `j − i + len − 1` is for query row i and key j.
    fn buckets(self, spec: &Attention) -> impl Iterator<Item = usize> {
        let (buckets, offset) = (spec.buckets, (self.len - 1 + spec.first_position) as i64);
        (0..self.len + self.kv_len - 1).map_while(move |x| buckets.map(|b| b.of(x as i64 - offset)))
    }

    /// The part of the bias line that query row `i` adds to its scores of these keys.
    fn line_of(self, i: usize, keys: &Range<usize>) -> Range<usize> {
        let first = self.len - 1 - i;
        first + keys.start..first + keys.end
    }
}

/// The keys, of so many, that query row `i` sees.
fn seen(spec: &Attention, i: usize, keys: usize) -> Range<usize> {
    if !spec.causal {
        return 0..keys;
    }
    let end = keys.min(spec.first_position + i + 1);
    spec.window.map_or(0, |window| end.saturating_sub(window))..end
}

/// Queries that are computed together.
struct Tile {
    first: usize,
    /// Their number.
    rows: usize,
    /// The keys that one of them sees.
    keys: Range<usize>,
}

/// What a thread works in.
struct Scratch<'a, T> {
    tiles: &'a mut [T],
    mask: &'a mut [T],
    /// The head's k and v.
    panels: &'a mut [T],
    /// A tile of q, and one of the output.
    q: &'a mut [T],
    out: &'a mut [T],
    line: &'a mut [T],
    dline: &'a mut [T],
}

/// The rows of each sequence that `index` names, ascending, with their places in it.
fn by_sequence(bounds: &[u32], index: &[u32]) -> Vec<Vec<(usize, usize)>> {
    let mut picked = vec![Vec::new(); bounds.len() - 1];
    for (out, &row) in index.iter().enumerate() {
        let sequence = bounds.partition_point(|&b| b <= row) - 1;
        picked[sequence].push(((row - bounds[sequence]) as usize, out));
    }
    picked.iter_mut().for_each(|rows| rows.sort_unstable());
    picked
}

/// Runs `body` for every sequence and, in turn, each `together` heads, with the queries that `index` names.
fn for_each_head<T: Float>(
    spec: &Attention,
    input: &Input<'_, T>,
    (index, together): (Option<&[u32]>, usize),
    scratch: &mut [T],
    body: impl Fn(Task<'_>, Scratch<'_, T>) + Sync,
) {
    let windows =
        |bounds: &[u32]| bounds.windows(2).map(|w| (w[0] as usize, (w[1] - w[0]) as usize)).collect::<Vec<_>>();
    let picked = index.map(|index| by_sequence(input.bounds, index));
    let sequences = windows(input.bounds).into_iter().zip(windows(input.kv_bounds)).enumerate();
    let tasks: Vec<Task<'_>> = sequences
        .flat_map(|(sequence, ((start, len), (kv_start, kv_len)))| {
            let picked = picked.as_ref().map(|picked| &picked[sequence][..]);
            (0..spec.heads).step_by(together).map(move |head| {
                let kv_head = head / (spec.heads / spec.kv_heads);
                Task { sequence, start, len, kv_start, kv_len, head, heads: together, kv_head, picked }
            })
        })
        .filter(|t| t.count() > 0)
        .collect();
    let longest = tasks.iter().map(|t| t.len).max().unwrap_or(0);
    let kv_longest = tasks.iter().map(|t| t.kv_len).max().unwrap_or(0);
    let each = self::scratch(1, spec, input.h, longest, kv_longest);
    assert!(each * rayon::current_num_threads() <= scratch.len(), "scratch for every thread");
    let base = Shared(scratch.as_mut_ptr());
    let base = &base;
    tasks.into_par_iter().with_max_len(8).for_each(|task| {
        let slot = rayon::current_thread_index().unwrap_or(0);
        // SAFETY: each thread of the pool has its own part of the scratch, and the body does not yield to the pool.
        let own = unsafe { std::slice::from_raw_parts_mut(base.0.add(slot * each), each) };
        let (tiles, rest) = own.split_at_mut(2 * TILE * kv_longest);
        let (mask, rest) = rest.split_at_mut(kv_longest);
        let (panels, rest) = rest.split_at_mut(2 * kv_longest * input.h);
        let (q, rest) = rest.split_at_mut(TILE * input.h);
        let (out, lines) = rest.split_at_mut(TILE * input.h);
        let (line, dline) = lines.split_at_mut(lines.len() / 2);
        let used = if spec.buckets.is_some() { task.len + task.kv_len - 1 } else { 0 };
        body(task, Scratch { tiles, mask, panels, q, out, line: &mut line[..used], dline: &mut dline[..used] });
    });
}

/// These rows of a view.
fn tile<T>(v: View<*const T>, rows: &Range<usize>) -> View<*const T> {
    v.part(rows.clone(), 0..v.cols)
}

/// Reads a head's bias line.
fn read_line<T: Float>(spec: &Attention, input: &Input<'_, T>, task: Task<'_>, head: usize, line: &mut [T]) {
    if let Some(bias) = input.bias {
        line.iter_mut().zip(task.buckets(spec)).for_each(|(l, bucket)| *l = bias[bucket * spec.heads + head]);
    }
}

/// Turns products of query row `i` with these keys into scores: adds the bias, hides what it does not see.
fn finish_scores<T: Float>(
    spec: &Attention,
    task: Task<'_>,
    i: usize,
    keys: &Range<usize>,
    line: &[T],
    scores: &mut [T],
) {
    if !line.is_empty() {
        add(&line[task.line_of(i, keys)], scores);
    }
    let seen = seen(spec, i, task.kv_len);
    scores[..seen.start - keys.start].fill(T::NEG_INFINITY);
    scores[seen.end - keys.start..].fill(T::NEG_INFINITY);
}

pub(super) fn forward<T: Float>(
    spec: &Attention,
    input: &Input<'_, T>,
    index: Option<&[u32]>,
    scratch: &mut [T],
    out: &mut [T],
    lse: Option<&mut [T]>,
) {
    let (heads, h, d) = (spec.heads, input.h, input.inner);
    let (out, lse) = (Shared(out.as_mut_ptr()), lse.map(|lse| Shared(lse.as_mut_ptr())));
    let (out, lse) = (&out, &lse);
    for_each_head(spec, input, (index, 1), scratch, |task, scratch| {
        let Scratch { tiles, mask, panels, q, out: tile_out, line, .. } = scratch;
        let [k, v] = input.keys_and_values(task, panels);
        let head = task.head;
        let dropout = HeadDropout::new(spec.dropout, head);
        read_line(spec, input, task, head, line);
        for t in task.tiles(*spec) {
            let q = input.queries(task, head, &t, q);
            let Tile { first, rows, keys } = t;
            let n = keys.len();
            let scores = &mut tiles[..rows * n];
            let s = View::new(scores.as_mut_ptr(), rows, n, n);
            // SAFETY: the views lie in q, k and in this thread's scratch.
            unsafe { input.multiply(spec.scale, q, tile(k, &keys).t(), 0.0, s) };
            for (j, s) in scores.chunks_exact_mut(n).enumerate() {
                let (i, out_row) = task.query(first + j);
                finish_scores(spec, task, i, &keys, line, s);
                let row_lse = softmax(s);
                if let Some(lse) = lse {
                    // SAFETY: this task's rows and head.
                    unsafe { *lse.0.add(out_row * heads + head) = row_lse };
                }
                if let Some(dropout) = dropout {
                    dropout.row(task.start + i, &mut mask[..keys.end]);
                    multiply(&mask[keys.clone()], s);
                }
            }
            let p = View::new(scores.as_ptr(), rows, n, n);
            // SAFETY: this task's rows and columns of `out`.
            let at = |row: usize| unsafe { out.0.add(row * d + head * h) };
            if task.picked.is_none() {
                // SAFETY: as above.
                unsafe { input.multiply(1.0, p, tile(v, &keys), 0.0, View::new(at(task.start + first), rows, h, d)) };
                continue;
            }
            // SAFETY: the tile is this thread's.
            unsafe { input.multiply(1.0, p, tile(v, &keys), 0.0, View::new(tile_out.as_mut_ptr(), rows, h, h)) };
            for (j, row) in tile_out.chunks_exact(h).take(rows).enumerate() {
                // SAFETY: as above; `row` is scratch.
                unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), at(task.query(first + j).1), h) };
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
    (lse, dout): (Option<&[T]>, &[T]),
    scratch: &mut [T],
    gradients: Gradients<'_, T>,
) {
    let (heads, h, d) = (spec.heads, input.h, input.inner);
    let dq = Shared(gradients.dq.as_mut_ptr());
    let dkv = Shared(gradients.dkv.map_or(dq.0, <[T]>::as_mut_ptr));
    let dbias = gradients.dbias.map(|dbias| Shared(dbias.as_mut_ptr()));
    let (dq, dkv, dbias) = (&dq, &dkv, &dbias);
    let group = heads / spec.kv_heads;
    for_each_head(spec, input, (None, group), scratch, |task, scratch| {
        let Scratch { tiles, mask, panels, q, line, dline, .. } = scratch;
        let [k, v] = input.keys_and_values(task, panels);
        let [dk_at, dv_at] = input.kv_offsets(task);
        let (scores, dscores) = tiles.split_at_mut(tiles.len() / 2);
        let stride = input.kv.cols();
        // SAFETY: this task's rows and columns of the gradients.
        let [dk, dv] = [dk_at, dv_at].map(|at| View::new(unsafe { dkv.0.add(at) }, task.kv_len, h, stride));
        let mut beta = 0.0;
        if spec.window.is_some() {
            // no tile sees all keys
            for row in 0..task.kv_len {
                for x in [dk, dv] {
                    // SAFETY: as above.
                    unsafe { std::slice::from_raw_parts_mut(x.at(row, 0), h) }.fill(T::ZERO);
                }
            }
            beta = 1.0;
        }
        for head in task.head..task.head + task.heads {
            let dropout = HeadDropout::new(spec.dropout, head);
            read_line(spec, input, task, head, line);
            dline.fill(T::ZERO);
            for t in task.tiles(*spec) {
                let qt = input.queries(task, head, &t, q);
                let Tile { first, rows, keys } = t;
                let n = keys.len();
                let (scores, dscores) = (&mut scores[..rows * n], &mut dscores[..rows * n]);
                let (kt, vt) = (tile(k, &keys), tile(v, &keys));
                let s = View::new(scores.as_mut_ptr(), rows, n, n);
                let ds = View::new(dscores.as_mut_ptr(), rows, n, n);
                // SAFETY: row and columns of this task inside `dout`.
                let dot = unsafe { dout.as_ptr().add((task.start + first) * d + head * h) };
                let dot = View::new(dot, rows, h, d);
                // SAFETY: the views lie in q, k, v, `dout` and this thread's scratch.
                unsafe {
                    input.multiply(spec.scale, qt, kt.t(), 0.0, s);
                    input.multiply(1.0, dot, vt.t(), 0.0, ds);
                }
                for (i, (s, ds)) in scores.chunks_exact_mut(n).zip(dscores.chunks_exact_mut(n)).enumerate() {
                    finish_scores(spec, task, first + i, &keys, line, s);
                    let row = task.start + first + i;
                    match lse {
                        Some(lse) => softmax_by(lse[row * heads + head], s),
                        None => drop(softmax(s)),
                    }
                    match dropout {
                        Some(dropout) => {
                            dropout.row(row, &mut mask[..keys.end]);
                            backward_row(Some(&mask[keys.clone()]), s, ds);
                        }
                        None => backward_row(None, s, ds),
                    }
                    if !dline.is_empty() {
                        add(ds, &mut dline[task.line_of(first + i, &keys)]);
                    }
                }
                let p = View::new(scores.as_ptr(), rows, n, n);
                let ds = View::new(dscores.as_ptr(), rows, n, n);
                // SAFETY: this task's rows and columns of the gradients.
                unsafe {
                    let dq = dq.0.add((task.start + first) * input.q.cols() + head * h);
                    input.multiply(spec.scale, ds, kt, 0.0, View::new(dq, rows, h, input.q.cols()));
                    input.multiply(spec.scale, ds.t(), qt, beta, dk.part(keys.clone(), 0..h));
                    input.multiply(1.0, p.t(), dot, beta, dv.part(keys, 0..h));
                }
                // the tile that ran first wrote all of dk and dv, later ones add
                beta = 1.0;
            }
            if let (Some(dbias), Some(buckets)) = (dbias, spec.buckets) {
                let at = |bucket: usize| (task.sequence * buckets.count + bucket) * heads + head;
                // SAFETY: this task's sequence and head.
                unsafe {
                    (0..buckets.count).for_each(|bucket| *dbias.0.add(at(bucket)) = T::ZERO);
                    dline.iter().zip(task.buckets(spec)).for_each(|(&x, bucket)| *dbias.0.add(at(bucket)) += x);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use crate::{Attention, AttentionInput, Class, DType, Device, Dropout, Precision, rng::Key};

    fn spec(heads: usize, h: usize, dropout: Option<Dropout>) -> Attention {
        let scale = 1.0 / (h as f64).sqrt();
        Attention {
            heads,
            kv_heads: heads,
            scale,
            causal: false,
            window: None,
            first_position: 0,
            dropout,
            buckets: None,
        }
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
            device.empty(Class::Workspace, DType::F64, &[device.target().attention_scratch(&spec, h, 70, 70)]);
        let mut out = device.empty(Class::Workspace, DType::F64, &[n, d]);
        let mut lse = device.empty(Class::Workspace, DType::F64, &[n, heads]);
        let b = device.tensor(Class::Workspace, &[4], &bounds);
        let input = AttentionInput { q: (&qkv).into(), kv: None, bounds: &b, bias: None };
        device.kernels().attention(&spec, &input, None, &mut scratch, &mut out, Some(&mut lse));
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

    /// Heads that share keys and values, keys of a window alone: equal to softmax by definition, by tiles and by picked rows.
    #[test]
    fn grouped_heads_and_windows_match_the_definition() {
        let (device, heads, kv_heads, h) = (Device::cpu(), 6, 2, 3);
        let (d, columns, bounds) = (heads * h, (heads + 2 * kv_heads) * h, [0_u32, 3, 203]);
        let n = 203;
        let qkv = random(&device, 1, &[n, columns]);
        for window in [None, Some(1), Some(4), Some(70), Some(1000)] {
            let spec = Attention { kv_heads, causal: true, window, ..spec(heads, h, None) };
            let mut scratch =
                device.empty(Class::Workspace, DType::F64, &[device.target().attention_scratch(&spec, h, 200, 200)]);
            let b = device.tensor(Class::Workspace, &[3], &bounds);
            let input = AttentionInput { q: (&qkv).into(), kv: None, bounds: &b, bias: None };
            let mut out = device.empty(Class::Workspace, DType::F64, &[n, d]);
            device.kernels().attention(&spec, &input, None, &mut scratch, &mut out, None);
            let x = qkv.as_slice::<f64>();
            let at = |row: usize, column: usize| x[row * columns + column];
            for (i, head) in (0..n).flat_map(|i| (0..heads).map(move |head| (i, head))) {
                let start = if i < 3 { 0 } else { 3 };
                let (kv, first) = (head / 3, start.max((i + 1).saturating_sub(window.unwrap_or(n))));
                let (k, v) = (d + kv * h, d + (kv_heads + kv) * h);
                let score = |j| (0..h).map(|c| at(i, head * h + c) * at(j, k + c)).sum::<f64>() / (h as f64).sqrt();
                let total: f64 = (first..=i).map(|j| score(j).exp()).sum();
                for c in 0..h {
                    let want: f64 = (first..=i).map(|j| score(j).exp() / total * at(j, v + c)).sum();
                    assert!((out.as_slice::<f64>()[i * d + head * h + c] - want).abs() < 1e-12, "row {i}, {window:?}");
                }
            }
            let picked = [0_u32, 2, 5, 100, 190, 202];
            let index = device.tensor(Class::Workspace, &[picked.len()], &picked);
            let mut rows = device.empty(Class::Workspace, DType::F64, &[picked.len(), d]);
            device.kernels().attention(&spec, &input, Some(&index), &mut scratch, &mut rows, None);
            let all = out.as_slice::<f64>();
            let same = |(i, x): (usize, &f64)| (x - all[picked[i / d] as usize * d + i % d]).abs() < 1e-12;
            assert!(rows.as_slice::<f64>().iter().enumerate().all(same), "{window:?}");
        }
    }

    /// In bf16 each factor is off by at most u = 2⁻⁸ of itself. Scores are off by δ ≤ ((1 + u)² − 1)·scale·max Σ|q||k|, probabilities then by
    /// a factor within e^±2δ, so that the output is off by at most ((1 + u)²·e^2δ − 1)·max |v|. f32's own rounding is far below.
    #[test]
    fn bf16_is_within_its_bound_and_picked_rows_are_those_of_the_whole() {
        let (heads, h, n) = (2, 8, 70);
        let d = heads * h;
        let numbers: Vec<f32> = (0..n * 3 * d).map(|i| Key::new(4).normal(i as u64) as f32).collect();
        let picked = [1_u32, 5, 64, 69];
        let run = |precision, index: Option<&[u32]>| {
            let device = Device::cpu_with(precision);
            let k = device.kernels();
            let spec = spec(heads, h, None);
            let qkv = device.tensor(Class::Workspace, &[n, 3 * d], &numbers);
            let bounds = device.tensor(Class::Workspace, &[2], &[0, n as u32]);
            let mut scratch =
                device.empty(Class::Workspace, DType::F32, &[device.target().attention_scratch(&spec, h, n, n)]);
            let mut out = device.empty(Class::Workspace, DType::F32, &[index.map_or(n, <[_]>::len), d]);
            let input = AttentionInput { q: (&qkv).into(), kv: None, bounds: &bounds, bias: None };
            let index = index.map(|index| device.tensor(Class::Workspace, &[index.len()], index));
            k.attention(&spec, &input, index.as_ref(), &mut scratch, &mut out, None);
            out.as_slice::<f32>().to_vec()
        };
        let (exact, rounded) = (run(Precision::F32, None), run(Precision::Bf16, None));
        let row = |i: usize, part: usize, head: usize| &numbers[i * 3 * d + part * d + head * h..][..h];
        let relative = (1.0 + 2.0_f32.powi(-8)).powi(2);
        for (i, head) in (0..n).flat_map(|i| (0..heads).map(move |head| (i, head))) {
            let sizes = (0..n).map(|j| row(i, 0, head).iter().zip(row(j, 1, head)).map(|(q, k)| (q * k).abs()).sum());
            let delta = (relative - 1.0) / (h as f32).sqrt() * sizes.fold(0.0, f32::max);
            let largest = (0..n).flat_map(|j| row(j, 2, head)).fold(0.0, |m: f32, v| m.max(v.abs()));
            for c in i * d + head * h..i * d + (head + 1) * h {
                assert!((exact[c] - rounded[c]).abs() <= (relative * (2.0 * delta).exp() - 1.0) * largest);
            }
        }
        assert_ne!(exact, rounded);
        let rows: Vec<f32> = picked.iter().flat_map(|&i| &rounded[i as usize * d..][..d]).copied().collect();
        assert_eq!(run(Precision::Bf16, Some(&picked)), rows);
    }

    #[test]
    fn dropout_of_probabilities_keeps_the_mean() {
        let (device, n) = (Device::cpu(), 40);
        let qkv = random(&device, 2, &[n, 6]);
        let bounds = device.tensor(Class::Workspace, &[2], &[0, n as u32]);
        let run = |dropout| {
            let k = device.kernels();
            let spec = spec(1, 2, dropout);
            let mut scratch =
                device.empty(Class::Workspace, DType::F64, &[device.target().attention_scratch(&spec, 2, n, n)]);
            let mut out = device.empty(Class::Workspace, DType::F64, &[n, 2]);
            let mut lse = device.empty(Class::Workspace, DType::F64, &[n, 1]);
            let input = AttentionInput { q: (&qkv).into(), kv: None, bounds: &bounds, bias: None };
            k.attention(&spec, &input, None, &mut scratch, &mut out, Some(&mut lse));
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
