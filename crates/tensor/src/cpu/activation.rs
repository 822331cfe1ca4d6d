//! Activations, elementwise, and their gradients.

use rayon::prelude::*;

use super::codes::Reader;
use super::rowwise::{CHUNK, mask_row, rows_per_chunk, threshold};
use super::vectorised;
use crate::dtype::Float;
use crate::kernels::{Activation, Dropout};

/// √(2/π) and the cubic's coefficient in the tanh form.
const TANH_SCALE: f64 = 0.797_884_560_802_865_4;
const TANH_CUBIC: f64 = 0.044_715;

vectorised! {
    fn activate_chunk<T: Float>(form: Activation, x: &mut [T]) {
        let half = T::of(0.5);
        match form {
            Activation::Gelu => {
                let root = T::of(std::f64::consts::FRAC_1_SQRT_2);
                x.iter_mut().for_each(|x| *x = half * *x * (T::ONE + (*x * root).erf()));
            }
            Activation::GeluTanh => {
                let (s, c) = (T::of(TANH_SCALE), T::of(TANH_CUBIC));
                x.iter_mut().for_each(|x| *x = half * *x * (T::ONE + (s * (*x + c * *x * *x * *x)).tanh()));
            }
            Activation::Silu => x.iter_mut().for_each(|x| *x = *x / (T::ONE + (T::ZERO - *x).exp())),
        }
    }

    fn derivative_chunk<T: Float>(form: Activation, x: &[T], dy: &mut [T]) {
        let half = T::of(0.5);
        match form {
            Activation::Gelu => {
                let (root, density) = (T::of(std::f64::consts::FRAC_1_SQRT_2), T::of(0.398_942_280_401_432_7));
                dy.iter_mut().zip(x).for_each(|(dy, &x)| {
                    *dy *= half * (T::ONE + (x * root).erf()) + x * density * (-half * x * x).exp();
                });
            }
            Activation::GeluTanh => {
                let (s, c) = (T::of(TANH_SCALE), T::of(TANH_CUBIC));
                dy.iter_mut().zip(x).for_each(|(dy, &x)| {
                    let t = (s * (x + c * x * x * x)).tanh();
                    let inner = s * (T::ONE + T::of(3.0) * c * x * x);
                    *dy *= half * (T::ONE + t) + half * x * (T::ONE - t * t) * inner;
                });
            }
            Activation::Silu => dy.iter_mut().zip(x).for_each(|(dy, &x)| {
                let share = T::ONE / (T::ONE + (T::ZERO - x).exp());
                *dy *= share * (T::ONE + x * (T::ONE - share));
            }),
        }
    }

    fn tanh_backward_chunk<T: Float>(y: &[T], dy: &mut [T]) {
        dy.iter_mut().zip(y).for_each(|(dy, &y)| *dy *= T::ONE - y * y);
    }
}

/// Runs `body` for each row of `y` (n, d) and the same row of `x` (n, c).
fn with_rows<T: Float>(x: Reader<'_, T>, d: usize, y: &mut [T], body: impl Fn(&[T], &mut [T]) + Sync) {
    let rows = rows_per_chunk(d);
    y.par_chunks_mut(rows * d).enumerate().for_each_init(
        || vec![T::ZERO; x.cols()],
        |buffer, (chunk, y)| {
            y.chunks_exact_mut(d).enumerate().for_each(|(i, y)| body(x.row(chunk * rows + i, buffer), y));
        },
    );
}

pub(super) fn activate<T: Float>(form: Activation, x: Option<Reader<'_, T>>, y: &mut [T]) {
    match x {
        None => y.par_chunks_mut(CHUNK).for_each(|y| activate_chunk(form, y)),
        Some(x) => with_rows(x, x.cols(), y, |x, y| {
            y.copy_from_slice(x);
            activate_chunk(form, y);
        }),
    }
}

pub(super) fn activate_backward<T: Float>(form: Activation, x: Reader<'_, T>, dy: &mut [T]) {
    with_rows(x, x.cols(), dy, |x, dy| derivative_chunk(form, x, dy));
}

pub(super) fn tanh<T: Float>(x: &mut [T]) {
    x.par_chunks_mut(CHUNK).for_each(|x| x.iter_mut().for_each(|x| *x = x.tanh()));
}

pub(super) fn tanh_backward<T: Float>(y: &[T], dy: &mut [T]) {
    dy.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).for_each(|(dy, y)| tanh_backward_chunk(y, dy));
}

vectorised! {
    fn multiply_chunk<T: Float>(x: &[T], y: &mut [T]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y *= x);
    }

    /// `x` is what stays of max(x, 0) under `mask`.
    fn relu_row<T: Float>(mask: Option<&[T]>, x: &mut [T]) {
        x.iter_mut().for_each(|x| *x = if *x > T::ZERO { *x } else { T::ZERO });
        if let Some(mask) = mask {
            x.iter_mut().zip(mask).for_each(|(x, &m)| *x *= m);
        }
    }

    /// A bit an element: whether it is above 0.
    fn positive_bits<T: Float>(x: &[T], bits: &mut [u8]) {
        for (x, byte) in x.chunks(8).zip(bits) {
            *byte = x.iter().rev().fold(0, |byte, &x| byte << 1 | u8::from(x > T::ZERO));
        }
    }

    fn relu_backward_row<T: Float>(factor: T, signs: &[u8], bits: bool, dy: &mut [T]) {
        if bits {
            for (dy, &byte) in dy.chunks_mut(8).zip(signs) {
                for (i, dy) in dy.iter_mut().enumerate() {
                    *dy = if byte >> i & 1 == 1 { *dy * factor } else { T::ZERO };
                }
            }
            return;
        }
        for (dy, &code) in dy.iter_mut().zip(signs) {
            *dy = if code > 0 { *dy * factor } else { T::ZERO };
        }
    }
}

pub(super) fn gated<T: Float>(form: Activation, x: Reader<'_, T>, y: &mut [T]) {
    let f = x.cols() / 2;
    with_rows(x, f, y, |x, y| {
        y.copy_from_slice(&x[..f]);
        activate_chunk(form, y);
        multiply_chunk(&x[f..], y);
    });
}

pub(super) fn gated_backward<T: Float>(form: Activation, x: Reader<'_, T>, dy: &[T], dx: &mut [T]) {
    let f = x.cols() / 2;
    let rows = rows_per_chunk(2 * f);
    dx.par_chunks_mut(rows * 2 * f).zip(dy.par_chunks(rows * f)).enumerate().for_each_init(
        || vec![T::ZERO; 2 * f],
        |buffer, (chunk, (dx, dy))| {
            for (i, (dx, dy)) in dx.chunks_exact_mut(2 * f).zip(dy.chunks_exact(f)).enumerate() {
                let (gate, up) = x.row(chunk * rows + i, buffer).split_at(f);
                let (dgate, dup) = dx.split_at_mut(f);
                dup.copy_from_slice(gate);
                activate_chunk(form, dup);
                multiply_chunk(dy, dup);
                dgate.copy_from_slice(dy);
                multiply_chunk(up, dgate);
                derivative_chunk(form, gate, dgate);
            }
        },
    );
}

pub(super) fn relu<T: Float>(dropout: Option<Dropout>, d: usize, x: &mut [T], bits: Option<&mut [u8]>) {
    let (rows, bytes) = (rows_per_chunk(d), d.div_ceil(8));
    let chunks = x.len() / d;
    let bits: Vec<&mut [u8]> = match bits {
        Some(bits) => bits.chunks_mut(rows * bytes).collect(),
        None => (0..chunks.div_ceil(rows)).map(|_| Default::default()).collect(),
    };
    x.par_chunks_mut(rows * d).zip(bits).enumerate().for_each_init(
        || vec![T::ZERO; if dropout.is_some() { d } else { 0 }],
        |mask, (chunk, (x, bits))| {
            for (i, x) in x.chunks_exact_mut(d).enumerate() {
                if let Some(Dropout { key, p }) = dropout {
                    let (dropped, factor) = threshold(p);
                    mask_row(key, (chunk * rows + i) as u32, dropped, T::of(factor), mask);
                }
                relu_row(dropout.map(|_| &mask[..]), x);
                if !bits.is_empty() {
                    positive_bits(x, &mut bits[i * bytes..][..bytes]);
                }
            }
        },
    );
}

pub(super) fn relu_backward<T: Float>(dropout: Option<Dropout>, d: usize, signs: &[u8], dy: &mut [T]) {
    let factor = T::of(dropout.map_or(1.0, |dropout| threshold(dropout.p).1));
    let rows = rows_per_chunk(d);
    let each = signs.len() / (dy.len() / d).max(1);
    dy.par_chunks_mut(rows * d).zip(signs.par_chunks(rows * each)).for_each(|(dy, signs)| {
        let rows = dy.chunks_exact_mut(d).zip(signs.chunks_exact(each));
        rows.for_each(|(dy, signs)| relu_backward_row(factor, signs, each < d, dy));
    });
}
