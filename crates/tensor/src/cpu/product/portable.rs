//! The bf16 product on any machine: panels hold the rounded operand in f32, row by row, and the f32 product multiplies them.

use std::ops::Range;

use super::gemm::gemm;
use super::{Destination, Operand, Panels, Place, Sources};
use crate::cpu::view::View;

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
pub(super) unsafe fn pack(operand: &Operand, Place { rows, cols }: Place, panels: Panels) {
    let Sources::One(matrix) = operand.sources else { unreachable!("sums are not rounded") };
    let part = matrix.part(rows, cols);
    // panels are rows one behind the other
    let to = panels.ptr.cast::<f32>();
    for i in 0..part.rows {
        for j in 0..part.cols {
            // SAFETY: as this function requires.
            unsafe { *to.add(i * part.cols + j) = round(*part.at(i, j)) };
        }
    }
}

/// See [`super::Unit::multiply`].
pub(super) unsafe fn multiply(
    [a, b]: [*const f32; 2],
    slice: Range<usize>,
    targets: &[Destination],
    Place { rows, cols }: Place,
) {
    for target in targets {
        let (beta, from) = target.added_to(&slice);
        let (from, c) = (from.part(rows.clone(), cols.clone()), target.c.part(rows.clone(), cols.clone()));
        // the f32 product adds to its own places alone
        if beta != 0.0 && from.ptr != c.ptr.cast_const() {
            for i in 0..c.rows {
                // SAFETY: rows of what is added and of c, which share no place.
                unsafe { std::ptr::copy_nonoverlapping(from.at(i, 0), c.at(i, 0), c.cols) };
            }
        }
        let depth = slice.len();
        let (a, b) = (View::new(a, c.rows, depth, depth), View::new(b, c.cols, depth, depth));
        // SAFETY: as this function requires.
        unsafe { gemm(crate::Precision::F32, f64::from(target.alpha), a, b.t(), f64::from(beta), c, false) }
    }
}
