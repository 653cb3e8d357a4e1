//! Maps one guest frame read-only, and holds the page reference that keeps it.

use core::ops::ControlFlow;
use core::ptr;

use lacuna_core::{Gfn, LINE, LINES, PAGE_SIZE, Predicate, Row};

use crate::shim::{self, Domain};

/// A mapped guest frame. The guest may write to it at any time, so it is only ever read by volatile copies:
/// no reference to its bytes exists.
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
        // SAFETY: `domain` is the live domain of the operation (see `XenDomain`), and both out-pointers are
        // to locals.
        let result = unsafe { shim::lacuna_x_map(domain, gfn.get(), &raw mut at, &raw mut token) };
        (result == 0 && !at.is_null()).then(|| Self {
            gfn,
            at: at.cast(),
            token,
        })
    }

    /// Asks what is at frame `gfn` of `domain` (`LACUNA_PAGE_*`), and maps it if it is the domain's own.
    pub(crate) fn of_private(domain: *mut Domain, gfn: Gfn) -> (u32, Option<Self>) {
        let mut at = ptr::null();
        let mut token = 0;
        // SAFETY: as in `map`.
        let state = unsafe { shim::lacuna_x_page_state(domain, gfn.get(), &raw mut at, &raw mut token) };
        let frame = (!at.is_null()).then(|| Self {
            gfn,
            at: at.cast(),
            token,
        });
        (state, frame)
    }

    pub(crate) const fn gfn(&self) -> Gfn {
        self.gfn
    }

    /// The little-endian value of `width` bytes (1, 2, 4 or 8) at `offset`; `None` where that leaves the
    /// frame.
    #[expect(
        clippy::cast_ptr_alignment,
        reason = "each width is read at a multiple of itself in a page-aligned frame"
    )]
    #[inline]
    pub(crate) fn value(&self, offset: usize, width: u8) -> Option<u64> {
        if offset + usize::from(width) > PAGE_SIZE {
            return None;
        }
        if offset & (usize::from(width).wrapping_sub(1)) != 0 {
            return self.unaligned(offset, width);
        }
        // SAFETY: the frame is mapped for `PAGE_SIZE` bytes from `at`, page-aligned, until `drop`;
        // `offset + width` lies within it, and `offset` is a multiple of the width in each arm. Volatile,
        // because the guest may write at once.
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

    /// Does what `GuestMemory::count_failing` does, or returns `None` if the row leaves the frame or is not
    /// aligned to the width of its values.
    pub(crate) fn count_failing(&self, row: Row, test: &Predicate) -> Option<u64> {
        let width = usize::from(test.field.width);
        let stride = usize::try_from(row.stride).ok()?;
        let offset = row.first.offset();
        let count = usize::try_from(row.count).ok()?;
        let last = stride.checked_mul(count.checked_sub(1)?)?.checked_add(offset)?;
        if last.checked_add(width)? > PAGE_SIZE || (offset | stride) & width.wrapping_sub(1) != 0 {
            return None;
        }
        let first = self.at.wrapping_add(offset);
        let passed_over = match width {
            // SAFETY: values of the width of the type lie at `first` and `stride` bytes apart, `count` of
            // them; the last ends within the frame, and all are aligned: both checked above. The frame is
            // mapped until `drop`.
            1 => unsafe { count_failing::<u8>(first, stride, count, test) },
            // SAFETY: as above.
            2 => unsafe { count_failing::<u16>(first, stride, count, test) },
            // SAFETY: as above.
            4 => unsafe { count_failing::<u32>(first, stride, count, test) },
            // SAFETY: as above.
            8 => unsafe { count_failing::<u64>(first, stride, count, test) },
            _ => return None,
        };
        Some(passed_over as u64)
    }

    /// Hands the frame's words to `take`, a line at a time from line `first` on, until it breaks off or has
    /// had them all.
    #[expect(
        clippy::cast_ptr_alignment,
        reason = "words are read at multiples of eight in a page-aligned frame"
    )]
    #[inline]
    pub(crate) fn lines(&self, first: usize, mut take: impl FnMut(&[u64; LINE]) -> ControlFlow<()>) {
        for number in first..LINES {
            let line = core::array::from_fn(|index| {
                // SAFETY: as in `value`: line `number` ends within the frame, which has `LINES` of them, and
                // its words are aligned. Volatile, because the guest may write at once.
                unsafe { self.at.cast::<u64>().add(number * LINE + index).read_volatile() }
            });
            if take(&line).is_break() {
                return;
            }
        }
    }

    #[cold]
    fn unaligned(&self, offset: usize, width: u8) -> Option<u64> {
        let mut bytes = [0; 8];
        self.copy(offset, bytes.get_mut(..usize::from(width))?)?;
        Some(u64::from_le_bytes(bytes))
    }

    /// Copies bytes from `offset`; `None` where that leaves the frame.
    #[expect(
        clippy::cast_ptr_alignment,
        reason = "words are read at multiples of eight in a page-aligned frame"
    )]
    pub(crate) fn copy(&self, offset: usize, into: &mut [u8]) -> Option<()> {
        if offset.checked_add(into.len())? > PAGE_SIZE {
            return None;
        }
        if (offset | into.len()) % 8 == 0 {
            for (index, eight) in into.chunks_exact_mut(8).enumerate() {
                // SAFETY: as in `value`: `offset + 8 * index + 8` is at most `PAGE_SIZE`, and a multiple of
                // eight.
                let value = unsafe { self.at.add(offset).cast::<u64>().add(index).read_volatile() };
                eight.copy_from_slice(&value.to_le_bytes());
            }
            return Some(());
        }
        for (index, byte) in into.iter_mut().enumerate() {
            // SAFETY: as in `value`: `offset + index` is below `PAGE_SIZE`, and a byte has no alignment.
            *byte = unsafe { self.at.add(offset + index).read_volatile() };
        }
        Some(())
    }
}

/// Returns how many of `count` values, `stride` bytes apart from `first` on, fail `test` before the first
/// that passes.
///
/// # Safety
///
/// Each of the values lies in mapped memory and is aligned.
unsafe fn count_failing<T: Copy + Into<u64>>(
    first: *const u8,
    stride: usize,
    count: usize,
    test: &Predicate,
) -> usize {
    let mut at = first;
    for passed_over in 0..count {
        // SAFETY: this function's contract. Volatile, because the guest may write at once.
        let value: T = unsafe { at.cast::<T>().read_volatile() };
        if test.holds(value.into()) {
            return passed_over;
        }
        // After the last value the pointer is not used.
        at = at.wrapping_add(stride);
    }
    count
}

impl Drop for MappedFrame {
    fn drop(&mut self) {
        // SAFETY: `at` and `token` came from one successful `lacuna_x_map`, or one `lacuna_x_page_state` that
        // mapped the frame, and this is their only release.
        unsafe { shim::lacuna_x_unmap(self.at.cast(), self.token) };
    }
}
