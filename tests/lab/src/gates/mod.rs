//! The gates: checks of the source itself, which need neither a guest nor a build of Xen.
//!
//! `xen-module` and `fuzz` are no members of the workspace, so each check that cargo makes of a workspace
//! names them by their manifests. They share the workspace's target directory: dependencies with the same
//! version are built once.

mod crates;
mod licence;
mod names;
mod versions;

use std::path::Path;
use std::process::Command;

use serde::Deserialize;

use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::suite::HostTest;

/// The manifests of the three workspaces of the repository: the host's crates, and the two that stand alone.
const MANIFESTS: [&str; 3] = ["Cargo.toml", "xen-module/Cargo.toml", "fuzz/Cargo.toml"];

/// The gates by name.
///
/// `xen-module` is linted and documented for the host's own target: the machine's toolchain has no other. Its
/// release profile aborts on a panic, which a crate without `std` needs there.
pub(crate) const GATES: &[(&str, HostTest)] = &[
    (
        "host/format-xen-module",
        HostTest::Program(&[
            "cargo",
            "fmt",
            "--check",
            "--manifest-path",
            "xen-module/Cargo.toml",
        ]),
    ),
    (
        "host/format-fuzz",
        HostTest::Program(&["cargo", "fmt", "--check", "--manifest-path", "fuzz/Cargo.toml"]),
    ),
    (
        "host/lint-xen-module",
        HostTest::Program(&[
            "cargo",
            "clippy",
            "--locked",
            "--manifest-path",
            "xen-module/Cargo.toml",
            "--target-dir",
            "target",
            "--release",
            "--features",
            "mutants",
            "--",
            "--deny",
            "warnings",
        ]),
    ),
    (
        "host/lint-fuzz",
        HostTest::Program(&[
            "cargo",
            "clippy",
            "--locked",
            "--manifest-path",
            "fuzz/Cargo.toml",
            "--target-dir",
            "target",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ]),
    ),
    (
        "host/rustdoc",
        HostTest::Program(&[
            "env",
            "RUSTDOCFLAGS=--deny warnings",
            "cargo",
            "doc",
            "--locked",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ]),
    ),
    // Left out of the one above, since the library has the same name.
    (
        "host/rustdoc-command",
        HostTest::Program(&[
            "env",
            "RUSTDOCFLAGS=--deny warnings",
            "cargo",
            "doc",
            "--locked",
            "--package",
            "lacuna",
            "--bin",
            "lacuna",
            "--no-deps",
            "--document-private-items",
        ]),
    ),
    (
        "host/rustdoc-xen-module",
        HostTest::Program(&[
            "env",
            "RUSTDOCFLAGS=--deny warnings",
            "cargo",
            "doc",
            "--locked",
            "--manifest-path",
            "xen-module/Cargo.toml",
            "--target-dir",
            "target",
            "--release",
            "--no-deps",
            "--document-private-items",
        ]),
    ),
    ("host/names", HostTest::Gate(Gate::Names)),
    ("host/rust-versions", HostTest::Gate(Gate::Versions)),
    ("host/crates", HostTest::Gate(Gate::Crates)),
];

/// A gate that is no program of cargo's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Files, tests and items that comments and documents name exist.
    Names,
    /// Each crate states the Rust version that it needs.
    Versions,
    /// Licences, sources and banned crates are as the `deny.toml` files have it.
    Crates,
}

impl Gate {
    /// Says what is looked at.
    pub(crate) const fn what(self) -> &'static str {
        match self {
            Self::Names => "names in comments and documents",
            Self::Versions => "rust-version of each crate",
            Self::Crates => "licences, sources and bans (deny.toml)",
        }
    }
}

/// Runs `gate`; `tests` are the names of all tests there are.
pub(crate) fn run(context: &Context, gate: Gate, tests: &[String]) -> Result<()> {
    let offences = match gate {
        Gate::Names => names::offences(&context.repository, tests)?,
        Gate::Versions => versions::offences(&context.repository)?,
        Gate::Crates => crates::offences(&context.repository)?,
    };
    if offences.is_empty() {
        return Ok(());
    }
    Err(Error::Unexpected {
        what: gate.what().to_owned(),
        expected: "nothing to object to".to_owned(),
        seen: format!("{}:\n{}", offences.len(), offences.join("\n")),
    })
}

/// What `cargo metadata` says of a workspace, as far as it is used here.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
    resolve: Resolve,
}

/// A package: of the workspace, or one that it depends on.
#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    /// Where it comes from; none for a path of this repository.
    source: Option<String>,
    rust_version: Option<String>,
    manifest_path: std::path::PathBuf,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

/// What a package depends on.
#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Debug, Deserialize)]
struct DependencyKind {
    /// `dev`, `build`, or none for what the package itself is linked with.
    kind: Option<String>,
}

/// Asks cargo about the workspace of `manifest`, for the machine's own platform: what is built on others is
/// not used.
fn metadata(repository: &Path, manifest: &str) -> Result<Metadata> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(repository).args([
        "metadata",
        "--locked",
        "--format-version",
        "1",
        "--filter-platform",
        "x86_64-unknown-linux-gnu",
        "--manifest-path",
        manifest,
    ]);
    let ran = cargo.output().map_err(|source| Error::Start {
        program: "cargo".to_owned(),
        source,
    })?;
    if !ran.status.success() {
        return Err(Error::Unexpected {
            what: format!("cargo metadata for {manifest}"),
            expected: "success".to_owned(),
            seen: String::from_utf8_lossy(&ran.stderr).into_owned(),
        });
    }
    serde_json::from_slice(&ran.stdout)
        .map_err(std::io::Error::from)
        .on("read cargo's metadata of", manifest)
}
