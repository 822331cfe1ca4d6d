//! What ops hold between the forward and the backward pass, and the ledger of it.

use std::collections::HashSet;
use std::sync::Arc;

use colrow_tensor::{Class, Code, Coded, Device, Rows, Stored, Tensor};
use serde::{Deserialize, Serialize};

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

/// Makes a tensor again from what its producer keeps.
pub trait Rebuild: std::fmt::Debug + Send + Sync {
    /// The whole tensor.
    fn whole(&self) -> Tensor;
    /// The rows `index` (k, u32) of it.
    fn rows(&self, index: &Tensor) -> Tensor;
}

impl Kept {
    /// The tensors held here; what is rebuilt is held, and counted, by its producer.
    pub fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::Nothing | Self::Rebuild(_) => vec![],
            Self::Exact(t) => vec![t],
            Self::Rows { rows, sample } => vec![rows, &sample.index, &sample.scale],
            Self::Quantised(q) => vec![&q.codes, &q.scale],
        }
    }

    /// A matrix that an op keeps whole, as it was or in fewer bits.
    pub(crate) fn stored(&self) -> Stored<'_> {
        match self {
            Self::Exact(t) => Stored::Exact(t),
            Self::Quantised(q) => Stored::Coded(q),
            other => unreachable!("this op keeps a whole matrix, not {other:?}"),
        }
    }

    /// Rows of such a matrix: all, or those that `index` names.
    pub(crate) fn picked<'a>(&'a self, index: Option<&'a Tensor>) -> Rows<'a> {
        Rows { of: self.stored(), index }
    }

    /// Where such a matrix lives.
    pub(crate) fn device(&self) -> &Device {
        match self.stored() {
            Stored::Exact(t) => t.device(),
            Stored::Coded(q) => q.codes.device(),
        }
    }

    /// Those rows as numbers.
    pub(crate) fn read(&self, index: Option<&Tensor>) -> Tensor {
        let (rows, device) = (self.picked(index), self.device());
        let mut x = device.empty(Class::Workspace, rows.of.dtype(), &[rows.len(), rows.of.cols()]);
        device.kernels().read_rows(&rows, None, &mut x);
        x
    }

    /// The tensor that an op always keeps as it was.
    pub(crate) fn exact(&self) -> &Tensor {
        match self {
            Self::Exact(t) => t,
            other => unreachable!("this op keeps an exact tensor, not {other:?}"),
        }
    }

    /// A word for the ledger.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Exact(_) => "exact",
            Self::Rows { .. } => "rows",
            Self::Quantised(q) => match q.format.code {
                Code::Int8 | Code::Positive8 => "int8",
                Code::Int4 => "int4",
                Code::Bf16 => "bf16",
            },
            Self::Rebuild(_) => "rebuild",
        }
    }
}

/// One line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// Where in the model.
    pub site: String,
    /// Which op.
    pub op: String,
    /// What is kept.
    pub what: String,
    /// How it is kept.
    pub keep: String,
    /// Bytes; 0 if an op above already counts the storage.
    pub bytes: usize,
}

/// Kept bytes by site and op; every storage is counted once, at the first op that keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ledger {
    /// In the order of the forward pass.
    pub entries: Vec<LedgerEntry>,
}

impl Ledger {
    /// All kept bytes.
    pub fn total(&self) -> usize {
        self.entries.iter().map(|e| e.bytes).sum()
    }

    pub(crate) fn of<'a>(ops: impl Iterator<Item = (&'a str, &'a dyn crate::Op)>) -> Self {
        let mut seen = HashSet::new();
        let mut entries = Vec::new();
        for (site, op) in ops {
            for (what, kept) in op.kept() {
                let new = |t: &&Tensor| seen.insert(t.storage_id());
                let bytes = kept.tensors().into_iter().filter(new).map(Tensor::bytes).sum();
                entries.push(LedgerEntry {
                    site: site.to_owned(),
                    op: op.name().to_owned(),
                    what: what.to_owned(),
                    keep: kept.name().to_owned(),
                    bytes,
                });
            }
        }
        Self { entries }
    }
}
