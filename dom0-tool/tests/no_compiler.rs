//! A machine with a kernel's headers and no compiler for them.
#![allow(clippy::unwrap_used, missing_docs)]

// Not all of what other tests need is needed here.
#[allow(dead_code)]
mod fake_kernel;

use std::fs;
use std::process::Command;

use fake_kernel::FakeKernel;

/// What `lacuna scan` says of a dump, with headers and with nothing on the path.
fn scan(more: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("memory.raw");
    fs::write(&dump, FakeKernel::new().memory).unwrap();
    let headers = folder.path().join("headers");
    fs::create_dir_all(headers.join("include/linux")).unwrap();
    for file in ["mm.h", "page-flags.h", "mmzone.h"] {
        fs::write(headers.join("include/linux").join(file), "").unwrap();
    }
    let version = "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 0\nEXTRAVERSION = -fake\n";
    fs::write(headers.join("Makefile"), version).unwrap();
    fs::create_dir_all(headers.join("arch/x86/include/asm")).unwrap();
    fs::write(headers.join(".config"), "CONFIG_X86_64=y\nCONFIG_X86=y\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_lacuna"))
        .env("PATH", folder.path())
        .args(["scan", "--dump"])
        .arg(&dump)
        .arg("--headers")
        .arg(&headers)
        .args(more)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}

#[test]
fn headers_without_a_compiler_are_passed_over_unless_they_are_wanted() {
    let said = scan(&[]);
    assert!(said.contains("no gcc or clang here"), "{said}");
    assert!(!said.contains("is not installed"), "{said}");
    for wanted in [["--source", "stub"], ["--compiler", "gcc"]] {
        let said = scan(&wanted);
        assert!(said.contains("is not installed"), "{said}");
    }
}
