//! Where the mock kernel keeps its descriptors: the memory models, laid out in page tables.
//!
//! The descriptors themselves are one dense array in physical memory, whatever the model; models differ in
//! what of it is mapped where, and in how the kernel finds it.

use core::ops::Range;

use super::build::{Config, DATA, MAP_FIRST, MapPages};
use super::tables::Tables;
use lacuna_core::{Extent, Gfn, GuestVirt, MemoryMap, PAGE_SHIFT, PAGE_SIZE, PagingLevels, Sections};

/// A memory model of a guest kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// Linux `CONFIG_SPARSEMEM_VMEMMAP`. 64-bit kernels only.
    Vmemmap,
    /// Linux `CONFIG_FLATMEM`: one array, the hole included.
    Flat,
    /// Linux `CONFIG_DISCONTIGMEM`: two nodes with an array each, the hole (or the middle) between them.
    Discontiguous,
    /// Linux `CONFIG_SPARSEMEM_STATIC`: sections of 4 MiB.
    SectionsStatic,
    /// Linux `CONFIG_SPARSEMEM_EXTREME`: the same, by way of pointers to groups of two.
    SectionsExtreme,
    /// Windows' PFN database: one array, believed only where there is a run of memory.
    Runs,
}

/// Frames of a section: small, so that a mock guest has several.
const SECTION_FRAMES: u64 = 1024;
/// Sections in a group.
const PER_ROOT: u64 = 2;
/// Most sections: their table has this room in the kernel's data page.
const MOST_SECTIONS: u64 = 16;
/// Offset of the pointers to groups in the kernel's data page, and of the sections.
const ROOTS_OFFSET: u64 = 0xb80;
const SECTIONS_OFFSET: u64 = 0xc00;
/// As Linux' `SECTION_MAP_MASK` leaves them: present, has a map, online, early, and device memory.
const FLAG_MASK: u64 = 0x1f;
const REQUIRED: u64 = 0x6;
const REFUSED: u64 = 0x10;
/// What a section that has descriptors holds: `REQUIRED`, present and early.
const ONLINE: u64 = 0xf;
/// What one that was taken offline holds: its map is still there.
const OFFLINE: u64 = 0x3;

/// Where the memory map lies.
#[derive(Clone, Debug)]
pub(super) struct MapPlace {
    /// The frame of each 4 KiB of the dense array.
    pub(super) frames: Vec<u64>,
    /// Frames whose descriptors lie in one piece, and the address of the first one's.
    pub(super) pieces: Vec<(Range<u64>, u64)>,
}

impl MapPlace {
    /// Maps the memory map of a guest like `config`, which takes `map_frames` frames.
    pub(super) fn build(config: &Config, tables: &mut Tables, map_frames: u64) -> Self {
        let shift = match (config.map_pages, config.levels) {
            (MapPages::Small, _) => PAGE_SHIFT,
            (MapPages::Huge, PagingLevels::Four | PagingLevels::Five) => 30,
            (_, PagingLevels::Two) => 22,
            _ => 21,
        };
        let frames: Vec<u64> = if shift == PAGE_SHIFT {
            (MAP_FIRST..MAP_FIRST + map_frames).rev().collect()
        } else {
            (MAP_FIRST..MAP_FIRST + map_frames).collect()
        };
        let (mut region, distance) = match config.levels {
            PagingLevels::Four => (0xffff_ea00_0000_0000, 1 << 31),
            PagingLevels::Five => (0xffd4_0000_0000_0000_u64, 1 << 31),
            PagingLevels::Pae | PagingLevels::Two => (0xe000_0000, 1 << 24),
        };
        let mut pieces = Vec::new();
        for piece in pieces_of(config) {
            let array = map_piece(config, tables, &frames, shift, region, &piece);
            pieces.push((piece, array));
            region += distance;
        }
        Self { frames, pieces }
    }

    /// Address of the first piece's first descriptor.
    pub(super) fn base(&self) -> u64 {
        self.pieces[0].1
    }

    /// The memory map as a profile describes it, and its extents.
    pub(super) fn describe(&self, config: &Config) -> (MemoryMap, Vec<Extent>) {
        let size = u64::from(config.layout.descriptor_bytes);
        let extent = |frames: &Range<u64>, array: u64| Extent {
            first: Gfn::new(frames.start),
            count: frames.end - frames.start,
            array: GuestVirt::new(array),
        };
        let data = config.data();
        let pointer = u64::from(config.levels.pointer_bytes());
        let sections = Sections {
            table: GuestVirt::new(data + SECTIONS_OFFSET),
            per_root: 0,
            count: MOST_SECTIONS,
            section_bits: 22,
            section_bytes: (2 * pointer) as u16,
            map_offset: pointer as u16,
            flag_mask: FLAG_MASK,
            required: REQUIRED,
            refused: REFUSED,
        };
        match config.model {
            Model::Vmemmap => (
                MemoryMap::Vmemmap {
                    base: GuestVirt::new(self.base()),
                },
                Vec::new(),
            ),
            Model::Flat | Model::Discontiguous => (
                MemoryMap::Extents,
                self.pieces
                    .iter()
                    .map(|(frames, array)| extent(frames, *array))
                    .collect(),
            ),
            Model::Runs => (
                MemoryMap::Extents,
                around_hole(config)
                    .into_iter()
                    .map(|run| extent(&run, self.base() + run.start * size))
                    .collect(),
            ),
            Model::SectionsStatic => (MemoryMap::Sections(sections), Vec::new()),
            Model::SectionsExtreme => (
                MemoryMap::Sections(Sections {
                    table: GuestVirt::new(data + ROOTS_OFFSET),
                    per_root: PER_ROOT as u32,
                    ..sections
                }),
                Vec::new(),
            ),
        }
    }

    /// What the kernel keeps in its data page to find sections: offsets and pointer-sized values.
    pub(super) fn section_table(&self, config: &Config) -> Vec<(u64, u64)> {
        let pointer = u64::from(config.levels.pointer_bytes());
        let mut words = Vec::new();
        if !matches!(config.model, Model::SectionsStatic | Model::SectionsExtreme) {
            return words;
        }
        for (frames, _) in &self.pieces {
            let number = frames.start / SECTION_FRAMES;
            assert!(number < MOST_SECTIONS, "too many sections for the mock kernel");
            words.push((
                SECTIONS_OFFSET + (2 * number + 1) * pointer,
                self.encoded(config, frames.start) | ONLINE,
            ));
            let root = number / PER_ROOT;
            let group = config.data() + SECTIONS_OFFSET + root * PER_ROOT * 2 * pointer;
            words.push((ROOTS_OFFSET + root * pointer, group));
        }
        words
    }

    /// The word that says that the section of `gfn` is there no more, its map still standing.
    pub(super) fn offline(&self, config: &Config, gfn: u64) -> Option<(u64, u64)> {
        let number = gfn / SECTION_FRAMES;
        let pointer = u64::from(config.levels.pointer_bytes());
        self.pieces
            .iter()
            .find(|(frames, _)| frames.contains(&gfn))
            .map(|(frames, _)| {
                (
                    SECTIONS_OFFSET + (2 * number + 1) * pointer,
                    self.encoded(config, frames.start) | OFFLINE,
                )
            })
    }

    /// The address that descriptor 0 would have if the piece that begins with `first` went that far.
    fn encoded(&self, config: &Config, first: u64) -> u64 {
        let size = u64::from(config.layout.descriptor_bytes);
        let array = self
            .pieces
            .iter()
            .find(|(frames, _)| frames.start == first)
            .map_or(0, |(_, at)| *at);
        array.wrapping_sub(first * size)
    }
}

/// Frames that have descriptors in one piece.
fn pieces_of(config: &Config) -> Vec<Range<u64>> {
    let middle = config.pages / 2;
    let hole = if config.hole.is_empty() {
        middle..middle
    } else {
        config.hole.clone()
    };
    match config.model {
        Model::Vmemmap | Model::Flat | Model::Runs => std::vec![0..config.pages],
        Model::Discontiguous => std::vec![0..hole.start, hole.end..config.pages],
        Model::SectionsStatic | Model::SectionsExtreme => (0..config.pages)
            .step_by(SECTION_FRAMES as usize)
            .map(|first| first..(first + SECTION_FRAMES).min(config.pages))
            .filter(|section| !(hole.start <= section.start && section.end <= hole.end))
            .collect(),
    }
}

/// Runs of memory.
fn around_hole(config: &Config) -> Vec<Range<u64>> {
    if config.hole.is_empty() {
        std::vec![0..config.pages]
    } else {
        std::vec![0..config.hole.start, config.hole.end..config.pages]
    }
}

/// Maps the descriptors of `piece` at `region`, or a little above, and says where the first lies.
fn map_piece(
    config: &Config,
    tables: &mut Tables,
    frames: &[u64],
    shift: u32,
    region: u64,
    piece: &Range<u64>,
) -> u64 {
    let size = u64::from(config.layout.descriptor_bytes);
    let (start, end) = (piece.start * size, piece.end * size);
    if shift > PAGE_SHIFT {
        // Frames are in order there.
        let physical = (MAP_FIRST << PAGE_SHIFT) + start;
        let first = physical & !((1 << shift) - 1);
        let past = (MAP_FIRST << PAGE_SHIFT) + end;
        for (position, at) in (first..past).step_by(1 << shift).enumerate() {
            tables.map(region + ((position as u64) << shift), at, shift);
        }
        return region + (physical - first);
    }
    let first_page = start >> PAGE_SHIFT;
    for page in first_page..end.div_ceil(PAGE_SIZE as u64) {
        // Descriptors that begin or end in this page.
        let first = (page << PAGE_SHIFT) / size;
        let last = (((page + 1) << PAGE_SHIFT) - 1) / size;
        if config.maps_hole() || (first..=last).any(|gfn| !config.hole.contains(&gfn)) {
            let at = region + ((page - first_page) << PAGE_SHIFT);
            tables.map(at, frames[page as usize] << PAGE_SHIFT, PAGE_SHIFT);
        }
    }
    region + start % PAGE_SIZE as u64
}

impl Config {
    /// Where the kernel maps its data page.
    pub(super) const fn data(&self) -> u64 {
        if self.levels.is_32_bit() {
            DATA & 0xffff_ffff
        } else {
            DATA
        }
    }

    /// Whether the hole has descriptors.
    pub(super) fn maps_hole(&self) -> bool {
        self.map_pages != MapPages::Small || !matches!(self.model, Model::Vmemmap | Model::Runs)
    }
}
