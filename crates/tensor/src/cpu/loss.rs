//! Losses, averaged over their rows, with their gradients.

use crate::dtype::Float;

pub(super) fn cross_entropy<T: Float>(logits: &[T], c: usize, labels: &[u32], loss: &mut [T], dlogits: &mut [T]) {
    let rows = 1.0 / labels.len() as f64;
    let mut total = 0.0;
    for ((x, dx), &label) in logits.chunks_exact(c).zip(dlogits.chunks_exact_mut(c)).zip(labels) {
        let max = x.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x.f64()));
        let sum: f64 = x.iter().map(|&x| (x.f64() - max).exp()).sum();
        total += max + sum.ln() - x[label as usize].f64();
        for (j, (dx, &x)) in dx.iter_mut().zip(x).enumerate() {
            let target = f64::from(u8::from(j == label as usize));
            *dx = T::of(((x.f64() - max).exp() / sum - target) * rows);
        }
    }
    loss[0] = T::of(total * rows);
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
