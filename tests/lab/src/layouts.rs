//! The guests' kernels as `lacuna` knows them: layouts made from their headers where there is a compiler, for
//! use in dom0, where there is none.

use std::path::{Path, PathBuf};

use crate::context::{Context, Staged};
use crate::error::Result;
use crate::key::KeyBuilder;
use crate::process::run_logged;
use crate::progress::Progress;
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
        let order = Order {
            lacuna,
            headers,
            config: None,
            release: None,
            out: &staged.path,
        };
        order.run(sysroot, &context.step_log(&name), progress)?;
        staged.commit()
    })?;
    Ok((format!("{FOLDER}/{plain}"), file))
}

/// A layout that `lacuna` is to make. All paths are as the sysroot sees them.
pub(crate) struct Order<'a> {
    /// The product's command.
    pub(crate) lacuna: &'a Path,
    /// The kernel's header tree, or its sources.
    pub(crate) headers: &'a Path,
    /// The configuration, for sources that have none.
    pub(crate) config: Option<&'a Path>,
    /// What the kernel calls itself, for sources that were never built.
    pub(crate) release: Option<&'a str>,
    /// Where the layout goes.
    pub(crate) out: &'a Path,
}

impl Order<'_> {
    /// Has it made with the compiler of `sysroot`.
    pub(crate) fn run(&self, sysroot: &Sysroot, log: &Path, progress: &Progress) -> Result<()> {
        let text = Path::to_string_lossy;
        let (lacuna, headers, out) = (text(self.lacuna), text(self.headers), text(self.out));
        let config = self.config.map(text);
        let mut line = vec![
            &*lacuna,
            "profile",
            "build",
            "--headers",
            &*headers,
            "--out",
            &*out,
        ];
        if let Some(config) = &config {
            line.extend(["--config", config]);
        }
        if let Some(release) = self.release {
            line.extend(["--release", release]);
        }
        run_logged(sysroot.command("/", &line), log, progress)
    }
}
