//! What can go wrong on the machine's side of the lab, with the values that tell why.

use std::io;
use std::path::{Path, PathBuf};

use crate::archive::Trouble;

/// The lab's own result.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a set-up step or of a run.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub(crate) enum Error {
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// A program could not be started.
    #[error("cannot start `{program}`")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },

    /// A program ended badly.
    #[error("`{command}` ended with {status}; its last lines:\n{tail}")]
    #[diagnostic(help("the whole output is in {}", log.display()))]
    Command {
        /// The command line, shortened.
        command: String,
        /// The exit status as the system words it.
        status: String,
        /// The last lines it wrote.
        tail: String,
        /// Where all of it is.
        log: PathBuf,
    },

    /// The lab builds a Debian tree with chroot and mounts, which needs root.
    #[error("this step needs root (user id 0), and runs as user id {uid}")]
    #[diagnostic(help("run it as root: debootstrap, chroot and mount namespaces ask for it"))]
    NotRoot {
        /// The user id the lab runs under.
        uid: u32,
    },

    /// Something downloaded or built is not what the lab can work with.
    #[error("{what}: expected {expected}, saw {seen}")]
    Unexpected {
        /// The thing looked at.
        what: String,
        /// What the lab needs.
        expected: String,
        /// What is there.
        seen: String,
    },

    /// The archive does not give a file that its index lists.
    #[error("{file}: {trouble}")]
    NotServed {
        /// Its address.
        file: String,
        /// Why.
        trouble: Trouble,
    },

    /// No version of something can be had.
    #[error("{what} cannot be had; tried, in this order:\n{tried}")]
    #[diagnostic(help("{remedy}"))]
    NothingServed {
        /// The thing looked for.
        what: String,
        /// All that was tried, each with its reason, a line each.
        tried: String,
        /// What to do.
        remedy: String,
    },

    /// The machine is not fit for the lab; the checks have been printed already.
    #[error("{failed} of {total} checks failed")]
    #[diagnostic(help("each failed check says what to do; `cargo lab doctor` repeats them"))]
    Unfit {
        /// How many failed.
        failed: usize,
        /// How many there are.
        total: usize,
    },

    /// Something is to be downloaded, and the user forbade it.
    #[error("`{step}` is not in the cache, and --offline forbids to download it")]
    #[diagnostic(help(
        "`cargo lab setup --offline` lists what is missing; `cargo lab setup` with a network gets it"
    ))]
    Offline {
        /// The step that downloads.
        step: String,
    },

    /// The cache lacks something that is downloaded; the list has been printed already.
    #[error("{missing} of {total} things are missing for work without a network")]
    #[diagnostic(help(
        "`cargo lab setup` and `cargo lab test` on a machine with a network get them; the cache may then be moved"
    ))]
    Missing {
        /// How many are missing.
        missing: usize,
        /// How many are needed.
        total: usize,
    },

    /// Patches do not fit a tree; the report has been printed already.
    #[error("{failed} of {total} patches do not apply without fuzz")]
    #[diagnostic(help("docs/porting.md says what each hook needs to hold"))]
    DoNotApply {
        /// How many do not.
        failed: usize,
        /// How many there are.
        total: usize,
    },

    /// Another part of the work failed, and this one was ended for it.
    #[error("ended, as something else failed")]
    Ended,

    /// An operation was named for a measurement that has none.
    #[error("only `where` measures a single operation: run `cargo lab bench where {operation}`")]
    NoOperation {
        /// The operation.
        operation: String,
    },

    /// A plot was asked for of a measurement that has none.
    #[error("only `scale` draws a plot: leave `--plot` out, or run `cargo lab bench scale --plot FILE`")]
    NoPlot,

    /// A picture could not be drawn.
    #[error("the plot could not be drawn: {what}")]
    Picture {
        /// What the drawing library said.
        what: String,
    },

    /// Options of `cargo lab bench paper` were given with another measurement.
    #[error("only `paper` has cells: --only, --resume and --plots say nothing to `{subject}`")]
    #[diagnostic(help("leave them out, or run `cargo lab bench paper`"))]
    NoCells {
        /// The measurement.
        subject: String,
    },

    /// No scenario's name matches the filter.
    #[error("no scenario matches `{filter}`; there are: {known}")]
    NoScenario {
        /// The filter given.
        filter: String,
        /// The names that exist.
        known: String,
    },

    /// The filters stand for long scenarios only, and those were not asked for.
    #[error("all that `{filters}` stands for is long")]
    #[diagnostic(help("add --full, or name a scenario in full"))]
    OnlyLong {
        /// The filters given.
        filters: String,
    },

    /// The emulator ended or stood still before it was told to.
    #[error("{what}")]
    #[diagnostic(help("the consoles are in {}", logs.display()))]
    Emulator {
        /// What happened.
        what: String,
        /// The directory with the consoles' logs.
        logs: PathBuf,
    },

    /// At least one scenario failed; the report has been printed already.
    #[error("{failed} of {total} tests failed")]
    Failed {
        /// How many failed.
        failed: usize,
        /// How many ran.
        total: usize,
    },
}

/// Adds the action and the path to an [`io::Error`].
pub(crate) trait IoContext<T> {
    /// Turns a failed `action` on `path` into [`Error::Io`].
    fn on(self, action: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn on(self, action: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::Io {
            action,
            path: path.as_ref().to_path_buf(),
            source: source.into(),
        })
    }
}
