//! One machine of the matrix: a kernel under QEMU without Xen, driven over QEMU's own protocol, and the dumps
//! taken of it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use lacuna_guest::truth::Capture;
use serde_json::{Value, json};

use super::case::{Case, Change, Taken};
use crate::error::{Error, IoContext, Result};
use crate::process::{last_lines, start};
use crate::sysroot::Sysroot;

/// How long a kernel may take to boot and the agent to fill its memory: 20 s is usual on a machine with
/// nothing else to do, many times that on one with other work.
const BOOT_LIMIT: Duration = Duration::from_secs(900);
/// Time for the guest to come to rest after the agent's last word.
const REST: Duration = Duration::from_secs(2);
/// How often dumps are taken until the guest has been still the while: once is usual.
const ATTEMPTS: usize = 10;
/// The machine's memory: more than a 32-bit kernel maps directly (896 MiB), so that it has some above.
const MEMORY: u64 = 1 << 30;

/// What was taken of a machine.
pub(crate) struct Dumps {
    /// Memory by guest-physical address; `None` where that would be mostly holes.
    pub(crate) raw: Option<PathBuf>,
    /// An ELF core.
    pub(crate) elf: PathBuf,
    /// The text of `info registers -a`.
    pub(crate) registers: PathBuf,
    /// What the guest itself said of its free pages.
    pub(crate) truth: Capture,
}

/// Boots `case`, lets it use memory, stops it and takes the dumps into `folder`.
pub(crate) fn dump(
    sysroot: &Sysroot,
    case: &Case,
    kernel: &Path,
    image: &Path,
    folder: &Path,
) -> Result<Dumps> {
    crate::context::remove(folder)?;
    fs::create_dir_all(folder).on("create", folder)?;
    let console = folder.join("console");
    let words = folder.join("emulator.log");
    let mut line: Vec<String> = [
        "qemu-system-x86_64",
        "-accel",
        "tcg,thread=multi",
        "-smp",
        "2",
        "-m",
        "1024",
        "-display",
        "none",
        "-no-reboot",
        "-nodefaults",
        "-chardev",
        "stdio,id=lab,signal=off",
        "-mon",
        "chardev=lab,mode=control",
        "-cpu",
        case.processor,
    ]
    .map(str::to_owned)
    .into();
    line.extend(case.machine.iter().map(|&word| word.to_owned()));
    line.extend(["-serial".to_owned(), format!("file:{}", console.display())]);
    line.extend(["-kernel".to_owned(), kernel.display().to_string()]);
    line.extend(["-initrd".to_owned(), image.display().to_string()]);
    line.extend([
        "-append".to_owned(),
        format!("console=ttyS0,115200 quiet panic=-1 {}", case.words),
    ]);
    let arguments: Vec<&str> = line.iter().map(String::as_str).collect();
    let mut command = sysroot.command("/", &arguments);
    let log = fs::File::create(&words).on("create", &words)?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
    let mut child = start(&mut command)?;
    let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
        unreachable!("both were asked for as pipes")
    };
    let mut machine = Machine {
        child,
        orders,
        answers: BufReader::new(answers),
        case: case.name,
        console,
    };
    machine.order("qmp_capabilities", &json!({}))?;
    machine.change(case.change)?;
    let gfns = machine.account()?;
    for _ in 0..ATTEMPTS {
        std::thread::sleep(REST);
        machine.order("stop", &json!({}))?;
        let dumps = Dumps {
            raw: Some(folder.join("memory.raw")).filter(|_| case.taken == Taken::RawAndElf),
            elf: folder.join("memory.elf"),
            registers: folder.join("registers"),
            truth: machine.truth(&gfns, folder)?,
        };
        machine.take(&dumps)?;
        machine.order("cont", &json!({}))?;
        if machine.was_at_rest(&gfns, folder, &dumps.truth)? {
            return Ok(dumps);
        }
    }
    Err(machine.broken("free pages that changed while each dump was taken"))
}

struct Machine {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    case: &'static str,
    console: PathBuf,
}

impl Machine {
    /// Changes the guest's memory once the agent waits for it.
    fn change(&mut self, change: Change) -> Result<()> {
        if change == Change::None {
            return Ok(());
        }
        self.wait_for("SNAP waiting", |text| text.contains("SNAP waiting").then_some(()))?;
        match change {
            Change::None => {}
            Change::PlugIn(megabytes) => {
                let backend =
                    json!({ "qom-type": "memory-backend-ram", "id": "plugged", "size": megabytes << 20 });
                self.order("object-add", &backend)?;
                let module = json!({ "driver": "pc-dimm", "id": "module", "memdev": "plugged" });
                self.order("device_add", &module)?;
            }
            Change::BalloonTo(megabytes) => {
                self.order("balloon", &json!({ "value": megabytes << 20 }))?;
            }
        }
        Ok(())
    }

    /// Takes registers and dumps of the stopped machine.
    fn take(&mut self, dumps: &Dumps) -> Result<()> {
        let text = self.order(
            "human-monitor-command",
            &json!({ "command-line": "info registers -a" }),
        )?;
        fs::write(&dumps.registers, text.as_str().unwrap_or_default()).on("write", &dumps.registers)?;
        if let Some(raw) = &dumps.raw {
            self.order("pmemsave", &json!({ "val": 0, "size": MEMORY, "filename": raw }))?;
        }
        self.order(
            "dump-guest-memory",
            &json!({ "paging": false, "protocol": format!("file:{}", dumps.elf.display()) }),
        )?;
        Ok(())
    }

    /// Whether the guest, which goes on, still accounts for its pages as in `then`, in a capture that began
    /// after it went on: then nothing changed between the capture and the dump either.
    fn was_at_rest(&mut self, gfns: &[u64], folder: &Path, then: &Capture) -> Result<bool> {
        let deadline = Instant::now() + BOOT_LIMIT;
        while Instant::now() < deadline {
            std::thread::sleep(REST / 4);
            self.order("stop", &json!({}))?;
            let mut now = self.truth(gfns, folder)?;
            self.order("cont", &json!({}))?;
            // Of the next two, the first may have begun before the dump.
            let enough = now.same >= then.same + 2;
            now.same = then.same;
            if now != *then {
                return Ok(false);
            }
            if enough {
                return Ok(true);
            }
        }
        Err(self.broken("out of time waiting for two more accounts"))
    }

    /// The guest's latest account, out of the frames `gfns`; the machine is stopped, or the account may be
    /// torn.
    fn truth(&mut self, gfns: &[u64], folder: &Path) -> Result<Capture> {
        let through = folder.join("account");
        let mut words = Vec::new();
        for gfn in gfns {
            self.order(
                "pmemsave",
                &json!({ "val": gfn * 4096, "size": 4096, "filename": through }),
            )?;
            let frame = fs::read(&through).on("read", &through)?;
            words.extend(frame.chunks_exact(8).map(|word| {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(word);
                u64::from_le_bytes(bytes)
            }));
        }
        Capture::latest(&words).map_err(|error| self.broken(&error.to_string()))
    }

    /// Waits for the agent's account and returns the frames it lies in.
    fn account(&mut self) -> Result<Vec<u64>> {
        let numbers = self.wait_for("its account", |text| {
            let (_, rest) = text.split_once("SNAP account")?;
            let (numbers, _) = rest.split_once("end")?;
            Some(numbers.to_owned())
        })?;
        let parsed = numbers
            .split_whitespace()
            .map(|word| u64::from_str_radix(word, 16));
        parsed
            .collect::<std::result::Result<_, _>>()
            .map_err(|error| self.broken(&format!("frame numbers on its console ({error})")))
    }

    /// Waits until `find` finds something on the guest's console.
    fn wait_for<T>(&mut self, what: &str, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + BOOT_LIMIT;
        while Instant::now() < deadline {
            let text = fs::read(&self.console).unwrap_or_default();
            if let Some(found) = find(&String::from_utf8_lossy(&text)) {
                return Ok(found);
            }
            if self.child.try_wait().on("wait for", "the emulator")?.is_some() {
                return Err(self.broken("the machine went off"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Err(self.broken(&format!("out of time waiting for {what}")))
    }

    /// Gives QEMU an order and returns its answer.
    fn order(&mut self, name: &str, arguments: &Value) -> Result<Value> {
        writeln!(
            self.orders,
            "{}",
            json!({ "execute": name, "arguments": arguments })
        )
        .on("send an order to", "QEMU")?;
        loop {
            let mut line = String::new();
            let read = self.answers.read_line(&mut line).on("read from", "QEMU")?;
            if read == 0 {
                return Err(self.broken(&format!("QEMU ended at {name}")));
            }
            let answer: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
            if let Some(answer) = answer.get("return") {
                return Ok(answer.clone());
            }
            if let Some(error) = answer.get("error") {
                return Err(self.broken(&format!("{name}: {error}")));
            }
        }
    }

    fn broken(&self, what: &str) -> Error {
        Error::Unexpected {
            what: format!("matrix case {}", self.case),
            expected: "a guest that boots and accounts for its pages".to_owned(),
            seen: format!("{what}; its console's end:\n{}", last_lines(&self.console, 0, 12)),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
