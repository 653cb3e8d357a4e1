//! `lacuna profile fetch`: the headers of a guest's kernel, from this machine's package manager into a cache.

use serde_json::{Value, json};

use super::Out;
use super::cli::ProfileFetch;
use super::terminal::Terminal;
use crate::failure::Failure;
use crate::ops::fetch::{fetch, which_kernel};
use crate::os::linux::packages::Archive;

pub(super) fn run(arguments: &ProfileFetch, out: Out) -> Result<Value, Failure> {
    let mut terminal = Terminal::new(out);
    let kernel = which_kernel(&arguments.wanted()?, &mut terminal)?;
    out.line(format!("kernel      Linux {kernel}"));
    let archive = Archive {
        mirror: arguments.mirror.clone(),
        suite: arguments.suite.clone(),
        keyring: arguments.keyring.clone(),
    };
    let fetched = fetch(&kernel, &archive, &arguments.header_cache, &mut terminal)?;
    if fetched.packages.is_empty() {
        out.line("cache       it was here already");
    } else {
        out.line(format!("archive     {}", fetched.archive));
        for package in &fetched.packages {
            out.line(format!("package     {} {}", package.name, package.version));
        }
    }
    out.line(format!("headers     {}", fetched.headers.display()));
    Ok(json!({
        "release": kernel.release(),
        "arch": kernel.architecture(),
        "headers": fetched.headers,
        "cached": fetched.packages.is_empty(),
        "archive": Some(&fetched.archive).filter(|archive| !archive.is_empty()),
        "packages": fetched.packages.iter().map(|package| json!({
            "name": package.name, "version": package.version,
        })).collect::<Vec<_>>(),
    }))
}
