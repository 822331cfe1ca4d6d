//! The optimizer's arithmetic: one pass over weights, gradient and moments.

use rayon::prelude::*;

use super::vectorised;
use crate::dtype::Float;
use crate::kernels::AdamW;

const CHUNK: usize = 1 << 14;

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

    fn adamw_chunk<T: Float>(step: &AdamW, g: &[T], w: &mut [T], m: &mut [T], v: &mut [T]) {
        let scale = T::of(step.grad_scale);
        let (b1, b2) = (T::of(step.beta1), T::of(step.beta2));
        let (c1, c2) = (T::of(1.0 - step.beta1), T::of(1.0 - step.beta2));
        let exponent = i32::try_from(step.step).unwrap_or(i32::MAX);
        let root = T::of((1.0 - step.beta2.powi(exponent)).sqrt().recip());
        let rate = T::of(step.lr / (1.0 - step.beta1.powi(exponent)));
        let (decay, eps) = (T::of(1.0 - step.lr * step.weight_decay), T::of(step.eps));
        for (((&g, w), m), v) in g.iter().zip(w).zip(m).zip(v) {
            let g = g * scale;
            *m = b1 * *m + c1 * g;
            *v = b2 * *v + c2 * g * g;
            *w = *w * decay - rate * *m / (v.sqrt() * root + eps);
        }
    }
}

pub(super) fn sum_squares<T: Float>(x: &[T]) -> f64 {
    // partial sums are collected in order, so that threads do not change the total
    x.par_chunks(CHUNK).map(sum_squares_chunk).collect::<Vec<f64>>().iter().sum()
}

pub(super) fn adamw<T: Float>(step: &AdamW, g: &[T], w: &mut [T], m: &mut [T], v: &mut [T]) {
    g.par_chunks(CHUNK)
        .zip(w.par_chunks_mut(CHUNK))
        .zip(m.par_chunks_mut(CHUNK))
        .zip(v.par_chunks_mut(CHUNK))
        .for_each(|(((g, w), m), v)| adamw_chunk(step, g, w, m, v));
}
