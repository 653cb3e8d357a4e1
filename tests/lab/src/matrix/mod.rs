//! `cargo lab matrix`: distributions' kernels, booted under QEMU alone, and `lacuna scan` on their dumps held
//! against what each guest says of itself.

pub(crate) mod case;
pub(crate) mod kernel;
mod machine;
mod score;
mod table;

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::context::{Context, Staged};
use crate::cpio::Archive;
use crate::error::{Error, Result};
use crate::key::KeyBuilder;
use crate::live::Outcome;
use crate::process::run_logged;
use crate::programs;
use crate::sysroot::Sysroot;
use case::CASES;
pub(crate) use case::{Case, Taken, amd64, plain};
use kernel::Fetched;
pub(crate) use machine::Dumps;
use score::Score;
use table::Row;

/// Runs the cases that one of `filters` selects, or all, and fails when one is not as expected.
pub(crate) fn run(context: &Context, filters: &[String], table: bool) -> Result<()> {
    let selects = |case: &Case| filters.iter().any(|filter| case.name.contains(filter.as_str()));
    let chosen: Vec<&Case> = CASES
        .iter()
        .filter(|case| filters.is_empty() || selects(case))
        .collect();
    if chosen.is_empty() {
        return Err(Error::NoScenario {
            filter: filters.join(", "),
            known: CASES.iter().map(|case| case.name).collect::<Vec<_>>().join(", "),
        });
    }
    let bench = Bench::set_up(context, programs::command(context)?)?;
    let mut failed = 0;
    let mut rows = Vec::new();
    for case in &chosen {
        let started = Instant::now();
        match bench.examine(case) {
            Ok((release, scores)) => {
                let good = scores.iter().all(|score| score.good);
                failed += usize::from(!good);
                println!(
                    "{} {:5} s  {} ({release})",
                    if good { "pass" } else { "FAIL" },
                    started.elapsed().as_secs(),
                    case.name
                );
                for score in &scores {
                    let word = if score.good { "     " } else { "  !! " };
                    println!("{word}{:28} {}", score.what, score.told);
                }
                rows.push((*case, good.then(|| Row::new(case, &release, &scores))));
            }
            Err(error) => {
                failed += 1;
                rows.push((*case, None));
                println!("FAIL {:5} s  {}: {error}", started.elapsed().as_secs(), case.name);
            }
        }
    }
    if table {
        table::write(&context.repository.join(table::PLACE), &rows)?;
    }
    println!("\ncargo lab:\n{} passed, {failed} failed", chosen.len() - failed);
    if failed == 0 {
        Ok(())
    } else {
        Err(Error::Failed {
            failed,
            total: chosen.len(),
        })
    }
}

/// The cases that are part of a test run.
pub(crate) fn quick_cases() -> impl Iterator<Item = &'static Case> {
    CASES.iter().filter(|case| case.quick)
}

/// Their names as tests.
pub(crate) fn quick_names() -> impl Iterator<Item = String> {
    quick_cases().map(|case| format!("linux/matrix-{}", case.name))
}

/// Runs those of the quick cases whose test's name is in `chosen`.
pub(crate) fn run_quick(context: &Context, chosen: &[String]) -> Result<Vec<Outcome>> {
    let bench = Bench::set_up(context, programs::command(context)?)?;
    let mut outcomes = Vec::new();
    for case in CASES.iter().filter(|case| case.quick) {
        let name = format!("linux/matrix-{}", case.name);
        if !chosen.contains(&name) {
            continue;
        }
        println!("lab: {name}");
        let started = Instant::now();
        let failure = match bench.examine(case) {
            Ok((_, scores)) => {
                let bad: Vec<String> = scores
                    .iter()
                    .filter(|score| !score.good)
                    .map(|score| format!("  {}: {}", score.what, score.told))
                    .collect();
                (!bad.is_empty()).then(|| bad.join("\n"))
            }
            Err(error) => Some(error.to_string()),
        };
        outcomes.push(Outcome {
            name,
            failure,
            seconds: started.elapsed().as_secs(),
            figures: Vec::new(),
        });
    }
    Ok(outcomes)
}

/// What all cases share.
pub(crate) struct Bench<'c> {
    context: &'c Context,
    /// Where QEMU is.
    pub(crate) sysroot: Sysroot,
    /// The tool.
    pub(crate) lacuna: PathBuf,
}

impl<'c> Bench<'c> {
    /// Makes the sysroot; `lacuna` is the tool, already built.
    pub(crate) fn set_up(context: &'c Context, lacuna: PathBuf) -> Result<Self> {
        Ok(Self {
            context,
            sysroot: Sysroot::build(context)?,
            lacuna,
        })
    }

    /// Boots one case and scores the tool on its dumps, which are then removed: they are gigabytes.
    fn examine(&self, case: &Case) -> Result<(String, Vec<Score>)> {
        let (kernel, dumps) = self.dump(case)?;
        let scores = score::score(&self.lacuna, case, &kernel.headers, &dumps)?;
        if scores.iter().all(|score| score.good) {
            crate::context::remove(&self.folder(case))?;
        }
        Ok((kernel.release, scores))
    }

    /// Boots one case and takes its dumps, into [`Bench::folder`].
    pub(crate) fn dump(&self, case: &Case) -> Result<(Fetched, Dumps)> {
        let kernel = kernel::fetch(self.context, &self.sysroot, case.flavour)?;
        let word = if case.flavour.architecture == "i386" {
            "-m32"
        } else {
            "-m64"
        };
        let module = case
            .module
            .map(|name| kernel::module(self.context, &self.sysroot, &kernel, name));
        let image = self.image(word, module.transpose()?.as_deref())?;
        let dumps = machine::dump(&self.sysroot, case, &kernel.image, &image, &self.folder(case))?;
        Ok((kernel, dumps))
    }

    /// Where a case has its files.
    pub(crate) fn folder(&self, case: &Case) -> PathBuf {
        self.context.cached("matrix").join(case.name)
    }

    /// The guest's initial file system: the agent, and the module that it loads.
    fn image(&self, word: &str, module: Option<&Path>) -> Result<PathBuf> {
        let program = self.agent(word)?;
        let staged = Staged::file(program.with_extension("cpio"))?;
        let mut archive = Archive::create(&staged.path)?;
        archive.file("init", &program)?;
        if let Some(module) = module {
            archive.file("module.ko", module)?;
        }
        archive.finish()?;
        let image = program.with_extension("cpio");
        staged.commit()?;
        Ok(image)
    }

    /// The agent, compiled.
    fn agent(&self, word: &str) -> Result<PathBuf> {
        let source = self.context.repository.join("tests/guest/snapshot/snapshot.c");
        let name = format!("matrix/agent{word}");
        let program = self.context.cached("images").join(format!("snapshot{word}"));
        let key = KeyBuilder::new(&name, 2)
            .key(&self.sysroot.key)
            .file(&source)?
            .finish();
        self.context.step(&name, &key, |progress| {
            let staged = Staged::file(program.clone())?;
            let (from, to) = (source.to_string_lossy(), staged.path.to_string_lossy());
            let line = [
                "gcc",
                word,
                "-O1",
                "-static",
                "-nostdlib",
                "-ffreestanding",
                "-fno-stack-protector",
                "-fno-pic",
                "-no-pie",
                "-Wall",
                "-Werror",
                "-o",
                &*to,
                &*from,
            ];
            run_logged(
                self.sysroot.command("/", &line),
                &self.context.step_log(&name),
                progress,
            )?;
            staged.commit()
        })?;
        Ok(program)
    }
}
