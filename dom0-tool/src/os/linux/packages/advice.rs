//! What to fetch by hand: the packages in which distributions ship a kernel's headers, by the form of its
//! release.

use super::KernelName;

/// What to fetch, a step a line, and where the header tree then is.
pub fn what_to_fetch(kernel: &KernelName) -> Vec<String> {
    let release = kernel.release();
    let mut steps = match family(release) {
        Family::Rpm => rpm(release),
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
        Family::Ubuntu => {
            let (plain, flavour) = release.rsplit_once('-').unwrap_or((release, "generic"));
            let series = plain.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
            let other = match flavour {
                "generic" | "lowlatency" => "hwe",
                cloud => cloud,
            };
            vec![
                format!(
                    "fetch linux-headers-{release} and the other half of it, linux-headers-{plain} (linux-{other}-headers-{plain} or linux-{other}-{series}-headers-{plain}, as its Depends says): `apt-get download` on Ubuntu; or here `lacuna profile fetch --release {release} --mirror ADDRESS --suite NAME-updates --keyring FILE`"
                ),
                "unpack both into one folder: `dpkg-deb -x FILE.deb DIR` for each".to_owned(),
                format!("use them: `--headers DIR/usr/src/linux-headers-{release}`"),
            ]
        }
        Family::Proxmox => vec![
            format!(
                "fetch proxmox-headers-{release} (pve-headers-{release} before 6.5): `apt-get download` on Proxmox VE; or here `lacuna profile fetch --release {release} --mirror ADDRESS --suite NAME --keyring FILE`"
            ),
            "unpack it: `dpkg-deb -x FILE.deb DIR`".to_owned(),
            format!("use it: `--headers DIR/usr/src/linux-headers-{release}`"),
        ],
        Family::Alpine => alpine(release),
        Family::Debian => {
            let architecture = kernel.architecture();
            vec![
                format!(
                    "fetch linux-headers-{release} for {architecture} and the linux-headers-...-common that it depends on: `apt-get download` on the guest's distribution, or that distribution's archive of earlier packages"
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

/// Fedora's, RHEL's, and those of what is built from it.
fn rpm(release: &str) -> Vec<String> {
    // Of a kernel of another kind the end of the release says so, or its middle (RHEL 8's real-time kernel).
    let (plain, kind) = release.split_once('+').unwrap_or((release, ""));
    let has = |mark: &str| plain.split('.').any(|part| part.contains(mark));
    let kind = match kind {
        "" if has("uek") => "uek-",
        "" if plain.contains(".rt") => "rt-",
        "rt" => "rt-",
        "64k" => "64k-",
        "debug" => "debug-",
        _ => "",
    };
    let package = format!("kernel-{kind}devel-{plain}");
    vec![
        format!("fetch the package {package}: `dnf download {package}` on the guest's distribution"),
        format!("unpack it: `rpm2cpio {package}.rpm | (cd DIR && cpio -idm)`"),
        format!("use it: `--headers DIR/usr/src/kernels/{release}`"),
    ]
}

fn alpine(release: &str) -> Vec<String> {
    let (plain, flavour) = release.rsplit_once('-').unwrap_or((release, "lts"));
    let (version, build) = plain.rsplit_once('-').unwrap_or((plain, "0"));
    vec![
        format!(
            "fetch the package linux-{flavour}-dev of version {version}-r{build}: `apk fetch linux-{flavour}-dev={version}-r{build}` on Alpine, of the release that has it"
        ),
        "unpack it: `tar -xzf FILE.apk -C DIR`".to_owned(),
        format!("use it: `--headers DIR/usr/src/linux-headers-{release}`"),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Debian,
    Ubuntu,
    Proxmox,
    Alpine,
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
    } else if matches!(last, "amd64" | "686" | "pae") {
        Family::Debian
    } else if matches!(
        last,
        "generic" | "lowlatency" | "aws" | "azure" | "gcp" | "gke" | "kvm" | "oracle" | "ibm" | "oem"
    ) {
        Family::Ubuntu
    } else if last == "pve" {
        Family::Proxmox
    } else if matches!(last, "virt" | "lts" | "edge" | "stable" | "rpi") {
        Family::Alpine
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
            (
                "5.15.0-100-generic",
                "linux-headers-5.15.0-100-generic and the other half of it, linux-headers-5.15.0-100 (",
            ),
            ("6.11.0-29-generic", "linux-hwe-6.11-headers-6.11.0-29"),
            ("6.8.0-1021-aws", "linux-aws-headers-6.8.0-1021"),
            ("6.8.12-4-pve", "proxmox-headers-6.8.12-4-pve"),
            ("6.6.31-0-virt", "linux-virt-dev=6.6.31-r0"),
            ("6.12.1-3-lts", "linux-lts-dev=6.12.1-r3"),
            (
                "5.15.0-205.149.5.1.el9uek.x86_64",
                "kernel-uek-devel-5.15.0-205.149.5.1.el9uek.x86_64:",
            ),
            (
                "5.14.0-362.8.1.el9_3.x86_64+rt",
                "kernel-rt-devel-5.14.0-362.8.1.el9_3.x86_64:",
            ),
            (
                "4.18.0-553.rt7.342.el8_10.x86_64",
                "kernel-rt-devel-4.18.0-553.rt7.342.el8_10.x86_64:",
            ),
            (
                "5.14.0-362.8.1.el9_3.aarch64+64k",
                "kernel-64k-devel-5.14.0-362.8.1.el9_3.aarch64:",
            ),
            (
                "5.14.0-362.8.1.el9_3.x86_64+rt",
                "DIR/usr/src/kernels/5.14.0-362.8.1.el9_3.x86_64+rt",
            ),
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
