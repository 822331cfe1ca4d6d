//! Processes that train together: what they say to each other, and who holds what.
//!
//! A run of several processes is one run: every process holds the whole model, computes some shards of each step, and holds the optimizer's
//! states of a part of the weights ([`Cut`]; Rajbhandari et al. 2020, ZeRO, stage 1). Nothing here adds numbers: what is added is added by the
//! step, in its order, so that bits do not depend on who computed what.

pub(crate) mod alike;
mod cut;
mod launcher;
mod mpi;
mod planned;
mod spread;
mod together;

use std::fmt::Debug;

use colrow_tensor::Result;

pub use cut::{Cut, Span};
pub use launcher::world;
pub use planned::Planned;
pub use spread::{Spread, Traffic};
pub use together::Together;

/// Processes that call the same methods in the same order. A process that does not ends the others after a while, by an error.
pub trait Collective: Debug + Send + Sync {
    /// This process's number, from 0.
    fn rank(&self) -> usize;
    /// Number of processes.
    fn size(&self) -> usize;
    /// Sends to every process its part of `send`, which are one after the other and `lengths[0]` bytes each for process 0, …; receives from
    /// every process a part of `received`, `own` bytes each, in their order.
    ///
    /// # Errors
    /// Processes that are gone or do not answer.
    fn exchange(&self, send: &[u8], lengths: &[usize], received: &mut [u8], own: &[usize]) -> Result<()>;
    /// Every process's bytes, one after the other in `all`, `lengths[rank]` of each; this process's are `own`.
    ///
    /// # Errors
    /// As [`Collective::exchange`].
    fn gather(&self, own: &[u8], all: &mut [u8], lengths: &[usize]) -> Result<()>;
    /// Whether a call failed, so that the others can no longer be told anything.
    fn is_broken(&self) -> bool {
        false
    }
    /// Ends all processes now, without a word to them.
    fn abort(&self, code: i32);
}

/// One process by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn exchange(&self, send: &[u8], _lengths: &[usize], received: &mut [u8], _own: &[usize]) -> Result<()> {
        received.copy_from_slice(send);
        Ok(())
    }

    fn gather(&self, own: &[u8], all: &mut [u8], _lengths: &[usize]) -> Result<()> {
        all.copy_from_slice(own);
        Ok(())
    }

    fn abort(&self, code: i32) {
        std::process::exit(code);
    }
}

#[cfg(test)]
pub(crate) use together::tests;
