//! One machine of the matrix: a kernel under QEMU without Xen, driven over QEMU's own protocol, and the dumps taken of it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use lacuna_guest::truth::Capture;
use serde_json::{Value, json};

use super::case::Case;
use crate::error::{Error, IoContext, Result};
use crate::process::{last_lines, start};
use crate::sysroot::Sysroot;

/// How long a kernel may take to boot and the agent to fill its memory: 20 s is usual on a machine with nothing else to do.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// Time for the guest to come to rest after the agent's last word.
const REST: Duration = Duration::from_secs(2);
/// The machine's memory: more than a 32-bit kernel maps directly (896 MiB), so that it has some above.
const MEMORY: u64 = 1 << 30;

/// What was taken of a machine.
pub(crate) struct Dumps {
    /// Memory by guest-physical address.
    pub(crate) raw: PathBuf,
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
    let gfns = machine.account()?;
    std::thread::sleep(REST);
    machine.order("qmp_capabilities", &json!({}))?;
    machine.order("stop", &json!({}))?;
    let registers = folder.join("registers");
    let text = machine.order(
        "human-monitor-command",
        &json!({ "command-line": "info registers -a" }),
    )?;
    fs::write(&registers, text.as_str().unwrap_or_default()).on("write", &registers)?;
    let (raw, elf) = (folder.join("memory.raw"), folder.join("memory.elf"));
    machine.order("pmemsave", &json!({ "val": 0, "size": MEMORY, "filename": raw }))?;
    machine.order(
        "dump-guest-memory",
        &json!({ "paging": false, "protocol": format!("file:{}", elf.display()) }),
    )?;
    drop(machine);
    let truth = read_truth(&raw, &gfns, case.name)?;
    Ok(Dumps {
        raw,
        elf,
        registers,
        truth,
    })
}

struct Machine {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    case: &'static str,
    console: PathBuf,
}

impl Machine {
    /// Waits for the agent's account and returns the frames it lies in.
    fn account(&mut self) -> Result<Vec<u64>> {
        let deadline = Instant::now() + BOOT_LIMIT;
        while Instant::now() < deadline {
            let text = fs::read(&self.console).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let told = text
                .split_once("SNAP account")
                .and_then(|(_, rest)| rest.split_once("end"))
                .map(|(numbers, _)| numbers);
            if let Some(numbers) = told {
                let parsed = numbers
                    .split_whitespace()
                    .map(|word| u64::from_str_radix(word, 16));
                return parsed
                    .collect::<std::result::Result<_, _>>()
                    .map_err(|error| self.broken(&format!("frame numbers on its console ({error})")));
            }
            if self.child.try_wait().on("wait for", "the emulator")?.is_some() {
                return Err(self.broken("the machine went off"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Err(self.broken("out of time waiting for its account"))
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
            seen: format!("{what}; its console's end:\n{}", last_lines(&self.console, 12)),
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

/// The guest's account, out of the raw dump.
fn read_truth(raw: &Path, gfns: &[u64], case: &'static str) -> Result<Capture> {
    use std::os::unix::fs::FileExt;
    let file = fs::File::open(raw).on("open", raw)?;
    let mut words = Vec::new();
    for gfn in gfns {
        let mut page = vec![0; 4096];
        file.read_exact_at(&mut page, gfn * 4096).on("read", raw)?;
        words.extend(page.chunks_exact(8).map(|word| {
            u64::from_le_bytes([
                word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7],
            ])
        }));
    }
    let capture = Capture::latest(&words).map_err(|error| Error::Unexpected {
        what: format!("matrix case {case}"),
        expected: "the guest's account of its free pages".to_owned(),
        seen: error.to_string(),
    })?;
    if capture.same < 2 {
        return Err(Error::Unexpected {
            what: format!("matrix case {case}"),
            expected: "a guest at rest".to_owned(),
            seen: "its last two accounts differ".to_owned(),
        });
    }
    Ok(capture)
}
