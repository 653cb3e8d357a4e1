//! Configures and compiles a hypervisor out of its tree.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use super::unexpected;
use crate::error::{IoContext, Result};
use crate::process::run_logged;
use crate::progress::Progress;
use crate::sysroot::Sysroot;

/// One configuration of a hypervisor.
pub(super) struct Compile<'a> {
    /// What compiles it.
    pub(super) sysroot: &'a Sysroot,
    /// The tree's `xen/`.
    pub(super) tree: &'a Path,
    /// Where the objects go; made where there is none.
    pub(super) objects: &'a Path,
    /// Lines of Xen's configuration; what they do not name keeps its default.
    pub(super) config: &'a [&'a str],
    /// The Rust object.
    pub(super) module: &'a Path,
}

impl Compile<'_> {
    /// Compiles it.
    ///
    /// # Errors
    /// Where Kconfig drops a line of the configuration, and where make fails.
    pub(super) fn run(&self, log: &Path, progress: &Progress) -> Result<()> {
        fs::create_dir_all(self.objects).on("create", self.objects)?;
        let settings = self.objects.join(".config");
        let before = Dated::read(&settings);
        fs::write(&settings, self.config.join("\n") + "\n").on("write", &settings)?;
        let out = format!("O={}", self.objects.display());
        run_logged(
            self.sysroot.command(self.tree, &["make", &out, "olddefconfig"]),
            log,
            progress,
        )?;
        check(&settings, self.config)?;
        if let Some(before) = before {
            before.date_back(&settings)?;
        }
        let jobs = super::jobs();
        let module = format!("LACUNA_MODULE={}", self.module.display());
        run_logged(
            self.sysroot.command(self.tree, &["make", &out, &jobs, &module]),
            log,
            progress,
        )
    }
}

/// A file's text, and when it was written.
struct Dated {
    text: String,
    written: SystemTime,
}

impl Dated {
    /// Reads `file`; nothing when it is not there.
    fn read(file: &Path) -> Option<Self> {
        Some(Self {
            text: fs::read_to_string(file).ok()?,
            written: fs::metadata(file).ok()?.modified().ok()?,
        })
    }

    /// Gives `file` its old date again where it has the same text. make goes by dates: a configuration that
    /// is newer than the objects has it compile all of them again.
    fn date_back(&self, file: &Path) -> Result<()> {
        if fs::read_to_string(file).on("read", file)? == self.text {
            let open = fs::File::options().write(true).open(file).on("open", file)?;
            open.set_modified(self.written).on("date", file)?;
        }
        Ok(())
    }
}

/// Kconfig drops what it does not know or whose dependencies fail without a word: look that each line is
/// still there.
fn check(settings: &Path, wanted: &[&str]) -> Result<()> {
    let text = fs::read_to_string(settings).on("read", settings)?;
    match wanted
        .iter()
        .find(|wanted| !text.lines().any(|line| line == **wanted))
    {
        None => Ok(()),
        Some(dropped) => Err(unexpected(
            "Xen's configuration after olddefconfig",
            dropped,
            "the line is gone",
        )),
    }
}
