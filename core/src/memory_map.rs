//! Finding and reading page descriptors: the memory models of the guest kernel.

use crate::{
    Field, Gfn, GuestMemory, GuestPhys, GuestVirt, Mapping, MemoryMap, PAGE_SIZE, PagingLevels, Predicate,
    Profile, ReadError, Row, WalkError, walk,
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

/// A descriptor to read from, found once for all its members. Good for as long as its reader makes no new translation.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    gfn: Gfn,
    /// Its first byte, where one page of the memory map holds all of it.
    first: Option<GuestPhys>,
}

/// Descriptors that failed a test, in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// How many.
    pub count: u64,
    /// Whether the one after them was seen to pass. Otherwise nothing is known of it.
    pub next_passes: bool,
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

    /// Where the descriptor of `gfn` begins, if the page translated last maps all of it. Nothing is read.
    #[inline]
    fn find(&self, gfn: Gfn) -> Option<GuestPhys> {
        let mapping = self.last.as_ref()?;
        let at = self.locate(gfn).ok()?.0;
        let offset = at.get().wrapping_sub(mapping.start.get());
        // A page is larger than any descriptor.
        let last_start = (1_u64 << mapping.shift).saturating_sub(self.descriptor_bytes);
        (offset <= last_start).then(|| GuestPhys::new(mapping.base.get() | offset))
    }

    /// Opens the descriptor of `gfn`, to read one or several members.
    #[inline]
    pub fn open(&self, gfn: Gfn) -> Descriptor {
        Descriptor {
            gfn,
            first: self.find(gfn),
        }
    }

    /// Reads one member of an open descriptor.
    ///
    /// # Errors
    /// [`DescriptorError`].
    #[inline]
    pub fn member<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        descriptor: Descriptor,
        field: Field,
    ) -> Result<u64, DescriptorError> {
        match descriptor.first {
            Some(first) => memory
                .read_value(
                    GuestPhys::new(first.get().wrapping_add(u64::from(field.offset))),
                    field.width,
                )
                .map_err(|_| DescriptorError::Unreadable),
            None => self.member_elsewhere(memory, descriptor.gfn, field),
        }
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
        let descriptor = self.open(gfn);
        self.member(memory, descriptor, field)
    }

    /// Passes over descriptors that fail `test`, from `gfn` on and `limit` at most, as far as one frame of the memory map
    /// goes. `None`: not where the last translation leads, or unreadable; ask one by one.
    #[inline]
    pub fn pass_over<M: GuestMemory>(
        &self,
        memory: &mut M,
        gfn: Gfn,
        limit: u64,
        test: &Predicate,
    ) -> Option<PassedOver> {
        let first = self.find(gfn)?;
        let first = GuestPhys::new(first.get().wrapping_add(u64::from(test.field.offset)));
        // From where the first member begins to the last place in its frame where one can begin.
        let room = (PAGE_SIZE - usize::from(test.field.width)).checked_sub(first.offset())?;
        let in_frame = (room as u64).checked_div(self.descriptor_bytes)? + 1;
        let row = Row {
            first,
            stride: self.descriptor_bytes,
            count: in_frame.min(limit),
        };
        let count = memory.failing(row, test).ok()?;
        Some(PassedOver {
            count,
            next_passes: count < row.count,
        })
    }

    /// The slow path: another page than last time, or a descriptor that straddles two of them.
    #[cold]
    fn member_elsewhere<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        gfn: Gfn,
        field: Field,
    ) -> Result<u64, DescriptorError> {
        let width = field.width;
        let at = self
            .locate(gfn)?
            .0
            .checked_add(u64::from(field.offset))
            .ok_or(DescriptorError::Unreadable)?;
        let end = at
            .checked_add(u64::from(width).saturating_sub(1))
            .ok_or(DescriptorError::Unreadable)?;
        let first = self
            .translate(memory, at)
            .map_err(|error| self.explain_miss(error, at, gfn))?;
        // In one piece where one page holds all of it: byte by byte would tear a value that the guest changes under us.
        if self.last.and_then(|mapping| mapping.translate(end)).is_some() {
            return memory
                .read_value(first, width)
                .map_err(|_| DescriptorError::Unreadable);
        }
        let mut bytes = [0; 8];
        for (index, byte) in (0..u64::from(width)).zip(bytes.iter_mut()) {
            let address = at.checked_add(index).ok_or(DescriptorError::Unreadable)?;
            let physical = self
                .translate(memory, address)
                .map_err(|error| self.explain_miss(error, address, gfn))?;
            let value = memory
                .read_value(physical, 1)
                .map_err(|_| DescriptorError::Unreadable)?;
            *byte = value.to_le_bytes()[0];
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
    if physical.offset() + usize::from(width) > PAGE_SIZE {
        return Err(WalkError::Read(ReadError::CrossesFrame(physical)));
    }
    Ok(memory.read_value(physical, width)?)
}
