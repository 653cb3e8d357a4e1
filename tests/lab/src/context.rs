//! Where things are: the checkout, the cache, the lock on it, and what a step's stamp says.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, IoContext, Result};
use crate::key::Key;
use crate::progress::Progress;
use crate::xen::given::Given;
use crate::xen::series::Series;

/// What the user asks of every command.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// The source of Xen that the user gives.
    pub(crate) xen_source: Option<Given>,
    /// The series of Xen that the user asks for.
    pub(crate) series: Option<Series>,
    /// Nothing is to be downloaded.
    pub(crate) offline: bool,
}

/// The file in the cache that a lab at work has locked.
const LOCK: &str = "lock";

/// The places of one run of the lab.
pub(crate) struct Context {
    /// The top of the checkout.
    pub(crate) repository: PathBuf,
    /// The cache directory, outside the checkout.
    pub(crate) cache: PathBuf,
    /// What the user asks for.
    pub(crate) options: Options,
    /// Locked until the run ends, see [`Context::open`]: two labs must neither build in one tree nor emulate
    /// on the same two cores.
    lock: File,
}

impl Context {
    /// Finds the directories and takes the cache's lock, waiting for another lab to end.
    pub(crate) fn open(options: Options) -> Result<Self> {
        let context = Self::look(options)?;
        let lock = &context.lock;
        if flock(lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            eprintln!(
                "lab: waiting for another lab that uses {}",
                context.cache.display()
            );
            flock(lock, FlockOperation::LockExclusive).on("lock", context.cache.join(LOCK))?;
        }
        Ok(context)
    }

    /// Finds the directories, for who only looks: another lab may be at work in the cache.
    pub(crate) fn look(options: Options) -> Result<Self> {
        // Fixed at build time: `cargo lab` always builds the lab from the checkout that it works on.
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let repository = repository.canonicalize().on("find", &repository)?;
        let cache = cache_directory()?;
        fs::create_dir_all(&cache).on("create", &cache)?;
        let cache = cache.canonicalize().on("find", &cache)?;
        let path = cache.join(LOCK);
        let lock = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .on("open", &path)?;
        Ok(Self {
            repository,
            cache,
            options,
            lock,
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

    /// Whether the step called `name` was done with this `key`.
    pub(crate) fn is_done(&self, name: &str, key: &Key) -> bool {
        fs::read_to_string(self.stamp(name)).is_ok_and(|seen| seen == key.as_str())
    }

    fn stamp(&self, name: &str) -> PathBuf {
        self.cached("stamps").join(name.replace('/', "-"))
    }

    /// Does `work` and shows it under `name`: what is done keeps its own record of that.
    pub(crate) fn work<T>(&self, name: &str, work: impl FnOnce(&Progress) -> Result<T>) -> Result<T> {
        remove(&self.step_log(name))?;
        let progress = Progress::begin(name);
        let value = work(&progress)?;
        progress.done();
        Ok(value)
    }

    /// As [`Context::step`], for a step that downloads: with `--offline` it fails instead.
    pub(crate) fn download(
        &self,
        name: &str,
        key: &Key,
        work: impl FnOnce(&Progress) -> Result<()>,
    ) -> Result<()> {
        if self.options.offline && !self.is_done(name, key) {
            return Err(Error::Offline {
                step: name.to_owned(),
            });
        }
        self.step(name, key, work)
    }

    /// Does `work` unless it was done before with the same `key`.
    ///
    /// The stamp is taken away first and written last, so a failed or interrupted step runs again. `work`
    /// must either build aside and rename ([`Staged`]) or be able to go on from whatever it left.
    pub(crate) fn step(
        &self,
        name: &str,
        key: &Key,
        work: impl FnOnce(&Progress) -> Result<()>,
    ) -> Result<()> {
        if self.is_done(name, key) {
            return Ok(());
        }
        let stamp = self.stamp(name);
        remove(&stamp)?;
        self.work(name, work)?;
        let directory = self.cached("stamps");
        fs::create_dir_all(&directory).on("create", &directory)?;
        fs::write(&stamp, key.as_str()).on("write", &stamp)
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
