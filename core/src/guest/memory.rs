//! Reading guest memory: bounded and copying. No reference to guest memory ever exists.

use core::ops::ControlFlow;

use crate::{Gfn, GuestPhys, PAGE_SIZE, Predicate};

/// Why bytes of guest memory could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The frame is not ordinary memory of the guest, or not there at all.
    Absent(Gfn),
    /// The range asked for does not lie within one frame. A mistake of the caller.
    CrossesFrame(GuestPhys),
}

/// The memory of one guest, read by guest-physical address.
///
/// The guest may be running: two reads of the same place can differ, and a value wider than eight bytes can
/// be torn.
pub trait GuestMemory {
    /// Copies `into.len()` bytes at `at`. The range lies within one frame.
    ///
    /// # Errors
    /// [`ReadError`] when the frame cannot be read or the range leaves it; `into` is then unspecified.
    fn read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError>;

    /// The little-endian unsigned value of `width` bytes (1, 2, 4 or 8) at `at`, which may straddle two
    /// frames.
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    #[inline]
    fn read_value(&mut self, at: GuestPhys, width: u8) -> Result<u64, ReadError> {
        value_by_bytes(self, at, width)
    }

    /// Counts the values of a row, from its first on, that fail `test`: up to the first that passes, which is
    /// the one after them, or all of them. The scan goes through descriptors in use with it, so an
    /// implementation that has the frame mapped does well to look it up once.
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    #[inline]
    fn count_failing(&mut self, row: Row, test: &Predicate) -> Result<u64, ReadError> {
        count_failing_one_by_one(self, row, test)
    }

    /// Hands a frame's words to `take`, [`LINE`] at a time and in order from line `first` on, until it breaks
    /// off or has had them all. Each word is read once. The content stage hashes pages with it, so an
    /// implementation that has the frame mapped does well to read it there.
    ///
    /// # Errors
    /// As [`GuestMemory::read`]; `take` may have had some of the words.
    #[inline]
    fn lines<F>(&mut self, gfn: Gfn, first: usize, take: F) -> Result<(), ReadError>
    where
        F: FnMut(&[u64; LINE]) -> ControlFlow<()>,
    {
        lines_by_copies(self, gfn, first, take)
    }

    /// Whether all bytes of a frame are zero.
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    fn is_zero(&mut self, gfn: Gfn) -> Result<bool, ReadError> {
        let mut zero = true;
        self.lines(gfn, 0, |line| {
            zero = is_zero(line);
            if zero {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        Ok(zero)
    }
}

/// Words of a line: 64 bytes, as much as a processor fetches at a time.
pub const LINE: usize = 8;

/// Lines of a frame.
pub const LINES: usize = PAGE_SIZE / (8 * LINE);

/// Whether all words of a line are zero.
#[inline]
pub(crate) fn is_zero(line: &[u64; LINE]) -> bool {
    line.iter().fold(0, |all, word| all | word) == 0
}

impl<M: GuestMemory + ?Sized> GuestMemory for &mut M {
    fn read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        (**self).read(at, into)
    }

    #[inline]
    fn read_value(&mut self, at: GuestPhys, width: u8) -> Result<u64, ReadError> {
        (**self).read_value(at, width)
    }

    #[inline]
    fn count_failing(&mut self, row: Row, test: &Predicate) -> Result<u64, ReadError> {
        (**self).count_failing(row, test)
    }

    #[inline]
    fn lines<F>(&mut self, gfn: Gfn, first: usize, take: F) -> Result<(), ReadError>
    where
        F: FnMut(&[u64; LINE]) -> ControlFlow<()>,
    {
        (**self).lines(gfn, first, take)
    }

    fn is_zero(&mut self, gfn: Gfn) -> Result<bool, ReadError> {
        (**self).is_zero(gfn)
    }
}

/// [`GuestMemory::read_value`] by [`GuestMemory::read`] alone: for memory that has no better way, or not for
/// a value that straddles two frames.
///
/// # Errors
/// As [`GuestMemory::read`].
pub fn value_by_bytes<M: GuestMemory + ?Sized>(
    memory: &mut M,
    at: GuestPhys,
    width: u8,
) -> Result<u64, ReadError> {
    let mut bytes = [0; 8];
    let width = usize::from(width.min(8));
    let room = PAGE_SIZE - at.offset();
    let (first, second) = bytes[..width].split_at_mut(width.min(room));
    memory.read(at, first)?;
    if !second.is_empty() {
        let next = at
            .checked_add(first.len() as u64)
            .ok_or(ReadError::CrossesFrame(at))?;
        memory.read(next, second)?;
    }
    Ok(u64::from_le_bytes(bytes))
}

/// [`GuestMemory::lines`] by [`GuestMemory::read`] alone.
///
/// # Errors
/// As [`GuestMemory::read`].
pub fn lines_by_copies<M, F>(memory: &mut M, gfn: Gfn, first: usize, mut take: F) -> Result<(), ReadError>
where
    M: GuestMemory + ?Sized,
    F: FnMut(&[u64; LINE]) -> ControlFlow<()>,
{
    let base = gfn.base().ok_or(ReadError::Absent(gfn))?;
    for number in first..LINES {
        let mut bytes = [0; 8 * LINE];
        let offset = (number * bytes.len()) as u64;
        memory.read(GuestPhys::new(base.get().wrapping_add(offset)), &mut bytes)?;
        let mut line = [0; LINE];
        for (word, eight) in line.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = eight.first_chunk().map_or(0, |eight| u64::from_le_bytes(*eight));
        }
        if take(&line).is_break() {
            break;
        }
    }
    Ok(())
}

/// [`GuestMemory::count_failing`] by [`GuestMemory::read_value`] alone.
///
/// # Errors
/// As [`GuestMemory::read`].
pub fn count_failing_one_by_one<M: GuestMemory + ?Sized>(
    memory: &mut M,
    row: Row,
    test: &Predicate,
) -> Result<u64, ReadError> {
    let mut at = row.first;
    for passed_over in 0..row.count {
        if test.holds(memory.read_value(at, test.field.width)?) {
            return Ok(passed_over);
        }
        at = GuestPhys::new(at.get().wrapping_add(row.stride));
    }
    Ok(row.count)
}

/// Values at equal distances, all of them wholly within one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Where the first begins.
    pub first: GuestPhys,
    /// Bytes from one to the next.
    pub stride: u64,
    /// How many there are.
    pub count: u64,
}
