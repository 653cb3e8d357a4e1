//! Where a section and an offset of a PDB lie in the image: section headers, and OMAP for images that were
//! rearranged after linking (Windows XP's and 2003's kernels were, by BBT).

use std::io::{Read, Seek};

use super::container::{Container, u32_at};
use super::{DEBUG_STREAM, PdbError};
use crate::os::windows::pe::Machine;

/// Bytes of the debug stream's header (`microsoft-pdb`, `PDB/dbi/dbi.h`, `NewDBIHdr`).
const HEADER: usize = 64;
/// Sub-streams' sizes, by their offset in the header, in the order in which they follow it. The optional
/// header, a list of stream numbers, comes last; the size of the list of edit-and-continue data stands after
/// its own.
const SIZES_BEFORE_OPTIONAL: [usize; 6] = [24, 28, 32, 36, 40, 52];
const OPTIONAL_SIZE: usize = 48;
/// Places in the optional header (`dbi.h`, `DBGTYPE`).
const OMAP_FROM_SOURCE: usize = 4;
const SECTIONS: usize = 5;
const ORIGINAL_SECTIONS: usize = 10;
/// Bytes of `IMAGE_SECTION_HEADER`.
const SECTION_HEADER: usize = 40;
/// `IMAGE_FILE_MACHINE_*` of the PE format.
const I386: u16 = 0x014c;
const AMD64: u16 = 0x8664;

/// Translates a section and an offset into an address relative to the image's base.
#[derive(Debug)]
pub struct AddressMap {
    /// Processor, where the debug stream tells. Windows XP's does not always.
    pub machine: Option<Machine>,
    /// Virtual addresses and sizes (the larger of that in memory and that in the file) of the sections that
    /// symbols speak of.
    sections: Vec<(u32, u32)>,
    /// From, to; rising. Empty for an image that was not rearranged.
    omap: Vec<(u32, u32)>,
}

impl AddressMap {
    /// Reads the map; `None` when the file has no debug stream or names no sections, so that nothing has an
    /// address.
    ///
    /// # Errors
    /// [`PdbError`] when what is there is damaged.
    pub fn read(container: &Container, file: &mut (impl Read + Seek)) -> Result<Option<Self>, PdbError> {
        let Some(size) = container.size(DEBUG_STREAM) else {
            return Ok(None);
        };
        if (size as usize) < HEADER {
            return Ok(None);
        }
        let header = container.stream(file, DEBUG_STREAM, 64)?;
        if u32_at(&header, 0) != u32::MAX {
            return Err(PdbError::Unsupported(
                "a PDB whose debug stream is older than Visual C++ 5",
            ));
        }
        let machine = match u16_at(&header, 58) {
            Some(I386) => Some(Machine::X86),
            Some(AMD64) => Some(Machine::X64),
            _ => None,
        };
        let start = SIZES_BEFORE_OPTIONAL
            .iter()
            .fold(HEADER as u64, |sum, at| sum + u64::from(u32_at(&header, *at)));
        let length = u64::from(u32_at(&header, OPTIONAL_SIZE));
        if start + length > u64::from(size) {
            return Err(PdbError::Malformed(
                "the debug stream is shorter than the sum of its parts",
            ));
        }
        // Bounded by the stream's size, which the container holds against the file's.
        let stream = container.stream(file, DEBUG_STREAM, size)?;
        let optional = usize::try_from(start).ok().and_then(|start| {
            let end = start.checked_add(usize::try_from(length).ok()?)?;
            stream.get(start..end)
        });
        let named = |place: usize| {
            optional
                .and_then(|optional| u16_at(optional, 2 * place))
                .filter(|stream| *stream != u16::MAX)
        };
        let source = match (named(ORIGINAL_SECTIONS), named(OMAP_FROM_SOURCE)) {
            (Some(original), Some(_)) => Some(original),
            (None, Some(omap)) if container.size(omap).is_some_and(|size| size > 0) => {
                return Err(PdbError::Malformed(
                    "its image was rearranged (OMAP), and the sections from before that are not there",
                ));
            }
            _ => named(SECTIONS),
        };
        let Some(source) = source else {
            return Ok(None);
        };
        let mut whole = |stream: u16| container.stream(file, stream, u32::MAX);
        let sections = whole(source)?
            .chunks_exact(SECTION_HEADER)
            .map(|header| (u32_at(header, 12), u32_at(header, 8).max(u32_at(header, 16))))
            .collect();
        let mut omap = Vec::new();
        if let (Some(_), Some(stream)) = (named(ORIGINAL_SECTIONS), named(OMAP_FROM_SOURCE)) {
            omap = whole(stream)?
                .chunks_exact(8)
                .map(|pair| (u32_at(pair, 0), u32_at(pair, 4)))
                .collect();
            if !omap.is_sorted_by_key(|(from, _)| *from) {
                return Err(PdbError::Malformed("the OMAP stream is not in order"));
            }
        }
        Ok(Some(Self {
            machine,
            sections,
            omap,
        }))
    }

    /// The address of byte `offset` of section `section` (from 1 on); `None` when there is none, or the
    /// rearrangement left it out.
    pub fn rva(&self, section: u16, offset: u32) -> Option<u32> {
        let (start, size) = *self.sections.get(usize::from(section).checked_sub(1)?)?;
        if offset >= size {
            return None;
        }
        let source = start.checked_add(offset)?;
        if self.omap.is_empty() {
            return Some(source);
        }
        let after = self.omap.partition_point(|(from, _)| *from <= source);
        let (from, to) = *self.omap.get(after.checked_sub(1)?)?;
        if to == 0 {
            return None;
        }
        to.checked_add(source - from)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
