//! Builds the hypervisor after each patch of the series: a series is applied, and bisected, patch by patch.

use std::fs;

use super::patches;
use super::series::Series;
use super::{apply, check_config, jobs, place, source, step_name};
use crate::context::{Context, Staged};
use crate::error::{IoContext, Result};
use crate::module::{self, Kind};
use crate::process::run_logged;
use crate::progress::{Progress, say};
use crate::sysroot::Sysroot;
use crate::tree::{copy_source, mirror};
use crate::variant::BASE_CONFIG;

/// The two configurations: without Lacuna, and with it as soon as the tree knows it.
const WITHOUT: &[&str] = &[
    "CONFIG_EXPERT=y",
    "CONFIG_UNSUPPORTED=y",
    "CONFIG_MEM_SHARING=y",
    "# CONFIG_DEBUG is not set",
];

/// Where a tree that knows `CONFIG_LACUNA` says so.
const KCONFIG: &str = "xen/arch/x86/Kconfig";

/// Builds every prefix of the patches for `series`, in both configurations, and stops at the first that does not build.
pub(crate) fn run(context: &Context, sysroot: &Sysroot, series: Series) -> Result<()> {
    let pristine = source::choose(context, sysroot, Some(series))?;
    let object = module::build(context, sysroot, Kind::Release)?;
    let staged = Staged::directory(place(context, series, "prefixes/patched"))?;
    copy_source(&pristine.directory, &staged.path, |_| true)?;
    let tree = place(context, series, "prefixes/tree");
    let name = step_name(series, "prefixes");
    let patches = patches::product(&context.repository, series)?;
    context.work(&name, |progress| {
        let log = context.step_log(&name);
        for (number, patch) in patches.iter().enumerate() {
            apply(sysroot, &staged.path, patch, &log, progress)?;
            mirror(&staged.path, &tree)?;
            let knows = fs::read_to_string(tree.join(KCONFIG)).on("read", tree.join(KCONFIG))?;
            let mut configurations = vec![("without", WITHOUT)];
            if knows.contains("config LACUNA") {
                configurations.push(("with", BASE_CONFIG));
            }
            for (label, config) in configurations {
                let objects = place(context, series, "prefixes").join(label);
                build(sysroot, &tree, &objects, config, &object, (&log, progress))?;
            }
            say(&format!(
                "lab: {} of {} build up to {name}",
                number + 1,
                patches.len()
            ));
        }
        Ok(())
    })?;
    crate::context::remove(&place(context, series, "prefixes"))
}

/// Builds one configuration. The module calls functions of later patches, so what the link does not find is let pass.
fn build(
    sysroot: &Sysroot,
    tree: &std::path::Path,
    objects: &std::path::Path,
    config: &[&str],
    object: &std::path::Path,
    (log, progress): (&std::path::Path, &Progress),
) -> Result<()> {
    fs::create_dir_all(objects).on("create", objects)?;
    let settings = objects.join(".config");
    fs::write(&settings, config.join("\n") + "\n").on("write", &settings)?;
    let xen = tree.join("xen");
    let out = format!("O={}", objects.display());
    run_logged(
        sysroot.command(&xen, &["make", &out, "olddefconfig"]),
        log,
        progress,
    )?;
    check_config(&settings, config)?;
    let module = format!("LACUNA_MODULE={}", object.display());
    let line = [
        "make",
        &out,
        &jobs(),
        &module,
        "LD=ld --unresolved-symbols=ignore-all",
    ];
    run_logged(sysroot.command(&xen, &line), log, progress)
}
