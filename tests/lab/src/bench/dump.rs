//! `cargo lab bench dump`: processor time of `lacuna scan` on a dump, and makedumpfile's on the same one, in
//! turns.
//!
//! The dumps are ELF cores of Debian's kernels, taken by QEMU with its `vmcoreinfo` device, for makedumpfile
//! needs the note that this puts into them; and it needs their program headers in the first place
//! ([`headers_first`]). Both programs run as whole processes on files that are in the page cache; what counts
//! is user and system time together, as the kernel accounts it to the process. A dry run of makedumpfile
//! finds the free pages, and then reads the others as if to write them.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Map, Value, json};

use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::matrix::{Bench, Case, Taken, amd64, plain};
use crate::process::run_logged;
use crate::programs;
use crate::progress::Progress;
use crate::sysroot::Sysroot;

/// Turns that each program has, after one that brings the file into the cache.
const TURNS: usize = 7;
/// Private memory that the tool may have while it scans, in bytes: the same for every dump, and far less than
/// any of them. The dump's own pages are mapped from the file and do not count.
const PRIVATE_BYTES: u64 = 48 << 20;

/// Bytes of a 64-bit ELF header, and of a program header.
const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;

const fn case(name: &'static str, suite: &'static str, machine: &'static [&'static str]) -> Case {
    Case {
        machine,
        module: Some("qemu_fw_cfg"),
        taken: Taken::Elf,
        ..plain(name, amd64(suite, "amd64"))
    }
}

/// The dumps. makedumpfile knows 6.1; of 6.12, whose page types it does not know, it finds no free page.
const CASES: &[Case] = &[
    case("6.1-1-GiB", "bookworm", &["-device", "vmcoreinfo"]),
    case("6.1-4-GiB", "bookworm", &["-m", "4096", "-device", "vmcoreinfo"]),
    case("6.12-1-GiB", "trixie", &["-device", "vmcoreinfo"]),
];

/// Takes the dumps, measures, prints a line for each, and writes the figures to `report`.
pub(super) fn run(context: &Context, report: Option<&Path>) -> Result<()> {
    let bench = Bench::set_up(context, programs::product(context)?)?;
    install(context, &bench.sysroot)?;
    let mut figures = Map::new();
    println!("\nProcessor time of whole processes on ELF dumps, warm cache: the median of {TURNS} turns\n");
    println!(
        "  {:<12}{:>10}{:>14}{:>8}{:>14}{:>14}{:>14}",
        "dump", "lacuna", "makedumpfile", "ratio", "free, lacuna", "makedumpfile", "the guest"
    );
    for case in CASES {
        let taken = measure(&bench, case)?;
        println!("{}", line(case.name, &taken));
        figures.insert(case.name.to_owned(), taken);
    }
    println!();
    if let Some(report) = report {
        let text = serde_json::to_string_pretty(&figures).unwrap_or_default();
        fs::write(report, text + "\n").on("write", report)?;
    }
    Ok(())
}

/// Puts makedumpfile into the sysroot, unless it is there: nothing else needs it.
fn install(context: &Context, sysroot: &Sysroot) -> Result<()> {
    if sysroot.root.join("usr/bin/makedumpfile").is_file() {
        return Ok(());
    }
    let progress = Progress::begin("installing makedumpfile in the sysroot");
    let log = context.step_log("makedumpfile");
    for line in [
        &["apt-get", "update"][..],
        &[
            "apt-get",
            "install",
            "-y",
            "--no-install-recommends",
            "makedumpfile",
        ],
    ] {
        run_logged(sysroot.command("/", line), &log, &progress)?;
    }
    progress.done();
    Ok(())
}

/// The figures of one dump.
fn measure(bench: &Bench<'_>, case: &Case) -> Result<Value> {
    let (kernel, dumps) = bench.dump(case)?;
    headers_first(&dumps.elf)?;
    let lacuna = || {
        let mut command = Command::new(&bench.lacuna);
        command.args(["scan", "--json", "--dump"]).arg(&dumps.elf);
        command
    };
    // By the tree's own dynamic loader: entering the tree as other programs do would be counted as well.
    let libraries = bench.sysroot.root.join("usr/lib/x86_64-linux-gnu");
    let makedumpfile = || {
        let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(&libraries);
        command.arg(bench.sysroot.root.join("usr/bin/makedumpfile"));
        // Errors (4), and the report (16), in which it says how many pages were free.
        command.args(["-d", "16", "--dry-run", "--message-level", "20"]);
        command.arg(&dumps.elf).arg(dumps.elf.with_extension("none"));
        command
    };
    let (_, first) = timed(lacuna())?;
    let answer: Value = serde_json::from_slice(&first.stdout).unwrap_or(Value::Null);
    let told = said(&first);
    ensure(first.status.success(), "lacuna scan", "a scan", &told)?;
    // It succeeds with no more memory than that, or not at all.
    let mut bounded = Command::new("prlimit");
    bounded.arg(format!("--data={PRIVATE_BYTES}")).arg(&bench.lacuna);
    bounded.args(["scan", "--json", "--dump"]).arg(&dumps.elf);
    let (_, flat) = timed(bounded)?;
    let limit = format!("a scan in {} MiB", PRIVATE_BYTES >> 20);
    ensure(flat.status.success(), "lacuna scan", &limit, &said(&flat))?;
    let (_, other) = timed(makedumpfile())?;
    let other_told = said(&other);
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        times[0].push(timed(lacuna())?.0);
        if other.status.success() {
            times[1].push(timed(makedumpfile())?.0);
        }
    }
    let [own, theirs] = times.map(median);
    let mut taken = json!({
        "kernel": kernel.release,
        "dump_bytes": fs::metadata(&dumps.elf).on("look at", &dumps.elf)?.len(),
        "lacuna_ms": milliseconds(own),
        "lacuna_free": answer["free_pages"],
        "guest_free": dumps.truth.free,
        "private_bytes_limit": PRIVATE_BYTES,
    });
    if let (Some(own), Some(theirs)) = (own, theirs) {
        taken["makedumpfile_ms"] = json!(milliseconds(Some(theirs)));
        taken["makedumpfile_free"] = json!(free_pages(&other_told));
        taken["ratio"] = json!((own.as_secs_f64() / theirs.as_secs_f64() * 1000.0).round() / 1000.0);
    } else {
        taken["makedumpfile_said"] = json!(other_told);
    }
    crate::context::remove(&bench.folder(case))?;
    Ok(taken)
}

/// Puts the program headers of an ELF core of QEMU's directly behind its header, and leaves everything else
/// where it is.
///
/// makedumpfile looks for them there, whatever the header says (`get_elf64_phdr()` in its `elf_info.c`); QEMU
/// puts its section headers there (seen with 10.0), and makedumpfile then says "Can't get the number of
/// `PT_LOAD`".
fn headers_first(core: &Path) -> Result<()> {
    let mut file = fs::File::options()
        .read(true)
        .write(true)
        .open(core)
        .on("open", core)?;
    let mut header = [0; ELF_HEADER];
    file.read_exact(&mut header).on("read", core)?;
    let table = u64::from_le_bytes(std::array::from_fn(|index| header[32 + index]));
    let entries = u16::from_le_bytes([header[56], header[57]]);
    let mut headers = vec![0; usize::from(entries) * PROGRAM_HEADER];
    file.seek(SeekFrom::Start(table)).on("read", core)?;
    file.read_exact(&mut headers).on("read", core)?;
    // e_phoff; no sections any more (e_shoff; e_shentsize, e_shnum, e_shstrndx).
    header[32..40].copy_from_slice(&(ELF_HEADER as u64).to_le_bytes());
    header[40..48].fill(0);
    header[58..64].fill(0);
    file.seek(SeekFrom::Start(0)).on("write", core)?;
    file.write_all(&header).on("write", core)?;
    file.write_all(&headers).on("write", core)
}

/// Runs `command` to its end. User and system time of it and of its children; no other child of the lab ends
/// meanwhile.
fn timed(mut command: Command) -> Result<(Duration, Output)> {
    let before = spent()?;
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Start {
            program: command.get_program().to_string_lossy().into_owned(),
            source,
        })?;
    Ok((spent()?.saturating_sub(before), output))
}

/// Processor time of all children that have ended so far.
fn spent() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)
        .map_err(std::io::Error::from)
        .on("ask for the processor time of", "children")?;
    let of = |time: nix::sys::time::TimeVal| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(time.tv_usec()).unwrap_or(0))
    };
    Ok(of(usage.user_time()) + of(usage.system_time()))
}

fn median(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

/// Milliseconds, to a tenth.
fn milliseconds(time: Option<Duration>) -> Option<f64> {
    time.map(|time| (time.as_secs_f64() * 1e4).round() / 10.0)
}

/// What a program wrote, both streams.
fn said(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&both).trim().to_owned()
}

/// Free pages by makedumpfile's report: `    Free pages              : 0x00000000000283ea`.
fn free_pages(report: &str) -> Option<u64> {
    let line = report
        .lines()
        .find_map(|line| line.trim().strip_prefix("Free pages"))?;
    let digits = line.trim_start_matches([' ', ':']).strip_prefix("0x")?;
    u64::from_str_radix(digits.split_whitespace().next()?, 16).ok()
}

fn ensure(good: bool, what: &str, expected: &str, seen: &str) -> Result<()> {
    if good {
        return Ok(());
    }
    Err(Error::Unexpected {
        what: what.to_owned(),
        expected: expected.to_owned(),
        seen: seen.to_owned(),
    })
}

fn line(name: &str, taken: &Value) -> String {
    let cell = |member: &str| match &taken[member] {
        Value::Null => "–".to_owned(),
        value => value.to_string(),
    };
    let mut text = format!(
        "  {name:<12}{:>7} ms{:>11} ms{:>8}{:>14}{:>14}{:>14}",
        cell("lacuna_ms"),
        cell("makedumpfile_ms"),
        cell("ratio"),
        cell("lacuna_free"),
        cell("makedumpfile_free"),
        cell("guest_free"),
    );
    if let Some(said) = taken["makedumpfile_said"].as_str() {
        text.push_str("\n  makedumpfile cannot read it: ");
        text.push_str(&said.replace('\n', "; "));
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::headers_first;
    use super::{free_pages, line, median};
    use serde_json::json;
    use std::time::Duration;

    #[test]
    fn program_headers_go_where_makedumpfile_looks() {
        let mut core = vec![0; 64 + 128];
        core[..4].copy_from_slice(b"\x7fELF");
        core[32..40].copy_from_slice(&192_u64.to_le_bytes());
        core[40..48].copy_from_slice(&64_u64.to_le_bytes());
        core[56..64].copy_from_slice(&[2, 0, 64, 0, 2, 0, 1, 0]);
        core.extend([7; 56]);
        core.extend([8; 56]);
        core.extend(b"memory");
        let path = std::env::temp_dir().join(format!("lacuna-headers-{}", std::process::id()));
        std::fs::write(&path, &core).unwrap();
        headers_first(&path).unwrap();
        let after = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(after.len(), core.len());
        assert_eq!((&after[64..120], &after[120..176]), (&[7; 56][..], &[8; 56][..]));
        assert_eq!(
            (after[32], &after[40..48], &after[56..64]),
            (64, &[0; 8][..], &[2, 0, 0, 0, 0, 0, 0, 0][..])
        );
        assert!(after.ends_with(b"memory"));
    }

    #[test]
    fn the_report_says_how_many_pages_were_free() {
        let report = "Original pages  : 0x0000000000040000\n    Excluded pages   : 0x1\n      \
            Free pages              : 0x00000000000283ea\n";
        assert_eq!(free_pages(report), Some(0x283ea));
        assert_eq!(free_pages("Can't open the dump memory"), None);
    }

    #[test]
    fn what_could_not_be_measured_is_said() {
        let failed = line(
            "6.1",
            &json!({"lacuna_ms": 50.5, "makedumpfile_said": "no\nreason"}),
        );
        assert!(failed.contains("50.5 ms") && failed.contains("no; reason") && failed.contains('–'));
        assert_eq!(median(vec![]), None);
        let times = [3, 1, 2].map(Duration::from_secs);
        assert_eq!(median(times.into()), Some(Duration::from_secs(2)));
    }
}
