//! Model families, one a file, and the checkpoints they come from.

pub mod atomic;
mod files;
pub mod header;
pub mod weights;
