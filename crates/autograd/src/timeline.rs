//! The memory timeline: live bytes after every op.

use colrow_tensor::Bytes;

/// Part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Forward pass.
    Forward,
    /// Backward pass.
    Backward,
    /// Weight update.
    Optimizer,
}

/// Live bytes after an op: a point of the memory timeline.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Mark {
    /// Part of the step.
    pub phase: Phase,
    /// The op's site.
    pub at: String,
    /// Live bytes by class.
    pub live: Bytes,
}
