//! Checks for each guest whether Lacuna can work for it, and where its kernel's layout would come from.

use std::path::PathBuf;

use lacuna_core::abi::State;

use super::{Check, Verdict};
use crate::failure::{Cause, Class, Failure};
use crate::ops::guest::Live;
use crate::ops::host::{GuestName, ThisHost, Xen};
use crate::ops::migration;
use crate::os::linux::layout::Layout;
use crate::os::linux::packages::{HeaderCache, KernelName};
use crate::os::linux::stub::headers::HeaderTree;
use crate::os::linux::stub::toolchain::Compiler;
use crate::os::{Kernel, Sources};
use crate::progress::Silent;
use crate::xen::privcmd::DomainInfo;

/// Where the layout of a kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum LayoutOrigin {
    /// A file.
    Layout(PathBuf),
    /// Headers, from which the stub is compiled.
    Headers(PathBuf),
    /// The guest's own memory alone.
    Nowhere,
}

/// Returns where `lacuna attach` would take the layout of the kernel `release` from.
fn layout_origin(sources: &Sources, release: &str) -> LayoutOrigin {
    let layout = Layout::file_in(&sources.layouts, release);
    if layout.is_file() {
        return LayoutOrigin::Layout(layout);
    }
    let cache = HeaderCache::new(&sources.header_cache);
    let fetched = ["amd64", "i386"]
        .into_iter()
        .filter_map(|architecture| Some(cache.place(&KernelName::new(release, architecture).ok()?)));
    HeaderTree::usual_places(release)
        .into_iter()
        .chain(fetched)
        .find(|folder| folder.is_dir())
        .map_or(LayoutOrigin::Nowhere, LayoutOrigin::Headers)
}

/// Checks each guest.
pub(super) fn check_guests(host: &mut ThisHost, sources: &Sources) -> Vec<Check> {
    match host.guests() {
        Ok(guests) if guests.is_empty() => vec![Check::good("guests", "there are none")],
        Ok(guests) => guests
            .iter()
            .map(|seen| check_guest(host, seen, sources))
            .collect(),
        Err(failure) => vec![Check::failed("guests", Verdict::Bad, failure)],
    }
}

fn check_guest(host: &mut ThisHost, seen: &GuestName, sources: &Sources) -> Check {
    let subject = match &seen.name {
        Some(name) => format!("guest {} ({name})", seen.domain),
        None => format!("guest {}", seen.domain),
    };
    let found = host
        .state(seen.domain)
        .and_then(|state| Ok((state, Live::open(&seen.domain.to_string())?)));
    let (state, live) = match found {
        Ok(found) => found,
        // The guest is gone since it was listed, or a PV guest. Neither is an error.
        Err(failure) => return Check::failed(subject, Verdict::Warning, failure),
    };
    if State::from_code(state.statistics.state) == Some(State::Admitted) {
        return Check::good(
            subject,
            format!("attached; {} MiB given back", state.given_back() / 256),
        );
    }
    if live.domain.info.flags & DomainInfo::HAP == 0 {
        return Check::wrong(
            subject,
            Verdict::Warning,
            "it runs without hardware-assisted paging",
            "start it with hap=1, the default, on a machine that has it",
        );
    }
    let kernel = live.with_kernel(&Sources::default(), &mut Silent, |_, kernel, _, _| {
        Ok(kernel.clone())
    });
    match kernel {
        Ok(kernel) => not_attached(subject, &live, &kernel, sources),
        Err(failure) => Check::failed(subject, Verdict::Warning, failure),
    }
}

/// Checks a guest whose kernel is known and that has no profile in use.
fn not_attached(subject: String, live: &Live, kernel: &Kernel, sources: &Sources) -> Check {
    if let Some(reason) = migration::refusal(&live.domain.info) {
        let remedy = format!(
            "`lacuna attach {}` tries again and says what to do",
            live.domain.id.get()
        );
        return Check::wrong(subject, Verdict::Warning, format!("refused: {reason}"), remedy);
    }
    match kernel {
        Kernel::Linux(kernel) => match layout_check(
            &kernel.release,
            layout_origin(sources, &kernel.release),
            Compiler::is_here,
        ) {
            Ok(what) => Check::wrong(
                subject,
                Verdict::Warning,
                format!("not attached; {what}"),
                "`lacuna attach`, or start lacunad: `systemctl enable --now lacunad`",
            ),
            Err(failure) => Check::failed(subject, Verdict::Warning, failure),
        },
        Kernel::Windows(_) => Check::wrong(
            subject,
            Verdict::Warning,
            "not attached; it runs Windows",
            "`lacuna attach`, which fetches what is known of its kernel (docs/windows.md)",
        ),
    }
}

/// Describes where the layout of a kernel comes from.
fn layout_check(
    release: &str,
    from: LayoutOrigin,
    is_here: impl Fn(Compiler) -> bool,
) -> Result<String, Failure> {
    match from {
        LayoutOrigin::Layout(file) => Ok(format!("the layout of {release} is {}", file.display())),
        LayoutOrigin::Headers(folder) if [Compiler::Gcc, Compiler::Clang].into_iter().any(is_here) => Ok(format!(
            "the headers of {release} are {}",
            folder.display()
        )),
        LayoutOrigin::Headers(folder) => Err(Failure::new(
            Class::NotFound,
            format!(
                "the headers of {release} are {}, but there is neither gcc nor clang to compile with",
                folder.display()
            ),
            "install gcc, or make the layout on another machine: `lacuna profile build --headers DIR --out FILE` (docs/install.md)",
        )
        .because(Cause::NoLayout)),
        LayoutOrigin::Nowhere => Ok(format!(
            "no headers or layout of {release} here: only the guest's own memory is left, which takes longer and does not suffice for every kernel"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_goes_before_headers() {
        let place = tempfile::tempdir().expect("a folder");
        let sources = Sources {
            layouts: place.path().to_owned(),
            header_cache: place.path().join("cache"),
            ..Sources::default()
        };
        let release = "6.1.0-0-nowhere";
        assert_eq!(layout_origin(&sources, release), LayoutOrigin::Nowhere);
        let name = KernelName::new(release, "amd64").expect("a name");
        let headers = HeaderCache::new(&sources.header_cache).place(&name);
        std::fs::create_dir_all(&headers).expect("a folder");
        assert_eq!(layout_origin(&sources, release), LayoutOrigin::Headers(headers));
        let layout = Layout::file_in(&sources.layouts, release);
        std::fs::write(&layout, "{}").expect("written");
        assert_eq!(layout_origin(&sources, release), LayoutOrigin::Layout(layout));
    }

    #[test]
    fn headers_are_of_use_with_a_compiler_only() {
        let headers = || LayoutOrigin::Headers(PathBuf::from("/usr/src/linux-headers-6.1"));
        let told = layout_check("6.1", headers(), |_| false).expect_err("no compiler");
        assert_eq!(told.cause, Cause::NoLayout);
        assert!(told.what.contains("neither gcc nor clang") && told.remedy.is_some());
        assert!(layout_check("6.1", headers(), |compiler| compiler == Compiler::Clang).is_ok());
        let layout = LayoutOrigin::Layout(PathBuf::from("/l/6.1.layout.json"));
        assert!(layout_check("6.1", layout, |_| false).is_ok_and(|what| what.contains("/l/6.1")));
        assert!(
            layout_check("6.1", LayoutOrigin::Nowhere, |_| false).is_ok_and(|what| what.contains("longer"))
        );
    }
}
