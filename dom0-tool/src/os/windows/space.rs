//! A kernel's address space: page tables in a guest's memory, and what is read through them.

use lacuna_core::{GuestMemory, GuestPhys, GuestVirt, PAGE_SIZE, PagingLevels, ReadError, WalkError, walk};

use super::pe::ImageSource;

/// Page tables and their form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Physical address of the top-level table.
    pub root: GuestPhys,
    /// Its form.
    pub levels: PagingLevels,
}

impl Space {
    /// Where `at` lies in physical memory.
    pub fn translate<M: GuestMemory + ?Sized>(&self, memory: &mut M, at: u64) -> Option<GuestPhys> {
        let at = GuestVirt::new(at);
        walk(memory, self.root, self.levels, at).ok()?.translate(at)
    }

    /// Fills `into` from virtual address `at` on, page by page; false when a part is not there.
    pub fn read<M: GuestMemory + ?Sized>(&self, memory: &mut M, at: u64, into: &mut [u8]) -> bool {
        let mut done = 0;
        while done < into.len() {
            let Some(from) = at.checked_add(done as u64) else {
                return false;
            };
            let Some(physical) = self.translate(memory, from) else {
                return false;
            };
            let length = (PAGE_SIZE - physical.offset()).min(into.len() - done);
            if memory.read(physical, &mut into[done..done + length]).is_err() {
                return false;
            }
            done += length;
        }
        true
    }

    /// The little-endian number of `bytes` bytes (at most 8) at `at`.
    pub fn number<M: GuestMemory + ?Sized>(&self, memory: &mut M, at: u64, bytes: usize) -> Option<u64> {
        let mut value = [0; 8];
        let into = value.get_mut(..bytes)?;
        self.read(memory, at, into).then(|| u64::from_le_bytes(value))
    }

    /// A pointer of this kernel.
    pub fn pointer<M: GuestMemory + ?Sized>(&self, memory: &mut M, at: u64) -> Option<u64> {
        self.number(memory, at, usize::from(self.levels.pointer_bytes()))
    }

    /// How far to go down from `at` to leave what is known not to be mapped: to the start of the missing span.
    pub fn unmapped_below<M: GuestMemory + ?Sized>(&self, memory: &mut M, at: u64) -> Option<u64> {
        match walk(memory, self.root, self.levels, GuestVirt::new(at)) {
            Ok(_) => None,
            Err(WalkError::NotPresent { shift } | WalkError::Malformed { shift }) => {
                Some(at >> shift << shift)
            }
            Err(
                WalkError::Read(ReadError::Absent(_) | ReadError::CrossesFrame(_))
                | WalkError::NotCanonical(_),
            ) => Some(at),
        }
    }
}

/// An image that is loaded in a guest.
#[derive(Debug)]
pub struct LoadedImage<'m, M: ?Sized> {
    /// The guest's memory.
    pub memory: &'m mut M,
    /// Its address space.
    pub space: Space,
    /// Where the image begins.
    pub base: u64,
}

impl<M: GuestMemory + ?Sized> ImageSource for LoadedImage<'_, M> {
    fn read(&mut self, rva: u32, into: &mut [u8]) -> bool {
        match self.base.checked_add(u64::from(rva)) {
            Some(at) => self.space.read(self.memory, at, into),
            None => false,
        }
    }
}
