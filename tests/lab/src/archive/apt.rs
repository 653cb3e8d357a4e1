//! apt with a configuration of its own: neither the machine's package sources nor the sysroot's are read or
//! changed.

use std::fs::{self, File};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::index::{self, Paragraph};
use super::{Entry, Kind, Limits, PassedOver};
use crate::context::remove;
use crate::error::{Error, IoContext, Result};
use crate::process::{output, start};
use crate::progress::Progress;
use crate::sysroot::Sysroot;

/// The program of apt's that lies outside the search path, at the same place since Debian 8.
const HELPER: &str = "/usr/lib/apt/apt-helper";

/// How often a running apt is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Whose apt is run.
#[derive(Clone, Copy)]
pub(crate) enum Runner<'a> {
    /// The machine's: there need not be a sysroot yet.
    Host,
    /// The sysroot's.
    Sysroot(&'a Sysroot),
}

/// An apt that keeps its state in one directory.
pub(super) struct Apt<'a> {
    runner: Runner<'a>,
    /// Everything it keeps is below.
    pub(super) directory: PathBuf,
    pub(super) limits: Limits,
    /// Where its output goes.
    pub(super) log: PathBuf,
}

/// An index that apt has, its signature checked.
#[derive(Clone, Debug)]
pub(super) struct Index {
    /// The suite it is of.
    pub(super) suite: String,
    /// The archive's base.
    pub(super) uri: String,
    /// Sources or packages.
    pub(super) kind: Kind,
    file: String,
}

/// How a program ended.
pub(super) enum Ended {
    /// By itself.
    Exit(std::process::ExitStatus),
    /// Killed: too long, or too long without progress.
    Killed,
}

impl<'a> Apt<'a> {
    /// Makes its directories; the indices of an earlier run stay, so that only what has changed is asked for
    /// again.
    pub(super) fn new(runner: Runner<'a>, directory: PathBuf, limits: Limits, log: PathBuf) -> Result<Self> {
        for below in ["lists/partial", "cache/archives/partial"] {
            let path = directory.join(below);
            fs::create_dir_all(&path).on("create", &path)?;
        }
        if let Some(parent) = log.parent() {
            fs::create_dir_all(parent).on("create", parent)?;
        }
        let status = directory.join("status");
        fs::write(&status, "").on("write", &status)?;
        Ok(Self {
            runner,
            directory,
            limits,
            log,
        })
    }

    /// Brings the indices of `entries` up to date as far as they can be had, and returns those that are there
    /// and why others are not.
    pub(super) fn refresh(
        &self,
        entries: &[Entry],
        progress: &Progress,
    ) -> Result<(Vec<Index>, Vec<PassedOver>)> {
        let sources = self.directory.join("sources.list");
        let keyring = self.keyring();
        let text: String = entries.iter().map(|entry| entry.line(&keyring)).collect();
        fs::write(&sources, text).on("write", &sources)?;
        let begin = fs::metadata(&self.log).map_or(0, |meta| meta.len());
        // What apt makes of the indices for its own use takes longer than all the rest, and nothing here asks
        // for it.
        let update = self.command("apt-get", &["-o", "pkgCacheFile::Generate=false", "update"]);
        let began = Instant::now();
        let limit = self.limits.refresh;
        let ended = run_watched(update, &self.log, progress, || began.elapsed() > limit)?;
        let said = read_from(&self.log, begin);
        let there = self.indices()?;
        let mut passed_over: Vec<PassedOver> = Vec::new();
        for entry in entries {
            let is_there = there.iter().any(|index| entry.is(index));
            if !is_there && was_read(&said, entry) && refresh_trouble(&said, entry, false).is_none() {
                // apt keeps no file for an index that is empty or that the suite does not have.
                continue;
            }
            let reason = match (refresh_trouble(&said, entry, !is_there), &ended, is_there) {
                (Some(why), _, true) => format!("not brought up to date, an earlier index is used: {why}"),
                (Some(why), _, false) => why,
                (None, Ended::Killed, false) => format!("no whole index within {} s", limit.as_secs()),
                (None, Ended::Killed, true) => format!(
                    "not brought up to date within {} s, an earlier index is used",
                    limit.as_secs()
                ),
                (None, Ended::Exit(_), true) => continue,
                (None, Ended::Exit(_), false) => {
                    format!(
                        "apt has no index of its {}: see {}",
                        entry.kind,
                        self.log.display()
                    )
                }
            };
            let over = PassedOver {
                what: format!("the suite {} of {}", entry.suite, entry.uri),
                reason,
                unusable: !is_there,
            };
            if !passed_over.contains(&over) {
                passed_over.push(over);
            }
        }
        Ok((there, passed_over))
    }

    /// The indices that are there, in the order of the source list.
    fn indices(&self) -> Result<Vec<Index>> {
        let format = "$(CREATED_BY)|$(REPO_URI)|$(RELEASE)|$(ARCHITECTURE)|$(FILENAME)";
        let listing = output(
            self.command("apt-get", &["indextargets", "--format", format]),
            &self.log,
        )?;
        Ok(listing.lines().filter_map(parse_target).collect())
    }

    /// Reads an index and keeps the packages whose name is `wanted`.
    pub(super) fn read(&self, index: &Index, wanted: impl Fn(&str) -> bool) -> Result<Vec<Paragraph>> {
        let mut command = self.command(HELPER, &["cat-file", &index.file]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = start(&mut command)?;
        let Some(out) = child.stdout.take() else {
            return Ok(Vec::new());
        };
        let found = index::read(BufReader::with_capacity(1 << 16, out), wanted);
        let status = child.wait().on("wait for", HELPER)?;
        let found = found.on("read", &index.file)?;
        if status.success() {
            return Ok(found);
        }
        Err(Error::Unexpected {
            what: format!("apt's reading of its index {}", index.file),
            expected: "success".to_owned(),
            seen: status.to_string(),
        })
    }

    /// Says which files apt would fetch to install `packages` and all they depend on into an empty system.
    pub(super) fn closure(&self, packages: &[&str]) -> Result<String> {
        // By itself apt prints the weakest hash that it knows here.
        let mut line = vec!["-o", "Acquire::ForceHash=SHA256", "install", "-y"];
        line.extend(["--no-install-recommends", "--print-uris"]);
        line.extend(packages);
        output(self.command("apt-get", &line), &self.log)
    }

    /// A command that downloads `uri` to `to` and holds it against its hash.
    pub(super) fn download(&self, uri: &str, to: &Path, sha256: &str) -> Command {
        let to = to.to_string_lossy();
        self.command(HELPER, &["download-file", uri, &to, &format!("SHA256:{sha256}")])
    }

    /// One of apt's programs with this configuration.
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let at = self.directory.display();
        let silence = self.limits.silence.as_secs().max(1);
        let options = [
            format!("Dir::Etc::sourcelist={at}/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={at}/lists"),
            format!("Dir::State::status={at}/status"),
            format!("Dir::Cache={at}/cache"),
            // Another list of suites may use the same directory in turn.
            "APT::Get::List-Cleanup=false".to_owned(),
            // apt's unprivileged download user cannot enter root's own directories.
            "APT::Sandbox::User=root".to_owned(),
            // The archive in use may be a snapshot of an earlier day. Signatures are checked all the same.
            "Acquire::Check-Valid-Until=false".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            // The same on either side, or each apt would fetch the other's indices again.
            "Acquire::GzipIndexes=true".to_owned(),
            format!("Acquire::Retries={}", self.limits.retries),
            format!("Acquire::http::Timeout={silence}"),
            format!("Acquire::https::Timeout={silence}"),
            // Hooks of the machine's are for its own package lists.
            "APT::Update::Post-Invoke-Success::=true".to_owned(),
        ];
        let mut line = vec![program];
        for option in &options {
            line.extend(["-o", option]);
        }
        line.extend(arguments);
        match self.runner {
            Runner::Sysroot(sysroot) => sysroot.command(&self.directory, &line),
            Runner::Host => {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL"]).args(&line);
                command.current_dir(&self.directory).env("LC_ALL", "C.UTF-8");
                command
            }
        }
    }

    /// The keys that sign Debian's archive, where apt does not trust them by itself: it does where they lie
    /// among the trusted ones.
    fn keyring(&self) -> String {
        let root = match self.runner {
            Runner::Host => Path::new("/"),
            Runner::Sysroot(sysroot) => &sysroot.root,
        };
        let trusted = fs::read_dir(root.join("etc/apt/trusted.gpg.d"));
        if trusted.is_ok_and(|mut keys| keys.next().is_some()) {
            return String::new();
        }
        let rings = ["pgp", "gpg"].map(|end| format!("usr/share/keyrings/debian-archive-keyring.{end}"));
        rings
            .iter()
            .find(|ring| root.join(ring).exists())
            .map_or_else(String::new, |ring| format!("signed-by=/{ring}"))
    }
}

/// Runs `command` to its end, or until `give_up`; its output is appended to `log`.
pub(super) fn run_watched(
    mut command: Command,
    log: &Path,
    progress: &Progress,
    mut give_up: impl FnMut() -> bool,
) -> Result<Ended> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .on("open", log)?;
    let errors = file.try_clone().on("duplicate", log)?;
    // A group of its own, so that the programs which apt starts end with it.
    command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .process_group(0);
    let mut child = start(&mut command)?;
    loop {
        if let Some(status) = child.try_wait().on("wait for", log)? {
            return Ok(Ended::Exit(status));
        }
        if give_up() {
            kill(&mut child)?;
            return Ok(Ended::Killed);
        }
        progress.tick(|| crate::process::last_lines(log, 0, 1));
        std::thread::sleep(POLL);
    }
}

fn kill(child: &mut Child) -> Result<()> {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It may have ended by itself meanwhile.
        let _ = kill_process_group(group, Signal::KILL);
    }
    child.wait().map(drop).on("wait for", "apt")
}

/// What was written to `log` from the byte `begin` on; empty when it cannot be read, as it only explains.
pub(super) fn read_from(log: &Path, begin: u64) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(log) {
        let read = file
            .seek(SeekFrom::Start(begin))
            .and_then(|_| file.read_to_end(&mut bytes));
        if read.is_err() {
            return String::new();
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn parse_target(line: &str) -> Option<Index> {
    let mut fields = line.split('|');
    let (created, uri, suite) = (fields.next()?, fields.next()?, fields.next()?);
    let (architecture, file) = (fields.next()?, fields.next()?);
    let kind = match created {
        "Sources" => Kind::Sources,
        "Packages" => Kind::Binaries(known_architecture(architecture)?),
        _ => return None,
    };
    Some(Index {
        suite: suite.to_owned(),
        uri: uri.to_owned(),
        kind,
        file: file.to_owned(),
    })
}

/// Debian's names for the architectures that the lab's guests have.
fn known_architecture(name: &str) -> Option<&'static str> {
    ["amd64", "i386"].into_iter().find(|known| *known == name)
}

/// The suite of an entry as `apt-get update` words it.
fn place(entry: &Entry) -> String {
    format!("{} {}", entry.uri.trim_end_matches('/'), entry.suite)
}

/// Whether `apt-get update` got what a suite says of its indices.
fn was_read(said: &str, entry: &Entry) -> bool {
    let place = place(entry);
    let ends = [format!("{place} InRelease"), format!("{place} Release")];
    said.lines().any(|line| {
        let line = line.split(" [").next().unwrap_or_default();
        (line.starts_with("Get:") || line.starts_with("Hit:"))
            && ends.iter().any(|end| line.ends_with(end.as_str()))
    })
}

/// Finds what `apt-get update` said about an entry, in one line; with `any`, also what it said about the
/// suite's other kind of index: where a suite has none at all it may complain of one alone.
fn refresh_trouble(said: &str, entry: &Entry, any: bool) -> Option<String> {
    let place = place(entry);
    let concerns = |line: &str| {
        let Some((_, rest)) = line.split_once(&place) else {
            return false;
        };
        // `trixie` is not `trixie-updates`; below a suite the other kind of index is not this one.
        match rest.strip_prefix('/') {
            Some(_) if any => true,
            Some(below) => match entry.kind {
                Kind::Sources => below.contains("Sources"),
                Kind::Binaries(architecture) => below.contains(&format!("{architecture} Packages")),
            },
            None => rest.starts_with(' '),
        }
    };
    let lines: Vec<&str> = said.lines().collect();
    let failed = lines
        .iter()
        .position(|line| line.starts_with("Err:") && concerns(line));
    if let Some(next) = failed.and_then(|at| lines.get(at + 1)) {
        return Some(one_line(next));
    }
    let told = lines
        .iter()
        .find(|line| (line.starts_with("E: ") || line.starts_with("W: ")) && concerns(line));
    told.map(|line| one_line(line[3..].trim()))
}

/// Takes from a line of apt's what is of the machine's moment: addresses, and spaces.
pub(super) fn one_line(line: &str) -> String {
    let line = line.split(" [IP:").next().unwrap_or_default();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Removes a file that apt has found wrong, under both names that it may have then.
pub(super) fn remove_failed(path: &Path) -> Result<()> {
    remove(path)?;
    remove(&failed_name(path))
}

/// The name under which apt keeps a file whose hash is wrong.
pub(super) fn failed_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".FAILED");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(suite: &str, kind: Kind) -> Entry {
        Entry::new("http://a.example/debian/", suite, kind)
    }

    #[test]
    fn what_apt_says_of_one_suite_or_index_is_not_said_of_another() {
        let said = "Err:8 http://a.example/debian trixie-updates Release\n  \
                    404  Not Found [IP: 192.0.2.1 80]\n\
                    Err:9 http://a.example/debian bookworm/main Sources\n  \
                    File has unexpected size (1 != 2). Mirror sync in progress?\n\
                    E: The repository 'http://a.example/debian sid Release' is not signed.\n";
        let trouble = |suite, kind| refresh_trouble(said, &entry(suite, kind), false);
        assert_eq!(trouble("trixie", Kind::Sources), None);
        assert_eq!(
            trouble("trixie-updates", Kind::Sources).as_deref(),
            Some("404 Not Found")
        );
        let packages = entry("bookworm", Kind::Binaries("amd64"));
        assert_eq!(refresh_trouble(said, &packages, false), None);
        assert!(refresh_trouble(said, &packages, true).is_some());
        assert_eq!(
            trouble("bookworm", Kind::Sources).as_deref(),
            Some("File has unexpected size (1 != 2). Mirror sync in progress?")
        );
        assert_eq!(
            trouble("sid", Kind::Binaries("amd64")).as_deref(),
            Some("The repository 'http://a.example/debian sid Release' is not signed.")
        );
    }
}
