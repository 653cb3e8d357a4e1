//! The agent: the first and only process of a lab guest. It takes orders on the console and answers there.

mod account;
mod console;
mod disk;
mod files;
mod health;
mod jobs;
mod kexec;
mod memory;
mod pattern;
mod traffic;
mod workload;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lacuna_guest::{Report, Task};
use rustix::mount::{MountFlags, mount};
use rustix::system::RebootCommand;

use crate::account::Account;
use crate::console::Console;
use crate::files::Files;
use crate::jobs::Programs;
use crate::memory::Held;
use crate::pattern::{Churn, Pattern};
use crate::traffic::{Messages, Seen};
use crate::workload::Workload;

/// glibc's setting for "give every block of this size or more back to the kernel at once". Left alone it
/// grows with use, and freed memory would stay with the agent.
const MMAP_THRESHOLD: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "65536");

/// The identifier of this boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The answer to orders about pages with known contents when there are none.
const NO_PATTERN: &str = "there are no pages with known contents";

/// What the agent holds between orders.
#[derive(Default)]
struct Agent {
    account: Option<Account>,
    workload: Option<Workload>,
    held: Vec<Held>,
    pattern: Option<Pattern>,
    churn: Option<Churn>,
    programs: Option<Programs>,
    files: Option<Files>,
    answered: Option<Seen>,
    messages: Option<Messages>,
}

fn main() {
    if std::env::var_os(MMAP_THRESHOLD.0).is_none() {
        // glibc reads the setting before main, so the agent starts itself again with it.
        let error = Command::new("/proc/self/exe")
            .env(MMAP_THRESHOLD.0, MMAP_THRESHOLD.1)
            .exec();
        // Without /proc there is no such path yet: the image has the agent as /init.
        let error = if error.kind() == io::ErrorKind::NotFound {
            Command::new("/init")
                .env(MMAP_THRESHOLD.0, MMAP_THRESHOLD.1)
                .exec()
        } else {
            error
        };
        eprintln!("lacuna-guest: cannot start again: {error}");
    }
    if let Err(error) = serve() {
        // The kernel panics when its first process ends, which dom0 sees; this line says why.
        eprintln!("lacuna-guest: {error}");
    }
}

fn serve() -> io::Result<()> {
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
    ] {
        std::fs::create_dir_all(at)?;
        match mount(kind, at, kind, MountFlags::empty(), c"") {
            // The kernel mounts devtmpfs by itself in some configurations; before 2.6.32 it has none.
            Err(rustix::io::Errno::BUSY | rustix::io::Errno::NODEV) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // As systemd does: a kernel draws it when it is first read, and some keep no other value of their boot.
    let _ = std::fs::read(BOOT_ID);
    let console = Arc::new(Console::open()?);
    console.say(
        0,
        Report::Ready {
            release: rustix::system::uname().release().to_string_lossy().into_owned(),
            command_line: std::fs::read_to_string("/proc/cmdline")?.trim().to_owned(),
        },
    );
    let mut agent = Agent::default();
    loop {
        match console.next_order()? {
            Ok(order) => {
                if order.task == Task::Restart {
                    rustix::fs::sync();
                    rustix::system::reboot(RebootCommand::Restart)?;
                }
                let report = agent
                    .obey(&order.task, &console)
                    .unwrap_or_else(|why| Report::Failed { why });
                let jump = order.task == Task::Kexec && report == Report::Done;
                console.say(order.id, report);
                if jump {
                    kexec::jump()?;
                }
            }
            Err(why) => console.say(0, Report::Failed { why }),
        }
    }
}

impl Agent {
    /// Starts a workload, unless one runs.
    fn work(&mut self, start: impl FnOnce() -> Workload) -> Result<Report, String> {
        if self.workload.is_some() {
            return Err("a workload runs already".to_owned());
        }
        self.workload = Some(start());
        Ok(Report::Done)
    }

    /// Starts capturing which pages are free, where that is not going on.
    fn truth(&mut self) -> Result<Report, String> {
        let account = match self.account.take() {
            Some(account) => account,
            None => Account::start().map_err(|error| error.to_string())?,
        };
        let gfns = account.gfns().to_vec();
        self.account = Some(account);
        Ok(Report::Truth { gfns })
    }

    fn programs(&self) -> Result<Report, String> {
        let programs = self.programs.as_ref().ok_or("no programs were started")?;
        programs.report().map_err(|error| error.to_string())
    }

    /// Carries out an order about the disk.
    fn on_disk(&mut self, task: &Task) -> Result<Report, String> {
        let text = |error: io::Error| error.to_string();
        let idle = "no files are worked on";
        match *task {
            Task::DiskFill { seed } => disk::fill(seed).map_err(text),
            Task::DiskCheck { seed, every } => disk::check(seed, every).map_err(text),
            Task::Mount => files::mount_disk().map(|()| Report::Done).map_err(text),
            Task::Unmount => files::unmount_disk().map(|()| Report::Done).map_err(text),
            Task::FilesStart { seed, mib, rest_ms } => {
                let rest = Duration::from_millis(rest_ms.into());
                self.files = Some(Files::start(seed, mib, rest));
                Ok(Report::Done)
            }
            Task::FilesStatus => Ok(self.files.as_ref().ok_or(idle)?.report()),
            Task::FilesStop => self.files.take().ok_or(idle)?.stop(),
            Task::FilesCheck { seed } => files::check(seed).map_err(text),
            _ => Err("not an order about a disk".to_owned()),
        }
    }

    /// Carries out an order about the network card.
    fn on_card(&mut self, task: &Task) -> Result<Report, String> {
        let text = |error: io::Error| error.to_string();
        let idle = "no messages are sent";
        match *task {
            Task::CardUp { address } => {
                self.answered = Some(traffic::serve(address).map_err(text)?);
                Ok(Report::Done)
            }
            Task::CardStatus => {
                let seen = self.answered.as_ref().ok_or("the card has no address")?;
                Ok(traffic::report(seen))
            }
            Task::TrafficStart { peer, seed, rest_ms } => {
                let rest = Duration::from_millis(rest_ms.into());
                self.messages = Some(Messages::start(peer, seed, rest).map_err(text)?);
                Ok(Report::Done)
            }
            Task::TrafficStatus => Ok(self.messages.as_ref().ok_or(idle)?.report()),
            Task::TrafficStop => self.messages.take().ok_or(idle)?.stop(),
            _ => Err("not an order about a network card".to_owned()),
        }
    }

    /// Carries out an order about pages with known contents.
    fn on_pattern(&mut self, task: &Task) -> Result<Report, String> {
        match *task {
            Task::PatternMake {
                kinds,
                copies,
                unique,
                seed,
            } => {
                let pattern = self.pattern.insert(Pattern::make(kinds, copies, unique, seed));
                pattern
                    .frames()
                    .map(|gfns| Report::Truth { gfns })
                    .map_err(|error| error.to_string())
            }
            Task::PatternCheck => Ok(self.pattern.as_mut().ok_or(NO_PATTERN)?.check()),
            Task::PatternRewrite { every } => {
                self.pattern.as_mut().ok_or(NO_PATTERN)?.rewrite(every);
                Ok(Report::Done)
            }
            Task::ChurnStart => {
                self.churn = Some(Churn::start(self.pattern.take().ok_or(NO_PATTERN)?));
                Ok(Report::Done)
            }
            Task::ChurnStop => {
                let (pattern, report) = self.churn.take().ok_or("nothing is being written")?.stop()?;
                self.pattern = Some(pattern);
                Ok(report)
            }
            _ => Err("not an order about pages with known contents".to_owned()),
        }
    }

    fn obey(&mut self, task: &Task, console: &Arc<Console>) -> Result<Report, String> {
        let text = |error: io::Error| error.to_string();
        match *task {
            Task::Fill => memory::fill().map(|()| Report::Done).map_err(text),
            Task::TruthStart => self.truth(),
            Task::TruthStop => {
                self.account
                    .take()
                    .ok_or("no truth is being captured")?
                    .stop()
                    .map_err(text)?;
                Ok(Report::Done)
            }
            Task::WorkStart { threads, mib, seed } => {
                self.work(|| Workload::start(threads, mib, seed, Duration::ZERO, console))
            }
            Task::WorkPaced { mib, seed, rest_ms } => {
                let rest = Duration::from_millis(rest_ms.into());
                self.work(|| Workload::start(1, mib, seed, rest, console))
            }
            Task::WorkStatus => Ok(self.workload.as_ref().ok_or("no workload runs")?.report()),
            Task::WorkStop => Ok(self.workload.take().ok_or("no workload runs")?.stop()),
            Task::Grow { mib } => {
                let (held, report) = Held::take(mib);
                self.held.push(held);
                Ok(report)
            }
            Task::Shrink => {
                self.held.clear();
                Ok(Report::Done)
            }
            Task::PatternMake { .. }
            | Task::PatternCheck
            | Task::PatternRewrite { .. }
            | Task::ChurnStart
            | Task::ChurnStop => self.on_pattern(task),
            Task::Kexec => kexec::load().map(|()| Report::Done).map_err(text),
            Task::Lie { .. }
            | Task::LiesCheck
            | Task::TakePages { .. }
            | Task::ReadPage { .. }
            | Task::HandPage { .. }
            | Task::GiveUp { .. }
            | Task::Operate { .. }
            | Task::OperateCheck => {
                Err("only the Windows-like guest keeps its lists itself, and calls Xen itself".to_owned())
            }
            Task::DiskFill { .. }
            | Task::DiskCheck { .. }
            | Task::Mount
            | Task::Unmount
            | Task::FilesStart { .. }
            | Task::FilesStatus
            | Task::FilesStop
            | Task::FilesCheck { .. } => self.on_disk(task),
            Task::CardUp { .. }
            | Task::CardStatus
            | Task::TrafficStart { .. }
            | Task::TrafficStatus
            | Task::TrafficStop => self.on_card(task),
            Task::Restart => Err("not restarted".to_owned()),
            Task::ProgramsStart {
                workload,
                ref phases,
                rest_ms,
            } => {
                let rest = Duration::from_millis(rest_ms.into());
                self.programs = Some(Programs::start(workload, phases.clone(), rest).map_err(text)?);
                Ok(Report::Done)
            }
            Task::ProgramsStatus => self.programs(),
            Task::Health => health::report().map_err(text),
        }
    }
}

/// Reads a file of `name value` lines, such as `/proc/meminfo`, into its first numbers.
fn numbers(path: &str) -> io::Result<BTreeMap<String, u64>> {
    let text = std::fs::read_to_string(path)?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            Some((
                fields.next()?.trim_end_matches(':').to_owned(),
                fields.next()?.parse().ok()?,
            ))
        })
        .collect())
}
