//! A guest with Python, as the sysroot has it, and a web shop with its customers.

use std::fs;
use std::path::{Path, PathBuf};

use lacuna_guest::programs::{PYTHON, SHOP, Workload};

use super::Workshop;
use crate::error::{Error, IoContext, Result};
use crate::key::KeyBuilder;

/// The shop and its customers.
const PROGRAM: &str = include_str!("../../programs/shop.py");
/// Lists the files of Python and its own library, in the version that the sysroot has. The packages' own list
/// leaves out what Python makes when it runs.
const FILES: &str = "version=$(basename $(readlink -f /usr/bin/python3)) && dpkg-query --listfiles \
    lib$version-minimal $version-minimal lib$version-stdlib | grep -E \"^/usr/(bin|lib)/$version(/|\\$)\"";
/// The mixes.
const MIXES: [Workload; 3] = [Workload::Banking, Workload::Ecommerce, Workload::Support];

/// Makes it, and returns where it is.
pub(super) fn guest(workshop: &Workshop) -> Result<PathBuf> {
    let key = KeyBuilder::new("guest/shop", 1).text(PROGRAM).text(FILES);
    workshop.guest("shop", key, |guest, made| {
        let program = made.join("shop.py");
        fs::write(&program, PROGRAM).on("write", &program)?;
        guest.bytes(SHOP, PROGRAM.as_bytes())?;
        for mix in MIXES {
            let expected = visit(workshop, mix, &program, made)?;
            guest.bytes(mix.expected(), expected.as_bytes())?;
        }
        for name in workshop.run(FILES, &[])?.lines() {
            let from = workshop.sysroot.root.join(name.trim_start_matches('/'));
            if !from.is_file() {
                continue;
            }
            guest.file(name, &from)?;
            let is_library = Path::new(name).extension().is_some_and(|kind| kind == "so");
            if let Some(python) = name.strip_prefix("/usr/bin/") {
                guest.archive.link(PYTHON.trim_start_matches('/'), python)?;
                guest.libraries.extend(workshop.libraries(name)?);
            } else if is_library {
                guest.libraries.extend(workshop.libraries(name)?);
            }
        }
        Ok(())
    })
}

/// What a visit comes to, in the sysroot.
fn visit(workshop: &Workshop, mix: Workload, program: &Path, made: &Path) -> Result<String> {
    let name = mix.mix().ok_or(Error::Ended)?;
    let files = made.join(name);
    let script = "python3 \"$1\" expect \"$2\" \"$3\" && rm -r \"$2\"";
    let (program, files) = (program.to_string_lossy(), files.to_string_lossy());
    workshop.run(script, &[&program, &files, name])
}
