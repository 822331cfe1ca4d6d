//! The same product without bf16 instructions: panels hold the rounded operands in f32, by rows.

use super::LANES;
use crate::cpu::matmul::{View, gemm};

pub(super) fn panel_words(depth: usize) -> usize {
    LANES * depth
}

/// To the nearest bf16, ties to even; subnormal numbers to zero, as AVX512-BF16 does.
fn round(x: f32) -> f32 {
    let bits = x.to_bits();
    if x.is_nan() {
        return f32::from_bits((bits | 0x0040_0000) & 0xffff_0000);
    }
    if x.is_subnormal() {
        return f32::from_bits(bits & 0x8000_0000);
    }
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

pub(super) unsafe fn pack(rows: View<*const f32>, panel: *mut f32) {
    for i in 0..rows.rows {
        for j in 0..rows.cols {
            unsafe { *panel.add(i * rows.cols + j) = round(*rows.at(i, j)) };
        }
    }
}

pub(super) unsafe fn multiply(alpha: f32, [a, b]: [*const f32; 2], depth: usize, beta: f32, c: View<*mut f32>) {
    let (a, b) = (View::new(a, c.rows, depth, depth), View::new(b, c.cols, depth, depth));
    unsafe { gemm(f64::from(alpha), a, b.t(), f64::from(beta), c, false) }
}
