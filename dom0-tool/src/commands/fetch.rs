//! `lacuna profile fetch`: the headers of a guest's kernel, from this machine's package manager into a cache.

use std::path::Path;

use serde_json::{Value, json};

use super::{Out, progress};
use crate::commands::cli::ProfileFetch;
use crate::failure::{Cause, Class, Failure};
use crate::ops::guest::{cpus_of, identify_kernel, open_domain, open_dump};
use crate::os::linux::identify::{Identified, architecture};
use crate::os::linux::packages::{Archive, FetchError, HeaderCache, KernelName, advice::what_to_fetch};

pub(super) fn run(arguments: &ProfileFetch, out: Out) -> Result<Value, Failure> {
    let kernel = which_kernel(arguments, out)?;
    out.line(format!("kernel      Linux {kernel}"));
    let archive = Archive {
        mirror: arguments.mirror.clone(),
        suite: arguments.suite.clone(),
    };
    let cache = HeaderCache::new(&arguments.header_cache);
    let spinner = progress::spinner("looking for the headers");
    let mut tell = |step: &str| spinner.set_message(step.to_owned());
    let fetched = cache.fetch(&kernel, &archive, &mut tell);
    spinner.finish_and_clear();
    let fetched = fetched.map_err(|error| explain(&error, &kernel, &arguments.header_cache))?;
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

/// The kernel that is named, or that the guest named runs.
fn which_kernel(arguments: &ProfileFetch, out: Out) -> Result<KernelName, Failure> {
    if let Some(release) = &arguments.release {
        let architecture = match arguments.arch {
            Some(crate::commands::cli::GuestArch::I386) => "i386",
            // Debian's names of 32-bit kernels end so.
            None if release.ends_with("-686") || release.ends_with("-686-pae") => "i386",
            Some(crate::commands::cli::GuestArch::Amd64) | None => "amd64",
        };
        return KernelName::new(release, architecture)
            .map_err(|error| Failure::plain(Class::NotFound, error));
    }
    let found: Identified = match (&arguments.domain, &arguments.dump.dump) {
        (Some(domain), _) => {
            let live = open_domain(domain)?;
            let cpus = cpus_of(&live.engine.registers()?);
            identify_kernel(&mut live.memory()?, &cpus)?
        }
        (None, Some(file)) => {
            let mut memory = open_dump(file, &arguments.dump, out)?;
            let cpus = memory.cpus.clone();
            identify_kernel(&mut memory, &cpus)?
        }
        // The command line's rules leave no other case.
        _ => return Err(Failure::plain(Class::Failed, "no guest was named")),
    };
    KernelName::new(&found.release, architecture(found.space.levels))
        .map_err(|error| Failure::plain(Class::NotFound, error))
}

/// What happened, and what to fetch by hand.
fn explain(error: &FetchError, kernel: &KernelName, cache: &Path) -> Failure {
    match error {
        FetchError::Io { .. } => Failure::new(
            Class::Failed,
            error,
            format!(
                "name another folder with --header-cache (now {}), or run as root",
                cache.display()
            ),
        ),
        FetchError::NoPackageManager(_) | FetchError::NotOffered { .. } | FetchError::Release(_) => {
            Failure::new(Class::NotFound, error, by_hand(kernel)).because(Cause::NoLayout)
        }
        FetchError::Program { .. } | FetchError::Headers(_) | FetchError::OtherKernel { .. } => {
            Failure::new(Class::Failed, error, by_hand(kernel)).because(Cause::NoLayout)
        }
    }
}

fn by_hand(kernel: &KernelName) -> String {
    let mut text = String::from(
        "another release of a distribution: --suite NAME, another archive: --mirror ADDRESS. By hand:",
    );
    for step in what_to_fetch(kernel) {
        text.push_str("\n  - ");
        text.push_str(&step);
    }
    text
}
