//! Products of matrices in memory: the only caller of the GEMM crates, and of our own kernels.

use std::any::TypeId;

use gemm_common::Parallelism;

use super::{Destination, Unit};
use crate::Precision;
use crate::cpu::instructions::{self, Instructions};
use crate::cpu::view::View;
use crate::dtype::Float;

/// `c = beta·c + alpha·a·b`, of f32 operands as `precision` rounds them; with beta 0, c is not read.
///
/// # Safety
/// The views must lie in memory that is valid to read (a, b) and to write by this call alone (c). In a and b the elements of each row or
/// those of each column are neighbours, in c those of each row.
pub(in crate::cpu) unsafe fn gemm<T: Float>(
    precision: Precision,
    alpha: f64,
    a: View<*const T>,
    b: View<*const T>,
    beta: f64,
    c: View<*mut T>,
    parallel: bool,
) {
    debug_assert!(a.cols == b.rows && a.rows == c.rows && b.cols == c.cols);
    // without threads f32 products are small, and packing would take longer than what it saves; but the crate knows no limits
    let ours = |_: &Unit| parallel || precision == Precision::Bf16 || instructions::are_limited();
    if let Some(unit) = own::<T>(precision).filter(ours) {
        let ([a, b], c) = ([a, b].map(|x| x.with(x.ptr.cast())), c.with(c.ptr.cast()));
        let to = Destination { alpha: alpha as f32, from: (beta as f32, c.read()), c };
        // SAFETY: as this function requires; T is f32.
        return unsafe { unit.gemm(a, b, to, parallel) };
    }
    // columns of the crates' results are neighbours: theirs is the transpose of ours
    let (a, b, c) = if c.col_stride < c.row_stride { (b.t(), a.t(), c.t()) } else { (a, b, c) };
    macro_rules! multiply {
        ($float:ident, $crate_:ident) => {{
            let ([a, b], c) = ([a, b].map(|x| x.with(x.ptr.cast())), c.with(c.ptr.cast()));
            let threads = if parallel { Parallelism::Rayon(0) } else { Parallelism::None };
            // SAFETY: as this function requires; T is this type. In the crates' naming alpha scales what is there, beta the product.
            unsafe {
                $crate_::gemm::$float::get_gemm_fn()(
                    c.rows,
                    c.cols,
                    a.cols,
                    c.ptr,
                    c.col_stride as isize,
                    c.row_stride as isize,
                    beta != 0.0,
                    a.ptr,
                    a.col_stride as isize,
                    a.row_stride as isize,
                    b.ptr,
                    b.col_stride as isize,
                    b.row_stride as isize,
                    beta as $float,
                    alpha as $float,
                    false,
                    false,
                    false,
                    threads,
                )
            }
        }};
    }
    if TypeId::of::<T>() == TypeId::of::<f32>() {
        multiply!(f32, gemm_f32)
    } else {
        debug_assert!(TypeId::of::<T>() == TypeId::of::<f64>());
        multiply!(f64, gemm_f64)
    }
}

/// What multiplies operands of this type, unless it is the GEMM crates.
pub(in crate::cpu) fn own<T: Float>(precision: Precision) -> Option<Unit> {
    (TypeId::of::<T>() == TypeId::of::<f32>()).then(|| Unit::of(precision)).flatten()
}

/// What f32 products use on this machine.
pub fn instructions() -> &'static str {
    Unit::of(Precision::F32).map_or(Instructions::Portable, Unit::needs).name()
}
