//! Finding the parts of a kernel header tree.
//!
//! Three shapes occur: a full build tree (sources and generated files together), a separate output folder whose
//! `source` link leads to the sources, and Debian's pair `linux-headers-X-amd64` (generated) and `linux-headers-X-common`
//! (sources), where the former's Makefile includes the latter's by an absolute path.

use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a folder is not a usable header tree.
#[derive(Debug, Error)]
pub enum HeadersError {
    /// There is no such folder.
    #[error("there is no kernel header tree at {}", .0.display())]
    NoTree(PathBuf),
    /// A file that the compilation needs is missing.
    #[error("the header tree at {} lacks {}", tree.display(), file.display())]
    Missing {
        /// The tree.
        tree: PathBuf,
        /// The file, below the tree.
        file: PathBuf,
    },
    /// The generated half is there, but the sources it points to are not.
    #[error("the header tree at {} names its sources at {}, which is not there", tree.display(), sources.display())]
    NoSources {
        /// The tree.
        tree: PathBuf,
        /// Where the sources should be.
        sources: PathBuf,
    },
    /// Neither this folder nor its Makefile leads to the sources.
    #[error("the header tree at {} has no sources (include/linux/kconfig.h) and names none", .0.display())]
    SourcesUnnamed(PathBuf),
}

/// A header tree of one kernel build.
#[derive(Clone, Debug)]
pub struct HeaderTree {
    /// The generated files: configuration, bounds, version.
    pub generated: PathBuf,
    /// The source headers. The same folder in a full build tree.
    pub sources: PathBuf,
}

/// Present in every tree since 2.6.33, and the first thing that a compilation needs.
const KCONFIG: &str = "include/linux/kconfig.h";

impl HeaderTree {
    /// Opens the tree at `path` and checks that what every compilation needs is there.
    ///
    /// # Errors
    /// [`HeadersError`].
    pub fn open(path: &Path) -> Result<Self, HeadersError> {
        let generated = fs::canonicalize(path).map_err(|_| HeadersError::NoTree(path.to_owned()))?;
        let sources = Self::find_sources(&generated)?;
        let tree = Self { generated, sources };
        for file in [
            "include/generated/autoconf.h",
            "include/generated/utsrelease.h",
            "include/generated/bounds.h",
        ] {
            if !tree.generated.join(file).is_file() {
                return Err(HeadersError::Missing {
                    tree: tree.generated,
                    file: file.into(),
                });
            }
        }
        for file in [KCONFIG, "include/linux/mm.h", "include/linux/page-flags.h"] {
            if !tree.sources.join(file).is_file() {
                return Err(HeadersError::Missing {
                    tree: tree.sources,
                    file: file.into(),
                });
            }
        }
        Ok(tree)
    }

    fn find_sources(generated: &Path) -> Result<PathBuf, HeadersError> {
        if generated.join(KCONFIG).is_file() {
            return Ok(generated.to_owned());
        }
        let linked = generated.join("source");
        if linked.join(KCONFIG).is_file() {
            return Ok(linked);
        }
        let makefile = fs::read_to_string(generated.join("Makefile")).unwrap_or_default();
        let named = makefile
            .lines()
            .filter_map(|line| line.trim().strip_prefix("include "))
            .find_map(|path| Path::new(path.trim()).parent().map(Path::to_owned))
            .ok_or_else(|| HeadersError::SourcesUnnamed(generated.to_owned()))?;
        // The tree may have been unpacked elsewhere than where it was made for: then the sources lie beside it. Looked
        // at first, so that another machine's headers are never mixed with this machine's.
        let beside = named
            .file_name()
            .and_then(|name| Some(generated.parent()?.join(name)));
        [beside, Some(named.clone())]
            .into_iter()
            .flatten()
            .find(|folder| folder.join(KCONFIG).is_file())
            .ok_or(HeadersError::NoSources {
                tree: generated.to_owned(),
                sources: named,
            })
    }

    /// The folders that the kernel's own build searches, in its order (`LINUXINCLUDE` and `USERINCLUDE`, top Makefile).
    pub fn include_folders(&self) -> Vec<PathBuf> {
        vec![
            self.sources.join("arch/x86/include"),
            self.generated.join("arch/x86/include/generated"),
            self.sources.join("include"),
            self.generated.join("include"),
            self.sources.join("arch/x86/include/uapi"),
            self.generated.join("arch/x86/include/generated/uapi"),
            self.sources.join("include/uapi"),
            self.generated.join("include/generated/uapi"),
        ]
    }

    /// The files that the kernel's build includes before any other. `compiler_types.h` came in 4.15.
    pub fn forced_includes(&self) -> Vec<PathBuf> {
        ["include/linux/kconfig.h", "include/linux/compiler_types.h"]
            .iter()
            .map(|file| self.sources.join(file))
            .filter(|file| file.is_file())
            .collect()
    }

    /// Where distributions put the headers of `release`, best first.
    pub fn usual_places(release: &str) -> [PathBuf; 2] {
        [
            PathBuf::from(format!("/usr/src/linux-headers-{release}")),
            PathBuf::from(format!("/lib/modules/{release}/build")),
        ]
    }
}
