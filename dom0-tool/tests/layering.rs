//! The shape of the tool's sources: modules lie in layers, and files and functions stay small.
//!
//! A module may use those that stand before it in [`LAYERS`], so there is no circle among them.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../../tests/shape.rs"]
mod shape;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use shape::{Exception, assert_small};

/// The top modules, the lowest first.
const LAYERS: &[&str] = &[
    "hex", "failure", "progress", "output", "xen", "source", "os", "ops", "policy", "daemon", "commands",
];
/// Below `os`, no kernel knows of another.
const APART: [&str; 2] = ["os::linux", "os::windows"];

/// What is larger, and why.
const EXCEPTIONS: &[Exception] = &[
    (
        "xen/answer.rs",
        "explain_status",
        "a table: one entry for each answer of the engine",
    ),
    ("xen/privcmd.rs", "", "everything unsafe is in this one file"),
    ("xen/privcmd.rs", "hypercall", "the hypercall's own operands"),
    ("daemon/metrics.rs", "", "a table: one entry for each metric"),
];

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file: its path below `src/`, and its text.
fn files() -> Vec<(String, String)> {
    shape::files(&sources())
}

/// The paths that a file uses from the crate's root, such as `os::linux`, by line.
fn uses(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for (at, _) in code.match_indices("crate::") {
            // `$crate::` and `lacuna_core::crate::` do not occur; `pub(crate)` has no `::`.
            let rest = &code[at + "crate::".len()..];
            let path: String = rest
                .chars()
                .take_while(|letter| letter.is_alphanumeric() || "_:".contains(*letter))
                .collect();
            assert!(
                !path.is_empty(),
                "line {}: one path to a `use`: {line}",
                number + 1
            );
            found.push((number + 1, path));
        }
    }
    found
}

/// What is wrong with the uses of one file.
fn misuses(file: &str, text: &str) -> Vec<String> {
    let rank = |module: &str| LAYERS.iter().position(|layer| *layer == module);
    let own = file.trim_end_matches(".rs").replace('/', "::");
    let top = own.split("::").next().unwrap();
    if ["lib", "main", "bin"].contains(&top) {
        return Vec::new();
    }
    let Some(own_rank) = rank(top) else {
        return vec![format!("{file}: module `{top}` is in no layer")];
    };
    let mut wrong = Vec::new();
    for (line, path) in uses(text) {
        let used = path.split("::").next().unwrap();
        match rank(used) {
            None => wrong.push(format!("{file}:{line}: `{used}` is in no layer")),
            Some(rank) if rank > own_rank => {
                wrong.push(format!(
                    "{file}:{line}: `{top}` uses `{used}`, which lies above it"
                ));
            }
            Some(_) => {}
        }
        for (here, there) in [(APART[0], APART[1]), (APART[1], APART[0])] {
            if own.starts_with(here) && path.starts_with(there) {
                wrong.push(format!("{file}:{line}: `{here}` uses `{there}`"));
            }
        }
    }
    wrong
}

#[test]
fn no_module_uses_one_above_it() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for (file, text) in files() {
        wrong.extend(misuses(&file, &text));
        seen.insert(file.split(['/', '.']).next().unwrap().to_owned());
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    for layer in LAYERS {
        assert!(seen.contains(*layer), "there is no module `{layer}`");
    }
}

/// Whether a line of code names the calls of the lab, `xen::lab`.
fn names_the_lab(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.contains("lab::") || code.contains("mod lab;")
}

/// What only the lab calls is compiled for the lab alone: each line outside `xen/lab` that names it is behind
/// the feature. The compiler sees to that, unless somebody drops the attribute of the module.
#[test]
fn the_product_has_no_calls_of_the_lab() {
    const GATE: &str = "#[cfg(feature = \"lab\")]";
    let module = fs::read_to_string(sources().join("xen/mod.rs")).unwrap();
    assert!(
        module.contains(&format!("{GATE}\npub mod lab;\n")),
        "xen/mod.rs compiles `lab` without the feature"
    );
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest = fs::read_to_string(manifest).unwrap();
    assert!(
        !manifest.contains("default ="),
        "no feature is on by default: {manifest}"
    );
    for (file, text) in files() {
        let names = text.lines().any(names_the_lab);
        let may = file.starts_with("xen/lab/") || ["xen/mod.rs", "xen/privcmd.rs"].contains(&file.as_str());
        assert!(may || !names, "{file} names what only the lab calls");
    }
}

#[test]
fn a_use_of_what_lies_above_is_seen() {
    for (file, line, expected) in [
        ("xen/engine.rs", "use crate::source::Cpu;", "`xen` uses `source`"),
        ("source/live.rs", "use crate::xen::engine::Engine;", ""),
        (
            "ops/attach.rs",
            "    let a = crate::commands::cli::A;",
            "`ops` uses `commands`",
        ),
        (
            "os/linux/facts.rs",
            "use crate::os::windows::pe;",
            "`os::linux` uses `os::windows`",
        ),
        ("os/linux/facts.rs", "// use crate::daemon::run;", ""),
        (
            "failure.rs",
            "use crate::xen::engine::EngineError;",
            "`failure` uses `xen`",
        ),
        ("other.rs", "", "`other` is in no layer"),
    ] {
        let wrong = misuses(file, line).join("\n");
        assert_eq!(wrong.is_empty(), expected.is_empty(), "{file}: {wrong}");
        assert!(wrong.contains(expected), "{file}: {wrong}");
    }
}

#[test]
fn files_and_functions_are_small_or_have_a_reason() {
    assert_small(&files(), EXCEPTIONS);
}
