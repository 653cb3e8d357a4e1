//! `cargo lab test`: picks the tests, runs them, and prints what came of them.

use std::process::Command;
use std::time::Instant;

use lacuna_scenarios::catalogue::{SCENARIOS, Scenario};

use crate::bench;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::live::{self, Outcome};
use crate::matrix;
use crate::process::start;
use crate::selection::Selection;
use crate::setup::Stage;
use crate::windows;

/// A test that needs no emulation.
#[derive(Clone, Copy)]
enum HostTest {
    /// A program with its arguments, in the checkout.
    Program(&'static [&'static str]),
    /// The core's instruction counts, against their stored bounds.
    Bench,
    /// Instructions and memory that a kernel's PDB takes, likewise.
    LargePdb,
    /// PDBs and executables of clang and lld-link, which are installed when missing.
    Windows,
}

/// The tests that need no emulation, by name.
const HOST: &[(&str, HostTest)] = &[
    (
        "host/format",
        HostTest::Program(&["cargo", "fmt", "--all", "--check"]),
    ),
    (
        "host/lint",
        HostTest::Program(&[
            "cargo",
            "clippy",
            "--locked",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ]),
    ),
    (
        "host/test",
        HostTest::Program(&["cargo", "test", "--locked", "--workspace"]),
    ),
    ("host/bench", HostTest::Bench),
    ("host/windows-large-pdb", HostTest::LargePdb),
    ("host/windows", HostTest::Windows),
    (
        LINUX_ALONE,
        HostTest::Program(&[
            "cargo",
            "test",
            "--locked",
            "--package",
            "lacuna",
            "--lib",
            "--test",
            "linux_guest",
            "--test",
            "damaged_dump",
            "--test",
            "stub_eras",
            "--test",
            "stub_sources",
        ]),
    ),
];

/// A part of `host/test`, for those who ask for Linux guests alone.
const LINUX_ALONE: &str = "linux/host";

/// Runs what `filters` select; `full` adds the long ones. Fails when any test does.
pub(crate) fn run(context: &Context, filters: &[String], full: bool) -> Result<()> {
    let selection = Selection::new(filters, full);
    let known: Vec<String> = HOST
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .chain(SCENARIOS.iter().map(|scenario| scenario.name.to_owned()))
        .chain(matrix::quick_names())
        .collect();
    if let Some(filter) = selection.idle(&known) {
        return Err(Error::NoScenario {
            filter: filter.to_owned(),
            known: known.join(", "),
        });
    }
    let hosts: Vec<_> = HOST
        .iter()
        .filter(|(name, _)| selection.host(name, *name == LINUX_ALONE))
        .collect();
    let scenarios: Vec<Scenario> = SCENARIOS
        .iter()
        .copied()
        .filter(|scenario| selection.scenario(scenario))
        .collect();
    let kernels: Vec<String> = matrix::quick_names()
        .filter(|name| selection.kernel(name))
        .collect();
    if hosts.is_empty() && scenarios.is_empty() && kernels.is_empty() {
        return Err(Error::OnlyLong {
            filters: filters.join(" "),
        });
    }
    let mut outcomes = Vec::new();
    for (name, test) in hosts {
        outcomes.push(host(context, name, *test)?);
    }
    if !kernels.is_empty() {
        outcomes.extend(matrix::run_quick(context, &kernels).unwrap_or_else(|error| {
            // Without the kernels the rest can run all the same.
            let failed = |name: &String| Outcome {
                name: name.clone(),
                failure: Some(format!("  {error}")),
                seconds: 0,
                figures: Vec::new(),
            };
            kernels.iter().map(failed).collect()
        }));
    }
    if !scenarios.is_empty() {
        let stage = Stage::build(context)?;
        outcomes.extend(live::run(
            &stage,
            &scenarios,
            &context.repository.join("target/lab-logs"),
        ));
    }
    print(&outcomes)
}

/// Runs one of the host's own tests on the terminal: its output is its report.
fn host(context: &Context, name: &str, test: HostTest) -> Result<Outcome> {
    let started = Instant::now();
    let seen = match test {
        HostTest::Program(line) => {
            println!("lab: {name}: {}", line.join(" "));
            let mut command = Command::new(line[0]);
            command.args(&line[1..]).current_dir(&context.repository);
            let status = start(&mut command)?.wait().on("wait for", line[0])?;
            (!status.success()).then(|| status.to_string())
        }
        HostTest::Windows => {
            println!("lab: {name}: cargo test --test windows, with clang and lld-link");
            windows::run(context).err().map(|error| error.to_string())
        }
        HostTest::LargePdb => {
            println!("lab: {name}: lacuna inspect, under valgrind");
            bench::large_pdb(context).err().map(|error| error.to_string())
        }
        HostTest::Bench => {
            println!("lab: {name}: cargo bench, under valgrind");
            bench::core(context).err().map(|error| error.to_string())
        }
    };
    let failure = seen.map(|seen| format!("  expected: success\n  saw:      {seen}, and the output above"));
    Ok(Outcome {
        name: name.to_owned(),
        failure,
        seconds: started.elapsed().as_secs(),
        figures: Vec::new(),
    })
}

/// Prints a line for each test, the failures in full, and the count on a line of its own.
fn print(outcomes: &[Outcome]) -> Result<()> {
    println!();
    for outcome in outcomes {
        let word = if outcome.failure.is_none() { "pass" } else { "FAIL" };
        println!("{word} {:5} s  {}", outcome.seconds, outcome.name);
        for (name, value) in &outcome.figures {
            println!("               {name} = {value}");
        }
    }
    for outcome in outcomes {
        if let Some(failure) = &outcome.failure {
            println!("\n{} failed\n{failure}", outcome.name);
        }
    }
    let total = outcomes.len();
    let failed = outcomes
        .iter()
        .filter(|outcome| outcome.failure.is_some())
        .count();
    println!("\ncargo lab:\n{} passed, {failed} failed", total - failed);
    if failed == 0 {
        Ok(())
    } else {
        Err(Error::Failed { failed, total })
    }
}
