//! Where a kernel can be, by the addresses that its System.map has.

use lacuna_core::{GuestMemory, GuestPhys, GuestVirt, PagingLevels};

use super::MapError;
use crate::os::linux::confirm::{PAGE_OFFSETS, is_root, maps_to};
use crate::os::linux::image::{KERNEL_MAP, KERNEL_MAP_BYTES};
use crate::os::linux::spaces::spaces_of;
use crate::os::linux::system_map::SystemMap;
use crate::os::view::AddressSpace;
use crate::source::{Cpu, GuestSource};

/// The top-level page table: since 4.13, before, and of 32-bit kernels.
pub(super) const ROOTS: [&str; 3] = ["init_top_pgt", "init_level4_pgt", "swapper_pg_dir"];
/// The kernel's names: since 2.6.19 behind a reference count or alone, and before.
pub(super) const NAMES: [&str; 2] = ["init_uts_ns", "system_utsname"];
/// By what a kernel is displaced: multiples of this (`MIN_KERNEL_ALIGN`, `CONFIG_PHYSICAL_ALIGN`).
const STEP: usize = 2 << 20;
/// Most places that are taken for a kernel's names in memory; a process can make up as many as it has memory.
const MOST_NAMED: usize = 256;
/// Where a 32-bit kernel can be, at most, from where it was linked to (`KERNEL_IMAGE_SIZE` with KASLR).
const MOVED_32: u64 = 512 << 20;

/// Where the kernel of a file may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KernelLocation {
    pub(super) space: AddressSpace,
    /// How far from where it was linked to.
    pub(super) moved: u64,
}

/// Addresses of the file that lead to the kernel.
pub(super) struct Linked {
    pub(super) text: u64,
    pub(super) root: (&'static str, u64),
    pub(super) names: (&'static str, u64),
    pub(super) is_32_bit: bool,
}

impl Linked {
    pub(super) fn of(map: &SystemMap) -> Result<Self, MapError> {
        let one_of = |names: &[&'static str]| {
            let found = names.iter().find_map(|name| Some((*name, map.find(name)?)));
            found.ok_or_else(|| {
                let names = names.join(" nor ");
                MapError::File(format!("{} names neither {names}", map.file().display()))
            })
        };
        let (_, text) = one_of(&["_stext"])?;
        Ok(Self {
            text,
            root: one_of(&ROOTS)?,
            names: one_of(&NAMES)?,
            is_32_bit: text >> 32 == 0,
        })
    }

    /// How far the kernel can have been moved.
    pub(super) fn moves(&self) -> impl Iterator<Item = u64> + use<> {
        let (at, end) = if self.is_32_bit {
            (self.root.1, (self.root.1 + MOVED_32).min(1 << 32))
        } else {
            (self.root.1.max(KERNEL_MAP), KERNEL_MAP + KERNEL_MAP_BYTES)
        };
        (0..end.saturating_sub(at)).step_by(STEP)
    }

    /// Where the page tables that `cpu` uses have the kernel.
    pub(super) fn by_registers<M: GuestMemory>(&self, memory: &mut M, cpu: &Cpu) -> Vec<KernelLocation> {
        let mut locations = Vec::new();
        for own in spaces_of(std::slice::from_ref(cpu)) {
            if own.levels.is_32_bit() != self.is_32_bit {
                continue;
            }
            for moved in self.moves() {
                let at = GuestVirt::new(self.root.1.wrapping_add(moved));
                if let Some(root) = own.translate(memory, at) {
                    push(&mut locations, memory, at, root, own.levels, moved);
                }
            }
        }
        locations
    }

    /// Where memory has names of a kernel, and page tables as far from them as the file says.
    pub(super) fn by_memory<M: GuestSource>(&self, memory: &mut M) -> Vec<KernelLocation> {
        let end = memory.end().base().map_or(u64::MAX, GuestPhys::get);
        let mut locations = Vec::new();
        if self.is_32_bit {
            for (start, moved) in PAGE_OFFSETS
                .into_iter()
                .flat_map(|start| self.moves().map(move |moved| (start, moved)))
            {
                // Its image lies in the linear map.
                let at = self.root.1.wrapping_add(moved);
                let physical = |linked: u64| linked.wrapping_add(moved).wrapping_sub(start);
                if physical(self.names.1) < end && is_called_linux(memory, physical(self.names.1)) {
                    for levels in [PagingLevels::Pae, PagingLevels::Two] {
                        let root = GuestPhys::new(physical(self.root.1));
                        push(&mut locations, memory, GuestVirt::new(at), root, levels, moved);
                    }
                }
            }
            return locations;
        }
        // Where the text lies, and how far it was moved virtually, have nothing to do with each other.
        let first = self.text.wrapping_sub(KERNEL_MAP) % STEP as u64;
        let physical = |linked: u64, text: u64| linked.wrapping_sub(self.text).wrapping_add(text);
        let texts = (first..end)
            .step_by(STEP)
            .filter(|text| is_called_linux(memory, physical(self.names.1, *text)));
        for text in texts.take(MOST_NAMED).collect::<Vec<_>>() {
            let root = GuestPhys::new(physical(self.root.1, text));
            for moved in self.moves() {
                let at = GuestVirt::new(self.root.1.wrapping_add(moved));
                for levels in [PagingLevels::Four, PagingLevels::Five] {
                    push(&mut locations, memory, at, root, levels, moved);
                }
            }
        }
        locations
    }
}

/// Adds the location whose table at `root` maps itself at `at`, if it does.
fn push<M: GuestMemory>(
    locations: &mut Vec<KernelLocation>,
    memory: &mut M,
    at: GuestVirt,
    root: GuestPhys,
    levels: PagingLevels,
    moved: u64,
) {
    let space = AddressSpace { root, levels };
    let location = KernelLocation { space, moved };
    if is_root(root.get(), levels) && maps_to(memory, space, at, root.get()) && !locations.contains(&location)
    {
        locations.push(location);
    }
}

/// Whether the first of a kernel's names lies at `physical`, or behind a reference count there.
fn is_called_linux<M: GuestMemory>(memory: &mut M, physical: u64) -> bool {
    [4, 0].into_iter().any(|behind: u64| {
        let mut name = [0; 6];
        let at = physical.checked_add(behind).map(GuestPhys::new);
        at.is_some_and(|at| memory.read(at, &mut name).is_ok()) && name == *b"Linux\0"
    })
}
