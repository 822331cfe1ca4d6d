//! How many rows are kept for certain.

/// |C|: how many of the rows with the largest probabilities are kept for certain where k rows are kept in all. It minimises `(1 − Σ_C p)/(k − |C|)` over
/// `0 ≤ |C| < k` (docs/wta-crs.md), the first of equals; `outside(c)` is what the others' probabilities sum to without the c largest. The
/// next row then is one that would be drawn less than once among the k − |C| that are left.
pub fn certain_rows(k: usize, outside: impl Fn(usize) -> f64) -> usize {
    let factor = |c: usize| outside(c) / (k - c) as f64;
    (0..k).min_by(|&a, &b| factor(a).total_cmp(&factor(b))).unwrap_or(0)
}
