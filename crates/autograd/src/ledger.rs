//! The ledger: what the recorded ops keep, by site.

use std::collections::HashSet;

use colrow_tensor::{Named, Tensor};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use crate::kept::Form;
use crate::op::Op;

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
    #[serde(deserialize_with = "form_by_name")]
    pub keep: Form,
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

    pub(crate) fn of<'a>(ops: impl Iterator<Item = (&'a str, &'a dyn Op)>) -> Self {
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
                    keep: kept.form(),
                    bytes,
                });
            }
        }
        Self { entries }
    }
}

fn form_by_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Form, D::Error> {
    let name = String::deserialize(deserializer)?;
    Form::find(&name).ok_or_else(|| D::Error::custom(format!("nothing is kept as {name:?}")))
}
