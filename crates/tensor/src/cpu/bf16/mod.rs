//! The bf16 matrix product. Operands and result are f32 in memory; packing rounds the operands to bf16 (to nearest, ties to even,
//! subnormal numbers to zero) on their way into the cache, and products are summed in f32.
//!
//! Blocking is that of Goto and van de Geijn (2008), with both operands packed for all threads: they pack a slice of the inner
//! dimension together, then multiply in tasks of fixed size. An element of c is summed in the order of the inner dimension,
//! whichever threads do it, so that its bits do not depend on their number.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use super::matmul::View;
use crate::pool::Buffer;

/// Rows of an operand in a panel: as many as the widest vector has f32.
const LANES: usize = 16;
/// Inner dimension of a packed block: long enough to hide reading and writing c, short enough for a second-level cache to hold
/// the panels of a task's rows beside those of a few columns.
const DEPTH: usize = 768;
/// Rows of a, and columns of b, that are packed at once: 3 MiB each in bf16.
const BLOCK: usize = 2048;
/// Rows of c in a task.
const TASK_ROWS: usize = 128;
/// Columns of c in a task.
const TASK_COLUMNS: usize = 8 * GROUP;
/// Columns that the micro-kernel takes at once, three panels.
const GROUP: usize = 3 * LANES;
/// Multiplications below which other threads cost more than they gain.
const WORTH_THREADS: usize = 1 << 20;

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Unit {
    /// AVX512-BF16.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The f32 product of rounded operands.
    Portable,
}

impl Unit {
    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if avx512::available() {
            return Self::Avx512;
        }
        Self::Portable
    }

    /// Words of four bytes in a panel.
    fn panel_words(self, depth: usize) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::panel_words(depth),
            Self::Portable => portable::panel_words(depth),
        }
    }

    /// Packs at most [`LANES`] rows.
    ///
    /// # Safety
    /// This machine has the unit. The view is valid to read, the elements of each row or those of each column are neighbours.
    /// `panel` has room for a panel and is aligned to a vector.
    unsafe fn pack(self, rows: View<*const f32>, panel: *mut u32) {
        // SAFETY: as this function requires.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => avx512::pack(rows, panel),
                Self::Portable => portable::pack(rows, panel.cast()),
            }
        }
    }

    /// `c = beta·c + alpha·a·bᵀ`.
    ///
    /// # Safety
    /// This machine has the unit. a and b hold the panels of c's rows and of its columns, one behind the other, packed from `depth`
    /// columns. c is valid to write, the elements of its rows are neighbours.
    unsafe fn multiply(self, alpha: f32, [a, b]: [*const u32; 2], depth: usize, beta: f32, c: View<*mut f32>) {
        // SAFETY: as this function requires.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => avx512::multiply(alpha, [a, b], depth, beta, c),
                Self::Portable => portable::multiply(alpha, [a.cast(), b.cast()], depth, beta, c),
            }
        }
    }
}

/// `c = beta·c + alpha·a·b` with a and b rounded to bf16; with beta 0, c is not read.
///
/// # Safety
/// The views must lie in memory that is valid to read (a, b) and to write by this call alone (c). In a and b the elements of
/// each row or those of each column are neighbours, in c those of each row.
pub(super) unsafe fn gemm(
    alpha: f32,
    a: View<*const f32>,
    b: View<*const f32>,
    beta: f32,
    c: View<*mut f32>,
    parallel: bool,
) {
    // SAFETY: as this function requires; the unit was found on this machine.
    unsafe { gemm_on(Unit::detect(), alpha, a, b, beta, c, parallel) }
}

/// [`gemm`] on a unit that this machine has.
unsafe fn gemm_on(
    unit: Unit,
    alpha: f32,
    a: View<*const f32>,
    b: View<*const f32>,
    beta: f32,
    c: View<*mut f32>,
    parallel: bool,
) {
    debug_assert!(a.cols == b.rows && a.rows == c.rows && b.cols == c.cols);
    debug_assert!([a, b].iter().all(|v| v.row_stride == 1 || v.col_stride == 1) && c.col_stride == 1);
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    let parallel = parallel && c.rows * c.cols * a.cols >= WORTH_THREADS;
    let (rows, columns) = (Parts::new(c.rows, BLOCK, LANES), Parts::new(c.cols, BLOCK, GROUP));
    let slices = Parts::new(a.cols, DEPTH, 2 * LANES);
    let each = unit.panel_words(slices.longest());
    let [of_a, of_b] = [rows, columns].map(|parts| parts.longest().div_ceil(LANES));
    let product = |panels: View<*mut u32>| {
        let (panels_a, panels_b) = (panels.part(0..of_a, 0..each), panels.part(of_a..of_a + of_b, 0..each));
        for columns in columns.iter() {
            for slice in slices.iter() {
                let beta = if slice.start == 0 { beta } else { 1.0 };
                // SAFETY: as this function requires, and panels have room for the longest parts.
                unsafe { pack(unit, b.part(slice.clone(), columns.clone()).t(), panels_b, parallel) };
                for rows in rows.iter() {
                    let (a, c) = (a.part(rows.clone(), slice.clone()), c.part(rows, columns.clone()));
                    // SAFETY: as above; both blocks are packed before they are multiplied.
                    unsafe {
                        pack(unit, a, panels_a, parallel);
                        multiply(unit, alpha, [panels_a, panels_b], slice.len(), beta, c, parallel);
                    }
                }
            }
        }
    };
    with_buffer((of_a + of_b) * each, |buffer| {
        let panels = View::new(buffer, of_a + of_b, each, each);
        if parallel {
            // from within the pool, one phase follows another without waking anyone
            rayon::scope(|_| product(panels));
        } else {
            product(panels);
        }
    });
}

/// Packs a block, [`LANES`] rows into each panel.
///
/// # Safety
/// As [`Unit::pack`], for all panels.
unsafe fn pack(unit: Unit, block: View<*const f32>, panels: View<*mut u32>, parallel: bool) {
    for_each(parallel, block.rows.div_ceil(LANES), |i| {
        let lanes = i * LANES..block.rows.min((i + 1) * LANES);
        // SAFETY: as this function requires; a panel is written by one task.
        unsafe { unit.pack(block.part(lanes, 0..block.cols), panels.at(i, 0)) };
    });
}

/// Multiplies packed blocks.
///
/// # Safety
/// As [`Unit::multiply`].
unsafe fn multiply(
    unit: Unit,
    alpha: f32,
    [a, b]: [View<*mut u32>; 2],
    depth: usize,
    beta: f32,
    c: View<*mut f32>,
    parallel: bool,
) {
    let (rows, columns) = (Parts::new(c.rows, TASK_ROWS, LANES), Parts::new(c.cols, TASK_COLUMNS, GROUP));
    for_each(parallel, rows.count() * columns.count(), |task| {
        let (rows, columns) = (rows.get(task % rows.count()), columns.get(task / rows.count()));
        let panels = [a.at(rows.start / LANES, 0), b.at(columns.start / LANES, 0)].map(<*mut u32>::cast_const);
        // SAFETY: as this function requires; a part of c is written by one task.
        unsafe { unit.multiply(alpha, panels, depth, beta, c.part(rows, columns)) };
    });
}

fn for_each(parallel: bool, count: usize, body: impl Fn(usize) + Sync) {
    if parallel && count > 1 {
        (0..count).into_par_iter().with_max_len(1).for_each(&body);
    } else {
        (0..count).for_each(body);
    }
}

/// A range in parts of nearly equal size, as few as `most` allows, each but the last a multiple of `unit`.
#[derive(Clone, Copy)]
struct Parts {
    len: usize,
    size: usize,
}

impl Parts {
    fn new(len: usize, most: usize, unit: usize) -> Self {
        let count = len.div_ceil(most).max(1);
        Self { len, size: len.div_ceil(count).next_multiple_of(unit).max(unit) }
    }

    fn longest(self) -> usize {
        self.size.min(self.len)
    }

    /// At least one: c is scaled though the inner dimension be empty.
    fn count(self) -> usize {
        self.len.div_ceil(self.size).max(1)
    }

    fn get(self, i: usize) -> Range<usize> {
        i * self.size..self.len.min((i + 1) * self.size)
    }

    fn iter(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.count()).map(move |i| self.get(i))
    }
}

/// Runs `body` with room for `words`, which the thread keeps for its next product.
fn with_buffer(words: usize, body: impl FnOnce(*mut u32)) {
    thread_local! {
        static KEPT: Cell<Option<Buffer>> = const { Cell::new(None) };
    }
    let bytes = words * size_of::<u32>();
    // taken out while in use: a thread that waits for others may begin another product
    let buffer = KEPT.take().filter(|buffer| buffer.capacity() >= bytes).unwrap_or_else(|| Buffer::new(bytes));
    body(buffer.as_ptr().cast());
    KEPT.set(Some(buffer));
}
