//! Fetching a kernel and its headers by the meta package of its flavour.

use std::fs;
use std::path::PathBuf;

use super::case::Flavour;
use crate::context::{Context, Staged};
use crate::error::{Error, IoContext, Result};
use crate::kernels::{PrivateApt, extra_module, packages};
use crate::key::{KeyBuilder, files_below};
use crate::process::{output, run_logged};
use crate::sysroot::Sysroot;

/// A kernel, unpacked.
pub(crate) struct Fetched {
    /// `uname -r`.
    pub(crate) release: String,
    /// The compressed image.
    pub(crate) image: PathBuf,
    /// The generated half of its headers.
    pub(crate) headers: PathBuf,
}

/// Fetches and unpacks it; what is there already is kept.
pub(crate) fn fetch(context: &Context, sysroot: &Sysroot, flavour: Flavour) -> Result<Fetched> {
    let name = format!("matrix-kernel/{}-{}", flavour.suite, flavour.name);
    let root = context
        .cached("kernels")
        .join(format!("matrix-{}-{}", flavour.suite, flavour.name));
    let key = KeyBuilder::new(&name, 1).text(flavour.architecture).finish();
    context.step(&name, &key, |progress| {
        let log = context.step_log(&name);
        let apt = PrivateApt::new(context, sysroot, flavour.suite, flavour.architecture)?;
        run_logged(apt.command("apt-get", &["update"]), &log, progress)?;
        let depends = |package: &str| output(apt.command("apt-cache", &["depends", package]), &log);
        let image = first(
            &depends(&format!("linux-image-{}", flavour.name))?,
            "linux-image-",
        )?;
        let release = image.trim_start_matches("linux-image-").to_owned();
        let headers = format!("linux-headers-{release}");
        let mut wanted = vec![headers.clone()];
        wanted.extend(
            depends(&headers)?
                .split_whitespace()
                .filter(|word| word.contains("-common"))
                .map(str::to_owned),
        );
        // Since 7.0 the image itself is in a package of its own.
        let binary = format!("linux-binary-{release}");
        let split = depends(&image)?.split_whitespace().any(|word| word == binary);
        wanted.push(if split { binary } else { image });
        let mut line = vec!["download"];
        line.extend(wanted.iter().map(String::as_str));
        run_logged(apt.command("apt-get", &line), &log, progress)?;
        let staged = Staged::directory(root.clone())?;
        for package in packages(&apt.directory)? {
            let to = staged.path.to_string_lossy().into_owned();
            // Of an image's 400 MB only what boots is used.
            let script = if package.starts_with("linux-headers") {
                "dpkg-deb -x \"$1\" \"$2\""
            } else {
                "dpkg-deb --fsys-tarfile \"$1\" | tar -x -C \"$2\" --wildcards '*/vmlinuz*'"
            };
            let line = ["sh", "-c", script, "sh", &package, &to];
            run_logged(sysroot.command(&apt.directory, &line), &log, progress)?;
        }
        let stated = staged.path.join("release");
        fs::write(&stated, &release).on("write", &stated)?;
        staged.commit()?;
        fs::remove_dir_all(&apt.directory).on("remove", &apt.directory)
    })?;
    let stated = root.join("release");
    let release = fs::read_to_string(&stated).on("read", &stated)?;
    let image = files_below(&root)?
        .into_iter()
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
        })
        .ok_or_else(|| Error::Unexpected {
            what: format!("the package of {release}"),
            expected: "a kernel image".to_owned(),
            seen: "none".to_owned(),
        })?;
    Ok(Fetched {
        image: root.join(image),
        headers: root.join("usr/src").join(format!("linux-headers-{release}")),
        release,
    })
}

/// The module `name` that belongs to the kernel `release` of `flavour`, decompressed.
pub(crate) fn module(
    context: &Context,
    sysroot: &Sysroot,
    flavour: Flavour,
    release: &str,
    name: &str,
) -> Result<PathBuf> {
    extra_module(context, sysroot, flavour.suite, release, name)
}

/// The real package behind a meta package: the one whose name goes on with a version. A meta package's own name may go on
/// with a digit as well (`linux-image-686-pae`).
fn first(listing: &str, prefix: &str) -> Result<String> {
    let found = listing.split_whitespace().find(|word| {
        word.strip_prefix(prefix)
            .and_then(|rest| rest.split_once('.'))
            .is_some_and(|(major, _)| major.parse::<u32>().is_ok())
    });
    found.map(str::to_owned).ok_or_else(|| Error::Unexpected {
        what: "the kernel behind a meta package".to_owned(),
        expected: format!("{prefix}N.N..."),
        seen: listing.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    #[test]
    fn a_meta_package_whose_name_begins_with_a_digit_is_not_taken_for_a_kernel() {
        let listing = "linux-image-686-pae\n  Depends: linux-image-6.1.0-50-686-pae\n";
        assert_eq!(
            super::first(listing, "linux-image-").unwrap(),
            "linux-image-6.1.0-50-686-pae"
        );
        assert!(super::first("linux-image-686-pae", "linux-image-").is_err());
    }
}
