//! What the lab's Windows-like guest boots from: a description of the layout that it is to keep its memory
//! in, and the image of the kernel that it maps (`kernel/package.h`).

use crate::guest::{ENTRY, Guest, MEMORY_BLOCK, PARTITION_ZEROED, PFN_DATABASE, ZEROED_LIST};
use crate::layouts::{Bits, Layout};
use crate::msf::push_u32;
use crate::pe::{DATA, IMAGE_SIZE};

/// `PACKAGE_MAGIC`.
const MAGIC: u64 = 0x4f44_4e49_5743_414c;
/// Where the exceptions' stubs are to be in `.text`.
const STUBS: u32 = 0x1100;
/// Where in `.data` the structure is to be that `MmPhysicalMemoryBlock` points to.
const DESCRIPTOR: u32 = 0x200;
/// Age of the guests' PDBs.
const AGE: u32 = 3;
/// Where the image begins: behind the description, on a page.
const IMAGE_OFFSET: u32 = 4096;

/// A Windows-like guest that is to run.
#[derive(Clone, Debug)]
pub struct Live {
    guest: Guest,
    counted: bool,
}

/// One member of the description.
enum Member {
    Long(u64),
    Short(u32),
    Field(Option<Bits>),
}

impl Live {
    /// A guest with `layout`, which has to be one of 64 bits. `counted` says whether `MmZeroedPageListHead`
    /// is the list's head: Windows 10 keeps its lists in partitions, to which `MiSystemPartition` and the
    /// PDB's types lead.
    ///
    /// # Panics
    /// For a layout of 32 bits: the guest's kernel runs in long mode.
    pub fn new(layout: Layout, counted: bool) -> Self {
        assert!(layout.x64, "{} is a layout of 32 bits", layout.profile);
        // Each layout's own.
        let mut guid = [0; 16];
        for (to, from) in guid.iter_mut().zip(layout.profile.bytes()) {
            *to = from;
        }
        let mut guest = Guest::new(layout, guid);
        guest.age = AGE;
        guest.partition = !counted;
        Self { guest, counted }
    }

    /// The initial file system.
    pub fn package(&self) -> Vec<u8> {
        let members = self.members();
        let mut package = Vec::new();
        for (_, member) in &members {
            match member {
                Member::Long(value) => package.extend_from_slice(&value.to_le_bytes()),
                Member::Short(value) => push_u32(&mut package, *value),
                Member::Field(bits) => {
                    let words = bits.map_or([0; 4], |bits| {
                        [bits.offset, bits.storage, bits.bit.into(), bits.width.into()]
                    });
                    for word in words {
                        push_u32(&mut package, word);
                    }
                }
            }
        }
        package.resize(IMAGE_OFFSET as usize, 0);
        package.extend(self.guest.executable(Vec::new()).mapped());
        package
    }

    /// The PDB of the guest's kernel.
    pub fn pdb(&self) -> Vec<u8> {
        self.guest.pdb()
    }

    /// Where a symbol store has the PDB: `NAME/GUIDAGE/NAME`.
    pub fn symbol_path(&self) -> String {
        use std::fmt::Write as _;
        let guid = self.guest.guid;
        // Three numbers in little-endian order, then bytes.
        let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        let mut key = String::new();
        for at in order {
            // Writing to a String cannot fail.
            let _ = write!(key, "{:02X}", guid[at]);
        }
        format!("ntkrnlmp.pdb/{key}{AGE:X}/ntkrnlmp.pdb")
    }

    /// The members of `struct package`, in its order, by their names.
    fn members(&self) -> Vec<(&'static str, Member)> {
        let layout = &self.guest.layout;
        let references = Bits {
            offset: layout.reference_count,
            storage: 2,
            bit: 0,
            width: 16,
        };
        let lists = if self.counted {
            ZEROED_LIST
        } else {
            PARTITION_ZEROED
        };
        let entry = u32::try_from(ENTRY).expect("an offset in the image");
        vec![
            ("magic", Member::Long(MAGIC)),
            ("image_base", Member::Long(self.guest.base())),
            ("database", Member::Long(self.guest.database())),
            ("image_offset", Member::Short(IMAGE_OFFSET)),
            ("image_bytes", Member::Short(IMAGE_SIZE)),
            ("entry_bytes", Member::Short(layout.size)),
            ("link_offset", Member::Short(layout.offsets[0])),
            ("location", Member::Field(Some(layout.page_location))),
            ("references", Member::Field(Some(references))),
            ("rom", Member::Field(layout.rom)),
            ("exists", Member::Field(layout.pfn_exists)),
            ("lock", Member::Field(layout.lock_bit)),
            ("pfn_database", Member::Short(DATA + PFN_DATABASE)),
            ("memory_block", Member::Short(DATA + MEMORY_BLOCK)),
            ("descriptor", Member::Short(DATA + DESCRIPTOR)),
            ("lists", Member::Short(DATA + lists)),
            ("entry", Member::Short(entry)),
            ("stubs", Member::Short(STUBS)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::{IMAGE_OFFSET, Live, Member};
    use crate::layouts::layouts;

    fn live() -> Live {
        let layout = layouts()
            .into_iter()
            .find(|layout| layout.profile == "win10_x64_19041");
        Live::new(layout.expect("it is in the table"), false)
    }

    /// The names of the members of `struct package` with their types, as the guest's compiler reads them.
    fn declared() -> Vec<(String, String)> {
        let header = include_str!("../kernel/package.h");
        let (_, body) = header
            .split_once("struct package {")
            .expect("it declares the structure");
        let (body, _) = body.split_once("\n};").expect("the structure ends");
        // Comments end at `*/`; what is left are declarations.
        let code: String = body
            .split("/*")
            .map(|part| part.rsplit("*/").next().unwrap_or(part))
            .collect();
        code.split(';')
            .filter_map(|declaration| {
                let words = declaration
                    .trim()
                    .strip_prefix("struct ")
                    .unwrap_or(declaration.trim());
                words.split_once(' ')
            })
            .flat_map(|(kind, names)| {
                names
                    .split(',')
                    .map(|name| (kind.to_owned(), name.trim().to_owned()))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    #[test]
    fn the_description_is_what_the_guest_reads() {
        let written: Vec<(String, String)> = live()
            .members()
            .into_iter()
            .map(|(name, member)| {
                let kind = match member {
                    Member::Long(_) => "uint64_t",
                    Member::Short(_) => "uint32_t",
                    Member::Field(_) => "field",
                };
                (kind.to_owned(), name.to_owned())
            })
            .collect();
        assert_eq!(declared(), written);
    }

    #[test]
    fn the_image_lies_where_the_description_says() {
        let package = live().package();
        assert_eq!(&package[..8], b"LACWINDO");
        assert_eq!(&package[IMAGE_OFFSET as usize..][..2], b"MZ");
        assert_eq!(package.len() % 4096, 0);
    }
}
