//! Matrices in fewer bits, and how kernels read a matrix that may be kept in them.

use crate::rng::Key;
use crate::tensor::Tensor;
use crate::{Class, DType, Device};

/// How a number is written in fewer bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// A byte: −127…127 times the group's scale, largest/127.
    Int8,
    /// Half a byte: −7…7 times the group's scale, largest/7. Two a byte, the first in the low half.
    Int4,
    /// A byte for numbers that are nowhere below 0: code c > 0 is (c − 1) times the group's scale, largest/254; code 0 is a number that is
    /// not above 0, so that the codes also tell which numbers are.
    Positive8,
    /// bfloat16: sign, exponent and the upper 7 bits of an f32's fraction. No scale.
    Bf16,
}

/// A code, and the number of neighbouring columns that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Format {
    /// How a number is written.
    pub code: Code,
    /// Columns that share a scale.
    pub group: usize,
}

impl Format {
    /// Bytes of the codes of `d` columns.
    pub fn bytes(self, d: usize) -> usize {
        match self.code {
            Code::Int8 | Code::Positive8 => d,
            Code::Int4 => d.div_ceil(2),
            Code::Bf16 => 2 * d,
        }
    }

    /// Scales of `d` columns.
    pub fn groups(self, d: usize) -> usize {
        if self.code == Code::Bf16 { 0 } else { d.div_ceil(self.group) }
    }
}

/// A matrix (n, d) in codes.
#[derive(Clone, Debug)]
pub struct Coded {
    /// How it is written.
    pub format: Format,
    /// Columns d.
    pub cols: usize,
    /// Codes (n, bytes of d columns, u8).
    pub codes: Tensor,
    /// Scales (n, groups of d columns), in the type that the matrix had.
    pub scale: Tensor,
}

impl Coded {
    /// Codes to be written, for a matrix like `x`, in [`Class::Workspace`].
    pub fn empty_like(x: &Tensor, format: Format) -> Self {
        Self::empty(x.device(), Class::Workspace, x.dtype(), [x.rows(), x.cols()], format)
    }

    /// Codes to be written, for a matrix of so many rows and columns.
    pub fn empty(device: &Device, class: Class, dtype: DType, [rows, cols]: [usize; 2], format: Format) -> Self {
        let codes = device.empty(class, DType::U8, &[rows, format.bytes(cols)]);
        let scale = device.empty(class, dtype, &[rows, format.groups(cols)]);
        Self { format, cols, codes, scale }
    }
}

/// A matrix as it is kept.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'a> {
    /// Its numbers.
    Exact(&'a Tensor),
    /// In codes.
    Coded(&'a Coded),
}

impl Stored<'_> {
    /// Rows n.
    pub fn rows(&self) -> usize {
        match self {
            Self::Exact(x) => x.rows(),
            Self::Coded(x) => x.codes.rows(),
        }
    }

    /// Columns d.
    pub fn cols(&self) -> usize {
        match self {
            Self::Exact(x) => x.cols(),
            Self::Coded(x) => x.cols,
        }
    }

    /// The type of the numbers.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Exact(x) => x.dtype(),
            Self::Coded(x) => x.scale.dtype(),
        }
    }
}

impl<'a> From<&'a Tensor> for Stored<'a> {
    fn from(x: &'a Tensor) -> Self {
        Self::Exact(x)
    }
}

/// Where a kernel puts a matrix that is kept.
#[derive(Debug)]
pub enum StoredMut<'a> {
    /// As it is.
    Exact(&'a mut Tensor),
    /// In codes, rounded by random numbers of a stream, or without one to the nearest.
    Coded(Option<Key>, &'a mut Coded),
}

/// Rows of a kept matrix: all of them, or those that `index` (k, u32) names.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The matrix.
    pub of: Stored<'a>,
    /// Which rows, in which order.
    pub index: Option<&'a Tensor>,
}

impl Rows<'_> {
    /// Number of rows named.
    pub fn len(&self) -> usize {
        self.index.map_or(self.of.rows(), Tensor::len)
    }

    /// Whether no row is named.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> From<Stored<'a>> for Rows<'a> {
    fn from(of: Stored<'a>) -> Self {
        Self { of, index: None }
    }
}

impl<'a> From<&'a Tensor> for Rows<'a> {
    fn from(x: &'a Tensor) -> Self {
        Stored::Exact(x).into()
    }
}
