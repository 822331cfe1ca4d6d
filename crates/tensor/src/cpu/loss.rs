//! Losses, averaged over their rows, with their gradients.

use rayon::prelude::*;

use super::rowwise::{largest, sum};
use super::vectorised;
use crate::dtype::Float;

/// Terms that are summed in the matrix's type, before their sum is added in f64: 64 in each of 16 lanes, so that the sum of any number of them is good
/// to some 70 roundings of f32 at most.
const BLOCK: usize = 1024;

vectorised! {
    /// The largest of x, and Σ e^(x_i − largest).
    fn softmax_sum<T: Float>(x: &[T]) -> (T, f64) {
        let max = largest(x, |x| x);
        (max, x.chunks(BLOCK).map(|x| sum([x], |[x]| (x - max).exp()).f64()).sum())
    }

    fn softmax<T: Float>(max: T, factor: T, x: &mut [T]) {
        x.iter_mut().for_each(|x| *x = (*x - max).exp() * factor);
    }
}

pub(super) fn cross_entropy<T: Float>(logits: &mut [T], c: usize, labels: &[u32], loss: &mut [T], gradient: bool) {
    let rows = 1.0 / labels.len() as f64;
    let row = |(x, &label): (&mut [T], &u32)| {
        let ((max, sum), label) = (softmax_sum(x), label as usize);
        let below = x[label].f64() - max.f64();
        if gradient {
            softmax(max, T::of(rows / sum), x);
            x[label] = T::of((below.exp() / sum - 1.0) * rows);
        }
        sum.ln() - below
    };
    // collected, so that the sum's order does not depend on the threads
    let losses: Vec<f64> = logits.par_chunks_exact_mut(c).zip(labels).map(row).collect();
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
