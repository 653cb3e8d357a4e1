//! Any bytes as an executable, and patched into one that is well-formed: `cargo +nightly fuzz run pe`.
#![no_main]

use lacuna_windows_fixtures::pe::{AMD64, Pe, Record};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = lacuna::windows::pe::read_file(bytes);
    let mut image = Pe {
        machine: AMD64,
        image_base: 0,
        record: Record::Rsds([7; 16], 1, "ntkrnlmp.pdb".into()),
        export_name: Some("ntoskrnl.exe".into()),
        data: Vec::new(),
    }
    .mapped();
    // Offset and value, three bytes at a time.
    for patch in bytes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([patch[0], patch[1]])) % image.len();
        image[at] = patch[2];
    }
    let _ = lacuna::windows::pe::read_file(&image);
});
