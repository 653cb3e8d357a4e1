//! What a machine without a network needs in the cache, and whether it is there.

use std::fmt::Write;
use std::process::Command;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::kernels;
use crate::matrix;
use crate::process::{is_installed, output};
use crate::sysroot;
use crate::xen::series::{SUPPORTED, Series};
use crate::xen::source::held;

/// Who needs something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    /// The demonstration, and everything else.
    Demo,
    /// A plain test run.
    Tests,
}

/// Something that is downloaded.
struct Need {
    what: String,
    by: For,
    is_there: bool,
}

/// Prints what is there and what is missing; fails when something is missing.
pub(crate) fn report(context: &Context) -> Result<()> {
    let needs = needs(context);
    print!("{}", rendered(&needs));
    let missing = needs.iter().filter(|need| !need.is_there).count();
    if missing == 0 {
        Ok(())
    } else {
        Err(Error::Missing {
            missing,
            total: needs.len(),
        })
    }
}

fn needs(context: &Context) -> Vec<Need> {
    let need = |what: &str, by, is_there| Need {
        what: what.to_owned(),
        by,
        is_there,
    };
    let mut needs = Vec::new();
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(&context.repository)
        .args(["fetch", "--locked", "--offline"]);
    let crates = output(cargo, &context.step_log("offline")).is_ok();
    needs.push(need(
        "crates of the workspace, in cargo's own cache",
        For::Demo,
        crates,
    ));
    let key = sysroot::key();
    needs.push(need(
        "sysroot: Debian 13 with compilers and QEMU",
        For::Demo,
        context.is_done("sysroot", &key),
    ));
    let sources: Vec<&str> = SUPPORTED
        .into_iter()
        .filter(|series| held(context, *series).is_some())
        .map(Series::name)
        .collect();
    let source = match (&context.options.xen_source, &*sources) {
        (Some(given), _) => format!("a source of Xen: given, {}", given.told()),
        (None, []) => "a source of Xen (or --xen-source)".to_owned(),
        (None, held) => format!("a source of Xen: {}", held.join(", ")),
    };
    let has_source = context.options.xen_source.is_some() || !sources.is_empty();
    needs.push(need(&source, For::Demo, has_source));
    let crates = context.cached("sysroot/root/.cargo/registry/cache");
    needs.push(need(
        "crates of the Xen module, in the sysroot",
        For::Demo,
        crates.is_dir(),
    ));
    for (index, wanted) in kernels::GUESTS.iter().enumerate() {
        let (name, key) = kernels::step(*wanted);
        let by = if index == 0 { For::Demo } else { For::Tests };
        needs.push(need(
            &format!("Linux {} and its headers", wanted.series),
            by,
            context.is_done(&name, &key),
        ));
    }
    for case in matrix::quick_cases() {
        let (name, key) = matrix::kernel::step(case.flavour);
        let what = format!(
            "Linux of {} ({}) and its headers",
            case.flavour.suite, case.flavour.name
        );
        needs.push(need(&what, For::Tests, context.is_done(&name, &key)));
    }
    for program in ["valgrind", "clang", "lld-link"] {
        needs.push(need(
            &format!("{program}, installed"),
            For::Tests,
            is_installed(program),
        ));
    }
    needs
}

fn rendered(needs: &[Need]) -> String {
    let mut text = String::new();
    for need in needs {
        let state = if need.is_there { "there  " } else { "MISSING" };
        let by = match need.by {
            For::Demo => "demo, test",
            For::Tests => "test",
        };
        let _ = writeln!(text, "  {state}  {:<10}  {}", by, need.what);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_stands_out() {
        let need = |is_there| Need {
            what: "a kernel".to_owned(),
            by: For::Tests,
            is_there,
        };
        let text = rendered(&[need(true), need(false)]);
        assert_eq!(text.matches("MISSING").count(), 1);
        assert_eq!(text.lines().count(), 2);
    }
}
