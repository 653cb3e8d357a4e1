//! Accesses the tables' memory, which the C side keeps (`xen/arch/x86/lacuna/tables.c`).

use core::ffi::c_int;
use core::ptr;
use core::sync::atomic::AtomicU64;

use lacuna_core::{IndexSize, PART_WORDS, Part, Shortage, Table, Tables};

use crate::shim;
use crate::xen_domain::XenDomain;

/// `-ENOSPC` (`xen/include/public/errno.h`): the tables have reached their bound.
const AT_BOUND: c_int = -28;

/// Words of a table: hypervisor memory of the domain's Lacuna state.
pub(crate) struct Words(&'static [AtomicU64]);

impl AsRef<[AtomicU64]> for Words {
    fn as_ref(&self) -> &[AtomicU64] {
        self.0
    }
}

impl Words {
    /// Returns the words at `at`.
    ///
    /// # Safety
    /// `at` is null, or `length` words of initialised, 8-byte-aligned memory are there that only atomics
    /// touch, for as long as the result is used.
    unsafe fn at(at: *mut u64, length: u64) -> Self {
        match usize::try_from(length) {
            Ok(length) if !at.is_null() => {
                // SAFETY: this function's contract.
                Self(unsafe { core::slice::from_raw_parts(at.cast::<AtomicU64>(), length) })
            }
            _ => Self(&[]),
        }
    }
}

impl Tables for XenDomain {
    type Words = Words;

    fn part(&mut self, table: Table, at: u64) -> Part<Words> {
        let mut part = shim::RawPart {
            first: 0,
            end: 0,
            words: ptr::null_mut(),
        };
        // SAFETY: invariant; the out-pointer is to a local of the layout that the C side asserts.
        unsafe { shim::lacuna_x_part(self.domain, table as u32, at, &raw mut part) };
        // SAFETY: the C side keeps the words `first..end` at `words`, in memory that was cleared first and is
        // aligned to a page at least. No page of a table goes before the domain does, nor while it lives
        // moves; a group's index stays while the domain is a member, which it ceases to be under the Lacuna
        // lock. The lock is held throughout an operation, and no part outlives one. All access is by atomics.
        let words = unsafe { Words::at(part.words, part.end.saturating_sub(part.first)) };
        Part {
            first: part.first,
            end: part.end,
            words,
        }
    }

    fn extend(&mut self, table: Table, at: u64) -> Result<Part<Words>, Shortage> {
        let mut bound = shim::RawBound::default();
        // SAFETY: as in `part`.
        let result = unsafe { shim::lacuna_x_extend(self.domain, table as u32, at, &raw mut bound) };
        match result {
            0 => Ok(self.part(table, at)),
            AT_BOUND => Err(Shortage::Bound {
                held: bound.held,
                most: bound.most,
                pages: bound.pages,
            }),
            _ => Err(Shortage::NoMemory),
        }
    }

    fn index_size(&mut self) -> IndexSize {
        let mut seed = 0;
        // SAFETY: invariant; the out-pointer is to a local. Only here may the C side free pages of the
        // domain's own index, when it uses its group's from now on; no part of it exists between two
        // operations, and this is the first call of one.
        let words = unsafe { shim::lacuna_x_index(self.domain, &raw mut seed) };
        IndexSize { words, seed }
    }

    fn make_header(&mut self) -> Result<(), Shortage> {
        // SAFETY: invariant.
        match unsafe { shim::lacuna_x_make_header(self.domain) } {
            0 => Ok(()),
            _ => Err(Shortage::NoMemory),
        }
    }

    fn header(&mut self) -> Option<Words> {
        // SAFETY: invariant.
        let words = unsafe { shim::lacuna_x_header(self.domain) };
        if words.is_null() {
            return None;
        }
        // SAFETY: the C side keeps a page at `words`, aligned to a page, that stays there until the domain
        // goes. For the rest as in `part`. Others who map it cannot write to it.
        Some(unsafe { Words::at(words, PART_WORDS) })
    }
}
