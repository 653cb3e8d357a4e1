//! Windows' executables and PDBs.

use std::io::Cursor;

use lacuna_windows_fixtures::msf::container;
use lacuna_windows_fixtures::pdb::Pdb;
use lacuna_windows_fixtures::pe::{AMD64, Pe, Record};

const GUID: [u8; 16] = [7; 16];

fn executable() -> Pe {
    Pe {
        machine: AMD64,
        image_base: 0,
        record: Record::Rsds(GUID, 1, "ntkrnlmp.pdb".into()),
        export_name: Some("ntoskrnl.exe".into()),
        data: Vec::new(),
    }
}

/// Any bytes as an executable, and patched into one that is well-formed: offset and value, three bytes at a
/// time.
pub(crate) fn pe(bytes: &[u8]) -> bool {
    let whole = lacuna::os::windows::pe::read_file(bytes).is_ok();
    let mut image = executable().mapped();
    for patch in bytes.chunks_exact(3).take(64) {
        let at = usize::from(u16::from_le_bytes([patch[0], patch[1]])) % image.len();
        image[at] = patch[2];
    }
    lacuna::os::windows::pe::read_file(&image).is_ok() || whole
}

/// The executable as a file and as it lies in memory, and a patch that changes nothing.
pub(crate) fn pe_seeds() -> Vec<Vec<u8>> {
    vec![executable().file(), executable().mapped(), b"\0\0M".to_vec()]
}

/// Any bytes as a PDB, and, after a first byte that chooses one, as a stream of a PDB that is well-formed:
/// the container's own checks stop most of what a fuzzer makes up.
pub(crate) fn pdb(bytes: &[u8]) -> bool {
    let whole = lacuna::os::windows::pdb::read(Cursor::new(bytes)).is_ok();
    let Some((which, bytes)) = bytes.split_first() else {
        return whole;
    };
    let mut streams = made().streams();
    let stream = 1 + usize::from(*which) % (streams.len() - 1);
    if let Some(content) = &mut streams[stream] {
        let keep = if stream == TYPES { TYPES_HEADER } else { 0 };
        content.truncate(keep);
        content.extend_from_slice(bytes);
        if stream == TYPES {
            // As many types as there is room for, and where their records end.
            let most = 0x1000 + u32::try_from(bytes.len() / 4).unwrap_or(0);
            content[12..16].copy_from_slice(&most.to_le_bytes());
        }
    }
    lacuna::os::windows::pdb::read(Cursor::new(container(512, &streams))).is_ok() || whole
}

/// Number of the stream of types, and the bytes of its header.
const TYPES: usize = 2;
const TYPES_HEADER: usize = 56;

fn made() -> Pdb {
    let mut pdb = Pdb::new(GUID, 1, AMD64);
    let number = lacuna_windows_fixtures::types::UQUAD;
    pdb.types
        .structure("_MMPFN", 48, &[("u1", number, 0), ("u2", number, 8)]);
    pdb.symbols.push(("MmPfnDatabase".into(), 1, 0x1000));
    pdb
}

/// A PDB of today's tools, one of Windows XP's, and each stream behind its number.
pub(crate) fn pdb_seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![made().to_bytes(), made().of_old().to_bytes()];
    for (index, stream) in made().streams().iter().enumerate().skip(1) {
        let content = stream.as_deref().unwrap_or_default();
        let keep = if index == TYPES { TYPES_HEADER } else { 0 };
        let mut seed = vec![u8::try_from(index - 1).unwrap_or(0)];
        seed.extend_from_slice(content.get(keep..).unwrap_or_default());
        seeds.push(seed);
    }
    seeds
}
