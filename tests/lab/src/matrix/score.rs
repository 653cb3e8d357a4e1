//! Scoring `lacuna scan` on the dumps of one machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use lacuna_guest::truth::Capture;
use serde_json::Value;

use super::case::{Case, Expected};
use super::machine::Dumps;
use crate::error::{IoContext, Result};

/// Raw memory without registers: nothing ties its kernel to a processor, and the exit status is 9.
const UNTIED: &str = "raw without registers";

/// What came of one scan.
#[derive(Clone, Debug)]
pub(crate) struct Score {
    /// Dump and source, for example `raw vmcoreinfo`.
    pub(crate) what: String,
    /// Whether it is what was expected.
    pub(crate) good: bool,
    /// In words.
    pub(crate) told: String,
    /// What the tool said, as JSON.
    pub(crate) answer: Value,
}

/// Scans the dumps with each source alone and all together. 32-bit kernels of Debian have no BTF.
pub(crate) fn score(lacuna: &Path, case: &Case, headers: &Path, dumps: &Dumps) -> Result<Vec<Score>> {
    let headers = headers.to_string_lossy().into_owned();
    let registers = dumps.registers.to_string_lossy().into_owned();
    let with_registers: &[&str] = &["--registers", &registers];
    let with_headers: &[&str] = &["--headers", &headers];
    let mut runs: Vec<(&str, &Path, &str, Vec<&[&str]>)> = vec![("elf", &dumps.elf, "auto", vec![])];
    let (name, dump) = match &dumps.raw {
        Some(raw) => {
            runs.push((UNTIED, raw, "auto", vec![]));
            ("raw", raw.as_path())
        }
        None => ("elf", dumps.elf.as_path()),
    };
    runs.push((name, dump, "vmcoreinfo", vec![with_registers]));
    if case.flavour.architecture == "amd64" {
        runs.push((name, dump, "btf", vec![with_registers]));
    }
    runs.push((name, dump, "stub", vec![with_registers, with_headers]));
    runs.push((name, dump, "auto", vec![with_registers, with_headers]));
    let bits = dumps.elf.with_file_name("free.bits");
    let mut scores = Vec::new();
    for (name, dump, source, more) in runs {
        crate::context::remove(&bits)?;
        let mut command = Command::new(lacuna);
        command
            .args(["scan", "--json", "--source", source, "--dump"])
            .arg(dump);
        command.arg("--bitmap").arg(&bits).args(more.concat());
        let output = command.output().on("run", lacuna)?;
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        let status = output.status.code().unwrap_or(-1);
        let (good, told) = match case.expected {
            Expected::Refused(reason) => {
                let said = answer["error"].as_str().unwrap_or_default();
                (
                    status == 3 && said.contains(reason),
                    format!("exit status {status}: {said}"),
                )
            }
            Expected::Exact if status == if name == UNTIED { 9 } else { 0 } => {
                let found = fs::read(&bits).on("read", &bits)?;
                let (wrong, missed) = compare(&found, &dumps.truth);
                (
                    wrong == 0 && missed == 0,
                    format!(
                        "{wrong} wrongly called free, {missed} missed of {}",
                        dumps.truth.free
                    ),
                )
            }
            Expected::Exact => {
                let said = answer["error"].as_str().unwrap_or("no JSON").to_owned();
                (false, format!("exit status {status}: {said}"))
            }
        };
        scores.push(Score {
            what: if more.contains(&with_headers) {
                format!("{name}, {source}, headers")
            } else {
                format!("{name}, {source}")
            },
            good,
            told,
            answer,
        });
    }
    Ok(scores)
}

/// Pages called free that are not, and free pages not called so.
fn compare(bits: &[u8], truth: &Capture) -> (u64, u64) {
    let (mut wrong, mut missed) = (0, 0);
    let frames = truth.pages.max(bits.len() as u64 * 8);
    for gfn in 0..frames {
        let byte = usize::try_from(gfn / 8)
            .ok()
            .and_then(|at| bits.get(at))
            .copied()
            .unwrap_or(0);
        match (byte >> (gfn % 8) & 1 == 1, truth.is_free(gfn)) {
            (true, false) => wrong += 1,
            (false, true) => missed += 1,
            _ => {}
        }
    }
    (wrong, missed)
}
