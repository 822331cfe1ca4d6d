//! Host memory that is used again: a step's buffers serve the next step, which then hardly page-faults and does not fragment.
//!
//! Large buffers are memory maps of their own. A free one changes its size to serve a request (on Linux its pages stay, and only the
//! difference is given back or faulted in), so that what is in use is what was asked for, to the page, also where
//! batches differ from step to step. That is what makes a process's memory predictable from the meter.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Mutex;

use memmap2::{MmapMut, MmapRaw};

/// A cache line, and a full vector register.
const ALIGN: usize = 64;
/// Sizes of maps are multiples of this; the system rounds up where its pages are larger.
const PAGE: usize = 4096;
/// From here on a buffer is a map of its own. Rounding up to a page then costs at most 3 %.
const LARGE: usize = 32 * PAGE;
/// A huge page of x86-64 and of most others. From here on a map asks for them: products read and write it in strides that would miss the
/// translation buffer page by page.
#[cfg(target_os = "linux")]
const HUGE: usize = 2 << 20;
/// A large free buffer serves a request that is at most this many times smaller or larger.
const STRETCH: usize = 2;
/// A small free buffer serves a request that is at least this share of its size.
const FIT: f64 = 0.8;

#[derive(Debug)]
enum Memory {
    Heap(NonNull<u8>),
    Map(MmapRaw),
}

/// Aligned host memory, always initialised.
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Memory,
    capacity: usize,
}

// SAFETY: a buffer owns its memory; shared access is read-only through `&self`.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

/// The size of the buffer for a request.
fn capacity_for(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of(if bytes < LARGE { ALIGN } else { PAGE })
}

fn layout(capacity: usize) -> Layout {
    Layout::from_size_align(capacity, ALIGN).expect("a tensor is smaller than the address space")
}

impl Buffer {
    /// Zeros.
    pub(crate) fn new(bytes: usize) -> Self {
        let capacity = capacity_for(bytes);
        let memory = if capacity < LARGE {
            let layout = layout(capacity);
            // SAFETY: the layout's size is not zero.
            let ptr = unsafe { alloc_zeroed(layout) };
            Memory::Heap(NonNull::new(ptr).unwrap_or_else(|| handle_alloc_error(layout)))
        } else {
            let map = MmapMut::map_anon(capacity).unwrap_or_else(|_| handle_alloc_error(layout(capacity)));
            #[cfg(target_os = "linux")]
            if capacity >= HUGE {
                // only a hint: where it is refused, pages stay small
                let _ = map.advise(memmap2::Advice::HugePage);
            }
            Memory::Map(map.into())
        };
        Self { memory, capacity }
    }

    /// This buffer, both large, with another size and unspecified content.
    #[cfg(target_os = "linux")]
    fn resized(mut self, capacity: usize) -> Self {
        match &mut self.memory {
            // SAFETY: the buffer is owned, so nothing points into the map.
            Memory::Map(map) => match unsafe { map.remap(capacity, memmap2::RemapOptions::new().may_move(true)) } {
                Ok(()) => self.capacity = capacity,
                Err(_) => handle_alloc_error(layout(capacity)),
            },
            Memory::Heap(_) => unreachable!("a large buffer is a map"),
        }
        self
    }

    #[cfg(not(target_os = "linux"))]
    fn resized(self, capacity: usize) -> Self {
        drop(self);
        Self::new(capacity)
    }

    /// In bytes.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        match &self.memory {
            Memory::Heap(ptr) => ptr.as_ptr(),
            Memory::Map(map) => map.as_mut_ptr(),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Memory::Heap(ptr) = &self.memory {
            // SAFETY: allocated with this layout in `new`.
            unsafe { dealloc(ptr.as_ptr(), layout(self.capacity)) }
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// By size; of one size with the number of buffers that had been given back before, ascending.
    free: BTreeMap<usize, Vec<(u64, Buffer)>>,
    given: u64,
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
        self.state().take(capacity_for(bytes))
    }

    /// Takes a buffer back.
    pub(crate) fn give(&self, buffer: Buffer) {
        let mut s = self.state();
        s.used_bytes -= buffer.capacity;
        s.given += 1;
        let given = s.given;
        s.push(given, buffer);
    }
}

impl State {
    fn take(&mut self, capacity: usize) -> Buffer {
        let found = if capacity < LARGE { self.small(capacity) } else { self.large(capacity) };
        let free = found.and_then(|size| self.pop(size, true)).map(|(_, buffer)| buffer);
        let size = free.as_ref().filter(|_| capacity < LARGE).map_or(capacity, |small| small.capacity);
        self.make_room(size);
        let buffer = match free {
            Some(buffer) if buffer.capacity == size => buffer,
            Some(buffer) => buffer.resized(size),
            None => Buffer::new(size),
        };
        self.used_bytes += buffer.capacity;
        self.most_used = self.most_used.max(self.used_bytes);
        buffer
    }

    /// The size of a small free buffer for a request.
    fn small(&self, capacity: usize) -> Option<usize> {
        let most = ((capacity as f64 / FIT) as usize + ALIGN).min(LARGE - 1);
        self.free.range(capacity..=most).next().map(|(&size, _)| size)
    }

    /// The size of the large free buffer that is nearest to a request.
    fn large(&self, capacity: usize) -> Option<usize> {
        let above = self.free.range(capacity..=capacity * STRETCH).next();
        let below = self.free.range((capacity / STRETCH).max(LARGE)..capacity).next_back();
        above.into_iter().chain(below).map(|(&size, _)| size).min_by_key(|&size| size.abs_diff(capacity))
    }

    fn push(&mut self, given: u64, buffer: Buffer) {
        self.free_bytes += buffer.capacity;
        let list = self.free.entry(buffer.capacity).or_default();
        list.insert(list.partition_point(|&(other, _)| other < given), (given, buffer));
    }

    /// The free buffer of this size that was given back last, or first.
    fn pop(&mut self, size: usize, last: bool) -> Option<(u64, Buffer)> {
        let list = self.free.get_mut(&size)?;
        let found = if last { list.pop()? } else { list.remove(0) };
        if list.is_empty() {
            self.free.remove(&size);
        }
        self.free_bytes -= size;
        Some(found)
    }

    /// Cuts or drops free buffers until `bytes` more fit under the most that was ever in use. What has been free for longest goes first: a
    /// step's layers use the same few buffers in turns, and those of another part of the step, as gradients, lie idle.
    fn make_room(&mut self, bytes: usize) {
        let limit = self.most_used.max(self.used_bytes + bytes);
        loop {
            let excess = (self.used_bytes + self.free_bytes + bytes).saturating_sub(limit);
            let oldest = self.free.iter().min_by_key(|(_, list)| list[0].0).filter(|_| excess > 0);
            let Some((given, buffer)) = oldest.map(|(&size, _)| size).and_then(|size| self.pop(size, false)) else {
                break;
            };
            let rest = buffer.capacity.saturating_sub(excess.next_multiple_of(PAGE));
            if rest >= LARGE {
                self.push(given, buffer.resized(rest));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_buffer_serves_again() {
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

    /// A large buffer is as large as what was asked for, to the page, whatever served it before; one that is far smaller or larger stays.
    #[test]
    fn a_large_buffer_changes_its_size() {
        let pool = Pool::default();
        let ask = |bytes: usize| {
            let buffer = pool.take(bytes);
            assert_eq!(buffer.capacity, bytes.next_multiple_of(PAGE));
            // the last byte is there
            // SAFETY: the buffer holds at least `bytes` bytes and is this one's alone.
            unsafe { buffer.as_ptr().add(bytes - 1).write(1) };
            buffer
        };
        let far = [ask(LARGE * 8), ask(LARGE * 40)];
        far.into_iter().for_each(|buffer| pool.give(buffer));
        let before = pool.state().free_bytes;
        pool.give(ask(LARGE * 20));
        assert_eq!(pool.state().free_bytes, LARGE * 28, "the larger one shrank");
        pool.give(ask(LARGE * 20 + 1));
        pool.give(ask(LARGE * 15));
        pool.give(ask(LARGE * 3));
        let s = pool.state();
        assert_eq!(s.free.values().map(Vec::len).sum::<usize>(), 3, "the last was far from both, and is new");
        assert!(s.free_bytes <= before);
    }

    #[test]
    fn what_lay_idle_for_longest_makes_room() {
        let pool = Pool::default();
        let held = [pool.take(LARGE * 8), pool.take(LARGE * 40)];
        held.into_iter().for_each(|buffer| pool.give(buffer));
        // near neither, so a new one, beside which both no longer fit
        let _new = pool.take(LARGE * 3);
        assert_eq!(pool.state().free.keys().copied().collect::<Vec<_>>(), [LARGE * 5, LARGE * 40]);
    }

    /// Whatever is asked for in whatever order, free and used bytes together stay under the most that was in use.
    #[test]
    fn the_pool_never_outgrows_the_peak() {
        let pool = Pool::default();
        let key = crate::rng::Key::new(3);
        let mut held: Vec<Buffer> = Vec::new();
        let mut most = 0;
        for i in 0..3000 {
            let draw = |k: u64| key.uniform(3 * i + k);
            if draw(0) < 0.5 || held.is_empty() {
                // sizes from 1 to about 4 million bytes
                held.push(pool.take(2_f64.powf(22.0 * draw(1)) as usize));
            } else {
                pool.give(held.swap_remove((draw(2) * held.len() as f64) as usize));
            }
            let s = pool.state();
            let sum = |buffers: &[Buffer]| buffers.iter().map(|b| b.capacity).sum::<usize>();
            assert_eq!(s.used_bytes, sum(&held));
            assert_eq!(s.free_bytes, s.free.iter().map(|(size, list)| size * list.len()).sum::<usize>());
            assert!(s.free.iter().all(|(&size, list)| list.iter().all(|(_, b)| b.capacity == size)));
            most = most.max(s.used_bytes);
            assert!(
                s.used_bytes + s.free_bytes <= most,
                "{} used, {} free, {most} at most",
                s.used_bytes,
                s.free_bytes
            );
        }
    }
}
