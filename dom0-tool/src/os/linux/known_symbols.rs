//! Symbol tables and images that were read for one note and serve for others.

use lacuna_core::{GuestMemory, GuestPhys, GuestVirt};

use super::identify::{Rejection, WANTED};
use super::image::{Evidence, area, mapped, notes};
use super::kallsyms::{self, KallsymsError, Symbols};
use super::vmcoreinfo::VmcoreInfo;
use crate::os::view::{AddressSpace, KernelView};

/// Most symbol tables and images read for notes: copies of one name the same ones, and each reading takes a
/// while.
const MAX_READINGS: usize = 16;

/// What is costly to find out and the same for many notes: copies of one name the same symbol table and the
/// same image.
#[derive(Default)]
pub(super) struct KnownSymbols {
    tables: Vec<KnownTable>,
    images: Vec<KnownImage>,
}

/// A symbol table that was read, or why it could not be, by what a note says of it.
struct KnownTable {
    space: AddressSpace,
    named: Vec<(String, GuestVirt)>,
    found: Result<Symbols, KallsymsError>,
}

/// The notes that an image vouches for.
struct KnownImage {
    space: AddressSpace,
    text: GuestVirt,
    found: Vec<(GuestPhys, Evidence)>,
}

impl KnownSymbols {
    /// The symbol table that a note leads to.
    pub(super) fn look_up<M: GuestMemory>(
        &mut self,
        view: &mut KernelView<'_, M>,
        info: &VmcoreInfo,
    ) -> Result<Symbols, KallsymsError> {
        let key: Vec<(String, GuestVirt)> = info.symbols().map(|(name, at)| (name.to_owned(), at)).collect();
        let space = view.space();
        if let Some(known) = self
            .tables
            .iter()
            .find(|known| known.space == space && known.named == key)
        {
            return known.found.clone();
        }
        if self.tables.len() >= MAX_READINGS {
            return Err(KallsymsError::Count(u32::MAX));
        }
        let found = kallsyms::look_up(view, info, WANTED);
        self.tables.push(KnownTable {
            space,
            named: key,
            found: found.clone(),
        });
        found
    }

    fn notes_of<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        space: AddressSpace,
        text: GuestVirt,
    ) -> Vec<(GuestPhys, Evidence)> {
        if let Some(known) = self
            .images
            .iter()
            .find(|known| known.space == space && known.text == text)
        {
            return known.found.clone();
        }
        if self.images.len() >= MAX_READINGS {
            return Vec::new();
        }
        let (from, bytes) = area(space.levels, text);
        let runs = mapped(memory, space, from, bytes);
        let found = notes(memory, space, &runs);
        self.images.push(KnownImage {
            space,
            text,
            found: found.clone(),
        });
        found
    }

    /// How the kernel's image vouches for the note at `note_at`.
    pub(super) fn evidence_for<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        space: AddressSpace,
        text: GuestVirt,
        note_at: GuestPhys,
    ) -> Result<Evidence, Rejection> {
        let found = self.notes_of(memory, space, text);
        found
            .iter()
            .find(|(at, _)| *at == note_at)
            .map(|(_, evidence)| *evidence)
            .ok_or(Rejection::NotPointedAt)
    }
}
