//! The training loop and what it needs: recipes, data, metrics, checkpoints.

pub mod data;
pub mod metrics;
pub mod tasks;
