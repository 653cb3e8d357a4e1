//! Files of registers: JSON as `docs/profile.md` describes it, or the text that QEMU's monitor prints for
//! `info registers` (one virtual CPU) and `info registers -a` (all, each after a line `CPU#N`).

use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::DumpError;
use crate::source::Cpu;

/// Most virtual CPUs accepted from a file.
pub const MAX_CPUS: usize = 4096;
/// Largest registers file read, in bytes: some 3 KiB a CPU.
const MAX_FILE: u64 = 32 << 20;

/// One virtual CPU as a JSON file holds it. Numbers are JSON strings in hexadecimal, since JSON numbers lose
/// bits.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct InFile {
    cr0: Option<HexNumber>,
    cr3: Option<HexNumber>,
    cr4: Option<HexNumber>,
    efer: Option<HexNumber>,
    idt_base: Option<HexNumber>,
    idt_limit: Option<HexNumber>,
    lstar: Option<HexNumber>,
    gs_base: Option<HexNumber>,
    kernel_gs_base: Option<HexNumber>,
    #[serde(default = "online_by_default")]
    online: bool,
}

fn online_by_default() -> bool {
    true
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
struct HexNumber(u64);

impl TryFrom<String> for HexNumber {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u64::from_str_radix(text.trim_start_matches("0x"), 16).map(Self)
    }
}

/// Reads a registers file.
pub(super) fn read_registers(path: &Path) -> Result<Vec<Cpu>, DumpError> {
    let io_error = |cause| DumpError::Io {
        file: path.to_owned(),
        cause,
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .map_err(io_error)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(io_error)?;
    let refused = |why: String| DumpError::Registers {
        file: path.to_owned(),
        why,
    };
    if bytes.len() as u64 > MAX_FILE {
        return Err(refused(format!("it has more than {MAX_FILE} bytes")));
    }
    // A monitor on a terminal echoes what is typed with escape sequences: odd bytes are no reason to give up.
    parse_registers(&String::from_utf8_lossy(&bytes)).map_err(refused)
}

/// Parses the text of a registers file.
///
/// # Errors
/// A sentence that says why there are no registers in it.
pub fn parse_registers(text: &str) -> Result<Vec<Cpu>, String> {
    let cpus = if text.trim_start().starts_with('[') {
        let inside: Vec<InFile> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        inside.iter().map(from_json).collect()
    } else {
        from_monitor(text)
    };
    if cpus.len() > MAX_CPUS {
        return Err(format!(
            "{} virtual CPUs; at most {MAX_CPUS} are possible",
            cpus.len()
        ));
    }
    if cpus.is_empty() {
        return Err(
            "neither a JSON array nor the text of QEMU's `info registers` (no CR3= in it)".to_owned(),
        );
    }
    Ok(cpus)
}

fn from_json(cpu: &InFile) -> Cpu {
    let value = |number: Option<HexNumber>| number.map(|number| number.0);
    Cpu {
        cr0: value(cpu.cr0),
        cr3: value(cpu.cr3),
        cr4: value(cpu.cr4),
        efer: value(cpu.efer),
        idt_base: value(cpu.idt_base),
        idt_limit: value(cpu.idt_limit),
        // 0 where a file was made from a source that does not show it.
        lstar: value(cpu.lstar).filter(|lstar| *lstar != 0),
        gs_base: value(cpu.gs_base),
        kernel_gs_base: value(cpu.kernel_gs_base),
        offline: !cpu.online,
        ..Cpu::default()
    }
}

/// `NAME=value` and, for tables and segments, `NAME = selector base limit ...` (QEMU
/// `target/i386/cpu-dump.c`).
fn from_monitor(text: &str) -> Vec<Cpu> {
    let mut cpus: Vec<Cpu> = Vec::new();
    let mut current = Cpu::default();
    let mut wide = false;
    let mut finish = |cpu: &mut Cpu, wide: bool| {
        if cpu.cr3.is_some() && cpus.len() <= MAX_CPUS {
            // QEMU prints 16 digits once the CPU is in 64-bit mode, 8 before.
            cpu.long_mode = cpu.efer.is_none().then_some(wide);
            cpus.push(*cpu);
        }
        *cpu = Cpu::default();
    };
    for line in text.lines() {
        if line.contains("CPU#")
            || (current.cr3.is_some() && (line.contains("RAX=") || line.contains("EAX=")))
        {
            finish(&mut current, wide);
            wide = false;
        }
        // "IDT=     base limit" and "GS =0000 base limit flags": the values follow the name.
        let mut words = line.split_whitespace().peekable();
        while let Some(word) = words.next() {
            let Some((name, value)) = word.split_once('=') else {
                continue;
            };
            let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
            match name {
                "RAX" => wide = true,
                "RIP" | "EIP" => current.rip = number(value),
                "RSP" | "ESP" => current.rsp = number(value),
                "CR0" => current.cr0 = number(value),
                "CR3" => current.cr3 = number(value),
                "CR4" => current.cr4 = number(value),
                "EFER" => current.efer = number(value),
                "LSTAR" | "MSR_LSTAR" => current.lstar = number(value).filter(|lstar| *lstar != 0),
                "IDT" => {
                    let base = if value.is_empty() {
                        words.next()
                    } else {
                        Some(value)
                    };
                    current.idt_base = base.and_then(number);
                    current.idt_limit = words.peek().and_then(|word| number(word));
                }
                // "FS =0000 base limit flags": the name is the word before, if there is a space.
                "" | "FS" | "GS" => {
                    let is = |wanted: &str| name == wanted || line.trim_start().starts_with(wanted);
                    let base = words.peek().and_then(|word| number(word));
                    if is("FS") {
                        current.fs_base = base;
                    } else if is("GS") {
                        current.gs_base = base;
                    }
                }
                _ => {}
            }
        }
    }
    finish(&mut current, wide);
    cpus
}
