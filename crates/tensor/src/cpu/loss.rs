//! Losses, averaged over their rows, with their gradients.

use rayon::prelude::*;

use crate::dtype::Float;

pub(super) fn cross_entropy<T: Float>(logits: &[T], c: usize, labels: &[u32], loss: &mut [T], dlogits: &mut [T]) {
    let rows = 1.0 / labels.len() as f64;
    let row = |((x, dx), &label): ((&[T], &mut [T]), &u32)| {
        let max = x.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x.f64()));
        let sum: f64 = x.iter().map(|&x| (x.f64() - max).exp()).sum();
        for (dx, &x) in dx.iter_mut().zip(x) {
            *dx = T::of((x.f64() - max).exp() / sum * rows);
        }
        let label = label as usize;
        dx[label] = T::of(((x[label].f64() - max).exp() / sum - 1.0) * rows);
        max + sum.ln() - x[label].f64()
    };
    let parts = logits.par_chunks_exact(c).zip(dlogits.par_chunks_exact_mut(c)).zip(labels);
    // collected, so that the sum's order does not depend on the threads
    let losses: Vec<f64> = parts.map(row).collect();
    loss[0] = T::of(losses.iter().sum::<f64>() * rows);
}

pub(super) fn mean_squared_error<T: Float>(x: &[T], target: &[T], loss: &mut [T], dx: &mut [T]) {
    let inv = 1.0 / x.len() as f64;
    let mut total = 0.0;
    for ((&x, &t), dx) in x.iter().zip(target).zip(dx) {
        let e = x.f64() - t.f64();
        total += e * e;
        *dx = T::of(2.0 * e * inv);
    }
    loss[0] = T::of(total * inv);
}
