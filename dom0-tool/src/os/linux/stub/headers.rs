//! Finding the parts of a kernel's header tree or source tree.
//!
//! Four shapes occur: a full build tree (sources and generated files together); a separate output folder
//! whose `source` link leads to the sources; Debian's pair `linux-headers-X-amd64` (generated) and
//! `linux-headers-X-common` (sources), where the former's Makefile includes the latter's; and sources that
//! were never built, which need the kernel's configuration (`prepare` makes what such a tree lacks).

use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::os::linux::config::{Config, ConfigError};

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
    #[error("the header tree at {} has no sources (include/linux/mm.h) and names none", .0.display())]
    SourcesUnnamed(PathBuf),
    /// Sources without configuration.
    #[error("the kernel sources at {} have no configuration: neither autoconf.h nor .config", .0.display())]
    NoConfig(PathBuf),
    /// The configuration is unusable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration is another architecture's.
    #[error("the header tree at {} is not configured for x86", .0.display())]
    NotX86(PathBuf),
}

/// A header tree of one kernel build.
#[derive(Clone, Debug)]
pub struct HeaderTree {
    /// The generated files: configuration, bounds, version.
    pub generated: PathBuf,
    /// The source headers. The same folder in a full build tree.
    pub sources: PathBuf,
    /// The configuration, where the tree has no `autoconf.h` made of it.
    pub config: Option<Config>,
    /// Whether the kernel is a 64-bit one.
    pub wide: bool,
}

/// Present in the sources of every kernel.
const MM: &str = "include/linux/mm.h";
/// Where the compiler's view of the configuration is: since 2.6.33, and before.
pub(super) const AUTOCONF: [&str; 2] = ["include/generated/autoconf.h", "include/linux/autoconf.h"];

impl HeaderTree {
    /// Opens the tree at `path`. `config` is the kernel's configuration, for sources that were never
    /// configured.
    ///
    /// # Errors
    /// [`HeadersError`].
    pub fn open(path: &Path, config: Option<&Path>) -> Result<Self, HeadersError> {
        let generated = fs::canonicalize(path).map_err(|_| HeadersError::NoTree(path.to_owned()))?;
        let sources = Self::find_sources(&generated)?;
        for file in [MM, "include/linux/page-flags.h", "include/linux/mmzone.h"] {
            if !sources.join(file).is_file() {
                return Err(HeadersError::Missing {
                    tree: sources,
                    file: file.into(),
                });
            }
        }
        let autoconf = AUTOCONF
            .iter()
            .find_map(|file| fs::read_to_string(generated.join(file)).ok());
        let config = if autoconf.is_some() {
            None
        } else {
            let beside = generated.join(".config");
            let file = config
                .or_else(|| beside.is_file().then_some(beside.as_path()))
                .ok_or_else(|| HeadersError::NoConfig(generated.clone()))?;
            Some(Config::read(file)?)
        };
        let has = |option: &str| match (&config, &autoconf) {
            (Some(config), _) => config.has(option),
            (None, text) => {
                let line = format!("#define {option} 1");
                let mut lines = text.as_deref().unwrap_or_default().lines();
                lines.any(|one| one.trim_end() == line)
            }
        };
        let wide = has("CONFIG_X86_64");
        // Until 2.6.23 the two were architectures of their own, and i386 called itself CONFIG_X86_32 or only
        // CONFIG_X86.
        if !wide && !has("CONFIG_X86_32") && !has("CONFIG_X86") {
            return Err(HeadersError::NotX86(generated));
        }
        Ok(Self {
            generated,
            sources,
            config,
            wide,
        })
    }

    fn find_sources(generated: &Path) -> Result<PathBuf, HeadersError> {
        if generated.join(MM).is_file() {
            return Ok(generated.to_owned());
        }
        let linked = generated.join("source");
        if linked.join(MM).is_file() {
            return Ok(linked);
        }
        let makefile = fs::read_to_string(generated.join("Makefile")).unwrap_or_default();
        let named = makefile
            .lines()
            .filter_map(|line| line.trim().strip_prefix("include "))
            .find_map(|path| Path::new(path.trim()).parent().map(Path::to_owned))
            .ok_or_else(|| HeadersError::SourcesUnnamed(generated.to_owned()))?;
        // The tree may have been unpacked elsewhere than where it was made for: then the sources lie beside
        // it. Looked at first, so that another machine's headers are never mixed with this machine's.
        let beside = named
            .file_name()
            .and_then(|name| Some(generated.parent()?.join(name)));
        [beside, Some(named.clone())]
            .into_iter()
            .flatten()
            .find(|folder| folder.join(MM).is_file())
            .ok_or(HeadersError::NoSources {
                tree: generated.to_owned(),
                sources: named,
            })
    }

    /// Where the tree has one of `files`, in its generated half or its sources.
    pub(super) fn find(&self, files: &[&str]) -> Option<PathBuf> {
        [&self.generated, &self.sources]
            .into_iter()
            .flat_map(|half| files.iter().map(|file| half.join(file)))
            .find(|path| path.is_file())
    }

    /// The release that the tree says it is of, if it was ever built.
    pub fn release(&self) -> Option<String> {
        let stated = self.find(&["include/generated/utsrelease.h", "include/linux/utsrelease.h"])?;
        let text = fs::read_to_string(stated).ok()?;
        let (_, rest) = text.split_once("UTS_RELEASE")?;
        rest.split('"').nth(1).map(str::to_owned)
    }

    /// Where distributions put the headers of `release`, best first.
    pub fn usual_places(release: &str) -> [PathBuf; 2] {
        [
            PathBuf::from(format!("/usr/src/linux-headers-{release}")),
            PathBuf::from(format!("/lib/modules/{release}/build")),
        ]
    }
}
