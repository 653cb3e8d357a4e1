//! Symbol tables of Volatility 3's (ISF, its `doc/source/symbol-tables.rst` and `framework/schemas`): what
//! people have of a kernel's PDB on hosts that reach no server.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::facts::{FactsError, KernelFacts};
use super::pdb::symbols::wanted;
use super::pdb::types::Field;
use super::pdb::{PdbFacts, PdbIdentity};
use super::pe::Machine;
use super::symbol_key::{Guid, PdbName};

/// Largest table, unpacked. A kernel's has some 20 MiB.
const MAX_TABLE: usize = 512 << 20;
/// Deepest nesting of members, and most members, as of a PDB.
const MAX_DEPTH: usize = 16;
const MAX_MEMBERS: usize = 4096;
const XZ: &[u8] = b"\xfd7zXZ\0";
const GZIP: &[u8] = b"\x1f\x8b";
const BZIP2: &[u8] = b"BZh";
/// `IMAGE_FILE_MACHINE_AMD64` and `_I386`.
const AMD64: u64 = 0x8664;
const I386: u64 = 0x14c;
const EXPORT: &str = "give a Windows kernel's PDB to `lacuna profile export PDB --out FILE`, and import that";

/// What kind of table a file is.
#[derive(Deserialize)]
struct Peek {
    base_types: Option<IgnoredAny>,
    user_types: Option<IgnoredAny>,
    #[serde(rename = "$METADATA")]
    rekall: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Table {
    metadata: Metadata,
    base_types: HashMap<String, Measured>,
    #[serde(default)]
    enums: HashMap<String, Enumeration>,
    user_types: HashMap<String, Aggregate>,
    symbols: HashMap<String, Symbol>,
}

#[derive(Deserialize)]
struct Metadata {
    windows: Option<Windows>,
    linux: Option<IgnoredAny>,
    mac: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Windows {
    pdb: Pdb,
}

#[derive(Deserialize)]
struct Pdb {
    #[serde(rename = "GUID")]
    guid: String,
    age: u32,
    database: String,
    machine_type: Option<u64>,
}

#[derive(Deserialize)]
struct Measured {
    size: u64,
}

#[derive(Deserialize)]
struct Enumeration {
    size: u64,
    constants: BTreeMap<String, i64>,
}

#[derive(Deserialize)]
struct Aggregate {
    size: u64,
    fields: BTreeMap<String, Member>,
}

#[derive(Deserialize)]
struct Member {
    offset: u64,
    #[serde(rename = "type")]
    kind: Kind,
}

/// A type where it is used.
#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "kind")]
    form: String,
    name: Option<String>,
    bit_position: Option<u32>,
    bit_length: Option<u64>,
    #[serde(rename = "type")]
    of: Option<Box<Kind>>,
    count: Option<u64>,
    subtype: Option<Box<Kind>>,
}

#[derive(Deserialize)]
struct Symbol {
    address: u64,
}

/// What a symbol table says; `None` where the file is none.
///
/// # Errors
/// [`FactsError::Other`] where it is one that is of no use, [`FactsError::Io`].
pub(super) fn read(file: &Path) -> Result<Option<KernelFacts>, FactsError> {
    let other = |what: String, remedy| FactsError::Other {
        file: file.to_owned(),
        what,
        remedy,
    };
    let bytes = match unpack(file) {
        Ok(bytes) => bytes,
        Err(Unpack::Io(cause)) => {
            return Err(FactsError::Io {
                file: file.to_owned(),
                cause,
            });
        }
        Err(Unpack::Other(what)) => return Err(other(what, EXPORT)),
    };
    let Ok(peek) = serde_json::from_slice::<Peek>(&bytes) else {
        return match std::str::from_utf8(&bytes) {
            Ok(_) => Ok(None),
            Err(_) => Err(other(
                "neither what `lacuna profile export` writes nor a symbol table of Volatility's (ISF)"
                    .to_owned(),
                EXPORT,
            )),
        };
    };
    if peek.rekall.is_some() {
        return Err(other(
            "a symbol table of Rekall's, which is not read".to_owned(),
            EXPORT,
        ));
    }
    if peek.base_types.is_none() && peek.user_types.is_none() {
        return Ok(None);
    }
    let table: Table = serde_json::from_slice(&bytes).map_err(|error| {
        other(
            format!("a damaged symbol table of Volatility's (ISF): {error}"),
            EXPORT,
        )
    })?;
    if table.metadata.linux.is_some() || table.metadata.mac.is_some() {
        return Err(other(
            "a symbol table of Volatility's (ISF) of no Windows kernel".to_owned(),
            "of a Linux kernel, give its headers (--headers) or its System.map (--system-map) to `scan` and `attach`",
        ));
    }
    let facts = table.facts();
    facts.map(Some).map_err(|why| {
        other(
            format!("a symbol table of Volatility's (ISF) that is of no use: {why}"),
            EXPORT,
        )
    })
}

/// Why a file has no text.
enum Unpack {
    Io(io::Error),
    Other(String),
}

impl From<io::Error> for Unpack {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The bytes of a file, unpacked.
fn unpack(file: &Path) -> Result<Vec<u8>, Unpack> {
    let mut open = File::open(file)?;
    let mut head = Vec::new();
    Read::by_ref(&mut open).take(6).read_to_end(&mut head)?;
    open.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::new(open);
    let mut bytes = Bounded(Vec::new());
    let packed = |what: &str, why: String| {
        Unpack::Other(format!("compressed ({what}), and cannot be unpacked: {why}"))
    };
    if head.starts_with(XZ) {
        lzma_rs::xz_decompress(&mut reader, &mut bytes).map_err(|error| packed("xz", error.to_string()))?;
    } else if head.starts_with(GZIP) {
        io::copy(&mut flate2::read::GzDecoder::new(reader), &mut bytes)
            .map_err(|error| packed("gzip", error.to_string()))?;
    } else if head.starts_with(BZIP2) {
        return Err(Unpack::Other(
            "compressed (bzip2): unpack it first with `bzip2 -dk FILE`".to_owned(),
        ));
    } else {
        io::copy(&mut reader, &mut bytes)?;
    }
    Ok(bytes.0)
}

/// Takes so many bytes and no more.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_TABLE {
            return Err(io::Error::other(format!("it has more than {MAX_TABLE} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Table {
    /// What it says of a Windows kernel.
    fn facts(&self) -> Result<KernelFacts, String> {
        let windows = self.metadata.windows.as_ref();
        let pdb = &windows.ok_or("it does not say of which PDB it is")?.pdb;
        let guid = Guid::from_text(&pdb.guid.replace(['-', '{', '}'], "").to_ascii_uppercase())
            .ok_or_else(|| format!("{:?} is no GUID", pdb.guid))?;
        let name = PdbName::from_path(&pdb.database).map_err(|error| error.to_string())?;
        let machine = match pdb.machine_type {
            Some(AMD64) => Some(Machine::X64),
            Some(I386) => Some(Machine::X86),
            _ => match self.pointer() {
                8 => Some(Machine::X64),
                _ => Some(Machine::X86),
            },
        };
        let entry = self.user_types.get("_MMPFN");
        let mut fields = Vec::new();
        if let Some(entry) = entry {
            self.walk(entry, 0, &mut Vec::new(), &mut fields)?;
        }
        let lists = self.enums.get("_MMLISTS").or_else(|| {
            let mut like = self
                .enums
                .values()
                .filter(|one| one.constants.contains_key("ZeroedPageList"));
            like.next().filter(|_| like.next().is_none())
        });
        let mut rva = BTreeMap::new();
        for (name, symbol) in &self.symbols {
            if let (Some(name), Ok(address)) = (wanted(name, machine), u32::try_from(symbol.address))
                && rva
                    .insert(name.to_owned(), address)
                    .is_some_and(|other| other != address)
            {
                return Err(format!("it places {name} at two addresses"));
            }
        }
        Ok(KernelFacts::new(
            &name,
            PdbFacts {
                identity: PdbIdentity {
                    guid,
                    age: pdb.age,
                    info_age: pdb.age,
                },
                machine,
                type_version: 0,
                mmpfn_size: entry.map(|entry| entry.size),
                fields,
                lists: lists.map(|lists| lists.constants.clone()).unwrap_or_default(),
                zeroed_total: self.zeroed_total(),
                rva,
            },
        ))
    }

    fn pointer(&self) -> u64 {
        self.base_types.get("pointer").map_or(0, |pointer| pointer.size)
    }

    /// Where the number of zeroed pages lies in `_MI_PARTITION`.
    fn zeroed_total(&self) -> Option<u64> {
        let mut within = self.user_types.get("_MI_PARTITION")?;
        let mut offset = 0_u64;
        for name in ["PageLists", "ZeroedPageListHead"] {
            let member = within.fields.get(name)?;
            offset = offset.checked_add(member.offset)?;
            within = self.user_types.get(member.kind.name.as_deref()?)?;
        }
        offset.checked_add(within.fields.get("Total")?.offset)
    }

    /// Records the members of a structure or union that begins at `base`.
    fn walk(
        &self,
        aggregate: &Aggregate,
        base: u64,
        path: &mut Vec<String>,
        found: &mut Vec<Field>,
    ) -> Result<(), String> {
        if path.len() >= MAX_DEPTH {
            return Err(format!(
                "its types nest deeper than {MAX_DEPTH}, or hold each other"
            ));
        }
        for (name, member) in &aggregate.fields {
            if found.len() >= MAX_MEMBERS {
                return Err(format!("_MMPFN has more than {MAX_MEMBERS} members"));
            }
            let offset = base.saturating_add(member.offset);
            let kind = &member.kind;
            path.push(name.clone());
            let bits = kind.form == "bitfield";
            let storage = match &kind.of {
                Some(of) if bits => self.size(of, 0),
                _ => self.size(kind, 0),
            };
            found.push(Field {
                path: path.clone(),
                offset,
                storage_bytes: storage,
                bit: kind.bit_position.filter(|_| bits).unwrap_or(0),
                width: match kind.bit_length.filter(|_| bits) {
                    Some(length) => length,
                    None => storage.saturating_mul(8),
                },
            });
            if let Some(inside) = self.aggregate(kind) {
                self.walk(inside, offset, path, found)?;
            }
            path.pop();
        }
        Ok(())
    }

    fn aggregate(&self, kind: &Kind) -> Option<&Aggregate> {
        matches!(kind.form.as_str(), "struct" | "union" | "class")
            .then(|| self.user_types.get(kind.name.as_deref()?))
            .flatten()
    }

    /// Bytes of a type; 0 where that cannot be known.
    fn size(&self, kind: &Kind, depth: usize) -> u64 {
        if depth >= MAX_DEPTH {
            return 0;
        }
        let named = kind.name.as_deref().unwrap_or_default();
        match kind.form.as_str() {
            "pointer" => self.pointer(),
            "base" => self.base_types.get(named).map_or(0, |base| base.size),
            "enum" => self.enums.get(named).map_or(0, |one| one.size),
            "array" => {
                let each = kind.subtype.as_ref().map_or(0, |one| self.size(one, depth + 1));
                each.saturating_mul(kind.count.unwrap_or(0))
            }
            _ => self.aggregate(kind).map_or(0, |aggregate| aggregate.size),
        }
    }
}
