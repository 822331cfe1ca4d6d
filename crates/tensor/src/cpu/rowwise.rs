//! Elementwise and rowwise kernels.

use rayon::prelude::*;

use super::vectorised;
use crate::dtype::{Element, Float};
use crate::kernels::Dropout;
use crate::rng::{Key, LANES};

/// Elements that one task handles: long enough to pay for scheduling, short enough to stay in cache.
pub(super) const CHUNK: usize = 1 << 14;
/// Columns that one task of a column reduction handles.
const COLUMNS: usize = 64;
/// Rows summed before their sum joins the total, so that rounding grows with the root of the number of rows.
const BLOCK: usize = 128;
/// Independent partial sums of a row reduction.
const WIDE: usize = 16;

pub(super) fn rows_per_chunk(d: usize) -> usize {
    (CHUNK / d.max(1)).max(1)
}

/// Σ f(x_i, …) over slices of one length, in [`WIDE`] interleaved partial sums.
#[inline(always)]
pub(super) fn sum<T: Float, const K: usize>(x: [&[T]; K], f: impl Fn([T; K]) -> T) -> T {
    let mut acc = [T::ZERO; WIDE];
    let whole = x[0].len() / WIDE * WIDE;
    for i in (0..whole).step_by(WIDE) {
        // one check of bounds for all lanes, so that they become one vector
        let lanes = x.map(|x| &x[i..i + WIDE]);
        for (l, a) in acc.iter_mut().enumerate() {
            *a += f(lanes.map(|x| x[l]));
        }
    }
    for i in whole..x[0].len() {
        acc[i - whole] += f(x.map(|x| x[i]));
    }
    halve(acc, |a, b| a + b)
}

/// All lanes in one, pair by pair.
#[inline(always)]
fn halve<T: Float>(mut acc: [T; WIDE], f: impl Fn(T, T) -> T) -> T {
    let mut half = WIDE / 2;
    while half > 0 {
        for l in 0..half {
            acc[l] = f(acc[l], acc[l + half]);
        }
        half /= 2;
    }
    acc[0]
}

/// The largest f(x_i), in [`WIDE`] lanes.
#[inline(always)]
pub(super) fn largest<T: Float>(x: &[T], f: impl Fn(T) -> T) -> T {
    let mut acc = [T::NEG_INFINITY; WIDE];
    let whole = x.chunks_exact(WIDE);
    acc.iter_mut().zip(whole.remainder()).for_each(|(a, &x)| *a = Float::max(*a, f(x)));
    for x in whole {
        for (l, a) in acc.iter_mut().enumerate() {
            *a = Float::max(*a, f(x[l]));
        }
    }
    halve(acc, Float::max)
}

pub(super) fn fill<T: Element>(x: &mut [T], value: T) {
    x.par_chunks_mut(CHUNK).for_each(|x| x.fill(value));
}

pub(super) fn copy<T: Element>(x: &[T], y: &mut [T]) {
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| y.copy_from_slice(x));
}

pub(super) fn broadcast_row<T: Float>(row: &[T], y: &mut [T]) {
    y.par_chunks_mut(rows_per_chunk(row.len()) * row.len())
        .for_each(|y| y.chunks_exact_mut(row.len()).for_each(|y| y.copy_from_slice(row)));
}

pub(super) fn scale<T: Float>(factor: T, x: &mut [T]) {
    x.par_chunks_mut(CHUNK).for_each(|x| x.iter_mut().for_each(|x| *x *= factor));
}

vectorised! {
    fn add_chunk<T: Float>(x: &[T], y: &mut [T]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y += x);
    }
}

pub(super) fn add<T: Float>(x: &[T], y: &mut [T]) {
    assert_eq!(x.len(), y.len());
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| add_chunk(x, y));
}

vectorised! {
    /// `y_c += Σ_i x_ic` for the columns `first..first + y.len()`.
    fn column_chunk<T: Float>(x: &[T], d: usize, first: usize, y: &mut [T]) {
        for start in (0..x.len()).step_by(BLOCK * d) {
            let mut acc = [T::ZERO; COLUMNS];
            for row in (start..x.len().min(start + BLOCK * d)).step_by(d) {
                let x = &x[row + first..row + first + y.len()];
                acc.iter_mut().zip(x).for_each(|(a, &x)| *a += x);
            }
            y.iter_mut().zip(acc).for_each(|(y, a)| *y += a);
        }
    }
}

pub(super) fn add_column_sum<T: Float>(x: &[T], y: &mut [T]) {
    let d = y.len();
    y.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, y)| column_chunk(x, d, i * COLUMNS, y));
}

vectorised! {
    fn norms_chunk<T: Float>(x: &[T], d: usize, y: &mut [T]) {
        for (x, y) in x.chunks_exact(d).zip(y) {
            *y = sum([x], |[x]| x * x).sqrt();
        }
    }
}

pub(super) fn row_norms<T: Float>(x: &[T], d: usize, y: &mut [T]) {
    let rows = rows_per_chunk(d);
    y.par_chunks_mut(rows).zip(x.par_chunks(rows * d)).for_each(|(y, x)| norms_chunk(x, d, y));
}

/// `out_c = f(16 random bits of element (row, c))`. A block of 128 bits serves eight elements: words and halves are spread so that
/// `LANES` blocks fill 8·LANES consecutive elements.
#[inline(always)]
fn map_random<T>(key: Key, row: u32, out: &mut [T], f: impl Fn(u16) -> T) {
    for (i, out) in out.chunks_mut(8 * LANES).enumerate() {
        let words = key.blocks(row, (i * LANES) as u32);
        for (j, out) in out.chunks_mut(LANES).enumerate() {
            let (word, shift) = (&words[j / 2], 16 * (j as u32 % 2));
            out.iter_mut().zip(word).for_each(|(o, w)| *o = f((w >> shift) as u16));
        }
    }
}

/// A dropout probability in units of 2⁻¹⁶, and the factor of what stays: 1/(1−p) of the rounded p, so that the mean is exact.
pub(super) fn threshold(p: f32) -> (u32, f64) {
    let dropped = (f64::from(p) * 65536.0).round().min(65535.0);
    (dropped as u32, 65536.0 / (65536.0 - dropped))
}

vectorised! {
    /// 16 random bits for each element of a row.
    pub(super) fn random_row(key: Key, row: u32, out: &mut [u16]) {
        map_random(key, row, out, |r| r);
    }

    /// `mask_c = factor` where element (row, c) stays, else 0.
    pub(super) fn mask_row<T: Float>(key: Key, row: u32, dropped: u32, factor: T, mask: &mut [T]) {
        map_random(key, row, mask, |r| if u32::from(r) >= dropped { factor } else { T::ZERO });
    }

    fn multiply_chunk<T: Float>(x: &[T], y: &mut [T]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y *= x);
    }
}

/// Row j of `x` gets the mask of row `index_j`, or of row j.
pub(super) fn dropout<T: Float>(Dropout { key, p }: Dropout, index: Option<&[u32]>, d: usize, x: &mut [T]) {
    let (dropped, factor) = threshold(p);
    let rows = rows_per_chunk(d);
    x.par_chunks_mut(rows * d).enumerate().for_each_init(
        || vec![T::ZERO; d],
        |mask, (chunk, x)| {
            for (i, x) in x.chunks_exact_mut(d).enumerate() {
                let j = chunk * rows + i;
                let row = index.map_or(j as u32, |index| index[j]);
                mask_row(key, row, dropped, T::of(factor), mask);
                multiply_chunk(mask, x);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_replays_its_mask_and_keeps_the_mean() {
        let (n, d) = (300, 77);
        let dropout_of = |p| {
            let mut x = vec![1.0_f64; n * d];
            dropout(Dropout { key: Key::new(3).named("site"), p }, None, d, &mut x);
            x
        };
        let x = dropout_of(0.1);
        assert_eq!(x, dropout_of(0.1));
        let mean = x.iter().sum::<f64>() / (n * d) as f64;
        assert!((mean - 1.0).abs() < 4.0 * (0.1 / 0.9 / (n * d) as f64).sqrt(), "{mean}");
        let kept = x.iter().find(|&&x| x > 0.0).unwrap();
        assert!((kept - 1.0 / 0.9).abs() < 1e-4);
        assert!(dropout_of(0.0).iter().all(|&x| x == 1.0));
    }

    /// Each sum is the definition's, within n·ε of the sum of magnitudes.
    #[test]
    fn column_sums_and_norms_match_the_definition() {
        let (n, d) = (301, 130);
        let x: Vec<f32> = (0..n * d).map(|i| Key::new(9).normal(i as u64) as f32).collect();
        let (mut s, mut norms) = (vec![1.0_f32; d], vec![0.0_f32; n]);
        add_column_sum(&x, &mut s);
        row_norms(&x, d, &mut norms);
        for c in 0..d {
            let column = || (0..n).map(|i| f64::from(x[i * d + c]));
            let bound = n as f64 * f64::from(f32::EPSILON) * (1.0 + column().map(f64::abs).sum::<f64>());
            assert!((f64::from(s[c]) - 1.0 - column().sum::<f64>()).abs() < bound);
        }
        for i in 0..n {
            let want = x[i * d..(i + 1) * d].iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            assert!((f64::from(norms[i]) / want - 1.0).abs() < d as f64 * f64::from(f32::EPSILON));
        }
    }
}
