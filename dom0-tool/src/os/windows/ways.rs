//! Every way on which memory that stands still leads to an image that calls itself a kernel.

use lacuna_core::{Gfn, GuestMemory, GuestPhys, GuestVirt, PAGE_SIZE, PagingLevels};

use super::locate::{Candidate, Located, is_named_kernel, kernel_image, possible_levels, table_of};
use super::nearby::{ImagePage, Nearby};
use super::pe::PeImage;
use super::tables::{self, Images, Reached};
use crate::os::view::AddressSpace;
use crate::source::{Cpu, GuestSource};

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A way: an image at an address. Each process has a top-level table that leads there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The kernel, through the first of [`Way::roots`].
    pub kernel: Located,
    /// The image's first frame.
    pub image: Gfn,
    /// The top-level tables: first those that map themselves.
    pub roots: Vec<GuestPhys>,
    /// Whether one of them maps itself, as Windows' do.
    pub maps_itself: bool,
}

/// What a search of all memory came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Searched {
    /// Ways to kernels. One image can be there on several.
    pub ways: Vec<Way>,
    /// Images that call themselves kernels and that no way leads to.
    pub others: Vec<Candidate>,
    /// Frames looked at.
    pub frames: u64,
    /// Where a debug record names a kernel's PDB, and which.
    pub record: Option<(GuestPhys, &'static str)>,
    /// Whether there were more ways than are followed.
    pub is_cut: bool,
}

/// Searches all memory. `progress` is told the frame reached and the last one, once for each pass.
pub fn by_search<M: GuestSource>(memory: &mut M, progress: &mut dyn FnMut(u64, u64)) -> Searched {
    let Images {
        found,
        without_records,
        record,
        frames,
    } = tables::images(memory, progress);
    let reached = tables::reach(memory, &found, progress);
    let mut ways: Vec<Way> = Vec::new();
    for one in reached.reached {
        let same = ways.iter_mut().find(|way| {
            way.image == one.image
                && way.kernel.base == one.base
                && way.kernel.space.levels == one.space.levels
        });
        match same {
            Some(way) => add_root(memory, way, one.space),
            None => ways.extend(way(memory, one)),
        }
    }
    let others = found
        .iter()
        .map(|(image, _)| *image)
        .chain(without_records)
        .filter(|image| !ways.iter().any(|way| way.image == *image))
        .collect::<Vec<_>>();
    Searched {
        others: others
            .into_iter()
            .filter_map(|image| unmapped(memory, image))
            .collect(),
        ways,
        frames,
        record,
        is_cut: reached.is_cut,
    }
}

fn way<M: GuestSource>(memory: &mut M, one: Reached) -> Option<Way> {
    let image = kernel_image(memory, one.space, one.base)?;
    let key = image.debug.as_ref()?.key().ok()?;
    is_named_kernel(&image).then(|| Way {
        kernel: Located {
            confirmed: vec![mapped_by(one.space, one.base)],
            space: one.space,
            base: one.base,
            image,
            key,
        },
        image: one.image,
        roots: vec![one.space.root],
        maps_itself: maps_itself(memory, one.space),
    })
}

fn mapped_by(space: AddressSpace, base: GuestVirt) -> String {
    format!(
        "the page tables at {:#x} map it at {:#x}, in the kernel's half",
        space.root.get(),
        base.get()
    )
}

fn add_root<M: GuestSource>(memory: &mut M, way: &mut Way, space: AddressSpace) {
    // Most often there are many that map themselves, and they are processes'.
    if !way.maps_itself && maps_itself(memory, space) {
        way.maps_itself = true;
        way.roots.insert(0, space.root);
        way.through(space.root);
    } else {
        way.roots.push(space.root);
    }
}

impl Way {
    /// Has the kernel be reached through another of the tables.
    pub fn through(&mut self, root: GuestPhys) {
        self.kernel.space.root = root;
        self.kernel.confirmed = vec![mapped_by(self.kernel.space, self.kernel.base)];
    }

    /// The way as a candidate that was not taken.
    pub fn candidate(&self, why: impl Into<String>) -> Candidate {
        Candidate {
            physical: self.image.base().unwrap_or(self.kernel.space.root),
            mapped_at: Some(self.kernel.base),
            pdb: Some(self.kernel.key.path()),
            export_name: self.kernel.image.export_name.clone(),
            why: why.into(),
        }
    }

    /// Whether a virtual CPU's CR3 leads along this way: its number, and the table.
    pub fn of_a_cpu<M: GuestMemory>(&self, memory: &mut M, cpus: &[Cpu]) -> Option<(usize, GuestPhys)> {
        let levels = self.kernel.space.levels;
        cpus.iter().enumerate().find_map(|(number, cpu)| {
            let root = GuestPhys::new(table_of(cpu.cr3.filter(|_| cpu.is_paging())?, levels));
            let space = AddressSpace { root, levels };
            (possible_levels(cpu).contains(&levels)
                && space.translate(memory, self.kernel.base) == self.image.base())
            .then_some((number, root))
        })
    }
}

/// Whether a top-level table is mapped by itself, as the tables of Windows are: one of its entries leads to
/// itself, or, with PAE, four entries in a row lead to its four tables.
fn maps_itself<M: GuestMemory>(memory: &mut M, space: AddressSpace) -> bool {
    let root = space.root;
    match space.levels {
        PagingLevels::Two => entries(memory, root, 4).any(|entry| leads_to(entry) == Some(root.get())),
        PagingLevels::Four | PagingLevels::Five => entries(memory, root, 8)
            .skip(256)
            .any(|entry| leads_to(entry) == Some(root.get())),
        PagingLevels::Pae => {
            let tables: Vec<u64> = (0..4)
                .map(|index| memory.read_value(GuestPhys::new(root.get() + 8 * index), 8))
                .map_while(|entry| entry.ok().filter(|entry| entry & PRESENT != 0))
                .map(|entry| entry & ADDRESS)
                .collect();
            tables.len() == 4
                && entries(memory, GuestPhys::new(tables[3]), 8)
                    .map(leads_to)
                    .collect::<Vec<_>>()
                    .windows(4)
                    .any(|row| {
                        row.iter()
                            .zip(&tables)
                            .all(|(entry, table)| *entry == Some(*table))
                    })
        }
    }
}

fn leads_to(entry: u64) -> Option<u64> {
    (entry & PRESENT != 0 && entry & LARGE == 0).then_some(entry & ADDRESS)
}

/// The entries of a table: none where it cannot be read.
fn entries<M: GuestMemory>(memory: &mut M, table: GuestPhys, size: usize) -> impl Iterator<Item = u64> {
    let mut bytes = vec![0; PAGE_SIZE];
    if memory.read(table, &mut bytes).is_err() {
        bytes.clear();
    }
    (0..bytes.len() / size).map(move |index| {
        let mut value = [0; 8];
        value[..size].copy_from_slice(&bytes[index * size..][..size]);
        u64::from_le_bytes(value)
    })
}

/// An image that nothing maps, if it calls itself a kernel as far as its own frames follow each other.
fn unmapped<M: GuestMemory>(memory: &mut M, image: Gfn) -> Option<Candidate> {
    let first = image.get();
    let page_at = |page: u64| ImagePage::Frame(first.saturating_add(page));
    let headers = PeImage::read(&mut Nearby::new(memory, page_at)).ok()?;
    let why = if headers.debug.is_some() {
        "no page table maps it in the kernel's half as a loader would"
    } else {
        headers
            .damaged_record
            .unwrap_or("it has no debug record, which the kernel always has in memory")
    };
    is_named_kernel(&headers).then(|| Candidate {
        physical: image.base().unwrap_or(GuestPhys::new(0)),
        mapped_at: None,
        pdb: headers.debug.map(|record| record.path),
        export_name: headers.export_name,
        why: why.to_owned(),
    })
}
