//! What ops hold between the forward and the backward pass, and the ledger of it.

use std::collections::HashSet;
use std::sync::Arc;

use colrow_tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::compress::Quantised;
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
    /// A matrix in int8, its rounding stochastic: an unbiased copy.
    Quantised(Quantised),
    /// Made again from what another op keeps.
    Rebuild(Arc<dyn Rebuild>),
}

/// Makes a tensor again from what its producer keeps.
pub trait Rebuild: std::fmt::Debug + Send + Sync {
    /// The whole tensor.
    fn whole(&self) -> Tensor;
    /// The rows `index` of it.
    fn rows(&self, index: &Tensor) -> Tensor;
    /// Euclidean norms of all its rows.
    fn row_norms(&self) -> Tensor;
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
            Self::Quantised(_) => "int8",
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
