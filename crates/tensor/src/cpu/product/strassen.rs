//! Fewer multiplications: seven products of quarters for eight (Strassen 1969).
//!
//! Sums of quarters are made while they are packed, and a product's tiles go from registers to every quarter of c that they belong to
//! (Huang, Smith, Henry and van de Geijn, 2016), so that nothing is kept between the products.
//!
//! Errors are small beside the largest elements of a and b, not beside each element of the product: with ‖·‖ the largest absolute value
//! and u = 2⁻²⁴, |ĉ − c| ≤ (3·k² + 25·k)·u·‖a‖·‖b‖ to first order, where the plain product has k² (Higham 2002, section 23.2.2, one
//! level of the recurrence).

use super::{Destination, Grid, Operand, Size, Sources};

/// Signed quarters of each sum: 0 and 1 are the upper ones, the first sign is plus.
type Sums = [&'static [(f32, usize)]; 7];

const OF_A: Sums = [
    &[(1.0, 0), (1.0, 3)],
    &[(1.0, 2), (1.0, 3)],
    &[(1.0, 0)],
    &[(1.0, 3)],
    &[(1.0, 0), (1.0, 1)],
    &[(1.0, 2), (-1.0, 0)],
    &[(1.0, 1), (-1.0, 3)],
];
/// Of the transpose.
const OF_B: Sums = [
    &[(1.0, 0), (1.0, 3)],
    &[(1.0, 0)],
    &[(1.0, 2), (-1.0, 3)],
    &[(1.0, 1), (-1.0, 0)],
    &[(1.0, 3)],
    &[(1.0, 0), (1.0, 2)],
    &[(1.0, 1), (1.0, 3)],
];
/// What each product is added to.
const OF_C: Sums = [
    &[(1.0, 0), (1.0, 3)],
    &[(1.0, 2), (-1.0, 3)],
    &[(1.0, 1), (1.0, 3)],
    &[(1.0, 0), (1.0, 2)],
    &[(-1.0, 0), (1.0, 1)],
    &[(1.0, 3)],
    &[(1.0, 0)],
];

pub(super) const PRODUCTS: usize = OF_C.len();
/// The least size of a quarter: below it, packing sums and writing products to two quarters takes more than an eighth of the work.
const LEAST: usize = 192;

impl Size {
    /// Whether seven products are faster than eight.
    pub(super) fn worth_halving(self) -> bool {
        self.m.min(self.n).min(self.k) >= 2 * LEAST
    }

    /// Of the first quarter, whole panels; the others are as large or smaller.
    pub(super) fn half(self) -> Self {
        let Self { m, n, k } = self;
        let [m, n, k] = [m, n, k].map(|length| length.div_ceil(2).next_multiple_of(super::LANES));
        Self { m, n, k }
    }
}

/// The sums of quarters of a and of bᵀ, and to where each product of two of them goes, for quarters of a size.
pub(super) fn quarters<A: Grid, B: Grid>(
    Size { m, n, k }: Size,
    a: A,
    bt: B,
    to: Destination,
) -> (Operand<A>, Operand<B>, Vec<Vec<Destination>>) {
    let mut met = [false; 4];
    let targets = OF_C.map(|sum| {
        let target = |&(sign, quarter): &(f32, usize)| {
            let c = part(&to.c, quarter, m, n);
            let (beta, from) = to.from;
            let from = if met[quarter] { (1.0, c.read()) } else { (beta, part(&from, quarter, m, n)) };
            met[quarter] = true;
            Destination { alpha: sign * to.alpha, from, c }
        };
        sum.iter().map(target).collect()
    });
    (of(&a, m, k, &OF_A), of(&bt, n, k, &OF_B), targets.into())
}

fn of<G: Grid>(matrix: &G, rows: usize, cols: usize, planes: &'static Sums) -> Operand<G> {
    Operand { sources: Sources::Quarters([0, 1, 2, 3].map(|i| part(matrix, i, rows, cols))), planes }
}

/// A quarter of a matrix, the first of which has so many rows and columns.
fn part<G: Grid>(of: &G, quarter: usize, rows: usize, cols: usize) -> G {
    let half = |second: bool, first: usize, all: usize| {
        let first = first.min(all);
        if second { first..all } else { 0..first }
    };
    let [all_rows, all_cols] = of.size();
    of.part(half(quarter >= 2, rows, all_rows), half(quarter % 2 == 1, cols, all_cols))
}
