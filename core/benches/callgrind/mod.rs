//! Counts the instructions of a function with callgrind and holds them against stored bounds.
//!
//! A program under `core/benches` runs itself under `valgrind --tool=callgrind` once for each case, and fails
//! when a count is above its bound. Counts, unlike times, are the same on every machine with the same
//! compiler.

use std::path::Path;
use std::process::{Command, ExitCode, Output};

/// What a program counts.
pub(crate) struct Counted {
    /// What the cases are of, as messages say it: `scan`.
    pub(crate) subject: &'static str,
    /// The function of which callgrind counts the instructions, as `--toggle-collect` wants it.
    pub(crate) function: &'static str,
    /// A line for each case: its name, and the most instructions a page. `#` begins a comment.
    pub(crate) bounds: &'static str,
    /// Where `bounds` is from.
    pub(crate) bounds_file: &'static str,
    /// Pages that a case goes over.
    pub(crate) pages: fn(&str) -> u64,
    /// What the child does for a case.
    pub(crate) run: fn(&str),
}

impl Counted {
    /// The program's `main`: with `--case CASE` the child under callgrind, with `--where CASE` a table of
    /// where a case's instructions go, else all cases against their bounds.
    pub(crate) fn main(&self) -> ExitCode {
        let arguments: Vec<String> = std::env::args().collect();
        let after = |option: &str| {
            let at = arguments.iter().position(|argument| argument == option)?;
            Some(arguments.get(at + 1).expect("an option's value").as_str())
        };
        if let Some(case) = after("--case") {
            (self.run)(case);
            ExitCode::SUCCESS
        } else if let Some(case) = after("--where") {
            self.tell_where(case);
            ExitCode::SUCCESS
        } else {
            self.check()
        }
    }

    fn check(&self) -> ExitCode {
        let mut within = true;
        for (case, bound) in self.cases() {
            let figure = self.instructions(case) as f64 / (self.pages)(case) as f64;
            let verdict = if figure <= bound { "within" } else { "ABOVE" };
            println!(
                "{} {case}: {figure:.3} instructions a page, {verdict} its bound of {bound}",
                self.subject
            );
            within &= figure <= bound;
        }
        if within {
            ExitCode::SUCCESS
        } else {
            eprintln!(
                "a {} takes more instructions than {} allows",
                self.subject, self.bounds_file
            );
            ExitCode::FAILURE
        }
    }

    fn cases(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let lines = self.bounds.lines();
        let lines = lines.filter(|line| !line.starts_with('#') && !line.is_empty());
        lines.map(|line| {
            let (case, bound) = line.split_once(' ').expect("a case and its bound");
            (case, bound.trim().parse().expect("a bound is a number"))
        })
    }

    /// Instructions inside the function for `case`.
    fn instructions(&self, case: &str) -> u64 {
        let output = self.valgrind(case, Path::new("/dev/null"));
        let told = String::from_utf8_lossy(&output.stderr);
        let count = told
            .lines()
            .find_map(|line| line.split_once("Collected :"))
            .and_then(|(_, count)| count.trim().parse().ok());
        count.unwrap_or_else(|| panic!("valgrind's answer has no count:\n{told}"))
    }

    /// Prints a case's instructions by function, and by source file within it: what the compiler has put
    /// inside another function counts there, under its own file's name.
    fn tell_where(&self, case: &str) {
        assert!(
            self.cases().any(|(name, _)| name == case),
            "no case {case}; there are: {}",
            self.cases().map(|(name, _)| name).collect::<Vec<_>>().join(", ")
        );
        let profile = std::env::temp_dir().join(format!("lacuna-{}-{}", self.subject, std::process::id()));
        self.valgrind(case, &profile);
        let table = Command::new("callgrind_annotate")
            .args(["--auto=no", "--threshold=99"])
            .arg(&profile)
            .output()
            .expect("callgrind_annotate runs (it comes with the package valgrind)");
        std::fs::remove_file(&profile).expect("the profile was written");
        let pages = (self.pages)(case);
        println!("{} {case}, {pages} pages:", self.subject);
        for line in String::from_utf8_lossy(&table.stdout).lines() {
            // `1,234 (56.7%)  file:function [object]`
            let Some((count, place)) = line.trim().split_once(" (") else {
                continue;
            };
            let Ok(count) = count.replace(',', "").parse::<u64>() else {
                continue;
            };
            let place = place.split_once(')').map_or(place, |(_, place)| place.trim());
            let place = place.split(" [").next().unwrap_or(place);
            println!(
                "{:12.2} a page  {}",
                count as f64 / pages as f64,
                shortened(place)
            );
        }
    }

    fn valgrind(&self, case: &str, profile: &Path) -> Output {
        let program = std::env::current_exe().expect("this program has a path");
        let output = Command::new("valgrind")
            .arg("--tool=callgrind")
            .arg(format!("--callgrind-out-file={}", profile.display()))
            .arg(format!("--toggle-collect=*{}*", self.function))
            .arg(program)
            .args(["--case", case])
            .output()
            .expect("valgrind runs (install the package valgrind)");
        assert!(
            output.status.success(),
            "{case} failed under valgrind:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }
}

/// A place in a source file, without the directories that lead to a crate's own.
fn shortened(place: &str) -> &str {
    let starts = ["/registry/src/", "/rustc/"].map(|marker| {
        let (_, inside) = place.split_once(marker)?;
        Some(inside.split_once('/')?.1)
    });
    starts.into_iter().flatten().next().unwrap_or(place)
}
