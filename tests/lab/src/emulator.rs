//! One emulated machine with Xen and dom0 on it: started, listened to within time limits, and always ended.

mod disk;
mod drive;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use lacuna_scenarios::catalogue::Boot;
use lacuna_scenarios::wire::{Event, Order};

use crate::bochs::{self, Disc};
use crate::error::{Error, IoContext, Result};
use crate::image::Images;
use crate::process::{last_lines, start};
use crate::sysroot::Sysroot;
use crate::xen::Hypervisor;
pub(crate) use drive::Drive;

/// How long Xen and dom0 may take to come up: 15 s is usual, a loaded machine takes a multiple.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// How long the machine may take to go off.
const OFF_LIMIT: Duration = Duration::from_secs(30);
/// Xen's console, and dom0's, in the logs of the scenario that the machine was booted for.
const CONSOLE: &str = "console.log";
/// The emulator's own words, in a scenario's logs.
const WORDS: &str = "emulator.log";
/// Lines of Xen's console that go into an error.
const CONSOLE_TAIL: usize = 12;

/// A processor whose nested paging QEMU emulates. Without `-monitor` Xen's idle loop faults, with `rdtscp`
/// Xen's intercept of it fails on a wrong instruction length (QEMU 10.0).
const PROCESSOR: &str = "EPYC,-xsave,-monitor,-rdtscp";

/// Xen's command line. One processor for dom0, and a simple scheduler: two emulated ones are all there are.
pub(crate) const XEN_LINE: &str = "console=com1 com1=115200,8n1 loglvl=all guest_loglvl=all dom0_mem=1500M,max:1500M \
                        dom0_max_vcpus=1 sched=credit cpuidle=0 cpufreq=none";
/// dom0's command line.
pub(crate) const DOM0_LINE: &str = "console=hvc0 earlyprintk=xen loglevel=4 panic=1";

/// What differs from boot to boot under QEMU.
#[derive(Clone, Copy)]
pub(crate) struct Machine {
    clock: Clock,
    /// QEMU's machine, where it is not the usual one.
    board: &'static [&'static str],
    /// Added to Xen's command line.
    xen: &'static str,
}

/// What the emulated machine's clock goes by.
#[derive(Clone, Copy)]
enum Clock {
    /// The time of the machine that emulates. Guests run on two processors side by side, and not on the first
    /// (docs/lab.md, "What the emulator does wrong").
    Time,
    /// The instructions executed, one a nanosecond: figures do not depend on how fast or busy the emulating
    /// machine is. One processor, so that only the work measured counts.
    Instructions,
}

/// The usual machine.
const PLAIN: Machine = Machine {
    clock: Clock::Time,
    board: &[],
    xen: "",
};
/// A board with AMD's IOMMU; the usual one has no place for it.
const WITH_IOMMU: &[&str] = &["-machine", "q35", "-device", "amd-iommu"];

impl From<Boot> for Machine {
    fn from(boot: Boot) -> Self {
        match boot {
            Boot::Release
            | Boot::OtherGuests
            | Boot::XenDisks
            | Boot::Mutants
            | Boot::Flask
            | Boot::Ept
            | Boot::EptMutants
            | Boot::Pair
            | Boot::DebianHost => PLAIN,
            Boot::Counted | Boot::Programs(_) => Self {
                clock: Clock::Instructions,
                ..PLAIN
            },
            Boot::Iommu => Self {
                board: WITH_IOMMU,
                ..PLAIN
            },
            Boot::PvhDom0 => Self {
                board: WITH_IOMMU,
                xen: "dom0=pvh",
                ..PLAIN
            },
        }
    }
}

/// Where the serial ports go.
enum Ports {
    /// Console into a file, channel to the lab.
    Watched(PathBuf),
    /// Console on the terminal, no channel.
    Terminal,
}

/// The network card of a machine. The addresses are those of the driver's `peer.rs`.
enum Network {
    None,
    /// The machine that waits for the other one at this local port.
    First(u16),
    Second(u16),
}

impl Network {
    /// What goes on dom0's command line.
    fn dom0_line(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::First(_) => "lab.address=10.0.0.1 net.ifnames=0".to_owned(),
            Self::Second(_) => "lab.address=10.0.0.2 net.ifnames=0".to_owned(),
        }
    }

    /// What goes on the emulator's.
    fn arguments(&self) -> Vec<String> {
        let (end, card) = match self {
            Self::None => return Vec::new(),
            Self::First(port) => (format!("listen=127.0.0.1:{port}"), "52:54:00:00:00:01"),
            Self::Second(port) => (format!("connect=127.0.0.1:{port}"), "52:54:00:00:00:02"),
        };
        vec![
            "-netdev".to_owned(),
            format!("socket,id=lab,{end}"),
            "-device".to_owned(),
            format!("e1000,netdev=lab,mac={card},romfile="),
        ]
    }
}

/// What a machine has beside the usual.
struct Devices {
    /// What goes on the emulator's command line.
    arguments: Vec<String>,
    /// What goes on dom0's.
    dom0_line: String,
}

impl From<Network> for Devices {
    fn from(network: Network) -> Self {
        Self {
            arguments: network.arguments(),
            dom0_line: network.dom0_line(),
        }
    }
}

/// A running machine.
pub(crate) struct Emulator {
    child: Child,
    orders: Box<dyn Write>,
    events: Receiver<std::io::Result<String>>,
    logs: PathBuf,
    peer: Option<Box<Emulator>>,
}

impl Emulator {
    /// Boots and waits until dom0 takes orders. `logs` is made anew; Xen's console goes to `console.log` in
    /// it.
    pub(crate) fn boot(
        sysroot: &Sysroot,
        xen: &Hypervisor,
        images: &Images,
        machine: Machine,
        logs: &Path,
    ) -> Result<Self> {
        Self::boot_with(sysroot, xen, images, machine, logs, &Network::None.into())
    }

    /// The same on the usual machine, with `drives`.
    pub(crate) fn boot_with_drives(
        sysroot: &Sysroot,
        xen: &Hypervisor,
        images: &Images,
        drives: &[Drive],
        logs: &Path,
    ) -> Result<Self> {
        let arguments = drives.iter().enumerate();
        let devices = Devices {
            arguments: arguments
                .flat_map(|(number, drive)| drive.arguments(number))
                .collect(),
            dom0_line: String::new(),
        };
        let sysroot = sysroot.seeing(drives.iter().map(|drive| drive.file.clone()));
        Self::boot_with(&sysroot, xen, images, PLAIN, logs, &devices)
    }

    /// Boots two machines with a network between them; the one returned takes the orders, and ends the other.
    pub(crate) fn boot_pair(
        sysroot: &Sysroot,
        xen: &Hypervisor,
        images: &Images,
        logs: &Path,
    ) -> Result<Self> {
        let what = "a local port for the emulators' network";
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).on("open", what)?;
        let port = listener.local_addr().on("ask for", what)?.port();
        // The emulator takes it over: nobody else is given it so soon.
        drop(listener);
        let boot = |network: Network, logs: &Path| {
            Self::boot_with(sysroot, xen, images, PLAIN, logs, &network.into())
        };
        let mut first = boot(Network::First(port), logs)?;
        first.peer = Some(Box::new(boot(Network::Second(port), &logs.join("second"))?));
        Ok(first)
    }

    fn boot_with(
        sysroot: &Sysroot,
        xen: &Hypervisor,
        images: &Images,
        machine: Machine,
        logs: &Path,
        devices: &Devices,
    ) -> Result<Self> {
        let (console, words) = fresh(logs)?;
        let ports = Ports::Watched(console);
        let mut command = command(sysroot, xen, images, machine, &ports, &devices.dom0_line);
        command.args(&devices.arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(words);
        let mut child = start(&mut command)?;
        let (Some(orders), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both were asked for as pipes")
        };
        Self::listen(child, Box::new(orders), output, logs, BOOT_LIMIT)
    }

    /// As [`Emulator::boot`], on a machine with EPT.
    pub(crate) fn boot_bochs(sysroot: &Sysroot, disc: &Disc, logs: &Path) -> Result<Self> {
        let (console, words) = fresh(logs)?;
        let what = "a local port for the emulator";
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).on("open", what)?;
        let port = listener.local_addr().on("ask for", what)?.port();
        let mut command = disc.machine(sysroot, &console, port, logs)?;
        let more = words.try_clone().on("duplicate", logs)?;
        command.stdin(Stdio::null()).stdout(words).stderr(more);
        let mut child = start(&mut command)?;
        let stream = match accept(&listener, &mut child) {
            Ok(stream) => stream,
            Err(error) => {
                // It may be up all the same; nobody else would end it.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let orders = stream.try_clone().on("duplicate", what)?;
        Self::listen(child, Box::new(orders), stream, logs, bochs::BOOT_LIMIT)
    }

    /// Waits until dom0 of the started machine takes orders.
    fn listen(
        child: Child,
        orders: Box<dyn Write>,
        output: impl Read + Send + 'static,
        logs: &Path,
        limit: Duration,
    ) -> Result<Self> {
        let (sender, events) = channel();
        std::thread::spawn(move || {
            // Ends with the emulator, or when nobody listens any more.
            for line in BufReader::new(output).lines() {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut emulator = Self {
            child,
            orders,
            events,
            logs: logs.to_path_buf(),
            peer: None,
        };
        match emulator.next_event(Instant::now() + limit, "dom0 comes up")? {
            Event::Ready { .. } => Ok(emulator),
            other => Err(emulator.broken(&format!("dom0 did not come up: {other:?}"))),
        }
    }

    /// Gives dom0 an order.
    pub(crate) fn order(&mut self, order: &Order) -> Result<()> {
        let line = serde_json::to_string(order).map_err(|error| self.broken(&error.to_string()))?;
        writeln!(self.orders, "{line}").on("send an order to dom0 for", &self.logs)
    }

    /// Waits for dom0's next event; `what` names the awaited in the error when `deadline` passes or the
    /// machine ends.
    pub(crate) fn next_event(&mut self, deadline: Instant, what: &str) -> Result<Event> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(Ok(line)) => {
                    // The firmware and dom0's kernel may probe the port before the driver has it.
                    let Some(begin) = line.find("{\"event\"") else {
                        continue;
                    };
                    return serde_json::from_str(&line[begin..]).map_err(|error| {
                        self.broken(&format!("dom0 sent a damaged line ({error}): {line}"))
                    });
                }
                Ok(Err(error)) => return Err(self.broken(&format!("waiting until {what}: {error}"))),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.broken(&format!("the machine went off before {what}")));
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.broken(&format!("out of time waiting until {what}")));
                }
            }
        }
    }

    /// How much Xen has written on its console so far, in bytes.
    pub(crate) fn console_length(&self) -> u64 {
        fs::metadata(self.logs.join(CONSOLE)).map_or(0, |metadata| metadata.len())
    }

    /// What Xen has written on its console from byte `from` on.
    pub(crate) fn console_from(&self, from: u64) -> String {
        let bytes = fs::read(self.logs.join(CONSOLE)).unwrap_or_default();
        let new = usize::try_from(from).ok().and_then(|from| bytes.get(from..));
        String::from_utf8_lossy(new.unwrap_or_default()).into_owned()
    }

    /// Switches the machine off, by force when it does not go off by itself.
    pub(crate) fn off(mut self) {
        // A machine that is gone already, or does not go, is no failure of the scenarios that ran on it;
        // dropping ends it.
        if self.order(&Order::PowerOff).is_err() {
            return;
        }
        let deadline = Instant::now() + OFF_LIMIT;
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until dom0 takes orders again after a reboot that its driver has announced.
    pub(crate) fn await_reboot(&mut self, deadline: Instant) -> Result<()> {
        match self.next_event(deadline, "the host is up again")? {
            Event::Ready { .. } => Ok(()),
            other => Err(self.broken(&format!("the host did not come up again: {other:?}"))),
        }
    }

    fn broken(&self, what: &str) -> Error {
        let console = last_lines(&self.logs.join(CONSOLE), 0, CONSOLE_TAIL);
        let errors = last_lines(&self.logs.join(WORDS), 0, CONSOLE_TAIL);
        // Said at every start for the processor's features that only real ones have.
        let errors: Vec<&str> = errors
            .lines()
            .filter(|line| !line.contains("TCG doesn't support"))
            .collect();
        let errors = errors.join("\n");
        Error::Emulator {
            what: format!("{what}; the console's end:\n{console}\n{errors}"),
            logs: self.logs.clone(),
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // Ends what runs inside as well: see the sysroot's namespaces. Both fail only when it has ended
        // already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes the directory for a machine's logs anew, and opens those of the emulator: the console's path, its
/// own words.
fn fresh(logs: &Path) -> Result<(PathBuf, fs::File)> {
    crate::context::remove(logs)?;
    fs::create_dir_all(logs).on("create", logs)?;
    let words = logs.join(WORDS);
    let words = fs::File::create(&words).on("create", &words)?;
    Ok((logs.join(CONSOLE), words))
}

/// Waits for the emulator to connect, which it does before anything else.
fn accept(listener: &TcpListener, child: &mut Child) -> Result<TcpStream> {
    let what = "the emulator's connection";
    let deadline = Instant::now() + BOOT_LIMIT;
    listener.set_nonblocking(true).on("prepare for", what)?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).on("prepare", what)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                if let Some(status) = child.try_wait().on("wait for", "the emulator")? {
                    return Err(Error::Unexpected {
                        what: "the emulator".to_owned(),
                        expected: "to run".to_owned(),
                        seen: format!("it ended with {status}"),
                    });
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(error).on("accept", what),
        }
    }
}

/// Boots dom0 with a shell on the terminal, and returns when it is over.
pub(crate) fn shell(sysroot: &Sysroot, xen: &Hypervisor, images: &Images) -> Result<()> {
    let mut command = command(sysroot, xen, images, PLAIN, &Ports::Terminal, "lab.shell");
    start(&mut command)?
        .wait()
        .on("wait for", "the emulator")
        .map(drop)
}

fn command(
    sysroot: &Sysroot,
    xen: &Hypervisor,
    images: &Images,
    machine: Machine,
    ports: &Ports,
    dom0_extra: &str,
) -> Command {
    let kernel = xen.directory.join("xen").to_string_lossy().into_owned();
    let guest_cpus = match machine.clock {
        Clock::Time => "lab.guest_cpus=1-2",
        Clock::Instructions => "",
    };
    let modules = format!(
        "{} {DOM0_LINE} {guest_cpus} {dom0_extra},{}",
        images.kernel.display(),
        images.dom0.display()
    );
    let mut line = vec!["qemu-system-x86_64", "-cpu", PROCESSOR];
    line.extend(match machine.clock {
        Clock::Time => ["-accel", "tcg,thread=multi,tb-size=1024", "-smp", "3"].as_slice(),
        Clock::Instructions => &[
            "-accel",
            "tcg,thread=single,tb-size=1024",
            "-smp",
            "1",
            "-icount",
            "shift=0,sleep=off",
        ],
    });
    line.extend(["-m", "4G", "-display", "none", "-no-reboot", "-nodefaults"]);
    line.extend(machine.board);
    let xen_line = format!("{XEN_LINE} {}", machine.xen);
    line.extend(["-kernel", &kernel, "-append", &xen_line, "-initrd", &modules]);
    let console;
    match ports {
        Ports::Watched(path) => {
            console = format!("file:{}", path.display());
            line.extend(["-monitor", "none", "-serial", &console]);
            line.extend(["-chardev", "stdio,id=lab,signal=off", "-serial", "chardev:lab"]);
        }
        Ports::Terminal => line.extend(["-serial", "mon:stdio", "-serial", "null"]),
    }
    sysroot.command("/", &line)
}
