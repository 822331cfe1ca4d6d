//! A range of columns of a row-major matrix: one of several matrices that lie side by side, such as q, k and v.

use rayon::prelude::*;

use crate::dtype::Float;

/// Rows that one task moves.
const ROWS: usize = 64;

/// `y = x[:, first..first + c]`, x (n, d).
pub(super) fn read<T: Float>(x: &[T], d: usize, first: usize, c: usize, y: &mut [T]) {
    assert!(first + c <= d, "columns of a matrix");
    y.par_chunks_mut(ROWS * c).zip(x.par_chunks(ROWS * d)).for_each(|(y, x)| {
        let rows = y.chunks_exact_mut(c).zip(x.chunks_exact(d));
        rows.for_each(|(y, x)| y.copy_from_slice(&x[first..first + c]));
    });
}

/// `y[:, first..first + c] = x`, y (n, d).
pub(super) fn write<T: Float>(x: &[T], c: usize, d: usize, first: usize, y: &mut [T]) {
    assert!(first + c <= d, "columns of a matrix");
    y.par_chunks_mut(ROWS * d).zip(x.par_chunks(ROWS * c)).for_each(|(y, x)| {
        let rows = y.chunks_exact_mut(d).zip(x.chunks_exact(c));
        rows.for_each(|(y, x)| y[first..first + c].copy_from_slice(x));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let (n, d, c, first) = (130, 5, 2, 2);
        let x: Vec<f64> = (0..n * c).map(|i| i as f64).collect();
        let mut y = vec![1.0; n * d];
        let mut back = vec![0.0; n * c];
        write(&x, c, d, first, &mut y);
        read(&y, d, first, c, &mut back);
        assert_eq!(back, x);
        let outside = (0..n * d).filter(|i| !(first..first + c).contains(&(i % d)));
        assert!(outside.clone().all(|i| y[i] == 1.0) && outside.count() == n * (d - c));
    }
}
