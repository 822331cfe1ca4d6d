//! Memory from the system, in huge pages where it has them: products read and write it in strides that would miss the translation
//! buffer page by page.

use std::alloc::{Layout, handle_alloc_error};

use memmap2::{MmapOptions, MmapRaw};

/// A huge page of x86-64 and of most others. A map of at least so many bytes begins at a multiple of them.
pub(crate) const HUGE: usize = 2 << 20;

/// Memory that is zero until it is written, and takes none of the machine's until then.
#[derive(Debug)]
pub(crate) struct Map {
    raw: MmapRaw,
    start: usize,
    len: usize,
}

impl Map {
    pub(crate) fn new(bytes: usize) -> Self {
        Self::reserve(bytes).unwrap_or_else(|_| {
            handle_alloc_error(Layout::from_size_align(bytes, 1).expect("fewer bytes than addresses"))
        })
    }

    /// # Errors
    /// The system has no such room.
    pub(crate) fn reserve(bytes: usize) -> std::io::Result<Self> {
        let huge = bytes >= HUGE;
        let room = if huge { bytes + HUGE } else { bytes.max(1) };
        let raw: MmapRaw = MmapOptions::new().len(room).no_reserve_swap().map_anon()?.into();
        let start = if huge { raw.as_ptr().align_offset(HUGE) } else { 0 };
        #[cfg(target_os = "linux")]
        if huge {
            // only a hint: where it is refused, pages stay small
            let _ = raw.advise_range(memmap2::Advice::HugePage, start, bytes);
        }
        Ok(Self { raw, start, len: bytes })
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.raw.as_mut_ptr().wrapping_add(self.start)
    }

    /// In bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Gives whole pages back to the system, which reads them as zeros from now on; where it cannot, they stay.
    ///
    /// # Safety
    /// Nothing refers to what lies there.
    #[cfg_attr(not(target_os = "linux"), expect(clippy::unused_self, reason = "pages stay"))]
    pub(crate) unsafe fn release(&self, range: std::ops::Range<usize>) {
        debug_assert!(range.end <= self.len);
        #[cfg(target_os = "linux")]
        // SAFETY: as this function requires; the map is anonymous, its pages are zero when they are next read.
        unsafe {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            let _ = self.raw.unchecked_advise_range(advice, self.start + range.start, range.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_zero_and_aligned_and_released_pages_are_zero_again() {
        for bytes in [1, 4096, HUGE, 3 * HUGE + 5] {
            let map = Map::new(bytes);
            let at = |i: usize| map.as_ptr().wrapping_add(i);
            assert_eq!(map.len(), bytes);
            assert_eq!(map.as_ptr().align_offset(if bytes < HUGE { 4096 } else { HUGE }), 0);
            // SAFETY: bytes of the map, which nothing else refers to.
            unsafe {
                assert_eq!([at(0).read(), at(bytes - 1).read()], [0, 0]);
                at(0).write(1);
                at(bytes - 1).write(2);
                assert_eq!(at(bytes - 1).read(), 2);
                if bytes >= HUGE && cfg!(target_os = "linux") {
                    map.release(0..HUGE);
                    assert_eq!(at(0).read(), 0);
                }
            }
        }
    }
}
