//! Reading guest memory: bounded and copying. No reference to guest memory ever exists.

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

    /// Counts the values of a row, from its first on, that fail `test`: up to the first that passes, which is the
    /// one after them, or all of them. The scan goes through descriptors in use with it, so an implementation
    /// that has the frame mapped does well to look it up once.
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    #[inline]
    fn count_failing(&mut self, row: Row, test: &Predicate) -> Result<u64, ReadError> {
        count_failing_one_by_one(self, row, test)
    }

    /// Whether all bytes of a frame are zero.
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    fn is_zero(&mut self, gfn: Gfn) -> Result<bool, ReadError> {
        // Small enough for the hypervisor's stack.
        let mut bytes = [0; 256];
        let mut at = gfn.base().ok_or(ReadError::Absent(gfn))?;
        for _ in 0..PAGE_SIZE / bytes.len() {
            self.read(at, &mut bytes)?;
            if bytes.iter().any(|&byte| byte != 0) {
                return Ok(false);
            }
            at = GuestPhys::new(at.get().wrapping_add(bytes.len() as u64));
        }
        Ok(true)
    }
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
