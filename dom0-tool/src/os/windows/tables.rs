//! From pages to the virtual addresses at which page tables map them, without registers.
//!
//! Memory is gone through once for each level of page table: first for entries that lead to the pages in
//! question, then for entries that lead to the tables those were found in, and so on up. What comes out is
//! every chain that could be a path of a page walk; each is then walked downwards, since most pages that look
//! like tables are not.
//!
//! Words that look like entries are everywhere. The first entry of a chain is therefore followed only if what
//! it and its neighbours map is a kernel as far as they show it (`nearby`). What is left is followed to the
//! last: a bound on it would bound the answer away. Where there is more than `MAX_PATHS` of it, there is no
//! answer.
//!
//! Works for 2 levels, PAE, 4 and 5 levels, and needs no table that maps itself.

use std::collections::{BTreeMap, HashSet};

use lacuna_core::{Gfn, GuestPhys, GuestVirt, PAGE_SIZE, PagingLevels};
use memchr::memmem;

use super::locate::{KERNEL_PDBS, in_kernel};
use super::nearby::{ImagePage, Nearby};
use super::pe::{FileImage, FileLayout, Machine, PeImage};
use crate::os::view::AddressSpace;
use crate::source::GuestSource;

/// Most entries followed at one level. A hostile guest can fill its memory with what looks like entries, and
/// then is told apart by registers only.
pub(super) const MAX_PATHS: usize = 1 << 20;
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

/// Every way that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// Each, once.
    pub reached: Vec<Reached>,
    /// Whether there were more than are followed: then none of them is the only one.
    pub is_cut: bool,
}

/// What pages of images there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images {
    /// Frames that begin as an image that can be a kernel, of a machine that is known, and which.
    pub found: Vec<(Gfn, Machine)>,
    /// Frames that begin as an image without debug records: a Linux kernel's own file does, which is an image
    /// for EFI. To find out what maps them takes as long as for a kernel.
    pub without_records: Vec<Gfn>,
    /// Where the first debug record is that names a kernel's PDB, and which it names.
    pub record: Option<(GuestPhys, &'static str)>,
    /// Frames looked at.
    pub frames: u64,
}

/// Looks for images in all of memory.
pub fn images<M: GuestSource>(memory: &mut M, progress: &mut dyn FnMut(u64, u64)) -> Images {
    let mut images = Images::default();
    let record = memmem::Finder::new(b"RSDS");
    each_frame(memory, progress, &mut |_, gfn, bytes| {
        images.frames += 1;
        if bytes.starts_with(b"MZ")
            && let Ok(image) = PeImage::read(&mut FileImage::new(bytes, FileLayout::Mapped))
        {
            if image.names_records {
                images.found.push((gfn, image.machine));
            } else {
                images.without_records.push(gfn);
            }
        }
        if images.record.is_none() {
            images.record = record
                .find_iter(bytes)
                .find_map(|at| Some((at, kernel_named(&bytes[at..])?)))
                .and_then(|(at, name)| Some((gfn.base()?.checked_add(at as u64)?, name)));
        }
    });
    images
}

/// The kernel's PDB that a record names: signature, GUID, age, path.
fn kernel_named(record: &[u8]) -> Option<&'static str> {
    let path = record.get(24..)?.split(|byte| *byte == 0).next()?;
    let name = path.rsplit(|byte| matches!(byte, b'\\' | b'/')).next()?;
    KERNEL_PDBS
        .into_iter()
        .find(|known| known.as_bytes().eq_ignore_ascii_case(name))
}

fn each_frame<M: GuestSource>(
    memory: &mut M,
    progress: &mut dyn FnMut(u64, u64),
    look: &mut dyn FnMut(&mut M, Gfn, &[u8; PAGE_SIZE]),
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
            look(memory, gfn, &bytes);
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

/// An entry that leads to a table or a page: where it stands, and what of the virtual address it and those
/// below it fix.
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

impl Level {
    /// Machines whose tables have such entries.
    const fn machines(self) -> &'static [Machine] {
        match self.entry {
            4 => &[Machine::X86],
            _ => &[Machine::X64, Machine::X86],
        }
    }
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

/// Every way from a top-level table to one of `images` in the kernel's half, each walked and found to lead
/// there.
pub fn reach<M: GuestSource>(
    memory: &mut M,
    images: &[(Gfn, Machine)],
    progress: &mut dyn FnMut(u64, u64),
) -> Ways {
    let mut ways = Ways::default();
    if images.is_empty() {
        return ways;
    }
    let mut seen = HashSet::new();
    let mut paths = Vec::new();
    for (index, level) in LONG.iter().enumerate() {
        paths = climb(memory, *level, images, (&paths, &mut ways.is_cut), progress);
        for path in &paths {
            let (low, levels) = match index {
                // The third level has four entries with PAE. Such a table can lie anywhere, aligned to 32
                // bytes.
                2 => (
                    path.low & ((1 << 30) - 1) | (path.offset / 8 % 4) << 30,
                    PagingLevels::Pae,
                ),
                3 => (path.low, PagingLevels::Four),
                4 => (path.low, PagingLevels::Five),
                _ => continue,
            };
            ways.reached
                .extend(try_root(memory, &Path { low, ..*path }, levels, &mut seen));
        }
    }
    if images.iter().all(|(_, machine)| *machine != Machine::X86) {
        return ways;
    }
    let mut paths = Vec::new();
    for level in SHORT {
        paths = climb(memory, level, images, (&paths, &mut ways.is_cut), progress);
    }
    for path in &paths {
        ways.reached
            .extend(try_root(memory, path, PagingLevels::Two, &mut seen));
    }
    ways
}

/// Walks a path downwards from its top.
fn try_root<M: GuestSource>(
    memory: &mut M,
    path: &Path,
    levels: PagingLevels,
    seen: &mut HashSet<(u64, u64, u8)>,
) -> Option<Reached> {
    let page = PAGE_SIZE as u64;
    let (root, entry) = match levels {
        // Four entries, aligned to their size; the entry is one of them.
        PagingLevels::Pae => (path.table * page + path.offset / 32 * 32, 8),
        PagingLevels::Two => (path.table * page, 4),
        _ => (path.table * page, 8),
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
    if !in_kernel(levels, base) || !seen.insert((root, base.get(), levels as u8)) {
        return None;
    }
    // A table that maps itself can be walked one time more than it has levels. That is another name for the
    // same way.
    let top = memory.read_value(GuestPhys::new(path.table * page + path.offset), entry);
    if top.is_ok_and(|top| (top & ADDRESS) == root & ADDRESS) {
        return None;
    }
    (space.translate(memory, base) == path.image.base()).then_some(Reached {
        image: path.image,
        space,
        base,
    })
}

/// The paths so far by the frame that the next entry has to lead to: a table, or, at the first level, an
/// image.
fn by_target(is_first: bool, images: &[(Gfn, Machine)], below: &[Path]) -> BTreeMap<u64, Vec<Path>> {
    let mut by_table: BTreeMap<u64, Vec<Path>> = BTreeMap::new();
    if is_first {
        for (image, _) in images {
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

/// Of `images`, those that can be a kernel where a page of `level` maps them.
fn in_large_pages<M: GuestSource>(memory: &mut M, level: Level, images: &[(Gfn, Machine)]) -> Vec<Gfn> {
    let span = level.shift - 12;
    images
        .iter()
        .filter(|_| level.large)
        .map(|(image, _)| *image)
        .filter(|image| {
            let frame = image.get();
            let end = ((frame >> span) + 1) << span;
            let page_at = |page: u64| match frame.saturating_add(page) {
                frame if frame < end => ImagePage::Frame(frame),
                _ => ImagePage::Beyond,
            };
            Nearby::new(memory, page_at).can_be_kernel(level.machines())
        })
        .collect()
}

/// Whether the entry at `index` of a table of the lowest level and those that follow it can map a kernel.
fn maps_kernel<M: GuestSource>(memory: &mut M, level: Level, table: &[u8], index: usize) -> bool {
    let page_at = |page: u64| {
        let at = usize::try_from(page)
            .ok()
            .and_then(|page| page.checked_add(index));
        let Some(entry) = at.and_then(|at| table.chunks_exact(level.entry).nth(at)) else {
            return ImagePage::Beyond;
        };
        match number(entry) {
            value if value & PRESENT == 0 => ImagePage::Unmapped,
            value => ImagePage::Frame((value & ADDRESS) >> 12),
        }
    };
    Nearby::new(memory, page_at).can_be_kernel(level.machines())
}

fn number(entry: &[u8]) -> u64 {
    let mut value = [0; 8];
    value[..entry.len()].copy_from_slice(entry);
    u64::from_le_bytes(value)
}

/// One level up: entries that lead to a table of `below`, and entries that map a page of this level's own
/// size with one of `images` in it. Sets the flag beside `below` when there are more than are followed.
fn climb<M: GuestSource>(
    memory: &mut M,
    level: Level,
    images: &[(Gfn, Machine)],
    (below, is_cut): (&[Path], &mut bool),
    progress: &mut dyn FnMut(u64, u64),
) -> Vec<Path> {
    let is_first = level.shift == 12;
    let in_large = in_large_pages(memory, level, images);
    if !is_first && below.is_empty() && in_large.is_empty() {
        return Vec::new();
    }
    let end = memory.end().get();
    let by_table = by_target(is_first, images, below);
    let targets = Targets::new(end, by_table.keys().copied());
    let span = level.shift - 12;
    let large = Targets::new(
        (end >> span) + 1,
        in_large.iter().map(|image| image.get() >> span),
    );
    let mut found = Vec::new();
    each_frame(memory, progress, &mut |memory, gfn, bytes| {
        for (index, entry) in bytes.chunks_exact(level.entry).enumerate() {
            let value = number(entry);
            if value & PRESENT == 0 {
                continue;
            }
            let frame = (value & ADDRESS) >> 12;
            let maps_large = level.large && value & LARGE != 0;
            if !(maps_large && large.has(frame >> span) || !maps_large && targets.has(frame)) {
                continue;
            }
            if is_first && !maps_kernel(memory, level, bytes, index) {
                continue;
            }
            let here = (index as u64) << level.shift;
            let mut push = |image: Gfn, low: u64| {
                if found.len() >= MAX_PATHS {
                    *is_cut = true;
                    return;
                }
                found.push(Path {
                    image,
                    table: gfn.get(),
                    offset: (index * level.entry) as u64,
                    low: low | here,
                });
            };
            if maps_large {
                for image in in_large
                    .iter()
                    .filter(|image| image.get() >> span == frame >> span)
                {
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
