//! What ops hold between the forward and the backward pass.

use std::sync::Arc;

use colrow_tensor::rng::Key;
use colrow_tensor::{Class, Code, Coded, Device, Format, Rows, Stored, Tensor, named};

use crate::compress::{GROUP, quantised};
use crate::sample::RowSample;

/// What an op holds until its backward.
#[derive(Clone, Debug)]
pub enum Kept {
    /// Nothing.
    Nothing,
    /// A tensor as it was.
    Exact(Tensor),
    /// A sample of a matrix's rows.
    Rows {
        /// The drawn rows (k, d).
        rows: Tensor,
        /// Which rows they are, and their weights.
        sample: RowSample,
    },
    /// A matrix in fewer bits.
    Quantised(Coded),
    /// Made again from what another op keeps.
    Rebuild(Arc<dyn Rebuild>),
}

named! {
    /// How a [`Kept`] is kept.
    Form {
        /// Not at all.
        Nothing = "nothing",
        /// As it was.
        Exact = "exact",
        /// Drawn rows.
        Rows = "rows",
        /// Eight bits a number.
        Int8 = "int8",
        /// Four bits a number.
        Int4 = "int4",
        /// Sixteen bits a number.
        Bf16 = "bf16",
        /// Made again.
        Rebuild = "rebuild",
    }
}

/// Makes a tensor again from what its producer keeps.
pub trait Rebuild: std::fmt::Debug + Send + Sync {
    /// The whole tensor.
    fn whole(&self) -> Tensor;
    /// The rows `index` (k, u32) of it.
    fn rows(&self, index: &Tensor) -> Tensor;
}

impl Kept {
    /// A copy of x (n, d) in codes, 64 columns to a scale, rounded by random numbers of the stream `key`, so that its mean is x, or without one to the
    /// nearest.
    pub fn quantised(x: &Tensor, code: Code, key: Option<Key>) -> Self {
        Self::Quantised(quantised(x, Format { code, group: GROUP }, key))
    }

    /// The tensors held here; what is rebuilt is held, and counted, by its producer.
    pub fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::Nothing | Self::Rebuild(_) => vec![],
            Self::Exact(t) => vec![t],
            Self::Rows { rows, sample } => vec![rows, &sample.index, &sample.scale],
            Self::Quantised(q) => q.tensors().collect(),
        }
    }

    /// A matrix that an op keeps whole, as it was or in fewer bits; a mistake of the op, which panics, where it keeps something else.
    pub fn stored(&self) -> Stored<'_> {
        match self {
            Self::Exact(t) => Stored::Exact(t),
            Self::Quantised(q) => Stored::Coded(q),
            other => unreachable!("this op keeps a whole matrix, not {other:?}"),
        }
    }

    /// Rows of [`Kept::stored`]: all, or those that `index` (k, u32) names.
    pub fn picked<'a>(&'a self, index: Option<&'a Tensor>) -> Rows<'a> {
        Rows { of: self.stored(), index }
    }

    /// Where [`Kept::stored`] lives.
    pub fn device(&self) -> &Device {
        match self.stored() {
            Stored::Exact(t) => t.device(),
            Stored::Coded(q) => q.codes.device(),
        }
    }

    /// [`Kept::picked`] as numbers (k, d).
    pub fn read(&self, index: Option<&Tensor>) -> Tensor {
        let (rows, device) = (self.picked(index), self.device());
        let mut x = device.empty(Class::Workspace, rows.of.dtype(), &[rows.len(), rows.of.cols()]);
        device.kernels().read_rows(&rows, None, &mut x);
        x
    }

    /// The rows `index` of a matrix that is kept whole, or rebuilt.
    pub(crate) fn rows(&self, index: &Tensor) -> Tensor {
        match self {
            Self::Rebuild(x) => x.rows(index),
            kept => kept.read(Some(index)),
        }
    }

    /// A gradient that was kept as it is, from here on one in flight like any other.
    pub(crate) fn taken(self) -> Option<Tensor> {
        let Self::Exact(dx) = self else { return None };
        let dx = dx.into_owned();
        dx.reclass(Class::Workspace);
        Some(dx)
    }

    /// The tensor that an op always keeps as it was; a mistake of the op, which panics, where it keeps something else.
    pub fn exact(&self) -> &Tensor {
        match self {
            Self::Exact(t) => t,
            other => unreachable!("this op keeps an exact tensor, not {other:?}"),
        }
    }

    /// How it is kept, for the ledger.
    pub fn form(&self) -> Form {
        match self {
            Self::Nothing => Form::Nothing,
            Self::Exact(_) => Form::Exact,
            Self::Rows { .. } => Form::Rows,
            Self::Quantised(q) => match q.format.code {
                Code::Int8 | Code::Positive8 => Form::Int8,
                Code::Int4 | Code::Nf4 => Form::Int4,
                Code::Bf16 => Form::Bf16,
            },
            Self::Rebuild(_) => Form::Rebuild,
        }
    }
}
