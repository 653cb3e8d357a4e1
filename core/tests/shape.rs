//! Files and functions stay small in the crates around the core and the tool: the hypervisor's module, the
//! mock guest, the lab's programs and the fuzz targets. `layering.rs` of the core and of the tool see to
//! those two.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../../tests/shape.rs"]
mod shape;

use std::path::Path;

use shape::{Exception, assert_small, files};

/// The folders of the sources, from the repository's root.
const SOURCES: &[&str] = &[
    "core/mock/src",
    "fuzz/fuzz_targets",
    "tests/dom0/src",
    "tests/guest/src",
    "tests/hostile/src",
    "tests/lab/src",
    "tests/scenarios/src",
    "tests/windows/src",
    "xen-module/src",
];

/// What is larger, and why. None of it is product.
const EXCEPTIONS: &[Exception] = &[
    (
        "core/mock/src/hostile.rs",
        "hostile_guest",
        "one arm for each thing that a guest may change",
    ),
    (
        "tests/dom0/src/guest.rs",
        "",
        "one guest in dom0: its calls for scenarios, each a few lines",
    ),
    (
        "tests/dom0/src/scenario/daemon.rs",
        "unattended",
        "a scenario: its steps in their order",
    ),
    (
        "tests/dom0/src/scenario/kexec.rs",
        "ends_sharing",
        "a scenario: its steps in their order",
    ),
    (
        "tests/dom0/src/stream/follow.rs",
        "",
        "its tests: without them 347 lines",
    ),
    ("tests/lab/src/archive/tests.rs", "", "tests alone"),
    (
        "tests/windows/src/guest.rs",
        "",
        "one memory image: its parts in the order in which they are laid out",
    ),
    (
        "tests/windows/src/guest.rs",
        "make",
        "one memory image: its parts in the order in which they are laid out",
    ),
];

#[test]
fn files_and_functions_are_small_or_have_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut sources = Vec::new();
    for folder in SOURCES {
        let found = files(&root.join(folder));
        assert!(!found.is_empty(), "no sources in {folder}");
        sources.extend(
            found
                .into_iter()
                .map(|(file, text)| (format!("{folder}/{file}"), text)),
        );
    }
    assert_small(&sources, EXCEPTIONS);
}
