//! What a compilation needs and a tree lacks, made in a folder of ours: the tree itself is only read.
//!
//! A kernel's build makes these by running programs of the source tree; here nothing of it runs. Each is made
//! from the configuration, the Makefile's version, the tables of system calls, or (`bounds.h`) the compiler's
//! own output. What is there already is used as it is.
//!
//! | made | when | from |
//! |---|---|---|
//! | `autoconf.h` | the tree was never configured | `.config` or `--config` |
//! | `utsrelease.h`, `version.h` | never built | the guest's release, the Makefile |
//! | `bounds.h` (2.6.25 on) | never built | `kernel/bounds.c`, compiled and not run |
//! | `asm` | 2.6.27 and earlier | a link to `include/asm-x86_64`, `asm-i386` or `asm-x86` |
//! | `asm/*.h` that are only generic (3.1 on) | never built | `include/asm-generic` |
//! | `asm/unistd_*.h` (3.3 on) | never built | the tables of system calls |
//! | `asm-offsets.h`, `timeconst.h` | never built | nothing: no structure depends on them |

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::headers::{AUTOCONF, HeaderTree, HeadersError};

/// Orders of `scripts/Kbuild.include` that matter: where the tree keeps its tables of system calls (3.3 to
/// 4.1, 4.2 on).
const TABLES: [&str; 2] = ["arch/x86/entry/syscalls", "arch/x86/syscalls"];
/// A generated header of numbers of system calls: file, table, tables' columns that count, prefix of each
/// name.
const UNISTD: [(&str, &str, &[&str], &str); 5] = [
    ("unistd_64.h", "syscall_64.tbl", &["common", "64"], "__NR_"),
    ("unistd_x32.h", "syscall_64.tbl", &["common", "x32"], "__NR_"),
    ("unistd_64_x32.h", "syscall_64.tbl", &["x32"], "__NR_x32_"),
    ("unistd_32.h", "syscall_32.tbl", &["i386"], "__NR_"),
    ("unistd_32_ia32.h", "syscall_32.tbl", &["i386"], "__NR_ia32_"),
];

/// A tree and what was made for it.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Folder of what was made, searched last.
    made: PathBuf,
    /// Folders of the tree in the order in which the kernel's own build searches them (`LINUXINCLUDE`, top
    /// Makefile).
    folders: Vec<PathBuf>,
    /// Whether `bounds.h` has to be made yet, and of what.
    pub(super) bounds: Option<PathBuf>,
    /// Files included before any other.
    pub(super) forced: Vec<PathBuf>,
    /// Newest major version of gcc that the tree has a header for, where it has one for each.
    pub(super) gcc: Option<u32>,
}

impl Prepared {
    /// The folders to search.
    pub(super) fn include_folders(&self) -> impl Iterator<Item = &Path> {
        self.folders.iter().chain([&self.made]).map(PathBuf::as_path)
    }

    /// Adds the `bounds.h` that `assembly`, the compiler's output for `kernel/bounds.c`, describes
    /// (`include/linux/kbuild.h`: lines `->NAME $VALUE`).
    pub(super) fn add_bounds(&mut self, assembly: &str) -> io::Result<()> {
        let mut text = String::new();
        for line in assembly.lines() {
            let Some((_, rest)) = line.split_once("->") else {
                continue;
            };
            let mut words = rest.split_whitespace();
            if let (Some(name), Some(value)) = (words.next(), words.next()) {
                let value = value.trim_start_matches('$').trim_end_matches('"');
                if value.parse::<i64>().is_ok() {
                    // Writing to a String cannot fail.
                    let _ = writeln!(text, "#define {name} {value}");
                }
            }
        }
        self.bounds = None;
        put(&self.made, "generated/bounds.h", &text)?;
        put(&self.made, "linux/bounds.h", &text)
    }
}

/// Why a tree cannot be completed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrepareError {
    /// Something is missing that cannot be made.
    #[error(transparent)]
    Headers(#[from] HeadersError),
    /// A file could not be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Makes in `folder` what `tree` lacks. `release` is what the guest calls its kernel, where a guest is known.
pub(super) fn prepare(
    tree: &HeaderTree,
    release: Option<&str>,
    folder: &Path,
) -> Result<Prepared, PrepareError> {
    let made = folder.join("made");
    for below in ["linux", "generated", "asm"] {
        fs::create_dir_all(made.join(below))?;
    }
    configuration(tree, &made)?;
    version(tree, release, &made)?;
    let architecture = architecture_headers(tree, &made)?;
    let forced = ["include/linux/kconfig.h", "include/linux/compiler_types.h"]
        .iter()
        .map(|file| tree.sources.join(file))
        .filter(|file| file.is_file());
    let mut forced: Vec<PathBuf> = forced.collect();
    if forced.is_empty() {
        // Before 3.1 the configuration itself came first.
        forced.push(
            tree.find(&AUTOCONF)
                .unwrap_or_else(|| made.join(AUTOCONF[0].trim_start_matches("include/"))),
        );
    }
    let mut folders = Vec::new();
    let mut add = |half: &Path, below: &str| {
        let folder = half.join(below);
        if folder.is_dir() && !folders.contains(&folder) {
            folders.push(folder);
        }
    };
    let (sources, generated) = (tree.sources.as_path(), tree.generated.as_path());
    add(sources, "arch/x86/include");
    add(generated, "arch/x86/include/generated");
    add(sources, "include");
    add(generated, "include");
    add(sources, "arch/x86/include/uapi");
    add(generated, "arch/x86/include/generated/uapi");
    add(sources, "include/uapi");
    add(generated, "include/generated/uapi");
    // Sub-architectures, until 2.6.37.
    for below in [
        "arch/x86/include/asm/mach-default",
        "include/asm-x86/mach-default",
    ] {
        add(sources, below);
    }
    if !tree.wide && !architecture {
        add(sources, "include/asm-i386/mach-default");
    }
    Ok(Prepared {
        bounds: bounds(tree)?,
        gcc: newest_gcc(&tree.sources),
        made,
        folders,
        forced,
    })
}

fn put(made: &Path, file: &str, text: &str) -> io::Result<()> {
    fs::write(made.join(file), text)
}

/// `autoconf.h`, as `scripts/kconfig/confdata.c` writes it.
fn configuration(tree: &HeaderTree, made: &Path) -> io::Result<()> {
    let Some(config) = &tree.config else {
        return Ok(());
    };
    let text = config.autoconf();
    put(made, "generated/autoconf.h", &text)?;
    put(made, "linux/autoconf.h", &text)
}

/// `utsrelease.h` and `version.h`, each where either is missing; where only the old place has it, the new one
/// leads there.
fn version(tree: &HeaderTree, release: Option<&str>, made: &Path) -> Result<(), PrepareError> {
    let makefile = fs::read_to_string(tree.sources.join("Makefile")).unwrap_or_default();
    let assigned = |name: &str| {
        makefile.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim_end() == name).then(|| value.trim().to_owned())
        })
    };
    let number = |name: &str| assigned(name).and_then(|value| value.parse::<u64>().ok());
    if tree.release().is_none() {
        let built = tree.generated.join("include/config/kernel.release");
        // A guest's word goes into a C string: nothing that could end it.
        let plain = |text: &&str| {
            text.bytes()
                .all(|byte| byte.is_ascii_graphic() && !b"\"\\".contains(&byte))
        };
        let stated = release
            .filter(plain)
            .map(str::to_owned)
            .or_else(|| Some(fs::read_to_string(built).ok()?.trim().to_owned()))
            .or_else(|| {
                let extra = assigned("EXTRAVERSION").unwrap_or_default();
                Some(format!(
                    "{}.{}.{}{extra}",
                    number("VERSION")?,
                    number("PATCHLEVEL")?,
                    number("SUBLEVEL")?
                ))
            })
            .ok_or_else(|| missing(tree, "Makefile"))?;
        put(
            made,
            "generated/utsrelease.h",
            &format!("#define UTS_RELEASE \"{stated}\"\n"),
        )?;
    } else if tree.find(&["include/generated/utsrelease.h"]).is_none() {
        put(made, "generated/utsrelease.h", "#include <linux/utsrelease.h>\n")?;
    }
    let there = [
        "include/linux/version.h",
        "include/generated/uapi/linux/version.h",
    ];
    if tree.find(&there).is_none() {
        let (Some(major), Some(minor), Some(patch)) =
            (number("VERSION"), number("PATCHLEVEL"), number("SUBLEVEL"))
        else {
            return Err(missing(tree, "Makefile").into());
        };
        // The macro's own rule since 5.12: what does not fit a byte is 255.
        let code = (major << 16) + (minor << 8) + patch.min(255);
        let text = format!(
            "#define LINUX_VERSION_CODE {code}\n#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))\n"
        );
        put(made, "linux/version.h", &text)?;
    }
    Ok(())
}

fn missing(tree: &HeaderTree, file: &str) -> HeadersError {
    HeadersError::Missing {
        tree: tree.sources.clone(),
        file: file.into(),
    }
}

/// The architecture's headers. Returns whether they are where they have been since 2.6.28.
fn architecture_headers(tree: &HeaderTree, made: &Path) -> Result<bool, PrepareError> {
    let asm = made.join("asm");
    let here = tree.sources.join("arch/x86/include");
    if !here.join("asm").is_dir() {
        let own = if tree.wide {
            "include/asm-x86_64"
        } else {
            "include/asm-i386"
        };
        let old = ["include/asm-x86", own]
            .iter()
            .map(|folder| tree.sources.join(folder))
            .find(|folder| folder.is_dir())
            .ok_or_else(|| missing(tree, "arch/x86/include/asm"))?;
        fs::remove_dir(&asm)?;
        symlink(old, &asm)?;
        return Ok(false);
    }
    // A tree that was built has its own of all the following.
    if tree.generated.join("arch/x86/include/generated").is_dir() {
        return Ok(true);
    }
    for generic in ["include/asm-generic", "include/uapi/asm-generic"] {
        let Ok(entries) = fs::read_dir(tree.sources.join(generic)) else {
            continue;
        };
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let own = ["asm", "uapi/asm"]
                .iter()
                .any(|below| here.join(below).join(&name).is_file());
            let header = Path::new(&name)
                .extension()
                .is_some_and(|extension| extension == "h");
            if header && !own {
                put(&asm, &name, &format!("#include <asm-generic/{name}>\n"))?;
            }
        }
    }
    for (file, table, columns, prefix) in UNISTD {
        let Some(table) = tree.find(
            &TABLES
                .map(|folder| format!("{folder}/{table}"))
                .each_ref()
                .map(String::as_str),
        ) else {
            continue;
        };
        put(&asm, file, &numbers(&fs::read_to_string(table)?, columns, prefix))?;
    }
    if tree
        .find(&[
            "include/generated/asm-offsets.h",
            "arch/x86/include/asm/asm-offsets.h",
        ])
        .is_none()
    {
        put(made, "generated/asm-offsets.h", "")?;
        put(&asm, "asm-offsets.h", "")?;
    }
    if tree.find(&["include/generated/timeconst.h"]).is_none() {
        put(made, "generated/timeconst.h", "")?;
    }
    Ok(true)
}

/// Definitions of the system calls of a table: lines `NUMBER COLUMN NAME ...`.
fn numbers(table: &str, columns: &[&str], prefix: &str) -> String {
    let mut text = String::new();
    for line in table.lines() {
        let mut words = line.split_whitespace();
        let (Some(number), Some(column), Some(name)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        if number.parse::<u32>().is_ok() && columns.contains(&column) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "#define {prefix}{name} {number}");
        }
    }
    text
}

/// What `bounds.h` has to be made of: nothing where it is there, or where the kernel has no use for it
/// (before 2.6.25).
fn bounds(tree: &HeaderTree) -> Result<Option<PathBuf>, HeadersError> {
    let users = ["page-flags.h", "mmzone.h", "page-flags-layout.h"];
    let wanted = users.iter().any(|file| {
        let file = tree.sources.join("include/linux").join(file);
        fs::read_to_string(file).is_ok_and(|text| text.contains("bounds.h>"))
    });
    if !wanted
        || tree
            .find(&["include/generated/bounds.h", "include/linux/bounds.h"])
            .is_some()
    {
        return Ok(None);
    }
    let source = tree.sources.join("kernel/bounds.c");
    if source.is_file() {
        Ok(Some(source))
    } else {
        Err(HeadersError::Missing {
            tree: tree.generated.clone(),
            file: "include/generated/bounds.h".into(),
        })
    }
}

/// Until 4.1 there is a header for each major version of gcc, and an error for those not known yet.
fn newest_gcc(sources: &Path) -> Option<u32> {
    (3..10).rev().find(|major| {
        sources
            .join(format!("include/linux/compiler-gcc{major}.h"))
            .is_file()
    })
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn a_table_of_system_calls_becomes_definitions() {
        let table = "# comment\n0\tcommon\tread\t\tsys_read\n13 64 rt_sigaction sys_rt_sigaction\n512 x32 rt_sigaction compat\n";
        assert_eq!(
            numbers(table, &["common", "64"], "__NR_"),
            "#define __NR_read 0\n#define __NR_rt_sigaction 13\n"
        );
        assert_eq!(
            numbers(table, &["x32"], "__NR_x32_"),
            "#define __NR_x32_rt_sigaction 512\n"
        );
    }
}
