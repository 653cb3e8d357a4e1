//! The command line: each subcommand parses its arguments ([`cli`]), calls an operation, and shows its report
//! (`render`).

mod attach;
pub mod cli;
mod dedup;
mod doctor;
mod engine;
mod estimate;
mod fetch;
mod identify;
mod inspect;
mod profile;
mod progress;
mod render;
mod report;
mod scan;
mod symbols;
mod terminal;
mod top;
mod words;

use std::io::Write;
use std::path::Path;

use clap::CommandFactory;
use serde_json::{Value, json};

use crate::daemon::run::Arguments;
use crate::failure::{Class, Failure};
use cli::{Cli, Command, ProfileCommand, SymbolsCommand};

/// Exit status of a command that did everything.
const DONE: u8 = 0;
/// Exit status of a scan that agrees with the guest's counters, but of a kernel that nothing ties to a
/// processor.
const UNTIED: u8 = 9;

/// Prints a command's text while it runs, or nothing with `--json`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Out {
    json: bool,
}

impl Out {
    /// Returns whether JSON is wanted.
    pub(crate) const fn is_json(self) -> bool {
        self.json
    }

    /// Prints a line of JSON at once, if JSON is wanted. For commands that run until interrupted.
    pub(crate) fn json_line(self, value: &Value) {
        if self.json {
            let _ = writeln!(std::io::stdout().lock(), "{value}");
        }
    }

    /// Prints a line of text at once.
    pub(crate) fn line(self, text: impl AsRef<str>) {
        if !self.json {
            // The work goes on if standard output is closed.
            let _ = writeln!(std::io::stdout().lock(), "{}", text.as_ref());
        }
    }
}

/// Runs the command, prints what it has to say, and returns the exit status.
pub fn run(cli: &Cli) -> u8 {
    let out = Out { json: cli.json };
    let (answer, status) = match dispatch(&cli.command, out) {
        Ok(answered) => answered,
        Err(failure) => {
            if !cli.json {
                let _ = writeln!(std::io::stderr().lock(), "lacuna: {failure}");
            }
            (failure_json(&failure), failure.class.exit_status())
        }
    };
    print_json(&answer, cli.json);
    status
}

fn print_json(answer: &Value, is_wanted: bool) {
    if is_wanted && !answer.is_null() {
        let _ = writeln!(std::io::stdout().lock(), "{answer:#}");
    }
}

/// Does what `command` says. Returns the answer and the exit status.
fn dispatch(command: &Command, out: Out) -> Result<(Value, u8), Failure> {
    let answer = match command {
        Command::Identify(arguments) => identify::run(arguments, out),
        Command::Profile(ProfileCommand::Build(arguments)) => profile::build(arguments, out),
        Command::Profile(ProfileCommand::Fetch(arguments)) => fetch::run(arguments, out),
        Command::Profile(ProfileCommand::Show(arguments)) => profile::show(arguments, out),
        Command::Profile(ProfileCommand::Export(arguments)) => symbols::export(arguments, out),
        Command::Profile(ProfileCommand::Import(arguments)) => symbols::import(arguments, out),
        Command::Symbols(SymbolsCommand::Fetch(arguments)) => symbols::fetch(arguments, out),
        Command::Attach(arguments) => attach::run(arguments, out),
        Command::Detach(arguments) => engine::detach(arguments, out),
        Command::Scan(arguments) => return scan::run(arguments, out),
        Command::Dedup(arguments) => dedup::run(arguments, out),
        Command::Estimate(arguments) => estimate::run(arguments, out),
        Command::Status(arguments) => match &arguments.domain {
            Some(domain) => engine::status(domain, out),
            None => top::host(out),
        },
        Command::Top(arguments) => top::run(arguments, out),
        Command::Report(arguments) => report::run(arguments, out),
        Command::Explain(arguments) => engine::explain(arguments, out),
        Command::Inspect(arguments) => inspect::run(arguments, out),
        // It may find several things wrong, so it returns findings instead of a failure, and an exit status
        // of its own.
        Command::Doctor => return Ok(doctor::run(out)),
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "lacuna", &mut std::io::stdout());
            Ok(Value::Null)
        }
        Command::Man { folder } => write_manual(folder),
    };
    Ok((answer?, DONE))
}

/// Returns a failure as `--json` prints it.
fn failure_json(failure: &Failure) -> Value {
    json!({
        "error": failure.what,
        "remedy": failure.remedy,
        "exit_status": failure.class.exit_status(),
        "verdict": if failure.class == Class::Refused { "refused" } else { "failed" },
    })
}

fn write_manual(folder: &Path) -> Result<Value, Failure> {
    std::fs::create_dir_all(folder)?;
    for command in [Cli::command(), Arguments::command()] {
        clap_mangen::generate_to(command, folder)
            .map_err(|error| Failure::plain(Class::Failed, format!("{}: {error}", folder.display())))?;
    }
    Ok(Value::Null)
}
