//! Panels and micro-kernel for AVX512-BF16.
//!
//! A panel holds pairs of bf16 that are neighbours along the inner dimension: for each pair of columns of the operand, one
//! vector with the pairs of [`LANES`] rows, which is what `vdpbf16ps` takes. Missing rows and the partner of an odd last column
//! are zero.
//!
//! `vdpbf16ps` adds the product of a pair's second elements, then that of the first, in two fused multiply-adds that round to
//! nearest and take or leave subnormal numbers as zero. So does the conversion to bf16.

use std::arch::x86_64::*;

use super::LANES;
use crate::cpu::matmul::View;

/// Rows of c in a tile of the micro-kernel; its columns are up to three vectors. 24 sums in registers hide the latency of
/// `vdpbf16ps` several times over.
const TILE: usize = 8;

pub(super) fn available() -> bool {
    ["avx512f", "avx512bw"].len() == 2
        && is_x86_feature_detected!("avx512f")
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

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn load(p: *const f32, count: usize) -> __m512 {
    unsafe { _mm512_maskz_loadu_ps(first(count), p) }
}

/// The lanes of `low` and `high` in bf16, `low` in the first half.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn round(low: __m512, high: __m512) -> __m512i {
    // SAFETY: vectors of the same size, every bit pattern valid.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn pack(rows: View<*const f32>, panel: *mut u32) {
    unsafe { if rows.col_stride == 1 { pack_rows(rows, panel) } else { pack_columns(rows, panel) } }
}

/// Rows of neighbours: sixteen pairs of each row at a time, transposed.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pack_rows(rows: View<*const f32>, panel: *mut u32) {
    let steps = rows.cols.div_ceil(2);
    for step in (0..steps).step_by(LANES) {
        let left = rows.cols - 2 * step;
        let mut pairs = [_mm512_setzero_si512(); LANES];
        for (i, pairs) in pairs.iter_mut().enumerate().take(rows.rows) {
            unsafe {
                let p = rows.at(i, 2 * step);
                *pairs = round(load(p, left), load(p.wrapping_add(LANES), left.saturating_sub(LANES)));
            }
        }
        let pairs = transpose(pairs);
        for (i, &pairs) in pairs.iter().enumerate().take(steps - step) {
            unsafe { _mm512_store_si512(panel.add((step + i) * LANES).cast(), pairs) };
        }
    }
}

/// Columns of neighbours: two columns at a time, interleaved.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pack_columns(rows: View<*const f32>, panel: *mut u32) {
    let halves: [u16; 2 * LANES] = std::array::from_fn(|i| (i / 2 + i % 2 * LANES) as u16);
    let halves = unsafe { _mm512_loadu_si512(halves.as_ptr().cast()) };
    for step in 0..rows.cols.div_ceil(2) {
        unsafe {
            let even = load(rows.at(0, 2 * step), rows.rows);
            let odd = if 2 * step + 1 < rows.cols { load(rows.at(0, 2 * step + 1), rows.rows) } else { _mm512_setzero_ps() };
            let pairs = _mm512_permutexvar_epi16(halves, round(even, odd));
            _mm512_store_si512(panel.add(step * LANES).cast(), pairs);
        }
    }
}

/// Transposes words of four bytes: within quarters of the vectors, then the quarters.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose(x: [__m512i; LANES]) -> [__m512i; LANES] {
    let zero = _mm512_setzero_si512();
    let (mut y, mut z) = ([zero; LANES], [zero; LANES]);
    for i in 0..LANES / 2 {
        y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
        y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
    }
    // z[4 g + j] has words j, j + 4, j + 8, j + 12 of rows 4 g.. 4 g + 4
    for g in (0..LANES).step_by(4) {
        z[g] = _mm512_unpacklo_epi64(y[g], y[g + 2]);
        z[g + 1] = _mm512_unpackhi_epi64(y[g], y[g + 2]);
        z[g + 2] = _mm512_unpacklo_epi64(y[g + 1], y[g + 3]);
        z[g + 3] = _mm512_unpackhi_epi64(y[g + 1], y[g + 3]);
    }
    for j in 0..4 {
        let [a, b, c, d] = [z[j], z[j + 4], z[j + 8], z[j + 12]];
        let (even_low, even_high) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d));
        let (odd_low, odd_high) = (_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d));
        y[j] = _mm512_shuffle_i32x4::<0x88>(even_low, even_high);
        y[j + 8] = _mm512_shuffle_i32x4::<0xdd>(even_low, even_high);
        y[j + 4] = _mm512_shuffle_i32x4::<0x88>(odd_low, odd_high);
        y[j + 12] = _mm512_shuffle_i32x4::<0xdd>(odd_low, odd_high);
    }
    y
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn multiply(alpha: f32, [a, b]: [*const u32; 2], depth: usize, beta: f32, c: View<*mut f32>) {
    let steps = depth.div_ceil(2);
    for column in (0..c.cols).step_by(3 * LANES) {
        let left = c.cols - column;
        for row in (0..c.rows).step_by(TILE) {
            unsafe {
                let a = a.add(row / LANES * LANES * steps + row % LANES);
                let b = b.add(column * steps);
                let c = c.part(row..c.rows.min(row + TILE), column..c.cols.min(column + 3 * LANES));
                match left.div_ceil(LANES) {
                    1 => tile::<1>(alpha, [a, b], steps, beta, c),
                    2 => tile::<2>(alpha, [a, b], steps, beta, c),
                    _ => tile::<3>(alpha, [a, b], steps, beta, c),
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile<const N: usize>(alpha: f32, [a, b]: [*const u32; 2], steps: usize, beta: f32, c: View<*mut f32>) {
    let pair = |x: __m512i| -> __m512bh { unsafe { std::mem::transmute(x) } };
    let mut sums = [[_mm512_setzero_ps(); N]; TILE];
    for step in 0..steps {
        unsafe {
            let a = a.add(step * LANES);
            let b: [_; N] = std::array::from_fn(|j| pair(_mm512_load_si512(b.add((j * steps + step) * LANES).cast())));
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = pair(_mm512_set1_epi32(*a.add(i) as i32));
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = _mm512_dpbf16_ps(*sum, a, b);
                }
            }
        }
    }
    let (alpha, beta_vector) = (_mm512_set1_ps(alpha), _mm512_set1_ps(beta));
    for (i, sums) in sums.iter().enumerate().take(c.rows) {
        for (j, &sum) in sums.iter().enumerate() {
            let lanes = first(c.cols - j * LANES);
            let product = _mm512_mul_ps(alpha, sum);
            unsafe {
                let p = c.at(i, j * LANES);
                let y = if beta == 0.0 { product } else { _mm512_fmadd_ps(beta_vector, _mm512_maskz_loadu_ps(lanes, p), product) };
                _mm512_mask_storeu_ps(p, lanes, y);
            }
        }
    }
}
