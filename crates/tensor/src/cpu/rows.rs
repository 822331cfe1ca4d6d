//! Moving rows: embedding lookups and their gradient, scattering.

use rayon::prelude::*;

use super::codes::Reader;
use crate::dtype::Float;

/// Columns that one task of the embedding gradient handles.
const COLUMNS: usize = 64;
const ROWS: usize = 64;

pub(super) fn embed<T: Float>(ids: &[u32], table: &Reader<'_, T>, add: bool, y: &mut [T]) {
    let d = table.cols();
    let buffer = || vec![T::ZERO; if table.exact().is_some() { 0 } else { d }];
    y.par_chunks_mut(ROWS * d).zip(ids.par_chunks(ROWS)).for_each_init(buffer, |buffer, (y, ids)| {
        for (y, &id) in y.chunks_exact_mut(d).zip(ids) {
            let row = table.row(id as usize, buffer);
            if add {
                y.iter_mut().zip(row).for_each(|(y, &x)| *y += x);
            } else {
                y.copy_from_slice(row);
            }
        }
    });
}

/// A table's base address, shared by tasks that write disjoint columns.
struct Columns<T>(*mut T);
// SAFETY: each task writes its own columns only.
unsafe impl<T> Sync for Columns<T> {}

pub(super) fn embed_backward<T: Float>(ids: &[u32], dy: &[T], d: usize, dtable: &mut [T]) {
    let rows = dtable.len() / d;
    assert!(ids.iter().all(|&id| (id as usize) < rows), "ids are below the table's length");
    let table = Columns(dtable.as_mut_ptr());
    let table = &table;
    // tokens in order within each column block: equal ids add up in the same order for any number of threads
    (0..d.div_ceil(COLUMNS)).into_par_iter().for_each(|block| {
        let (first, width) = (block * COLUMNS, COLUMNS.min(d - block * COLUMNS));
        for (dy, &id) in dy.chunks_exact(d).zip(ids) {
            // SAFETY: the row is below the table's length, and the columns belong to this task alone.
            let row = unsafe { std::slice::from_raw_parts_mut(table.0.add(id as usize * d + first), width) };
            row.iter_mut().zip(&dy[first..]).for_each(|(w, &g)| *w += g);
        }
    });
}

pub(super) fn scatter<T: Copy>(x: &[T], d: usize, index: &[u32], y: &mut [T]) {
    for (x, &i) in x.chunks_exact(d).zip(index) {
        y[i as usize * d..][..d].copy_from_slice(x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_ids_add_up() {
        let d = 70;
        let ids = [2, 0, 2];
        let dy: Vec<f64> = (0..3 * d).map(|i| i as f64).collect();
        let mut dtable = vec![1.0; 3 * d];
        embed_backward(&ids, &dy, d, &mut dtable);
        for c in 0..d {
            assert_eq!(dtable[c], 1.0 + dy[d + c]);
            assert_eq!(dtable[d + c], 1.0);
            assert_eq!(dtable[2 * d + c], 1.0 + dy[c] + dy[2 * d + c]);
        }
    }

    #[test]
    fn scatter_puts_rows_in_their_places() {
        let mut back = [0.0; 6];
        scatter(&[50.0, 60.0, 0.5, 1.0], 2, &[2, 0], &mut back);
        assert_eq!(back, [0.5, 1.0, 0.0, 0.0, 50.0, 60.0]);
    }
}
