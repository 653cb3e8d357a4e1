//! What the crates of others may be: their licences, where they come from, and which are banned.
//!
//! The rules are those of `cargo deny check licenses bans sources`, read from the same files: `deny.toml` for
//! the host's crates and the fuzz targets, `xen-module/deny.toml` for what links into Xen. That program takes
//! longer to build than all gates together, so this looks at the same lists by itself. It knows the keys that
//! those files use, and refuses others. Advisories are not looked at: they need a database that is no part of
//! any registry.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::licence::is_satisfied;
use super::{MANIFESTS, Package, metadata};
use crate::error::{Error, IoContext, Result};

/// Which rules hold for the workspace of a manifest.
fn rules_for(manifest: &str) -> &'static str {
    if manifest.starts_with("xen-module") {
        "xen-module/deny.toml"
    } else {
        "deny.toml"
    }
}

/// A `deny.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    /// Which platforms are looked at; [`metadata`] asks for the same one.
    #[expect(dead_code, reason = "cargo-deny's")]
    graph: toml::Table,
    licenses: Licences,
    bans: Bans,
    sources: Sources,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Licences {
    allow: Vec<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

/// Licences that a single crate may have.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Bans {
    #[expect(dead_code, reason = "cargo-deny's")]
    multiple_versions: String,
    deny: Vec<Banned>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Sources {
    unknown_registry: String,
    unknown_git: String,
    /// Registries beside cargo's own.
    #[serde(default)]
    allow_registry: Vec<String>,
}

/// What is against the rules in any of the workspaces.
pub(super) fn offences(repository: &Path) -> Result<Vec<String>> {
    let mut offences = Vec::new();
    for manifest in MANIFESTS {
        let file = rules_for(manifest);
        let path = repository.join(file);
        let text = fs::read_to_string(&path).on("read", &path)?;
        let rules: Rules = toml::from_str(&text).map_err(|error| Error::Unexpected {
            what: file.to_owned(),
            expected: "the keys that tests/lab/src/gates/crates.rs knows".to_owned(),
            seen: error.to_string(),
        })?;
        let packages = metadata(repository, manifest)?.packages;
        offences.extend(judge(&rules, file, &packages));
    }
    offences.sort();
    offences.dedup();
    Ok(offences)
}

/// The registry from which most packages come: cargo's own, which needs no naming.
fn usual_registry(packages: &[Package]) -> Option<&str> {
    let mut counts = BTreeMap::new();
    for source in packages.iter().filter_map(|package| package.source.as_deref()) {
        if let Some(registry) = source.strip_prefix("registry+") {
            *counts.entry(registry).or_insert(0_u32) += 1;
        }
    }
    counts
        .into_iter()
        .max_by_key(|(_, count)| *count)
        .map(|(registry, _)| registry)
}

/// What of `packages` is against `rules`, which come from `file`.
fn judge(rules: &Rules, file: &str, packages: &[Package]) -> Vec<String> {
    let mut offences = Vec::new();
    let usual = usual_registry(packages);
    if rules.sources.unknown_registry != "deny" || rules.sources.unknown_git != "deny" {
        offences.push(format!("{file}: unknown sources are to be denied"));
    }
    let mut unused: BTreeMap<&str, &str> = rules
        .licenses
        .exceptions
        .iter()
        .map(|exception| (exception.name.as_str(), file))
        .collect();
    for package in packages {
        let name = format!("{file}: {} {}", package.name, package.version);
        let exceptions: Vec<&String> = rules
            .licenses
            .exceptions
            .iter()
            .filter(|exception| exception.name == package.name)
            .flat_map(|exception| &exception.allow)
            .collect();
        unused.remove(package.name.as_str());
        let allows = |licence: &str| {
            rules.licenses.allow.iter().any(|allowed| allowed == licence)
                || exceptions.iter().any(|allowed| *allowed == licence)
        };
        match &package.license {
            None => offences.push(format!("{name} states no licence")),
            Some(licence) => match is_satisfied(licence, &allows) {
                Ok(true) => {}
                Ok(false) => offences.push(format!("{name} has the licence {licence}, which is not allowed")),
                Err(error) => offences.push(format!("{name} has the licence {licence}: {error}")),
            },
        }
        if let Some(banned) = rules.bans.deny.iter().find(|banned| banned.name == package.name) {
            offences.push(format!("{name} is banned: {}", banned.reason));
        }
        if let Some(source) = &package.source {
            let registry = source.strip_prefix("registry+");
            let is_listed = |known: &String| Some(known.as_str()) == registry;
            let is_known = registry.is_some() && registry == usual;
            if !is_known && !rules.sources.allow_registry.iter().any(is_listed) {
                offences.push(format!("{name} comes from {source}"));
            }
        }
    }
    // Two workspaces share a file; an exception that one of them does not need may serve the other.
    if file != "deny.toml" {
        offences.extend(
            unused
                .keys()
                .map(|name| format!("{file}: the exception for {name} is not used")),
        );
    }
    offences
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Package, Rules, judge};

    const RULES: &str = r#"
        graph = {}
        licenses = { allow = ["MIT"], exceptions = [{ crate = "odd", allow = ["Zlib"] }] }
        bans = { multiple-versions = "allow", deny = [{ crate = "bad", reason = "it is" }] }
        sources = { unknown-registry = "deny", unknown-git = "deny" }
    "#;

    fn package(name: &str, licence: &str, source: &str) -> Package {
        Package {
            id: name.to_owned(),
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: (!licence.is_empty()).then(|| licence.to_owned()),
            source: (!source.is_empty()).then(|| source.to_owned()),
            rust_version: None,
            manifest_path: "Cargo.toml".into(),
        }
    }

    #[test]
    fn licences_sources_and_bans_are_told_apart() {
        let rules: Rules = toml::from_str(RULES).unwrap();
        let good = [
            package("fine", "MIT OR Zlib", "registry+https://good"),
            package("odd", "Zlib", ""),
        ];
        assert_eq!(judge(&rules, "x/deny.toml", &good), Vec::<String>::new());
        for (other, expected) in [
            (package("other", "Zlib", ""), "which is not allowed"),
            (package("none", "", ""), "states no licence"),
            (package("bad", "MIT", ""), "is banned: it is"),
            (
                package("far", "MIT", "git+https://good"),
                "comes from git+https://good",
            ),
        ] {
            let seen = judge(&rules, "x/deny.toml", &[other, package("odd", "MIT", "")]);
            assert!(seen.len() == 1 && seen[0].contains(expected), "{seen:?}");
        }
    }

    #[test]
    fn a_second_registry_is_named_unless_the_rules_list_it() {
        let packages = [
            package("a", "MIT", "registry+https://good"),
            package("b", "MIT", "registry+https://good"),
            package("c", "MIT", "registry+https://other"),
            package("odd", "MIT", ""),
        ];
        let rules: Rules = toml::from_str(RULES).unwrap();
        let seen = judge(&rules, "x/deny.toml", &packages);
        assert!(seen.len() == 1 && seen[0].contains("https://other"), "{seen:?}");
        let listed = RULES.replace("unknown-git", "allow-registry = [\"https://other\"], unknown-git");
        let rules: Rules = toml::from_str(&listed).unwrap();
        assert_eq!(judge(&rules, "x/deny.toml", &packages), Vec::<String>::new());
    }

    #[test]
    fn an_exception_that_nothing_needs_is_named() {
        let rules: Rules = toml::from_str(RULES).unwrap();
        let seen = judge(&rules, "x/deny.toml", &[package("fine", "MIT", "")]);
        assert!(
            seen.len() == 1 && seen[0].contains("exception for odd"),
            "{seen:?}"
        );
    }

    #[test]
    fn a_key_that_is_not_known_is_refused() {
        let text = RULES.replace("multiple-versions", "some-key = 1, multiple-versions");
        assert!(toml::from_str::<Rules>(&text).is_err());
    }
}
