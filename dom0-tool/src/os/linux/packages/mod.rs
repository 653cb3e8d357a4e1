//! The headers of a guest's kernel, by way of this machine's package manager and without installing anything.
//!
//! A guest says which kernel it runs, so the name of the package is a guest's word: [`KernelName`] lets
//! nothing through that could be an option or a path. Packages are fetched and checked by the package manager
//! (`apt`), unpacked into a cache ([`HeaderCache`]) where later commands look, and never installed; their
//! scripts do not run. Where the package manager cannot help, [`advice`] says what to fetch.

pub mod advice;
mod apt;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

use super::stub::headers::{HeaderTree, HeadersError};
pub use apt::Archive;

/// Where fetched headers are kept unless the command line says otherwise.
pub const DEFAULT_CACHE: &str = "/var/cache/lacuna/headers";
/// Longest name of a kernel: `struct new_utsname` has 65 bytes for it (`include/uapi/linux/utsname.h`).
const MAX_RELEASE: usize = 64;

/// Why there are no headers.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The kernel calls itself something that names no package.
    #[error("the kernel's release {0:?} is no name of a package")]
    Release(String),
    /// This machine has no package manager that is known here.
    #[error("this machine has no {0}, the only package manager that is used here")]
    NoPackageManager(&'static str),
    /// No archive has the package.
    #[error("no archive that was asked has {package} for {architecture} (asked: {asked})")]
    NotOffered {
        /// The package.
        package: String,
        /// Debian's name of the architecture.
        architecture: &'static str,
        /// The archives.
        asked: String,
    },
    /// The lists of archives are signed with keys that are not here: whether they have the package is not
    /// known.
    #[error("the lists of an archive could not be checked, its key is not on this machine: {archives}")]
    Unchecked {
        /// The archives, and the keys.
        archives: String,
    },
    /// Archives gave no answer: whether they have the package is not known.
    #[error("no archive that answered has the package, and of these the lists could not be read: {archives}")]
    Unread {
        /// The archives, and what apt says of them.
        archives: String,
    },
    /// A program failed.
    #[error("{program} failed with {status}; it said:\n{said}")]
    Program {
        /// Which.
        program: &'static str,
        /// How it ended.
        status: String,
        /// Its last words.
        said: String,
    },
    /// What was fetched is no header tree.
    #[error("what was fetched is of no use: {0}")]
    Headers(#[from] HeadersError),
    /// What was fetched belongs to another kernel.
    #[error("what was fetched is of kernel {found:?}, not of {wanted:?}")]
    OtherKernel {
        /// By `utsrelease.h`.
        found: String,
        /// The guest's.
        wanted: String,
    },
    /// The cache cannot be used.
    #[error("{}: {cause}", path.display())]
    Io {
        /// What could not be read or written.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

/// Names what an input or output error is about.
trait At<T> {
    fn at(self, path: &Path) -> Result<T, FetchError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T, FetchError> {
        self.map_err(|cause| FetchError::Io {
            path: path.to_owned(),
            cause,
        })
    }
}

/// Which kernel: release and architecture, in words that are safe in names of packages and files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelName {
    release: String,
    architecture: &'static str,
}

impl KernelName {
    /// Takes a kernel's word for what it is. `architecture` is Debian's name for it.
    ///
    /// # Errors
    /// [`FetchError::Release`] for anything but letters, digits and `.+-_~`, or one that does not begin with
    /// a digit.
    pub fn new(release: &str, architecture: &'static str) -> Result<Self, FetchError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".+-_~".contains(&byte);
        let good = release.len() <= MAX_RELEASE
            && release.as_bytes().first().is_some_and(u8::is_ascii_digit)
            && release.bytes().all(plain);
        if good {
            Ok(Self {
                release: release.to_owned(),
                architecture,
            })
        } else {
            Err(FetchError::Release(release.to_owned()))
        }
    }

    /// `uname -r`.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Whether it is one of Proxmox' kernels.
    fn is_proxmox(&self) -> bool {
        self.release.ends_with("-pve")
    }

    /// What packages with its headers are called, as archives of Debian's kind name them: the likeliest
    /// first.
    fn packages(&self) -> Vec<String> {
        let prefixes: &[&str] = if self.is_proxmox() {
            &["proxmox-headers", "pve-headers"]
        } else {
            &["linux-headers"]
        };
        prefixes
            .iter()
            .map(|prefix| format!("{prefix}-{}", self.release))
            .collect()
    }

    /// `amd64` or `i386`.
    pub const fn architecture(&self) -> &'static str {
        self.architecture
    }
}

impl fmt::Display for KernelName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.release, self.architecture)
    }
}

/// A package that was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// Headers that are here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The header tree.
    pub headers: PathBuf,
    /// What was fetched for it; empty when it was here before.
    pub packages: Vec<Package>,
    /// Which archive it came from, in words; empty when it was here before.
    pub archive: String,
}

/// Where fetched headers are kept: a folder for each kernel, laid out as packages have it.
#[derive(Clone, Debug)]
pub struct HeaderCache {
    folder: PathBuf,
}

impl HeaderCache {
    /// The cache in `folder`, which need not exist.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// Where the headers of a kernel are, or would be.
    pub fn place(&self, kernel: &KernelName) -> PathBuf {
        self.tree(kernel)
            .join("usr/src")
            .join(format!("linux-headers-{}", kernel.release))
    }

    fn tree(&self, kernel: &KernelName) -> PathBuf {
        self.folder
            .join(format!("{}_{}", kernel.release, kernel.architecture))
    }

    /// Finds the headers of `kernel`: here, or in the first archive that has them. `progress` is told each
    /// step.
    ///
    /// # Errors
    /// [`FetchError`].
    pub fn fetch(
        &self,
        kernel: &KernelName,
        archive: &Archive,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Fetched, FetchError> {
        let headers = self.place(kernel);
        if headers.is_dir() && check(&headers, kernel).is_ok() {
            return Ok(Fetched {
                headers,
                packages: Vec::new(),
                archive: String::new(),
            });
        }
        fs::create_dir_all(&self.folder).at(&self.folder)?;
        let lock = File::open(&self.folder).at(&self.folder)?;
        // Another fetch may be under way; the package manager cannot share its folder.
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(io::Error::from)
            .at(&self.folder)?;
        let staged = tempfile::Builder::new()
            .prefix(".fetching-")
            .tempdir_in(&self.folder)
            .at(&self.folder)?;
        // apt takes what does not begin at the root for a path below its own folder.
        let state = fs::canonicalize(&self.folder).at(&self.folder)?.join("apt");
        let (packages, archive) = apt::fetch(kernel, archive, &state, staged.path(), progress)?;
        let unpacked = staged.path().join("tree");
        check(
            &unpacked
                .join("usr/src")
                .join(format!("linux-headers-{}", kernel.release)),
            kernel,
        )?;
        let tree = self.tree(kernel);
        if tree.exists() {
            // Left by an interrupted run or another version: it was not whole.
            fs::remove_dir_all(&tree).at(&tree)?;
        }
        fs::rename(&unpacked, &tree).at(&tree)?;
        Ok(Fetched {
            headers,
            packages,
            archive,
        })
    }
}

/// That a tree is whole and of this kernel.
fn check(headers: &Path, kernel: &KernelName) -> Result<(), FetchError> {
    let found = HeaderTree::open(headers, None)?.release().unwrap_or_default();
    if found == kernel.release {
        Ok(())
    } else {
        Err(FetchError::OtherKernel {
            found,
            wanted: kernel.release.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_guests_word_for_its_kernel_cannot_be_an_option_or_a_path() {
        for good in [
            "6.12.107+deb13-amd64",
            "2.6.18-274.7.1.el5",
            "7.2~rc1-cloud-amd64",
        ] {
            assert_eq!(KernelName::new(good, "amd64").unwrap().release(), good);
        }
        let long = "6".repeat(65);
        for bad in ["", "-o", "6.1/../../etc", "6.1 x", "6.1;id", "..", "a6.1", &long] {
            assert!(
                matches!(KernelName::new(bad, "amd64"), Err(FetchError::Release(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn what_is_in_the_cache_is_not_fetched_and_another_kernels_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let cache = HeaderCache::new(folder.path());
        let kernel = KernelName::new("6.1.0-1-amd64", "amd64").unwrap();
        let place = cache.place(&kernel);
        for file in [
            "include/generated/autoconf.h",
            "include/generated/bounds.h",
            "include/linux/kconfig.h",
            "include/linux/mm.h",
            "include/linux/mmzone.h",
            "include/linux/page-flags.h",
        ] {
            let file = place.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "#define CONFIG_X86_64 1\n").unwrap();
        }
        let says = |release: &str| {
            let text = format!("#define UTS_RELEASE \"{release}\"\n");
            fs::write(place.join("include/generated/utsrelease.h"), text).unwrap();
        };
        says("6.1.0-1-amd64");
        let found = cache
            .fetch(&kernel, &Archive::default(), &mut |step| unreachable!("{step}"))
            .unwrap();
        assert_eq!((found.headers, found.packages), (place.clone(), Vec::new()));
        says("6.1.0-2-amd64");
        assert!(matches!(
            check(&place, &kernel),
            Err(FetchError::OtherKernel { .. })
        ));
    }
}
