//! The versions of Xen's interfaces for toolstacks, which change from release to release.
//!
//! A domctl and a sysctl begin with a number that Xen compares with its own, and Xen refuses with `EACCES`
//! whatever has another one. The number stands for the structures of all operations. Those that are used here
//! have not changed between the versions below, so one build of the tool serves all of them. It finds out
//! which one Xen takes by an operation that changes nothing.
//!
//! Sources: `xen/include/public/{domctl,sysctl}.h` of Xen 4.17, 4.18, 4.19, 4.20 and 4.21.

use std::fs;
use std::path::Path;

use super::privcmd::PrivcmdError;

/// A version of the domctl interface whose structures are known here (`XEN_DOMCTL_INTERFACE_VERSION`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DomctlVersion(u32);

impl DomctlVersion {
    /// All of them, the newest first: of Xen 4.19 to 4.21, of 4.18, and of 4.17.
    pub(super) const KNOWN: [Self; 3] = [Self(0x17), Self(0x16), Self(0x15)];

    /// Returns the number that goes into the structure.
    pub(super) fn number(self) -> u32 {
        self.0
    }
}

/// A version of the sysctl interface whose structures are known here (`XEN_SYSCTL_INTERFACE_VERSION`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SysctlVersion(u32);

impl SysctlVersion {
    /// All of them, the newest first: of Xen 4.21, and of 4.17 to 4.20.
    pub(super) const KNOWN: [Self; 2] = [Self(0x16), Self(0x15)];

    /// Returns the number that goes into the structure.
    pub(super) fn number(self) -> u32 {
        self.0
    }
}

/// Returns the first of `versions` that Xen does not refuse, as `attempt` finds by making a call with it;
/// and what the call returned.
///
/// # Errors
/// [`PrivcmdError::NoVersion`] when Xen refuses each of them. Another error of the call is the call's own:
/// Xen looks at the version before it looks at anything else.
pub(super) fn accepted<V: Copy, T>(
    interface: &'static str,
    versions: &[V],
    number: impl Fn(V) -> u32,
    mut attempt: impl FnMut(V) -> Result<T, PrivcmdError>,
) -> Result<(V, Result<T, PrivcmdError>), PrivcmdError> {
    for &version in versions {
        match attempt(version) {
            Err(error) if error.errno() == Some(libc::EACCES) => {}
            returned => return Ok((version, returned)),
        }
    }
    let tried = versions.iter().map(|version| format!("{:#x}", number(*version)));
    Err(PrivcmdError::NoVersion {
        interface,
        tried: tried.collect::<Vec<_>>().join(", "),
        xen: running_xen(Path::new("/sys/hypervisor/version")),
    })
}

/// Returns what Xen calls itself, `4.20` for example, from the two files that Linux keeps in `directory`.
fn running_xen(directory: &Path) -> String {
    let part = |name: &str| {
        let text = fs::read_to_string(directory.join(name)).ok()?;
        Some(text.trim().to_owned())
    };
    match (part("major"), part("minor")) {
        (Some(major), Some(minor)) => format!("{major}.{minor}"),
        _ => "of an unknown version".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a Xen that takes `own` and nothing else, and then answers with `answer`.
    fn xen(own: u32, answer: Result<(), i32>) -> impl Fn(u32) -> Result<(), PrivcmdError> {
        move |version| {
            let answer = if version == own { answer } else { Err(libc::EACCES) };
            answer.map_err(|number| PrivcmdError::Call {
                call: "a call",
                cause: std::io::Error::from_raw_os_error(number),
            })
        }
    }

    fn probe(own: u32, answer: Result<(), i32>) -> Result<(u32, Result<(), PrivcmdError>), PrivcmdError> {
        let xen = xen(own, answer);
        let found = accepted(
            "domctl",
            &DomctlVersion::KNOWN,
            DomctlVersion::number,
            |version| xen(version.number()),
        );
        found.map(|(version, returned)| (version.number(), returned))
    }

    #[test]
    fn each_known_version_is_found() {
        for own in [0x15, 0x16, 0x17] {
            let (version, returned) = probe(own, Ok(())).expect("one is accepted");
            assert_eq!(version, own);
            assert!(returned.is_ok());
        }
    }

    #[test]
    fn an_error_of_the_call_is_not_one_of_the_version() {
        let (version, returned) = probe(0x15, Err(libc::ESRCH)).expect("one is accepted");
        assert_eq!(version, 0x15);
        assert_eq!(returned.expect_err("the call failed").errno(), Some(libc::ESRCH));
    }

    #[test]
    fn an_unknown_version_is_an_error_that_names_what_was_tried() {
        let error = probe(0x18, Ok(())).expect_err("none is accepted");
        assert_eq!(error.errno(), Some(libc::EACCES));
        assert!(error.to_string().contains("0x17, 0x16, 0x15"), "{error}");
    }

    #[test]
    fn xen_is_named_by_what_linux_says_of_it() {
        let directory = std::env::temp_dir().join(format!("lacuna-version-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        assert_eq!(running_xen(&directory), "of an unknown version");
        fs::write(directory.join("major"), "4\n").expect("a file");
        fs::write(directory.join("minor"), "17\n").expect("a file");
        assert_eq!(running_xen(&directory), "4.17");
        fs::remove_dir_all(&directory).expect("removed");
    }
}
