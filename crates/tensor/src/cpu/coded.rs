//! A matrix in codes as the operand of a product. It is decoded part by part, as products take it, and never as a whole.

use std::ops::Range;

use super::codes::Reader;
use super::view::View;
use crate::codes::{Coded, Stored};
use crate::dtype::Float;

/// Rows and columns of a matrix in codes, or of its transpose.
#[derive(Clone)]
pub(super) struct CodedView<'a, T> {
    reader: Reader<'a, T>,
    rows: Range<usize>,
    cols: Range<usize>,
    transposed: bool,
}

impl<'a, T: Float> CodedView<'a, T> {
    /// The whole matrix.
    pub(super) fn new(coded: &'a Coded) -> Self {
        let stored = Stored::Coded(coded);
        let (rows, cols) = (0..stored.rows(), 0..stored.cols());
        Self { reader: Reader::new(&stored.into()), rows, cols, transposed: false }
    }

    /// Rows and columns.
    pub(super) fn size(&self) -> [usize; 2] {
        [self.rows.len(), self.cols.len()]
    }

    /// The transpose.
    pub(super) fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, transposed: !self.transposed, ..self }
    }

    /// The matrix of some rows and columns.
    pub(super) fn part(&self, rows: Range<usize>, cols: Range<usize>) -> Self {
        let within = |all: &Range<usize>, some: Range<usize>| all.start + some.start..all.start + some.end;
        Self { rows: within(&self.rows, rows), cols: within(&self.cols, cols), ..self.clone() }
    }

    /// Writes its numbers to `room`, which has as many, and returns where they stand.
    pub(super) fn decode(&self, room: &mut [T]) -> View<*const T> {
        let (rows, cols) = if self.transposed { (&self.cols, &self.rows) } else { (&self.rows, &self.cols) };
        if !cols.is_empty() {
            let numbers = room.chunks_exact_mut(cols.len());
            rows.clone().zip(numbers).for_each(|(row, y)| self.reader.read(row, cols.start, y));
        }
        let view = View::new(room.as_ptr(), rows.len(), cols.len(), cols.len());
        if self.transposed { view.t() } else { view }
    }
}
