//! `lacuna`, the command line.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    ExitCode::from(lacuna::commands::run(&lacuna::commands::cli::Cli::parse()))
}
