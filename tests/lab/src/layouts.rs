//! The guests' kernels as `lacuna` knows them: layouts made from their headers where there is a compiler, for
//! use in dom0, where there is none.

use std::path::{Path, PathBuf};

use crate::context::{Context, Staged};
use crate::error::Result;
use crate::key::KeyBuilder;
use crate::process::run_logged;
use crate::sysroot::Sysroot;

/// Where `lacuna` looks for layouts by itself (`DEFAULT_FOLDER` in its `os/linux/layout.rs`).
const FOLDER: &str = "var/lib/lacuna/layouts";

/// Has `lacuna` make the layout of the kernel `release` from its `headers`, and returns where `lacuna` in
/// dom0 looks for it, and the file.
pub(crate) fn layout(
    context: &Context,
    sysroot: &Sysroot,
    lacuna: &Path,
    release: &str,
    headers: &Path,
) -> Result<(String, PathBuf)> {
    let name = format!("layout/{release}");
    let plain = format!("{release}.layout.json");
    let file = context.cached("layouts").join(&plain);
    let key = KeyBuilder::new(&name, 1).key(&sysroot.key).file(lacuna)?.finish();
    context.step(&name, &key, |progress| {
        let staged = Staged::file(file.clone())?;
        let (lacuna, headers) = (lacuna.to_string_lossy(), headers.to_string_lossy());
        let out = staged.path.to_string_lossy();
        let line = [
            &*lacuna,
            "profile",
            "build",
            "--headers",
            &*headers,
            "--out",
            &*out,
        ];
        run_logged(sysroot.command("/", &line), &context.step_log(&name), progress)?;
        staged.commit()
    })?;
    Ok((format!("{FOLDER}/{plain}"), file))
}
