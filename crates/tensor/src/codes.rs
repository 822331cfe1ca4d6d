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
    /// Half a byte: one of the 16 levels of NF4 times the group's largest absolute value. Two a byte, the first in the high half. The scales
    /// are in codes themselves: see [`Nested`].
    Nf4,
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
            Code::Int4 | Code::Nf4 => d.div_ceil(2),
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
    /// Scales (n, groups of d columns), in the type that the matrix had; of scales that are in codes, those of their blocks, and their mean.
    pub scale: Tensor,
    /// The scales, where they are in codes.
    pub nested: Option<Nested>,
}

/// The scales of a matrix in codes, one row's behind another's: each is a number of the dynamic map of 8 bits times the scale of its block of
/// [`Nested::BLOCK`], the largest distance from the mean of all, plus that mean. A scale that is not finite makes its block's numbers NaN.
#[derive(Clone, Debug)]
pub struct Nested {
    /// Codes (n, groups of d columns, u8).
    pub codes: Tensor,
    /// The scales of rows that were written, until all of them are.
    pub(crate) pending: Option<Pending>,
}

impl Nested {
    /// Scales of a block.
    pub const BLOCK: usize = 256;

    /// Scales have codes only when all of them are known.
    pub(crate) fn check_whole(&self) {
        assert!(self.pending.is_none(), "a matrix is read when all of its rows are written");
    }
}

/// Scales of a matrix of which not all rows are known.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    /// One row's behind another's; −1 if it is not known.
    pub(crate) scales: Vec<f32>,
    /// How many are not known.
    pub(crate) missing: usize,
}

impl Pending {
    pub(crate) fn new(count: usize) -> Self {
        Self { scales: vec![-1.0; count], missing: count }
    }

    /// Notes scales from one on.
    pub(crate) fn note(&mut self, first: usize, scales: impl Iterator<Item = f32>) {
        for (to, scale) in self.scales[first..].iter_mut().zip(scales) {
            self.missing -= usize::from(*to == -1.0);
            *to = scale;
        }
    }
}

impl Coded {
    /// Codes to be written, for a matrix like `x`, in [`Class::Workspace`].
    pub fn empty_like(x: &Tensor, format: Format) -> Self {
        Self::empty(x.device(), Class::Workspace, x.dtype(), [x.rows(), x.cols()], format)
    }

    /// Codes to be written, for a matrix of so many rows and columns.
    pub fn empty(device: &Device, class: Class, dtype: DType, [rows, cols]: [usize; 2], format: Format) -> Self {
        let codes = device.empty(class, DType::U8, &[rows, format.bytes(cols)]);
        let groups = format.groups(cols);
        if format.code != Code::Nf4 {
            return Self { format, cols, codes, scale: device.empty(class, dtype, &[rows, groups]), nested: None };
        }
        let scale = device.empty(class, dtype, &[(rows * groups).div_ceil(Nested::BLOCK) + 1]);
        let nested = Nested { codes: device.empty(class, DType::U8, &[rows, groups]), pending: None };
        Self { format, cols, codes, scale, nested: Some(nested) }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.tensors().map(Tensor::bytes).sum()
    }

    /// All that it is made of.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.codes, &self.scale].into_iter().chain(self.nested.iter().map(|nested| &nested.codes))
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
