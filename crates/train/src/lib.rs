//! The training loop and what it needs: recipes, data, metrics, checkpoints.

pub mod checkpoint;
pub mod data;
mod digests;
pub mod draft;
pub mod evaluate;
pub mod fit;
pub mod folder;
pub mod inspect;
pub mod job;
pub mod keeping;
pub mod machine;
pub mod metrics;
pub mod objective;
pub mod odd;
pub mod plan;
pub mod prepare;
pub mod ratios;
pub mod recipe;
mod resume;
pub mod schedule;
pub mod score;
pub mod step;
pub mod tasks;
pub mod trained;
pub mod trainer;
mod unknown;
pub mod usage;
