//! A process in the middle of the line between a sending and a receiving xl, in the place of ssh:
//! `init tap FOLDER`.
//!
//! It starts the receiving end, whose answers go straight to the sender, passes standard input on to it and
//! follows it. When the receiving end is gone, so is the line. The folder holds its orders (`plan.json`), and
//! takes its report (`report.json`), its account of the frames (`frames`) and, where wanted, the stream
//! itself (`stream`).

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::tally::Tally;
use super::{Moment, StreamError, follow};
use crate::services::xen;

/// How often a waiting tap looks for leave to go on.
const POLL: Duration = Duration::from_millis(20);
/// How long the line may outlive the receiver: on success the sender ends it as soon as it has the receiver's
/// word.
const GRACE: Duration = Duration::from_secs(3);
/// The tap's own files in its folder.
pub(crate) const PLAN: &str = "plan.json";
pub(crate) const REPORT: &str = "report.json";
pub(crate) const FRAMES: &str = "frames";
pub(crate) const STREAM: &str = "stream";
/// Made by the tap when it holds the line, with the word for where.
pub(crate) const HELD: &str = "held";
/// Made by the driver to let the line go.
pub(crate) const GO: &str = "go";

/// What a tap is to do beside passing on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Set for the receiving xl and its helper.
    pub(crate) receiver: Vec<(String, String)>,
    /// Arguments of the receiving xl.
    pub(crate) arguments: Vec<String>,
    /// Pass the header on without its question, so that the receiver keeps silent like a stock one.
    pub(crate) deaf: bool,
    /// The address of the receiving host; this one where there is none.
    pub(crate) to: Option<String>,
    /// Hold the line once so many pages have been sent with content.
    pub(crate) hold_at: Option<u64>,
    /// Hold it when the guest stands still on both sides.
    pub(crate) hold_at_leave: bool,
    /// Cut the line in the middle of the record with this page.
    pub(crate) cut_at: Option<u64>,
    /// Keep the stream.
    pub(crate) keep: bool,
}

/// Where the optional flags are in xl's header (`struct save_file_header` in `tools/xl/xl.h`).
const OPTIONAL_FLAGS: Range<usize> = 40..44;

/// The receiving end, and a file of the same.
struct Output {
    line: ChildStdin,
    copy: Option<BufWriter<File>>,
    /// The header is still to come, and its question is to be taken out.
    deaf: bool,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if std::mem::take(&mut self.deaf) && bytes.len() >= OPTIONAL_FLAGS.end {
            let mut header = bytes.to_vec();
            header[OPTIONAL_FLAGS].fill(0);
            return self.write(&header);
        }
        if let Some(copy) = &mut self.copy {
            copy.write_all(bytes)?;
        }
        self.line.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.copy.as_mut().map_or(Ok(()), Write::flush)
    }
}

/// Starts the receiving end and runs the tap to the line's end.
///
/// # Errors
/// Those of its own files and of starting the receiver; what is wrong with the stream is in the report.
pub(crate) fn run(folder: &Path) -> io::Result<()> {
    let plan: Plan = serde_json::from_slice(&fs::read(folder.join(PLAN))?)?;
    let copy = plan.keep.then(|| File::create(folder.join(STREAM))).transpose()?;
    let mut receiver = match &plan.to {
        None => xen("sbin/xl", &["migrate-receive"]),
        Some(address) => {
            let mut dial = Command::new("/init");
            dial.args(["dial", address]);
            dial
        }
    };
    receiver.args(&plan.arguments);
    receiver.envs(plan.receiver.iter().cloned());
    let mut receiver = receiver.stdin(Stdio::piped()).spawn()?;
    let Some(line) = receiver.stdin.take() else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    // The sender waits for an answer until nobody is left who could give one.
    rustix::stdio::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
    let output = Output {
        line,
        copy: copy.map(BufWriter::new),
        deaf: plan.deaf,
    };
    let (over, is_over) = channel();
    let folder = folder.to_path_buf();
    std::thread::spawn(move || {
        // Nobody listens any more once the receiver has been gone for a while.
        let _ = over.send(pass(&folder, &plan, output));
    });
    receiver.wait()?;
    is_over.recv_timeout(GRACE).unwrap_or(Ok(()))
}

/// Passes standard input on to `output` to the end.
fn pass(folder: &Path, plan: &Plan, mut output: Output) -> io::Result<()> {
    let mut input = io::stdin().lock();
    let mut tally = Tally::default();
    let mut held_in_the_middle = false;
    let mut reached = |moment, tally: &Tally| {
        let over = |limit: Option<u64>| limit.is_some_and(|limit| tally.sent() >= limit);
        match moment {
            Moment::Pages if over(plan.cut_at) => return Err(StreamError::Cut),
            Moment::Pages if over(plan.hold_at) && !held_in_the_middle => {
                held_in_the_middle = true;
                hold(folder, tally, "pages")?;
            }
            Moment::Leave if plan.hold_at_leave => hold(folder, tally, "leave")?,
            _ => {}
        }
        Ok(())
    };
    let outcome = follow(&mut input, &mut output, &mut tally, &mut reached);
    tell(folder, &tally, outcome.as_ref().err())?;
    if let Err(StreamError::Format { .. }) = outcome {
        // Both ends are to go on as if nobody listened: what comes after the damage is passed on unread.
        io::copy(&mut input, &mut output.line)?;
    }
    output.flush()
}

/// Writes what is known, says that the line is held at `place`, and waits for leave.
fn hold(folder: &Path, tally: &Tally, place: &str) -> io::Result<()> {
    tell(folder, tally, None)?;
    fs::write(folder.join(HELD), place)?;
    while !folder.join(GO).exists() {
        std::thread::sleep(POLL);
    }
    fs::remove_file(folder.join(GO))?;
    fs::remove_file(folder.join(HELD))
}

fn tell(folder: &Path, tally: &Tally, damage: Option<&StreamError>) -> io::Result<()> {
    let mut report = tally.report();
    report.damage = damage.map(ToString::to_string);
    fs::write(folder.join(FRAMES), tally.frames().bytes())?;
    // Renamed into its place: who sees it sees all of it.
    let new = folder.join("report.new");
    fs::write(&new, serde_json::to_vec(&report)?)?;
    fs::rename(new, folder.join(REPORT))
}
