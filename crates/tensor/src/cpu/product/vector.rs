//! Panels and micro-kernel, for any vector unit.
//!
//! A panel holds the operand word by word: for each column, or each pair of columns in bf16, the words of its rows. Those of b have
//! [`LANES`], one or more vectors, those of a as many as the unit's tiles read best. Missing rows, and the partner of an odd last column,
//! are zero.

use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
use std::mem::MaybeUninit;
use std::ops::Range;

use super::{Destination, LANES, Operand, Panels, Place, Sources};
use crate::cpu::view::View;

/// A vector unit. All that is generic over it is inlined into a function that has its instructions.
///
/// # Safety
/// Who calls a method is inlined into such a function, and gives addresses that are valid for what the method says.
pub(super) trait Vector {
    /// As many f32 as a vector has.
    type Floats: Copy;
    /// As many words of four bytes.
    type Words: Copy;
    /// As many vectors as a vector has words.
    type Block: AsRef<[Self::Words]> + AsMut<[Self::Words]>;
    /// Words of a vector; divides [`LANES`].
    const WIDTH: usize;

    /// Zeros.
    unsafe fn zeros() -> Self::Floats;
    /// One number everywhere.
    unsafe fn splat(x: f32) -> Self::Floats;
    /// The first `count` of the numbers there, zeros behind them; the others are not touched.
    unsafe fn load(from: *const f32, count: usize) -> Self::Floats;
    /// Writes the first `count` numbers.
    unsafe fn store(to: *mut f32, count: usize, x: Self::Floats);
    /// `a·b`.
    unsafe fn multiply(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `sum + a·b`, rounded once.
    unsafe fn multiply_add(sum: Self::Floats, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The word there, everywhere.
    unsafe fn broadcast(from: *const u32) -> Self::Words;
    /// The words at an aligned address.
    unsafe fn read(from: *const u32) -> Self::Words;
    /// Writes the first `count` words, all of them to an aligned address.
    unsafe fn write(to: *mut u32, count: usize, words: Self::Words);
    /// Words that are f32.
    unsafe fn floats(words: Self::Words) -> Self::Floats;
    /// The bits of numbers.
    unsafe fn words(floats: Self::Floats) -> Self::Words;
    /// Words of rows become words of columns.
    unsafe fn transpose(x: Self::Block) -> Self::Block;
}

/// How numbers stand in a panel's words.
///
/// # Safety
/// As for [`Vector`].
pub(super) trait Format {
    /// Where they are multiplied.
    type Vector: Vector;
    /// Neighbouring columns in a word.
    const COLUMNS: usize;
    /// Rows of a in a panel.
    const PANEL: usize;
    /// Rows of c in a tile, a divisor of those in a panel. A tile's sums stay in registers, and are as many as the latency of a multiply-add
    /// needs to be hidden.
    const TILE_ROWS: usize;
    /// Vectors of columns in a tile, at most three.
    const TILE_VECTORS: usize;
    /// Steps of a tile between which it fetches something. What was fastest, measured.
    const STRIDE: usize = 16;

    /// The words of one row; `read(i)` has its i-th next vector of columns.
    unsafe fn of_row(read: impl Fn(usize) -> Floats<Self>) -> Words<Self>;

    /// The words of as many rows as a vector has; `read(i)` has the rows' i-th next column.
    unsafe fn of_columns(read: impl Fn(usize) -> Floats<Self>) -> Words<Self>;

    /// `sum + a·b`, of the numbers of each word.
    unsafe fn multiply_add(sum: Floats<Self>, a: Words<Self>, b: Words<Self>) -> Floats<Self>;

    /// Adds the products of so many words to a tile's sums. At `a` are the tile's rows in their panel, at `b` its vectors' places
    /// in theirs.
    #[inline(always)]
    unsafe fn multiply_words<const ROWS: usize, const N: usize>(
        sums: &mut [[Floats<Self>; N]; ROWS],
        a: *const u32,
        b: [*const u32; N],
        words: usize,
    ) {
        for word in 0..words {
            // SAFETY: as this function requires.
            unsafe {
                let b: [_; N] = std::array::from_fn(|j| Self::Vector::read(b[j].add(word * LANES)));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let a = Self::Vector::broadcast(a.add(word * Self::PANEL + i));
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = Self::multiply_add(*sum, a, b);
                    }
                }
            }
        }
    }
}

pub(super) type Floats<F> = <<F as Format>::Vector as Vector>::Floats;
pub(super) type Words<F> = <<F as Format>::Vector as Vector>::Words;
type Block<F> = <<F as Format>::Vector as Vector>::Block;

/// Fetches a cache line before its use.
#[inline(always)]
fn prefetch<const HINT: i32>(p: *const f32) {
    #[allow(unused_unsafe, reason = "unsafe in the oldest Rust that we build with")]
    // SAFETY: any address may be prefetched: nothing is read.
    unsafe {
        _mm_prefetch::<HINT>(p.cast());
    }
}

/// How far ahead of their use elements of a row are fetched: two turns of the loop of bf16.
const AHEAD: usize = 4 * LANES;

/// See [`super::Unit::pack`].
#[inline(always)]
pub(super) unsafe fn pack<F: Format>(operand: &Operand, place: Place, panels: Panels) {
    // SAFETY: as this function requires.
    unsafe {
        if panels.rows == F::PANEL {
            pack_rows::<F>(operand, place, panels, F::PANEL);
        } else {
            pack_rows::<F>(operand, place, panels, LANES);
        }
    }
}

/// Panels of so many rows, which the compiler knows.
#[inline(always)]
unsafe fn pack_rows<F: Format>(operand: &Operand, Place { rows, cols }: Place, panels: Panels, height: usize) {
    let by_row = match &operand.sources {
        Sources::One(matrix) => matrix.col_stride == 1,
        Sources::Quarters(quarters) => quarters[0].col_stride == 1,
    };
    let width = F::Vector::WIDTH;
    let (count, blocks) = (rows.len().div_ceil(height), cols.len().div_ceil(width * F::COLUMNS));
    for i in 0..count * blocks {
        // along what lies together in memory
        let (panel, block) = if by_row { (i / blocks, i % blocks) } else { (i % count, i / count) };
        for part in 0..height.div_ceil(width) {
            let lanes = width.min(height - part * width);
            let row = rows.start + panel * height + part * width;
            let column = cols.start + block * width * F::COLUMNS;
            let place = Place { rows: row..rows.end.min(row + lanes), cols: column..cols.end };
            let words = width.min(place.cols.len().div_ceil(F::COLUMNS));
            let to = |plane| panels.at(plane, panel).wrapping_add(block * width * height + part * width);
            // SAFETY: as this function requires; the panel has room for so many vectors.
            unsafe {
                match &operand.sources {
                    Sources::One(matrix) => store::<F::Vector>(
                        read::<F>(*matrix, &place, [lanes, height]).as_ref(),
                        [words, lanes, height],
                        to(0),
                    ),
                    Sources::Quarters([a, b, c, d]) => {
                        let blocks = [
                            read::<F>(*a, &place, [lanes, height]),
                            read::<F>(*b, &place, [lanes, height]),
                            read::<F>(*c, &place, [lanes, height]),
                            read::<F>(*d, &place, [lanes, height]),
                        ];
                        for (i, plane) in operand.planes.iter().enumerate() {
                            match **plane {
                                [(_, only)] => store::<F::Vector>(blocks[only].as_ref(), [words, lanes, height], to(i)),
                                [(_, a), (sign, b)] => {
                                    store_sum::<F::Vector>(
                                        blocks[a].as_ref(),
                                        sign,
                                        blocks[b].as_ref(),
                                        [words, lanes, height],
                                        to(i),
                                    );
                                }
                                _ => unreachable!("a plane is one quarter or the sum of two"),
                            }
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn store<V: Vector>(block: &[V::Words], [count, lanes, height]: [usize; 3], to: *mut u32) {
    for (i, &words) in block.iter().enumerate().take(count) {
        // SAFETY: as this function requires.
        unsafe { V::write(to.add(i * height), lanes, words) };
    }
}

/// Stores `a + sign·b`, whose words are f32.
#[inline(always)]
unsafe fn store_sum<V: Vector>(
    a: &[V::Words],
    sign: f32,
    b: &[V::Words],
    [count, lanes, height]: [usize; 3],
    to: *mut u32,
) {
    // SAFETY: as this function requires.
    unsafe {
        let sign = V::splat(sign);
        for (i, (&a, &b)) in a.iter().zip(b).enumerate().take(count) {
            V::write(to.add(i * height), lanes, V::words(V::multiply_add(V::floats(a), sign, V::floats(b))));
        }
    }
}

/// The words of a block, what the matrix does not reach as zeros.
#[inline(always)]
unsafe fn read<F: Format>(
    from: View<*const f32>,
    Place { rows, cols }: &Place,
    [lanes, height]: [usize; 2],
) -> Block<F> {
    let width = F::Vector::WIDTH;
    let count = rows.end.min(from.rows).saturating_sub(rows.start);
    let end = cols.end.min(from.cols);
    // filled below; filling it with zeros first would take as long
    let mut block = MaybeUninit::<Block<F>>::uninit();
    let words = block.as_mut_ptr().cast::<Words<F>>();
    // SAFETY: as this function requires: what lanes read are elements of the matrix.
    unsafe {
        if from.col_stride == 1 {
            // always as many rows, so that they stay in registers: of a missing one no lane is read
            for i in 0..width {
                if i >= lanes {
                    words.add(i).write(F::Vector::words(F::Vector::zeros()));
                    continue;
                }
                let (row, count) = (rows.start + i, if i < count { end.saturating_sub(cols.start) } else { 0 });
                for vector in 0..F::COLUMNS {
                    prefetch::<_MM_HINT_T0>(from.at(row, cols.start).wrapping_add(AHEAD + vector * width));
                }
                words.add(i).write(F::of_row(|vector| {
                    let before = vector * width;
                    F::Vector::load(from.at(row, cols.start + before), count.saturating_sub(before))
                }));
            }
            F::Vector::transpose(block.assume_init())
        } else {
            for i in 0..width {
                for column in 0..F::COLUMNS {
                    // of the next panel's
                    prefetch::<_MM_HINT_T1>(from.at(rows.start + height, cols.start + i * F::COLUMNS + column));
                }
                words.add(i).write(F::of_columns(|column| {
                    let col = cols.start + i * F::COLUMNS + column;
                    F::Vector::load(from.at(rows.start, col), if col < end { count } else { 0 })
                }));
            }
            block.assume_init()
        }
    }
}

/// See [`super::Unit::multiply`].
#[inline(always)]
pub(super) unsafe fn multiply<F: Format>(
    [a, b]: [*const u32; 2],
    slice: Range<usize>,
    targets: &[Destination],
    Place { rows, cols }: Place,
) {
    let (steps, width) = (slice.len().div_ceil(F::COLUMNS), F::Vector::WIDTH);
    let columns = F::TILE_VECTORS * width;
    // while a panel is multiplied the next is on its way, each tile fetching a part
    let share = (columns * steps).div_ceil(rows.len().div_ceil(F::TILE_ROWS).max(1)).next_multiple_of(LANES);
    for column in (0..cols.len()).step_by(columns) {
        for row in (0..rows.len()).step_by(F::TILE_ROWS) {
            let place = Place {
                rows: rows.start + row..rows.end.min(rows.start + row + F::TILE_ROWS),
                cols: cols.start + column..cols.end.min(cols.start + column + columns),
            };
            // SAFETY: as this function requires; a tile's rows lie in one panel.
            unsafe {
                let within = row % F::PANEL;
                let panels = [a.add((row - within) * steps + within), b.add(column * steps)];
                let next = b.wrapping_add((column + columns) * steps + row / F::TILE_ROWS * share);
                let ahead = Ahead { next, words: share };
                match F::TILE_ROWS {
                    6 => tile_of::<F, 6>(panels, ahead, &slice, targets, place),
                    8 => tile_of::<F, 8>(panels, ahead, &slice, targets, place),
                    _ => unreachable!("there is no such tile"),
                }
            }
        }
    }
}

/// What a tile fetches for those after it.
#[derive(Clone, Copy)]
struct Ahead {
    next: *const u32,
    words: usize,
}

#[inline(always)]
unsafe fn tile_of<F: Format, const ROWS: usize>(
    panels: [*const u32; 2],
    ahead: Ahead,
    slice: &Range<usize>,
    targets: &[Destination],
    place: Place,
) {
    // SAFETY: as this function requires.
    unsafe {
        match place.cols.len().div_ceil(F::Vector::WIDTH) {
            1 if F::TILE_VECTORS != 2 => tile::<F, ROWS, 1>(panels, ahead, slice, targets, place),
            1 | 2 => tile::<F, ROWS, 2>(panels, ahead, slice, targets, place),
            _ => tile::<F, ROWS, 3>(panels, ahead, slice, targets, place),
        }
    }
}

/// The micro-kernel: `ROWS` rows by `N` vectors of columns.
///
/// # Safety
/// As [`super::Unit::multiply`]; a is the place of the first row in its panel.
#[inline(always)]
unsafe fn tile<F: Format, const ROWS: usize, const N: usize>(
    [a, b]: [*const u32; 2],
    ahead: Ahead,
    slice: &Range<usize>,
    targets: &[Destination],
    Place { rows, cols }: Place,
) {
    let width = F::Vector::WIDTH;
    // SAFETY: as this function requires.
    unsafe {
        let steps = slice.len().div_ceil(F::COLUMNS);
        // a vector's place: its panel, then its words there
        let b: [_; N] = std::array::from_fn(|j| b.add(j * width / LANES * LANES * steps + j * width % LANES));
        let mut sums = [[F::Vector::zeros(); N]; ROWS];
        // fetched little by little: a processor waits when it is asked for too much at once
        let turns = steps.div_ceil(F::STRIDE).max(1);
        let (rows_each, words_each) =
            ((ROWS * targets.len()).div_ceil(turns), ahead.words.div_ceil(turns).next_multiple_of(LANES));
        for turn in 0..turns {
            for i in turn * rows_each..(ROWS * targets.len()).min((turn + 1) * rows_each) {
                let c = targets.get_unchecked(i / ROWS).c.at(rows.start + i % ROWS, cols.start);
                for j in 0..N {
                    prefetch::<_MM_HINT_ET0>(c.wrapping_add(j * width));
                }
            }
            for i in (0..words_each).step_by(LANES) {
                prefetch::<_MM_HINT_T1>(ahead.next.wrapping_add(turn * words_each + i).cast());
            }
            let step = turn * F::STRIDE;
            F::multiply_words(
                &mut sums,
                a.add(step * F::PANEL),
                b.map(|b| b.add(step * LANES)),
                F::STRIDE.min(steps - step),
            );
        }
        for target in targets {
            let (c, (beta, from)) = (target.c, target.added_to(slice));
            let (alpha, scale) = (F::Vector::splat(target.alpha), F::Vector::splat(beta));
            let count = rows.end.min(c.rows).saturating_sub(rows.start);
            // a count known to the compiler, so that sums are registers all along
            for (i, sums) in sums.iter().enumerate() {
                if i >= count {
                    break;
                }
                let row = rows.start + i;
                for (j, &sum) in sums.iter().enumerate() {
                    let column = cols.start + j * width;
                    let lanes = cols.end.min(c.cols).saturating_sub(column).min(width);
                    let mut y = F::Vector::multiply(alpha, sum);
                    if beta != 0.0 {
                        y = F::Vector::multiply_add(y, scale, F::Vector::load(from.at(row, column), lanes));
                    }
                    F::Vector::store(c.at(row, column), lanes, y);
                }
            }
        }
    }
}
