//! Finds out which hypervisor runs, and whether it has Lacuna. This needs no guest, and comes before any
//! other operation.
//!
//! A Xen with Lacuna has the capability `lacuna-N`, N being the version of the hypercall, among those that
//! `xl info` shows (the patch "x86/lacuna: show that it is there"). A build from before that patch lacks the
//! capability. So the hypercall itself decides: it is made for the calling domain, which is always refused,
//! but with one error by Lacuna and with another by a Xen without it.
//!
//! Source: Linux `Documentation/ABI/stable/sysfs-hypervisor-xen`; Xen's `docs/man/xl.1.pod.in`, "info".

use std::fs;
use std::path::Path;
use std::rc::Rc;

use lacuna_core::abi::VERSION;

use super::engine::{Engine, EngineError};
use super::privcmd::{DomainId, Privcmd};

/// The folder in which Linux describes the hypervisor.
pub const SYSFS: &str = "/sys/hypervisor";
/// The beginning of the capability of a hypervisor with Lacuna.
const CAPABILITY: &str = "lacuna-";

/// The hypervisor, as Linux describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HypervisorInfo {
    /// Its release, such as `4.20.4`; `None` where this is no Xen.
    pub release: Option<String>,
    /// Version of the Lacuna hypercall among its capabilities.
    pub lacuna: Option<u32>,
}

/// Returns what `folder`, in the form of [`SYSFS`], says of the hypervisor.
pub fn hypervisor_info(folder: &Path) -> HypervisorInfo {
    let read = |name: &str| {
        let text = fs::read_to_string(folder.join(name)).ok()?;
        Some(text.trim().to_owned())
    };
    let is_xen = read("type").as_deref() == Some("xen");
    let release = (|| {
        let extra = read("version/extra").unwrap_or_default();
        Some(format!(
            "{}.{}{extra}",
            read("version/major")?,
            read("version/minor")?
        ))
    })();
    let capabilities = read("properties/capabilities").unwrap_or_default();
    HypervisorInfo {
        release: release.filter(|_| is_xen),
        lacuna: capabilities
            .split_whitespace()
            .find_map(|word| word.strip_prefix(CAPABILITY)?.parse().ok()),
    }
}

/// Makes sure that the hypervisor has Lacuna, in a version that this tool speaks.
///
/// # Errors
/// [`EngineError::NotThere`] on a Xen without it, [`EngineError::Offers`] for another version.
pub fn require_lacuna(privcmd: &Rc<Privcmd>) -> Result<(), EngineError> {
    judge(
        Engine::new(privcmd, DomainId::ZERO).statistics().err(),
        &hypervisor_info(Path::new(SYSFS)),
    )
}

/// Decides from the answer for the calling domain, and from what the hypervisor says of itself.
fn judge(refusal: Option<EngineError>, described: &HypervisorInfo) -> Result<(), EngineError> {
    match (refusal, described.lacuna) {
        (Some(EngineError::NotThere), _) => Err(EngineError::NotThere),
        (_, Some(version)) if version != VERSION => Err(EngineError::Offers { version }),
        // Lacuna's refusal of the calling domain. Any other error may be due to a policy that still allows
        // guests; operations on them will show it.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let place = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = place.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        place
    }

    #[test]
    fn xen_is_described_by_what_linux_shows() {
        let ours = folder(&[
            ("type", "xen\n"),
            ("version/major", "4\n"),
            ("version/minor", "20\n"),
            ("version/extra", ".4\n"),
            (
                "properties/capabilities",
                "xen-3.0-x86_64 hvm-3.0-x86_64 lacuna-4 \n",
            ),
        ]);
        let expected = HypervisorInfo {
            release: Some("4.20.4".to_owned()),
            lacuna: Some(4),
        };
        assert_eq!(hypervisor_info(ours.path()), expected);
        let other = folder(&[
            ("type", "kvm\n"),
            ("version/major", "4\n"),
            ("version/minor", "2\n"),
        ]);
        assert_eq!(hypervisor_info(other.path()), HypervisorInfo::default());
        assert_eq!(
            hypervisor_info(Path::new("/nowhere/at/all")),
            HypervisorInfo::default()
        );
    }

    #[test]
    fn stock_xen_and_another_version_are_told_apart() {
        let says = |lacuna| HypervisorInfo {
            release: None,
            lacuna,
        };
        let myself = || Some(EngineError::Myself { domain: 0 });
        assert!(judge(myself(), &says(Some(VERSION))).is_ok());
        assert!(judge(myself(), &says(None)).is_ok(), "built before it said so");
        assert!(matches!(
            judge(Some(EngineError::NotThere), &says(None)),
            Err(EngineError::NotThere)
        ));
        assert!(matches!(
            judge(myself(), &says(Some(VERSION + 1))),
            Err(EngineError::Offers { version }) if version == VERSION + 1
        ));
    }
}
