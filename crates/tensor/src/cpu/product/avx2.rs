//! AVX2 with fused multiply-adds, for f32 as they are or rounded to bf16.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::transmute;
use std::ops::Range;

use super::vector::{self, Format, Vector};
use super::{Destination, Operand, Panels, Place};

pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// See [`super::Unit::pack`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn pack_f32(operand: &Operand, place: Place, panels: Panels) {
    // SAFETY: as this function requires.
    unsafe { vector::pack::<F32<false>>(operand, place, panels) }
}

/// See [`super::Unit::pack`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn pack_rounded(operand: &Operand, place: Place, panels: Panels) {
    // SAFETY: as this function requires.
    unsafe { vector::pack::<F32<true>>(operand, place, panels) }
}

/// See [`super::Unit::multiply`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply(panels: [*const u32; 2], slice: Range<usize>, targets: &[Destination], place: Place) {
    // SAFETY: as this function requires.
    unsafe { vector::multiply::<F32<false>>(panels, slice, targets, place) }
}

/// Rows of a in a panel: those of a tile, so that it reads its panel from one end to the other.
pub(super) const PANEL_ROWS: usize = 6;

struct Avx2;

/// Lanes before `count` have their highest bit set.
#[inline(always)]
unsafe fn first(count: usize) -> __m256i {
    const MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: eight of the sixteen; inlined where the instruction is.
    unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(8 - count.min(8)).cast()) }
}

impl Vector for Avx2 {
    type Floats = __m256;
    type Words = __m256i;
    type Block = [__m256i; 8];
    const WIDTH: usize = 8;

    #[inline(always)]
    unsafe fn zeros() -> __m256 {
        // SAFETY: inlined where the instruction is, as in all of these.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32, count: usize) -> __m256 {
        // SAFETY: as this function requires; lanes that are masked are not read.
        unsafe { if count >= 8 { _mm256_loadu_ps(from) } else { _mm256_maskload_ps(from, first(count)) } }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, count: usize, x: __m256) {
        // SAFETY: as above.
        unsafe { if count >= 8 { _mm256_storeu_ps(to, x) } else { _mm256_maskstore_ps(to, first(count), x) } };
    }

    #[inline(always)]
    unsafe fn multiply(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn multiply_add(sum: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_fmadd_ps(a, b, sum) }
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u32) -> __m256i {
        // SAFETY: as this function requires.
        unsafe { transmute::<__m256, __m256i>(_mm256_broadcast_ss(&*from.cast::<f32>())) }
    }

    #[inline(always)]
    unsafe fn read(from: *const u32) -> __m256i {
        // SAFETY: as this function requires.
        unsafe { _mm256_load_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn write(to: *mut u32, count: usize, words: __m256i) {
        // SAFETY: as this function requires.
        unsafe {
            match count {
                6 => {
                    // masked stores are slow on some processors
                    _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(words));
                    _mm_storel_epi64(to.add(4).cast(), _mm256_extracti128_si256::<1>(words));
                }
                _ => _mm256_store_si256(to.cast(), words),
            }
        }
    }

    #[inline(always)]
    unsafe fn floats(words: __m256i) -> __m256 {
        // SAFETY: vectors of one size, in which every bit pattern is valid.
        unsafe { transmute::<__m256i, __m256>(words) }
    }

    #[inline(always)]
    unsafe fn words(floats: __m256) -> __m256i {
        // SAFETY: as above.
        unsafe { transmute::<__m256, __m256i>(floats) }
    }

    /// Within halves of the vectors first, then of whole halves.
    #[inline(always)]
    unsafe fn transpose(x: [__m256i; 8]) -> [__m256i; 8] {
        // SAFETY: inlined where the instructions are.
        unsafe {
            let mut z = x;
            for i in [0, 4] {
                let [a, b, c, d] = [x[i], x[i + 1], x[i + 2], x[i + 3]];
                let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
                (z[i], z[i + 1]) = (_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
                let (ab, cd) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
                (z[i + 2], z[i + 3]) = (_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
            }
            // half h of z[4g + j] now has word 4h + j of rows 4g to 4g + 3
            let mut y = z;
            for j in 0..4 {
                y[j] = _mm256_permute2x128_si256::<0x20>(z[j], z[j + 4]);
                y[j + 4] = _mm256_permute2x128_si256::<0x31>(z[j], z[j + 4]);
            }
            y
        }
    }
}

/// Numbers as they are, or to the nearest bf16 with ties to even, subnormal ones as zero and NaNs quiet.
struct F32<const ROUNDED: bool>;

impl<const ROUNDED: bool> F32<ROUNDED> {
    #[inline(always)]
    unsafe fn words(x: __m256) -> __m256i {
        // SAFETY: inlined where the instructions are.
        unsafe {
            let bits = Avx2::words(x);
            if !ROUNDED {
                return bits;
            }
            let all = |word: u32| _mm256_set1_epi32(word as i32);
            let upper = all(0xffff_0000);
            let even = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), all(1));
            let nearest = _mm256_and_si256(_mm256_add_epi32(bits, _mm256_add_epi32(even, all(0x7fff))), upper);
            let size = _mm256_and_si256(bits, all(0x7fff_ffff));
            let sign = _mm256_and_si256(bits, all(0x8000_0000));
            let is_subnormal = _mm256_cmpgt_epi32(all(f32::MIN_POSITIVE.to_bits()), size);
            let is_nan = _mm256_cmpgt_epi32(size, all(f32::INFINITY.to_bits()));
            let quiet = _mm256_or_si256(_mm256_and_si256(bits, upper), all(0x0040_0000));
            _mm256_blendv_epi8(_mm256_blendv_epi8(nearest, sign, is_subnormal), quiet, is_nan)
        }
    }
}

impl<const ROUNDED: bool> Format for F32<ROUNDED> {
    type Vector = Avx2;
    const COLUMNS: usize = 1;
    // with two vectors of columns twelve sums, of sixteen registers
    const PANEL: usize = PANEL_ROWS;
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 2;
    const STRIDE: usize = 32;

    #[inline(always)]
    unsafe fn of_row(read: impl Fn(usize) -> __m256) -> __m256i {
        // SAFETY: as this function requires.
        unsafe { Self::words(read(0)) }
    }

    #[inline(always)]
    unsafe fn of_columns(read: impl Fn(usize) -> __m256) -> __m256i {
        // SAFETY: as this function requires.
        unsafe { Self::words(read(0)) }
    }

    #[inline(always)]
    unsafe fn multiply_add(sum: __m256, a: __m256i, b: __m256i) -> __m256 {
        // SAFETY: as this function requires.
        unsafe { Avx2::multiply_add(sum, Avx2::floats(a), Avx2::floats(b)) }
    }

    #[inline(always)]
    unsafe fn multiply_words<const ROWS: usize, const N: usize>(
        sums: &mut [[__m256; N]; ROWS],
        a: *const u32,
        b: [*const u32; N],
        words: usize,
    ) {
        debug_assert!((ROWS, N) == (Self::TILE_ROWS, Self::TILE_VECTORS));
        if words > 0 {
            // SAFETY: as this function requires; there are no other tiles.
            unsafe { multiply_six_by_two(&mut *sums.as_mut_ptr().cast(), a, b[0], words) }
        }
    }
}

/// See [`Format::multiply_words`], of one word or more. Written out, as it needs all sixteen registers: a compiler that orders the
/// instructions otherwise needs more, and sums go to memory and back at each word, for twice the time.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn multiply_six_by_two(sums: &mut [[__m256; 2]; 6], a: *const u32, b: *const u32, words: usize) {
    let [[s00, s01], [s10, s11], [s20, s21], [s30, s31], [s40, s41], [s50, s51]] = sums;
    // SAFETY: as this function requires; the second vector stands behind the first.
    unsafe {
        asm!(
            "2:",
            "vmovaps {b0}, [{b}]",
            "vmovaps {b1}, [{b} + 32]",
            "vbroadcastss {a0}, [{a}]",
            "vbroadcastss {a1}, [{a} + 4]",
            "vfmadd231ps {s00}, {a0}, {b0}",
            "vfmadd231ps {s01}, {a0}, {b1}",
            "vbroadcastss {a0}, [{a} + 8]",
            "vfmadd231ps {s10}, {a1}, {b0}",
            "vfmadd231ps {s11}, {a1}, {b1}",
            "vbroadcastss {a1}, [{a} + 12]",
            "vfmadd231ps {s20}, {a0}, {b0}",
            "vfmadd231ps {s21}, {a0}, {b1}",
            "vbroadcastss {a0}, [{a} + 16]",
            "vfmadd231ps {s30}, {a1}, {b0}",
            "vfmadd231ps {s31}, {a1}, {b1}",
            "vbroadcastss {a1}, [{a} + 20]",
            "vfmadd231ps {s40}, {a0}, {b0}",
            "vfmadd231ps {s41}, {a0}, {b1}",
            "vfmadd231ps {s50}, {a1}, {b0}",
            "vfmadd231ps {s51}, {a1}, {b1}",
            "add {a}, 24",
            "add {b}, 64",
            "dec {words}",
            "jnz 2b",
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            words = inout(reg) words => _,
            a0 = out(ymm_reg) _,
            a1 = out(ymm_reg) _,
            b0 = out(ymm_reg) _,
            b1 = out(ymm_reg) _,
            s00 = inout(ymm_reg) *s00,
            s01 = inout(ymm_reg) *s01,
            s10 = inout(ymm_reg) *s10,
            s11 = inout(ymm_reg) *s11,
            s20 = inout(ymm_reg) *s20,
            s21 = inout(ymm_reg) *s21,
            s30 = inout(ymm_reg) *s30,
            s31 = inout(ymm_reg) *s31,
            s40 = inout(ymm_reg) *s40,
            s41 = inout(ymm_reg) *s41,
            s50 = inout(ymm_reg) *s50,
            s51 = inout(ymm_reg) *s51,
            options(pure, readonly, nostack),
        );
    }
}
