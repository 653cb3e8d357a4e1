//! Packages of small files, looked at with `dpkg-deb`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Build, Parts, common};
use crate::xen::series::Series;

/// What a program printed; it has to succeed.
fn printed(program: &str, arguments: &[&str]) -> String {
    let ran = Command::new(program).args(arguments).output().unwrap();
    assert!(
        ran.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&ran.stderr)
    );
    String::from_utf8(ran.stdout).unwrap()
}

/// A library of this machine's, for what has to be one.
fn some_library() -> PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let path = maps
        .lines()
        .find_map(|line| Some(&line[line.find('/')?..]).filter(|path| path.contains("libc.so")));
    path.unwrap().into()
}

/// A directory as `cargo lab build` leaves it, but for the tool.
fn product(out: &Path) {
    for name in ["xen.gz", "xen.efi", "xen-syms"] {
        fs::write(out.join(name), name).unwrap();
    }
    let libraries = out.join("tree/usr/local/lib");
    fs::create_dir_all(&libraries).unwrap();
    for name in [
        "libxenctrl.so.4.20.0",
        "libxenguest.so.4.20.0",
        "libxenlight.so.4.20.0",
    ] {
        fs::copy(some_library(), libraries.join(name)).unwrap();
    }
    let archive = out.join("xen-tools.tar.gz");
    let tree = out.join("tree");
    let (archive, tree) = (archive.to_str().unwrap(), tree.to_str().unwrap());
    printed(
        "tar",
        &["--create", "--gzip", "--file", archive, "--directory", tree, "."],
    );
}

/// Files and links of a package, without folders.
fn contents(file: &Path) -> BTreeSet<String> {
    printed("dpkg-deb", &["--contents", file.to_str().unwrap()])
        .lines()
        .filter(|line| !line.starts_with('d'))
        .map(|line| {
            assert!(line.contains("root/root"), "{line}");
            let path = &line[line.find(" ./").unwrap() + 2..];
            path.split(" -> ").next().unwrap().to_owned()
        })
        .collect()
}

fn packed(work: impl FnOnce(&mut Build<'_>)) -> (tempfile::TempDir, Vec<PathBuf>) {
    let place = tempfile::tempdir().unwrap();
    product(place.path());
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let log = place.path().join("log");
    let parts = Parts {
        out: place.path(),
        repository: &repository,
        series: Series::V4_20,
        xen_version: "4.20.4+63-g7abfd2bce2-0+deb13u1",
        log: &log,
    };
    let mut build = Build {
        parts: &parts,
        common: common(&parts).unwrap(),
        folder: place.path().join("work"),
        written: Vec::new(),
    };
    fs::create_dir_all(&build.folder).unwrap();
    work(&mut build);
    let written = build.written;
    (place, written)
}

#[test]
fn the_libraries_lie_in_a_folder_of_their_own_and_nothing_else_comes_along() {
    let (_place, files) = packed(|build| build.libraries().unwrap());
    let [file] = &files[..] else {
        unreachable!("one package")
    };
    let expected = [
        "/etc/ld.so.conf.d/00-lacuna-xen-4.20.conf",
        "/usr/lib/lacuna-xen-4.20/libxenctrl.so.4.20",
        "/usr/lib/lacuna-xen-4.20/libxenctrl.so.4.20.0",
        "/usr/lib/lacuna-xen-4.20/libxenguest.so.4.20",
        "/usr/lib/lacuna-xen-4.20/libxenguest.so.4.20.0",
        "/usr/share/doc/lacuna-xen-libs-4.20/changelog.Debian.gz",
        "/usr/share/doc/lacuna-xen-libs-4.20/copyright",
        "/usr/share/lintian/overrides/lacuna-xen-libs-4.20",
    ];
    assert_eq!(contents(file), expected.map(str::to_owned).into());
    let name = file.to_str().unwrap();
    let control = |part: &str| printed("dpkg-deb", &["--info", name, part]);
    assert_eq!(control("conffiles").trim(), expected[0]);
    assert!(control("triggers").contains("ldconfig"));
    let sums = control("md5sums");
    assert!(sums.contains("usr/lib/lacuna-xen-4.20/libxenguest.so.4.20.0"));
    assert!(
        !sums.contains("etc/"),
        "what an operator changes is no damage: {sums}"
    );
    let version = printed("dpkg-deb", &["--field", name, "Version"]);
    assert_eq!(
        version.trim(),
        format!("4.20.4+lacuna{}-1", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn the_hypervisor_has_a_name_that_the_distributions_has_not() {
    let (_place, files) = packed(|build| build.hypervisor().unwrap());
    assert_eq!(files.len(), 2, "{files:?}");
    let contents = contents(&files[0]);
    assert!(
        contents.contains("/boot/xen-4.20-lacuna-amd64.gz"),
        "{contents:?}"
    );
    assert!(!contents.contains("/boot/xen-4.20-amd64.gz"));
    for part in ["postinst", "postrm"] {
        let script = printed("dpkg-deb", &["--info", files[0].to_str().unwrap(), part]);
        assert!(script.contains("update-grub"), "{part}");
    }
}

#[test]
fn the_same_source_gives_the_same_package() {
    let bytes = || {
        let (_place, files) = packed(|build| build.prometheus().unwrap());
        fs::read(&files[0]).unwrap()
    };
    assert!(bytes() == bytes());
}

/// The scripts run as root on somebody else's machine: a shell has to take them.
#[test]
fn a_shell_takes_the_scripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if fs::read_to_string(&path).unwrap().starts_with("#!/bin/sh") {
            printed("sh", &["-n", path.to_str().unwrap()]);
            seen += 1;
        }
    }
    assert_eq!(seen, 5);
}
