//! Matrices in memory.

use std::ops::Range;

/// A matrix in memory: first element, rows, columns, and the distances between neighbours in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<P> {
    pub(super) ptr: P,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

// SAFETY: a view is an address; whoever reads or writes there says why that is sound.
unsafe impl<P> Sync for View<P> {}
// SAFETY: as above.
unsafe impl<P> Send for View<P> {}

/// A pointer, whether or not it may be written through.
pub(super) trait Pointer: Copy {
    /// The address so many elements further.
    fn forward(self, elements: usize) -> Self;
}

impl<T> Pointer for *const T {
    fn forward(self, elements: usize) -> Self {
        self.wrapping_add(elements)
    }
}

impl<T> Pointer for *mut T {
    fn forward(self, elements: usize) -> Self {
        self.wrapping_add(elements)
    }
}

impl<P: Pointer> View<P> {
    /// The address of an element.
    pub(super) fn at(self, row: usize, col: usize) -> P {
        self.ptr.forward(row * self.row_stride + col * self.col_stride)
    }

    /// The matrix of some rows and columns.
    pub(super) fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        Self { ptr: self.at(rows.start, cols.start), rows: rows.len(), cols: cols.len(), ..self }
    }
}

impl<T> View<*mut T> {
    /// The same matrix, to read.
    pub(super) fn read(self) -> View<*const T> {
        self.with(self.ptr.cast_const())
    }
}

impl<P> View<P> {
    /// A row-major matrix whose rows are `row_stride` elements apart.
    pub(super) fn new(ptr: P, rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { ptr, rows, cols, row_stride, col_stride: 1 }
    }

    /// The same places from another address.
    pub(super) fn with<Q>(self, ptr: Q) -> View<Q> {
        let Self { rows, cols, row_stride, col_stride, .. } = self;
        View { ptr, rows, cols, row_stride, col_stride }
    }

    /// The transpose, in place.
    pub(super) fn t(self) -> Self {
        let Self { ptr, rows, cols, row_stride, col_stride } = self;
        Self { ptr, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }
}
