//! Public symbols: where the kernel's variables are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io::{Read, Seek};

use pdb2::{FallibleIterator, PDB, SymbolData};

use super::PdbError;
use super::addresses::AddressMap;
use crate::os::windows::pe::Machine;

/// Names looked for. The first three lead to the page-frame database, directly and by the debugger's block;
/// the others check it, tell what state memory management is in, or identify the kernel.
pub const WANTED: &[&str] = &[
    "MmPfnDatabase",
    "MmPhysicalMemoryBlock",
    "KdDebuggerDataBlock",
    "MmZeroedPageListHead",
    "MmFreePageListHead",
    "MmStandbyPageListHead",
    "MmModifiedPageListHead",
    "MmModifiedNoWritePageListHead",
    "MmBadPageListHead",
    "MmRomPageListHead",
    "MmPageLocationList",
    "MmFreePagesByColor",
    "MmHighestPhysicalPage",
    "MmLowestPhysicalPage",
    "MmHighestPossiblePhysicalPage",
    "MmNumberOfPhysicalPages",
    "MmAvailablePages",
    "MmSecondaryColors",
    "MmZeroingPageThreadActive",
    "MiZeroingDisabled",
    "MiState",
    "MiSystemPartition",
    "MmPteBase",
    "MmPfnDereferenceSListHead",
    "NtBuildNumber",
    "NtBuildLab",
    "NtBuildLabEx",
    "KiSystemStartup",
    "KiSystemCall64",
    "KiSystemCall64Shadow",
    "KiFastCallEntry",
    "PsActiveProcessHead",
    "PsInitialSystemProcess",
    "PsLoadedModuleList",
    "KeNumberProcessors",
    "KiBugCheckData",
    "KdVersionBlock",
];

/// Of these, the names that lead to the free pages: at two addresses they are refused. Another name that is
/// there twice, as private names of two modules can be, is only left out.
const LEADING: [&str; 5] = [
    "MmPfnDatabase",
    "MmPhysicalMemoryBlock",
    "KdDebuggerDataBlock",
    "MmZeroedPageListHead",
    "MiSystemPartition",
];

/// `S_PUB32` and its predecessor with counted names (`microsoft-pdb`, `include/cvinfo.h`).
const PUBLIC: [u16; 2] = [0x110e, 0x1009];

/// Looks [`WANTED`] up among the public symbols.
///
/// # Errors
/// [`PdbError`], also when one of `LEADING` stands for two addresses.
pub fn read<'s, S>(pdb: &mut PDB<'s, S>, addresses: &AddressMap) -> Result<BTreeMap<String, u32>, PdbError>
where
    S: Read + Seek + Debug + Send + 's,
{
    let mut found = BTreeMap::new();
    let mut twice = BTreeSet::new();
    let table = match pdb.global_symbols() {
        Ok(table) => table,
        // A PDB of types only.
        Err(pdb2::Error::GlobalSymbolsNotFound | pdb2::Error::StreamNotFound(_)) => return Ok(found),
        Err(error) => return Err(error.into()),
    };
    let mut symbols = table.iter();
    while let Some(symbol) = symbols.next()? {
        if !PUBLIC.contains(&symbol.raw_kind()) {
            continue;
        }
        let SymbolData::Public(public) = symbol.parse()? else {
            continue;
        };
        let Ok(name) = std::str::from_utf8(public.name.as_bytes()) else {
            continue;
        };
        let Some(name) = wanted(name, addresses.machine) else {
            continue;
        };
        let Some(rva) = addresses.rva(public.offset.section, public.offset.offset) else {
            continue;
        };
        if let Some(first) = found.insert(name.to_owned(), rva)
            && first != rva
        {
            if LEADING.contains(&name) {
                return Err(PdbError::TwoPlaces {
                    name: name.to_owned(),
                    first,
                    second: rva,
                });
            }
            twice.insert(name);
        }
    }
    found.retain(|name, _| !twice.contains(name.as_str()));
    Ok(found)
}

/// The wanted name that a public one stands for. 32-bit C compilers put an underscore before it.
pub fn wanted(public: &str, machine: Option<Machine>) -> Option<&'static str> {
    let plain = match machine {
        Some(Machine::X64) => public,
        _ => public.strip_prefix('_').unwrap_or(public),
    };
    WANTED.iter().find(|name| **name == plain).copied()
}
