//! Downloads by apt's own client, held against the hashes of the signed index, one version after the other
//! until one is served.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::apt::{Ended, failed_name, one_line, read_from, remove_failed, run_watched};
use super::{Archive, Candidate, Offers, PassedOver, RemoteFile};
use crate::error::{Error, IoContext, Result};
use crate::process::output;
use crate::progress::Progress;

/// Why a file could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Trouble {
    /// The server said so.
    #[error("{0}")]
    Refused(String),
    /// The right length, and other bytes than the index's.
    #[error("wrong hash: not the file that the signed index describes")]
    WrongHash,
    /// The server calls less than the whole file whole, or closed the connection.
    #[error("truncated: {got} of {size} bytes")]
    Truncated {
        /// Bytes that came.
        got: u64,
        /// Bytes that the index lists.
        size: u64,
    },
    /// Nothing came any more.
    #[error("time-out: nothing, or next to nothing, came for {seconds} s, after {got} of {size} bytes")]
    Stalled {
        /// How long it was waited for.
        seconds: u64,
        /// Bytes that came.
        got: u64,
        /// Bytes that the index lists.
        size: u64,
    },
    /// Something else, as apt words it.
    #[error("{0}")]
    Other(String),
}

impl Trouble {
    /// Whether what has come is the beginning of the right file, as far as one can tell.
    fn leaves_a_beginning(&self) -> bool {
        matches!(
            self,
            Self::Truncated { .. } | Self::Stalled { .. } | Self::Other(_)
        )
    }
}

/// What was downloaded.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Chosen {
    /// The version.
    pub(crate) candidate: Candidate,
    /// Its files, in the candidate's order.
    pub(crate) paths: Vec<PathBuf>,
    /// What would have come before it.
    pub(crate) passed_over: Vec<PassedOver>,
}

impl Archive<'_> {
    /// Downloads the first of `offers` of which all files are served into `directory`, under their own names.
    ///
    /// `what` and `remedy` are for the error: the thing looked for, and what to do when it cannot be had at
    /// all.
    pub(crate) fn first_served(
        &self,
        what: &str,
        offers: Offers,
        directory: &Path,
        remedy: &str,
        progress: &Progress,
    ) -> Result<Chosen> {
        let mut passed_over = offers.passed_over;
        for candidate in offers.candidates {
            if let Some(missing) = &candidate.missing {
                passed_over.push(candidate.passed_over(unlisted(missing)));
                continue;
            }
            match self.fetch_all(&candidate, directory, progress) {
                Ok(paths) => {
                    return Ok(Chosen {
                        candidate,
                        paths,
                        passed_over,
                    });
                }
                Err(Error::NotServed { file, trouble }) => {
                    let over = candidate.passed_over(format!("{file}: {trouble}"));
                    progress.line(&format!("lab: passed over {over}"));
                    passed_over.push(over);
                }
                Err(other) => return Err(other),
            }
        }
        Err(nothing_served(what, &passed_over, &self.suites(), remedy))
    }

    /// Downloads all files of a candidate, small ones first: they tell soonest that it cannot be had.
    fn fetch_all(
        &self,
        candidate: &Candidate,
        directory: &Path,
        progress: &Progress,
    ) -> Result<Vec<PathBuf>> {
        let mut files: Vec<&RemoteFile> = candidate.files.iter().collect();
        files.sort_by_key(|file| file.size);
        let path = |file: &RemoteFile| directory.join(&file.name);
        for (done, file) in files.iter().enumerate() {
            if let Err(error) = self.fetch(file, &path(file), progress) {
                for useless in &files[..done] {
                    crate::context::remove(&path(useless))?;
                }
                return Err(error);
            }
        }
        Ok(candidate.files.iter().map(path).collect())
    }

    /// Downloads `file` to `to`, which it reaches only whole and with the right hash. What is there already
    /// is kept; what a broken connection left in `partial/` beside it is gone on from.
    pub(crate) fn fetch(&self, file: &RemoteFile, to: &Path, progress: &Progress) -> Result<()> {
        if is_whole(file, to, &self.apt.log)? {
            return Ok(());
        }
        let directory = to.parent().unwrap_or(Path::new("/")).join("partial");
        fs::create_dir_all(&directory).on("create", &directory)?;
        let partial = directory.join(to.file_name().unwrap_or_default());
        let goes_on = partial.exists();
        let mut trouble = self.attempt(file, &partial, progress)?;
        let is_wrong = matches!(trouble, Some(Trouble::WrongHash | Trouble::Truncated { .. }));
        if goes_on && is_wrong && !partial.exists() {
            // The beginning may have been of another file.
            trouble = self.attempt(file, &partial, progress)?;
        }
        if let Some(trouble) = trouble {
            return Err(Error::NotServed {
                file: file.uri.clone(),
                trouble,
            });
        }
        crate::context::remove(to)?;
        fs::rename(&partial, to).on("rename", &partial)
    }

    /// Has apt download once. Afterwards `partial` is the whole file, its beginning, or gone.
    fn attempt(&self, file: &RemoteFile, partial: &Path, progress: &Progress) -> Result<Option<Trouble>> {
        let command = self.apt.download(&file.uri, partial, &file.sha256);
        let log = &self.apt.log;
        let begin = fs::metadata(log).map_or(0, |meta| meta.len());
        let mut pace = Pace::new(partial, self.apt.limits.silence, self.apt.limits.least);
        let ended = run_watched(command, log, progress, || pace.is_too_slow())?;
        let stalled = Trouble::Stalled {
            seconds: self.apt.limits.silence.as_secs(),
            got: length(partial),
            size: file.size,
        };
        let trouble = match ended {
            Ended::Exit(status) if status.success() => return Ok(None),
            Ended::Killed => stalled,
            Ended::Exit(status) => {
                let said = read_from(log, begin);
                let reason = failure(&said, &file.uri).unwrap_or_else(|| format!("apt ended with {status}"));
                let got = length(partial).max(length(&failed_name(partial)));
                classify(reason, got, file.size, stalled)
            }
        };
        let failed = failed_name(partial).exists();
        if failed || length(partial) == 0 || !trouble.leaves_a_beginning() {
            remove_failed(partial)?;
        }
        Ok(Some(trouble))
    }
}

/// The reason for passing over a version that is not whole.
pub(super) fn unlisted(missing: &str) -> String {
    format!("no index lists {missing} of that version")
}

/// The error for something of which no version can be had.
pub(super) fn nothing_served(what: &str, passed_over: &[PassedOver], suites: &[&str], remedy: &str) -> Error {
    let mut tried: Vec<String> = passed_over.iter().map(|over| format!("  {over}")).collect();
    if passed_over.iter().all(|over| over.what.starts_with("the suite ")) {
        let suites = if suites.is_empty() {
            "no suite's index could be had".to_owned()
        } else {
            format!("the indices of {} list none", suites.join(", "))
        };
        tried.insert(0, format!("  {suites}"));
    }
    Error::NothingServed {
        what: what.to_owned(),
        tried: tried.join("\n"),
        remedy: remedy.to_owned(),
    }
}

/// Whether enough comes in.
struct Pace<'a> {
    path: &'a Path,
    window: Duration,
    least: u64,
    since: Instant,
    length: u64,
}

impl<'a> Pace<'a> {
    fn new(path: &'a Path, silence: Duration, least: u64) -> Self {
        Self {
            path,
            // apt's own time-out comes first, where it sees one: it tells more.
            window: silence + Duration::from_secs(1).max(silence / 4),
            least,
            since: Instant::now(),
            length: length(path),
        }
    }

    fn is_too_slow(&mut self) -> bool {
        let now = length(self.path);
        if now >= self.length + self.least || now < self.length {
            (self.since, self.length) = (Instant::now(), now);
        }
        self.since.elapsed() > self.window
    }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

/// What apt gave as the reason, in one line.
fn failure(said: &str, uri: &str) -> Option<String> {
    let failed = said.lines().find_map(|line| {
        let rest = line.strip_prefix("E: Failed to fetch ")?;
        // After a redirection it names where that led.
        let reason = rest.strip_prefix(uri).or_else(|| Some(rest.split_once(' ')?.1))?;
        Some(one_line(reason))
    });
    failed.or_else(|| {
        let told = said.lines().rev().find(|line| line.starts_with("E: "))?;
        Some(one_line(told.trim_start_matches("E: ")))
    })
}

fn classify(reason: String, got: u64, size: u64, stalled: Trouble) -> Trouble {
    let is_status = reason.len() > 3
        && reason.as_bytes()[..3].iter().all(u8::is_ascii_digit)
        && reason.as_bytes()[3] == b' ';
    if is_status {
        Trouble::Refused(reason)
    } else if reason.contains("timed out") {
        stalled
    } else if got > 0 && got < size {
        Trouble::Truncated { got, size }
    } else if reason.contains("Hash Sum mismatch") || reason.contains("unexpected size") {
        Trouble::WrongHash
    } else {
        Trouble::Other(reason)
    }
}

/// Whether `path` is `file`, whole.
fn is_whole(file: &RemoteFile, path: &Path, log: &Path) -> Result<bool> {
    if length(path) != file.size {
        return Ok(false);
    }
    let mut command = Command::new("sha256sum");
    command.arg(path);
    // A name with odd characters makes the line begin with a backslash.
    Ok(output(command, log)?
        .trim_start_matches('\\')
        .starts_with(&file.sha256))
}

/// Reads a line of `--print-uris`: `'URI' NAME SIZE SHA256:HASH`.
pub(super) fn parse_uri(line: &str) -> Option<RemoteFile> {
    let (uri, rest) = line.strip_prefix('\'')?.split_once("' ")?;
    let mut words = rest.split_whitespace();
    Some(RemoteFile {
        name: words.next()?.to_owned(),
        size: words.next()?.parse().ok()?,
        sha256: words.next()?.strip_prefix("SHA256:")?.to_owned(),
        uri: uri.to_owned(),
    })
}
