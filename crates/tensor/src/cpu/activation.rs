//! Activations, elementwise, and their gradients.

use rayon::prelude::*;

use super::rowwise::{CHUNK, mask_row, rows_per_chunk, threshold};
use super::vectorised;
use crate::dtype::Float;
use crate::kernels::{Dropout, Gelu};

/// √(2/π) and the cubic's coefficient in the tanh form.
const TANH_SCALE: f64 = 0.797_884_560_802_865_4;
const TANH_CUBIC: f64 = 0.044_715;

vectorised! {
    fn gelu_chunk<T: Float>(form: Gelu, x: &[T], y: &mut [T]) {
        let half = T::of(0.5);
        match form {
            Gelu::Erf => {
                let root = T::of(std::f64::consts::FRAC_1_SQRT_2);
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = half * x * (T::ONE + (x * root).erf()));
            }
            Gelu::Tanh => {
                let (s, c) = (T::of(TANH_SCALE), T::of(TANH_CUBIC));
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = half * x * (T::ONE + (s * (x + c * x * x * x)).tanh()));
            }
        }
    }

    fn gelu_backward_chunk<T: Float>(form: Gelu, x: &[T], dy: &mut [T]) {
        let half = T::of(0.5);
        match form {
            Gelu::Erf => {
                let (root, density) = (T::of(std::f64::consts::FRAC_1_SQRT_2), T::of(0.398_942_280_401_432_7));
                dy.iter_mut().zip(x).for_each(|(dy, &x)| {
                    *dy *= half * (T::ONE + (x * root).erf()) + x * density * (-half * x * x).exp();
                });
            }
            Gelu::Tanh => {
                let (s, c) = (T::of(TANH_SCALE), T::of(TANH_CUBIC));
                dy.iter_mut().zip(x).for_each(|(dy, &x)| {
                    let t = (s * (x + c * x * x * x)).tanh();
                    let inner = s * (T::ONE + T::of(3.0) * c * x * x);
                    *dy *= half * (T::ONE + t) + half * x * (T::ONE - t * t) * inner;
                });
            }
        }
    }

    fn tanh_backward_chunk<T: Float>(y: &[T], dy: &mut [T]) {
        dy.iter_mut().zip(y).for_each(|(dy, &y)| *dy *= T::ONE - y * y);
    }
}

pub(super) fn gelu<T: Float>(form: Gelu, x: &[T], y: &mut [T]) {
    assert_eq!(x.len(), y.len());
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| gelu_chunk(form, x, y));
}

pub(super) fn gelu_backward<T: Float>(form: Gelu, x: &[T], dy: &mut [T]) {
    assert_eq!(x.len(), dy.len());
    dy.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(dy, x)| gelu_backward_chunk(form, x, dy));
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

    /// `x` is what stays of max(x, 0) under `mask`, a bit an element says whether that is above 0.
    fn relu_row<T: Float>(mask: Option<&[T]>, x: &mut [T], bits: &mut [u8]) {
        x.iter_mut().for_each(|x| *x = if *x > T::ZERO { *x } else { T::ZERO });
        if let Some(mask) = mask {
            x.iter_mut().zip(mask).for_each(|(x, &m)| *x *= m);
        }
        for (x, byte) in x.chunks(8).zip(bits) {
            *byte = x.iter().rev().fold(0, |byte, &x| byte << 1 | u8::from(x > T::ZERO));
        }
    }

    fn relu_backward_row<T: Float>(factor: T, bits: &[u8], dy: &mut [T]) {
        for (dy, &byte) in dy.chunks_mut(8).zip(bits) {
            for (i, dy) in dy.iter_mut().enumerate() {
                *dy = if byte >> i & 1 == 1 { *dy * factor } else { T::ZERO };
            }
        }
    }
}

pub(super) fn gated_gelu<T: Float>(form: Gelu, f: usize, x: &[T], y: &mut [T]) {
    let rows = rows_per_chunk(f);
    y.par_chunks_mut(rows * f).zip(x.par_chunks(rows * 2 * f)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(f).zip(x.chunks_exact(2 * f)) {
            gelu_chunk(form, &x[..f], y);
            multiply_chunk(&x[f..], y);
        }
    });
}

pub(super) fn gated_gelu_backward<T: Float>(form: Gelu, f: usize, x: &[T], dy: &[T], dx: &mut [T]) {
    let rows = rows_per_chunk(f);
    let chunks = dx.par_chunks_mut(rows * 2 * f).zip(x.par_chunks(rows * 2 * f)).zip(dy.par_chunks(rows * f));
    chunks.for_each(|((dx, x), dy)| {
        for ((dx, x), dy) in dx.chunks_exact_mut(2 * f).zip(x.chunks_exact(2 * f)).zip(dy.chunks_exact(f)) {
            let ((gate, up), (dgate, dup)) = (x.split_at(f), dx.split_at_mut(f));
            gelu_chunk(form, gate, dup);
            multiply_chunk(dy, dup);
            dgate.copy_from_slice(dy);
            multiply_chunk(up, dgate);
            gelu_backward_chunk(form, gate, dgate);
        }
    });
}

pub(super) fn relu<T: Float>(dropout: Option<Dropout>, d: usize, x: &mut [T], bits: &mut [u8]) {
    let (rows, bytes) = (rows_per_chunk(d), d.div_ceil(8));
    x.par_chunks_mut(rows * d).zip(bits.par_chunks_mut(rows * bytes)).enumerate().for_each_init(
        || vec![T::ZERO; if dropout.is_some() { d } else { 0 }],
        |mask, (chunk, (x, bits))| {
            for (i, (x, bits)) in x.chunks_exact_mut(d).zip(bits.chunks_exact_mut(bytes)).enumerate() {
                if let Some(Dropout { key, p }) = dropout {
                    let (dropped, factor) = threshold(p);
                    mask_row(key, (chunk * rows + i) as u32, dropped, T::of(factor), mask);
                }
                relu_row(dropout.map(|_| &mask[..]), x, bits);
            }
        },
    );
}

pub(super) fn relu_backward<T: Float>(dropout: Option<Dropout>, d: usize, bits: &[u8], dy: &mut [T]) {
    let factor = T::of(dropout.map_or(1.0, |dropout| threshold(dropout.p).1));
    let (rows, bytes) = (rows_per_chunk(d), d.div_ceil(8));
    dy.par_chunks_mut(rows * d).zip(bits.par_chunks(rows * bytes)).for_each(|(dy, bits)| {
        let rows = dy.chunks_exact_mut(d).zip(bits.chunks_exact(bytes));
        rows.for_each(|(dy, bits)| relu_backward_row(factor, bits, dy));
    });
}
