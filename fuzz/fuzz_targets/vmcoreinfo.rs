//! The target `vmcoreinfo` of `tests/hostile`; docs/fuzzing.md says how to run it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    lacuna_hostile::run("vmcoreinfo", bytes);
});
