//! Host memory that is used again: a step's buffers serve the next step, which then does not page-fault.
//!
//! Buffers are ranges of a few large maps. A free range joins its free neighbours and serves whatever fits into it, so that kept
//! tensors that die in the backward pass make room for gradients, whatever their sizes. What is in use is
//! what was asked for, to the cache line, and pages that are not in use go back to the system before more would be resident than at some time
//! were in use at once: that is what makes a process's memory predictable from the meter.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::memory::{Memory, PAGE, Region};

/// A cache line, and a full vector register.
const ALIGN: usize = 64;

/// A region, and an offset in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    region: usize,
    offset: usize,
}

impl Place {
    fn forward(self, bytes: usize) -> Self {
        Self { offset: self.offset + bytes, ..self }
    }

    /// The pages that so many bytes from here lie on.
    fn pages(self, bytes: usize) -> Range<usize> {
        self.offset / PAGE..(self.offset + bytes).div_ceil(PAGE)
    }
}

/// A device's memory, aligned to 64 bytes, always initialised.
#[derive(Debug)]
pub struct Buffer {
    region: Arc<dyn Region>,
    place: Place,
    bytes: usize,
}

impl Buffer {
    /// Its first address on the device.
    pub fn as_ptr(&self) -> *mut u8 {
        self.region.address().wrapping_add(self.place.offset)
    }

    /// Bytes, at least as many as were asked for.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none; never so.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

/// A page of a region.
#[derive(Clone, Debug, Default)]
struct Page {
    /// Buffers that lie on it.
    buffers: usize,
    resident: bool,
    /// How many buffers had been given back when it became idle.
    since: u64,
}

impl Page {
    fn idle(&self) -> bool {
        self.resident && self.buffers == 0
    }
}

#[derive(Debug)]
struct Pages {
    region: Arc<dyn Region>,
    pages: Vec<Page>,
}

#[derive(Debug, Default)]
struct State {
    regions: Vec<Pages>,
    /// Bytes of each free range; neighbours are one.
    free: BTreeMap<Place, usize>,
    /// The same by size.
    by_size: BTreeSet<(usize, Place)>,
    given: u64,
    /// Pages with buffers, the most there were, and those that are resident.
    occupied: usize,
    most_occupied: usize,
    resident: usize,
}

/// Buffers and the free ranges between them. Never are more pages resident than at some time had buffers on them, so that
/// keeping free ranges costs no memory at the peak.
#[derive(Debug)]
pub struct Pool {
    memory: Box<dyn Memory>,
    state: Mutex<State>,
}

impl Pool {
    /// An empty pool over a device's memory.
    pub fn new(memory: Box<dyn Memory>) -> Self {
        Self { memory, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer of at least `bytes`, its content unspecified.
    ///
    /// # Errors
    /// Those of the memory; the pool is then as it was.
    pub fn take(&self, bytes: usize) -> Result<Buffer> {
        self.state().take(bytes.max(1).next_multiple_of(ALIGN), &*self.memory)
    }

    /// Takes a buffer back, which must be of this pool.
    pub fn give(&self, buffer: Buffer) {
        self.state().give(buffer.place, buffer.bytes);
    }
}

impl State {
    fn take(&mut self, bytes: usize, memory: &dyn Memory) -> Result<Buffer> {
        let (range, place) = match self.find(bytes) {
            Some(found) => found,
            None => self.add_region(bytes, memory)?,
        };
        let region = &mut self.regions[place.region];
        for i in place.pages(bytes) {
            if !region.pages[i].resident {
                region.region.commit(i * PAGE..(i + 1) * PAGE)?;
                region.pages[i].resident = true;
                self.resident += 1;
            }
        }
        let (rest, end) = (place.forward(bytes), range.forward(self.remove(range)));
        for (start, end) in [(range, place), (rest, end)] {
            if start < end {
                self.insert(start, end.offset - start.offset);
            }
        }
        let region = &mut self.regions[place.region];
        for page in &mut region.pages[place.pages(bytes)] {
            self.occupied += usize::from(page.buffers == 0);
            page.buffers += 1;
        }
        let region = region.region.clone();
        self.most_occupied = self.most_occupied.max(self.occupied);
        self.release();
        Ok(Buffer { region, place, bytes })
    }

    fn give(&mut self, place: Place, bytes: usize) {
        self.given += 1;
        for page in &mut self.regions[place.region].pages[place.pages(bytes)] {
            page.buffers -= 1;
            page.since = self.given;
            self.occupied -= usize::from(page.buffers == 0);
        }
        let (mut start, mut end) = (place, place.forward(bytes));
        if let Some((&before, &len)) = self.free.range(..place).next_back()
            && before.forward(len) == place
        {
            self.remove(before);
            start = before;
        }
        if self.free.contains_key(&end) {
            end = end.forward(self.remove(end));
        }
        self.insert(start, end.offset - start.offset);
    }

    fn insert(&mut self, place: Place, bytes: usize) {
        self.free.insert(place, bytes);
        self.by_size.insert((bytes, place));
    }

    /// Bytes of the free range there.
    fn remove(&mut self, place: Place) -> usize {
        let bytes = self.free.remove(&place).expect("a free range");
        self.by_size.remove(&(bytes, place));
        bytes
    }

    /// A free range and the place at one of its ends where the fewest pages become occupied, of those the fewest resident; the smallest such
    /// range.
    fn find(&self, bytes: usize) -> Option<(Place, Place)> {
        let mut least = None;
        for &(len, range) in self.by_size.range((bytes, Place::default())..) {
            for place in [range, range.forward(len - bytes)] {
                let pages = &self.regions[place.region].pages[place.pages(bytes)];
                let cost = [|page: &&Page| page.buffers == 0, |page: &&Page| !page.resident]
                    .map(|new| pages.iter().filter(new).count());
                if least.is_none_or(|(other, _)| cost < other) {
                    least = Some((cost, (range, place)));
                }
            }
            if least.is_some_and(|(cost, _)| cost == [0, 0]) {
                break;
            }
        }
        least.map(|(_, found)| found)
    }

    fn add_region(&mut self, bytes: usize, memory: &dyn Memory) -> Result<(Place, Place)> {
        let region: Arc<dyn Region> = memory.reserve(bytes.next_multiple_of(PAGE))?.into();
        let place = Place { region: self.regions.len(), offset: 0 };
        self.insert(place, region.len());
        self.regions.push(Pages { pages: vec![Page::default(); region.len() / PAGE], region });
        Ok((place, place))
    }

    /// Gives idle pages back to the system until no more are resident than ever had buffers, those first that have been idle for longest: a
    /// step's layers use the same few pages in turns, and those of another part of the step, as gradients, lie idle.
    fn release(&mut self) {
        while self.resident > self.most_occupied {
            let pages = self
                .regions
                .iter_mut()
                .flat_map(|r| r.pages.iter_mut().enumerate().map(|(i, page)| (&r.region, i, page)));
            let Some((region, i, page)) = pages.filter(|(.., page)| page.idle()).min_by_key(|(.., page)| page.since)
            else {
                break;
            };
            page.resident = false;
            // SAFETY: no buffer lies on the page.
            unsafe { region.release(i * PAGE..(i + 1) * PAGE) };
            self.resident -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{HostMemory, REGION};

    fn take(pool: &Pool, bytes: usize) -> Buffer {
        pool.take(bytes).unwrap()
    }

    /// Writes a buffer's first and last byte.
    fn touch(buffer: &Buffer) {
        // SAFETY: the buffer's bytes, which are this test's alone.
        unsafe {
            buffer.as_ptr().write(1);
            buffer.as_ptr().add(buffer.bytes - 1).write(1);
        }
    }

    #[test]
    fn free_neighbours_are_one_range_and_serve_what_fits() {
        let pool = Pool::new(Box::new(HostMemory));
        let buffers = [1000, 2000, 3000, 4000].map(|bytes| take(&pool, bytes));
        let starts = buffers.each_ref().map(Buffer::as_ptr);
        let [a, b, c, d] = buffers;
        assert_eq!(a.bytes, 1024);
        [c, a, b].into_iter().for_each(|buffer| pool.give(buffer));
        let whole = take(&pool, 1024 + 2048 + 3008);
        assert_eq!(whole.as_ptr(), starts[0], "three ranges have become one");
        pool.give(whole);
        let first = take(&pool, 5000);
        assert_eq!(first.as_ptr(), starts[0]);
        assert_eq!(take(&pool, 1024).as_ptr(), starts[0].wrapping_add(5056), "the rest serves as well");
        pool.give(first);
        pool.give(d);
        assert_eq!(pool.state().resident, 1);
    }

    /// Pages with buffers are taken before idle ones, those before what has none, whichever fits better.
    #[test]
    fn occupied_and_resident_pages_are_used_first() {
        let pool = Pool::new(Box::new(HostMemory));
        let large = take(&pool, 10 * PAGE);
        let (start, _wall) = (large.as_ptr(), take(&pool, 64));
        pool.give(large);
        assert_eq!(take(&pool, 3 * PAGE).as_ptr(), start);
        let shared = take(&pool, PAGE / 2);
        assert_eq!(shared.place.pages(shared.bytes), 10..11, "beside the wall");
    }

    #[test]
    fn what_lay_idle_for_longest_makes_room() {
        let pool = Pool::new(Box::new(HostMemory));
        let [a, _wall, b, _other] = [4 * PAGE, 64, 4 * PAGE, 64].map(|bytes| take(&pool, bytes));
        pool.give(b);
        pool.give(a);
        assert_eq!(pool.state().resident, 9);
        // fits into neither: five new pages, and nine were once in use together
        let _new = take(&pool, 6 * PAGE - 128);
        let s = pool.state();
        assert_eq!((s.resident, s.most_occupied), (9, 9));
        let idle: Vec<_> = s.regions[0].pages.iter().enumerate().filter(|(_, p)| p.idle()).map(|(i, _)| i).collect();
        assert_eq!(idle, [2, 3], "of the one that was given back last");
    }

    /// Whatever is asked for in whatever order: buffers do not overlap, free ranges are the rest, and no more pages are resident than were
    /// in use at once.
    #[test]
    fn the_pool_never_outgrows_the_peak() {
        let pool = Pool::new(Box::new(HostMemory));
        let key = crate::rng::Key::new(3);
        let mut held: Vec<Buffer> = Vec::new();
        let mut most = 0;
        for i in 0..3000 {
            let draw = |k: u64| key.uniform(3 * i + k);
            if draw(0) < 0.5 || held.is_empty() {
                // sizes from 1 to about 16 million bytes
                held.push(take(&pool, 2_f64.powf(24.0 * draw(1)) as usize));
                touch(&held[held.len() - 1]);
            } else {
                pool.give(held.swap_remove((draw(2) * held.len() as f64) as usize));
            }
            let s = pool.state();
            let mut ranges: Vec<_> = held.iter().map(|b| (b.place, b.bytes)).collect();
            let pages: BTreeSet<_> = ranges
                .iter()
                .flat_map(|&(place, bytes)| place.pages(bytes).map(move |page| (place.region, page)))
                .collect();
            ranges.extend(s.free.iter().map(|(&place, &bytes)| (place, bytes)));
            ranges.sort_unstable();
            assert!(ranges.windows(2).all(|w| w[0].0.forward(w[0].1) == w[1].0 || w[0].0.region < w[1].0.region));
            assert_eq!(ranges.iter().map(|(_, bytes)| bytes).sum::<usize>(), s.regions.len() * REGION);
            assert_eq!(s.free.iter().map(|(&place, &bytes)| (bytes, place)).collect::<BTreeSet<_>>(), s.by_size);
            most = most.max(pages.len());
            assert_eq!((s.occupied, s.most_occupied), (pages.len(), most));
            assert!(s.occupied <= s.resident && s.resident <= most);
        }
    }
}
