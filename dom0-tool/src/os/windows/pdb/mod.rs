//! What a kernel's PDB says: which build it belongs to, how `_MMPFN` is laid out, what `_MMLISTS` names, and
//! where the kernel's variables are.
//!
//! The file is an allegation, downloaded over who knows what. Its container and the counts in it are checked
//! first ([`container`]), so that no number in the file makes a reader allocate more than a few times the
//! file's size; then `pdb2` parses records. `pdb2` is memory-safe except for two casts in parts that are not
//! used here (line numbers, OMAP); a panic in it is caught: nothing outlives the call but what it returns, so
//! that none of its state can be seen half-changed.

pub mod addresses;
pub mod container;
mod definitions;
pub mod symbols;
pub mod types;
mod walk;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::{Read, Seek};
use std::panic::AssertUnwindSafe;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::addresses::AddressMap;
use self::container::{Container, u32_at};
use self::types::{Field, TypeError, TypeFacts};
use super::catch_panic::catch_panic;
use super::pe::Machine;
use super::symbol_key::Guid;

const INFO_STREAM: u16 = 1;
const TYPE_STREAM: u16 = 2;
const DEBUG_STREAM: u16 = 3;
/// Versions of the type stream whose records `pdb2` reads: Visual C++ 6 (`19961031`), Visual Studio .NET
/// (`19990903`, Windows XP and 2003), and all since (`20040203`).
const TYPE_VERSIONS: [u32; 3] = [19_961_031, 19_990_903, 20_040_203];
/// Bytes of the type stream's header (`microsoft-pdb`, `PDB/dbi/tpi.h`, `HDR`).
const TYPE_HEADER: usize = 56;
/// First index of a type that is not built in.
const FIRST_TYPE: u32 = 0x1000;

/// Why a PDB cannot be used.
#[derive(Debug, Error)]
pub enum PdbError {
    /// Reading failed.
    #[error("it could not be read: {0}")]
    Io(#[from] std::io::Error),
    /// Another kind of file.
    #[error("it does not begin as a PDB does")]
    NotPdb,
    /// A kind of PDB that is not read.
    #[error("it is {0}")]
    Unsupported(&'static str),
    /// The file ends before its own header says.
    #[error("it is cut short: its header speaks of {needed} bytes, there are {there}")]
    Truncated {
        /// By the header.
        needed: u64,
        /// In the file.
        there: u64,
    },
    /// A block size that nobody writes.
    #[error("its block size is {0}, not a power of two from 512 to 65536")]
    BlockSize(u32),
    /// A reference to a block that does not exist.
    #[error("it refers to block {block} of {blocks}")]
    BlockOutside {
        /// Which.
        block: u32,
        /// How many there are.
        blocks: u32,
    },
    /// A number without measure.
    #[error("{what} is {value}, at most {most} is possible")]
    TooLarge {
        /// Which number.
        what: &'static str,
        /// What the file says.
        value: u64,
        /// The bound.
        most: u64,
    },
    /// A stream that has to be there is not.
    #[error("it has no stream {0}")]
    NoStream(u16),
    /// Bytes that make no sense.
    #[error("it is damaged: {0}")]
    Malformed(&'static str),
    /// A version of the type stream that is not read.
    #[error("its types are of version {0}; versions 19961031, 19990903 and 20040203 are read")]
    TypeVersion(u32),
    /// The record parser refused.
    #[error("it is damaged: {0}")]
    Record(#[from] pdb2::Error),
    /// The types are not usable.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// A public name stands for two addresses.
    #[error("it places {name} at {first:#x} and at {second:#x}")]
    TwoPlaces {
        /// The name.
        name: String,
        /// One.
        first: u32,
        /// The other.
        second: u32,
    },
    /// The parser gave up in an undefined way.
    #[error("it is damaged: the record parser stopped: {0}")]
    Panicked(String),
}

/// Identity of a PDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PdbIdentity {
    /// Its GUID.
    pub guid: Guid,
    /// The age that symbol stores file it under and executables name: the debug stream's, which the linker
    /// wrote. In a file without one, the information stream's.
    pub age: u32,
    /// The information stream's age, which later tools raise.
    pub info_age: u32,
}

/// What was learnt from a PDB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PdbFacts {
    /// Which build it belongs to.
    pub identity: PdbIdentity,
    /// Processor, where the file tells.
    pub machine: Option<Machine>,
    /// Version of its type stream; 0 where types were stripped together with their stream.
    pub type_version: u32,
    /// `sizeof(_MMPFN)`, in bytes.
    pub mmpfn_size: Option<u64>,
    /// Members of `_MMPFN`, however deeply nested.
    pub fields: Vec<Field>,
    /// `_MMLISTS`: name to value.
    pub lists: BTreeMap<String, i64>,
    /// Where the number of zeroed pages lies in `_MI_PARTITION`, in bytes; Windows 10 and later have that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zeroed_total: Option<u64>,
    /// Addresses of the kernel's variables, relative to the image's base.
    pub rva: BTreeMap<String, u32>,
}

/// Reads a PDB.
///
/// # Errors
/// [`PdbError`]: every one means that nothing of the file should be believed.
pub fn read<S>(mut file: S) -> Result<PdbFacts, PdbError>
where
    S: Read + Seek + Debug + Send,
{
    catch_panic(AssertUnwindSafe(|| read_or_panic(&mut file)))
        .unwrap_or_else(|panic| Err(PdbError::Panicked(panic)))
}

/// Reads only which build a PDB belongs to. Cheap: a few blocks.
///
/// # Errors
/// [`PdbError`].
pub fn identity(file: &mut (impl Read + Seek)) -> Result<PdbIdentity, PdbError> {
    let container = Container::read(file)?;
    read_identity(&container, file)
}

fn read_or_panic<S: Read + Seek + Debug + Send>(file: &mut S) -> Result<PdbFacts, PdbError> {
    let container = Container::read(file)?;
    let identity = read_identity(&container, file)?;
    let type_version = check_types(&container, file)?;
    let addresses = AddressMap::read(&container, file)?;
    let mut pdb = pdb2::PDB::open(file)?;
    let TypeFacts {
        mmpfn_size,
        fields,
        lists,
        zeroed_total,
    } = match type_version {
        0 => TypeFacts::default(),
        _ => types::read(&pdb.type_information()?)?,
    };
    let rva = match &addresses {
        Some(addresses) => symbols::read(&mut pdb, addresses)?,
        None => BTreeMap::new(),
    };
    Ok(PdbFacts {
        identity,
        machine: addresses.and_then(|addresses| addresses.machine),
        type_version,
        mmpfn_size,
        fields,
        lists,
        zeroed_total,
        rva,
    })
}

fn read_identity(container: &Container, file: &mut (impl Read + Seek)) -> Result<PdbIdentity, PdbError> {
    let info = container.stream(file, INFO_STREAM, 28)?;
    let guid = info
        .get(12..28)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(PdbError::Malformed(
            "the information stream is shorter than 28 bytes",
        ))?;
    let info_age = u32_at(&info, 8);
    // Version, signature and age; absent in a PDB of types only.
    let debug = match container.size(DEBUG_STREAM) {
        Some(size) if size >= 12 => container.stream(file, DEBUG_STREAM, 12)?,
        _ => Vec::new(),
    };
    let age = match u32_at(&debug, 8) {
        0 => info_age,
        age => age,
    };
    Ok(PdbIdentity {
        guid: Guid::from_file(guid),
        age,
        info_age,
    })
}

/// Holds the type stream's header against its size, since `pdb2` allocates by the number of types. Returns
/// the version; 0 when there is no such stream, or nothing in it.
fn check_types(container: &Container, file: &mut (impl Read + Seek)) -> Result<u32, PdbError> {
    if container.size(TYPE_STREAM).unwrap_or(0) == 0 {
        return Ok(0);
    }
    let header = container.stream(file, TYPE_STREAM, 64)?;
    if header.len() < TYPE_HEADER {
        return Err(PdbError::Malformed("the type stream has no header"));
    }
    let version = u32_at(&header, 0);
    if !TYPE_VERSIONS.contains(&version) {
        return Err(PdbError::TypeVersion(version));
    }
    let size = container.size(TYPE_STREAM).unwrap_or(0);
    let (first, end) = (u32_at(&header, 8), u32_at(&header, 12));
    if first < FIRST_TYPE || end < first {
        return Err(PdbError::Malformed(
            "the type stream's range of indices is impossible",
        ));
    }
    // A record has a length and a kind, of two bytes each.
    let most = size / 4;
    if end - first > most {
        return Err(PdbError::TooLarge {
            what: "the number of types",
            value: (end - first).into(),
            most: most.into(),
        });
    }
    if u32_at(&header, 4) > size {
        return Err(PdbError::Malformed("the type stream is shorter than its header"));
    }
    Ok(version)
}
