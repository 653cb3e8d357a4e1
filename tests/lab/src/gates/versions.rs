//! The `rust-version` of each crate: stated, enough for what the crate uses, and no higher than that.
//!
//! Only one compiler of each kind is at hand: the machine's own, and the sysroot's, which builds the module.
//! So a version in between is not tried. It follows from what is known: the versions that the crate's
//! dependencies state, the language's features below, and clippy's `incompatible_msrv`, which knows since
//! when each part of the standard library is there (`host/lint` runs it).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::{MANIFESTS, Metadata, Package, metadata};
use crate::error::{IoContext, Result};
use crate::key::files_below;

/// A version of Rust.
type Version = (u64, u64, u64);

/// What the edition of all crates needs (2024).
const EDITION: Version = (1, 85, 0);
/// Debian 13's compiler, which builds the module inside the sysroot.
const MODULE: Version = (1, 85, 0);
/// The crates that it builds.
const OF_MODULE: [&str; 2] = ["lacuna-core", "lacuna-xen"];
/// Features of the language that the crates use, by a text that cannot be had without them, and since when
/// they are there.
const FEATURES: [(&str, &str, Version); 1] = [("let-chains", "&& let ", (1, 88, 0))];

/// What is wrong with the versions that the crates state.
pub(super) fn offences(repository: &Path) -> Result<Vec<String>> {
    let mut offences = Vec::new();
    for manifest in MANIFESTS {
        let workspace = metadata(repository, manifest)?;
        let packages: BTreeMap<&str, &Package> = workspace
            .packages
            .iter()
            .map(|package| (package.id.as_str(), package))
            .collect();
        for member in &workspace.workspace_members {
            let package = packages[member.as_str()];
            let mut needs = vec![("the edition".to_owned(), EDITION)];
            needs.extend(features_of(package)?);
            needs.extend(
                closure(&workspace, member)
                    .iter()
                    .map(|id| packages[id])
                    .filter_map(|other| {
                        let version = other.rust_version.as_deref().and_then(version)?;
                        Some((format!("{} {}", other.name, other.version), version))
                    }),
            );
            offences.extend(judge(package, &needs));
        }
    }
    Ok(offences)
}

/// Compares what `package` states with what it `needs`.
fn judge(package: &Package, needs: &[(String, Version)]) -> Option<String> {
    let name = &package.name;
    let Some(stated) = package.rust_version.as_deref().and_then(version) else {
        return Some(format!("{name} states no rust-version"));
    };
    let (reason, needed) = needs.iter().max_by_key(|(_, version)| *version)?;
    let says = format!("{name} states Rust {}.{}", stated.0, stated.1);
    if stated != *needed {
        return Some(format!(
            "{says}, and needs {}.{} for {reason}",
            needed.0, needed.1
        ));
    }
    if OF_MODULE.contains(&name.as_str()) && stated > MODULE {
        return Some(format!(
            "{says}, and the module is built with {}.{}",
            MODULE.0, MODULE.1
        ));
    }
    None
}

/// The features that the source of `package` uses.
fn features_of(package: &Package) -> Result<Vec<(String, Version)>> {
    let mut found = Vec::new();
    let Some(folder) = package.manifest_path.parent() else {
        return Ok(found);
    };
    for part in ["src", "tests", "benches", "fuzz_targets"] {
        let folder = folder.join(part);
        if !folder.is_dir() {
            continue;
        }
        for file in files_below(&folder)? {
            // Crates lie within crates: `tests/lab` is no part of the package of `tests`.
            if file.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let path = folder.join(&file);
            let text = fs::read_to_string(&path).on("read", &path)?;
            found.extend(
                uses(&text).map(|(feature, version)| (format!("{feature} in {}", file.display()), version)),
            );
        }
    }
    Ok(found)
}

/// The features that a source text uses, outside comments.
fn uses(text: &str) -> impl Iterator<Item = (&'static str, Version)> {
    FEATURES.into_iter().filter_map(|(feature, mark, version)| {
        let code = |line: &str| line.split("//").next().is_some_and(|code| code.contains(mark));
        text.lines().any(code).then_some((feature, version))
    })
}

/// What the package `top` is built from, without itself and what only its tests use.
fn closure<'a>(workspace: &'a Metadata, top: &'a str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut pending = vec![top];
    while let Some(id) = pending.pop() {
        let node = workspace.resolve.nodes.iter().find(|node| node.id == id);
        for dependency in node.iter().flat_map(|node| &node.deps) {
            let built = dependency
                .dep_kinds
                .iter()
                .any(|kind| kind.kind.as_deref() != Some("dev"));
            if built && dependency.pkg != top && found.insert(dependency.pkg.as_str()) {
                pending.push(&dependency.pkg);
            }
        }
    }
    found
}

/// Reads `1.85` or `1.85.0`.
fn version(text: &str) -> Option<Version> {
    let mut parts = text.split('.').map(str::parse);
    let mut next = || parts.next().unwrap_or(Ok(0)).ok();
    Some((next()?, next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, stated: Option<&str>) -> Package {
        Package {
            id: name.to_owned(),
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: None,
            source: None,
            rust_version: stated.map(str::to_owned),
            manifest_path: "Cargo.toml".into(),
        }
    }

    #[test]
    fn a_version_is_neither_too_low_nor_too_high() {
        let needs = [
            ("the edition".to_owned(), (1, 85, 0)),
            ("x 1".to_owned(), (1, 88, 0)),
        ];
        assert_eq!(judge(&package("a", Some("1.88")), &needs), None);
        assert_eq!(judge(&package("a", Some("1.88.0")), &needs), None);
        for (stated, expected) in [
            (Some("1.87"), "needs 1.88 for x 1"),
            (Some("1.89"), "needs 1.88 for x 1"),
            (None, "states no rust-version"),
        ] {
            let seen = judge(&package("a", stated), &needs);
            assert!(
                seen.as_ref().is_some_and(|seen| seen.contains(expected)),
                "{seen:?}"
            );
        }
    }

    #[test]
    fn what_links_into_xen_needs_no_more_than_the_sysroot_has() {
        let needs = [("x 1".to_owned(), (1, 88, 0))];
        let seen = judge(&package("lacuna-core", Some("1.88")), &needs);
        assert!(seen.is_some_and(|seen| seen.contains("the module is built with 1.85")));
    }

    #[test]
    fn let_chains_are_seen_outside_comments_only() {
        let chain = "if a\n    && let Some(b) = c {";
        assert_eq!(uses(chain).count(), 1);
        assert_eq!(uses("// if a && let Some(b) = c").count(), 0);
    }
}
