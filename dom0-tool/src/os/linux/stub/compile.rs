//! Making the stub: the C compiler and the linker of the machine, the headers of the guest.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;
use thiserror::Error;

use super::headers::{HeaderTree, HeadersError};
use super::prepare::{PrepareError, Prepared, prepare};
use super::toolchain::{Compiler, FLAGS, TOOL_LIMIT, run, word_flags};

const STUB_C: &str = include_str!("stub.c");
const ENTRY_S: &str = include_str!("entry.S");
const ENTRY32_S: &str = include_str!("entry32.S");
const LINK_SCRIPT: &str = include_str!("stub.ld");

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
    /// The tree lacks something that cannot be made.
    #[error(transparent)]
    Headers(#[from] HeadersError),
    /// Files could not be written or a process not started.
    #[error("building the stub: {0}")]
    Io(#[from] io::Error),
}

impl From<PrepareError> for CompileError {
    fn from(error: PrepareError) -> Self {
        match error {
            PrepareError::Headers(error) => Self::Headers(error),
            PrepareError::Io(error) => Self::Io(error),
        }
    }
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

/// Compiles and links the stub against `tree`. `release` is the guest's word for its kernel, where there is a
/// guest.
///
/// # Errors
/// [`CompileError`].
pub fn compile(
    tree: &HeaderTree,
    compiler: Compiler,
    release: Option<&str>,
) -> Result<StubProgram, CompileError> {
    let folder = tempfile::Builder::new().prefix("lacuna-stub-").tempdir()?;
    let inside = |name: &str| folder.path().join(name);
    let mut prepared = prepare(tree, release, folder.path())?;
    if let Some(source) = prepared.bounds.clone() {
        let mut bounds = ask(tree, compiler, &prepared)?;
        // Only to assembly, which is read for its comments; clang's own assembler would take them for
        // instructions.
        bounds.args(["-S", "-o"]).arg(inside("bounds.s")).arg(source);
        if compiler == Compiler::Clang {
            bounds.arg("-fno-integrated-as");
        }
        run(compiler.program(), bounds, &tree.generated)?;
        prepared.add_bounds(&fs::read_to_string(inside("bounds.s"))?)?;
    }

    fs::write(inside("stub.c"), STUB_C)?;
    fs::write(inside("entry.S"), if tree.wide { ENTRY_S } else { ENTRY32_S })?;
    fs::write(inside("stub.ld"), LINK_SCRIPT)?;
    let mut entry = Command::new(compiler.program());
    entry
        .args([if tree.wide { "-m64" } else { "-m32" }, "-c", "-o"])
        .arg(inside("entry.o"))
        .arg(inside("entry.S"));
    run(compiler.program(), entry, &tree.generated)?;

    let mut stub = ask(tree, compiler, &prepared)?;
    stub.arg("-o").arg(inside("stub.o")).arg(inside("stub.c"));
    run(compiler.program(), stub, &tree.generated)?;

    let mut link = Command::new("ld");
    // What PageBuddy and its like call only when an assertion fails (dump_page under CONFIG_DEBUG_VM) stays
    // undefined: a call there faults, and a fault of the stub is a refusal.
    link.args([
        "-m",
        if tree.wide { "elf_x86_64" } else { "elf_i386" },
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
    run("ld", link, &tree.generated)?;
    Ok(StubProgram { folder })
}

/// The compiler with everything but its input and output.
fn ask(tree: &HeaderTree, compiler: Compiler, prepared: &Prepared) -> Result<Command, CompileError> {
    let mut command = Command::new(compiler.program());
    command.args(FLAGS).args(word_flags(tree.wide));
    command.args(
        prepared
            .gcc
            .map_or_else(Vec::new, |major| compiler.pass_for(major)),
    );
    for folder in prepared.include_folders() {
        command.arg("-I").arg(folder);
    }
    for file in &prepared.forced {
        command.arg("-include").arg(file);
    }
    // Searched last.
    command.arg("-isystem").arg(compiler.own_headers()?);
    Ok(command)
}
