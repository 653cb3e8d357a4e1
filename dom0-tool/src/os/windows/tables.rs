//! From pages to the virtual addresses at which page tables map them, without registers.
//!
//! Memory is gone through once for each level of page table: first for entries that lead to the pages in question, then
//! for entries that lead to the tables those were found in, and so on up. What comes out is every chain that could be a
//! path of a page walk; each is then walked downwards, since most pages that look like tables are not.
//!
//! Works for 2 levels, PAE, 4 and 5 levels, and needs no table that maps itself.

use std::collections::{BTreeMap, HashMap, HashSet};

use lacuna_core::{Gfn, GuestPhys, GuestVirt, PAGE_SIZE, PagingLevels};

use super::pe::{FileImage, FileLayout, PeImage};
use crate::os::view::AddressSpace;
use crate::source::GuestSource;

/// Most pages followed. A Windows guest has some 200 drivers and some 3,000 libraries loaded.
const MAX_IMAGES: usize = 65_536;
/// Most tables followed at one level, and most paths returned. What is past it is left out: a hostile guest can fill its
/// memory with what looks like entries, and then is told apart by registers only.
const MAX_TABLES: usize = 65_536;
const MAX_PATHS: usize = 65_536;
/// Most entries followed for one page at one level: each process has a top-level table that leads to the kernel.
const MAX_ENTRIES: u32 = 64;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A page reached from a top-level table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The page's frame.
    pub image: Gfn,
    /// The tables.
    pub space: AddressSpace,
    /// The virtual address.
    pub base: GuestVirt,
}

/// The frames that begin as an image does, and how many frames were looked at.
pub fn images<M: GuestSource>(memory: &mut M, progress: &mut dyn FnMut(u64, u64)) -> (Vec<Gfn>, u64) {
    let mut found = Vec::new();
    let mut frames = 0;
    each_frame(memory, progress, &mut |gfn, bytes| {
        frames += 1;
        if bytes.starts_with(b"MZ")
            && found.len() < MAX_IMAGES
            && PeImage::read(&mut FileImage::new(bytes, FileLayout::Mapped)).is_ok()
        {
            found.push(gfn);
        }
    });
    (found, frames)
}

fn each_frame<M: GuestSource>(
    memory: &mut M,
    progress: &mut dyn FnMut(u64, u64),
    look: &mut dyn FnMut(Gfn, &[u8; PAGE_SIZE]),
) {
    let end = memory.end().get();
    let mut bytes = [0; PAGE_SIZE];
    let mut at = Gfn::new(0);
    while let Some(gfn) = memory.next_present(at) {
        at = gfn.saturating_add(1);
        if gfn.get() % 4096 == 0 {
            progress(gfn.get(), end);
        }
        let Some(base) = gfn.base() else { break };
        if memory.read(base, &mut bytes).is_ok() {
            look(gfn, &bytes);
        }
    }
    progress(end, end);
}

/// Frames of which every one can be asked for in no time.
struct Targets {
    words: Vec<u64>,
}

impl Targets {
    fn new(end: u64, frames: impl Iterator<Item = u64>) -> Self {
        let mut words = vec![0; usize::try_from(end / 64 + 1).unwrap_or(0)];
        for frame in frames {
            if let Some(word) = usize::try_from(frame / 64)
                .ok()
                .and_then(|index| words.get_mut(index))
            {
                *word |= 1 << (frame % 64);
            }
        }
        Self { words }
    }

    #[inline]
    fn has(&self, frame: u64) -> bool {
        usize::try_from(frame / 64)
            .ok()
            .and_then(|index| self.words.get(index))
            .is_some_and(|word| word >> (frame % 64) & 1 != 0)
    }
}

/// An entry that leads to a table or a page: where it stands, and what of the virtual address it and those below it fix.
#[derive(Clone, Copy, Debug)]
struct Path {
    image: Gfn,
    /// Frame of the table that the entry is in.
    table: u64,
    /// Byte in it.
    offset: u64,
    /// The virtual address so far.
    low: u64,
}

/// The form of the tables at one level.
#[derive(Clone, Copy)]
struct Level {
    /// Bytes of an entry.
    entry: usize,
    /// The lowest bit of the virtual address that the index stands for.
    shift: u32,
    /// Whether entries can map pages of this level's size.
    large: bool,
}

const LONG: [Level; 5] = [
    Level {
        entry: 8,
        shift: 12,
        large: false,
    },
    Level {
        entry: 8,
        shift: 21,
        large: true,
    },
    Level {
        entry: 8,
        shift: 30,
        large: true,
    },
    Level {
        entry: 8,
        shift: 39,
        large: false,
    },
    Level {
        entry: 8,
        shift: 48,
        large: false,
    },
];
const SHORT: [Level; 2] = [
    Level {
        entry: 4,
        shift: 12,
        large: false,
    },
    Level {
        entry: 4,
        shift: 22,
        large: true,
    },
];

/// Every way from a top-level table to one of `images`, each walked and found to lead there.
pub fn reach<M: GuestSource>(
    memory: &mut M,
    images: &[Gfn],
    progress: &mut dyn FnMut(u64, u64),
) -> Vec<Reached> {
    let mut reached = Vec::new();
    let mut seen = HashSet::new();
    let mut try_root = |memory: &mut M, path: &Path, levels: PagingLevels| {
        let root = match levels {
            // Four entries, aligned to their size; the entry is one of them.
            PagingLevels::Pae => path.table * PAGE_SIZE as u64 + path.offset / 32 * 32,
            _ => path.table * PAGE_SIZE as u64,
        };
        let base = match levels {
            PagingLevels::Four if path.low >> 47 & 1 != 0 => path.low | u64::MAX << 48,
            PagingLevels::Five if path.low >> 56 & 1 != 0 => path.low | u64::MAX << 57,
            _ => path.low,
        };
        let base = GuestVirt::new(base);
        let space = AddressSpace {
            root: GuestPhys::new(root),
            levels,
        };
        if reached.len() < MAX_PATHS
            && seen.insert((root, base))
            && space.translate(memory, base) == path.image.base()
        {
            reached.push(Reached {
                image: path.image,
                space,
                base,
            });
        }
    };

    let mut paths = Vec::new();
    for (index, level) in LONG.iter().enumerate() {
        paths = climb(memory, *level, images, &paths, progress);
        for path in &paths {
            match index {
                // The third level has four entries with PAE. Such a table can lie anywhere, aligned to 32 bytes.
                2 => {
                    let low = path.low & ((1 << 30) - 1) | (path.offset / 8 % 4) << 30;
                    try_root(memory, &Path { low, ..*path }, PagingLevels::Pae);
                }
                3 => try_root(memory, path, PagingLevels::Four),
                4 => try_root(memory, path, PagingLevels::Five),
                _ => {}
            }
        }
    }
    let mut paths = Vec::new();
    for (index, level) in SHORT.iter().enumerate() {
        paths = climb(memory, *level, images, &paths, progress);
        if index == 1 {
            for path in &paths {
                try_root(memory, path, PagingLevels::Two);
            }
        }
    }
    reached
}

/// The paths so far by the frame that the next entry has to lead to: a table, or, at the first level, an image.
fn by_target(is_first: bool, images: &[Gfn], below: &[Path]) -> BTreeMap<u64, Vec<Path>> {
    let mut by_table: BTreeMap<u64, Vec<Path>> = BTreeMap::new();
    if is_first {
        for image in images {
            by_table.entry(image.get()).or_default().push(Path {
                image: *image,
                table: 0,
                offset: 0,
                low: 0,
            });
        }
    } else {
        for path in below {
            by_table.entry(path.table).or_default().push(*path);
        }
    }
    by_table
}

/// One level up: entries that lead to a table of `below`, and entries that map a page of this level's own size with one
/// of `images` in it.
fn climb<M: GuestSource>(
    memory: &mut M,
    level: Level,
    images: &[Gfn],
    below: &[Path],
    progress: &mut dyn FnMut(u64, u64),
) -> Vec<Path> {
    let is_first = level.shift == 12;
    if !is_first && below.is_empty() && !level.large {
        return Vec::new();
    }
    let end = memory.end().get();
    let by_table = by_target(is_first, images, below);
    let targets = Targets::new(end, by_table.keys().copied());
    let span = u64::from(level.shift) - 12;
    let large = Targets::new(
        (end >> span) + 1,
        images
            .iter()
            .filter(|_| level.large)
            .map(|image| image.get() >> span),
    );
    let mut found = Vec::new();
    let mut tables = HashSet::new();
    let mut followed = HashMap::new();
    each_frame(memory, progress, &mut |gfn, bytes| {
        for (index, entry) in bytes.chunks_exact(level.entry).enumerate() {
            let mut value = [0; 8];
            value[..entry.len()].copy_from_slice(entry);
            let value = u64::from_le_bytes(value);
            if value & PRESENT == 0 {
                continue;
            }
            let frame = (value & ADDRESS) >> 12;
            let maps_large = level.large && value & LARGE != 0;
            if !(maps_large && large.has(frame >> span) || !maps_large && targets.has(frame)) {
                continue;
            }
            if tables.len() >= MAX_TABLES && !tables.contains(&gfn) {
                continue;
            }
            let here = (index as u64) << level.shift;
            let mut push = |image: Gfn, low: u64| {
                let entries: &mut u32 = followed.entry(image.get()).or_default();
                if *entries >= MAX_ENTRIES {
                    return;
                }
                *entries += 1;
                tables.insert(gfn);
                found.push(Path {
                    image,
                    table: gfn.get(),
                    offset: (index * level.entry) as u64,
                    low: low | here,
                });
            };
            if maps_large {
                for image in images.iter().filter(|image| image.get() >> span == frame >> span) {
                    push(*image, (image.get() << 12) & ((1 << level.shift) - 1));
                }
            } else {
                for path in by_table.get(&frame).into_iter().flatten() {
                    push(path.image, path.low);
                }
            }
        }
    });
    found
}
