//! Any bytes as a profile, as they are and as the body under a right header: `cargo +nightly fuzz run profile`.
#![no_main]

use lacuna_core::mock::hostile::{any_profile, any_profile_body};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    any_profile(bytes);
    any_profile_body(bytes);
});
