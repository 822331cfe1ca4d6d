//! AVX-512, for f32, and with AVX512-BF16 for bf16.

use std::arch::x86_64::*;
use std::mem::transmute;
use std::ops::Range;

use super::vector::{self, Format, Vector};
use super::{Destination, LANES, Operand, Panels, Place};

pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
}

pub(super) fn bf16_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

/// See [`super::Unit::pack`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn pack_f32(operand: &Operand, place: Place, panels: Panels) {
    // SAFETY: as this function requires.
    unsafe { vector::pack::<F32>(operand, place, panels) }
}

/// See [`super::Unit::pack`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn pack_bf16(operand: &Operand, place: Place, panels: Panels) {
    // SAFETY: as this function requires.
    unsafe { vector::pack::<Bf16>(operand, place, panels) }
}

/// See [`super::Unit::multiply`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn multiply_f32(panels: [*const u32; 2], slice: Range<usize>, targets: &[Destination], place: Place) {
    // SAFETY: as this function requires.
    unsafe { vector::multiply::<F32>(panels, slice, targets, place) }
}

/// See [`super::Unit::multiply`].
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn multiply_bf16(
    panels: [*const u32; 2],
    slice: Range<usize>,
    targets: &[Destination],
    place: Place,
) {
    // SAFETY: as this function requires.
    unsafe { vector::multiply::<Bf16>(panels, slice, targets, place) }
}

struct Avx512;

/// The first `count` lanes.
#[inline(always)]
fn first(count: usize) -> __mmask16 {
    ((1_u32 << count.min(LANES)) - 1) as __mmask16
}

impl Vector for Avx512 {
    type Floats = __m512;
    type Words = __m512i;
    type Block = [__m512i; 16];
    const WIDTH: usize = 16;

    #[inline(always)]
    unsafe fn zeros() -> __m512 {
        // SAFETY: inlined where the instruction is, as in all of these.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32, count: usize) -> __m512 {
        // SAFETY: as this function requires; lanes that are masked are not read.
        unsafe { _mm512_maskz_loadu_ps(first(count), from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, count: usize, x: __m512) {
        // SAFETY: as above.
        unsafe { _mm512_mask_storeu_ps(to, first(count), x) };
    }

    #[inline(always)]
    unsafe fn multiply(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn multiply_add(sum: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, sum) }
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u32) -> __m512i {
        // SAFETY: as this function requires.
        unsafe { _mm512_set1_epi32(*from as i32) }
    }

    #[inline(always)]
    unsafe fn read(from: *const u32) -> __m512i {
        // SAFETY: as this function requires.
        unsafe { _mm512_load_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn write(to: *mut u32, count: usize, words: __m512i) {
        debug_assert!(count == LANES);
        // SAFETY: as this function requires.
        unsafe { _mm512_store_si512(to.cast(), words) };
    }

    #[inline(always)]
    unsafe fn floats(words: __m512i) -> __m512 {
        // SAFETY: vectors of one size, in which every bit pattern is valid.
        unsafe { transmute::<__m512i, __m512>(words) }
    }

    #[inline(always)]
    unsafe fn words(floats: __m512) -> __m512i {
        // SAFETY: as above.
        unsafe { transmute::<__m512, __m512i>(floats) }
    }

    /// Within quarters of the vectors first, then of whole quarters.
    #[inline(always)]
    unsafe fn transpose(x: [__m512i; 16]) -> [__m512i; 16] {
        // SAFETY: inlined where the instructions are.
        unsafe {
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
    }
}

struct F32;

impl Format for F32 {
    type Vector = Avx512;
    const COLUMNS: usize = 1;
    const PANEL: usize = LANES;
    const TILE_ROWS: usize = 8;
    const TILE_VECTORS: usize = 3;

    #[inline(always)]
    unsafe fn of_row(read: impl Fn(usize) -> __m512) -> __m512i {
        // SAFETY: as this function requires.
        unsafe { Avx512::words(read(0)) }
    }

    #[inline(always)]
    unsafe fn of_columns(read: impl Fn(usize) -> __m512) -> __m512i {
        // SAFETY: as this function requires.
        unsafe { Avx512::words(read(0)) }
    }

    #[inline(always)]
    unsafe fn multiply_add(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: as this function requires.
        unsafe { Avx512::multiply_add(sum, Avx512::floats(a), Avx512::floats(b)) }
    }
}

/// `vdpbf16ps` adds to a sum the product of the pairs' second elements, then that of the first, by fused multiply-adds that round
/// to nearest, read subnormal numbers as zero and return zero for them (Intel, Software Developer's Manual, volume 2).
struct Bf16;

impl Bf16 {
    /// Both vectors in bf16, `low` in the first half.
    #[inline(always)]
    unsafe fn round(low: __m512, high: __m512) -> __m512i {
        // SAFETY: vectors of one size, in which every bit pattern is valid; inlined where the instruction is.
        unsafe { transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
    }
}

impl Format for Bf16 {
    type Vector = Avx512;
    const COLUMNS: usize = 2;
    const PANEL: usize = LANES;
    const TILE_ROWS: usize = 8;
    const TILE_VECTORS: usize = 3;

    #[inline(always)]
    unsafe fn of_row(read: impl Fn(usize) -> __m512) -> __m512i {
        // SAFETY: as this function requires.
        unsafe { Self::round(read(0), read(1)) }
    }

    #[inline(always)]
    unsafe fn of_columns(read: impl Fn(usize) -> __m512) -> __m512i {
        const INTERLEAVED: [u16; 2 * LANES] = {
            let mut order = [0; 2 * LANES];
            let mut i = 0;
            while i < 2 * LANES {
                order[i] = (i / 2 + i % 2 * LANES) as u16;
                i += 1;
            }
            order
        };
        // SAFETY: arrays and vectors of one size, in which every bit pattern is valid; inlined where the instructions are.
        unsafe {
            let order = transmute::<[u16; 2 * LANES], __m512i>(INTERLEAVED);
            _mm512_permutexvar_epi16(order, Self::round(read(0), read(1)))
        }
    }

    #[inline(always)]
    unsafe fn multiply_add(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_dpbf16_ps(sum, transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b)) }
    }
}
