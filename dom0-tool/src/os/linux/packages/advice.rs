//! What to fetch by hand: the packages in which distributions ship a kernel's headers, by the form of its release.

use super::KernelName;

/// What to fetch, a step a line, and where the header tree then is.
pub fn what_to_fetch(kernel: &KernelName) -> Vec<String> {
    let release = kernel.release();
    let mut steps = match family(release) {
        Family::Rpm => {
            let package = format!("kernel-devel-{release}");
            vec![
                format!("fetch the package {package}: `dnf download {package}` on the guest's distribution"),
                format!("unpack it: `rpm2cpio {package}.rpm | (cd DIR && cpio -idm)`"),
                format!("use it: `--headers DIR/usr/src/kernels/{release}`"),
            ]
        }
        Family::Suse => {
            let (version, flavour) = release.rsplit_once('-').unwrap_or((release, "default"));
            vec![
                format!(
                    "fetch the packages kernel-{flavour}-devel and kernel-devel of version {version}: `zypper download kernel-{flavour}-devel kernel-devel`"
                ),
                "unpack both into one folder: `rpm2cpio FILE.rpm | (cd DIR && cpio -idm)`".to_owned(),
                format!("use them: `--headers DIR/usr/src/linux-{version}-obj/x86_64/{flavour}`"),
            ]
        }
        Family::Arch => vec![
            format!(
                "fetch the package linux-headers of {release}: `pacman -Sw linux-headers`, or an earlier one of the archive"
            ),
            "unpack it: `tar -xf FILE.pkg.tar.zst -C DIR`".to_owned(),
            format!("use it: `--headers DIR/usr/lib/modules/{release}/build`"),
        ],
        Family::Debian => {
            let architecture = kernel.architecture();
            vec![
                format!(
                    "fetch linux-headers-{release} for {architecture} and the linux-headers-...-common (Ubuntu: linux-headers-...) that it depends on: `apt-get download` on the guest's distribution, or that distribution's archive of earlier packages"
                ),
                "unpack them into one folder: `dpkg-deb -x FILE.deb DIR` for each".to_owned(),
                format!("use them: `--headers DIR/usr/src/linux-headers-{release}`"),
            ]
        }
        Family::Unknown => Vec::new(),
    };
    steps.push(format!(
        "of a kernel of one's own: copy its build tree, to which /lib/modules/{release}/build leads on the guest, links followed"
    ));
    steps
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Debian,
    Rpm,
    Suse,
    Arch,
    Unknown,
}

/// By the form of the release, as each distribution's packaging builds it.
fn family(release: &str) -> Family {
    let last = release.rsplit('-').next().unwrap_or_default();
    let marked = |mark: &str| {
        release.split(['.', '-', '_']).any(|part| {
            part.strip_prefix(mark)
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
    };
    if marked("fc") || marked("el") || marked("amzn") {
        Family::Rpm
    } else if matches!(
        last,
        "amd64" | "686" | "pae" | "generic" | "lowlatency" | "aws" | "azure" | "gcp" | "kvm"
    ) {
        Family::Debian
    } else if last == "default" {
        Family::Suse
    } else if marked("arch") {
        Family::Arch
    } else {
        Family::Unknown
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_distribution_is_known_by_its_release() {
        for (release, wanted) in [
            (
                "6.12.107+deb13-cloud-amd64",
                "linux-headers-6.12.107+deb13-cloud-amd64",
            ),
            ("6.1.0-50-686-pae", "linux-headers-6.1.0-50-686-pae"),
            ("5.15.0-100-generic", "linux-headers-5.15.0-100-generic"),
            (
                "5.14.0-362.8.1.el9_3.x86_64",
                "kernel-devel-5.14.0-362.8.1.el9_3.x86_64",
            ),
            ("2.6.18-274.7.1.el5", "kernel-devel-2.6.18-274.7.1.el5"),
            ("6.5.6-300.fc39.x86_64", "kernel-devel-6.5.6-300.fc39.x86_64"),
            (
                "6.4.0-150600.21-default",
                "kernel-default-devel and kernel-devel of version 6.4.0-150600.21",
            ),
            ("6.6.8-arch1-1", "/usr/lib/modules/6.6.8-arch1-1/build"),
            ("6.6.8", "/lib/modules/6.6.8/build"),
        ] {
            let kernel = KernelName::new(release, "amd64").unwrap();
            let told = what_to_fetch(&kernel).join("\n");
            assert!(told.contains(wanted), "{release}: {told}");
        }
    }
}
