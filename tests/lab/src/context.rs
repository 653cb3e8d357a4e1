//! Where things are: the checkout, the cache, the lock on it, and what a step's stamp says.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, statvfs};

use crate::error::{Error, IoContext, Result};
use crate::key::Key;
use crate::progress::Progress;

/// The places of one run of the lab. Holding it means holding the cache's lock.
pub(crate) struct Context {
    /// The top of the checkout.
    pub(crate) repository: PathBuf,
    /// The cache directory, outside the checkout.
    pub(crate) cache: PathBuf,
    /// Held until the run ends: two labs must neither build in one tree nor emulate on the same two cores.
    _lock: File,
}

impl Context {
    /// Finds the directories and takes the cache's lock, waiting for another lab to end.
    pub(crate) fn open() -> Result<Self> {
        // Fixed at build time: `cargo lab` always builds the lab from the checkout that it works on.
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let repository = repository.canonicalize().on("find", &repository)?;
        let cache = cache_directory()?;
        fs::create_dir_all(&cache).on("create", &cache)?;
        let cache = cache.canonicalize().on("find", &cache)?;
        let path = cache.join("lock");
        let lock = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .on("open", &path)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            eprintln!("lab: waiting for another lab that uses {}", cache.display());
            flock(&lock, FlockOperation::LockExclusive).on("lock", &path)?;
        }
        for path in [&repository, &cache] {
            warn_if_full(path);
        }
        Ok(Self {
            repository,
            cache,
            _lock: lock,
        })
    }

    /// A path inside the cache.
    pub(crate) fn cached(&self, path: impl AsRef<Path>) -> PathBuf {
        self.cache.join(path)
    }

    /// Where a set-up step's output is kept.
    pub(crate) fn step_log(&self, step: &str) -> PathBuf {
        self.cached("logs/setup")
            .join(format!("{}.log", step.replace('/', "-")))
    }

    /// Does `work` unless it was done before with the same `key`.
    ///
    /// The stamp is taken away first and written last, so a failed or interrupted step runs again. `work` must either
    /// build aside and rename ([`Staged`]) or be able to go on from whatever it left.
    pub(crate) fn step(
        &self,
        name: &str,
        key: &Key,
        work: impl FnOnce(&Progress) -> Result<()>,
    ) -> Result<()> {
        let stamp = self.cached("stamps").join(name.replace('/', "-"));
        if fs::read_to_string(&stamp).is_ok_and(|seen| seen == key.as_str()) {
            return Ok(());
        }
        remove(&stamp)?;
        let log = self.step_log(name);
        remove(&log)?;
        let progress = Progress::begin(name);
        work(&progress)?;
        let directory = self.cached("stamps");
        fs::create_dir_all(&directory).on("create", &directory)?;
        fs::write(&stamp, key.as_str()).on("write", &stamp)?;
        progress.done();
        Ok(())
    }
}

/// A file or directory being built beside its place, which it takes only when complete.
pub(crate) struct Staged {
    target: PathBuf,
    /// Where to build.
    pub(crate) path: PathBuf,
}

impl Staged {
    /// Starts afresh, without what an earlier attempt may have left.
    pub(crate) fn directory(target: PathBuf) -> Result<Self> {
        let staged = Self::file(target)?;
        fs::create_dir_all(&staged.path).on("create", &staged.path)?;
        Ok(staged)
    }

    /// As [`Staged::directory`], for a single file, which is not created.
    pub(crate) fn file(target: PathBuf) -> Result<Self> {
        let mut name = target.as_os_str().to_owned();
        name.push(".new");
        let path = PathBuf::from(name);
        remove(&path)?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).on("create", parent)?;
        }
        Ok(Self { target, path })
    }

    /// Puts the finished thing in its place.
    pub(crate) fn commit(self) -> Result<()> {
        remove(&self.target)?;
        fs::rename(&self.path, &self.target).on("rename", &self.path)
    }
}

/// Removes a file or a whole directory; there being none is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let Ok(meta) = path.symlink_metadata() else {
        return Ok(());
    };
    if meta.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
    .on("remove", path)
}

/// Fails unless the lab runs as root.
pub(crate) fn require_root() -> Result<()> {
    let uid = rustix::process::geteuid().as_raw();
    if uid == 0 {
        Ok(())
    } else {
        Err(Error::NotRoot { uid })
    }
}

/// Says so when the file system of `path` may not have the space for a run from nothing. A compiler that finds a full disk does not always
/// say so. No more than a warning: a run with what it needs already there takes next to nothing.
fn warn_if_full(path: &Path) {
    // What README says: the tests and the programs take most of it, the cache the rest.
    const WANTED: u64 = 10 << 30;
    let Ok(about) = statvfs(path) else { return };
    let free = about.f_bavail.saturating_mul(about.f_frsize);
    if free < WANTED {
        eprintln!(
            "lab: {} MiB of disk are free at {}; a run from nothing takes up to {} MiB",
            free >> 20,
            path.display(),
            WANTED >> 20
        );
    }
}

fn cache_directory() -> Result<PathBuf> {
    // As the XDG base directory specification has it: a relative value is to be ignored.
    let configured = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let base = configured.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    base.map(|base| base.join("lacuna"))
        .ok_or_else(|| Error::Unexpected {
            what: "the cache directory".to_owned(),
            expected: "XDG_CACHE_HOME or HOME to be set".to_owned(),
            seen: "neither".to_owned(),
        })
}
