//! The guest's disk and CD: files of the machine's, which the emulated machine has as `NVMe` disks, and
//! dom0's device model reads from there.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

use object::{Object, ObjectSection};

use super::Options;
use crate::emulator::Drive;
use crate::error::{Error, IoContext, Result};
use crate::kernels::{self, plain_module};
use crate::setup::Stage;

/// The driver of the disks.
const DRIVER: &str = "nvme";

/// The drives of a trial.
#[derive(Default)]
pub(super) struct Drives {
    /// The guest's disk, by the serial number that dom0 finds it by.
    pub(super) disk: Option<String>,
    /// Its CD.
    pub(super) cdrom: Option<String>,
    /// What the emulated machine gets.
    pub(super) machine: Vec<Drive>,
}

/// The drives that the user names; `files` gets what dom0 needs for them.
pub(super) fn of(stage: &Stage, options: &Options, files: &mut Vec<(String, PathBuf)>) -> Result<Drives> {
    let mut drives = Drives::default();
    let mut add = |file: &Option<PathBuf>| -> Result<Option<String>> {
        let Some(file) = file else { return Ok(None) };
        let file = fs::canonicalize(file).on("find", file)?;
        let serial = Drive::serial(drives.machine.len());
        drives.machine.push(Drive { file });
        Ok(Some(serial))
    };
    let (disk, cdrom) = (add(&options.disk)?, add(&options.cdrom)?);
    (drives.disk, drives.cdrom) = (disk, cdrom);
    if !drives.machine.is_empty() {
        files.extend(drivers(stage)?);
    }
    Ok(drives)
}

/// The driver and what it needs, in names that have dom0 load them in their order, after Xen's own.
fn drivers(stage: &Stage) -> Result<Vec<(String, PathBuf)>> {
    let (context, sysroot) = (stage.context(), &stage.sysroot);
    let (root, release) = kernels::with_disks(context, sysroot, kernels::GUESTS[0])?;
    if release != stage.dom0_release() {
        return Err(Error::Unexpected {
            what: "the archive's kernel, for its drivers of disks".to_owned(),
            expected: format!("{}, which is dom0's", stage.dom0_release()),
            seen: format!(
                "{release}; remove the cache's `kernels` for a new dom0, or try without --disk and --cdrom"
            ),
        });
    }
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    let mut wanted = VecDeque::from([DRIVER.to_owned()]);
    while let Some(name) = wanted.pop_front() {
        let module = plain_module(context, sysroot, &root, &release, &name)?;
        wanted.extend(needs(&module)?);
        // What is needed again goes before all that need it.
        found.retain(|(other, _)| *other != name);
        found.push((name, module));
    }
    Ok(found
        .into_iter()
        .rev()
        .enumerate()
        .map(|(order, (name, module))| (format!("modules/9{order:02}-{name}.ko"), module))
        .collect())
}

/// The modules that a module says that it needs (`depends=` in `.modinfo`).
fn needs(module: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(module).on("read", module)?;
    let damaged = |seen: String| Error::Unexpected {
        what: module.display().to_string(),
        expected: "a kernel module".to_owned(),
        seen,
    };
    let file = object::File::parse(&*bytes).map_err(|error| damaged(error.to_string()))?;
    let section = file
        .section_by_name(".modinfo")
        .ok_or_else(|| damaged("no .modinfo".to_owned()))?;
    let words = section.data().map_err(|error| damaged(error.to_string()))?;
    Ok(listed(&String::from_utf8_lossy(words)))
}

fn listed(words: &str) -> Vec<String> {
    let depends = words.split('\0').find_map(|word| word.strip_prefix("depends="));
    let names = depends.unwrap_or_default().split(',');
    names
        .filter(|name| !name.is_empty())
        .map(ToOwned::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::listed;

    #[test]
    fn a_module_says_what_it_needs() {
        assert_eq!(
            listed("license=GPL\0depends=nvme-core,dh_generic\0name=nvme\0"),
            ["nvme-core", "dh_generic"]
        );
        assert!(listed("depends=\0name=crc64\0").is_empty());
    }
}
