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

    /// `c = beta·from + alpha·a·bᵀ`.
    ///
    /// # Safety
    /// This machine has the unit. a and b hold the panels of c's rows and of its columns, one behind the other, packed from `depth`
    /// columns. from is valid to read and c to write, the elements of their rows are neighbours.
    unsafe fn multiply(self, alpha: f32, [a, b]: [*const u32; 2], depth: usize, (beta, from): From, c: View<*mut f32>) {
        // SAFETY: as this function requires.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => avx512::multiply(alpha, [a, b], depth, (beta, from), c),
                Self::Portable => portable::multiply(alpha, [a.cast(), b.cast()], depth, (beta, from), c),
            }
        }
    }
}

/// What a product is added to: a factor, and numbers of the product's shape, the product's own places among them, or one row for all
/// (a stride of 0). With the factor 0 they are not read.
type From = (f32, View<*const f32>);

/// `c = beta·from + alpha·a·b` with a and b rounded to bf16.
///
/// # Safety
/// The views must lie in memory that is valid to read (a, b, from) and to write by this call alone (c). In a and b the elements of
/// each row or those of each column are neighbours, in c and from those of each row.
pub(super) unsafe fn gemm(
    alpha: f32,
    a: View<*const f32>,
    b: View<*const f32>,
    (beta, from): From,
    c: View<*mut f32>,
    parallel: bool,
) {
    // SAFETY: as this function requires; the unit was found on this machine.
    unsafe { gemm_on(Unit::detect(), alpha, a, b, (beta, from), c, parallel) }
}

/// [`gemm`] on a unit that this machine has.
unsafe fn gemm_on(
    unit: Unit,
    alpha: f32,
    a: View<*const f32>,
    b: View<*const f32>,
    (beta, from): From,
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
    let [of_a, of_b] = [rows, columns].map(|parts| parts.longest().div_ceil(LANES));
    let product = |room: View<*mut u32>| {
        for columns in columns.iter() {
            for slice in slices.iter() {
                let each = unit.panel_words(slice.len());
                let panels = View::new(room.ptr, of_a + of_b, each, each);
                let (panels_a, panels_b) = (panels.part(0..of_a, 0..each), panels.part(of_a..of_a + of_b, 0..each));
                let (beta, from) = if slice.start == 0 { (beta, from) } else { (1.0, c.read()) };
                // SAFETY: as this function requires, and there is room for the panels of the longest parts.
                unsafe { pack(unit, b.part(slice.clone(), columns.clone()).t(), panels_b, parallel) };
                for rows in rows.iter() {
                    let a = a.part(rows.clone(), slice.clone());
                    let from = (beta, from.part(rows.clone(), columns.clone()));
                    let c = c.part(rows, columns.clone());
                    // SAFETY: as above; both blocks are packed before they are multiplied.
                    unsafe {
                        pack(unit, a, panels_a, parallel);
                        multiply(unit, alpha, [panels_a, panels_b], slice.len(), from, c, parallel);
                    }
                }
            }
        }
    };
    let words = (of_a + of_b) * unit.panel_words(slices.longest());
    with_buffer(words, |buffer| {
        let room = View::new(buffer, 1, words, words);
        if parallel {
            // from within the pool, one phase follows another without waking anyone
            rayon::scope(|_| product(room));
        } else {
            product(room);
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
    (beta, from): From,
    c: View<*mut f32>,
    parallel: bool,
) {
    let (rows, columns) = (Parts::new(c.rows, TASK_ROWS, LANES), Parts::new(c.cols, TASK_COLUMNS, GROUP));
    for_each(parallel, rows.count() * columns.count(), |task| {
        let (rows, columns) = (rows.get(task % rows.count()), columns.get(task / rows.count()));
        let panels = [a.at(rows.start / LANES, 0), b.at(columns.start / LANES, 0)].map(<*mut u32>::cast_const);
        // SAFETY: as this function requires; a part of c is written by one task.
        unsafe {
            let from = (beta, from.part(rows.clone(), columns.clone()));
            unit.multiply(alpha, panels, depth, from, c.part(rows, columns));
        };
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Key;

    fn units() -> Vec<Unit> {
        let mut units = vec![Unit::detect(), Unit::Portable];
        units.dedup();
        units
    }

    /// A row-major matrix with `gap` elements between its rows.
    #[derive(Clone)]
    struct Matrix {
        rows: usize,
        cols: usize,
        stride: usize,
        data: Vec<f32>,
    }

    impl Matrix {
        fn random(key: Key, rows: usize, cols: usize, gap: usize) -> Self {
            let stride = cols + gap;
            Self { rows, cols, stride, data: (0..rows * stride).map(|i| key.normal(i as u64) as f32).collect() }
        }

        fn filled(value: f32, rows: usize, cols: usize) -> Self {
            Self { rows, cols, stride: cols, data: vec![value; rows * cols] }
        }

        fn view(&self) -> View<*const f32> {
            View::new(self.data.as_ptr(), self.rows, self.cols, self.stride)
        }

        fn at(&self, i: usize, j: usize) -> f32 {
            self.data[i * self.stride + j]
        }

        fn bits(&self) -> Vec<u32> {
            self.data.iter().map(|x| x.to_bits()).collect()
        }
    }

    /// A product with op(a) (m, k) and op(b) (k, n), each stored transposed if it says so.
    #[derive(Clone, Copy, Debug)]
    struct Case {
        size: [usize; 3],
        transposed: [bool; 2],
        gap: usize,
        alpha: f32,
        beta: f32,
    }

    impl Case {
        fn plain(m: usize, n: usize, k: usize) -> Self {
            Self { size: [m, n, k], transposed: [false; 2], gap: 0, alpha: 1.0, beta: 0.0 }
        }

        fn operands(&self) -> [Matrix; 3] {
            let [m, n, k] = self.size;
            let matrix = |seed, transposed, rows, cols| {
                let (rows, cols) = if transposed { (cols, rows) } else { (rows, cols) };
                Matrix::random(Key::new(seed), rows, cols, self.gap)
            };
            [matrix(1, self.transposed[0], m, k), matrix(2, self.transposed[1], k, n), matrix(3, false, m, n)]
        }

        fn run(&self, unit: Unit, a: &Matrix, b: &Matrix, c: &Matrix) -> Matrix {
            let mut c = c.clone();
            let view = |x: &Matrix, transposed: bool| if transposed { x.view().t() } else { x.view() };
            let (a, b) = (view(a, self.transposed[0]), view(b, self.transposed[1]));
            let to = View::new(c.data.as_mut_ptr(), c.rows, c.cols, c.stride);
            // SAFETY: the views are those of live matrices of matching sizes, and `c` is ours.
            unsafe { gemm_on(unit, self.alpha, a, b, (self.beta, to.read()), to, true) };
            c
        }

        /// Pairs of rounded operands whose products are the element (i, j), in order.
        fn terms(&self, a: &Matrix, b: &Matrix, i: usize, j: usize) -> Vec<[f32; 2]> {
            let element = |x: &Matrix, transposed, i, j| if transposed { x.at(j, i) } else { x.at(i, j) };
            (0..self.size[2])
                .map(|l| [element(a, self.transposed[0], i, l), element(b, self.transposed[1], l, j)])
                .map(|pair| pair.map(portable::round))
                .collect()
        }

        /// Against sums in f64. Each term of a sum is rounded at most once for each term, once where its slice joins the sum, and with
        /// alpha and beta (Higham 2002, section 3.1); u = ε/2. What is subnormal may be lost, each time less than the smallest
        /// normal number.
        fn check(&self) {
            let [a, b, before] = self.operands();
            let slices = Parts::new(self.size[2], DEPTH, 2 * LANES);
            let roundings = (self.size[2] + slices.count() + 3) as f64;
            let unit_roundoff = f64::from(f32::EPSILON) / 2.0;
            for unit in units() {
                let after = self.run(unit, &a, &b, &before);
                for (place, (&x, &y)) in before.data.iter().zip(&after.data).enumerate() {
                    let (i, j) = (place / before.stride, place % before.stride);
                    if j >= before.cols {
                        assert_eq!(x.to_bits(), y.to_bits(), "{unit:?} {self:?} wrote between the rows of c");
                        continue;
                    }
                    let terms = self.terms(&a, &b, i, j);
                    let old = f64::from(self.beta) * f64::from(x);
                    let (sum, size) = terms.iter().fold((old, old.abs()), |(sum, size), [a, b]| {
                        let term = f64::from(self.alpha) * f64::from(*a) * f64::from(*b);
                        (sum + term, size + term.abs())
                    });
                    let bound = roundings * unit_roundoff / (1.0 - roundings * unit_roundoff) * size
                        + roundings * f64::from(f32::MIN_POSITIVE);
                    let error = (f64::from(y) - sum).abs();
                    assert!(error <= bound, "{unit:?} {self:?} ({i}, {j}): {y} for {sum}, {error} > {bound}");
                    if unit != Unit::Portable {
                        let want = self.by_instruction(slices, &terms, x);
                        assert_eq!(y.to_bits(), want.to_bits(), "{unit:?} {self:?} ({i}, {j}): {y} for {want}");
                    }
                }
            }
        }

        /// What `vdpbf16ps` makes of an element, to the bit.
        fn by_instruction(&self, slices: Parts, terms: &[[f32; 2]], before: f32) -> f32 {
            slices.iter().fold(before, |c, slice| {
                let beta = if slice.start == 0 { self.beta } else { 1.0 };
                let sum = terms[slice].chunks(2).fold(0.0, |sum, pair| {
                    // a missing second element adds zero
                    pair.iter().rev().fold(sum, |sum, [a, b]| a.mul_add(*b, sum))
                });
                if beta == 0.0 { self.alpha * sum } else { beta.mul_add(c, self.alpha * sum) }
            })
        }
    }

    #[test]
    fn every_transposition_matches_the_definition() {
        for transposed in [[false, false], [false, true], [true, false], [true, true]] {
            // edges of tiles, panels and pairs; several slices of the inner dimension; several blocks of rows, then of columns
            for size in [[37, 23, 65], [70, 51, 2 * DEPTH + 7], [BLOCK + 20, 5, DEPTH + 1], [3, BLOCK + 50, 33]] {
                Case { size, transposed, gap: 3, alpha: 0.75, beta: -0.5 }.check();
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(1), ..ProptestConfig::default() })]

        #[test]
        fn any_size_matches_the_definition(
            size in prop::array::uniform3(1_usize..200),
            transposed in prop::array::uniform2(any::<bool>()),
            gap in 0_usize..20,
            beta in prop::sample::select(vec![0.0_f32, 1.0, 0.3]),
        ) {
            Case { size, transposed, gap, alpha: 1.0, beta }.check();
        }
    }

    #[test]
    fn an_empty_inner_dimension_scales_c() {
        let case = Case { beta: 0.5, ..Case::plain(5, 20, 0) };
        let [a, b, c] = case.operands();
        for unit in units() {
            let halves: Vec<f32> = c.data.iter().map(|x| 0.5 * x).collect();
            assert_eq!(case.run(unit, &a, &b, &c).data, halves, "{unit:?}");
            assert!(Case { beta: 0.0, ..case }.run(unit, &a, &b, &c).data.iter().all(|&x| x == 0.0), "{unit:?}");
        }
    }

    #[test]
    fn what_is_added_may_stand_elsewhere() {
        // several blocks of rows, of columns and of the inner dimension
        let case = Case { beta: 0.5, ..Case::plain(BLOCK + 21, BLOCK + 50, DEPTH + 40) };
        let [a, b, mut c] = case.operands();
        let row = c.data[..c.cols].to_vec();
        c.data.chunks_exact_mut(c.cols).for_each(|to| to.copy_from_slice(&row));
        for unit in units() {
            let mut y = Matrix::filled(f32::NAN, c.rows, c.cols);
            let from = (case.beta, View::new(row.as_ptr(), c.rows, c.cols, 0));
            let to = View::new(y.data.as_mut_ptr(), c.rows, c.cols, c.cols);
            // SAFETY: the views are those of live matrices of matching sizes, and `y` is ours.
            unsafe { gemm_on(unit, case.alpha, a.view(), b.view(), from, to, true) };
            assert_eq!(y.bits(), case.run(unit, &a, &b, &c).bits(), "{unit:?}");
        }
    }

    #[test]
    fn with_beta_0_c_is_not_read() {
        let case = Case::plain(21, 50, DEPTH + 40);
        let [a, b, c] = case.operands();
        let nan = Matrix::filled(f32::NAN, c.rows, c.cols);
        for unit in units() {
            assert_eq!(case.run(unit, &a, &b, &nan).bits(), case.run(unit, &a, &b, &c).bits(), "{unit:?}");
        }
    }

    #[test]
    fn what_is_not_finite_stays_in_its_row_and_column() {
        let case = Case::plain(21, 37, 45);
        let [mut a, mut b, c] = case.operands();
        // the largest f32 is beyond the largest bf16
        let [nan, infinite, large] = [20, 3, 4];
        a.data[nan * a.stride + 44] = f32::NAN;
        a.data[infinite * a.stride + 44] = f32::INFINITY;
        a.data[large * a.stride + 44] = f32::MAX;
        b.data[36] = f32::NEG_INFINITY;
        for unit in units() {
            let y = case.run(unit, &a, &b, &c);
            for i in 0..y.rows {
                for j in 0..y.cols {
                    let (y, last) = (y.at(i, j), b.at(44, j));
                    match (i, j) {
                        (i, _) if i == nan => assert!(y.is_nan(), "{unit:?} ({i}, {j}): {y}"),
                        (i, 36) if i == infinite || i == large => {
                            // two infinities, of one sign or not
                            let other = -a.at(i, 0).signum() * f32::INFINITY;
                            let want = f32::INFINITY * last.signum() + other;
                            assert!(y == want || y.is_nan() && want.is_nan(), "{unit:?} ({i}, {j}): {y} for {want}");
                        }
                        (i, _) if i == infinite || i == large => {
                            assert_eq!(y, f32::INFINITY * last.signum(), "{unit:?} ({i}, {j})");
                        }
                        (i, 36) => assert_eq!(y, -a.at(i, 0).signum() * f32::INFINITY, "{unit:?} ({i}, {j})"),
                        _ => assert!(y.is_finite(), "{unit:?} ({i}, {j}): {y}"),
                    }
                }
            }
        }
    }

    /// Packing by rows and by columns, on every unit, rounds as [`portable::round`] does, and that as bf16 is defined.
    #[test]
    fn rounding_is_to_nearest_even() {
        let cases: [(u32, u32); 14] = [
            (0x3f80_0000, 0x3f80_0000),
            (0x3f80_7fff, 0x3f80_0000),
            (0x3f80_8000, 0x3f80_0000),
            (0x3f80_8001, 0x3f81_0000),
            (0x3f81_8000, 0x3f82_0000),
            (0xbf81_7fff, 0xbf81_0000),
            (0x3fff_8000, 0x4000_0000),
            (0x7f7f_7fff, 0x7f7f_0000),
            (0x7f7f_8000, 0x7f80_0000),
            (0xff80_0000, 0xff80_0000),
            (0x0080_0000, 0x0080_0000),
            (0x007f_ffff, 0),
            (0x8000_0001, 0x8000_0000),
            (0x8000_0000, 0x8000_0000),
        ];
        for (x, want) in cases {
            assert_eq!(portable::round(f32::from_bits(x)).to_bits(), want, "{x:08x}");
        }
        assert!(portable::round(f32::from_bits(0x7f80_0001)).is_nan() && portable::round(f32::NAN).is_nan());
        // every upper half with lower halves around the tie; a column of those times 1
        let lower = [0_u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
        let values: Vec<f32> =
            (0..=0xffff_u32).flat_map(|upper| lower.map(|lower| f32::from_bits(upper << 16 | lower))).collect();
        let a = Matrix { rows: values.len(), cols: 1, stride: 1, data: values.clone() };
        let at = Matrix { rows: 1, cols: values.len(), stride: values.len(), data: values };
        let one = Matrix::filled(1.0, 1, 1);
        for unit in units() {
            for (x, transposed) in [(&a, [false; 2]), (&at, [true, false])] {
                let case = Case { transposed, ..Case::plain(a.rows, 1, 1) };
                let y = case.run(unit, x, &one, &Matrix::filled(0.0, a.rows, 1));
                for (&x, &y) in x.data.iter().zip(&y.data) {
                    // a sum that starts at 0 has no −0
                    let want = portable::round(x) + 0.0;
                    let same = y.to_bits() == want.to_bits() || y.is_nan() && want.is_nan();
                    assert!(same, "{unit:?} {:08x}: {y} for {want}", x.to_bits());
                }
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        for unit in units() {
            for case in [
                Case { transposed: [false, true], ..Case::plain(700, 1536, 384) },
                Case { transposed: [true, false], beta: 1.0, ..Case::plain(384, 700, 2 * DEPTH + 9) },
            ] {
                let [a, b, c] = case.operands();
                let run = |threads| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    pool.install(|| case.run(unit, &a, &b, &c).bits())
                };
                let one = run(1);
                assert!(one == run(2) && one == run(4), "{unit:?} {case:?}");
            }
        }
    }

    /// A thread that waits for the tasks of its product takes up another one; each has a buffer of its own.
    #[test]
    fn products_run_at_once() {
        let case = Case::plain(130, 200, 100);
        let [a, b, c] = case.operands();
        let alone = case.run(Unit::detect(), &a, &b, &c).bits();
        (0..64).into_par_iter().for_each(|_| assert!(case.run(Unit::detect(), &a, &b, &c).bits() == alone));
    }
}
