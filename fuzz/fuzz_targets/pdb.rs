//! Any bytes as a PDB, and as the type records of one that is well-formed: `cargo +nightly fuzz run pdb`.
#![no_main]

use std::io::Cursor;

use lacuna_windows_fixtures::msf::container;
use lacuna_windows_fixtures::pdb::Pdb;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = lacuna::windows::pdb::read(Cursor::new(bytes));
    // The container's checks stop most of what a fuzzer makes up: past them, each stream in turn.
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    let mut streams = Pdb::new([7; 16], 1, 0x8664).streams();
    let stream = 1 + usize::from(*which) % (streams.len() - 1);
    if let Some(content) = &mut streams[stream] {
        let keep = if stream == 2 { 56 } else { 0 };
        content.truncate(keep);
        content.extend_from_slice(bytes);
        if stream == 2 {
            // As many types as there is room for, and where their records end.
            let most = 0x1000 + u32::try_from(bytes.len() / 4).unwrap_or(0);
            content[12..16].copy_from_slice(&most.to_le_bytes());
        }
    }
    let _ = lacuna::windows::pdb::read(Cursor::new(container(512, &streams)));
});
