//! The same product on any machine: panels hold the rounded operand in f32, row by row, and the f32 product multiplies them.

use super::{From, LANES};
use crate::cpu::matmul::{self, View};

pub(super) fn panel_words(depth: usize) -> usize {
    LANES * depth
}

/// To the nearest bf16, ties to even; subnormal numbers become zero, NaNs quiet ones.
#[inline]
pub(super) fn round(x: f32) -> f32 {
    const UPPER: u32 = 0xffff_0000;
    let bits = x.to_bits();
    f32::from_bits(if x.is_nan() {
        bits & UPPER | 0x0040_0000
    } else if x.abs() < f32::MIN_POSITIVE {
        bits & 0x8000_0000
    } else {
        (bits + 0x7fff + (bits >> 16 & 1)) & UPPER
    })
}

/// See [`super::Unit::pack`].
pub(super) unsafe fn pack(rows: View<*const f32>, panel: *mut f32) {
    for i in 0..rows.rows {
        for j in 0..rows.cols {
            // SAFETY: as this function requires.
            unsafe { *panel.add(i * rows.cols + j) = round(*rows.at(i, j)) };
        }
    }
}

/// See [`super::Unit::multiply`].
pub(super) unsafe fn multiply(
    alpha: f32,
    [a, b]: [*const f32; 2],
    depth: usize,
    (beta, from): From,
    c: View<*mut f32>,
) {
    // the f32 product adds to its own places alone
    if beta != 0.0 && from.ptr != c.ptr.cast_const() {
        for i in 0..c.rows {
            // SAFETY: rows of what is added and of c, which share no place.
            unsafe { std::ptr::copy_nonoverlapping(from.at(i, 0), c.at(i, 0), c.cols) };
        }
    }
    let (a, b) = (View::new(a, c.rows, depth, depth), View::new(b, c.cols, depth, depth));
    // SAFETY: as this function requires.
    unsafe { matmul::gemm(crate::Precision::F32, f64::from(alpha), a, b.t(), f64::from(beta), c, false) }
}
