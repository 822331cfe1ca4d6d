//! One op a file: what it computes, what it keeps for the backward pass, its gradient.

mod activation;
mod attention;
mod compress;
mod dropout;
mod embedding;
mod grads;
mod head;
mod input;
mod kept;
#[cfg(test)]
mod lean_tests;
mod linear;
mod loss;
mod low_rank;
mod norm;
mod norm_memory;
mod param;
mod policy;
mod probe;
mod recompute;
mod rows;
mod sample;
mod tape;
pub mod testing;
mod variance;

pub use attention::{Attend, Sequences};
pub use compress::Bits;
pub use grads::Grads;
pub use head::Head;
pub use kept::{Kept, Ledger, LedgerEntry, Rebuild};
pub use low_rank::LowRank;
pub use norm_memory::{BatchPlaces, CachePlace, NormMemory, Places, RowsOf, Running};
pub use param::{Handle, Param, ParamId, Params};
pub use policy::{Keep, NormSource, Policy, Sampling, glob_matches, rows_of};
pub use probe::Probe;
pub use sample::{Draw, RowSample, draw, estimate_by, estimate_product, row_norms};
pub use tape::{Mark, Mode, Op, Phase, Recorded, Tape, Var, VarId};
pub use variance::{Bounds, GRID, LEAST_RATIO, Measured, Variances, grid};
