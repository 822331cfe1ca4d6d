use proptest::prelude::*;

use super::*;
use crate::rng::Key;
use crate::{Class, Code, Coded, Device, Format, Stored};

/// So many that are packed at once, where the inner dimension is a slice.
const COLUMNS: usize = COLUMNS_WORDS / DEPTH;

/// Those of this machine, whatever the environment says.
fn units() -> Vec<Unit> {
    [Precision::F32, Precision::Bf16].into_iter().flat_map(units_of).collect()
}

fn units_of(precision: Precision) -> impl Iterator<Item = Unit> {
    Unit::best_first(precision).iter().copied().filter(|unit| unit.is_here())
}

/// Whether a unit rounds operands to bf16.
fn rounds(unit: Unit) -> bool {
    Unit::best_first(Precision::Bf16).contains(&unit)
}

/// What a unit makes of an operand's element.
fn operand(unit: Unit, x: f32) -> f32 {
    if rounds(unit) { portable::round(x) } else { x }
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
        unsafe { unit.gemm(a, b, Destination { alpha: self.alpha, from: (self.beta, to.read()), c: to }, true) };
        c
    }

    /// Pairs of the unit's operands whose products are the element (i, j), in order.
    fn terms(&self, unit: Unit, a: &Matrix, b: &Matrix, i: usize, j: usize) -> Vec<[f32; 2]> {
        let element = |x: &Matrix, transposed, i, j| if transposed { x.at(j, i) } else { x.at(i, j) };
        (0..self.size[2])
            .map(|l| [element(a, self.transposed[0], i, l), element(b, self.transposed[1], l, j)])
            .map(|pair| pair.map(|x| operand(unit, x)))
            .collect()
    }

    /// Against sums in f64. Each term of a sum is rounded at most once for each term, once where its slice joins the sum, and with
    /// alpha and beta (Higham 2002, section 3.1); u = ε/2. What is subnormal may be lost, each time less than the smallest
    /// normal number.
    fn check(&self) {
        let [a, b, before] = self.operands();
        let unit_roundoff = f64::from(f32::EPSILON) / 2.0;
        for unit in units() {
            let slices = unit.slices(self.size[2]);
            let roundings = (self.size[2] + slices.count() + 3) as f64;
            let after = self.run(unit, &a, &b, &before);
            for (place, (&x, &y)) in before.data.iter().zip(&after.data).enumerate() {
                let (i, j) = (place / before.stride, place % before.stride);
                if j >= before.cols {
                    assert_eq!(x.to_bits(), y.to_bits(), "{unit:?} {self:?} wrote between the rows of c");
                    continue;
                }
                let terms = self.terms(unit, &a, &b, i, j);
                let old = f64::from(self.beta) * f64::from(x);
                let (sum, size) = terms.iter().fold((old, old.abs()), |(sum, size), [a, b]| {
                    let term = f64::from(self.alpha) * f64::from(*a) * f64::from(*b);
                    (sum + term, size + term.abs())
                });
                let bound = roundings * unit_roundoff / (1.0 - roundings * unit_roundoff) * size
                    + roundings * f64::from(f32::MIN_POSITIVE);
                let error = (f64::from(y) - sum).abs();
                assert!(error <= bound, "{unit:?} {self:?} ({i}, {j}): {y} for {sum}, {error} > {bound}");
                if unit != Unit::Rounded {
                    let want = self.by_instruction(unit, &terms, x);
                    assert_eq!(y.to_bits(), want.to_bits(), "{unit:?} {self:?} ({i}, {j}): {y} for {want}");
                }
            }
        }
    }

    /// What multiply-adds make of an element, to the bit.
    fn by_instruction(&self, unit: Unit, terms: &[[f32; 2]], before: f32) -> f32 {
        unit.slices(terms.len()).iter().fold(before, |c, slice| {
            let beta = if slice.start == 0 { self.beta } else { 1.0 };
            let sum = terms[slice].chunks(unit.columns_per_word()).fold(0.0, |sum, word| {
                // vdpbf16ps begins with the second element of a pair; a missing one adds zero
                word.iter().rev().fold(sum, |sum, [a, b]| a.mul_add(*b, sum))
            });
            if beta == 0.0 { self.alpha * sum } else { beta.mul_add(c, self.alpha * sum) }
        })
    }
}

#[test]
fn every_transposition_matches_the_definition() {
    for transposed in [[false, false], [false, true], [true, false], [true, true]] {
        // edges of tiles, panels and pairs; several slices of the inner dimension; several blocks of rows, then of columns
        for size in
            [[37, 23, 65], [70, 51, 2 * DEPTH + 7], [TASK_ROWS + 20, 5, DEPTH + 1], [3, COLUMNS + 50, DEPTH + 40]]
        {
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

/// Matrices that are multiplied in quarters, with odd sizes, one or several slices and blocks of columns.
#[test]
fn products_of_quarters_are_close_to_the_definition() {
    let beta = 0.75;
    for unit in units_of(Precision::F32) {
        for (i, size) in
            [[385, 401, 390], [384, 384, 2 * DEPTH + 5], [421, 384 + 2 * COLUMNS, 393]].into_iter().enumerate()
        {
            for transposed in [[false, false], [false, true], [true, false], [true, true]] {
                let case = Case { size, transposed, gap: 3, alpha: -0.5, beta };
                let [m, n, k] = size;
                assert!(unit.halves(Size { m, n, k }));
                let [a, b, before] = case.operands();
                let largest = |x: &Matrix| x.data.iter().fold(0.0, |max: f64, x| max.max(f64::from(x.abs())));
                // strassen.rs has the bound of the product; beta, alpha and the additions of slices round the result again
                let of_product = (3 * k * k + 25 * k) as f64 * largest(&a) * largest(&b) * f64::from(case.alpha.abs());
                let again = 16.0 * (k as f64 * largest(&a) * largest(&b) + largest(&before));
                let bound = f64::from(f32::EPSILON) / 2.0 * (of_product + again);
                let after = case.run(unit, &a, &b, &before);
                // a few rows of each quarter
                for row in (i..m).step_by(37) {
                    for column in 0..n {
                        let old = f64::from(beta) * f64::from(before.at(row, column));
                        let terms = case.terms(unit, &a, &b, row, column);
                        let sum: f64 = terms.iter().map(|[a, b]| f64::from(*a) * f64::from(*b)).sum();
                        let error = (f64::from(after.at(row, column)) - old - f64::from(case.alpha) * sum).abs();
                        assert!(error <= bound, "{case:?} ({row}, {column}): {error} > {bound}");
                        // the bound is of the worst case, and errors are of all signs
                        assert!(
                            error <= bound / 100.0,
                            "{case:?} ({row}, {column}): {error} beside a bound of {bound}"
                        );
                    }
                }
                for (place, (x, y)) in before.data.iter().zip(&after.data).enumerate() {
                    assert!(
                        place % before.stride < before.cols || x.to_bits() == y.to_bits(),
                        "{case:?} wrote between the rows of c"
                    );
                }
            }
        }
    }
}

#[test]
fn products_of_quarters_add_what_they_are_told_to() {
    for unit in units_of(Precision::F32) {
        let case = Case { beta: 0.5, ..Case::plain(389, 391, 2 * DEPTH + 40) };
        let [a, b, mut c] = case.operands();
        let row = c.data[..c.cols].to_vec();
        c.data.chunks_exact_mut(c.cols).for_each(|to| to.copy_from_slice(&row));
        let mut y = Matrix::filled(f32::NAN, c.rows, c.cols);
        let from = (case.beta, View::new(row.as_ptr(), c.rows, c.cols, 0));
        let to = View::new(y.data.as_mut_ptr(), c.rows, c.cols, c.cols);
        // SAFETY: the views are those of live matrices of matching sizes, and `y` is ours.
        unsafe { unit.gemm(a.view(), b.view(), Destination { alpha: case.alpha, from, c: to }, true) };
        assert_eq!(y.bits(), case.run(unit, &a, &b, &c).bits());
        let case = Case { beta: 0.0, ..case };
        let nan = Matrix::filled(f32::NAN, c.rows, c.cols);
        assert_eq!(case.run(unit, &a, &b, &nan).bits(), case.run(unit, &a, &b, &c).bits());
    }
}

/// On every unit that this machine has: plain products, quarters with borders within groups, several slices; scales that are not finite.
#[test]
fn factors_in_codes_are_their_numbers() {
    let device = Device::cpu();
    for size in [[37, 23, 65], [21, COLUMNS + 51, 2 * DEPTH + 7], [385, 401, 790], [3, 70, 1]] {
        for (transposed, code) in [
            (false, Code::Int8),
            (true, Code::Int8),
            (true, Code::Bf16),
            (false, Code::Int4),
            (true, Code::Nf4),
            (false, Code::Nf4),
        ] {
            let case = Case { size, transposed: [false, transposed], gap: 0, alpha: 0.75, beta: 0.5 };
            let [a, b, c] = case.operands();
            let mut weight = device.tensor(Class::Workspace, &[b.rows, b.cols], &b.data);
            for (i, odd) in [f32::NAN, f32::INFINITY, f32::MAX].into_iter().enumerate().take(b.rows - 1) {
                weight.write_range((i + 1) * b.cols - 1, &[odd]);
            }
            let mut coded = Coded::empty_like(&weight, Format { code, group: 64 });
            device.kernels().quantise(None, &weight, &mut coded);
            device.kernels().read_rows(&Stored::Coded(&coded).into(), None, &mut weight);
            let numbers = Matrix { data: weight.to_vec(), ..b };
            for unit in units() {
                let want = case.run(unit, &a, &numbers, &c);
                let mut got = c.clone();
                let to = View::new(got.data.as_mut_ptr(), got.rows, got.cols, got.stride);
                let to = Destination { alpha: case.alpha, from: (case.beta, to.read()), c: to };
                let b = CodedView::new(&coded);
                // SAFETY: the views are those of live matrices of matching sizes, and `got` is ours.
                unsafe { unit.gemm(a.view(), if transposed { b.t() } else { b }, to, true) };
                assert!(got.bits() == want.bits(), "{unit:?} {case:?} {code:?}");
            }
        }
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
    let case = Case { beta: 0.5, ..Case::plain(TASK_ROWS + 21, COLUMNS + 50, DEPTH + 40) };
    let [a, b, mut c] = case.operands();
    let row = c.data[..c.cols].to_vec();
    c.data.chunks_exact_mut(c.cols).for_each(|to| to.copy_from_slice(&row));
    for unit in units() {
        let mut y = Matrix::filled(f32::NAN, c.rows, c.cols);
        let from = (case.beta, View::new(row.as_ptr(), c.rows, c.cols, 0));
        let to = View::new(y.data.as_mut_ptr(), c.rows, c.cols, c.cols);
        // SAFETY: the views are those of live matrices of matching sizes, and `y` is ours.
        unsafe { unit.gemm(a.view(), b.view(), Destination { alpha: case.alpha, from, c: to }, true) };
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
    for unit in units().into_iter().filter(|&unit| rounds(unit)) {
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
    for unit in units().into_iter().filter(|&unit| rounds(unit)) {
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
            // in quarters, if of f32
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
    let alone = case.run(Unit::of(Precision::Bf16).unwrap(), &a, &b, &c).bits();
    (0..64)
        .into_par_iter()
        .for_each(|_| assert!(case.run(Unit::of(Precision::Bf16).unwrap(), &a, &b, &c).bits() == alone));
}
