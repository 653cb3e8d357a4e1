//! Runs real programs in phases: C++ is compiled and assembled, several times at once, and every object file
//! is compared with what the same compiler made elsewhere. So a page that is lost, of the compiler, of its
//! memory or of its files, shows.

use std::fs;
use std::io;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use lacuna_guest::Report;
use lacuna_guest::programs::{ASSEMBLER, COMPILER, EXPECTED, OPTIONS, SOURCE};

use crate::numbers;

/// How often free memory is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// KiB of a page.
const PAGE_KIB: u64 = 4;

#[derive(Default)]
struct State {
    phase: AtomicU32,
    done: AtomicU32,
    ended: AtomicBool,
    failed: Mutex<Option<String>>,
    least: AtomicU64,
    most: AtomicU64,
    sum: AtomicU64,
    looks: AtomicU64,
}

/// Programs that run.
pub(crate) struct Programs(Arc<State>);

impl Programs {
    /// Starts as many at a time as each of `phases` says, and rests for `rest` between two phases.
    pub(crate) fn start(phases: Vec<u32>, rest: Duration) -> Self {
        let state = Arc::new(State {
            least: AtomicU64::new(u64::MAX),
            ..State::default()
        });
        let (looking, running) = (Arc::clone(&state), Arc::clone(&state));
        thread::spawn(move || look(&looking));
        thread::spawn(move || {
            run(&running, &phases, rest);
            running.ended.store(true, Ordering::Release);
        });
        Self(state)
    }

    /// Returns how far they are.
    pub(crate) fn report(&self) -> io::Result<Report> {
        let state = &self.0;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let failed = state.failed.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Report::Programs {
            ended: state.ended.load(Ordering::Acquire),
            phase: state.phase.load(Ordering::Relaxed),
            done: state.done.load(Ordering::Relaxed),
            failed: failed.clone(),
            free: free()?,
            least: read(&state.least),
            most: read(&state.most),
            sum: read(&state.sum),
            looks: read(&state.looks),
        })
    }
}

/// Returns the free pages as the kernel counts them.
fn free() -> io::Result<u64> {
    let kib = numbers("/proc/meminfo")?.get("MemFree").copied();
    kib.map(|kib| kib / PAGE_KIB)
        .ok_or_else(|| io::Error::other("/proc/meminfo has no MemFree"))
}

/// Looks at free memory until the programs have ended.
fn look(state: &State) {
    while !state.ended.load(Ordering::Acquire) {
        if let Ok(pages) = free() {
            state.least.fetch_min(pages, Ordering::Relaxed);
            state.most.fetch_max(pages, Ordering::Relaxed);
            state.sum.fetch_add(pages, Ordering::Relaxed);
            state.looks.fetch_add(1, Ordering::Relaxed);
        }
        thread::sleep(LOOK);
    }
}

fn run(state: &Arc<State>, phases: &[u32], rest: Duration) {
    for (phase, jobs) in (0..).zip(phases) {
        if phase > 0 {
            thread::sleep(rest);
        }
        state.phase.store(phase, Ordering::Relaxed);
        let running: Vec<_> = (0..*jobs)
            .map(|job| {
                let state = Arc::clone(state);
                thread::spawn(move || match compile(&format!("/tmp/{phase}-{job}")) {
                    Ok(()) => {
                        state.done.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => state.fail(&error),
                })
            })
            .collect();
        for job in running {
            if job.join().is_err() {
                state.fail(&"a thread panicked");
            }
        }
    }
}

impl State {
    /// Keeps the first failure.
    fn fail(&self, why: &dyn std::fmt::Display) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get_or_insert_with(|| why.to_string());
    }
}

/// Compiles and assembles, compares the object file, and removes what came of it.
fn compile(at: &str) -> io::Result<()> {
    let (assembly, object) = (format!("{at}.s"), format!("{at}.o"));
    let mut compiler = Command::new(COMPILER);
    finish(compiler.args(OPTIONS).args([SOURCE, "-o", &assembly]))?;
    finish(Command::new(ASSEMBLER).args([&assembly, "-o", &object]))?;
    let (seen, expected) = (fs::read(&object)?, fs::read(EXPECTED)?);
    fs::remove_file(assembly)?;
    fs::remove_file(object)?;
    if seen == expected {
        return Ok(());
    }
    let differ = seen.iter().zip(&expected).filter(|(one, other)| one != other);
    Err(io::Error::other(format!(
        "an object file of {} bytes differs from the expected one of {} in {} bytes",
        seen.len(),
        expected.len(),
        differ.count()
    )))
}

/// Runs a program to its end, which must be a good one.
fn finish(command: &mut Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let program = command.get_program().to_string_lossy().into_owned();
    let words = String::from_utf8_lossy(&output.stderr);
    let last = words.lines().last().unwrap_or_default();
    Err(io::Error::other(format!("{program}: {}: {last}", output.status)))
}
