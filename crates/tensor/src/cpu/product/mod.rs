//! Matrix products of f32 tensors on vector units that we know, with operands as they are or rounded to bf16.
//!
//! Blocking is that of Goto and van de Geijn (2008): all threads pack a slice of b's inner dimension into the last-level cache, then each
//! packs rows of a into its own and multiplies them with all of that. An element of c is summed in the order of the inner dimension,
//! whichever threads do it, so that its bits do not depend on their number. Packing for bf16 rounds the operands (to nearest, ties to
//! even, subnormal numbers to zero); products are summed in f32.
//!
//! Packing may also add matrices, and a product may go to several places: that is what [`strassen`] asks for.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod gemm;
mod portable;
mod strassen;
#[cfg(target_arch = "x86_64")]
mod vector;

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::coded::CodedView;
use super::instructions::{self, Instructions};
use super::view::{Pointer, View};
use crate::Precision;
use crate::map::Map;

/// Rows of an operand in a panel: as many as the widest vector has f32.
const LANES: usize = 16;
/// Words of a row in a packed block: long enough to hide reading and writing c, short enough for a second-level cache to hold
/// the panels of a task's rows, of one plane, beside those of a few columns.
const DEPTH: usize = 384;
/// Rows of a task at most.
const TASK_ROWS: usize = 128;
/// Words of the panels of columns that are packed at once: 8 MiB, as a machine that shares its last-level cache with others may have no
/// more of it. Few in tests, whose matrices are small.
const COLUMNS_WORDS: usize = if cfg!(test) { 1 << 16 } else { 1 << 21 };
/// Panels of columns that a task packs: where elements of columns are neighbours, reading goes across panels.
const TASK_PANELS: usize = 4;
/// Tasks that a slice of a product is cut into at least, where its size allows.
const TASKS: usize = 8;
/// Columns that parts are multiples of: as many as a micro-kernel takes at once.
const GROUP: usize = 3 * LANES;
/// Multiplications below which other threads cost more than they gain.
const WORTH_THREADS: usize = 1 << 20;

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Unit {
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX512-BF16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// AVX2 with fused multiply-adds.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// The same of operands rounded to bf16.
    #[cfg(target_arch = "x86_64")]
    Avx2Rounded,
    /// Another's f32 product of operands rounded to bf16.
    Rounded,
}

/// A factor of one product or of several at once, each of which takes a plane: a source, or the sum of two with signs, the first of
/// them plus. Sources need not be of one size: what one has not got is zero.
struct Operand<S = View<*const f32>> {
    sources: Sources<S>,
    /// Signs and indices of sources.
    planes: &'static [&'static [(f32, usize)]],
}

impl<S> Operand<S> {
    fn whole(matrix: S) -> Self {
        Self { sources: Sources::One(matrix), planes: &[&[(1.0, 0)]] }
    }
}

/// A matrix, or the quarters of one.
enum Sources<S> {
    One(S),
    Quarters([S; 4]),
}

/// What has rows and columns, of which a part is of the same kind.
trait Grid: Sized {
    fn size(&self) -> [usize; 2];
    fn part(&self, rows: Range<usize>, cols: Range<usize>) -> Self;
}

impl<P: Pointer> Grid for View<P> {
    fn size(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    fn part(&self, rows: Range<usize>, cols: Range<usize>) -> Self {
        (*self).part(rows, cols)
    }
}

impl Grid for CodedView<'_, f32> {
    fn size(&self) -> [usize; 2] {
        self.size()
    }

    fn part(&self, rows: Range<usize>, cols: Range<usize>) -> Self {
        self.part(rows, cols)
    }
}

/// A matrix that can be packed.
trait Source: Grid + Sync {
    /// See [`Unit::pack`].
    ///
    /// # Safety
    /// As there.
    unsafe fn pack(operand: &Operand<Self>, unit: Unit, place: Place, panels: Panels);
}

impl Source for View<*const f32> {
    unsafe fn pack(operand: &Operand<Self>, unit: Unit, place: Place, panels: Panels) {
        // SAFETY: as this function requires.
        unsafe { unit.pack(operand, place, panels) }
    }
}

/// Decodes what is to be packed, so that packing sees the numbers.
impl Source for CodedView<'_, f32> {
    unsafe fn pack(operand: &Operand<Self>, unit: Unit, Place { rows, cols }: Place, panels: Panels) {
        let each = rows.len() * cols.len();
        let within = |source: &Self| {
            let [m, n] = source.size();
            let [rows, cols] = [(&rows, m), (&cols, n)].map(|(range, end)| range.start.min(end)..range.end.min(end));
            source.part(rows, cols)
        };
        let planes = operand.planes;
        with_room(if matches!(operand.sources, Sources::One(_)) { each } else { 4 * each }, |room| {
            // SAFETY: room for each source, which nobody else writes, of numbers of which every bit pattern is valid and which the map
            // has set to zero at first.
            let room = |i| unsafe { std::slice::from_raw_parts_mut(room.cast::<f32>().add(i * each), each) };
            let sources = match &operand.sources {
                Sources::One(source) => Sources::One(within(source).decode(room(0))),
                Sources::Quarters(quarters) => {
                    Sources::Quarters(std::array::from_fn(|i| within(&quarters[i]).decode(room(i))))
                }
            };
            let place = Place { rows: 0..rows.len(), cols: 0..cols.len() };
            // SAFETY: as this function requires; the views are those of numbers in the room.
            unsafe { unit.pack(&Operand { sources, planes }, place, panels) };
        });
    }
}

/// Room for packed planes; the panels of a plane follow one another.
#[derive(Clone, Copy)]
struct Panels {
    ptr: *mut u32,
    /// Rows in a panel.
    rows: usize,
    /// Words of a panel.
    each: usize,
    per_plane: usize,
}

// SAFETY: an address; whoever reads or writes there says why that is sound.
unsafe impl Sync for Panels {}

impl Panels {
    fn at(self, plane: usize, panel: usize) -> *mut u32 {
        self.ptr.wrapping_add((plane * self.per_plane + panel) * self.each)
    }
}

/// Rows and columns.
#[derive(Clone, Debug)]
struct Place {
    rows: Range<usize>,
    cols: Range<usize>,
}

/// What a product is added to: a factor, and numbers of the product's shape, the product's own places among them, or one row for all
/// (a stride of 0). With the factor 0 they are not read.
pub(super) type From = (f32, View<*const f32>);

/// Where a product goes: `c = beta·from + alpha·product`. What of the product is beyond c is lost.
#[derive(Clone, Copy)]
pub(super) struct Destination {
    pub(super) alpha: f32,
    pub(super) from: From,
    pub(super) c: View<*mut f32>,
}

impl Destination {
    /// What a slice of the inner dimension is added to.
    fn added_to(&self, slice: &Range<usize>) -> From {
        if slice.start == 0 { self.from } else { (1.0, self.c.read()) }
    }
}

impl Unit {
    /// The one for products of f32 operands as `precision` rounds them; without one, others multiply.
    pub(super) fn of(precision: Precision) -> Option<Self> {
        let most = instructions::most();
        Self::best_first(precision).iter().copied().find(|unit| unit.needs() <= most && unit.is_here())
    }

    fn best_first(precision: Precision) -> &'static [Self] {
        match precision {
            #[cfg(target_arch = "x86_64")]
            Precision::F32 => &[Self::Avx512, Self::Avx2],
            #[cfg(target_arch = "x86_64")]
            Precision::Bf16 => &[Self::Avx512Bf16, Self::Avx2Rounded, Self::Rounded],
            #[cfg(not(target_arch = "x86_64"))]
            Precision::F32 => &[],
            #[cfg(not(target_arch = "x86_64"))]
            Precision::Bf16 => &[Self::Rounded],
        }
    }

    pub(super) fn needs(self) -> Instructions {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Bf16 => Instructions::Avx512,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::Avx2Rounded => Instructions::Avx2,
            Self::Rounded => Instructions::Portable,
        }
    }

    /// Whether this machine has it.
    fn is_here(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => avx512::bf16_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::Avx2Rounded => avx2::available(),
            Self::Rounded => true,
        }
    }

    /// Columns of an operand in a word of four bytes.
    fn columns_per_word(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => 2,
            _ => 1,
        }
    }

    /// The inner dimension, in parts that are packed at once.
    fn slices(self, k: usize) -> Parts {
        Parts::new(k, DEPTH * self.columns_per_word(), 2 * LANES)
    }

    /// Words of four bytes in so many columns of a row.
    fn words(self, columns: usize) -> usize {
        columns.div_ceil(self.columns_per_word())
    }

    /// Rows of a in a panel.
    fn panel_rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::Avx2Rounded => avx2::PANEL_ROWS,
            _ => LANES,
        }
    }

    /// Words of the panels of a task's rows, of all planes. The more rows, the less often b is read; the panels of a plane that waits for its
    /// turn may go to the last-level cache and back. What was faster in each, measured.
    fn rows_words(self) -> usize {
        let rows = match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::Avx2Rounded => 96,
            _ => 32,
        };
        rows * strassen::PRODUCTS * DEPTH
    }

    /// Packs a part of an operand; of b, [`LANES`] rows into each panel.
    ///
    /// # Safety
    /// This machine has the unit. The sources are valid to read, the elements of each row or those of each column are neighbours. There
    /// is room for the panels of every plane, aligned to a vector.
    unsafe fn pack(self, operand: &Operand, place: Place, panels: Panels) {
        // SAFETY: as this function requires.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => avx512::pack_f32(operand, place, panels),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512Bf16 => avx512::pack_bf16(operand, place, panels),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => avx2::pack_f32(operand, place, panels),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2Rounded => avx2::pack_rounded(operand, place, panels),
                Self::Rounded => portable::pack(operand, place, panels),
            }
        }
    }

    /// A part of a·bᵀ, to its place in every target; of slices of the inner dimension all but the first are added to c.
    ///
    /// # Safety
    /// This machine has the unit. The panels are those of the place's rows and of its columns, one behind the other, packed from a slice
    /// of their columns. What targets are from is valid to read, they are to write, the elements of their rows are neighbours.
    unsafe fn multiply(self, panels: [*const u32; 2], slice: Range<usize>, targets: &[Destination], place: Place) {
        // SAFETY: as this function requires.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => avx512::multiply_f32(panels, slice, targets, place),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512Bf16 => avx512::multiply_bf16(panels, slice, targets, place),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 | Self::Avx2Rounded => avx2::multiply(panels, slice, targets, place),
                Self::Rounded => portable::multiply(panels.map(<*const u32>::cast), slice, targets, place),
            }
        }
    }

    /// `c = beta·from + alpha·a·b`, of the operands that the unit is for.
    ///
    /// # Safety
    /// This machine has the unit. The views must lie in memory that is valid to read (a, b, from) and to write by this call alone (c). In
    /// a and b the elements of each row or those of each column are neighbours, in c and from those of each row.
    pub(super) unsafe fn gemm<'a>(self, a: View<*const f32>, b: impl Into<Right<'a>>, to: Destination, parallel: bool) {
        // SAFETY: as this function requires.
        unsafe {
            match b.into() {
                Right::Plain(b) => {
                    debug_assert!(b.row_stride == 1 || b.col_stride == 1);
                    self.product(a, b.t(), to, parallel);
                }
                Right::Coded(b) => self.product(a, b.t(), to, parallel),
            }
        }
    }

    /// As [`Unit::gemm`], with bᵀ.
    unsafe fn product(self, a: View<*const f32>, bt: impl Source, to: Destination, parallel: bool) {
        let size = Size { m: a.rows, n: bt.size()[0], k: a.cols };
        debug_assert!(bt.size()[1] == size.k && to.c.size() == [size.m, size.n]);
        debug_assert!((a.row_stride == 1 || a.col_stride == 1) && to.c.col_stride == 1);
        if self.halves(size) {
            let half = size.half();
            let (a, b, targets) = strassen::quarters(half, a, bt, to);
            // SAFETY: as this function requires; quarters are parts of what they are of, and have no place in common.
            unsafe { blocked(self, half, (&a, &b), &targets, parallel) };
        } else {
            // SAFETY: as this function requires.
            unsafe { blocked(self, size, (&Operand::whole(a), &Operand::whole(bt)), &[[to]], parallel) };
        }
    }

    /// Whether a product is one of quarters: rounding to bf16 is for the numbers themselves, not for their sums.
    fn halves(self, size: Size) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx2 => size.worth_halving(),
            _ => false,
        }
    }

    /// Bytes of the packed operands of a product (m, k)·(k, n).
    pub(super) fn packing(self, m: usize, n: usize, k: usize) -> usize {
        let size = Size { m, n, k };
        let halves = self.halves(size);
        let (size, planes) = if halves { (size.half(), strassen::PRODUCTS) } else { (size, 1) };
        let blocks = Blocks::new(self, planes, size);
        blocks.room(self, planes) * size_of::<u32>()
    }
}

/// The right factor of a product: a matrix in memory, or one in codes.
pub(super) enum Right<'a> {
    Plain(View<*const f32>),
    Coded(CodedView<'a, f32>),
}

impl std::convert::From<View<*const f32>> for Right<'_> {
    fn from(view: View<*const f32>) -> Self {
        Self::Plain(view)
    }
}

impl<'a> std::convert::From<CodedView<'a, f32>> for Right<'a> {
    fn from(view: CodedView<'a, f32>) -> Self {
        Self::Coded(view)
    }
}

/// Of a product (m, k)·(k, n).
#[derive(Clone, Copy, Debug)]
struct Size {
    m: usize,
    n: usize,
    k: usize,
}

/// How a product is cut.
struct Blocks {
    /// Of a, which the thread that multiplies them packs.
    rows: Parts,
    /// Of b, which all threads pack.
    columns: Parts,
    slices: Parts,
}

impl Blocks {
    fn new(unit: Unit, planes: usize, Size { m, n, k }: Size) -> Self {
        let slices = unit.slices(k);
        let words = planes * unit.words(slices.longest());
        let [rows, columns] =
            [unit.rows_words(), COLUMNS_WORDS].map(|room| (room / words.max(1)).next_multiple_of(LANES));
        let rows = Parts::new(m, rows.min(TASK_ROWS), unit.panel_rows());
        Self { rows, columns: Parts::new(n, columns, GROUP), slices }
    }

    /// Panels of a plane of b that are packed at once.
    fn panels(&self) -> usize {
        self.columns.longest().div_ceil(LANES)
    }

    /// Words of all of them.
    fn room(&self, unit: Unit, planes: usize) -> usize {
        planes * self.panels() * LANES * unit.words(self.slices.longest())
    }
}

/// The products of planes of a and of b, `aᵢ·bᵢᵀ`, each to its targets, one after the other at every place.
///
/// # Safety
/// As [`Unit::gemm`], for every source and target; targets of one product have no place in common.
unsafe fn blocked(
    unit: Unit,
    size: Size,
    (a, b): (&Operand, &Operand<impl Source>),
    targets: &[impl AsRef<[Destination]> + Sync],
    parallel: bool,
) {
    let Size { m, n, k } = size;
    if m == 0 || n == 0 {
        return;
    }
    let planes = targets.len();
    let parallel = parallel && m * n * k >= WORTH_THREADS;
    let blocks = Blocks::new(unit, planes, size);
    let product = |room: Panels| {
        for columns in blocks.columns.iter() {
            for slice in blocks.slices.iter() {
                let panels = Panels { each: LANES * unit.words(slice.len()), ..room };
                // SAFETY: as this function requires, and there is room for the panels of the longest part; b is packed before it
                // is multiplied.
                unsafe {
                    pack(unit, b, Place { rows: columns.clone(), cols: slice.clone() }, panels, parallel);
                    multiply(unit, a, panels, (blocks.rows, columns.clone(), slice), targets, parallel);
                }
            }
        }
    };
    with_room(blocks.room(unit, planes), |ptr| {
        let room = Panels { ptr, rows: LANES, each: 0, per_plane: blocks.panels() };
        if parallel {
            // from within the pool, one phase follows another without waking anyone
            rayon::scope(|_| product(room));
        } else {
            product(room);
        }
    });
}

/// Packs a block.
///
/// # Safety
/// As [`Unit::pack`], for all panels.
unsafe fn pack(
    unit: Unit,
    operand: &Operand<impl Source>,
    Place { rows, cols }: Place,
    panels: Panels,
    parallel: bool,
) {
    for_each(parallel, rows.len().div_ceil(TASK_PANELS * LANES), |i| {
        let start = rows.start + i * TASK_PANELS * LANES;
        let place = Place { rows: start..rows.end.min(start + TASK_PANELS * LANES), cols: cols.clone() };
        // SAFETY: as this function requires; a panel is written by one task.
        unsafe { Source::pack(operand, unit, place, Panels { ptr: panels.at(0, i * TASK_PANELS), ..panels }) };
    });
}

/// Multiplies packed columns.
///
/// # Safety
/// As [`Unit::pack`] for a, and as [`Unit::multiply`].
unsafe fn multiply(
    unit: Unit,
    a: &Operand,
    b: Panels,
    (rows, columns, slice): (Parts, Range<usize>, Range<usize>),
    targets: &[impl AsRef<[Destination]> + Sync],
    parallel: bool,
) {
    // few rows are packed again for parts of the columns, so that there is work for all threads
    let tasks = if parallel { TASKS.div_ceil(rows.count()) } else { 1 };
    let parts = Parts::new(columns.len(), (columns.len() / tasks).max(1), GROUP);
    for_each(parallel, rows.count() * parts.count(), |task| {
        let (rows, part) = (rows.get(task / parts.count()), parts.get(task % parts.count()));
        let (height, each) = (unit.panel_rows(), unit.panel_rows() * unit.words(slice.len()));
        let per_plane = rows.len().div_ceil(height);
        with_room(targets.len() * per_plane * each, |ptr| {
            let panels = Panels { ptr, rows: height, each, per_plane };
            let place = Place { rows: rows.clone(), cols: slice.clone() };
            // SAFETY: as this function requires; a part of c is written by one task.
            unsafe { unit.pack(a, place, panels) };
            let place = Place { rows, cols: columns.start + part.start..columns.start + part.end };
            for (plane, targets) in targets.iter().enumerate() {
                let panels = [panels.at(plane, 0), b.at(plane, part.start / LANES)].map(<*mut u32>::cast_const);
                // SAFETY: as above.
                unsafe { unit.multiply(panels, slice.clone(), targets.as_ref(), place.clone()) };
            }
        });
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
fn with_room(words: usize, body: impl FnOnce(*mut u32)) {
    thread_local! {
        static KEPT: RefCell<Vec<Map>> = const { RefCell::new(Vec::new()) };
    }
    let bytes = words * size_of::<u32>();
    // taken out while in use: rows are packed beside columns, and a thread that waits for others may begin another product
    let kept = KEPT.with_borrow_mut(Vec::pop);
    let map = kept.filter(|map| map.len() >= bytes).unwrap_or_else(|| Map::new(bytes));
    body(map.as_ptr().cast());
    KEPT.with_borrow_mut(|kept| kept.push(map));
}

#[cfg(test)]
mod tests;
