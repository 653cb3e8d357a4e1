//! The Rust module: `xen-module/` made into one object that Xen's link takes in, and that object's
//! inspection.

mod inspect;
mod stack;

use std::fs;
use std::path::{Path, PathBuf};

use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::key::KeyBuilder;
use crate::process::run_logged;
use crate::progress::Progress;
use crate::sysroot::Sysroot;

/// A target without an operating system, floating point or SSE; its `core` is built from source, with the
/// flags below.
const TARGET: &str = "x86_64-unknown-none";

/// Code that fits Xen (`xen/arch/x86/Rules.mk`, `arch.mk`): no global offset table, no jump table (each would
/// be an indirect branch to harden), `endbr64` where control-flow enforcement wants it, returns through Xen's
/// own thunk.
const FLAGS: &str = "-Zplt=yes -Zdefault-visibility=hidden -Zdirect-access-external-data=yes -Crelocation-model=pic \
    -Zno-jump-tables -Zcf-protection=branch -Zfunction-return=thunk-extern";

/// Which module is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The product.
    Release,
    /// With the test-only feature `mutants`: a share request can leave a step out.
    Mutants,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Mutants => "mutants",
        }
    }

    const fn features(self) -> &'static str {
        match self {
            Self::Release => "",
            Self::Mutants => "mutants",
        }
    }
}

/// Builds and inspects the object; returns where it is.
pub(crate) fn build(context: &Context, sysroot: &Sysroot, kind: Kind) -> Result<PathBuf> {
    let repository = &context.repository;
    let name = format!("module/{}", kind.name());
    let directory = context.cached("module").join(kind.name());
    let object = directory.join("lacuna.o");
    let mut key = KeyBuilder::new(&name, 2)
        .key(&sysroot.key)
        .text(FLAGS)
        .text(kind.features());
    for tree in ["core/src", "xen-module/src", "linker"] {
        key = key.tree(&repository.join(tree), |_| true)?;
    }
    for file in [
        "Cargo.toml",
        "core/Cargo.toml",
        "xen-module/Cargo.toml",
        "xen-module/Cargo.lock",
    ] {
        key = key.file(&repository.join(file))?;
    }
    context.step(&name, &key.finish(), |progress| {
        fs::create_dir_all(&directory).on("create", &directory)?;
        let work = Work {
            repository,
            sysroot,
            kind,
            directory: &directory,
            exported: exported_symbols(repository)?,
            log: context.step_log(&name),
            progress,
        };
        work.compile()?;
        work.link()?;
        inspect_object(&object, &work.exported)
    })?;
    Ok(object)
}

/// Writes `object` with a weak stand-in for each function of the shim that it calls into `directory`, and
/// returns where it is.
///
/// For a hypervisor that has not got all of the shim yet: its own functions take the stand-ins' places, and
/// what the hypervisor's C code does not find stays an error of its link.
pub(crate) fn with_stand_ins(
    sysroot: &Sysroot,
    object: &Path,
    directory: &Path,
    log: &Path,
    progress: &Progress,
) -> Result<PathBuf> {
    let bytes = fs::read(object).on("read", object)?;
    let names = inspect::wanted(&bytes).map_err(|reason| Error::Unexpected {
        what: format!("the object {}", object.display()),
        expected: "a relocatable x86-64 ELF file".to_owned(),
        seen: reason,
    })?;
    let functions = names
        .iter()
        .map(|name| format!(".weak {name}\n.type {name}, @function\n{name}:\n    ud2\n"));
    let source = format!(
        ".text\n{}.section .note.GNU-stack, \"\", @progbits\n",
        functions.collect::<String>()
    );
    fs::create_dir_all(directory).on("create", directory)?;
    let path = directory.join("stand-ins.S");
    fs::write(&path, source).on("write", &path)?;
    let given = object.display().to_string();
    for line in [
        vec!["gcc", "-c", "stand-ins.S", "-o", "stand-ins.o"],
        vec!["ld", "-r", &given, "stand-ins.o", "-o", "lacuna.o"],
    ] {
        run_logged(sysroot.command(directory, &line), log, progress)?;
    }
    Ok(directory.join("lacuna.o"))
}

/// Refuses an object that Xen must not link.
pub(crate) fn inspect_object(object: &Path, exported: &[String]) -> Result<()> {
    let bytes = fs::read(object).on("read", object)?;
    let offences = inspect::offences(&bytes, exported).map_err(|reason| Error::Unexpected {
        what: format!("the object {}", object.display()),
        expected: "a relocatable x86-64 ELF file".to_owned(),
        seen: reason,
    })?;
    if offences.is_empty() {
        return Ok(());
    }
    // Taken away, so that no later step links it.
    fs::remove_file(object).on("remove", object)?;
    Err(Error::Unexpected {
        what: format!("the object {}", object.display()),
        expected: "nothing that may not run in the hypervisor".to_owned(),
        seen: offences.join("\n"),
    })
}

/// One build of the object.
struct Work<'a> {
    repository: &'a Path,
    sysroot: &'a Sysroot,
    kind: Kind,
    directory: &'a Path,
    exported: Vec<String>,
    log: PathBuf,
    progress: &'a Progress,
}

impl Work<'_> {
    /// The static library.
    fn compile(&self) -> Result<()> {
        let flags = format!("RUSTFLAGS={FLAGS}");
        let target_directory = self.directory.join("target");
        let target_directory = target_directory.to_string_lossy();
        // RUSTC_BOOTSTRAP: `build-std` and the -Z flags are unstable, and Debian's compiler is a stable one.
        let cargo = [
            "env",
            "RUSTC_BOOTSTRAP=1",
            &flags,
            "cargo",
            "build",
            "--locked",
            "--release",
            "-Z",
            "build-std=core",
            "--target",
            TARGET,
            "--target-dir",
            &target_directory,
            "--features",
            self.kind.features(),
        ];
        self.run(&self.repository.join("xen-module"), &cargo)
    }

    /// One object of it, with the exported symbols and what they reach.
    fn link(&self) -> Result<()> {
        let linker = self.repository.join("linker");
        let script = linker.join("module.ld");
        let script = script.to_string_lossy();
        let archive = format!("target/{TARGET}/release/liblacuna_xen.a");
        // With -r, --gc-sections keeps what these roots reach.
        let roots: Vec<String> = self
            .exported
            .iter()
            .map(|symbol| format!("--undefined={symbol}"))
            .collect();
        let mut ld = vec!["ld", "-r", "-T", &script, "--gc-sections"];
        ld.extend(roots.iter().map(String::as_str));
        ld.extend(["-o", "whole.o", &archive]);
        self.run(self.directory, &ld)?;
        let keep = format!(
            "--keep-global-symbols={}",
            linker.join("exported-symbols").display()
        );
        let objcopy = ["objcopy", "--strip-debug", &keep, "whole.o", "lacuna.o"];
        self.run(self.directory, &objcopy)
    }

    fn run(&self, directory: &Path, line: &[&str]) -> Result<()> {
        run_logged(self.sysroot.command(directory, line), &self.log, self.progress)
    }
}

fn exported_symbols(repository: &Path) -> Result<Vec<String>> {
    let path = repository.join("linker/exported-symbols");
    let text = fs::read_to_string(&path).on("read", &path)?;
    Ok(text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(Into::into)
        .collect())
}
