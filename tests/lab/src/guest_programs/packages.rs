//! Packages of the distribution's that the sysroot has not: downloaded and unpacked, not installed.

use std::fs;
use std::path::PathBuf;

use super::Workshop;
use crate::archive::{Archive, Kind, Limits, Runner, SUITES, entries};
use crate::context::{Staged, remove};
use crate::error::{IoContext, Result};
use crate::key::KeyBuilder;
use crate::process::run_logged;

/// The file with the packages' names and versions, in the directory that they are unpacked in.
pub(super) const LIST: &str = "packages";

/// Downloads the newest of each of `packages` that is served, unpacks them into one directory, and returns
/// that. What is there already is kept.
pub(super) fn unpacked(workshop: &Workshop, name: &str, packages: &[&str]) -> Result<PathBuf> {
    let (context, sysroot) = (workshop.context, workshop.sysroot);
    let root = context.cached("packages").join(name);
    let step = format!("packages/{name}");
    let mut key = KeyBuilder::new(&step, 1);
    for package in packages {
        key = key.text(package);
    }
    context.download(&step, &key.finish(), |progress| {
        // Of the sysroot's own release: its C library is the one that they find.
        let own: Vec<&str> = SUITES
            .iter()
            .copied()
            .filter(|suite| suite.starts_with(crate::sysroot::SUITE) && !suite.ends_with("-backports"))
            .collect();
        let archive = Archive::open(
            context,
            "packages",
            Runner::Sysroot(sysroot),
            &entries(context, &own, &[Kind::Binaries("amd64")])?,
            Limits::default(),
            progress,
        )?;
        let download = root.with_extension("download");
        fs::create_dir_all(&download).on("create", &download)?;
        let staged = Staged::directory(root.clone())?;
        let mut list = Vec::new();
        for package in packages {
            let chosen = archive.first_served(
                package,
                archive.binaries(|name| name == *package)?,
                &download,
                "fill the cache on a machine whose archive serves one, and move it here (docs/lab.md)",
                progress,
            )?;
            progress.line(&format!("lab: {}", chosen.candidate));
            list.push(format!("{}\n", chosen.candidate));
            for path in &chosen.paths {
                let line = [
                    "dpkg-deb",
                    "-x",
                    &path.to_string_lossy(),
                    &staged.path.to_string_lossy(),
                ];
                run_logged(sysroot.command("/", &line), &context.step_log(&step), progress)?;
            }
        }
        let stated = staged.path.join(LIST);
        fs::write(&stated, list.concat()).on("write", &stated)?;
        staged.commit()?;
        remove(&download)
    })?;
    Ok(root)
}
