//! What the machine itself must have: root, disk, memory, cores, programs.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::fs::statvfs;

use super::Check;
use crate::context::Context;
use crate::process::is_installed;

const GIB: u64 = 1 << 30;

/// What README says a run from nothing takes on disk.
const DISK: u64 = 10 * GIB;
/// Below this not even a run with a filled cache gets to its end: logs, images and test programs are written
/// anew.
const LEAST_DISK: u64 = 2 * GIB;

/// What the emulated machine is given (`tests/lab/src/emulator.rs`), and its emulator's own on top.
const LEAST_MEMORY: u64 = 5 * GIB;
/// With a compiler beside it.
const MEMORY: u64 = 8 * GIB;

/// The oldest compiler that builds the project (`rust-version` in Cargo.toml).
const RUST: (u32, u32) = (1, 85);

/// A program and where it comes from.
struct Program {
    name: &'static str,
    from: &'static str,
    /// The lab installs it itself when it is missing.
    by_lab: bool,
}

const fn program(name: &'static str, from: &'static str) -> Program {
    Program {
        name,
        from,
        by_lab: false,
    }
}

/// What the lab calls on the machine.
const PROGRAMS: &[Program] = &[
    Program {
        by_lab: true,
        ..program("debootstrap", "apt-get install debootstrap")
    },
    program("apt-get", "the lab needs Debian or a distribution made of it"),
    program("unshare", "apt-get install util-linux"),
    program("setpriv", "apt-get install util-linux"),
    program("cargo", "install Rust, for instance with rustup"),
    program("rustc", "install Rust, for instance with rustup"),
    program("cc", "apt-get install gcc"),
    program("git", "apt-get install git"),
    program("sha256sum", "apt-get install coreutils"),
];

/// The name of the check of the user.
pub(super) const ROOT: &str = "root";

/// Looks at all of it.
pub(super) fn checks(context: &Context) -> Vec<Check> {
    let missing: Vec<&Program> = PROGRAMS
        .iter()
        .filter(|program| !is_installed(program.name))
        .collect();
    let mut checks = vec![root(rustix::process::geteuid().as_raw())];
    checks.push(disk("disk of the cache", &context.cache, free(&context.cache)));
    if device(&context.cache) != device(&context.repository) {
        let free = free(&context.repository);
        checks.push(disk("disk of the checkout", &context.repository, free));
    }
    let available = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| memory_available(&text));
    checks.push(memory(available));
    checks.push(cores(std::thread::available_parallelism().map_or(1, usize::from)));
    checks.push(programs(&missing));
    checks.push(rust(version_of("rustc").as_deref()));
    checks
}

fn root(uid: u32) -> Check {
    if uid == 0 {
        Check::ok(ROOT, "user id 0")
    } else {
        Check::fail(
            ROOT,
            format!("user id {uid}"),
            "run it as root: debootstrap, chroot and mount namespaces ask for it",
        )
    }
}

/// Bytes that a file system has free.
fn free(path: &Path) -> Option<u64> {
    let about = statvfs(path).ok()?;
    Some(about.f_bavail.saturating_mul(about.f_frsize))
}

fn device(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).ok().map(|meta| meta.dev())
}

fn disk(name: &str, path: &Path, free: Option<u64>) -> Check {
    let at = path.display();
    let remedy = "make room, or set XDG_CACHE_HOME to a directory on a larger disk";
    match free {
        None => Check::warn(name, format!("no figure for {at}"), remedy),
        Some(free) if free < LEAST_DISK => Check::fail(name, format!("{} free at {at}", gib(free)), remedy),
        Some(free) if free < DISK => Check::warn(
            name,
            format!(
                "{} free at {at}; a run from nothing takes up to {}",
                gib(free),
                gib(DISK)
            ),
            remedy,
        ),
        Some(free) => Check::ok(name, format!("{} free at {at}", gib(free))),
    }
}

/// The memory that programs can have, out of `/proc/meminfo`.
fn memory_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

fn memory(available: Option<u64>) -> Check {
    let remedy = "end other programs, or use a machine with more memory: the emulated one has 4 GiB";
    match available {
        None => Check::warn("memory", "/proc/meminfo does not say", remedy),
        Some(bytes) if bytes < LEAST_MEMORY => {
            Check::fail("memory", format!("{} available", gib(bytes)), remedy)
        }
        Some(bytes) if bytes < MEMORY => Check::warn("memory", format!("{} available", gib(bytes)), remedy),
        Some(bytes) => Check::ok("memory", format!("{} available", gib(bytes))),
    }
}

fn cores(count: usize) -> Check {
    if count >= 2 {
        Check::ok("cores", count.to_string())
    } else {
        Check::warn(
            "cores",
            count.to_string(),
            "give it two: the emulated machine has two processors, and time limits are made for that",
        )
    }
}

fn programs(missing: &[&Program]) -> Check {
    let names = |wanted: &[&Program]| {
        let names: Vec<&str> = wanted.iter().map(|program| program.name).collect();
        names.join(", ")
    };
    let (by_lab, needed): (Vec<&Program>, Vec<&Program>) =
        missing.iter().copied().partition(|program| program.by_lab);
    if !needed.is_empty() {
        let remedies: Vec<&str> = needed.iter().map(|program| program.from).collect();
        let mut remedies: Vec<&str> = remedies;
        remedies.dedup();
        Check::fail(
            "programs",
            format!("missing: {}", names(&needed)),
            remedies.join("; "),
        )
    } else if !by_lab.is_empty() {
        Check::warn(
            "programs",
            format!("missing: {}", names(&by_lab)),
            "nothing to do: setting up the lab installs it",
        )
    } else {
        let all: Vec<&Program> = PROGRAMS.iter().collect();
        Check::ok("programs", names(&all))
    }
}

/// What a program answers to `--version`.
fn version_of(name: &str) -> Option<String> {
    let output = Command::new(name).arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn rust(said: Option<&str>) -> Check {
    let remedy = format!(
        "install Rust {}.{} or later: with rustup, `rustup update`",
        RUST.0, RUST.1
    );
    let Some(said) = said else {
        return Check::fail("rustc", "does not start", remedy);
    };
    let mut numbers = said
        .split_whitespace()
        .nth(1)
        .unwrap_or_default()
        .split('.')
        .map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= RUST => Check::ok("rustc", said),
        _ => Check::fail("rustc", said, remedy),
    }
}

/// Bytes as one reads them.
pub(super) fn gib(bytes: u64) -> String {
    let tenths = bytes / (GIB / 10);
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn only_root_will_do() {
        assert_eq!(root(0).state, State::Ok);
        assert_eq!(root(1000).state, State::Fail);
        assert!(root(1000).seen.contains("1000"));
    }

    #[test]
    fn little_disk_warns_and_next_to_none_fails() {
        let state = |free| disk("disk", Path::new("/x"), free).state;
        assert_eq!(state(Some(DISK)), State::Ok);
        assert_eq!(state(Some(DISK - 1)), State::Warn);
        assert_eq!(state(Some(LEAST_DISK - 1)), State::Fail);
        assert_eq!(state(None), State::Warn);
        let check = disk("disk", Path::new("/x"), Some(3 * GIB + GIB / 2));
        assert!(check.seen.starts_with("3.5 GiB free at /x"), "{}", check.seen);
    }

    #[test]
    fn memory_is_what_programs_can_have() {
        let text = "MemTotal:       24000000 kB\nMemFree:  1 kB\nMemAvailable:    6291456 kB\n";
        assert_eq!(memory_available(text), Some(6 * GIB));
        assert_eq!(memory_available("MemTotal: 3 kB\n"), None);
        assert_eq!(memory(Some(8 * GIB)).state, State::Ok);
        assert_eq!(memory(Some(6 * GIB)).state, State::Warn);
        assert_eq!(memory(Some(4 * GIB)).state, State::Fail);
    }

    #[test]
    fn one_core_warns() {
        assert_eq!(cores(1).state, State::Warn);
        assert_eq!(cores(2).state, State::Ok);
    }

    #[test]
    fn a_missing_program_fails_unless_the_lab_installs_it() {
        let named = |name: &str| PROGRAMS.iter().find(|program| program.name == name);
        let of = |names: &[&str]| {
            let missing: Vec<&Program> = names.iter().filter_map(|name| named(name)).collect();
            programs(&missing)
        };
        assert_eq!(of(&[]).state, State::Ok);
        assert_eq!(of(&["debootstrap"]).state, State::Warn);
        let check = of(&["debootstrap", "cargo", "rustc", "git"]);
        assert_eq!(check.state, State::Fail);
        assert_eq!(check.seen, "missing: cargo, rustc, git");
        assert_eq!(
            check.remedy.as_deref(),
            Some("install Rust, for instance with rustup; apt-get install git")
        );
    }

    #[test]
    fn an_old_compiler_fails() {
        let state = |said| rust(said).state;
        assert_eq!(state(Some("rustc 1.85.0 (4d91de4e4 2025-02-17)")), State::Ok);
        assert_eq!(state(Some("rustc 1.95.0")), State::Ok);
        assert_eq!(state(Some("rustc 2.0.0")), State::Ok);
        assert_eq!(state(Some("rustc 1.84.1")), State::Fail);
        assert_eq!(state(Some("error: no default toolchain")), State::Fail);
        assert_eq!(state(None), State::Fail);
    }
}
