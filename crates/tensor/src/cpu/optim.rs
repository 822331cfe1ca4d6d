//! The optimizer's arithmetic: one pass over weights, gradient and moments.

use rayon::prelude::*;

use super::vectorised;
use crate::dtype::Float;
use crate::kernels::AdamW;

/// Elements that one task handles; whole blocks of 8-bit moments.
pub(super) const CHUNK: usize = 1 << 14;

vectorised! {
    fn sum_squares_chunk<T: Float>(x: &[T]) -> f64 {
        let mut acc = [0.0_f64; 16];
        let whole = x.chunks_exact(16);
        for (a, &x) in acc.iter_mut().zip(whole.remainder()) {
            *a += x.f64() * x.f64();
        }
        for x in whole {
            for (a, &x) in acc.iter_mut().zip(x) {
                *a += x.f64() * x.f64();
            }
        }
        acc.iter().sum()
    }

    fn adamw_chunk<T: Float>(rule: &Rule<T>, g: &[T], w: &mut [T], m: &mut [T], v: &mut [T]) {
        for (((&g, w), m), v) in g.iter().zip(w).zip(m).zip(v) {
            (*m, *v) = rule.moments(g, *m, *v);
            *w = rule.weight(*w, *m, v.sqrt());
        }
    }
}

/// One step's rule for one weight, its factors rounded to the weights' type.
pub(super) struct Rule<T> {
    scale: T,
    beta: [T; 2],
    rest: [T; 2],
    rate: T,
    root: T,
    decay: T,
    eps: T,
}

impl<T: Float> Rule<T> {
    pub(super) fn new(step: &AdamW, factor: f64) -> Self {
        let beta = [step.beta1, step.beta2];
        let exponent = i32::try_from(step.step).unwrap_or(i32::MAX);
        let [unbiased1, unbiased2] = beta.map(|beta| 1.0 - beta.powi(exponent));
        Self {
            scale: T::of(factor),
            beta: beta.map(T::of),
            rest: beta.map(|beta| T::of(1.0 - beta)),
            rate: T::of(step.lr / unbiased1),
            root: T::of(unbiased2.sqrt().recip()),
            decay: T::of(1.0 - step.lr * step.weight_decay),
            eps: T::of(step.eps),
        }
    }

    /// The moments with gradient `g` in them.
    #[inline(always)]
    pub(super) fn moments(&self, g: T, m: T, v: T) -> (T, T) {
        let g = g * self.scale;
        (self.beta[0] * m + self.rest[0] * g, self.beta[1] * v + self.rest[1] * g * g)
    }

    /// The weight after its step; `r` is the root of the second moment.
    #[inline(always)]
    pub(super) fn weight(&self, w: T, m: T, r: T) -> T {
        w * self.decay - self.rate * m / (r * self.root + self.eps)
    }
}

pub(super) fn sum_squares<T: Float>(x: &[T]) -> f64 {
    // partial sums are collected in order, so that threads do not change the total
    x.par_chunks(CHUNK).map(sum_squares_chunk).collect::<Vec<f64>>().iter().sum()
}

pub(super) fn clip(sums: &[f64], most: f64) -> f64 {
    if !sums.iter().all(|x| x.is_finite()) {
        return f64::NAN;
    }
    if most > 0.0 { (most / (sums[1..].iter().sum::<f64>().sqrt() + 1e-6)).min(1.0) } else { 1.0 }
}

pub(super) fn adamw<T: Float>(step: &AdamW, factor: f64, g: &[T], w: &mut [T], m: &mut [T], v: &mut [T]) {
    let rule = Rule::new(step, factor);
    g.par_chunks(CHUNK)
        .zip(w.par_chunks_mut(CHUNK))
        .zip(m.par_chunks_mut(CHUNK))
        .zip(v.par_chunks_mut(CHUNK))
        .for_each(|(((g, w), m), v)| adamw_chunk(&rule, g, w, m, v));
}
