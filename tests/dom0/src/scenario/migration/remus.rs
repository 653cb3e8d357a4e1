//! Remus: the copy of a guest is brought up to date at each checkpoint, and goes on from the last one when
//! the original is gone.

use std::fs::{self, File};
use std::process::Child;
use std::time::Duration;

use super::busy::busy_guest;
use super::{AGENT_LIMIT, WORDS};
use crate::failure::{Result, differs, ensure};
use crate::host::{Host, wait_until};
use crate::services::xen;

/// What both ends write.
const OUTPUT: &str = "/run/remus";
/// Between two checkpoints, in ms. The guest runs in between, and dirties what it does within so long.
const INTERVAL_MS: &str = "1000";
/// Checkpoints seen before the original goes away.
const CHECKPOINTS: usize = 6;
/// How long they may take: each sends some tens of MiB.
const CHECKPOINTS_LIMIT: Duration = Duration::from_secs(600);
/// How long the copy may take to notice and to start.
const FAILOVER_LIMIT: Duration = Duration::from_secs(120);

/// xl on the sending side, ended with this value.
struct Sender(Child);

impl Drop for Sender {
    fn drop(&mut self) {
        // Left behind by a scenario that failed; both fail when it is over.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A guest at work is copied, each time by a scan of that moment; the original is destroyed in the middle of
/// its work, and the copy has all that it wrote until the last checkpoint.
pub(crate) fn remus(host: &mut Host) -> Result<()> {
    let mut guest = busy_guest(host)?;
    host.lacuna(&["attach", guest.name])?;
    let output = File::create(OUTPUT)?;
    let receiver = "exec /usr/local/sbin/xl migrate-receive -r";
    // Unsafe (-F), says xl, as no disk and no network are held back: this guest has none.
    let arguments = [
        "remus",
        "-F",
        "-n",
        "-d",
        "-i",
        INTERVAL_MS,
        "-s",
        "",
        guest.name,
        receiver,
    ];
    let mut command = xen("sbin/xl", &arguments);
    command.stdout(output.try_clone()?).stderr(output);
    host.note("copying the guest, checkpoint by checkpoint")?;
    let mut sender = Sender(command.spawn()?);
    let seen = wait_until("checkpoints", CHECKPOINTS_LIMIT, || {
        if let Some(status) = sender.0.try_wait()? {
            return Err(differs(
                "xl remus",
                "to go on",
                &format!("{status}: {}", words()?),
            ));
        }
        let checkpoints = checkpoints(&words()?);
        Ok((checkpoints.len() >= CHECKPOINTS).then_some(checkpoints))
    });
    host.log("remus.log", &words()?)?;
    let seen = seen?;
    let scans: Vec<u64> = seen.iter().map(|line| value(line, "scan")).collect();
    host.figure("checkpoints", scans.len() as u64)?;
    host.figure("scan_of_each", scans.clone())?;
    ensure(
        scans.windows(2).all(|pair| pair[0] < pair[1]),
        "the scan that each checkpoint goes by",
        "one of its own",
        &format!("{scans:?}"),
    )?;
    // What a guest at work has written within a second it mostly has in use. The first iteration finds the
    // free pages.
    let skipped: u64 = iterations(&words()?).map(|line| value(line, "free")).sum();
    host.figure("skipped", skipped)?;
    host.figure(
        "sent_at_each",
        seen.iter().map(|line| value(line, "sent")).collect::<Vec<_>>(),
    )?;
    ensure(skipped > 0, "free pages left behind", "more than none", "none")?;
    guest.work_so_far(AGENT_LIMIT)?;

    host.note("the original goes away")?;
    let original = guest.domain;
    host.xl(&["destroy", guest.name])?;
    let failed_over = wait_until("the copy goes on", FAILOVER_LIMIT, || {
        let listed = host.domains()?.iter().any(|name| name == guest.name);
        Ok(listed.then_some(()))
    });
    host.log("remus.log", &words()?)?;
    failed_over?;
    let copy = host.domain_number(guest.name)?;
    ensure(
        copy != original,
        "the domain that is the guest now",
        "the copy",
        &format!("{copy}, the original"),
    )?;
    guest.arrived(copy);
    sender.0.wait()?;
    // Ends with a check of every word that the guest holds.
    let (blocks, pages) = guest.end_work(AGENT_LIMIT)?;
    host.figure("blocks", blocks)?;
    host.figure("pages_checked", pages)?;
    host.figure("corrupt", 0)?;
    guest.check_health()
}

/// Returns what both ends have written so far.
fn words() -> Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(OUTPUT)?).into_owned())
}

/// Returns the sender's lines about its iterations.
fn iterations(words: &str) -> impl Iterator<Item = &str> {
    let lines = words.lines().filter_map(|line| Some(line.split_once(WORDS)?.1));
    lines.filter(|line| line.starts_with("iteration "))
}

/// Those about checkpoints: iterations while the guest was suspended, but the first, which ends the live
/// phase.
fn checkpoints(words: &str) -> Vec<String> {
    iterations(words)
        .filter(|line| line.trim_end().ends_with(" suspended"))
        .skip(1)
        .map(str::to_owned)
        .collect()
}

/// Returns the number after `name` in an iteration's line.
fn value(line: &str, name: &str) -> u64 {
    let mut words = line.split_whitespace().skip_while(|word| *word != name).skip(1);
    words.next().and_then(|word| word.parse().ok()).unwrap_or(0)
}
