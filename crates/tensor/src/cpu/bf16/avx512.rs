//! Panels and micro-kernel for AVX512-BF16.
//!
//! A panel holds the operand in pairs of neighbouring columns: for each pair one vector, which has the pairs of [`LANES`] rows,
//! as `vdpbf16ps` takes them. Missing rows, and the partner of an odd last column, are zero.
//!
//! `vdpbf16ps` adds to a sum the product of the pairs' second elements, then that of the first, by fused multiply-adds that round
//! to nearest, read subnormal numbers as zero and return zero for them (Intel, Software Developer's Manual, volume 2).

use std::arch::x86_64::*;
use std::mem::transmute;

use super::{From, GROUP, LANES};
use crate::cpu::matmul::View;

/// Rows of c in a tile of the micro-kernel. A tile's 8 · 3 sums stay in registers and are several times as many as the latency of
/// `vdpbf16ps` needs to be hidden.
const TILE: usize = 8;
/// How far ahead of their use elements of a row are fetched: two turns of the loop.
const AHEAD: usize = 4 * LANES;

pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

pub(super) fn panel_words(depth: usize) -> usize {
    LANES * depth.div_ceil(2)
}

/// The first `count` lanes.
fn first(count: usize) -> __mmask16 {
    ((1_u32 << count.min(LANES)) - 1) as __mmask16
}

/// Fetches a cache line before its use.
#[inline(always)]
fn prefetch<const HINT: i32>(p: *const f32) {
    #[allow(unused_unsafe, reason = "unsafe in the oldest Rust that we build with")]
    // SAFETY: any address may be prefetched: nothing is read.
    unsafe {
        _mm_prefetch::<HINT>(p.cast());
    }
}

/// Both vectors in bf16, `low` in the first half.
#[target_feature(enable = "avx512f,avx512bf16")]
fn round(low: __m512, high: __m512) -> __m512i {
    // SAFETY: vectors of one size, in which every bit pattern is valid.
    unsafe { transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}

/// See [`super::Unit::pack`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn pack(rows: View<*const f32>, panel: *mut u32) {
    let steps = rows.cols.div_ceil(2);
    if rows.col_stride == 1 {
        for step in (0..steps).step_by(LANES) {
            // SAFETY: as `pack` requires.
            let pairs = transpose(unsafe { row_pairs(rows, 2 * step) });
            for (i, &pairs) in pairs.iter().enumerate().take(steps - step) {
                // SAFETY: the panel has room for `steps` vectors.
                unsafe { _mm512_store_si512(panel.add((step + i) * LANES).cast(), pairs) };
            }
        }
    } else {
        for step in 0..steps {
            // SAFETY: as above.
            unsafe { _mm512_store_si512(panel.add(step * LANES).cast(), column_pairs(rows, 2 * step)) };
        }
    }
}

/// Of each row sixteen pairs, from `column` on.
///
/// # Safety
/// The view is valid to read, its rows of neighbours.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn row_pairs(rows: View<*const f32>, column: usize) -> [__m512i; LANES] {
    let left = rows.cols - column;
    let lanes = [first(left), first(left.saturating_sub(LANES))];
    let mut pairs = [_mm512_setzero_si512(); LANES];
    for (i, pairs) in pairs.iter_mut().enumerate() {
        // a missing row is zero, and not read
        let [low, high] = if i < rows.rows { lanes } else { [0; 2] };
        let row = rows.at(i, column);
        for ahead in [AHEAD, AHEAD + LANES] {
            prefetch::<_MM_HINT_T0>(row.wrapping_add(ahead));
        }
        // SAFETY: these lanes are elements of the view.
        *pairs =
            unsafe { round(_mm512_maskz_loadu_ps(low, row), _mm512_maskz_loadu_ps(high, row.wrapping_add(LANES))) };
    }
    pairs
}

/// The pairs of two columns.
///
/// # Safety
/// The view is valid to read, its columns of neighbours.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn column_pairs(rows: View<*const f32>, column: usize) -> __m512i {
    const INTERLEAVED: [u16; 2 * LANES] = {
        let mut order = [0; 2 * LANES];
        let mut i = 0;
        while i < 2 * LANES {
            order[i] = (i / 2 + i % 2 * LANES) as u16;
            i += 1;
        }
        order
    };
    let read = |column: usize| {
        let lanes = if column < rows.cols { first(rows.rows) } else { 0 };
        // SAFETY: these lanes are elements of the view.
        unsafe { _mm512_maskz_loadu_ps(lanes, rows.at(0, column)) }
    };
    // SAFETY: arrays and vectors of one size, in which every bit pattern is valid.
    let order = unsafe { transmute::<[u16; 2 * LANES], __m512i>(INTERLEAVED) };
    _mm512_permutexvar_epi16(order, round(read(column), read(column + 1)))
}

/// The transpose of sixteen vectors of sixteen words: within quarters of the vectors first, then of whole quarters.
#[target_feature(enable = "avx512f")]
fn transpose(x: [__m512i; LANES]) -> [__m512i; LANES] {
    let mut z = x;
    for i in (0..LANES).step_by(4) {
        let [a, b, c, d] = [x[i], x[i + 1], x[i + 2], x[i + 3]];
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        (z[i], z[i + 1]) = (_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
        let (ab, cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        (z[i + 2], z[i + 3]) = (_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    }
    // quarter q of z[4g + j] now has word 4q + j of rows 4g to 4g + 3
    let mut y = z;
    for j in 0..4 {
        let [a, b, c, d] = [z[j], z[j + 4], z[j + 8], z[j + 12]];
        let (ab, cd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d));
        (y[j], y[j + 8]) = (_mm512_shuffle_i32x4::<0x88>(ab, cd), _mm512_shuffle_i32x4::<0xdd>(ab, cd));
        let (ab, cd) = (_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d));
        (y[j + 4], y[j + 12]) = (_mm512_shuffle_i32x4::<0x88>(ab, cd), _mm512_shuffle_i32x4::<0xdd>(ab, cd));
    }
    y
}

/// See [`super::Unit::multiply`].
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn multiply(
    alpha: f32,
    [a, b]: [*const u32; 2],
    depth: usize,
    (beta, from): From,
    c: View<*mut f32>,
) {
    let steps = depth.div_ceil(2);
    for column in (0..c.cols).step_by(GROUP) {
        for row in (0..c.rows).step_by(TILE) {
            // SAFETY: as this function requires; a tile's rows lie in one panel, its columns in up to three.
            unsafe {
                let a = a.add(row / LANES * LANES * steps + row % LANES);
                let b = b.add(column * steps);
                let (rows, columns) = (row..c.rows.min(row + TILE), column..c.cols.min(column + GROUP));
                let from = (beta, from.part(rows.clone(), columns.clone()));
                let c = c.part(rows, columns);
                match c.cols.div_ceil(LANES) {
                    1 => tile::<1>(alpha, [a, b], steps, from, c),
                    2 => tile::<2>(alpha, [a, b], steps, from, c),
                    _ => tile::<3>(alpha, [a, b], steps, from, c),
                }
            }
        }
    }
}

/// The micro-kernel: [`TILE`] rows by `N` panels of columns.
///
/// # Safety
/// As [`super::Unit::multiply`]; a is the place of the first row in its panel.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile<const N: usize>(
    alpha: f32,
    [a, b]: [*const u32; 2],
    steps: usize,
    (beta, from): From,
    c: View<*mut f32>,
) {
    // SAFETY: vectors of one size, in which every bit pattern is valid.
    let pairs = |x: __m512i| unsafe { transmute::<__m512i, __m512bh>(x) };
    let place = |i: usize, j: usize| c.at(i, j * LANES);
    for i in 0..c.rows {
        for j in 0..N {
            prefetch::<_MM_HINT_ET0>(place(i, j));
        }
    }
    let mut sums = [[_mm512_setzero_ps(); N]; TILE];
    for step in 0..steps {
        let b: [_; N] = std::array::from_fn(|j| {
            // SAFETY: a vector of panel j.
            pairs(unsafe { _mm512_load_si512(b.add((j * steps + step) * LANES).cast()) })
        });
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: row i is one of the panel's.
            let a = pairs(_mm512_set1_epi32(unsafe { *a.add(step * LANES + i) } as i32));
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = _mm512_dpbf16_ps(*sum, a, b);
            }
        }
    }
    let scale = _mm512_set1_ps(beta);
    for (i, sums) in sums.iter().enumerate().take(c.rows) {
        for (j, &sum) in sums.iter().enumerate() {
            let lanes = first(c.cols - j * LANES);
            let mut y = _mm512_mul_ps(_mm512_set1_ps(alpha), sum);
            // SAFETY: these lanes are elements of c, and of what it is added to.
            unsafe {
                if beta != 0.0 {
                    y = _mm512_fmadd_ps(scale, _mm512_maskz_loadu_ps(lanes, from.at(i, j * LANES)), y);
                }
                _mm512_mask_storeu_ps(place(i, j), lanes, y);
            }
        }
    }
}
