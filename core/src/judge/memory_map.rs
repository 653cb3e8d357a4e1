//! Finding and reading page descriptors: the memory models of the guest kernel.

use crate::{
    Field, Gfn, GuestMemory, GuestPhys, GuestVirt, Mapping, MemoryMap, PAGE_SHIFT, PAGE_SIZE, PagingLevels,
    Predicate, Profile, ReadError, Row, Sections, WalkError, walk,
};

mod place;

pub(crate) use place::Place;

/// Where a descriptor begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorAt(GuestVirt);

impl DescriptorAt {
    /// Its virtual address.
    pub const fn address(self) -> GuestVirt {
        self.0
    }
}

/// A descriptor to read from, found once for all its members. Good for as long as its reader makes no new
/// translation.
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
    /// The kernel has no descriptor there: no memory of its own. There is none for any frame below `next`
    /// either.
    NotMapped {
        /// The first frame after this one that may have a descriptor. Always further on.
        next: Gfn,
    },
    /// The page tables are damaged, or the descriptor lies outside readable memory.
    Unreadable,
}

/// Frames whose descriptors lie one after the other in virtual memory.
#[derive(Clone, Copy, Debug)]
struct Segment {
    /// The first frame.
    first: u64,
    /// One past the last.
    end: u64,
    /// The address that descriptor 0 would have, modulo 2^64. Often an address that is not there.
    origin: u64,
}

/// Frames whose descriptors lie wholly within the page translated last.
#[derive(Clone, Copy, Debug)]
struct Window {
    first: u64,
    count: u64,
    /// Where the descriptor of `first` begins.
    at: u64,
}

impl Window {
    /// No frame.
    const NONE: Self = Self {
        first: 0,
        count: 0,
        at: 0,
    };
}

/// Reads the members of descriptors through the guest's page tables, remembering the last translation:
/// consecutive descriptors lie in one page of 4 KiB (64 of them) or, as Linux maps its memory map, 2 MiB
/// (32,768 of them).
///
/// A translation is only as good as the moment it was made, and so is a section's place: make a new reader
/// for each slice.
#[derive(Clone, Debug)]
pub struct MemoryMapReader<'p> {
    profile: &'p Profile,
    descriptor_bytes: u64,
    segment: Option<Segment>,
    last: Option<Mapping>,
    window: Window,
}

impl<'p> MemoryMapReader<'p> {
    /// A reader for the memory map that `profile` describes.
    pub fn new(profile: &'p Profile) -> Self {
        Self {
            profile,
            descriptor_bytes: u64::from(profile.descriptor_bytes),
            segment: None,
            last: None,
            window: Window::NONE,
        }
    }

    /// Where the descriptor of `gfn` would be. The kernel's table of sections is read where it has one, and
    /// nothing else.
    ///
    /// # Errors
    /// [`DescriptorError::NotMapped`] for a frame outside the extents or sections,
    /// [`DescriptorError::Unreadable`] when the address is none of the kernel's, or a section cannot be read.
    pub fn locate<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        gfn: Gfn,
    ) -> Result<DescriptorAt, DescriptorError> {
        let segment = self.segment(memory, gfn)?;
        self.address(&segment, gfn).map(DescriptorAt)
    }

    /// The address of the descriptor of `gfn`, which lies in `segment`.
    fn address(&self, segment: &Segment, gfn: Gfn) -> Result<GuestVirt, DescriptorError> {
        let levels = self.profile.levels;
        let offset = gfn.get().wrapping_mul(self.descriptor_bytes);
        let sum = segment.origin.wrapping_add(offset);
        let address = if levels.is_32_bit() {
            sum & u64::from(u32::MAX)
        } else {
            sum
        };
        // User memory is never taken for descriptors, wherever a section or a wrapped sum may point.
        if gfn.get() < Gfn::LIMIT && levels.in_kernel_half(address) {
            Ok(GuestVirt::new(address))
        } else {
            Err(DescriptorError::Unreadable)
        }
    }

    /// The segment that `gfn` lies in.
    fn segment<M: GuestMemory>(&mut self, memory: &mut M, gfn: Gfn) -> Result<Segment, DescriptorError> {
        let at = gfn.get();
        if let Some(segment) = self
            .segment
            .filter(|segment| segment.first <= at && at < segment.end)
        {
            return Ok(segment);
        }
        let found = match &self.profile.memory_map {
            MemoryMap::Vmemmap { base } => Segment {
                first: 0,
                end: u64::MAX,
                origin: base.get(),
            },
            MemoryMap::Extents => self.extent(at)?,
            MemoryMap::Sections(sections) => self.section(memory, sections, at)?,
        };
        self.segment = Some(found);
        Ok(found)
    }

    fn extent(&self, at: u64) -> Result<Segment, DescriptorError> {
        let extents = &self.profile.extents;
        let end = |first: Gfn, count: u64| first.get().saturating_add(count);
        // In order: the first that ends after the frame either holds it or comes next.
        let next = extents.iter().find(|extent| at < end(extent.first, extent.count));
        match next {
            Some(extent) if extent.first.get() <= at => Ok(Segment {
                first: extent.first.get(),
                end: end(extent.first, extent.count),
                origin: extent
                    .array
                    .get()
                    .wrapping_sub(extent.first.get().wrapping_mul(self.descriptor_bytes)),
            }),
            later => Err(DescriptorError::NotMapped {
                next: later.map_or(Gfn::new(u64::MAX), |extent| extent.first),
            }),
        }
    }

    /// Reads the section of frame `at` from the kernel's own table (Linux `__nr_to_section`,
    /// `__section_mem_map_addr`).
    #[cold]
    fn section<M: GuestMemory>(
        &self,
        memory: &mut M,
        sections: &Sections,
        at: u64,
    ) -> Result<Segment, DescriptorError> {
        let profile = self.profile;
        let pointer = profile.levels.pointer_bytes();
        let shift = u32::from(sections.section_bits).saturating_sub(PAGE_SHIFT);
        let number = at.checked_shr(shift).unwrap_or(0);
        // The first frame of section `number`: past the end of everything it does not matter which.
        let first_of = |number: u64| number.saturating_mul(1 << (shift & 63));
        let absent = |number| {
            Err(DescriptorError::NotMapped {
                next: Gfn::new(first_of(number)),
            })
        };
        if number >= sections.count {
            return absent(u64::MAX);
        }
        let read = |memory: &mut M, base: GuestVirt, offset: u64| {
            base.checked_add(offset)
                .and_then(|at| read_virtual(memory, profile.root, profile.levels, at, pointer).ok())
                .ok_or(DescriptorError::Unreadable)
        };
        let size = u64::from(sections.section_bytes);
        let group = u64::from(sections.per_root);
        let (table, index) = match (number.checked_div(group), number.checked_rem(group)) {
            (Some(root), Some(index)) => {
                let table = read(memory, sections.table, root.wrapping_mul(u64::from(pointer)))?;
                if table == 0 {
                    // No section of this group was ever there.
                    return absent(root.saturating_add(1).saturating_mul(group));
                }
                (GuestVirt::new(table), index)
            }
            _ => (sections.table, number),
        };
        let offset = index
            .wrapping_mul(size)
            .wrapping_add(u64::from(sections.map_offset));
        let encoded = read(memory, table, offset)?;
        if encoded & (sections.required | sections.refused) != sections.required {
            return absent(number.saturating_add(1));
        }
        Ok(Segment {
            first: first_of(number),
            end: first_of(number.saturating_add(1)),
            origin: encoded & !sections.flag_mask,
        })
    }

    /// Where the descriptor of `gfn` begins, and how many follow it, if the page translated last maps all of
    /// it. Nothing is read.
    #[inline]
    fn find(&self, gfn: Gfn) -> Option<(GuestPhys, u64)> {
        let index = gfn.get().wrapping_sub(self.window.first);
        (index < self.window.count).then(|| {
            let offset = index.wrapping_mul(self.descriptor_bytes);
            (
                GuestPhys::new(self.window.at.wrapping_add(offset)),
                self.window.count - index,
            )
        })
    }

    /// Opens the descriptor of `gfn`, to read one or several members.
    #[inline]
    pub fn open(&self, gfn: Gfn) -> Descriptor {
        Descriptor {
            gfn,
            first: self.find(gfn).map(|(first, _)| first),
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

    /// Passes over descriptors that fail `test`, from `gfn` on and `limit` at most, as far as one frame of
    /// the memory map goes. `None`: not where the last translation leads, or unreadable; ask one by one.
    #[inline]
    pub fn pass_over<M: GuestMemory>(
        &self,
        memory: &mut M,
        gfn: Gfn,
        limit: u64,
        test: &Predicate,
    ) -> Option<PassedOver> {
        let (first, left) = self.find(gfn)?;
        let first = GuestPhys::new(first.get().wrapping_add(u64::from(test.field.offset)));
        // From where the first member begins to the last place in its frame where one can begin.
        let room = (PAGE_SIZE - usize::from(test.field.width)).checked_sub(first.offset())?;
        let in_frame = (room as u64).checked_div(self.descriptor_bytes)? + 1;
        let row = Row {
            first,
            stride: self.descriptor_bytes,
            count: in_frame.min(left).min(limit),
        };
        let count = memory.count_failing(row, test).ok()?;
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
        let segment = self.segment(memory, gfn)?;
        let descriptor = self.address(&segment, gfn)?;
        let at = descriptor
            .checked_add(u64::from(field.offset))
            .ok_or(DescriptorError::Unreadable)?;
        let end = at
            .checked_add(u64::from(width).saturating_sub(1))
            .ok_or(DescriptorError::Unreadable)?;
        let first = self
            .translate(memory, at)
            .map_err(|error| self.explain_miss(error, at, descriptor, gfn, &segment))?;
        self.window = self.last.map_or(Window::NONE, |mapping| {
            window(
                &segment,
                &mapping,
                gfn.get(),
                descriptor.get(),
                self.descriptor_bytes,
            )
        });
        // In one piece where one page holds all of it: byte by byte would tear a value that the guest changes
        // under us.
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
                .map_err(|error| self.explain_miss(error, address, descriptor, gfn, &segment))?;
            let value = memory
                .read_value(physical, 1)
                .map_err(|_| DescriptorError::Unreadable)?;
            *byte = value.to_le_bytes()[0];
        }
        Ok(u64::from_le_bytes(bytes))
    }

    /// Translates, and forgets the window where that takes another page than last time.
    fn translate<M: GuestMemory>(&mut self, memory: &mut M, at: GuestVirt) -> Result<GuestPhys, WalkError> {
        if let Some(physical) = self.last.and_then(|mapping| mapping.translate(at)) {
            return Ok(physical);
        }
        let mapping = walk(memory, self.profile.root, self.profile.levels, at)?;
        self.last = Some(mapping);
        self.window = Window::NONE;
        mapping.translate(at).ok_or(WalkError::NotCanonical(at))
    }

    /// Turns a hole in the page tables at `at`, a byte of the descriptor of `gfn` that begins at
    /// `descriptor`, into the number of descriptors that it swallows.
    fn explain_miss(
        &self,
        error: WalkError,
        at: GuestVirt,
        descriptor: GuestVirt,
        gfn: Gfn,
        segment: &Segment,
    ) -> DescriptorError {
        match error {
            WalkError::NotPresent { shift } => {
                let last_byte = at.get() | ((1 << shift) - 1);
                // The first descriptor that begins after the hole; one that begins inside it cannot be read
                // whole.
                let swallowed = last_byte
                    .checked_sub(descriptor.get())
                    .and_then(|offset| offset.checked_div(self.descriptor_bytes))
                    .map_or(u64::MAX, |index| index.saturating_add(1));
                let next = gfn.get().saturating_add(swallowed);
                DescriptorError::NotMapped {
                    next: Gfn::new(next.min(segment.end)),
                }
            }
            WalkError::NotCanonical(_) | WalkError::Malformed { .. } | WalkError::Read(_) => {
                DescriptorError::Unreadable
            }
        }
    }
}

/// The frames of `segment` whose descriptors `mapping` holds wholly. That of `gfn` begins at `descriptor`, in
/// the page or, where it reaches into it, before it.
fn window(segment: &Segment, mapping: &Mapping, gfn: u64, descriptor: u64, size: u64) -> Window {
    let start = mapping.start.get();
    let (first, offset) = match descriptor.checked_sub(start) {
        Some(offset) => {
            let before = offset
                .checked_div(size)
                .unwrap_or(0)
                .min(gfn.saturating_sub(segment.first));
            (
                gfn.saturating_sub(before),
                offset.wrapping_sub(before.wrapping_mul(size)),
            )
        }
        // It begins in the page before: the next one is the first that is here as a whole.
        None => (
            gfn.saturating_add(1),
            descriptor.wrapping_add(size).wrapping_sub(start),
        ),
    };
    let count = (1_u64 << mapping.shift)
        .checked_sub(offset)
        .and_then(|room| room.checked_div(size))
        .unwrap_or(0)
        .min(segment.end.saturating_sub(first));
    Window {
        first,
        count,
        at: mapping.base.get().wrapping_add(offset),
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
