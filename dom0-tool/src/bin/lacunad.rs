//! `lacunad`, the daemon.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    ExitCode::from(lacuna::daemon::run::run(&lacuna::daemon::run::Arguments::parse()))
}
