//! Any bytes as a guest, its profile and the toolstack's requests: `cargo +nightly fuzz run hostile_guest`.
#![no_main]

use lacuna_core::mock::hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    hostile::hostile_guest(bytes);
});
