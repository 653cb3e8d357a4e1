//! What a command writes is whole, and never destroys what it reads.
#![allow(clippy::unwrap_used, missing_docs)]

// Not all of what other tests need is needed here.
#[allow(dead_code)]
mod fake_kernel;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use fake_kernel::{FRAMES, FakeKernel};
use serde_json::{Value, json};

/// A raw dump, its registers and its layout in a folder.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = Self { folder };
        fs::write(files.at("dump"), FakeKernel::new().memory).unwrap();
        FakeKernel::layout().save(&files.at("layout")).unwrap();
        let hex = |value: u64| format!("{value:#x}");
        let registers: Vec<Value> = FakeKernel::vcpus()
            .iter()
            .map(|cpu| {
                json!({
                    "cr0": hex(cpu.cr0), "cr3": hex(cpu.cr3), "cr4": hex(cpu.cr4), "efer": hex(cpu.efer),
                    "idt_base": hex(cpu.idt_base), "idt_limit": hex(cpu.idt_limit.into()), "lstar": hex(cpu.lstar),
                })
            })
            .collect();
        fs::write(files.at("registers"), serde_json::to_vec(&registers).unwrap()).unwrap();
        files
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a command on the dump that writes to `output`. Returns the exit status and what it says.
    fn run(&self, command: &[&str], option: &str, output: &str) -> (i32, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_lacuna"))
            .args(command)
            .arg("--dump")
            .arg(self.at("dump"))
            .arg("--registers")
            .arg(self.at("registers"))
            .arg("--layout")
            .arg(self.at("layout"))
            .arg(option)
            .arg(self.at(output))
            .output()
            .unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn an_output_that_is_an_input_by_any_name_is_refused() {
    let files = Files::new();
    fs::hard_link(files.at("dump"), files.at("hard")).unwrap();
    symlink(files.at("dump"), files.at("soft")).unwrap();
    let inputs = ["dump", "registers", "layout"];
    let before = inputs.map(|name| fs::read(files.at(name)).unwrap());
    for (command, option) in [(&["scan"][..], "--bitmap"), (&["profile", "build"], "--out")] {
        for output in ["dump", "hard", "soft", "registers", "layout"] {
            let (status, told) = files.run(command, option, output);
            assert_eq!(status, 3, "{command:?} {output}: {told}");
            assert!(told.contains("they are one file"), "{told}");
            let after = inputs.map(|name| fs::read(files.at(name)).unwrap());
            assert!(before == after, "{command:?} {output} changed what it read");
        }
    }
}

#[test]
fn a_bitmap_is_as_long_as_its_frames_and_replaces_an_older_one() {
    let files = Files::new();
    fs::write(files.at("bits"), vec![7; 100_000]).unwrap();
    let (status, told) = files.run(&["scan"], "--bitmap", "bits");
    assert_eq!(status, 0, "{told}");
    let bits = fs::read(files.at("bits")).unwrap();
    assert_eq!(bits.len() as u64, FRAMES.div_ceil(8));
    assert_eq!(files.names(), ["bits", "dump", "layout", "registers"]);
}

#[test]
fn what_is_not_known_leaves_an_older_bitmap_as_it_was() {
    let files = Files::new();
    fs::write(files.at("bits"), b"old").unwrap();
    // A layout of nothing.
    fs::write(files.at("layout"), b"{}").unwrap();
    let (status, told) = files.run(&["scan"], "--bitmap", "bits");
    assert_eq!(status, 1, "{told}");
    assert_eq!(fs::read(files.at("bits")).unwrap(), b"old");
    assert_eq!(files.names(), ["bits", "dump", "layout", "registers"]);
}
