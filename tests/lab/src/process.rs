//! Runs other programs: output into a log file, progress on the terminal, and the log's end in the error.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::context::require_root;
use crate::error::{Error, IoContext, Result};
use crate::progress::{Progress, say};

/// How many lines of a failed program's output go into its error.
const TAIL_LINES: usize = 25;
/// How many bytes at a log's end are looked at for those lines.
const TAIL_BYTES: u64 = 8192;
/// How often a running program is looked at: short against any step, long against the cost of looking.
const POLL: Duration = Duration::from_millis(100);

/// A part that is up to date is looked at in less than this.
const WORTH_TELLING: Duration = Duration::from_secs(2);

thread_local! {
    /// The flag of the work that this thread is part of.
    static HALTED: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Work whose parts go on side by side: says what is left of it, and ends it once a part has failed.
#[derive(Default)]
pub(crate) struct Halt {
    flag: Arc<AtomicBool>,
    cause: Mutex<Option<Error>>,
    /// The names of the parts that have not ended.
    left: Mutex<Vec<&'static str>>,
}

impl Halt {
    /// Begins work that has these parts.
    pub(crate) fn new(parts: &[&'static str]) -> Self {
        Self {
            left: Mutex::new(parts.to_vec()),
            ..Self::default()
        }
    }

    /// Takes `name` off the list of what is left, and shows the rest when the part took long enough to be
    /// waited for.
    fn done(&self, name: &str, took: Duration) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.retain(|part| *part != name);
        if took >= WORTH_TELLING && !left.is_empty() {
            say(&format!("lab: still to be made: {}", left.join(", ")));
        }
    }

    /// Runs the part called `name` on the calling thread. When it fails, programs that other parts run are
    /// ended.
    pub(crate) fn guard<T>(&self, name: &str, part: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = HALTED.replace(Some(Arc::clone(&self.flag)));
        let started = Instant::now();
        let ended = part();
        HALTED.set(before);
        if ended.is_ok() {
            self.done(name, started.elapsed());
        }
        ended.map_err(|error| {
            self.flag.store(true, Ordering::Relaxed);
            let mut cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner);
            // The first failure is the one that matters: the others were ended for it.
            match (&*cause, &error) {
                (None, seen) if !matches!(seen, Error::Ended) => {
                    *cause = Some(error);
                    Error::Ended
                }
                _ => error,
            }
        })
    }

    /// Returns the failure that ended the whole, for the one that came of it.
    pub(crate) fn cause(&self, seen: Error) -> Error {
        let mut cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner);
        cause.take().unwrap_or(seen)
    }
}

/// Whether the work that this thread is part of is to end.
fn halted() -> bool {
    HALTED.with_borrow(|flag| flag.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed)))
}

/// Runs `command` to its end with standard output and error appended to `log`, and fails unless it succeeds.
///
/// `progress` shows the last line written, as a sign of life.
pub(crate) fn run_logged(mut command: Command, log: &Path, progress: &Progress) -> Result<()> {
    if let Some(parent) = log.parent() {
        fs::create_dir_all(parent).on("create", parent)?;
    }
    let file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .on("open", log)?;
    let begin = file.metadata().on("look at", log)?.len();
    let errors = file.try_clone().on("duplicate", log)?;
    command.stdin(Stdio::null()).stdout(file).stderr(errors);
    let mut child = start(&mut command)?;
    let status = loop {
        if let Some(status) = child.try_wait().on("wait for", program(&command))? {
            break status;
        }
        if halted() {
            // What it runs dies with it: programs in the sysroot have a namespace of their own, and cargo
            // ends its compilers.
            child.kill().on("end", program(&command))?;
            child.wait().on("wait for", program(&command))?;
            return Err(Error::Ended);
        }
        progress.tick(|| last_lines(log, 0, 1));
        std::thread::sleep(POLL);
    };
    if status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: shortened(&command),
        status: status.to_string(),
        tail: last_lines(log, begin, TAIL_LINES),
        log: log.to_path_buf(),
    })
}

/// Runs `command` to its end and returns what it wrote to standard output.
///
/// A failure's error carries what it wrote to standard error; `log` is where the text of both is kept then.
pub(crate) fn output(mut command: Command, log: &Path) -> Result<String> {
    let ran = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Start {
            program: program(&command),
            source,
        })?;
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    if ran.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&ran.stderr).into_owned();
    fs::write(log, format!("{text}{errors}")).on("write", log)?;
    Err(Error::Command {
        command: shortened(&command),
        status: ran.status.to_string(),
        tail: last_lines(log, 0, TAIL_LINES),
        log: log.to_path_buf(),
    })
}

/// Starts `command`.
pub(crate) fn start(command: &mut Command) -> Result<Child> {
    command.spawn().map_err(|source| Error::Start {
        program: program(command),
        source,
    })
}

/// The last `count` lines of the file at `path` from its byte `begin` on; empty when it cannot be read, as it
/// only decorates a message.
pub(crate) fn last_lines(path: &Path, begin: u64, count: usize) -> String {
    let Ok(mut file) = File::open(path) else {
        return String::new();
    };
    let length = file.metadata().map_or(0, |meta| meta.len());
    let mut bytes = Vec::new();
    if file
        .seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES).max(begin)))
        .is_err()
        || file.read_to_end(&mut bytes).is_err()
    {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Whether the program `name` is found on the search path.
pub(crate) fn is_installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Administrators' programs are not on every user's path; debootstrap is one.
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .any(|directory| directory.join(name).is_file())
}

/// Installs what this machine lacks of `programs`, each with Debian's package of it.
///
/// # Errors
/// Something is missing, and this is not root, or the package cannot be had.
pub(crate) fn install_missing(programs: &[(&str, &str)], log: &Path, progress: &Progress) -> Result<()> {
    let missing: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    require_root()?;
    progress.line(&format!("lab: installing {} on this machine", missing.join(", ")));
    for arguments in [
        vec!["update"],
        [vec!["install", "-y", "--no-install-recommends"], missing].concat(),
    ] {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        run_logged(command, log, progress)?;
    }
    Ok(())
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// The command line as one would type it, cut where it gets long: the log has the rest.
fn shortened(command: &Command) -> String {
    const LIMIT: usize = 300;
    let mut text = program(command);
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy().replace('\n', "; "));
    }
    if text.chars().count() > LIMIT {
        let tail: String = text.chars().skip(text.chars().count() - LIMIT).collect();
        text = format!("…{tail}");
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shell(line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        command
    }

    #[test]
    fn a_failed_part_ends_the_programs_of_the_others_and_is_the_cause_told() {
        let log = std::env::temp_dir().join(format!("lacuna-lab-halt-{}", std::process::id()));
        let halt = Halt::default();
        let started = std::time::Instant::now();
        let (long, failed) = std::thread::scope(|scope| {
            let long = scope.spawn(|| {
                halt.guard("long", || {
                    run_logged(shell("exec sleep 600"), &log, &Progress::begin("long"))
                })
            });
            let failed = halt.guard("failing", || Err::<(), _>(Error::NotRoot { uid: 7 }));
            (long.join().unwrap(), failed)
        });
        assert!(matches!(long, Err(Error::Ended)) && matches!(failed, Err(Error::Ended)));
        assert!(matches!(halt.cause(Error::Ended), Error::NotRoot { uid: 7 }));
        assert!(started.elapsed() < Duration::from_secs(300), "it was not ended");
        fs::remove_file(log).unwrap();
    }

    #[test]
    fn an_error_shows_what_the_failed_program_wrote_and_nothing_before() {
        let log = std::env::temp_dir().join(format!("lacuna-lab-process-{}", std::process::id()));
        let progress = Progress::begin("test");
        run_logged(shell("echo went well"), &log, &progress).unwrap();
        let error = run_logged(shell("echo went wrong >&2; exit 3"), &log, &progress).unwrap_err();
        assert!(
            matches!(&error, Error::Command { tail, .. } if tail == "went wrong"),
            "{error:?}"
        );
        assert_eq!(fs::read_to_string(&log).unwrap(), "went well\nwent wrong\n");
        fs::remove_file(log).unwrap();
    }
}
