//! Running the stub, which holds foreign code, so that it can do nothing but answer.
//!
//! The program's first act, before any code from the header tree runs, is strict seccomp (`entry.S`): from
//! then on the kernel of this machine kills it for anything but read, write and exit. It talks over two pipes
//! and is killed when the time limit passes.

use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use thiserror::Error;

use super::compile::StubProgram;

/// Longest that the stub may run in all. It takes about a second; far longer under emulation.
const TIME_LIMIT: Duration = Duration::from_secs(120);
/// Exit status of `entry.S` when strict seccomp is refused.
const SANDBOX_UNAVAILABLE: i32 = 97;
/// Bytes of `struct lacuna_greeting`, of a fact, and of an exchange before its descriptor (`stub.c`).
const GREETING_BYTES: usize = 224;
const FACT_BYTES: usize = 64;
const EXCHANGE_HEADER: usize = 64;
/// Exchanges written before the first answer is read: both directions stay below a pipe's 64 KiB, so neither
/// side ever waits for the other to make room.
const BATCH_BYTES: usize = 48 << 10;
/// Most facts and largest descriptor accepted.
const MAX_FACTS: u64 = 256;
const MAX_DESCRIPTOR: u64 = 512;

/// Why the stub gave no answer.
#[derive(Debug, Error)]
pub enum RunError {
    /// It could not be started, or the pipe to it broke.
    #[error("running the stub: {0}")]
    Io(#[from] io::Error),
    /// It ended by itself.
    #[error(
        "the stub ended early ({0}): the kernel's own PageBuddy cannot be run outside the kernel with this configuration"
    )]
    Ended(String),
    /// This machine does not allow strict seccomp, and the stub is not run without.
    #[error("this machine does not offer seccomp (CONFIG_SECCOMP), without which the stub is not run")]
    NoSandbox,
    /// This machine's kernel does not run programs of the guest's word size.
    #[error(
        "this machine's kernel does not run 32-bit programs (CONFIG_IA32_EMULATION), which the stub of a 32-bit kernel is"
    )]
    WordSize,
    /// It did not answer in time.
    #[error("the stub did not finish within {} s", TIME_LIMIT.as_secs())]
    TooSlow,
    /// What it said first is not what a stub says.
    #[error("the stub's greeting is malformed: {0}")]
    Greeting(&'static str),
}

/// What to do with a descriptor. The letters are those of `stub.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    /// `PageBuddy`: the answer's number is 1 for free.
    Test = b'T',
    /// `__SetPageBuddy`.
    Set = b'S',
    /// `__ClearPageBuddy`.
    Clear = b'C',
    /// `set_page_private`, with the number given.
    SetOrder = b'O',
    /// `page_private`: the answer's number.
    Order = b'o',
    /// `init_page_count`: the reference count becomes 1.
    SetOneReference = b'R',
}

/// A named number that the compiler found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// For example `sizeof(struct page)`.
    pub name: String,
    /// Its value.
    pub value: u64,
}

/// What a stub says of itself before anything is asked of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Greeting {
    /// `UTS_RELEASE` of the headers.
    pub release: String,
    /// The compiler's `__VERSION__`.
    pub compiler: String,
    /// What the compiler found.
    pub facts: Vec<Fact>,
    /// `sizeof(struct page)`, in bytes.
    pub descriptor_bytes: usize,
}

impl Greeting {
    /// Reads it from a stub, which is foreign code: nothing in it is believed to be of a possible size.
    ///
    /// # Errors
    /// [`RunError::Greeting`]; [`RunError::Io`] where it ends too early.
    pub fn read(stub: &mut impl Read) -> Result<Self, RunError> {
        let mut greeting = [0; GREETING_BYTES];
        stub.read_exact(&mut greeting)?;
        if greeting[..8] != *b"LACSTUB1" {
            return Err(RunError::Greeting("wrong magic number"));
        }
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| greeting[at + index]));
        let (fact_bytes, facts, descriptor) = (number(8), number(16), number(24));
        if fact_bytes != FACT_BYTES as u64 || facts > MAX_FACTS {
            return Err(RunError::Greeting("impossible table of facts"));
        }
        if !(8..=MAX_DESCRIPTOR).contains(&descriptor) {
            return Err(RunError::Greeting("impossible size of struct page"));
        }
        let mut read = Self {
            release: text(&greeting[32..160]),
            compiler: text(&greeting[160..]),
            facts: Vec::new(),
            descriptor_bytes: usize::try_from(descriptor).map_err(|_| RunError::Greeting("size"))?,
        };
        for _ in 0..facts {
            let mut fact = [0; FACT_BYTES];
            stub.read_exact(&mut fact)?;
            let value = u64::from_le_bytes(std::array::from_fn(|index| fact[56 + index]));
            read.facts.push(Fact {
                name: text(&fact[..48]),
                value,
            });
        }
        Ok(read)
    }

    /// The fact `name`, if the headers have it.
    pub fn fact(&self, name: &str) -> Option<u64> {
        self.facts
            .iter()
            .find(|fact| fact.name == name)
            .map(|fact| fact.value)
    }
}

/// A running stub.
#[derive(Debug)]
pub struct Stub {
    child: Arc<Mutex<Child>>,
    input: Option<ChildStdin>,
    output: ChildStdout,
    /// Dropping it tells the watchdog to stop.
    _alive: Sender<()>,
    timed_out: Arc<Mutex<bool>>,
    /// What it said of itself.
    pub greeting: Greeting,
}

impl Stub {
    /// Starts the program and reads its facts.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn start(program: &StubProgram) -> Result<Self, RunError> {
        let mut child = Command::new(program.path())
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ENOEXEC) => RunError::WordSize,
                _ => RunError::Io(error),
            })?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let output = output.ok_or(RunError::Greeting("no pipe"))?;
        let child = Arc::new(Mutex::new(child));
        let timed_out = Arc::new(Mutex::new(false));
        let (alive, watched) = mpsc::channel();
        let (watched_child, watched_flag) = (Arc::clone(&child), Arc::clone(&timed_out));
        thread::spawn(move || {
            if watched.recv_timeout(TIME_LIMIT) == Err(RecvTimeoutError::Timeout) {
                *lock(&watched_flag) = true;
                // It may have ended in this moment: nothing to kill then.
                let _ = lock(&watched_child).kill();
            }
        });
        let mut stub = Self {
            child,
            input,
            output,
            _alive: alive,
            timed_out,
            greeting: Greeting::default(),
        };
        match Greeting::read(&mut stub.output) {
            Ok(greeting) => stub.greeting = greeting,
            Err(RunError::Io(error)) => return Err(stub.explain(error)),
            Err(error) => return Err(error),
        }
        Ok(stub)
    }

    /// Performs `operation` with `number` on `descriptor`, which it changes, and returns the answer's number.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn perform(
        &mut self,
        operation: Operation,
        number: u64,
        descriptor: &mut [u8],
    ) -> Result<u64, RunError> {
        let mut one = [descriptor.to_vec()];
        let answers = self.perform_all(operation, number, &mut one)?;
        descriptor.copy_from_slice(&one[0]);
        answers.first().copied().ok_or(RunError::Greeting("no answer"))
    }

    /// Performs `operation` on every descriptor, each of which has [`Greeting::descriptor_bytes`] bytes.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn perform_all(
        &mut self,
        operation: Operation,
        number: u64,
        descriptors: &mut [Vec<u8>],
    ) -> Result<Vec<u64>, RunError> {
        let exchange = EXCHANGE_HEADER + self.greeting.descriptor_bytes;
        let mut answers = Vec::with_capacity(descriptors.len());
        for batch in descriptors.chunks_mut((BATCH_BYTES / exchange).max(1)) {
            let mut bytes = Vec::with_capacity(batch.len() * exchange);
            for descriptor in batch.iter() {
                bytes.extend_from_slice(&u64::from(operation as u8).to_le_bytes());
                bytes.extend_from_slice(&number.to_le_bytes());
                bytes.resize(bytes.len() + EXCHANGE_HEADER - 16, 0);
                bytes.extend_from_slice(descriptor);
            }
            self.send(&bytes)?;
            self.receive(&mut bytes)?;
            for (descriptor, answer) in batch.iter_mut().zip(bytes.chunks_exact(exchange)) {
                answers.push(u64::from_le_bytes(std::array::from_fn(|index| answer[8 + index])));
                descriptor.copy_from_slice(&answer[EXCHANGE_HEADER..]);
            }
        }
        Ok(answers)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), RunError> {
        let sent = match &mut self.input {
            Some(input) => input.write_all(bytes).and_then(|()| input.flush()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        sent.map_err(|error| self.explain(error))
    }

    fn receive(&mut self, into: &mut [u8]) -> Result<(), RunError> {
        self.output.read_exact(into).map_err(|error| self.explain(error))
    }

    /// How the stub ended, its input being closed. A healthy one ends by itself at once; one that loops is
    /// killed.
    fn end(&mut self) -> io::Result<ExitStatus> {
        let mut child = lock(&self.child);
        for _ in 0..100 {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(2));
        }
        child.kill()?;
        child.wait()
    }

    /// Turns a broken pipe into the reason for it.
    fn explain(&mut self, error: io::Error) -> RunError {
        if *lock(&self.timed_out) {
            return RunError::TooSlow;
        }
        if !matches!(
            error.kind(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof
        ) {
            return RunError::Io(error);
        }
        // Without its input the stub ends, if it has not already.
        self.input = None;
        match self.end() {
            Ok(status) if status.code() == Some(SANDBOX_UNAVAILABLE) => RunError::NoSandbox,
            Ok(status) => RunError::Ended(match status.signal() {
                Some(signal) => format!("killed by signal {signal}"),
                None => status.to_string(),
            }),
            Err(error) => RunError::Io(error),
        }
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.input = None;
        // Nobody is left to be told that a process could not be reaped.
        let _ = self.end();
    }
}

/// A poisoned lock means that another thread panicked; what it guards here stays usable.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
