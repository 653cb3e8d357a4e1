//! Writes whole PDBs: as Visual Studio .NET 2002 did for Windows XP, and as linkers do today.

use crate::msf::{container, count, push_u16, push_u32};
use crate::types::Types;

/// No stream.
const NONE: u16 = 0xffff;
/// Public symbols' records, section headers, OMAP and the original section headers, by their stream's number.
const SYMBOLS: u16 = 5;
const SECTIONS: u16 = 6;
const OMAP_TO: u16 = 7;
const OMAP_FROM: u16 = 8;
const ORIGINAL: u16 = 9;

/// A section, as symbols name it by its number from 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PdbSection {
    /// Where it begins, relative to the image's base.
    pub rva: u32,
    /// Its size.
    pub size: u32,
}

/// Sections before an image was rearranged, and where ranges went: from, to.
pub type Rearrangement = (Vec<PdbSection>, Vec<(u32, u32)>);

/// A PDB to be written.
#[derive(Clone, Debug)]
pub struct Pdb {
    /// Bytes of a block.
    pub block_size: u32,
    /// Version of the type stream.
    pub type_version: u32,
    /// Whether there is a stream of identifiers, as since 2012.
    pub has_ids: bool,
    /// The GUID as the file has it.
    pub guid: [u8; 16],
    /// Age of the information stream.
    pub info_age: u32,
    /// Age of the debug stream.
    pub age: u32,
    /// `IMAGE_FILE_MACHINE_*`.
    pub machine: u16,
    /// Types.
    pub types: Types,
    /// Public symbols: name, section, offset.
    pub symbols: Vec<(String, u16, u32)>,
    /// Sections of the image.
    pub sections: Vec<PdbSection>,
    /// How the image was rearranged after linking, if it was.
    pub omap: Option<Rearrangement>,
}

impl Pdb {
    /// A PDB as today's linkers write it, with one section of 16 MiB at 0x1000.
    pub fn new(guid: [u8; 16], age: u32, machine: u16) -> Self {
        Self {
            block_size: 4096,
            type_version: 20_040_203,
            has_ids: true,
            guid,
            info_age: age,
            age,
            machine,
            types: Types::default(),
            symbols: Vec::new(),
            sections: vec![PdbSection {
                rva: 0x1000,
                size: 16 << 20,
            }],
            omap: None,
        }
    }

    /// The same as Windows XP's tools wrote it: small blocks, the old version of types, no identifiers, no
    /// machine.
    #[must_use]
    pub fn of_old(mut self) -> Self {
        self.block_size = 1024;
        self.type_version = 19_990_903;
        self.has_ids = false;
        self.machine = 0;
        self
    }

    /// The file.
    pub fn to_bytes(&self) -> Vec<u8> {
        container(self.block_size, &self.streams())
    }

    /// The streams, for tests that break one.
    pub fn streams(&self) -> Vec<Option<Vec<u8>>> {
        let ids = if self.has_ids {
            types_stream(20_040_203, &Types::default())
        } else {
            Vec::new()
        };
        let mut streams = vec![
            Some(Vec::new()),
            Some(self.info()),
            Some(types_stream(self.type_version, &self.types)),
            Some(self.debug()),
            Some(ids),
            Some(self.public_symbols()),
            Some(section_headers(&self.sections)),
        ];
        if let Some((original, omap)) = &self.omap {
            let pairs = |pairs: &[(u32, u32)]| {
                let mut bytes = Vec::new();
                for (from, to) in pairs {
                    push_u32(&mut bytes, *from);
                    push_u32(&mut bytes, *to);
                }
                bytes
            };
            let mut back: Vec<(u32, u32)> = omap.iter().map(|(from, to)| (*to, *from)).collect();
            back.sort_unstable();
            streams.push(Some(pairs(&back)));
            streams.push(Some(pairs(omap)));
            streams.push(Some(section_headers(original)));
        }
        streams
    }

    fn info(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Version (`PDBImpvVC70`), time stamp, age, GUID.
        push_u32(&mut bytes, 20_000_404);
        push_u32(&mut bytes, 0x4aff_0000);
        push_u32(&mut bytes, self.info_age);
        bytes.extend_from_slice(&self.guid);
        // No named streams: no names, a table of no entry and one place, two empty bit sets, no number.
        for number in [0, 0, 1, 0, 0, 0] {
            push_u32(&mut bytes, number);
        }
        bytes
    }

    fn debug(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        push_u32(&mut bytes, u32::MAX);
        push_u32(&mut bytes, 19_990_903);
        push_u32(&mut bytes, self.age);
        // Global symbols, build of the linker, public symbols, version, records, build.
        for number in [NONE, 0x8e1d, NONE, 0, SYMBOLS, 0] {
            push_u16(&mut bytes, number);
        }
        let mut optional = vec![NONE; 11];
        optional[5] = SECTIONS;
        if self.omap.is_some() {
            optional[3] = OMAP_TO;
            optional[4] = OMAP_FROM;
            optional[10] = ORIGINAL;
        }
        // Modules, contributions, section map, files, type servers, one index; then the optional header and
        // no edit-and-continue data.
        for number in [0, 0, 0, 0, 0, 0, count(2 * optional.len()), 0] {
            push_u32(&mut bytes, number);
        }
        push_u16(&mut bytes, 0);
        push_u16(&mut bytes, self.machine);
        push_u32(&mut bytes, 0);
        for stream in optional {
            push_u16(&mut bytes, stream);
        }
        bytes
    }

    fn public_symbols(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, section, offset) in &self.symbols {
            // S_PUB32: flags, offset, section, name.
            let mut record = vec![0x0e, 0x11, 0, 0, 0, 0];
            push_u32(&mut record, *offset);
            push_u16(&mut record, *section);
            record.extend_from_slice(name.as_bytes());
            record.push(0);
            while (record.len() + 2) % 4 != 0 {
                record.push(0);
            }
            push_u16(&mut bytes, u16::try_from(record.len()).expect("a short name"));
            bytes.extend_from_slice(&record);
        }
        bytes
    }
}

fn types_stream(version: u32, types: &Types) -> Vec<u8> {
    let mut bytes = Vec::new();
    let records = types.records();
    // Header: version, its size, first and end index, bytes of records.
    for number in [version, 56, 0x1000, types.next_index(), count(records.len())] {
        push_u32(&mut bytes, number);
    }
    // No hash streams; the size of a hash and the number of buckets; three empty slices.
    push_u16(&mut bytes, NONE);
    push_u16(&mut bytes, NONE);
    for number in [4, 0x3ffff, 0, 0, 0, 0, 0, 0] {
        push_u32(&mut bytes, number);
    }
    bytes.extend_from_slice(records);
    bytes
}

fn section_headers(sections: &[PdbSection]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for section in sections {
        bytes.extend_from_slice(b".data\0\0\0");
        for number in [
            section.size,
            section.rva,
            section.size,
            section.rva,
            0,
            0,
            0,
            0xc000_0040,
        ] {
            push_u32(&mut bytes, number);
        }
    }
    bytes
}
