//! Fetches the headers of a guest's kernel, by this machine's package manager, into a cache.

use std::path::Path;

use super::Observer;
use super::guest::{Guest, Live};
use crate::failure::{Cause, Class, Failure};
use crate::os::identify_linux;
use crate::os::linux::identify::{Identified, architecture};
use crate::os::linux::packages::{
    Archive, FetchError, Fetched, HeaderCache, KernelName, advice::what_to_fetch,
};
use crate::progress::Step;

/// Which kernel's headers are wanted.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// Those of the kernel that a guest runs.
    Guest(Guest),
    /// Those of a kernel that is named.
    Kernel {
        /// Its release, `uname -r`.
        release: String,
        /// What it is built for, in Debian's words; by the name of the release if left out.
        architecture: Option<&'static str>,
    },
}

/// Returns the kernel that is named, or that the guest named runs.
///
/// # Errors
/// No kernel was identified, or it has no name that packages have.
pub fn which_kernel<O: Observer + ?Sized>(wanted: &Wanted, observer: &mut O) -> Result<KernelName, Failure> {
    let named = |release: &str, architecture: &'static str| {
        KernelName::new(release, architecture).map_err(|error| Failure::plain(Class::NotFound, error))
    };
    let found: Identified = match wanted {
        Wanted::Kernel {
            release,
            architecture,
        } => {
            // Debian's names of 32-bit kernels end so.
            let is_32_bit = release.ends_with("-686") || release.ends_with("-686-pae");
            let usual = if is_32_bit { "i386" } else { "amd64" };
            return named(release, architecture.unwrap_or(usual));
        }
        Wanted::Guest(Guest::Domain(text)) => {
            let live = Live::open(text)?;
            let cpus = live.cpus()?;
            identify_linux(&mut live.memory()?, &cpus, None, observer)?
        }
        Wanted::Guest(Guest::Dump(file)) => {
            let mut dump = file.open(observer)?;
            let cpus = dump.cpus.clone();
            let found = identify_linux(&mut dump, &cpus, None, observer);
            dump.check_unharmed()?;
            found?
        }
    };
    named(&found.release, architecture(found.space.levels))
}

/// Fetches the headers of `kernel` into the folder `cache`, if they are not there already.
///
/// # Errors
/// What happened, and what to fetch by hand.
pub fn fetch<O: Observer + ?Sized>(
    kernel: &KernelName,
    archive: &Archive,
    cache: &Path,
    observer: &mut O,
) -> Result<Fetched, Failure> {
    observer.begin(Step::FetchHeaders);
    let fetched = HeaderCache::new(cache).fetch(kernel, archive, &mut |step| observer.describe(step));
    observer.end();
    fetched.map_err(|error| explain(&error, kernel, cache))
}

/// Returns what happened, and what to fetch by hand.
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
        FetchError::Unchecked { .. } => Failure::new(
            Class::Failed,
            error,
            "give the archive's keys with --keyring FILE: Ubuntu's are in its package ubuntu-keyring (usr/share/keyrings/ubuntu-archive-keyring.gpg), Debian's in debian-archive-keyring",
        )
        .because(Cause::NoLayout),
        FetchError::NoPackageManager(_) | FetchError::NotOffered { .. } | FetchError::Release(_) => {
            Failure::new(Class::NotFound, error, by_hand(kernel)).because(Cause::NoLayout)
        }
        FetchError::Unread { .. } => Failure::new(
            Class::Failed,
            error,
            format!(
                "see that this machine reaches them (apt goes through the proxy that http_proxy names), or {}",
                by_hand(kernel)
            ),
        )
        .because(Cause::NoLayout),
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
