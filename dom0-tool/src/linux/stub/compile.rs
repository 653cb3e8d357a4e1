//! Making the stub: the C compiler and the linker of the machine, the headers of the guest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use thiserror::Error;

use super::headers::HeaderTree;

const STUB_C: &str = include_str!("stub.c");
const ENTRY_S: &str = include_str!("entry.S");
const LINK_SCRIPT: &str = include_str!("stub.ld");

/// Longest that one run of the compiler or linker may take. About a second in practice, half a minute under emulation.
const TOOL_LIMIT: Duration = Duration::from_secs(180);
/// Lines of a compiler's complaint that are shown.
const EXCERPT_LINES: usize = 8;

/// Why there is no stub.
#[derive(Debug, Error)]
pub enum CompileError {
    /// The compiler or linker is not installed.
    #[error("the program {tool:?} is needed to ask the kernel headers and is not installed")]
    ToolMissing {
        /// Its name.
        tool: &'static str,
    },
    /// It ran and failed.
    #[error("{tool} failed on the headers at {}:\n{excerpt}", headers.display())]
    Failed {
        /// Which tool.
        tool: &'static str,
        /// The header tree.
        headers: PathBuf,
        /// The first lines of what it said.
        excerpt: String,
    },
    /// It did not end in time.
    #[error("{tool} did not finish within {} s", TOOL_LIMIT.as_secs())]
    TooSlow {
        /// Which tool.
        tool: &'static str,
    },
    /// Files could not be written or a process not started.
    #[error("building the stub: {0}")]
    Io(#[from] io::Error),
}

/// A compiled stub, in a temporary folder that goes away with this value.
#[derive(Debug)]
pub struct StubProgram {
    folder: TempDir,
}

impl StubProgram {
    /// The executable.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("stub")
    }
}

/// Compiles and links the stub against `tree`.
///
/// # Errors
/// [`CompileError`].
pub fn compile(tree: &HeaderTree) -> Result<StubProgram, CompileError> {
    let folder = tempfile::Builder::new().prefix("lacuna-stub-").tempdir()?;
    let inside = |name: &str| folder.path().join(name);
    fs::write(inside("stub.c"), STUB_C)?;
    fs::write(inside("entry.S"), ENTRY_S)?;
    fs::write(inside("stub.ld"), LINK_SCRIPT)?;

    let mut entry = Command::new("gcc");
    entry
        .args(["-m64", "-c", "-o"])
        .arg(inside("entry.o"))
        .arg(inside("entry.S"));
    run("gcc", entry, tree)?;

    let mut stub = Command::new("gcc");
    stub.args(["-c", "-o"])
        .arg(inside("stub.o"))
        .arg(inside("stub.c"));
    stub.args(COMPILER_FLAGS);
    for folder in tree.include_folders() {
        stub.arg("-I").arg(folder);
    }
    for file in tree.forced_includes() {
        stub.arg("-include").arg(file);
    }
    // Kernels before 5.16 take stdarg.h from the compiler. Searched last.
    stub.arg("-isystem").arg(compiler_headers()?);
    run("gcc", stub, tree)?;

    let mut link = Command::new("ld");
    // What PageBuddy and its like call only when an assertion fails (dump_page under CONFIG_DEBUG_VM) stays undefined:
    // a call there faults, and a fault of the stub is a refusal.
    link.args([
        "-static",
        "-z",
        "noexecstack",
        "--unresolved-symbols=ignore-all",
        "-T",
    ]);
    link.arg(inside("stub.ld"))
        .arg("-o")
        .arg(inside("stub"))
        .arg(inside("entry.o"))
        .arg(inside("stub.o"));
    run("ld", link, tree)?;
    Ok(StubProgram { folder })
}

/// The kernel's own flags as far as they bear on layout and meaning (top Makefile and `arch/x86/Makefile`).
const COMPILER_FLAGS: [&str; 23] = [
    "-D__KERNEL__",
    "-DKBUILD_MODNAME=\"lacuna\"",
    "-DKBUILD_BASENAME=\"lacuna\"",
    "-O2",
    "-std=gnu11",
    "-m64",
    "-nostdinc",
    "-ffreestanding",
    "-mcmodel=kernel",
    "-mno-red-zone",
    "-mno-sse",
    "-mno-mmx",
    "-fshort-wchar",
    "-fno-common",
    "-fno-pie",
    "-fno-strict-aliasing",
    "-fno-strict-overflow",
    "-fno-stack-protector",
    "-fno-jump-tables",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    // Since 6.19 headers have unnamed members of a named type; without it their layout is another one.
    "-fms-extensions",
    "-w",
];

fn compiler_headers() -> Result<PathBuf, CompileError> {
    let output = Command::new("gcc")
        .arg("-print-file-name=include")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| tool_error("gcc", error))?;
    Ok(Path::new(String::from_utf8_lossy(&output.stdout).trim()).to_owned())
}

fn tool_error(tool: &'static str, error: io::Error) -> CompileError {
    if error.kind() == io::ErrorKind::NotFound {
        CompileError::ToolMissing { tool }
    } else {
        CompileError::Io(error)
    }
}

fn run(tool: &'static str, mut command: Command, tree: &HeaderTree) -> Result<(), CompileError> {
    // Complaints go to a file: a pipe that nobody reads while waiting would stop the tool.
    let complaints = tempfile::tempfile()?;
    let mut child = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(complaints.try_clone()?)
        .spawn()
        .map_err(|error| tool_error(tool, error))?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > TOOL_LIMIT {
            child.kill()?;
            child.wait()?;
            return Err(CompileError::TooSlow { tool });
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    if status.success() {
        return Ok(());
    }
    Err(CompileError::Failed {
        tool,
        headers: tree.generated.clone(),
        excerpt: excerpt(complaints)?,
    })
}

fn excerpt(mut complaints: fs::File) -> io::Result<String> {
    use std::io::{Read, Seek};
    complaints.rewind()?;
    let mut bytes = Vec::new();
    complaints.take(64 << 10).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text
        .lines()
        .filter(|line| line.contains("rror") || line.contains("undefined"))
        .take(EXCERPT_LINES)
        .fold(String::new(), |mut all, line| {
            all.push_str("  ");
            all.push_str(line);
            all.push('\n');
            all
        }))
}
