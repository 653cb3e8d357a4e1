//! A guest with GCC's C++ compiler and the assembler, as the sysroot has them, and a program to compile.

use std::fs;
use std::path::PathBuf;

use lacuna_guest::programs::{ASSEMBLER, COMPILER, OPTIONS, SOURCE, Workload};

use super::Workshop;
use crate::error::{IoContext, Result};
use crate::key::KeyBuilder;

/// Says where the sysroot's compiler proper and its assembler are.
const WHERE: &str = "readlink -f \"$(g++ -print-prog-name=cc1plus)\" \"$(command -v as)\"";
/// Preprocesses, compiles and assembles `source.cc` in the directory that it is given, with the compiler that
/// it is given and what follows for options. Line markers name files that the guest has not: left out.
const MAKE: &str = "cd \"$1\" && compiler=$2 && shift 2 && g++ -E -P source.cc -o source.ii && \
    \"$compiler\" \"$@\" source.ii -o source.s && as source.s -o expected.o";
/// The program that is compiled: orders of a shop, kept in the containers of the standard library, so that the
/// compiler has as much to read and to instantiate as with most programs.
const PROGRAM: &str = include_str!("../../programs/shop.cc");

/// Makes it, and returns where it is.
pub(super) fn guest(workshop: &Workshop) -> Result<PathBuf> {
    let mut key = KeyBuilder::new("guest/compile", 1).text(PROGRAM).text(MAKE);
    for option in OPTIONS {
        key = key.text(option);
    }
    workshop.guest("compile", key, |guest, made| {
        let inside = workshop.run(WHERE, &[])?;
        let mut inside = inside.lines();
        let compiler = inside.next().unwrap_or_default().to_owned();
        let assembler = inside.next().unwrap_or_default().to_owned();
        let source = made.join("source.cc");
        fs::write(&source, PROGRAM).on("write", &source)?;
        let at = made.to_string_lossy();
        let mut arguments = vec![&*at, &compiler];
        arguments.extend(OPTIONS);
        workshop.run(MAKE, &arguments)?;
        for (name, program) in [(COMPILER, &compiler), (ASSEMBLER, &assembler)] {
            let from = workshop.sysroot.root.join(program.trim_start_matches('/'));
            guest.file(name, &from)?;
            guest.libraries.extend(workshop.libraries(program)?);
        }
        guest.file(SOURCE, &made.join("source.ii"))?;
        guest.file(Workload::Compile.expected(), &made.join("expected.o"))
    })
}
