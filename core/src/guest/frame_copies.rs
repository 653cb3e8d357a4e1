//! Memory that stands still, read a frame at a time.

use crate::{
    Field, Gfn, GuestMemory, GuestPhys, PAGE_SIZE, Predicate, ReadError, Row, count_failing_one_by_one,
    value_by_bytes,
};

/// Frames kept: descriptors come from one, the page tables that lead to them, at most five, from others.
const KEPT: usize = 8;

/// Reads another memory by whole frames, of which it keeps the last few, so that going along an array of
/// descriptors asks that memory once for each 4 KiB and not once for each member.
///
/// Only for memory that does not change: a dump, or a guest that is kept paused. Too large for the
/// hypervisor's stack.
#[derive(Debug)]
pub struct FrameCopies<M> {
    memory: M,
    frames: [Copied; KEPT],
    /// Which of them was used last.
    recent: usize,
    /// Which of them was filled last.
    filled: usize,
}

#[derive(Clone, Debug)]
struct Copied {
    gfn: Option<Gfn>,
    bytes: [u8; PAGE_SIZE],
}

impl<M: GuestMemory> FrameCopies<M> {
    /// Reads `memory`.
    #[allow(clippy::large_stack_arrays)] // one for each scan, in Dom0, whose stacks have megabytes
    pub const fn new(memory: M) -> Self {
        const EMPTY: Copied = Copied {
            gfn: None,
            bytes: [0; PAGE_SIZE],
        };
        Self {
            memory,
            frames: [EMPTY; KEPT],
            recent: 0,
            filled: 0,
        }
    }

    #[inline]
    fn frame(&mut self, gfn: Gfn) -> Result<&[u8; PAGE_SIZE], ReadError> {
        let recent = self.recent % KEPT;
        let slot = if self.frames[recent].gfn == Some(gfn) {
            recent
        } else {
            self.other_frame(gfn)?
        };
        Ok(&self.frames[slot].bytes)
    }

    /// Finds `gfn` among the frames kept, or puts it in the place of the one that was filled first.
    fn other_frame(&mut self, gfn: Gfn) -> Result<usize, ReadError> {
        let kept = self.frames.iter().position(|frame| frame.gfn == Some(gfn));
        let slot = if let Some(slot) = kept {
            slot
        } else {
            let slot = (self.filled + 1) % KEPT;
            let frame = &mut self.frames[slot];
            frame.gfn = None;
            let at = gfn.base().ok_or(ReadError::Absent(gfn))?;
            self.memory.read(at, &mut frame.bytes)?;
            frame.gfn = Some(gfn);
            self.filled = slot;
            slot
        };
        self.recent = slot;
        Ok(slot)
    }
}

impl<M: GuestMemory> GuestMemory for FrameCopies<M> {
    fn read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        let offset = at.offset();
        let bytes = self
            .frame(at.gfn())?
            .get(offset..offset + into.len())
            .ok_or(ReadError::CrossesFrame(at))?;
        into.copy_from_slice(bytes);
        Ok(())
    }

    #[inline]
    fn read_value(&mut self, at: GuestPhys, width: u8) -> Result<u64, ReadError> {
        let offset = at.offset();
        let frame = self.frame(at.gfn())?;
        // Eight bytes, of which the upper ones are cut off, where they are there; else only so many.
        match frame
            .get(offset..offset + 8)
            .and_then(|bytes| bytes.first_chunk())
        {
            Some(bytes) if width <= 8 => Ok(u64::from_le_bytes(*bytes) & Field { offset: 0, width }.mask()),
            _ => value_by_bytes(self, at, width),
        }
    }

    fn count_failing(&mut self, row: Row, test: &Predicate) -> Result<u64, ReadError> {
        let width = test.field.width;
        let Ok(stride) = usize::try_from(row.stride) else {
            return count_failing_one_by_one(self, row, test);
        };
        let offset = row.first.offset();
        let frame = self.frame(row.first.gfn())?;
        let passed_over = match width {
            1 => count_failing::<1>(&frame[offset..], stride, row.count, test),
            2 => count_failing::<2>(&frame[offset..], stride, row.count, test),
            4 => count_failing::<4>(&frame[offset..], stride, row.count, test),
            8 => count_failing::<8>(&frame[offset..], stride, row.count, test),
            _ => None,
        };
        match passed_over {
            Some(count) => Ok(count),
            None => count_failing_one_by_one(self, row, test),
        }
    }

    fn is_zero(&mut self, gfn: Gfn) -> Result<bool, ReadError> {
        // Looked at once and never again: not worth a place.
        self.memory.is_zero(gfn)
    }
}

/// How many of `count` values of `WIDTH` bytes, `stride` apart from the start of `bytes`, fail `test` before
/// the first that passes; `None` where they do not all lie in `bytes`.
fn count_failing<const WIDTH: usize>(
    bytes: &[u8],
    stride: usize,
    count: u64,
    test: &Predicate,
) -> Option<u64> {
    let mut at = 0_usize;
    for passed_over in 0..count {
        let value = bytes.get(at..)?.first_chunk::<WIDTH>()?;
        let mut word = [0; 8];
        word[..WIDTH].copy_from_slice(value);
        if test.holds(u64::from_le_bytes(word)) {
            return Some(passed_over);
        }
        at = at.checked_add(stride)?;
    }
    Some(count)
}
