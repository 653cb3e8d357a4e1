//! Writes the seeds of every fuzz target as files:
//! `cargo run --package lacuna-hostile --bin seeds -- fuzz/corpus`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::{fs, io};

use lacuna_hostile::TARGETS;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("seeds: say which folder to write to, for example fuzz/corpus");
        return ExitCode::from(2);
    };
    match write(&folder) {
        Ok(files) => {
            println!("{files} seeds in {}", folder.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("seeds: {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

/// One file for each seed, in a folder for each target; returns their number.
fn write(folder: &std::path::Path) -> io::Result<usize> {
    let mut files = 0;
    for target in TARGETS {
        let place = folder.join(target.name);
        fs::create_dir_all(&place)?;
        for (index, seed) in (target.seeds)().iter().enumerate() {
            fs::write(place.join(format!("seed-{index}")), seed)?;
            files += 1;
        }
    }
    Ok(files)
}
