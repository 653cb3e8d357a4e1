//! Finding BTF in a kernel's image: by the symbols around it, or, without them, by what it begins with.

use lacuna_core::{GuestMemory, GuestVirt, PAGE_SIZE};

use super::btf::{BEGINNING, Btf, HEADER_BYTES};
use super::facts::{BTF_ENUMERATORS, BTF_STRUCTURES};
use super::image::{area, mapped};
use super::kallsyms::Symbols;
use crate::os::view::KernelView;

/// Most places in the image that look like the beginning of BTF and are tried.
const MAX_TRIALS: u32 = 16;

/// The kernel's own BTF and where it is; `None` where there is none that parses and knows `struct page`.
pub(super) fn find_btf<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    symbols: Option<&Symbols>,
    stext: GuestVirt,
) -> Option<(Btf, GuestVirt)> {
    if let Some(start) = symbols.and_then(|symbols| symbols.find("__start_BTF")) {
        return try_at(view, start).map(|btf| (btf, start));
    }
    let space = view.space();
    // No 32-bit kernel of the distributions has any.
    if space.levels.is_32_bit() {
        return None;
    }
    let (from, bytes) = area(space.levels, stext);
    let mut trials = 0;
    let mut page = vec![0; PAGE_SIZE];
    for run in mapped(view.memory(), space, from, bytes) {
        let mut offset = 0;
        while offset < run.bytes {
            // Runs begin and end with pages.
            let at = run.physical.checked_add(offset)?;
            if view.memory().read(at, &mut page).is_ok() {
                let places = page.chunks_exact(4).enumerate().filter(|(index, word)| {
                    *word == &BEGINNING[..4] && page.get(index * 4..index * 4 + 8) == Some(&BEGINNING[..])
                });
                for place in places.map(|(index, _)| index as u64 * 4).collect::<Vec<_>>() {
                    trials += 1;
                    if trials > MAX_TRIALS {
                        return None;
                    }
                    let start = GuestVirt::new(run.start.get().wrapping_add(offset + place));
                    if let Some(btf) = try_at(view, start) {
                        return Some((btf, start));
                    }
                }
            }
            offset += PAGE_SIZE as u64;
        }
    }
    None
}

fn try_at<M: GuestMemory>(view: &mut KernelView<'_, M>, start: GuestVirt) -> Option<Btf> {
    let mut header = [0; HEADER_BYTES];
    view.read(start, &mut header).ok()?;
    let length = usize::try_from(Btf::length(&header).ok()?).ok()?;
    // Grown page by page, so that a length made up costs no more than what is mapped behind it.
    let mut blob = Vec::new();
    while blob.len() < length {
        let done = blob.len();
        let step = (length - done).min(1 << 16);
        blob.resize(done + step, 0);
        view.read(start.checked_add(done as u64)?, &mut blob[done..])
            .ok()?;
    }
    Btf::parse(&blob, BTF_STRUCTURES, BTF_ENUMERATORS)
        .ok()
        .filter(|btf| btf.size("page").is_some())
}
