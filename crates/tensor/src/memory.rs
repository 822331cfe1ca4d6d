//! Where a pool's memory comes from.

use std::fmt;
use std::ops::Range;

use crate::error::Result;
use crate::map::{HUGE, Map};

/// Bytes of a page: a huge page of x86-64 and of most others, and the granularity of an NVIDIA GPU's.
pub const PAGE: usize = HUGE;

/// Bytes of a region, unless one buffer is larger. They are addresses only, where the system takes it so; others count them as in use.
pub(crate) const REGION: usize = if cfg!(target_os = "linux") { 1 << 30 } else { 64 << 20 };

/// A device's memory: addresses that are backed page by page.
pub trait Memory: fmt::Debug + Send + Sync {
    /// Addresses of at least `bytes`, a multiple of [`PAGE`], with nothing behind them yet.
    ///
    /// # Errors
    /// The system has no such room.
    fn reserve(&self, bytes: usize) -> Result<Box<dyn Region>>;
}

/// Addresses in pages of [`PAGE`] bytes.
pub trait Region: fmt::Debug + Send + Sync {
    /// The first, a multiple of [`PAGE`].
    fn address(&self) -> *mut u8;
    /// Bytes, a multiple of [`PAGE`].
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Puts memory behind whole pages, given as a range of bytes.
    ///
    /// # Errors
    /// There is not enough of it.
    fn commit(&self, pages: Range<usize>) -> Result<()>;
    /// Takes what is behind whole pages away again, given as a range of bytes.
    ///
    /// # Safety
    /// Nothing refers to what lies there.
    unsafe fn release(&self, pages: Range<usize>);
}

/// The host's, which the system puts behind addresses when they are first written to.
#[derive(Debug)]
pub(crate) struct HostMemory;

impl Memory for HostMemory {
    fn reserve(&self, bytes: usize) -> Result<Box<dyn Region>> {
        // where addresses are counted, what is asked for may be there though a region is not
        let map = Map::reserve(bytes.max(REGION)).unwrap_or_else(|_| Map::new(bytes));
        Ok(Box::new(map))
    }
}

impl Region for Map {
    fn address(&self) -> *mut u8 {
        self.as_ptr()
    }

    fn len(&self) -> usize {
        Map::len(self)
    }

    fn commit(&self, _: Range<usize>) -> Result<()> {
        Ok(())
    }

    unsafe fn release(&self, pages: Range<usize>) {
        // SAFETY: as this function requires.
        unsafe { Map::release(self, pages) };
    }
}
