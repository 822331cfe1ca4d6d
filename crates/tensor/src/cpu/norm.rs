//! Layer norm and root mean square norm.

use rayon::prelude::*;

use super::codes::{CodesMut, Reader, Rounding};
use super::rowwise::{rows_per_chunk, sum};
use super::vectorised;
use crate::dtype::Float;
use crate::rng::Key;

/// Rows whose contributions to dγ and dβ are summed before they join the total: the same chunks for any number of threads.
const ROWS: usize = 128;

vectorised! {
    /// ẑ of a row, and 1/σ.
    fn normalise<T: Float>(x: &[T], centred: bool, eps: T, z: &mut [T]) -> T {
        let d = x.len();
        let inv = T::of(1.0 / d as f64);
        let mean = if centred { sum([x], |[x]| x) * inv } else { T::ZERO };
        let var = sum([x], |[x]| (x - mean) * (x - mean)) * inv;
        let r = T::ONE / (var + eps).sqrt();
        z.iter_mut().zip(x).for_each(|(z, &x)| *z = (x - mean) * r);
        r
    }

    fn scale_row<T: Float>(gamma: &[T], beta: Option<&[T]>, z: &[T], y: &mut [T]) {
        y.iter_mut().zip(z).zip(gamma).for_each(|((y, &z), &g)| *y = g * z);
        if let Some(beta) = beta {
            y.iter_mut().zip(beta).for_each(|(y, &b)| *y += b);
        }
    }

    fn backward_row<T: Float>(z: &[T], r: T, gamma: &[T], centred: bool, dy: &mut [T]) {
        let d = gamma.len();
        let inv = T::of(1.0 / d as f64);
        let mean = if centred { sum([gamma, &*dy], |[g, dy]| g * dy) * inv } else { T::ZERO };
        let along = sum([gamma, &*dy, z], |[g, dy, z]| g * dy * z) * inv;
        dy.iter_mut().zip(gamma).zip(z).for_each(|((dy, &g), &z)| *dy = r * (g * *dy - mean - z * along));
    }

    fn add_product<T: Float>(x: &[T], z: &[T], y: &mut [T]) {
        y.iter_mut().zip(x).zip(z).for_each(|((y, &x), &z)| *y += x * z);
    }

    fn add<T: Float>(x: &[T], y: &mut [T]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y += x);
    }
}

/// Where ẑ goes.
pub(super) enum Kept<'a, T> {
    Nothing,
    Exact(&'a mut [T]),
    Coded(CodesMut<'a, T>),
}

impl<'a, T: Float> Kept<'a, T> {
    /// What belongs to each of `count` chunks of `rows` rows of `d` numbers.
    fn chunks(self, count: usize, rows: usize, d: usize) -> Vec<Self> {
        match self {
            Self::Nothing => (0..count).map(|_| Self::Nothing).collect(),
            Self::Exact(z) => z.chunks_mut(rows * d).map(Self::Exact).collect(),
            Self::Coded(target) => target.chunks(rows, d).into_iter().map(Self::Coded).collect(),
        }
    }
}

/// γ, β and ε.
#[derive(Clone, Copy)]
pub(super) struct Parameters<'a, T> {
    pub(super) gamma: &'a [T],
    pub(super) beta: Option<&'a [T]>,
    pub(super) eps: f64,
}

pub(super) fn forward<T: Float>(
    p: Parameters<'_, T>,
    x: &[T],
    y: &mut [T],
    (kept, key): (Kept<'_, T>, Option<Key>),
    r: Option<&mut [T]>,
) {
    let d = p.gamma.len();
    let (rows, eps, centred) = (rows_per_chunk(d), T::of(p.eps), p.beta.is_some());
    let n = x.len() / d;
    let mut none = vec![T::ZERO; if r.is_none() { n } else { 0 }];
    let r = r.unwrap_or(&mut none);
    let chunks = x.par_chunks(rows * d).zip(y.par_chunks_mut(rows * d)).zip(r.par_chunks_mut(rows));
    chunks.zip(kept.chunks(n.div_ceil(rows), rows, d)).enumerate().for_each_init(
        || (vec![T::ZERO; d], Rounding::new(key, d)),
        |(buffer, rounding), (chunk, (((x, y), r), mut kept))| {
            for (i, ((x, y), r)) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(r).enumerate() {
                let z = match &mut kept {
                    Kept::Exact(z) => &mut z[i * d..][..d],
                    _ => &mut buffer[..],
                };
                *r = normalise(x, centred, eps, z);
                scale_row(p.gamma, p.beta, z, y);
                if let Kept::Coded(target) = &mut kept {
                    target.write(i, buffer, rounding.row(chunk * rows + i));
                }
            }
        },
    );
}

pub(super) fn scale_rows<T: Float>(p: Parameters<'_, T>, z: Reader<'_, T>, y: &mut [T]) {
    let d = p.gamma.len();
    let rows = rows_per_chunk(d);
    y.par_chunks_mut(rows * d).enumerate().for_each_init(
        || vec![T::ZERO; d],
        |buffer, (chunk, y)| {
            for (i, y) in y.chunks_exact_mut(d).enumerate() {
                scale_row(p.gamma, p.beta, z.row(chunk * rows + i, buffer), y);
            }
        },
    );
}

/// `dx` over `dy`, if asked for, and the sums dγ, dβ.
pub(super) fn backward<T: Float>(
    z: Reader<'_, T>,
    r: &[T],
    p: Parameters<'_, T>,
    dy: &mut [T],
    dx: bool,
    [dgamma, dbeta]: [Option<&mut [T]>; 2],
) {
    let (gamma, centred) = (p.gamma, p.beta.is_some());
    let d = gamma.len();
    let sums = [dgamma.is_some(), dbeta.is_some()];
    let parts: Vec<[Vec<T>; 2]> = dy
        .par_chunks_mut(ROWS * d)
        .zip(r.par_chunks(ROWS))
        .enumerate()
        .map_init(
            || vec![T::ZERO; d],
            |buffer, (chunk, (dy, r))| {
                let mut part = sums.map(|wanted| vec![T::ZERO; if wanted { d } else { 0 }]);
                for (i, (dy, &r)) in dy.chunks_exact_mut(d).zip(r).enumerate() {
                    let z = z.row(chunk * ROWS + i, buffer);
                    if sums[0] {
                        add_product(dy, z, &mut part[0]);
                    }
                    if sums[1] {
                        add(dy, &mut part[1]);
                    }
                    if dx {
                        backward_row(z, r, gamma, centred, dy);
                    }
                }
                part
            },
        )
        .collect();
    for (sum, which) in [dgamma, dbeta].into_iter().zip(0..2) {
        if let Some(sum) = sum {
            parts.iter().for_each(|part| add(&part[which], sum));
        }
    }
}
