//! The compilers that the stub can be made with, their flags, and running them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::compile::CompileError;

/// Longest that one run of the compiler or linker may take. About a second in practice, half a minute under
/// emulation.
pub(super) const TOOL_LIMIT: Duration = Duration::from_secs(180);
/// Lines of a compiler's complaint that are shown.
const EXCERPT_LINES: usize = 8;

/// A C compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// GNU's.
    Gcc,
    /// LLVM's.
    Clang,
}

impl Compiler {
    /// The program.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Gcc => "gcc",
            Self::Clang => "clang",
        }
    }

    /// Whether it is installed.
    pub fn is_here(self) -> bool {
        let mut asked = Command::new(self.program());
        asked.arg("--version").stdin(Stdio::null());
        asked.stdout(Stdio::null()).stderr(Stdio::null());
        asked.status().is_ok_and(|status| status.success())
    }

    /// The first that is installed; gcc, for its error, if none is.
    pub fn installed() -> Self {
        [Self::Gcc, Self::Clang]
            .into_iter()
            .find(|compiler| compiler.is_here())
            .unwrap_or(Self::Gcc)
    }

    /// The folder of its own headers: kernels before 5.16 take `stdarg.h` from there.
    pub(super) fn own_headers(self) -> Result<PathBuf, CompileError> {
        let word = match self {
            Self::Gcc => "-print-file-name=include",
            Self::Clang => "-print-resource-dir",
        };
        let output = Command::new(self.program())
            .arg(word)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| tool_error(self.program(), error))?;
        let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        Ok(match self {
            Self::Gcc => folder,
            Self::Clang => folder.join("include"),
        })
    }

    /// What makes the compiler pass for version `major` of gcc, the newest that the headers know; it changes
    /// which of the kernel's headers are taken, not what the compiler does. clang always passes for gcc 4.2.
    pub(super) fn pass_for(self, major: u32) -> Vec<String> {
        match self {
            Self::Clang => Vec::new(),
            Self::Gcc => {
                // The last of each: old headers refuse the first ones for their errors.
                let minor = if major < 5 { 9 } else { 5 };
                vec![
                    "-U__GNUC__".to_owned(),
                    format!("-D__GNUC__={major}"),
                    "-U__GNUC_MINOR__".to_owned(),
                    format!("-D__GNUC_MINOR__={minor}"),
                ]
            }
        }
    }
}

/// The kernel's own flags as far as they bear on layout and meaning (top Makefile and `arch/x86/Makefile`).
pub(super) const FLAGS: [&str; 22] = [
    "-D__KERNEL__",
    "-DKBUILD_MODNAME=\"lacuna\"",
    "-DKBUILD_BASENAME=\"lacuna\"",
    "-O2",
    "-std=gnu11",
    // Until 5.17 kernels were C89, in which a plain "extern inline" emits nothing; newer ones have gnu_inline
    // on each.
    "-fgnu89-inline",
    "-nostdinc",
    "-ffreestanding",
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
    "-c",
    "-w",
];

/// Those that differ between the word sizes.
pub(super) const fn word_flags(wide: bool) -> &'static [&'static str] {
    if wide {
        &["-m64", "-mcmodel=kernel", "-mno-red-zone"]
    } else {
        &["-m32", "-msoft-float", "-mregparm=3", "-freg-struct-return"]
    }
}

fn tool_error(tool: &'static str, error: io::Error) -> CompileError {
    if error.kind() == io::ErrorKind::NotFound {
        CompileError::ToolMissing { tool }
    } else {
        CompileError::Io(error)
    }
}

/// Runs a tool to its end.
///
/// # Errors
/// [`CompileError`]; `headers` is named in it.
pub(super) fn run(tool: &'static str, mut command: Command, headers: &Path) -> Result<(), CompileError> {
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
        headers: headers.to_owned(),
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
