//! One guest frame, mapped read-only, with the page reference that keeps it.

use core::ptr;

use lacuna_core::{Gfn, PAGE_SIZE};

use crate::shim::{self, Domain};

/// A mapped guest frame. The guest may write to it at any time, so it is only ever read by volatile copies: no
/// reference to its bytes exists.
pub(crate) struct MappedFrame {
    gfn: Gfn,
    at: *const u8,
    token: u64,
}

impl MappedFrame {
    /// Maps frame `gfn` of `domain`; `None` where the guest has no ordinary memory.
    pub(crate) fn map(domain: *mut Domain, gfn: Gfn) -> Option<Self> {
        let mut at = ptr::null();
        let mut token = 0;
        // SAFETY: `domain` is the live domain of the operation (see `XenHost`), and both out-pointers are to locals.
        let result = unsafe { shim::lacuna_x_map(domain, gfn.get(), &raw mut at, &raw mut token) };
        (result == 0 && !at.is_null()).then(|| Self { gfn, at: at.cast(), token })
    }

    pub(crate) const fn gfn(&self) -> Gfn {
        self.gfn
    }

    /// The little-endian value of `width` bytes (1, 2, 4 or 8) at `offset`; `None` where that leaves the frame.
    #[inline]
    pub(crate) fn value(&self, offset: usize, width: u8) -> Option<u64> {
        if offset + usize::from(width) > PAGE_SIZE {
            return None;
        }
        if offset & (usize::from(width).wrapping_sub(1)) != 0 {
            return self.unaligned(offset, width);
        }
        // SAFETY: the frame is mapped for `PAGE_SIZE` bytes from `at`, page-aligned, until `drop`; `offset + width` lies
        // within it, and `offset` is a multiple of the width in each arm. Volatile, because the guest may write at once.
        let value = unsafe {
            let from = self.at.add(offset);
            match width {
                1 => u64::from(from.read_volatile()),
                2 => u64::from(from.cast::<u16>().read_volatile()),
                4 => u64::from(from.cast::<u32>().read_volatile()),
                8 => from.cast::<u64>().read_volatile(),
                _ => return None,
            }
        };
        Some(value)
    }

    #[cold]
    fn unaligned(&self, offset: usize, width: u8) -> Option<u64> {
        let mut bytes = [0; 8];
        self.copy(offset, bytes.get_mut(..usize::from(width))?)?;
        Some(u64::from_le_bytes(bytes))
    }

    /// Copies bytes from `offset`; `None` where that leaves the frame.
    pub(crate) fn copy(&self, offset: usize, into: &mut [u8]) -> Option<()> {
        if offset.checked_add(into.len())? > PAGE_SIZE {
            return None;
        }
        for (index, byte) in into.iter_mut().enumerate() {
            // SAFETY: as in `value`: `offset + index` is below `PAGE_SIZE`, and a byte has no alignment.
            *byte = unsafe { self.at.add(offset + index).read_volatile() };
        }
        Some(())
    }
}

impl Drop for MappedFrame {
    fn drop(&mut self) {
        // SAFETY: `at` and `token` came from one successful `lacuna_x_map`, and this is their only release.
        unsafe { shim::lacuna_x_unmap(self.at.cast(), self.token) };
    }
}
