//! A guest's virtual memory, read through its page tables.
//!
//! [`KernelView`] is for many reads through tables that have been confirmed, and says why one failed.
//! [`AddressSpace`] reads once, of tables that may be anything, where what cannot be read is an answer like
//! another.

use lacuna_core::{
    GuestMemory, GuestPhys, GuestVirt, Mapping, PAGE_SIZE, PagingLevels, ReadError, WalkError, walk,
};
use thiserror::Error;

/// Why a virtual address could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("kernel address {:#x} cannot be read: {}", at.get(), in_words(*cause))]
pub struct ViewError {
    /// The address.
    pub at: GuestVirt,
    /// What stood in the way.
    pub cause: WalkError,
}

impl ViewError {
    /// The frame that is not there, where that is why.
    pub fn absent(&self) -> Option<u64> {
        match self.cause {
            WalkError::Read(ReadError::Absent(gfn)) => Some(gfn.get()),
            _ => None,
        }
    }
}

/// Why a walk through page tables came to nothing, in words.
fn in_words(cause: WalkError) -> String {
    match cause {
        WalkError::Read(error) => unreadable(error),
        WalkError::NotPresent { .. } => "the page tables map nothing there".to_owned(),
        WalkError::Malformed { .. } => "the page tables have an impossible entry for it".to_owned(),
        WalkError::NotCanonical(_) => "no such address is possible".to_owned(),
    }
}

/// Why guest memory could not be read, in words.
pub fn unreadable(error: ReadError) -> String {
    match error {
        ReadError::Absent(gfn) => format!("frame {:#x} of the guest's memory is not there", gfn.get()),
        ReadError::CrossesFrame(at) => format!("what lies at {:#x} runs out of its frame", at.get()),
    }
}

/// The kernel's address space: a top-level page table and its number of levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressSpace {
    /// Physical address of the top-level table.
    pub root: GuestPhys,
    /// Its number of levels.
    pub levels: PagingLevels,
}

impl AddressSpace {
    /// Where `at` lies in physical memory.
    pub fn translate<M: GuestMemory + ?Sized>(self, memory: &mut M, at: GuestVirt) -> Option<GuestPhys> {
        KernelView::new(memory, self).translate(at).ok()
    }

    /// Fills `into` from `at` on; false when a part is not there.
    pub fn read<M: GuestMemory + ?Sized>(self, memory: &mut M, at: GuestVirt, into: &mut [u8]) -> bool {
        KernelView::new(memory, self).read(at, into).is_ok()
    }

    /// The little-endian number of `bytes` bytes (at most 8) that lies `offset` bytes from `at`.
    pub fn number<M: GuestMemory + ?Sized>(
        self,
        memory: &mut M,
        at: GuestVirt,
        offset: u64,
        bytes: usize,
    ) -> Option<u64> {
        let mut value = [0; 8];
        let into = value.get_mut(..bytes)?;
        self.read(memory, at.checked_add(offset)?, into)
            .then(|| u64::from_le_bytes(value))
    }

    /// A pointer of this kernel.
    pub fn pointer<M: GuestMemory + ?Sized>(self, memory: &mut M, at: GuestVirt) -> Option<GuestVirt> {
        let bytes = usize::from(self.levels.pointer_bytes());
        self.number(memory, at, 0, bytes).map(GuestVirt::new)
    }

    /// How far to go down from `at` to leave what is known not to be mapped: to the start of the missing
    /// span.
    pub fn unmapped_below<M: GuestMemory + ?Sized>(self, memory: &mut M, at: GuestVirt) -> Option<GuestVirt> {
        match walk(memory, self.root, self.levels, at) {
            Ok(_) => None,
            Err(WalkError::NotPresent { shift } | WalkError::Malformed { shift }) => {
                Some(GuestVirt::new(at.get() >> shift << shift))
            }
            Err(
                WalkError::Read(ReadError::Absent(_) | ReadError::CrossesFrame(_))
                | WalkError::NotCanonical(_),
            ) => Some(at),
        }
    }
}

/// Reads kernel memory by virtual address, remembering the last few translations.
#[derive(Debug)]
pub struct KernelView<'m, M: ?Sized> {
    memory: &'m mut M,
    space: AddressSpace,
    /// A kernel keeps its data in few large pages: a handful of entries serves long runs of reads.
    recent: [Option<Mapping>; 8],
    next: usize,
}

impl<'m, M: GuestMemory + ?Sized> KernelView<'m, M> {
    /// Looks at `memory` through `space`.
    pub fn new(memory: &'m mut M, space: AddressSpace) -> Self {
        Self {
            memory,
            space,
            recent: [None; 8],
            next: 0,
        }
    }

    /// The address space looked through.
    pub fn space(&self) -> AddressSpace {
        self.space
    }

    /// The physical memory looked at.
    pub fn memory(&mut self) -> &mut M {
        self.memory
    }

    /// The physical address of `at`.
    ///
    /// # Errors
    /// [`ViewError`] where nothing is mapped.
    pub fn translate(&mut self, at: GuestVirt) -> Result<GuestPhys, ViewError> {
        if let Some(found) = self
            .recent
            .iter()
            .flatten()
            .find_map(|mapping| mapping.translate(at))
        {
            return Ok(found);
        }
        let failed = |cause| ViewError { at, cause };
        let mapping = walk(self.memory, self.space.root, self.space.levels, at).map_err(failed)?;
        self.recent[self.next] = Some(mapping);
        self.next = (self.next + 1) % self.recent.len();
        mapping.translate(at).ok_or(failed(WalkError::NotCanonical(at)))
    }

    /// Fills `into` from `at` on, across any number of pages.
    ///
    /// # Errors
    /// [`ViewError`] for the first byte that is not mapped; `into` is then partly filled.
    pub fn read(&mut self, at: GuestVirt, into: &mut [u8]) -> Result<(), ViewError> {
        let mut done = 0;
        while done < into.len() {
            let here = at.checked_add(done as u64).ok_or(ViewError {
                at,
                cause: WalkError::NotCanonical(at),
            })?;
            let physical = self.translate(here)?;
            let length = (into.len() - done).min(PAGE_SIZE - physical.offset());
            self.memory
                .read(physical, &mut into[done..done + length])
                .map_err(|cause| ViewError {
                    at: here,
                    cause: WalkError::Read(cause),
                })?;
            done += length;
        }
        Ok(())
    }

    /// Eight little-endian bytes.
    ///
    /// # Errors
    /// As [`KernelView::read`].
    pub fn u64(&mut self, at: GuestVirt) -> Result<u64, ViewError> {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Four little-endian bytes.
    ///
    /// # Errors
    /// As [`KernelView::read`].
    pub fn u32(&mut self, at: GuestVirt) -> Result<u32, ViewError> {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// A pointer or `unsigned long`: four or eight bytes, by the kernel's word size.
    ///
    /// # Errors
    /// As [`KernelView::read`].
    pub fn word(&mut self, at: GuestVirt) -> Result<u64, ViewError> {
        if self.space.levels.is_32_bit() {
            self.u32(at).map(u64::from)
        } else {
            self.u64(at)
        }
    }

    /// A string of at most `limit` bytes, up to its terminator, odd bytes replaced.
    ///
    /// # Errors
    /// As [`KernelView::read`].
    pub fn text(&mut self, at: GuestVirt, limit: usize) -> Result<String, ViewError> {
        let mut bytes = vec![0; limit];
        self.read(at, &mut bytes)?;
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(limit);
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}
