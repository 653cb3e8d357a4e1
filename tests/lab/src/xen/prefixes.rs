//! Builds the hypervisor after each patch of the series: a series is applied, and bisected, patch by patch.

use std::fs;

use super::compile::Compile;
use super::patches;
use super::series::Series;
use super::{apply, place, source, step_name};
use crate::context::{Context, Staged};
use crate::error::{IoContext, Result};
use crate::key::KeyBuilder;
use crate::module::{self, Kind};
use crate::progress::say;
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

/// Builds every prefix of the patches for `series`, in both configurations, and stops at the first that does
/// not build.
///
/// A prefix that was built before, from the same source with the same patches, is not built again: what
/// changes late in the series costs only what comes after it, and a run that was interrupted goes on.
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
        // The core calls functions that later patches bring.
        let stand_ins = place(context, series, "prefixes/core");
        let object = module::with_stand_ins(sysroot, &object, &stand_ins, &log, progress)?;
        let mut prefix = KeyBuilder::new("xen/prefix", 1)
            .key(&sysroot.key)
            .key(&pristine.key());
        for (number, patch) in patches.iter().enumerate() {
            prefix = prefix.file(&patch.file)?;
            apply(sysroot, &staged.path, patch, &log, progress)?;
            mirror(&staged.path, &tree)?;
            let knows = fs::read_to_string(tree.join(KCONFIG)).on("read", tree.join(KCONFIG))?;
            let prefix = prefix.clone().finish();
            let mut configurations = vec![("without", WITHOUT)];
            if knows.contains("config LACUNA") {
                configurations.push(("with", BASE_CONFIG));
            }
            for (label, config) in configurations {
                let objects = place(context, series, "prefixes").join(label);
                let compile = Compile {
                    sysroot,
                    tree: &tree.join("xen"),
                    objects: &objects,
                    config,
                    module: &object,
                };
                let step = format!("{name}/{:02}-{label}", number + 1);
                let mut key = KeyBuilder::new("xen/prefix/built", 1).key(&prefix);
                for line in config {
                    key = key.text(line);
                }
                context.step(&step, &key.finish(), |progress| {
                    compile.run(&context.step_log(&step), progress)
                })?;
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
