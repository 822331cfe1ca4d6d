//! Panels and micro-kernel for AVX-512, of f32 and of bf16 numbers.
//!
//! A panel holds the operand word by word: for each column, or each pair of columns in bf16, one vector, which has the words of
//! [`LANES`] rows. Missing rows, and the partner of an odd last column, are zero.

use std::arch::x86_64::*;
use std::mem::{MaybeUninit, transmute};
use std::ops::Range;

use super::{GROUP, LANES, Operand, Panels, Place, Sources, Target};
use crate::cpu::matmul::View;

/// Rows of c in a tile of the micro-kernel. A tile's 8 · 3 sums stay in registers and are several times as many as the latency of
/// a multiply-add needs to be hidden.
const TILE: usize = 8;
/// How far ahead of their use elements of a row are fetched: two turns of the loop of bf16.
const AHEAD: usize = 4 * LANES;

pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
}

pub(super) fn bf16_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

/// How numbers stand in a panel's words of four bytes. What is generic over it is inlined into a function that has the instructions.
trait Format {
    /// Neighbouring columns in a word.
    const COLUMNS: usize;

    /// The words of one row; `read(i)` has its i-th next vector of columns.
    unsafe fn of_row(read: impl Fn(usize) -> __m512) -> __m512i;

    /// The words of [`LANES`] rows; `read(i)` has the rows' i-th next column.
    unsafe fn of_columns(read: impl Fn(usize) -> __m512) -> __m512i;

    /// `sum + a·b`, of the numbers of each word.
    unsafe fn multiply_add(sum: __m512, a: __m512i, b: __m512i) -> __m512;
}

struct F32;

impl Format for F32 {
    const COLUMNS: usize = 1;

    #[inline(always)]
    unsafe fn of_row(read: impl Fn(usize) -> __m512) -> __m512i {
        // SAFETY: vectors of one size, in which every bit pattern is valid.
        unsafe { transmute::<__m512, __m512i>(read(0)) }
    }

    #[inline(always)]
    unsafe fn of_columns(read: impl Fn(usize) -> __m512) -> __m512i {
        // SAFETY: as above.
        unsafe { transmute::<__m512, __m512i>(read(0)) }
    }

    #[inline(always)]
    unsafe fn multiply_add(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: as above; inlined where the instruction is.
        unsafe { _mm512_fmadd_ps(transmute::<__m512i, __m512>(a), transmute::<__m512i, __m512>(b), sum) }
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
    const COLUMNS: usize = 2;

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

/// See [`super::Unit::pack`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn pack_f32(operand: &Operand, place: Place, panels: Panels) {
    // SAFETY: as this function requires.
    unsafe { pack::<F32>(operand, place, panels) }
}

/// See [`super::Unit::pack`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn pack_bf16(operand: &Operand, place: Place, panels: Panels) {
    // SAFETY: as this function requires.
    unsafe { pack::<Bf16>(operand, place, panels) }
}

/// See [`super::Unit::multiply`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn multiply_f32(panels: [*const u32; 2], slice: Range<usize>, targets: &[Target], place: Place) {
    // SAFETY: as this function requires.
    unsafe { multiply::<F32>(panels, slice, targets, place) }
}

/// See [`super::Unit::multiply`].
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn multiply_bf16(panels: [*const u32; 2], slice: Range<usize>, targets: &[Target], place: Place) {
    // SAFETY: as this function requires.
    unsafe { multiply::<Bf16>(panels, slice, targets, place) }
}

/// The first `count` lanes.
#[inline(always)]
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

/// A panel's next sixteen vectors.
type Tile = [__m512i; LANES];

#[inline(always)]
unsafe fn pack<F: Format>(operand: &Operand, Place { rows, cols }: Place, panels: Panels) {
    let by_row = match &operand.sources {
        Sources::One(matrix) => matrix.col_stride == 1,
        Sources::Quarters(quarters) => quarters[0].col_stride == 1,
    };
    let (count, tiles) = (rows.len().div_ceil(LANES), cols.len().div_ceil(LANES * F::COLUMNS));
    for i in 0..count * tiles {
        // along what lies together in memory
        let (panel, tile) = if by_row { (i / tiles, i % tiles) } else { (i % count, i / count) };
        let row = rows.start + panel * LANES;
        let column = cols.start + tile * LANES * F::COLUMNS;
        let place = Place { rows: row..rows.end.min(row + LANES), cols: column..cols.end };
        let words = LANES.min(place.cols.len().div_ceil(F::COLUMNS));
        let to = |plane| panels.at(plane, panel).wrapping_add(tile * LANES * LANES).cast::<__m512i>();
        // SAFETY: as this function requires; the panel has room for so many vectors.
        unsafe {
            match &operand.sources {
                Sources::One(matrix) => store(&read::<F>(*matrix, &place), words, to(0)),
                Sources::Quarters([a, b, c, d]) => {
                    let tiles =
                        [read::<F>(*a, &place), read::<F>(*b, &place), read::<F>(*c, &place), read::<F>(*d, &place)];
                    for (i, plane) in operand.planes.iter().enumerate() {
                        match **plane {
                            [(_, only)] => store(&tiles[only], words, to(i)),
                            [(_, a), (sign, b)] => store_sum(&tiles[a], sign, &tiles[b], words, to(i)),
                            _ => unreachable!("a plane is one quarter or the sum of two"),
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn store(tile: &Tile, count: usize, to: *mut __m512i) {
    for (i, &words) in tile.iter().enumerate().take(count) {
        // SAFETY: as this function requires.
        unsafe { _mm512_store_si512(to.add(i), words) };
    }
}

/// Stores `a + sign·b`, whose words are f32.
#[inline(always)]
unsafe fn store_sum(a: &Tile, sign: f32, b: &Tile, count: usize, to: *mut __m512i) {
    // SAFETY: as this function requires; vectors of one size, in which every bit pattern is valid.
    unsafe {
        let sign = _mm512_set1_ps(sign);
        for (i, (&a, &b)) in a.iter().zip(b).enumerate().take(count) {
            let [a, b] = [a, b].map(|x| transmute::<__m512i, __m512>(x));
            _mm512_store_ps(to.add(i).cast(), _mm512_fmadd_ps(sign, b, a));
        }
    }
}

/// The words of a tile, what the matrix does not reach as zeros.
#[inline(always)]
unsafe fn read<F: Format>(from: View<*const f32>, Place { rows, cols }: &Place) -> Tile {
    let count = rows.end.min(from.rows).saturating_sub(rows.start);
    let end = cols.end.min(from.cols);
    // filled below; filling it with zeros first would take as long
    let mut tile = MaybeUninit::<Tile>::uninit();
    let words = tile.as_mut_ptr().cast::<__m512i>();
    // SAFETY: as this function requires: what lanes read are elements of the matrix.
    unsafe {
        if from.col_stride == 1 {
            // always as many rows, so that they stay in registers: of a missing one no lane is read
            for i in 0..LANES {
                let (row, count) = (rows.start + i, if i < count { end.saturating_sub(cols.start) } else { 0 });
                for vector in 0..F::COLUMNS {
                    prefetch::<_MM_HINT_T0>(from.at(row, cols.start).wrapping_add(AHEAD + vector * LANES));
                }
                words.add(i).write(F::of_row(|vector| {
                    let before = vector * LANES;
                    _mm512_maskz_loadu_ps(first(count.saturating_sub(before)), from.at(row, cols.start + before))
                }));
            }
            transpose(tile.assume_init())
        } else {
            for i in 0..LANES {
                for column in 0..F::COLUMNS {
                    // of the next panel's
                    prefetch::<_MM_HINT_T1>(from.at(rows.start + LANES, cols.start + i * F::COLUMNS + column));
                }
                words.add(i).write(F::of_columns(|column| {
                    let col = cols.start + i * F::COLUMNS + column;
                    _mm512_maskz_loadu_ps(first(if col < end { count } else { 0 }), from.at(rows.start, col))
                }));
            }
            tile.assume_init()
        }
    }
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

#[inline(always)]
unsafe fn multiply<F: Format>(
    [a, b]: [*const u32; 2],
    slice: Range<usize>,
    targets: &[Target],
    Place { rows, cols }: Place,
) {
    let steps = slice.len().div_ceil(F::COLUMNS);
    for column in (0..cols.len()).step_by(GROUP) {
        for row in (0..rows.len()).step_by(TILE) {
            let place = Place {
                rows: rows.start + row..rows.end.min(rows.start + row + TILE),
                cols: cols.start + column..cols.end.min(cols.start + column + GROUP),
            };
            // SAFETY: as this function requires; a tile's rows lie in one panel, its columns in up to three.
            unsafe {
                let panels = [a.add(row / LANES * LANES * steps + row % LANES), b.add(column * steps)];
                match place.cols.len().div_ceil(LANES) {
                    1 => tile::<F, 1>(panels, &slice, targets, place),
                    2 => tile::<F, 2>(panels, &slice, targets, place),
                    _ => tile::<F, 3>(panels, &slice, targets, place),
                }
            }
        }
    }
}

/// The micro-kernel: [`TILE`] rows by `N` panels of columns.
///
/// # Safety
/// As [`super::Unit::multiply`]; a is the place of the first row in its panel.
#[inline(always)]
unsafe fn tile<F: Format, const N: usize>(
    [a, b]: [*const u32; 2],
    slice: &Range<usize>,
    targets: &[Target],
    Place { rows, cols }: Place,
) {
    for target in targets {
        for row in rows.clone() {
            for j in 0..N {
                prefetch::<_MM_HINT_ET0>(target.c.at(row, cols.start + j * LANES));
            }
        }
    }
    // SAFETY: as this function requires.
    unsafe {
        let steps = slice.len().div_ceil(F::COLUMNS);
        let mut sums = [[_mm512_setzero_ps(); N]; TILE];
        for step in 0..steps {
            let b: [_; N] = std::array::from_fn(|j| _mm512_load_si512(b.add((j * steps + step) * LANES).cast()));
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = _mm512_set1_epi32(*a.add(step * LANES + i) as i32);
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = F::multiply_add(*sum, a, b);
                }
            }
        }
        for target in targets {
            let (c, (beta, from)) = (target.c, target.added_to(slice));
            let (alpha, scale) = (_mm512_set1_ps(target.alpha), _mm512_set1_ps(beta));
            let count = rows.end.min(c.rows).saturating_sub(rows.start);
            // a count known to the compiler, so that sums are registers all along
            for (i, sums) in sums.iter().enumerate() {
                if i >= count {
                    break;
                }
                let row = rows.start + i;
                for (j, &sum) in sums.iter().enumerate() {
                    let column = cols.start + j * LANES;
                    let lanes = first(cols.end.min(c.cols).saturating_sub(column));
                    let mut y = _mm512_mul_ps(alpha, sum);
                    if beta != 0.0 {
                        y = _mm512_fmadd_ps(scale, _mm512_maskz_loadu_ps(lanes, from.at(row, column)), y);
                    }
                    _mm512_mask_storeu_ps(c.at(row, column), lanes, y);
                }
            }
        }
    }
}
