//! Finding and reading page descriptors: the memory models of the guest kernel.

use crate::{
    Field, Gfn, GuestMemory, GuestPhys, GuestVirt, Mapping, MemoryMap, PagingLevels, Profile, ReadError,
    WalkError, walk,
};

/// Where a descriptor begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorAt(GuestVirt);

impl DescriptorAt {
    /// Its virtual address.
    pub const fn address(self) -> GuestVirt {
        self.0
    }
}

/// Why a descriptor, or a member of it, could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorError {
    /// The kernel has no descriptor mapped there: no memory of its own. No descriptor below `next` is mapped either.
    NotMapped {
        /// The first frame after this one whose descriptor may be mapped. Always further on.
        next: Gfn,
    },
    /// The page tables are damaged, or the descriptor lies outside readable memory.
    Unreadable,
}

/// Reads the members of descriptors through the guest's page tables, remembering the last translation: consecutive
/// descriptors lie in one page of 4 KiB (64 of them) or, as Linux maps its memory map, 2 MiB (32,768 of them).
///
/// A translation is only as good as the moment it was made: make a new reader for each slice.
#[derive(Clone, Debug)]
pub struct MemoryMapReader {
    root: GuestPhys,
    levels: PagingLevels,
    base: GuestVirt,
    descriptor_bytes: u64,
    last: Option<Mapping>,
}

impl MemoryMapReader {
    /// A reader for the memory map that `profile` describes.
    pub fn new(profile: &Profile) -> Self {
        let MemoryMap::Vmemmap { base } = profile.memory_map;
        Self {
            root: profile.root,
            levels: profile.levels,
            base,
            descriptor_bytes: u64::from(profile.descriptor_bytes),
            last: None,
        }
    }

    /// Where the descriptor of `gfn` would be. Nothing is read.
    ///
    /// # Errors
    /// [`DescriptorError::Unreadable`] when the address overflows.
    #[inline]
    pub fn locate(&self, gfn: Gfn) -> Result<DescriptorAt, DescriptorError> {
        gfn.get()
            .checked_mul(self.descriptor_bytes)
            .and_then(|offset| self.base.checked_add(offset))
            .map(DescriptorAt)
            .ok_or(DescriptorError::Unreadable)
    }

    /// Reads one member of the descriptor of `gfn`.
    ///
    /// # Errors
    /// [`DescriptorError`].
    #[inline]
    pub fn read<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        gfn: Gfn,
        field: Field,
    ) -> Result<u64, DescriptorError> {
        let at = self
            .locate(gfn)?
            .0
            .checked_add(u64::from(field.offset))
            .ok_or(DescriptorError::Unreadable)?;
        let width = u64::from(field.width);
        if let Some(mapping) = &self.last {
            if let (Some(first), Some(_)) = (
                mapping.translate(at),
                mapping.translate(GuestVirt::new(at.get() + (width - 1))),
            ) {
                return memory
                    .read_value(first, field.width)
                    .map_err(|_| DescriptorError::Unreadable);
            }
        }
        self.read_elsewhere(memory, gfn, at, field.width)
    }

    /// The slow path: another page than last time, or a member that straddles two of them.
    #[cold]
    fn read_elsewhere<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        gfn: Gfn,
        at: GuestVirt,
        width: u8,
    ) -> Result<u64, DescriptorError> {
        let mut bytes = [0; 8];
        for (index, byte) in bytes.iter_mut().take(usize::from(width)).enumerate() {
            let address = at.checked_add(index as u64).ok_or(DescriptorError::Unreadable)?;
            let physical = self
                .translate(memory, address)
                .map_err(|error| self.explain_miss(error, address, gfn))?;
            let value = memory
                .read_value(physical, 1)
                .map_err(|_| DescriptorError::Unreadable)?;
            *byte = value.to_le_bytes()[0];
        }
        // Byte by byte would tear a value that the guest changes under us: where one page holds all of it, read it
        // in one piece.
        if let (Some(mapping), Some(end)) = (self.last, at.checked_add(u64::from(width) - 1)) {
            if let (Some(first), Some(_)) = (mapping.translate(at), mapping.translate(end)) {
                return memory
                    .read_value(first, width)
                    .map_err(|_| DescriptorError::Unreadable);
            }
        }
        Ok(u64::from_le_bytes(bytes))
    }

    fn translate<M: GuestMemory>(&mut self, memory: &mut M, at: GuestVirt) -> Result<GuestPhys, WalkError> {
        if let Some(physical) = self.last.and_then(|mapping| mapping.translate(at)) {
            return Ok(physical);
        }
        let mapping = walk(memory, self.root, self.levels, at)?;
        self.last = Some(mapping);
        mapping.translate(at).ok_or(WalkError::NotCanonical(at))
    }

    /// Turns a hole in the page tables into the number of descriptors that it swallows.
    fn explain_miss(&self, error: WalkError, at: GuestVirt, gfn: Gfn) -> DescriptorError {
        match error {
            WalkError::NotPresent { shift } => {
                let last_byte = at.get() | ((1 << shift) - 1);
                // The first descriptor that begins after the hole; one that begins inside it cannot be read whole.
                let next = last_byte
                    .checked_sub(self.base.get())
                    .and_then(|offset| offset.checked_div(self.descriptor_bytes))
                    .map_or(u64::MAX, |index| index + 1);
                DescriptorError::NotMapped {
                    next: Gfn::new(next.max(gfn.get().saturating_add(1))),
                }
            }
            WalkError::NotCanonical(_) | WalkError::Malformed { .. } | WalkError::Read(_) => {
                DescriptorError::Unreadable
            }
        }
    }
}

/// Reads a value of `width` bytes at a virtual address of the kernel.
///
/// # Errors
/// [`WalkError`] where a page on the way is not there.
pub(crate) fn read_virtual<M: GuestMemory>(
    memory: &mut M,
    root: GuestPhys,
    levels: PagingLevels,
    at: GuestVirt,
    width: u8,
) -> Result<u64, WalkError> {
    let physical = walk(memory, root, levels, at)?
        .translate(at)
        .ok_or(WalkError::NotCanonical(at))?;
    if physical.offset() + usize::from(width) > crate::PAGE_SIZE {
        return Err(WalkError::Read(ReadError::CrossesFrame(physical)));
    }
    Ok(memory.read_value(physical, width)?)
}
