//! Runs real programs in phases, several at once, and compares what comes of each with what the same programs
//! made elsewhere. So a page that is lost, of a program, of its memory or of its files, shows.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lacuna_guest::Report;
use lacuna_guest::programs::{SERVING, SHOP_FILES, Workload};

use crate::numbers;

/// How often free memory is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// KiB of a page.
const PAGE_KIB: u64 = 4;
/// How long a server may take until it serves, and how often that is looked at.
const SERVER_LIMIT: Duration = Duration::from_secs(120);
const SERVER_LOOK: Duration = Duration::from_millis(50);

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
    /// Starts the server that they need, and as many programs at a time as each of `phases` says, and rests
    /// for `rest` between two phases.
    pub(crate) fn start(workload: Workload, phases: Vec<u32>, rest: Duration) -> io::Result<Self> {
        let server = workload.server().map(|line| serve(&line)).transpose()?;
        let state = Arc::new(State {
            least: AtomicU64::new(u64::MAX),
            ..State::default()
        });
        let (looking, running) = (Arc::clone(&state), Arc::clone(&state));
        thread::spawn(move || look(&looking));
        thread::spawn(move || {
            run(&running, workload, &phases, rest);
            if let Some(mut server) = server {
                if let Ok(Some(status)) = server.try_wait() {
                    running.fail(&format!("the server ended by itself: {status}"));
                }
                // One that has ended needs neither.
                server.kill().and_then(|()| server.wait()).ok();
            }
            running.ended.store(true, Ordering::Release);
        });
        Ok(Self(state))
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

/// Starts a server, and waits until it serves.
fn serve(words: &[String]) -> io::Result<Child> {
    let mut server = command(words)?.stdin(Stdio::null()).spawn()?;
    let until = Instant::now() + SERVER_LIMIT;
    while !Path::new(SHOP_FILES).join(SERVING).exists() {
        if let Some(status) = server.try_wait()? {
            return Err(io::Error::other(format!("the server ended at once: {status}")));
        }
        if Instant::now() > until {
            return Err(io::Error::other("the server does not serve"));
        }
        thread::sleep(SERVER_LOOK);
    }
    Ok(server)
}

fn run(state: &Arc<State>, workload: Workload, phases: &[u32], rest: Duration) {
    for (phase, jobs) in (0..).zip(phases) {
        if phase > 0 {
            thread::sleep(rest);
        }
        state.phase.store(phase, Ordering::Relaxed);
        let running: Vec<_> = (0..*jobs)
            .map(|job| {
                let state = Arc::clone(state);
                thread::spawn(move || match program(workload, &format!("/tmp/{phase}-{job}")) {
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

/// Runs a program with its files in `folder`, which it makes and removes, and compares what comes of it.
fn program(workload: Workload, folder: &str) -> io::Result<()> {
    fs::create_dir(folder)?;
    let (steps, file) = workload.steps(&format!("{folder}/result"));
    let mut said = Vec::new();
    for step in &steps {
        said = finish(&mut command(step)?)?;
    }
    let seen = match &file {
        Some(file) => fs::read(file)?,
        None => said,
    };
    fs::remove_dir_all(folder)?;
    let expected = fs::read(workload.expected())?;
    if seen == expected {
        return Ok(());
    }
    let differ = seen.iter().zip(&expected).filter(|(one, other)| one != other);
    Err(io::Error::other(format!(
        "a result of {} bytes differs from the expected one of {} in {} bytes",
        seen.len(),
        expected.len(),
        differ.count()
    )))
}

/// The command of a line of words.
fn command(words: &[String]) -> io::Result<Command> {
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| io::Error::other("a command line without a word"))?;
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}

/// Runs a program to its end, which must be a good one, and returns what it said.
fn finish(command: &mut Command) -> io::Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let program = command.get_program().to_string_lossy().into_owned();
    let words = String::from_utf8_lossy(&output.stderr);
    let last = words.lines().last().unwrap_or_default();
    Err(io::Error::other(format!("{program}: {}: {last}", output.status)))
}
