//! Moves a guest: xl on both ends, a tap on the line between them, and a look at both sides while the guest
//! stands still on both.

mod memory;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use crate::failure::{Result, differs, ensure};
use crate::guest::Guest;
use crate::host::{Host, run, wait_until};
use crate::services::xen;
use crate::stream::tally::{Frames, Report};
use crate::stream::tap;

pub(crate) use memory::{Differences, Side, compare};

/// Where a migration's folder is made.
const FOLDER: &str = "/run/migration";
/// How long a migration may take: half a minute is usual for a guest of 512 MiB.
const LIMIT: Duration = Duration::from_secs(400);

/// What a migration is to be like.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journey {
    /// Options of the sending xl.
    pub(crate) options: &'static [&'static str],
    /// Set for the sending xl and its helper.
    pub(crate) sender: &'static [(&'static str, &'static str)],
    /// The tap's orders, which are also the receiver's.
    pub(crate) tap: tap::Plan,
}

/// A migration under way.
pub(crate) struct Migration {
    child: Child,
    folder: PathBuf,
    name: &'static str,
    started: Instant,
}

/// The result of a migration.
pub(crate) struct Arrival {
    /// What the stream held.
    pub(crate) report: Report,
    /// The stream, where the tap was to keep it.
    pub(crate) stream: PathBuf,
    /// What both ends wrote.
    pub(crate) words: String,
    /// How long it took.
    pub(crate) took: Duration,
    /// Whether xl called it a success.
    pub(crate) success: bool,
}

impl Migration {
    /// Starts to move `guest` from this host to this host.
    pub(crate) fn start(host: &mut Host, guest: &Guest, journey: &Journey) -> Result<Self> {
        let folder = PathBuf::from(FOLDER);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let plan = serde_json::to_vec(&journey.tap).map_err(std::io::Error::other)?;
        fs::write(folder.join(tap::PLAN), plan)?;
        let line = format!("exec /init tap {FOLDER}");
        host.log(
            "commands.log",
            &format!(
                "xl migrate {} -s '' {} '{line}' {:?}\n",
                journey.options.join(" "),
                guest.name,
                journey.sender
            ),
        )?;
        let words = File::create(folder.join("words"))?;
        let mut command = xen("sbin/xl", &["migrate"]);
        command.args(journey.options);
        command.args(["-s", "", guest.name, &line]);
        command.envs(journey.sender.iter().copied());
        command.stdout(words.try_clone()?).stderr(words);
        Ok(Self {
            child: command.spawn()?,
            folder,
            name: guest.name,
            started: Instant::now(),
        })
    }

    /// Waits until the tap holds the line; returns what went by so far.
    pub(crate) fn wait_held(&mut self) -> Result<(Report, Frames)> {
        let held = self.folder.join(tap::HELD);
        let (child, folder) = (&mut self.child, &self.folder);
        wait_until("the migration is at the place to look at", LIMIT, || {
            if held.exists() {
                return Ok(Some(()));
            }
            match child.try_wait()? {
                None => Ok(None),
                Some(status) => Err(differs(
                    "the migration",
                    "to be under way",
                    &format!("{status}: {}", last_words(folder)),
                )),
            }
        })?;
        Ok((self.report()?, self.frames()?))
    }

    /// Lets the line go on.
    pub(crate) fn go_on(&self) -> Result<()> {
        Ok(fs::write(self.folder.join(tap::GO), "")?)
    }

    /// Returns what the tap has to say.
    pub(crate) fn report(&self) -> Result<Report> {
        let bytes = fs::read(self.folder.join(tap::REPORT))?;
        Ok(serde_json::from_slice(&bytes).map_err(std::io::Error::other)?)
    }

    fn frames(&self) -> Result<Frames> {
        Ok(Frames::from_bytes(fs::read(self.folder.join(tap::FRAMES))?))
    }

    /// Waits for the end of both xl, whatever it is, and gives the lab their words.
    pub(crate) fn finish(mut self, host: &mut Host) -> Result<Arrival> {
        let child = &mut self.child;
        let ended = wait_until("the migration ends", LIMIT, || Ok(child.try_wait()?));
        let words = String::from_utf8_lossy(&fs::read(self.folder.join("words"))?).into_owned();
        // xl draws its progress over itself, line by line.
        let words = words
            .rsplit('\r')
            .map(str::trim_end)
            .rev()
            .collect::<Vec<_>>()
            .join("\n");
        host.log("migrations.log", &format!("-- {}\n{words}\n", self.name))?;
        let status = ended?;
        let took = self.started.elapsed();
        // The tap writes its report when xl is already gone, or nearly.
        let report = self.folder.join(tap::REPORT);
        wait_until("the tap reports", Duration::from_secs(30), || {
            Ok(report.exists().then_some(()))
        })?;
        let report = self.report()?;
        host.log("migrations.log", &format!("{report:?}\n"))?;
        Ok(Arrival {
            stream: self.folder.join(tap::STREAM),
            report,
            words,
            took,
            success: status.success(),
        })
    }
}

impl Drop for Migration {
    fn drop(&mut self) {
        // Left behind by a scenario that failed; both fail when it is over.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Arrival {
    /// Fails unless the guest has moved and the stream was whole.
    pub(crate) fn expect_success(&self) -> Result<()> {
        ensure(self.success, "the migration", "success", &self.words)?;
        ensure(
            self.report.ended && self.report.damage.is_none(),
            "the stream",
            "whole, and in the format",
            &format!("{:?}", self.report.damage),
        )
    }
}

/// The two copies of a guest that stands still on both sides.
pub(crate) struct Standstill {
    /// The domain that was sent.
    pub(crate) sender: u16,
    /// The domain that was received.
    pub(crate) receiver: u16,
    /// What the stream held.
    pub(crate) report: Report,
    /// What it said of each frame.
    pub(crate) frames: Frames,
}

/// Moves `guest`, has `look` look at it while it stands still on both sides, and waits until it is there.
pub(crate) fn migrate(
    host: &mut Host,
    guest: &mut Guest,
    mut journey: Journey,
    look: impl FnOnce(&mut Host, &Standstill) -> Result<()>,
) -> Result<Arrival> {
    journey.tap.hold_at_leave = true;
    let mut migration = Migration::start(host, guest, &journey)?;
    let (report, frames) = match migration.wait_held() {
        Ok(held) => held,
        Err(failure) => {
            let words = last_words(&migration.folder);
            host.log("migrations.log", &format!("-- {}\n{words}\n", guest.name))?;
            return Err(failure);
        }
    };
    let receiver = host.domain_number(&format!("{}--incoming", guest.name))?;
    look(
        host,
        &Standstill {
            sender: guest.domain,
            receiver,
            report,
            frames,
        },
    )?;
    migration.go_on()?;
    let arrival = migration.finish(host)?;
    arrival.expect_success()?;
    guest.arrived(host.domain_number(guest.name)?);
    Ok(arrival)
}

/// Xen's own checker reads the stream in `file`.
pub(crate) fn verify(file: &Path) -> Result<()> {
    let mut checker = xen("lib/xen/bin/verify-stream-v2", &[]);
    checker.args(["--format", "xl", "--in"]).arg(file);
    run(&mut checker).map(drop)
}

fn last_words(folder: &Path) -> String {
    let words = fs::read(folder.join("words")).unwrap_or_default();
    let words = String::from_utf8_lossy(&words);
    let lines: Vec<&str> = words.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(12)..].join(" | ")
}
