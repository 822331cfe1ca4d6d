//! Gradients, and what they cost in memory: a tape of ops, one a file, each with what it computes, what it keeps for the backward pass, and its
//! gradient; and the estimators that make do with a few rows of what a linear read.
//!
//! - [`Params`] are a model's parameters. A [`Tape`] over them records the [`Op`]s of a forward pass, gives each variable ([`Var`]) and tells by
//!   its [`Ledger`] what they keep ([`Kept`]); [`Tape::backward`] pops them in reverse into [`Grads`].
//! - A [`Policy`] says by site what an op keeps ([`Keep`]): all of it, drawn rows ([`Sampling`]), fewer bits, or nothing where its producer can
//!   make it again ([`Rebuild`]). [`HeldInput`] is that for the input of a weight gradient.
//! - [`NormMemory`] remembers the norms that rows are drawn by; [`Variances`] measures what drawing costs.
//! - [`testing`] checks an op: finite differences, precision, unbiasedness.
//!
//! The gradient of ‖x·Wᵀ + b‖² with rows of x drawn for dW:
//!
//! ```
//! use colrow_autograd::testing::{random, random_params, training};
//! use colrow_autograd::{Grads, Keep, NormSource, Policy, Sampling, Tape};
//! use colrow_tensor::rng::Key;
//! use colrow_tensor::{Class, DType, Device, Estimator};
//!
//! let device = Device::cpu();
//! let (params, [w, b]) = random_params(&device, DType::F32, [("w", &[4, 8]), ("b", &[4])]);
//! let kept = |keep| {
//!     let mut tape = Tape::new(&params, training(Key::new(1), false, Policy::everywhere(keep), None));
//!     let x = tape.constant(random(&device, DType::F32, Key::new(2), &[100, 8]));
//!     let y = tape.linear("layer", &x, w, Some(b));
//!     let loss = tape.mean_squared_error("loss", &y, &device.zeros(Class::Workspace, DType::F32, &[100, 4]));
//!     let kept = tape.ledger().entries[0].bytes;
//!     let mut grads = Grads::new(&params);
//!     tape.backward(loss, 1.0, &mut grads)?;
//!     assert_eq!(grads.of(w).map(|dw| dw.shape()), Some(&[4, 8][..]));
//!     Ok::<usize, colrow_tensor::Error>(kept)
//! };
//! let sampling = Sampling { estimator: Estimator::Pps, ratio: 0.3, norms: NormSource::Uniform, uniform: 0.1 };
//! // 30 rows of 8 numbers, each with its place and its weight
//! assert_eq!((kept(Keep::Exact)?, kept(Keep::Rows(sampling))?), (100 * 8 * 4, 30 * (8 * 4 + 4 + 4)));
//! # Ok::<(), colrow_tensor::Error>(())
//! ```

mod activation;
mod attention;
mod compress;
mod dropout;
mod embedding;
mod grads;
mod head;
mod head_norm;
mod input;
mod kept;
#[cfg(test)]
mod lean_tests;
mod ledger;
mod linear;
mod loss;
mod low_rank;
mod norm;
mod norm_memory;
mod op;
mod param;
mod policy;
mod probe;
mod recompute;
mod rotary;
mod rows;
mod sample;
mod tape;
pub mod testing;
mod timeline;
mod variance;

pub use attention::{Attend, Sequences};
pub use compress::Bits;
pub use grads::{Grads, VarId};
pub use head::{Head, HeadAdapter, HeadScores};
pub use input::HeldInput;
pub use kept::{Form, Kept, Rebuild};
pub use ledger::{Ledger, LedgerEntry};
pub use low_rank::LowRank;
pub use norm_memory::{BatchPlaces, CachePlace, NormMemory, Places, RowsOf, Running};
pub use op::Op;
pub use param::{Handle, Param, ParamId, Params};
pub use policy::{Keep, NormSource, Policy, Sampling, glob_matches, rows_of};
pub use probe::Probe;
pub use rotary::Rotary;
pub use sample::{Draw, RowSample, draw, estimate_by, estimate_product, row_norms};
pub use tape::{Mode, Recorded, Tape, Var};
pub use timeline::{Mark, Phase};
pub use variance::{Bounds, GRID, LEAST_RATIO, Measured, Variances, grid};
