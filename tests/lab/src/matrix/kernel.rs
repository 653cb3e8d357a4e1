//! Fetching a kernel and its headers by the meta package of its flavour.

use std::path::PathBuf;

use super::case::Flavour;
use crate::archive::Wanted;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::kernels::{Packages, plain_module};
use crate::key::{Key, KeyBuilder, files_below};
use crate::sysroot::Sysroot;

/// A kernel, unpacked.
pub(crate) struct Fetched {
    /// `uname -r`.
    pub(crate) release: String,
    /// The compressed image.
    pub(crate) image: PathBuf,
    /// The generated half of its headers.
    pub(crate) headers: PathBuf,
    /// Where its packages are unpacked.
    root: PathBuf,
}

/// Names the step that fetches a kernel of `flavour`, and what it depends on.
pub(crate) fn step(flavour: Flavour) -> (String, Key) {
    let name = format!("matrix-kernel/{}-{}", flavour.suite, flavour.name);
    let key = KeyBuilder::new(&name, 2).text(flavour.architecture).finish();
    (name, key)
}

/// Fetches and unpacks it; what is there already is kept.
pub(crate) fn fetch(context: &Context, sysroot: &Sysroot, flavour: Flavour) -> Result<Fetched> {
    let (name, key) = step(flavour);
    let root = context
        .cached("kernels")
        .join(format!("matrix-{}-{}", flavour.suite, flavour.name));
    let packages = Packages {
        suite: flavour.suite,
        architecture: flavour.architecture,
        kernel: Wanted {
            series: flavour.series(),
            flavour: flavour.name,
        },
        // Of an image's 400 MB only what boots, and the one module that a case loads.
        of_image: &["*/vmlinuz*", "*/virtio_balloon.ko*"],
    };
    let release = packages.unpacked(context, sysroot, (&name, &key), &root)?;
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
        root,
    })
}

/// The module `name` that belongs to `kernel`, decompressed.
pub(crate) fn module(context: &Context, sysroot: &Sysroot, kernel: &Fetched, name: &str) -> Result<PathBuf> {
    plain_module(context, sysroot, &kernel.root, &kernel.release, name)
}
