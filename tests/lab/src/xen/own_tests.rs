//! Xen's own test programs, which its source carries for a dom0 (`tools/tests`).

use std::fs;
use std::path::PathBuf;

use super::{Source, Tools, jobs, place};
use crate::context::{Context, Staged};
use crate::error::{IoContext, Result};
use crate::image::step_name;
use crate::key::KeyBuilder;
use crate::process::run_logged;
use crate::sysroot::Sysroot;

/// Those that run in a dom0 and ask the hypervisor or the machine, by their folder. `vpci` and `x86_emulator`
/// test code outside of a hypervisor, and `depriv` a device model.
pub(crate) const PROGRAMS: &[&str] = &["cpu-policy", "paging-mempool", "resource", "tsx", "xenstore"];

/// Builds them in the tree in which the tools were built. Returns the directory with all of them.
pub(crate) fn own_tests(
    context: &Context,
    sysroot: &Sysroot,
    source: &Source,
    tools: &Tools,
) -> Result<PathBuf> {
    let programs = place(context, source.series, "own-tests");
    let mut key = KeyBuilder::new("xen/own-tests", 1).key(&tools.key);
    for name in PROGRAMS {
        key = key.text(name);
    }
    let name = step_name(source.series, "own-tests");
    context.step(&name, &key.finish(), |progress| {
        let log = context.step_log(&name);
        let staged = Staged::directory(programs.clone())?;
        for test in PROGRAMS {
            let folder = source.build.join("tools/tests").join(test);
            let inside = folder.to_string_lossy();
            run_logged(
                sysroot.command("/", &["make", &jobs(), "-C", &inside, "all"]),
                &log,
                progress,
            )?;
            let file = format!("test-{test}");
            let built = folder.join(&file);
            fs::copy(&built, staged.path.join(&file)).on("copy", &built)?;
        }
        staged.commit()
    })?;
    Ok(programs)
}
