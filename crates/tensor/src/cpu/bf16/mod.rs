//! The bf16 matrix product. Operands and result are f32 in memory; packing rounds the operands to bf16 (to nearest, ties to even)
//! on their way into the cache, and the products are summed in f32.
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

/// Rows of an operand in a panel: as many as f32 in the widest vector.
const LANES: usize = 16;
/// Inner dimension of a packed block: long enough to hide reading and writing c, short enough for a second-level cache to hold
/// the panels of a task's rows beside those in use of its columns.
const DEPTH: usize = 1024;
/// Rows of a, and columns of b, that are packed at once: 4 MiB each at full depth.
const BLOCK: usize = 2048;
/// Rows of c in a task.
const TASK_ROWS: usize = 128;
/// Columns of c in a task.
const TASK_COLUMNS: usize = 384;
/// Divides the columns of a task: three panels, what the micro-kernel takes at once.
const GROUP: usize = 3 * LANES;
/// Multiplications below which other threads cost more than they gain.
const WORTH_THREADS: usize = 1 << 19;

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
    /// The view is valid to read, its rows or its columns of neighbours; `panel` has room for a panel.
    unsafe fn pack(self, rows: View<*const f32>, panel: *mut u32) {
        // SAFETY: as this function requires; the unit was detected.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => avx512::pack(rows, panel),
                Self::Portable => portable::pack(rows, panel.cast()),
            }
        }
    }

    /// `c = beta·c + alpha·a·bᵀ` of packed rows.
    ///
    /// # Safety
    /// a and b hold the panels of c's rows and columns; c is valid to write, its rows of neighbours.
    unsafe fn multiply(self, alpha: f32, [a, b]: [*const u32; 2], depth: usize, beta: f32, c: View<*mut f32>) {
        // SAFETY: as this function requires; the unit was detected.
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
    // SAFETY: as this function requires.
    unsafe { gemm_by(Unit::detect(), alpha, [a, b.t()], beta, c, parallel) }
}

/// As [`gemm`], with b transposed: both operands are packed by rows.
unsafe fn gemm_by(
    unit: Unit,
    alpha: f32,
    [a, bt]: [View<*const f32>; 2],
    beta: f32,
    c: View<*mut f32>,
    parallel: bool,
) {
    debug_assert!(a.cols == bt.cols && a.rows == c.rows && bt.rows == c.cols && c.col_stride == 1);
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    let parallel = parallel && c.rows * c.cols * a.cols >= WORTH_THREADS;
    let blocks = [Parts::new(c.rows, BLOCK, LANES), Parts::new(c.cols, BLOCK, GROUP)];
    let slices = Parts::new(a.cols, DEPTH, 2 * LANES);
    let each = unit.panel_words(slices.longest());
    let [of_a, of_b] = blocks.map(|parts| parts.longest().div_ceil(LANES));
    with_buffer((of_a + of_b) * each, |buffer| {
        let panels_a = View::new(buffer, of_a, each, each);
        // SAFETY: inside the buffer.
        let panels_b = View::new(unsafe { buffer.add(of_a * each) }, of_b, each, each);
        for columns in blocks[1].iter() {
            for depth in slices.iter() {
                let beta = if depth.start == 0 { beta } else { 1.0 };
                // SAFETY: the parts lie in the views, and `gemm` says the rest.
                unsafe { pack(unit, bt.part(columns.clone(), depth.clone()), panels_b, parallel) };
                for rows in blocks[0].iter() {
                    // SAFETY: as above; both blocks are packed before they are multiplied.
                    unsafe {
                        pack(unit, a.part(rows.clone(), depth.clone()), panels_a, parallel);
                        let c = c.part(rows, columns.clone());
                        multiply(unit, alpha, [panels_a, panels_b], depth.len(), beta, c, parallel);
                    }
                }
            }
        }
    });
}

/// Packs every [`LANES`] rows into one panel.
unsafe fn pack(unit: Unit, rows: View<*const f32>, panels: View<*mut u32>, parallel: bool) {
    for_each(parallel, rows.rows.div_ceil(LANES), |i| {
        let lanes = i * LANES..rows.rows.min((i + 1) * LANES);
        // SAFETY: a panel has one task.
        unsafe { unit.pack(rows.part(lanes, 0..rows.cols), panels.at(i, 0)) };
    });
}

/// Multiplies packed blocks.
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
        // SAFETY: a part of c has one task.
        unsafe {
            let panels = [a.at(rows.start / LANES, 0).cast_const(), b.at(columns.start / LANES, 0).cast_const()];
            unit.multiply(alpha, panels, depth, beta, c.part(rows, columns));
        }
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
