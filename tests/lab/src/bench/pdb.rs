//! What it takes to learn a kernel's layout from a PDB of a kernel's size: instructions and peak memory of
//! the product's own command, `lacuna inspect`, its start included. Both are counted by valgrind, so they are
//! the same on every machine with the same compiler.

use std::fs;
use std::path::Path;
use std::process::Command;

use lacuna_windows_fixtures::large::large;
use lacuna_windows_fixtures::layouts::layouts;
use serde_json::Value;

use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::programs;

/// The layout that the PDB carries.
const LAYOUT: &str = "win10_x64_19041";
/// Bytes of type records: a kernel's whole PDB has about as many.
const TYPE_BYTES: usize = 10_000_000;
/// Most instructions. Measured: 167.9 million with Rust 1.95; the bound leaves room for other compilers.
const INSTRUCTIONS: u64 = 200_000_000;
/// Most bytes of heap at a time. Measured: 19.1 million.
const PEAK_BYTES: u64 = 24_000_000;

/// Measures, prints, and fails above a bound.
pub(crate) fn run(context: &Context) -> Result<()> {
    let layout = layouts()
        .into_iter()
        .find(|layout| layout.profile == LAYOUT)
        .ok_or_else(|| unexpected("the layout of the PDB", LAYOUT, "none of that name"))?;
    let lacuna = programs::product(context)?;
    let folder = context.repository.join("target/lab-logs/windows-large-pdb");
    fs::create_dir_all(&folder).on("create", &folder)?;
    let file = folder.join("large.pdb");
    let bytes = large(&layout, TYPE_BYTES);
    fs::write(&file, &bytes).on("write", &file)?;

    let (answer, told) = under_valgrind(
        &["--tool=callgrind", "--callgrind-out-file=/dev/null"],
        &lacuna,
        &file,
    )?;
    let learnt = answer.get("mmpfn_size").and_then(Value::as_u64);
    if learnt != Some(u64::from(layout.size)) {
        let expected = format!("_MMPFN of {} bytes", layout.size);
        return Err(unexpected(
            "`lacuna inspect` of the PDB",
            &expected,
            &answer.to_string(),
        ));
    }
    let instructions = number_behind(&told, "Collected :")?;
    let (_, told) = under_valgrind(&["--tool=dhat", "--dhat-out-file=/dev/null"], &lacuna, &file)?;
    let peak = number_behind(&told, "At t-gmax:")?;
    println!(
        "pdb          {} bytes: {instructions} instructions (at most {INSTRUCTIONS}), {peak} bytes of heap at a time (at most {PEAK_BYTES})",
        bytes.len()
    );
    if instructions > INSTRUCTIONS || peak > PEAK_BYTES {
        return Err(unexpected(
            "reading a large PDB",
            &format!("at most {INSTRUCTIONS} instructions and {PEAK_BYTES} bytes"),
            &format!("{instructions} instructions and {peak} bytes"),
        ));
    }
    Ok(())
}

/// Runs `lacuna inspect` on `file` under a tool of valgrind's; returns its answer and what the tool told.
fn under_valgrind(tool: &[&str], lacuna: &Path, file: &Path) -> Result<(Value, String)> {
    let output = Command::new("valgrind")
        .args(tool)
        .arg(lacuna)
        .arg("inspect")
        .arg(file)
        .arg("--json")
        .output()
        .on("run", Path::new("valgrind"))?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let what = format!("`lacuna inspect` under valgrind {}", tool[0]);
    if !output.status.success() {
        return Err(unexpected(
            &what,
            "success",
            &format!("{}: {told}", output.status),
        ));
    }
    let answer = serde_json::from_slice(&output.stdout)
        .map_err(|error| unexpected(&what, "an answer in JSON", &error.to_string()))?;
    Ok((answer, told))
}

/// The first number behind `words` in what valgrind told; it groups digits with commas.
fn number_behind(told: &str, words: &str) -> Result<u64> {
    told.lines()
        .find_map(|line| line.split_once(words))
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .and_then(|digits| digits.replace(',', "").parse().ok())
        .ok_or_else(|| unexpected("what valgrind tells", &format!("a number behind {words:?}"), told))
}

fn unexpected(what: &str, expected: &str, seen: &str) -> Error {
    Error::Unexpected {
        what: what.to_owned(),
        expected: expected.to_owned(),
        seen: seen.to_owned(),
    }
}
