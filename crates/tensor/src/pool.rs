//! Host memory that is used again: a step's buffers serve the next step, which then neither page-faults nor fragments.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Mutex;

/// A cache line, and a full vector register.
const ALIGN: usize = 64;
/// A free buffer serves a request that is at least this share of its size.
const FIT: f64 = 0.8;

/// Aligned host memory, always initialised.
#[derive(Debug)]
pub(crate) struct Buffer {
    ptr: NonNull<u8>,
    capacity: usize,
}

// SAFETY: a buffer owns its memory; shared access is read-only through `&self`.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, ALIGN).expect("a tensor is smaller than the address space")
    }

    /// Zeros.
    pub(crate) fn new(bytes: usize) -> Self {
        let capacity = bytes.max(1).next_multiple_of(ALIGN);
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is not zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        Self { ptr: NonNull::new(ptr).unwrap_or_else(|| handle_alloc_error(layout)), capacity }
    }

    /// In bytes.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`.
        unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.capacity)) }
    }
}

#[derive(Debug, Default)]
struct State {
    free: BTreeMap<usize, Vec<Buffer>>,
    free_bytes: usize,
    used_bytes: usize,
    most_used: usize,
}

/// Free buffers by size. Free and used bytes together never exceed the most that was ever in use at once, so that keeping
/// buffers costs no memory at the peak.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<State>);

impl Pool {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A buffer of at least `bytes`, its content unspecified.
    pub(crate) fn take(&self, bytes: usize) -> Buffer {
        let mut s = self.state();
        let most = (bytes as f64 / FIT) as usize + ALIGN;
        let fit = s.free.range(bytes..=most).next().map(|(&size, _)| size);
        let buffer = fit.and_then(|size| s.pop(size)).unwrap_or_else(|| {
            s.make_room(bytes);
            Buffer::new(bytes)
        });
        s.used_bytes += buffer.capacity;
        s.most_used = s.most_used.max(s.used_bytes);
        buffer
    }

    /// Takes a buffer back.
    pub(crate) fn give(&self, buffer: Buffer) {
        let mut s = self.state();
        s.used_bytes -= buffer.capacity;
        s.free_bytes += buffer.capacity;
        s.free.entry(buffer.capacity).or_default().push(buffer);
    }
}

impl State {
    fn pop(&mut self, size: usize) -> Option<Buffer> {
        let list = self.free.get_mut(&size)?;
        let buffer = list.pop()?;
        if list.is_empty() {
            self.free.remove(&size);
        }
        self.free_bytes -= size;
        Some(buffer)
    }

    /// Drops free buffers, largest first, until `bytes` more fit under the most that was ever in use.
    fn make_room(&mut self, bytes: usize) {
        let limit = self.most_used.max(self.used_bytes + bytes);
        while self.used_bytes + self.free_bytes + bytes > limit {
            let Some(size) = self.free.keys().next_back().copied() else { break };
            self.pop(size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_serves_again_and_the_pool_never_outgrows_the_peak() {
        let pool = Pool::default();
        let a = pool.take(1000);
        let first = a.as_ptr();
        pool.give(a);
        let a = pool.take(960);
        assert_eq!(a.as_ptr(), first, "a close fit is used again");
        let b = pool.take(100);
        assert_ne!(b.as_ptr(), first);
        pool.give(a);
        pool.give(b);
        let c = pool.take(1_000_000);
        let s = pool.state();
        assert_eq!(s.free_bytes, 0, "free buffers made room");
        assert_eq!(s.used_bytes, c.capacity);
    }
}
