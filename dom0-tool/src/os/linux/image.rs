//! The kernel's image in its own address space, and what in it points at a VMCOREINFO note.
//!
//! User memory is not mapped into the image (but for pages of `__init` sections that the kernel has freed,
//! where page-table isolation is off), so a word in it that leads to a note is the kernel's word for that
//! note.

use lacuna_core::{GuestMemory, GuestPhys, GuestVirt, PAGE_SHIFT, PAGE_SIZE, PagingLevels, WalkError, walk};

use super::vmcoreinfo::VmcoreInfo;
use crate::os::view::{AddressSpace, KernelView};

/// `__START_KERNEL_map` (`arch/x86/include/asm/page_64_types.h`): where the image of a 64-bit kernel is
/// linked to.
pub const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// Size of the area that holds the image, at most (`KERNEL_IMAGE_SIZE` with KASLR); modules begin above it.
pub const KERNEL_MAP_BYTES: u64 = 1 << 30;
/// What a 32-bit kernel's image takes from `_stext` on, at most. Debian's has 20 MiB.
const IMAGE_BYTES_32: u64 = 64 << 20;
/// Most notes that an image is taken to point at. An honest one has one.
const MAX_NOTES: usize = 16;
/// Most runs of mapped memory that are looked at: an image has a dozen, one mapped in pages with every other
/// one missing 131,072.
const MAX_RUNS: usize = 1 << 17;

/// A piece of virtual memory that is mapped in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its first byte.
    pub start: GuestVirt,
    /// Where that is, physically.
    pub physical: GuestPhys,
    /// How many bytes.
    pub bytes: u64,
}

/// What of `bytes` from `from` on is mapped.
pub fn mapped<M: GuestMemory + ?Sized>(
    memory: &mut M,
    space: AddressSpace,
    from: GuestVirt,
    bytes: u64,
) -> Vec<Run> {
    let last = from.get().saturating_add(bytes - 1);
    let mut runs: Vec<Run> = Vec::new();
    let mut at = from.get();
    loop {
        // The last byte of the page or of the hole that `at` lies in.
        let end = match walk(memory, space.root, space.levels, GuestVirt::new(at)) {
            Ok(mapping) => {
                let end = (mapping.start.get() | ((1 << mapping.shift) - 1)).min(last);
                if let Some(physical) = mapping.translate(GuestVirt::new(at)) {
                    match runs.last_mut() {
                        Some(run)
                            if run.start.get() + run.bytes == at
                                && run.physical.get() + run.bytes == physical.get() =>
                        {
                            run.bytes += end - at + 1;
                        }
                        _ => runs.push(Run {
                            start: GuestVirt::new(at),
                            physical,
                            bytes: end - at + 1,
                        }),
                    }
                }
                end
            }
            Err(WalkError::NotPresent { shift } | WalkError::Malformed { shift }) => at | ((1 << shift) - 1),
            Err(_) => at | (PAGE_SIZE as u64 - 1),
        };
        if end >= last || runs.len() >= MAX_RUNS {
            return runs;
        }
        at = end + 1;
    }
}

/// The area in which the image of the kernel with this `_stext` lies.
pub fn area(levels: PagingLevels, stext: GuestVirt) -> (GuestVirt, u64) {
    if levels.is_32_bit() {
        (
            GuestVirt::new(stext.get() & !0xfff),
            IMAGE_BYTES_32.min((1 << 32) - stext.get().min(1 << 32)).max(4096),
        )
    } else {
        (GuestVirt::new(KERNEL_MAP), KERNEL_MAP_BYTES)
    }
}

/// How well an image vouches for a note, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evidence {
    /// The note lies in the image: the kernel's did so until 4.12, and pages of a process can where `__init`
    /// memory was freed.
    Inside,
    /// A word of the image leads to it. A word may do so by chance: it is an address like many.
    Word,
    /// So do the words around it: beside `vmcoreinfo_note` lie `vmcoreinfo_size`, which is the size of this
    /// note's text, and `vmcoreinfo_data`, which leads to another copy of the text.
    Neighbours,
}

/// How far from `vmcoreinfo_note` its neighbours may be (`kernel/vmcore_info.c` defines them one after the
/// other).
const NEIGHBOURHOOD: u64 = 128;

/// The notes that the image vouches for.
pub fn notes<M: GuestMemory + ?Sized>(
    memory: &mut M,
    space: AddressSpace,
    runs: &[Run],
) -> Vec<(GuestPhys, Evidence)> {
    let mut found: Vec<(GuestPhys, Evidence)> = Vec::new();
    let mut page = vec![0_u8; PAGE_SIZE];
    let width = usize::from(space.levels.pointer_bytes());
    let mut pointers: Vec<(u64, GuestVirt)> = Vec::new();
    for run in runs {
        let mut offset = 0;
        while offset < run.bytes {
            let Some(at) = run.physical.checked_add(offset) else {
                break;
            };
            let length =
                (PAGE_SIZE - at.offset()).min(usize::try_from(run.bytes - offset).unwrap_or(PAGE_SIZE));
            let here = run.start.get().wrapping_add(offset);
            offset += length as u64;
            if memory.read(at, &mut page[..length]).is_err() {
                continue;
            }
            gather(&page[..length], width, here, &mut pointers);
            for place in places_of_note(&page[..length]) {
                if let Some(inside) = at.checked_add(place as u64)
                    && found.len() < MAX_NOTES
                {
                    found.push((inside, Evidence::Inside));
                }
            }
        }
    }
    pointers.sort_unstable();
    let mut view = KernelView::new(memory, space);
    let mut last = None;
    for (pointer, at) in pointers {
        // Many words hold the same address: whether it leads to a note is found out once.
        let note = match last {
            Some((known, note)) if known == pointer => note,
            _ => note_at(&mut view, GuestVirt::new(pointer)),
        };
        last = Some((pointer, note));
        let Some(note) = note else { continue };
        let evidence = if has_neighbours(&mut view, at, note) {
            Evidence::Neighbours
        } else {
            Evidence::Word
        };
        if let Some((_, known)) = found.iter_mut().find(|(known, _)| *known == note) {
            *known = evidence.max(*known);
        } else if found.len() < 2 * MAX_NOTES {
            found.push((note, evidence));
        }
    }
    found.sort_by_key(|(_, evidence)| std::cmp::Reverse(*evidence));
    found
}

/// The note that `pointer` leads to.
fn note_at<M: GuestMemory + ?Sized>(view: &mut KernelView<'_, M>, pointer: GuestVirt) -> Option<GuestPhys> {
    let physical = view.translate(pointer).ok()?;
    let mut head = [0; 24];
    view.memory().read(physical, &mut head).ok()?;
    VmcoreInfo::may_begin(&head).then_some(physical)
}

/// Whether the words around `at`, which leads to `note`, are what lies around `vmcoreinfo_note`.
fn has_neighbours<M: GuestMemory + ?Sized>(
    view: &mut KernelView<'_, M>,
    at: GuestVirt,
    note: GuestPhys,
) -> bool {
    let mut head = [0; 24 + 64];
    if view.memory().read(note, &mut head).is_err() {
        return false;
    }
    let bytes = u64::from(u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
    let text = &head[24..];
    let width = u64::from(view.space().levels.pointer_bytes());
    let (mut size, mut copy) = (false, false);
    let from = at.get().saturating_sub(NEIGHBOURHOOD);
    for index in 0..2 * NEIGHBOURHOOD / width {
        let Ok(word) = view.word(GuestVirt::new(from.wrapping_add(index * width))) else {
            continue;
        };
        size |= word == bytes;
        if word != 0 && word.trailing_zeros() >= PAGE_SHIFT {
            let mut other = [0; 64];
            copy |= view.read(GuestVirt::new(word), &mut other).is_ok() && other == text;
        }
    }
    size && copy
}

/// Words that can point at the first byte of a page outside the image: the note is one of
/// `alloc_pages_exact()`.
fn gather(bytes: &[u8], width: usize, at: u64, pointers: &mut Vec<(u64, GuestVirt)>) {
    if width == 8 {
        for (index, word) in (0..).zip(bytes.chunks_exact(8)) {
            let value = u64::from_le_bytes([
                word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7],
            ]);
            if value.trailing_zeros() >= PAGE_SHIFT && value >> 56 == 0xff && value < KERNEL_MAP {
                pointers.push((value, GuestVirt::new(at.wrapping_add(8 * index))));
            }
        }
    } else {
        for (index, word) in (0..).zip(bytes.chunks_exact(4)) {
            let value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            if value.trailing_zeros() >= PAGE_SHIFT && value >= 0x4000_0000 {
                pointers.push((u64::from(value), GuestVirt::new(at.wrapping_add(4 * index))));
            }
        }
    }
}

/// Where in a page of the image a note begins.
fn places_of_note(bytes: &[u8]) -> impl Iterator<Item = usize> {
    (0..bytes.len().saturating_sub(23))
        .step_by(4)
        .filter(|at| bytes[*at] == 11 && VmcoreInfo::may_begin(&bytes[*at..]))
}
