//! A guest and the agent in it.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lacuna::xen::domain_info::DomainId;
use lacuna::xen::privcmd::Privcmd;
use lacuna_core::abi::Statistics;
use lacuna_guest::truth::Capture;
use lacuna_guest::{MARK, Order, Reply, Report, Task};

use crate::account;
use crate::engine::Direct;
use crate::failure::{Failure, Result, differs, ensure};
use crate::host::{Host, run, wait_until};
use crate::services::xen;

/// Pages of 4 KiB in a MiB.
pub(crate) const PAGES_PER_MIB: u64 = 256;

/// Where xenconsoled keeps what guests write.
pub(crate) const CONSOLES: &str = "/var/log/xen/console";
/// How long a guest may take until its agent speaks: 15 s is usual, a loaded machine takes a multiple.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// How long a device model may take to serve the guest's serial port.
const SERIAL_LIMIT: Duration = Duration::from_secs(60);
/// How long the last words of a guest that has ended are waited for.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How Xen runs a guest; both have nested paging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Without a device model.
    Pvh,
    /// With one, QEMU in dom0. Its kernel is started by a BIOS.
    Hvm,
}

impl Kind {
    /// Returns the lines of xl's configuration that make a guest of this kind.
    pub(crate) const fn machine(self) -> &'static str {
        match self {
            Self::Pvh => "type=\"pvh\"",
            Self::Hvm => {
                "type=\"hvm\"\ndevice_model_version=\"qemu-xen\"\n\
                 device_model_override=\"/usr/libexec/xen-qemu-system-i386\"\n\
                 firmware_override=\"/usr/local/lib/xen/boot/hvmloader\"\n\
                 bios=\"seabios\"\nbios_path_override=\"/usr/share/seabios/bios-256k.bin\"\nvnc=0\nusb=0"
            }
        }
    }

    /// Returns the devices in xl's configuration by default: none.
    const fn devices(self) -> &'static str {
        match self {
            Self::Pvh => "",
            Self::Hvm => "vga=\"none\"\nserial=\"none\"",
        }
    }
}

/// What a guest is to be like.
pub(crate) struct Plan {
    /// The domain's name.
    pub(crate) name: &'static str,
    /// The kernel's release series, as the image has it.
    pub(crate) kernel: &'static str,
    /// How Xen runs it.
    pub(crate) kind: Kind,
    /// Memory in MiB.
    pub(crate) mib: u32,
    /// Virtual processors.
    pub(crate) vcpus: u32,
    /// The initial file system, by its name in the image.
    pub(crate) initrd: &'static str,
    /// Added to xl's configuration, in lines.
    pub(crate) configuration: &'static str,
    /// Added to the kernel's command line.
    pub(crate) extra: &'static str,
}

impl Plan {
    /// Plans a guest of 512 MiB with one vCPU.
    pub(crate) const fn stock(name: &'static str, kernel: &'static str) -> Self {
        Self {
            name,
            kernel,
            kind: Kind::Pvh,
            mib: 512,
            vcpus: 1,
            initrd: "initrd",
            configuration: "",
            extra: "",
        }
    }

    /// Writes the guest's configuration for xl to a file, and returns its path.
    pub(crate) fn write(&self) -> Result<String> {
        let file = format!("/root/{}.cfg", self.name);
        fs::write(&file, self.configuration())?;
        Ok(file)
    }

    /// Returns the guest's configuration for xl.
    fn configuration(&self) -> String {
        // Native time-stamps: emulating them costs an exit each, and the emulator has no other clock to
        // offer. Errors only on the console (loglevel=4): the agent's lines should stay whole, and it reads
        // the log itself.
        format!(
            "name=\"{}\"\n{}\n{}\nkernel=\"/guests/{}/vmlinuz\"\nramdisk=\"/guests/{}\"\n\
             extra=\"console=hvc0 loglevel=4 panic=1 {}\"\nmemory={}\nmaxmem={}\nvcpus={}\ntsc_mode=\"native\"\n\
             on_crash=\"preserve\"\non_reboot=\"preserve\"\non_poweroff=\"preserve\"\n{}\n",
            self.name,
            self.kind.machine(),
            self.kind.devices(),
            self.kernel,
            self.initrd,
            self.extra,
            self.mib,
            self.mib,
            self.vcpus,
            self.configuration
        )
    }
}

/// A guest's own account of its free pages, kept in its memory.
pub(crate) struct Account {
    domain: u16,
    gfns: Vec<u64>,
}

impl Account {
    /// Returns the latest capture, whatever the guest is doing.
    pub(crate) fn read(&self) -> Result<Capture> {
        account::read(self.domain, &self.gfns)
    }

    /// Returns the frames that hold the account.
    pub(crate) fn gfns(&self) -> &[u64] {
        &self.gfns
    }

    /// Goes on reading the account where a migration has brought the guest.
    pub(crate) fn moved(&mut self, guest: &Guest) {
        self.domain = guest.domain;
    }

    /// Waits until the guest is so still that `captures` captures in a row were the same.
    pub(crate) fn wait_still(&self, captures: u64, limit: Duration) -> Result<()> {
        let mut last = String::new();
        let waited = wait_until("the guest's free pages stand still", limit, || {
            // Until the first capture is over there is nothing to read.
            let read = self.read();
            last = match &read {
                Ok(capture) => format!("{} captures in a row the same", capture.same),
                Err(failure) => failure.to_string(),
            };
            Ok(read.ok().filter(|capture| capture.same >= captures).map(drop))
        });
        waited.map_err(|failure| match failure {
            Failure::Late { what, limit, .. } => Failure::Late {
                what,
                limit,
                seen: last,
            },
            other => other,
        })
    }
}

/// An order that was given and not answered yet.
pub(crate) struct Sent {
    id: u32,
    what: String,
}

/// The log of the guest called `name`, and its length. xenconsoled appends: what an earlier guest of this name
/// wrote is not this one's.
fn log_of(name: &str) -> (PathBuf, u64) {
    let log = PathBuf::from(CONSOLES).join(format!("guest-{name}.log"));
    let read = fs::metadata(&log).map_or(0, |metadata| metadata.len());
    (log, read)
}

/// A running guest.
pub(crate) struct Guest {
    /// The domain's name.
    pub(crate) name: &'static str,
    /// The domain's number.
    pub(crate) domain: u16,
    /// What the agent said first: the kernel's release.
    pub(crate) release: String,
    log: PathBuf,
    read: u64,
    pending: String,
    next_id: u32,
    serial: Option<UnixStream>,
}

impl Guest {
    /// Creates the domain and waits for its agent.
    pub(crate) fn create(host: &mut Host, plan: &Plan) -> Result<Self> {
        let mut guest = Self::start(host, plan.name, &plan.write()?)?;
        match guest.wait_ready() {
            Ok(()) => Ok(guest),
            Err(failure) => {
                if guest.died_untouched() {
                    host.died_untouched(guest.domain)?;
                }
                Err(failure)
            }
        }
    }

    /// Returns whether the domain is there, has shut down, and no operation of Lacuna was carried out on it.
    fn died_untouched(&self) -> bool {
        let Ok(direct) = Direct::open(self.domain) else {
            return false;
        };
        let untouched = |statistics: Statistics| {
            // To be asked for them costs the domain some memory.
            let mut counted = statistics
                .each()
                .filter(|(name, ..)| !name.starts_with("metadata_"));
            counted.all(|(.., value)| value == 0)
        };
        direct.shutdown_reason().is_ok_and(|reason| reason.is_some())
            && direct.engine.statistics().is_ok_and(untouched)
    }

    /// Creates the domain called `name` of xl's configuration in `file`, and waits for nothing.
    pub(crate) fn start(host: &mut Host, name: &'static str, file: &str) -> Result<Self> {
        let (log, read) = log_of(name);
        host.xl(&["create", "-q", file])?;
        Self::with_log(host, name, log, read)
    }

    /// Does the same, and has `prepare` do something to the domain before it runs.
    pub(crate) fn start_as(
        host: &mut Host,
        name: &'static str,
        file: &str,
        prepare: impl FnOnce(u16) -> Result<()>,
    ) -> Result<Self> {
        let (log, read) = log_of(name);
        host.xl(&["create", "-q", "-p", file])?;
        let guest = Self::with_log(host, name, log, read)?;
        prepare(guest.domain)?;
        guest.unpause(host)?;
        Ok(guest)
    }

    /// Takes up the domain called `name`, which another toolstack has created and whose log nobody writes
    /// yet.
    pub(crate) fn created(host: &mut Host, name: &'static str) -> Result<Self> {
        let (log, read) = log_of(name);
        Self::with_log(host, name, log, read)
    }

    /// The running domain called `name`; what it writes is in `log` from byte `read` on.
    fn with_log(host: &mut Host, name: &'static str, log: PathBuf, read: u64) -> Result<Self> {
        let domain = host.domain_number(name)?;
        Ok(Self {
            name,
            domain,
            release: String::new(),
            log,
            read,
            pending: String::new(),
            next_id: 1,
            serial: None,
        })
    }

    /// Talks with the guest over the serial port that the device model serves at the socket `path`, from now
    /// on.
    pub(crate) fn connect_serial(&mut self, path: &Path) -> Result<()> {
        let stream = wait_until("the guest's serial port is there", SERIAL_LIMIT, || {
            Ok(UnixStream::connect(path).ok())
        })?;
        let mut from = stream.try_clone()?;
        let mut log = File::options().create(true).append(true).open(&self.log)?;
        // Ends with the device model, which closes the socket.
        std::thread::spawn(move || std::io::copy(&mut from, &mut log));
        self.serial = Some(stream);
        Ok(())
    }

    /// Follows the guest to `domain`, to which a migration has brought it.
    pub(crate) fn arrived(&mut self, domain: u16) {
        self.domain = domain;
        if self.serial.is_some() {
            // What it wrote before stays in the same log.
            self.pending.clear();
            return;
        }
        // xenconsoled names the log when the domain is made, and xl gives it its own name only on arrival.
        // Each later migration adds to the same file.
        let log = PathBuf::from(CONSOLES).join(format!("guest-{}--incoming.log", self.name));
        if self.log != log {
            self.log = log;
            self.read = 0;
        }
        self.pending.clear();
    }

    /// Waits until an agent says that it is there: at first, and again after a kexec.
    pub(crate) fn wait_ready(&mut self) -> Result<()> {
        self.wait_ready_for(BOOT_LIMIT)
    }

    /// Does the same, with `limit` as the time limit.
    pub(crate) fn wait_ready_for(&mut self, limit: Duration) -> Result<()> {
        match self.next_report(0, limit, "the guest's agent speaks")? {
            Report::Ready { release, .. } => {
                self.release = release;
                Ok(())
            }
            other => Err(differs(
                "the agent's first report",
                "ready",
                &format!("{other:?}"),
            )),
        }
    }

    /// Gives the agent an order and waits for its answer.
    pub(crate) fn order(&mut self, task: Task, limit: Duration) -> Result<Report> {
        let sent = self.send(task)?;
        self.answer(&sent, limit)
    }

    /// Gives the agent an order; [`Self::answer`] waits for what it says.
    pub(crate) fn send(&mut self, task: Task) -> Result<Sent> {
        let what = format!("{} answers {task:?}", self.name);
        let id = self.next_id;
        self.next_id += 1;
        let order = serde_json::to_string(&Order { id, task }).map_err(std::io::Error::other)?;
        let line = format!("{order}\n");
        if let Some(serial) = &mut self.serial {
            serial.write_all(line.as_bytes())?;
        } else {
            let terminal = self.terminal()?;
            let mut terminal = File::options().write(true).open(terminal.trim())?;
            terminal.write_all(line.as_bytes())?;
        }
        Ok(Sent { id, what })
    }

    /// Waits for the agent's answer.
    pub(crate) fn answer(&mut self, sent: &Sent, limit: Duration) -> Result<Report> {
        match self.next_report(sent.id, limit, &sent.what)? {
            Report::Failed { why } => Err(differs(&sent.what, "an answer", &why)),
            report => Ok(report),
        }
    }

    /// Makes the guest allocate `mib` MiB, which it must get whole and all zero.
    pub(crate) fn grow(&mut self, mib: u32, limit: Duration) -> Result<()> {
        let sent = self.send(Task::Grow { mib })?;
        self.grown(&sent, mib, limit)
    }

    /// Waits for the answer to a [`Task::Grow`] of `mib` MiB, which the guest must have got whole and all
    /// zero.
    pub(crate) fn grown(&mut self, sent: &Sent, mib: u32, limit: Duration) -> Result<()> {
        let wanted = u64::from(mib) * PAGES_PER_MIB;
        match self.answer(sent, limit)? {
            Report::Grown { pages, dirty: 0 } if pages == wanted => Ok(()),
            other => Err(differs(
                &format!("{mib} MiB that {} allocates", self.name),
                &format!("{wanted} pages, all zero"),
                &format!("{other:?}"),
            )),
        }
    }

    /// Ends the guest's work, which must not have met a corrupt word, and returns the blocks that it went
    /// through and the pages that it checked.
    pub(crate) fn end_work(&mut self, limit: Duration) -> Result<(u64, u64)> {
        self.work_counters(Task::WorkStop, limit)
    }

    /// Returns the same figures while the work goes on.
    pub(crate) fn work_so_far(&mut self, limit: Duration) -> Result<(u64, u64)> {
        self.work_counters(Task::WorkStatus, limit)
    }

    fn work_counters(&mut self, task: Task, limit: Duration) -> Result<(u64, u64)> {
        match self.order(task, limit)? {
            Report::Work {
                corrupt: 0,
                blocks,
                pages,
            } => Ok((blocks, pages)),
            other => Err(differs(
                &format!("the work of {}", self.name),
                "no corrupt word",
                &format!("{other:?}"),
            )),
        }
    }

    /// Starts the guest's own account of its free pages.
    pub(crate) fn start_account(&mut self) -> Result<Account> {
        match self.order(Task::TruthStart, Duration::from_secs(60))? {
            Report::Truth { gfns } => Ok(Account {
                domain: self.domain,
                gfns,
            }),
            other => Err(differs(
                "the agent's answer",
                "the account's frames",
                &format!("{other:?}"),
            )),
        }
    }

    /// Stops all vCPUs of the guest.
    pub(crate) fn pause(&self, host: &mut Host) -> Result<()> {
        host.xl(&["pause", self.name]).map(drop)
    }

    /// Lets the guest go on.
    pub(crate) fn unpause(&self, host: &mut Host) -> Result<()> {
        host.xl(&["unpause", self.name]).map(drop)
    }

    /// Destroys the guest and returns how long that took.
    pub(crate) fn destroy(self, host: &mut Host) -> Result<Duration> {
        let started = Instant::now();
        host.xl(&["destroy", self.name])?;
        Ok(started.elapsed())
    }

    /// Fails when the guest's kernel has logged trouble.
    pub(crate) fn check_health(&mut self) -> Result<()> {
        let trouble = self.trouble()?;
        self.expect_none(&trouble)
    }

    /// Does the same for a guest that was kept waiting for memory, and may have reported that.
    pub(crate) fn check_health_after_waiting(&mut self) -> Result<()> {
        /// How Linux reports it (`kernel/watchdog.c`, `kernel/rcu/tree_stall.h`): true, and no harm.
        const KEPT_WAITING: &[&str] = &["soft lockup", "rcu"];
        let mut trouble = self.trouble()?;
        trouble.retain(|line| !KEPT_WAITING.iter().any(|kind| line.contains(kind)));
        self.expect_none(&trouble)
    }

    fn expect_none(&self, trouble: &[String]) -> Result<()> {
        ensure(
            trouble.is_empty(),
            &format!("the kernel log of {}", self.name),
            "no trouble",
            &format!("{trouble:?}"),
        )
    }

    /// Attaches the guest, and gives back its free memory until a round finds nothing new. Returns how many
    /// pages that were.
    pub(crate) fn give_back(&self, host: &mut Host) -> Result<u64> {
        host.lacuna(&["attach", self.name])?;
        let shared = host
            .lacuna(&["dedup", self.name, "--until-stable"])?
            .number("shared")?;
        host.figure("given_back", shared)?;
        Ok(shared)
    }

    /// Returns how often the guest's writes found no memory.
    pub(crate) fn waits(&self, host: &mut Host) -> Result<u64> {
        host.lacuna(&["status", self.name])?.number("unshare_enomem")
    }

    /// Returns the lines of the kernel's log that report trouble.
    pub(crate) fn trouble(&mut self) -> Result<Vec<String>> {
        match self.order(Task::Health, Duration::from_secs(60))? {
            Report::Health { trouble, .. } => Ok(trouble),
            other => Err(differs(
                &format!("the answer of {}", self.name),
                "its health",
                &format!("{other:?}"),
            )),
        }
    }

    /// Returns the pseudo-terminal that xenconsoled made for the guest.
    fn terminal(&self) -> Result<String> {
        run(&mut xen(
            "bin/xenstore-read",
            &[&format!("/local/domain/{}/console/tty", self.domain)],
        ))
    }

    /// Fails if the domain is gone, or has shut down for another reason than a migration, because nobody will
    /// answer then.
    pub(crate) fn check_running(&self, privcmd: &Privcmd) -> Result<()> {
        /// `SHUTDOWN_suspend` of Xen's `public/sched.h`.
        const SUSPENDED: u8 = 2;
        let (what, expected) = (format!("domain {} ({})", self.domain, self.name), "to run");
        let failed = |seen: &str| {
            let said = run(&mut xen("sbin/xl", &["dmesg"])).unwrap_or_default();
            let said = last_triple_fault(&said);
            let seen = format!("{seen} {} | {}", said.join(" | "), self.last_lines());
            Err(differs(&what, expected, &seen))
        };
        let id = DomainId::new(self.domain).ok_or_else(|| differs(&what, expected, "no such number"))?;
        let known = privcmd.domain_info(id);
        match known.map_err(|error| differs(&what, expected, &error.to_string()))? {
            None => failed("no such domain;"),
            Some(info) => match info.shutdown_reason() {
                None | Some(SUSPENDED) => Ok(()),
                Some(reason) => failed(&format!("shut down, reason {reason};")),
            },
        }
    }

    /// Waits for the report that answers order `id`. What the agent says on its own is a failure unless
    /// awaited (id 0).
    fn next_report(&mut self, id: u32, limit: Duration, what: &str) -> Result<Report> {
        let mut lines = std::collections::VecDeque::new();
        let privcmd = Privcmd::open().map_err(|error| differs(what, "Xen to ask", &error.to_string()))?;
        let mut ended = None;
        let found = wait_until(what, limit, || {
            lines.extend(self.new_lines()?);
            while let Some(line) = lines.pop_front() {
                let Some((_, text)) = line.split_once(MARK) else {
                    continue;
                };
                let reply: Reply = serde_json::from_str(text.trim())
                    .map_err(|error| differs("a line of the agent", "JSON", &format!("{error}: {text}")))?;
                if reply.id == id {
                    return Ok(Some(reply.report));
                }
                if reply.id == 0 {
                    return Err(differs(what, "the answer", &format!("{:?}", reply.report)));
                }
            }
            // What it said last may still be on its way through xenconsoled.
            match (self.check_running(&privcmd), ended) {
                (Ok(()), _) => ended = None,
                (Err(failure), Some(since)) if Instant::now() > since + LAST_WORDS => return Err(failure),
                (Err(_), since) => ended = since.or_else(|| Some(Instant::now())),
            }
            Ok(None)
        });
        // Whatever stood behind the answer belongs to the next question.
        let rest: String = lines.into_iter().map(|line| line + "\n").collect();
        self.pending.insert_str(0, &rest);
        match found {
            Err(Failure::Late { what, limit, .. }) => Err(Failure::Late {
                what,
                limit,
                seen: self.last_lines(),
            }),
            other => other,
        }
    }

    /// Returns the whole lines that have arrived since the last call.
    fn new_lines(&mut self) -> Result<Vec<String>> {
        if let Ok(mut log) = File::open(&self.log) {
            log.seek(SeekFrom::Start(self.read))?;
            let mut bytes = Vec::new();
            self.read += log.read_to_end(&mut bytes)? as u64;
            self.pending.push_str(&String::from_utf8_lossy(&bytes));
        }
        let Some(end) = self.pending.rfind('\n') else {
            return Ok(Vec::new());
        };
        let rest = self.pending.split_off(end + 1);
        let whole = std::mem::replace(&mut self.pending, rest);
        Ok(whole.lines().map(ToOwned::to_owned).collect())
    }

    /// Returns the end of what the guest has written on its console.
    pub(crate) fn last_lines(&self) -> String {
        let text = String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }
}

/// Returns the lines of Xen's log `said` that tell of the last triple fault: where the virtual CPU stood,
/// and the address that it could not reach.
fn last_triple_fault(said: &str) -> Vec<&str> {
    /// Lines of Xen's dump of a virtual CPU.
    const DUMP: usize = 16;
    let lines: Vec<&str> = said.lines().collect();
    let Some(at) = lines.iter().rposition(|line| line.contains("Triple fault")) else {
        return Vec::new();
    };
    lines[at..lines.len().min(at + DUMP)]
        .iter()
        .filter(|line| {
            ["Triple fault", "RIP:", "CONTEXT:", "cr2:"]
                .iter()
                .any(|part| line.contains(part))
        })
        .map(|line| line.trim_start_matches("(XEN) "))
        .collect()
}
