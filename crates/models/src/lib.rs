//! Model families, one a file, and the checkpoints they come from.

pub mod atomic;
pub mod config;
mod files;
pub mod header;
pub mod hub;
pub mod matching;
pub mod save;
pub mod weights;
