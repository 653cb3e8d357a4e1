//! `cargo lab test`: picks the tests, runs them, and prints what came of them.

use std::process::Command;
use std::time::Instant;

use lacuna_scenarios::catalogue::{CORE, HVM, SCENARIOS, Scenario, XEN_TESTS, find};

use crate::bench;
use crate::context::Context;
use crate::device_model;
use crate::error::{Error, IoContext, Result};
use crate::gates::{self, GATES, Gate};
use crate::live::{self, Outcome};
use crate::matrix;
use crate::process::start;
use crate::report_page;
use crate::selection::Selection;
use crate::setup::{Stage, Wish};
use crate::sysroot::Sysroot;
use crate::windows;
use crate::xen;
use crate::xen::series::{SUPPORTED, Series};
use crate::xen::source::choose;

/// A test that needs no emulation.
#[derive(Clone, Copy)]
pub(crate) enum HostTest {
    /// A program with its arguments, in the checkout.
    Program(&'static [&'static str]),
    /// The core's instruction counts, against their stored bounds.
    Bench,
    /// Instructions and memory that a kernel's PDB takes, likewise.
    LargePdb,
    /// PDBs and executables of clang and lld-link, which are installed when missing.
    Windows,
    /// The page of `lacuna report` in a browser, which is installed when missing.
    ReportPage,
    /// Every patch applies without fuzz, on each series of Xen that can be had.
    Patches,
    /// The hypervisor builds after each patch, on the same.
    Prefixes,
    /// A check of the source.
    Gate(Gate),
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
        HostTest::Program(&["cargo", "test", "--locked", "--workspace", "--no-fail-fast"]),
    ),
    ("host/bench", HostTest::Bench),
    ("host/windows-large-pdb", HostTest::LargePdb),
    ("host/windows", HostTest::Windows),
    (REPORT_PAGE, HostTest::ReportPage),
    ("host/patches", HostTest::Patches),
    (PREFIXES, HostTest::Prefixes),
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

/// An hour of compiling.
const PREFIXES: &str = "host/prefixes";
/// A browser to download.
const REPORT_PAGE: &str = "host/report-page";
/// Those are a part of long runs.
const LONG: [&str; 2] = [PREFIXES, REPORT_PAGE];

/// A part of `host/test`, for those who ask for Linux guests alone.
const LINUX_ALONE: &str = "linux/host";

/// Runs what `filters` select; `full` adds the long ones. Fails when any test does.
pub(crate) fn run(context: &Context, filters: &[String], full: bool) -> Result<()> {
    let selection = Selection::new(filters, full);
    let known: Vec<String> = GATES
        .iter()
        .chain(HOST)
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
    let hosts: Vec<_> = GATES
        .iter()
        .chain(HOST)
        .filter(|(name, _)| selection.host(name, *name == LINUX_ALONE))
        .filter(|(name, _)| full || !LONG.contains(name) || filters.iter().any(|filter| filter == name))
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
        outcomes.push(host(context, name, *test, &known)?);
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
    let mut skipped = Vec::new();
    if !scenarios.is_empty() {
        let passes = passes(context, filters.is_empty(), &scenarios, &mut skipped)?;
        let several = passes.len() > 1;
        for (series, mut scenarios) in passes {
            scenarios.retain(|scenario| {
                let lack = lacks(series, scenario);
                if let Some(reason) = lack {
                    let name = format!("{} on Xen {}", scenario.name, series.name());
                    skipped.push((name, reason.to_owned()));
                }
                lack.is_none()
            });
            let stage = Stage::build(context, Wish::tests(Some(series)))?;
            let mut logs = context.repository.join("target/lab-logs");
            if several {
                logs.push(series.name());
            }
            let mut of_series = live::run(&stage, &scenarios, &logs);
            for outcome in &mut of_series {
                outcome.name = format!("{} on Xen {}", outcome.name, series.name());
            }
            outcomes.extend(of_series);
        }
    }
    print(&outcomes, &skipped)
}

/// Why `scenario` cannot run on `series`, if it cannot.
fn lacks(series: Series, scenario: &Scenario) -> Option<&'static str> {
    if scenario.name == HVM && series != device_model::SERIES {
        return Some("Debian 13 has a device model for Xen 4.20 alone");
    }
    let newer = scenario.name == XEN_TESTS && series != Series::V4_20;
    newer.then_some("built in a Debian 13 tree, whose glibc Debian 12 does not have")
}

/// A test that does not run, and why.
type Skipped = (String, String);

/// Scenarios that run on one series of Xen.
type Pass = (Series, Vec<Scenario>);

/// Says what runs on which series of Xen: all on the one that the user asks for, or else on the newest that
/// can be had; and, in a plain run, the core of it on each other one. What cannot run for want of a source
/// goes into `skipped`.
fn passes(
    context: &Context,
    plain: bool,
    scenarios: &[Scenario],
    skipped: &mut Vec<Skipped>,
) -> Result<Vec<Pass>> {
    let sysroot = Sysroot::build(context)?;
    if !plain || context.options.series.is_some() {
        let chosen = choose(context, &sysroot, context.options.series)?;
        return Ok(vec![(chosen.series, scenarios.to_vec())]);
    }
    let mut passes: Vec<Pass> = Vec::new();
    let mut missing = Vec::new();
    for series in SUPPORTED {
        match choose(context, &sysroot, Some(series)) {
            Ok(_) if passes.is_empty() => passes.push((series, scenarios.to_vec())),
            Ok(_) => passes.push((series, CORE.iter().filter_map(|name| find(name)).collect())),
            Err(error @ Error::NothingServed { .. }) => missing.push((series, error)),
            Err(error) => return Err(error),
        }
    }
    if passes.is_empty() {
        // Asked for any series, the error names all that was tried.
        choose(context, &sysroot, None)?;
    }
    for (series, error) in missing {
        println!("lab: nothing runs on Xen {}: {error}", series.name());
        let reason = "no source of that Xen, as told above";
        let of_series = CORE
            .iter()
            .map(|name| (format!("{name} on Xen {}", series.name()), reason.to_owned()));
        skipped.extend(of_series);
    }
    Ok(passes)
}

/// Runs one of the host's own tests on the terminal: its output is its report. `known` are the names of all
/// tests.
fn host(context: &Context, name: &str, test: HostTest, known: &[String]) -> Result<Outcome> {
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
        HostTest::ReportPage => {
            println!("lab: {name}: the page of `lacuna report` in Chromium");
            report_page::run(context).err().map(|error| error.to_string())
        }
        HostTest::Patches => {
            println!("lab: {name}: cargo lab patches check");
            xen::check::run(context, false)
                .err()
                .map(|error| error.to_string())
        }
        HostTest::Prefixes => {
            println!("lab: {name}: the hypervisor after each patch");
            prefixes(context).err().map(|error| error.to_string())
        }
        HostTest::Gate(gate) => {
            println!("lab: {name}: {}", gate.what());
            let seen = gates::run(context, gate, known).err();
            seen.inspect(|error| println!("{error}"))
                .map(|_| "what is said above".to_owned())
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

/// Builds every prefix of the patches, on the series asked for or else on each that can be had.
fn prefixes(context: &Context) -> Result<()> {
    let sysroot = Sysroot::build(context)?;
    let wanted = context
        .options
        .series
        .map_or_else(|| SUPPORTED.to_vec(), |one| vec![one]);
    let mut built = 0;
    for series in &wanted {
        match xen::prefixes::run(context, &sysroot, *series) {
            Ok(()) => built += 1,
            Err(error @ Error::NothingServed { .. }) if wanted.len() > 1 => {
                println!("lab: not built on Xen {}: {error}", series.name());
            }
            Err(error) => return Err(error),
        }
    }
    if built == 0 {
        choose(context, &sysroot, None)?;
    }
    Ok(())
}

/// Prints a line for each test, the failures in full, and the count on a line of its own.
fn print(outcomes: &[Outcome], skipped: &[Skipped]) -> Result<()> {
    println!();
    for outcome in outcomes {
        let word = if outcome.failure.is_none() { "pass" } else { "FAIL" };
        println!("{word} {:5} s  {}", outcome.seconds, outcome.name);
        for (name, value) in &outcome.figures {
            println!("               {name} = {}", crate::live::shown(value));
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
    for (name, reason) in skipped {
        println!("skip          {name}: {reason}");
    }
    print!("\ncargo lab:\n{} passed, {failed} failed", total - failed);
    if !skipped.is_empty() {
        print!(", {} skipped", skipped.len());
    }
    println!();
    if failed == 0 {
        Ok(())
    } else {
        Err(Error::Failed { failed, total })
    }
}
