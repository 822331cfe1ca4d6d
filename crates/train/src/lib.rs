//! The training loop and what it needs: recipes, data, metrics, checkpoints.

pub mod recipe;
pub mod schedule;
