//! Where many descriptors lie: for a scan that follows what the guest writes to its memory map.

use super::MemoryMapReader;
use crate::guest::{Directory, walk_on};
use crate::{Gfn, GuestMemory, GuestVirt, PAGE_SHIFT, PAGE_SIZE};

/// log2 of the bytes of the smallest page that is followed.
const SMALLEST_SHIFT: u32 = 21;

/// Where the descriptors of a row of frames lie in guest-physical memory: in two pages at most, one behind the
/// other in virtual memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// The first frame of the memory map in each page.
    pub(crate) first: [u64; 2],
    /// How many there are.
    pub(crate) frames: [u32; 2],
}

impl MemoryMapReader<'_> {
    /// Where the descriptors of the `count` frames from `first` on lie, or of as many as the memory map has in
    /// a row there. `None` if they do not begin with a frame of the memory map, lie in pages smaller than
    /// 2 MiB, or some of them nowhere.
    ///
    /// `directory` is what the call before left there.
    pub(crate) fn place<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        first: Gfn,
        count: u64,
        directory: &mut Option<Directory>,
    ) -> Option<Place> {
        let segment = self.segment(memory, first).ok()?;
        let count = count.min(segment.end.checked_sub(first.get())?);
        let bytes = count.checked_mul(self.descriptor_bytes)?;
        let start = self.address(&segment, first).ok()?.get();
        let last = start.checked_add(bytes)?.checked_sub(1)?;
        if start % PAGE_SIZE as u64 != 0 {
            // A frame with descriptors of two rows: who asks for one would miss what was said to the other.
            return None;
        }
        let mut place = Place::default();
        let mut at = start;
        for (first, frames) in place.first.iter_mut().zip(&mut place.frames) {
            let va = GuestVirt::new(at);
            let mapping = walk_on(memory, self.profile.root, self.profile.levels, va, directory).ok()?;
            if mapping.shift < SMALLEST_SHIFT {
                return None;
            }
            let end = mapping
                .start
                .get()
                .checked_add((1 << mapping.shift) - 1)?
                .min(last);
            *first = mapping.translate(va)?.gfn().get();
            *frames = u32::try_from((end >> PAGE_SHIFT).checked_sub(at >> PAGE_SHIFT)? + 1).ok()?;
            if end == last {
                return Some(place);
            }
            at = end.checked_add(1)?;
        }
        None
    }
}
