//! `cargo lab patches check`: how far the patches fit a tree of Xen, patch by patch and hunk by hunk.

use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;

use super::given::Given;
use super::patches::{self, Patch};
use super::series::{SUPPORTED, Series, tree_version};
use super::source;
use crate::context::{Context, Staged, remove};
use crate::error::{Error, Result};
use crate::sysroot::Sysroot;
use crate::tree::copy_source;

/// What became of one hunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fit {
    /// It applies, moved by so many lines.
    Offset(i64),
    /// It applies only where so many lines of context are left out of account.
    Fuzz(u32),
    /// It does not apply.
    Failed,
}

/// One hunk that does not apply just where the patch has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Hunk {
    /// The file, as in Xen's tree.
    pub(crate) file: String,
    /// Its number in that file's part of the patch, from 1 on.
    pub(crate) number: u32,
    /// Where in the file, in lines.
    pub(crate) line: u32,
    /// What became of it.
    pub(crate) fit: Fit,
}

/// How one patch fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// The patch.
    pub(crate) patch: String,
    /// Hunks that do not apply just where the patch has them.
    pub(crate) hunks: Vec<Hunk>,
    /// Files that the patch changes and the tree has not.
    pub(crate) missing: Vec<String>,
}

impl Report {
    /// Whether the lab could apply it: without fuzz.
    pub(crate) fn applies(&self) -> bool {
        self.missing.is_empty() && self.hunks.iter().all(|hunk| matches!(hunk.fit, Fit::Offset(_)))
    }

    /// Sums it up in a word.
    fn verdict(&self) -> &'static str {
        let has = |wanted: fn(&Fit) -> bool| self.hunks.iter().any(|hunk| wanted(&hunk.fit));
        if !self.missing.is_empty() || has(|fit| *fit == Fit::Failed) {
            "fails"
        } else if has(|fit| matches!(fit, Fit::Fuzz(_))) {
            "fuzz"
        } else if self.hunks.is_empty() {
            "clean"
        } else {
            "offset"
        }
    }
}

/// How the patches of one series fit one tree.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    /// The tree: where it came from, and its version.
    pub(crate) tree: String,
    /// The series of patches that was tried.
    pub(crate) series: String,
    /// In order.
    pub(crate) patches: Vec<Report>,
}

impl Check {
    /// How many patches apply without fuzz.
    fn applying(&self) -> usize {
        self.patches.iter().filter(|report| report.applies()).count()
    }
}

/// Checks what the user gives, or else every series of which a source can be had. Fails when a patch does not
/// apply.
pub(crate) fn run(context: &Context, json: bool) -> Result<()> {
    let sysroot = Sysroot::build(context)?;
    let mut checks = Vec::new();
    if let Some(given) = &context.options.xen_source {
        checks.push(check_given(context, &sysroot, given)?);
    } else {
        let wanted = context
            .options
            .series
            .map_or_else(|| SUPPORTED.to_vec(), |one| vec![one]);
        for series in wanted {
            match source::choose(context, &sysroot, Some(series)) {
                Ok(pristine) => checks.push(check(
                    context,
                    &sysroot,
                    &pristine.directory,
                    &format!("{} from {}", pristine.origin.version, pristine.origin.from),
                    series,
                )?),
                Err(error @ Error::NothingServed { .. }) if context.options.series.is_none() => {
                    eprintln!("lab: series {} is not checked: {error}", series.name());
                }
                Err(error) => return Err(error),
            }
        }
    }
    if checks.is_empty() {
        return Err(Error::NothingServed {
            what: "a source of Xen".to_owned(),
            tried: "  every series, as told above".to_owned(),
            remedy: source::REMEDY.to_owned(),
        });
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&checks).unwrap_or_default());
    } else {
        for check in &checks {
            print!("{}", rendered(check));
        }
    }
    let total: usize = checks.iter().map(|check| check.patches.len()).sum();
    let applying: usize = checks.iter().map(Check::applying).sum();
    if applying == total {
        Ok(())
    } else {
        Err(Error::DoNotApply {
            failed: total - applying,
            total,
        })
    }
}

fn check_given(context: &Context, sysroot: &Sysroot, given: &Given) -> Result<Check> {
    let staged = Staged::directory(context.cached("xen/check-source"))?;
    context.work("xen/check-source", |progress| {
        given.unpack(&staged.path, &context.step_log("xen/check-source"), progress)
    })?;
    let version = tree_version(&staged.path)?;
    let series = context
        .options
        .series
        .or_else(|| Series::named(&version.series))
        .unwrap_or(SUPPORTED[0]);
    let tree = format!("{} from {}", version.whole, given.told());
    let checked = check(context, sysroot, &staged.path, &tree, series)?;
    remove(&staged.path)?;
    Ok(checked)
}

/// Applies the patches for `series`, the lab's own as well, one after the other to a copy of the tree at
/// `root`.
pub(crate) fn check(
    context: &Context,
    sysroot: &Sysroot,
    root: &Path,
    tree: &str,
    series: Series,
) -> Result<Check> {
    let staged = Staged::directory(context.cached("xen/check"))?;
    copy_source(root, &staged.path, |_| true)?;
    let mut reports = Vec::new();
    let mut patches = patches::product(&context.repository, series)?;
    patches.extend(patches::lab_only(&context.repository, series)?);
    for patch in patches {
        reports.push(try_patch(sysroot, &staged.path, &patch)?);
    }
    remove(&staged.path)?;
    Ok(Check {
        tree: tree.to_owned(),
        series: series.name().to_owned(),
        patches: reports,
    })
}

/// Tries one patch as the lab applies it, and then applies as much of it as can be, for those after it.
fn try_patch(sysroot: &Sysroot, tree: &Path, patch: &Patch) -> Result<Report> {
    let strict = run_patch(sysroot, tree, patch, &["--fuzz=0", "--dry-run"])?;
    let mut report = Report {
        patch: patch.name.clone(),
        ..parse(&strict)
    };
    if report.applies() {
        run_patch(sysroot, tree, patch, &["--fuzz=0"])?;
    } else {
        // With fuzz it may still apply: then it is context alone that moved.
        let loose = parse(&run_patch(sysroot, tree, patch, &["--fuzz=2"])?);
        for hunk in &mut report.hunks {
            let same = |other: &&Hunk| other.file == hunk.file && other.number == hunk.number;
            match loose.hunks.iter().find(same) {
                Some(found) if hunk.fit == Fit::Failed => hunk.fit = found.fit.clone(),
                _ => {}
            }
        }
    }
    Ok(report)
}

/// Runs `patch` and returns what it said; that it failed is part of that.
fn run_patch(sysroot: &Sysroot, tree: &Path, patch: &Patch, how: &[&str]) -> Result<String> {
    let file = patch.file.to_string_lossy();
    let mut line = vec![
        "patch",
        "-p1",
        "--force",
        "--no-backup-if-mismatch",
        "--reject-file=-",
    ];
    line.extend(how);
    line.extend(["-i", &file]);
    let mut command: Command = sysroot.command(tree, &line);
    let ran = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Start {
            program: "patch".to_owned(),
            source,
        })?;
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    // 0: all applied; 1: some hunks did not; anything else is trouble of another kind.
    match ran.status.code() {
        Some(0 | 1) => Ok(said),
        _ => Err(Error::Unexpected {
            what: format!("patch -p1 -i {file}"),
            expected: "exit status 0 or 1".to_owned(),
            seen: format!("{}: {said}{}", ran.status, String::from_utf8_lossy(&ran.stderr)),
        }),
    }
}

/// Reads what `patch` (GNU, 2.7) says of hunks that do not apply just where the patch has them.
fn parse(said: &str) -> Report {
    let mut report = Report {
        patch: String::new(),
        hunks: Vec::new(),
        missing: Vec::new(),
    };
    let mut file = String::new();
    let mut looking_for = String::new();
    for line in said.lines() {
        if let Some(rest) = line
            .strip_prefix("patching file ")
            .or_else(|| line.strip_prefix("checking file "))
        {
            rest.trim_matches('\'').clone_into(&mut file);
        } else if let Some(rest) = line.strip_prefix("|+++ b/") {
            rest.split_whitespace()
                .next()
                .unwrap_or_default()
                .clone_into(&mut looking_for);
        } else if line.starts_with("can't find file to patch") {
            looking_for.clear();
        } else if line.starts_with("No file to patch") {
            report.missing.push(std::mem::take(&mut looking_for));
        } else if let Some(hunk) = parse_hunk(line, &file) {
            report.hunks.push(hunk);
        }
    }
    report
}

/// `Hunk #2 succeeded at 120 with fuzz 1 (offset 7 lines).`, or `Hunk #1 FAILED at 55.`
fn parse_hunk(line: &str, file: &str) -> Option<Hunk> {
    let rest = line.strip_prefix("Hunk #")?;
    let (number, rest) = rest.split_once(' ')?;
    let after = |word: &str| {
        let (_, behind) = rest.split_once(word)?;
        let end = behind
            .find(|one: char| !one.is_ascii_digit() && one != '-')
            .unwrap_or(behind.len());
        behind[..end].parse::<i64>().ok()
    };
    let fit = if rest.starts_with("FAILED") {
        Fit::Failed
    } else if let Some(fuzz) = after("with fuzz ") {
        Fit::Fuzz(u32::try_from(fuzz).ok()?)
    } else {
        Fit::Offset(after("(offset ").unwrap_or(0))
    };
    Some(Hunk {
        file: file.to_owned(),
        number: number.parse().ok()?,
        line: u32::try_from(after(" at ")?).ok()?,
        fit,
    })
}

/// The check as lines for people.
fn rendered(check: &Check) -> String {
    use std::fmt::Write;
    let mut text = format!("\nXen {}, patches for {}\n\n", check.tree, check.series);
    for report in &check.patches {
        let _ = writeln!(text, "  {:<7} {}", report.verdict(), report.patch);
        for file in &report.missing {
            let _ = writeln!(text, "            {file}: not in this tree");
        }
        for hunk in &report.hunks {
            let what = match hunk.fit {
                Fit::Offset(_) if report.applies() => continue,
                Fit::Offset(lines) => format!("offset {lines} lines"),
                Fit::Fuzz(lines) => format!("needs fuzz {lines}: the context moved, look at it"),
                Fit::Failed => "does not apply".to_owned(),
            };
            let _ = writeln!(
                text,
                "            {}:{} hunk {}: {what}",
                hunk.file, hunk.line, hunk.number
            );
        }
    }
    let _ = writeln!(
        text,
        "\n  {} of {} apply without fuzz\n",
        check.applying(),
        check.patches.len()
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "checking file xen/arch/x86/mm/p2m.c\n\
        Hunk #1 succeeded at 120 (offset -7 lines).\n\
        Hunk #3 FAILED at 55.\n\
        1 out of 3 hunks FAILED\n\
        checking file xen/common/memory.c\n\
        Hunk #2 succeeded at 1020 with fuzz 1 (offset 1 line).\n\
        can't find file to patch at input line 40\n\
        Perhaps you used the wrong -p or --strip option?\n\
        The text leading up to this was:\n\
        --------------------------\n\
        |diff --git a/tools/new.c b/tools/new.c\n\
        |--- a/tools/new.c\n\
        |+++ b/tools/new.c\n\
        --------------------------\n\
        No file to patch.  Skipping patch.\n";

    #[test]
    fn what_patch_says_is_told_hunk_by_hunk() {
        let report = parse(SAID);
        let hunks: Vec<_> = report
            .hunks
            .iter()
            .map(|hunk| (hunk.file.as_str(), hunk.number, hunk.line, hunk.fit.clone()))
            .collect();
        assert_eq!(
            hunks,
            [
                ("xen/arch/x86/mm/p2m.c", 1, 120, Fit::Offset(-7)),
                ("xen/arch/x86/mm/p2m.c", 3, 55, Fit::Failed),
                ("xen/common/memory.c", 2, 1020, Fit::Fuzz(1)),
            ]
        );
        assert_eq!(report.missing, ["tools/new.c"]);
        assert_eq!(report.verdict(), "fails");
        assert!(!report.applies());
    }

    #[test]
    fn a_patch_of_which_nothing_is_said_is_clean_and_one_that_moved_applies() {
        let clean = parse("checking file xen/common/memory.c\n");
        assert!(clean.applies());
        assert_eq!(clean.verdict(), "clean");
        let moved = parse("checking file a\nHunk #1 succeeded at 3 (offset 2 lines).\n");
        assert!(moved.applies());
        assert_eq!(moved.verdict(), "offset");
        let fuzzy = parse("checking file a\nHunk #1 succeeded at 3 with fuzz 2.\n");
        assert!(!fuzzy.applies());
    }
}
