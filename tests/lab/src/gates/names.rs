//! Names in comments and documents: each file, test and item that one names exists.
//!
//! Looked at are the comments of Rust files, and the whole text of documents and of files in other languages.
//! Checked are names of files as this project has them (`layout.rs`, `docs/lab.md`), paths from the top of
//! the checkout, links of documents with their headings, `--test NAME`, tests of `cargo lab test`, and paths
//! of items (`Type::function`): each word of one occurs in some code. Names of files in C and assembler may
//! be Linux', Xen's or QEMU's, and are looked at only where they begin with a folder of the project. What doc
//! comments link to, rustdoc checks (`host/rustdoc`).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::error::{IoContext, Result};

/// Endings of files that are the project's own wherever they are named.
const OWN_ENDINGS: [&str; 8] = [".rs", ".md", ".toml", ".patch", ".tsv", ".bounds", ".hex", ".ld"];
/// Endings of files that are read.
const READ: [&str; 8] = [".rs", ".md", ".toml", ".c", ".h", ".S", ".ld", ".service"];
/// Crates that the compiler brings along.
const COMPILERS: [&str; 3] = ["core", "std", "alloc"];
/// Folders which are made and not kept.
const BUILT: &str = "target";

/// What names something that does not exist; `tests` are the names of all tests of `cargo lab test`.
pub(super) fn offences(repository: &Path, tests: &[String]) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    let mut files = Vec::new();
    list(repository, Path::new(""), &mut files)?;
    for file in &files {
        if READ.iter().any(|ending| file.ends_with(ending)) {
            let path = repository.join(file);
            texts.push((file.clone(), fs::read_to_string(&path).on("read", &path)?));
        }
    }
    let ignore = repository.join(".gitignore");
    let generated = fs::read_to_string(&ignore).on("read", &ignore)?;
    let known = Known::new(files, generated.lines(), &texts, tests);
    Ok(texts
        .iter()
        .flat_map(|(file, text)| known.offences(file, text))
        .collect())
}

/// Lists the files below `repository/relative`, without what is built and what git keeps for itself.
fn list(repository: &Path, relative: &Path, found: &mut Vec<String>) -> Result<()> {
    let folder = repository.join(relative);
    for entry in fs::read_dir(&folder).on("list", &folder)? {
        let entry = entry.on("list", &folder)?;
        let name = entry.file_name();
        let path = relative.join(&name);
        if name == ".git" || name == BUILT {
            continue;
        }
        if entry.file_type().on("look at", entry.path())?.is_dir() {
            list(repository, &path, found)?;
        } else {
            found.push(path.to_string_lossy().into_owned());
        }
    }
    found.sort();
    Ok(())
}

/// What exists.
struct Known {
    /// Files, from the top of the checkout, each after a slash.
    files: Vec<String>,
    /// Folders and generated files.
    others: BTreeSet<String>,
    /// Folders at the top.
    tops: BTreeSet<String>,
    /// Words of code.
    words: BTreeSet<String>,
    /// Documents with the anchors of their headings.
    anchors: BTreeSet<(String, String)>,
    /// Tests of `cargo lab test`.
    tests: Vec<String>,
}

impl Known {
    fn new<'a>(
        files: Vec<String>,
        generated: impl Iterator<Item = &'a str>,
        texts: &[(String, String)],
        tests: &[String],
    ) -> Self {
        let mut others: BTreeSet<String> = generated.map(|line| line.trim_matches('/').to_owned()).collect();
        for file in &files {
            let folders = Path::new(file).ancestors().skip(1);
            others.extend(folders.map(|folder| folder.to_string_lossy().into_owned()));
        }
        let tops = files
            .iter()
            .filter_map(|file| file.split_once('/'))
            .map(|(top, _)| top.to_owned())
            .collect();
        let mut words = BTreeSet::new();
        let mut anchors = BTreeSet::new();
        for (file, text) in texts {
            if has_ending(file, "md") {
                let headings = text.lines().filter_map(|line| line.strip_prefix('#'));
                anchors.extend(headings.map(|heading| (file.clone(), anchor(heading))));
            } else {
                for line in text.lines() {
                    let code = line.split("//").next().unwrap_or_default();
                    words.extend(code.split(|c| !is_word(c)).map(str::to_owned));
                }
            }
        }
        Self {
            files: files.into_iter().map(|file| format!("/{file}")).collect(),
            others,
            tops,
            words,
            anchors,
            tests: tests.to_vec(),
        }
    }

    /// What `text`, which is in `file`, names wrongly.
    fn offences(&self, file: &str, text: &str) -> Vec<String> {
        let mut offences = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let said = if has_ending(file, "rs") {
                let Some((_, comment)) = line.split_once("//") else {
                    continue;
                };
                comment
            } else {
                line
            };
            let mut wrong = self.wrong_files(file, said);
            wrong.extend(self.wrong_tests(said));
            wrong.extend(self.wrong_items(said));
            if has_ending(file, "md") {
                wrong.extend(self.wrong_links(file, said));
            }
            wrong.sort();
            wrong.dedup();
            offences.extend(
                wrong
                    .into_iter()
                    .map(|name| format!("{file}:{}: {name} does not exist", index + 1)),
            );
        }
        offences
    }

    /// Names of files.
    fn wrong_files(&self, file: &str, said: &str) -> Vec<String> {
        said.split(|c: char| !(is_word(c) || "./*-".contains(c)))
            .map(|name| name.trim_end_matches(['.', '/', '-']).trim_start_matches("./"))
            .filter(|name| !name.contains('*') && !name.starts_with('/') && !self.is_there(file, name))
            .map(str::to_owned)
            .collect()
    }

    /// Whether `name` is of no interest, or is that of a file or folder.
    fn is_there(&self, file: &str, name: &str) -> bool {
        let own = OWN_ENDINGS
            .iter()
            .any(|ending| name.len() > ending.len() && name.ends_with(ending));
        let below_top = name
            .split_once('/')
            .is_some_and(|(top, rest)| self.tops.contains(top) && !rest.is_empty());
        // Linux and Xen have a folder `docs`, too; documents of this project are in Markdown.
        if !own && (!below_top || name.starts_with("docs/")) {
            return true;
        }
        let whole = format!("/{name}");
        let beside = normal(Path::new(file).parent().unwrap_or(Path::new("")), name);
        let elsewhere = !below_top && self.files.iter().any(|known| known.ends_with(&whole));
        elsewhere
            || self.files.contains(&whole)
            || self.others.contains(name)
            || beside.is_some_and(|path| self.files.contains(&format!("/{path}")))
    }

    /// Tests: `--test NAME`, and what `cargo lab test` is given inside backquotes.
    fn wrong_tests(&self, said: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut words = said.split(|c: char| c.is_whitespace() || c == '`');
        while let Some(word) = words.next() {
            let target = if word == "--test" { words.next() } else { None };
            // In capitals it stands for any name.
            let named =
                |name: &&str| name.chars().all(is_word) && name.contains(|c: char| c.is_ascii_lowercase());
            if let Some(name) = target.filter(named) {
                let ends = [format!("/tests/{name}.rs"), format!("/tests/{name}/main.rs")];
                if !self
                    .files
                    .iter()
                    .any(|file| ends.iter().any(|end| file.ends_with(end)))
                {
                    wrong.push(format!("--test {name}"));
                }
            }
        }
        for span in spans(said) {
            let filters: Vec<&str> = match span.strip_prefix("cargo lab test") {
                Some(filters) => filters.split_whitespace().collect(),
                None if self.is_test_like(span) => vec![span],
                None => continue,
            };
            let plain = |filter: &&str| !filter.starts_with('-') && filter.chars().all(is_filter);
            for filter in filters.into_iter().filter(plain) {
                if !self.tests.iter().any(|test| test.contains(filter)) {
                    wrong.push(format!("the test {filter}"));
                }
            }
        }
        wrong
    }

    /// Whether `span` looks like the name of a test: a group that there is, a slash, and a name.
    fn is_test_like(&self, span: &str) -> bool {
        span.split_once('/').is_some_and(|(group, rest)| {
            let group = format!("{group}/");
            !rest.is_empty()
                && rest
                    .chars()
                    .all(|c| is_filter(c) && c != '/' && c != '.' && c != '_')
                && self.tests.iter().any(|test| test.starts_with(&group))
        })
    }

    /// Paths of items inside backquotes.
    fn wrong_items(&self, said: &str) -> Vec<String> {
        spans(said)
            .map(|span| span.trim_end_matches("()"))
            .filter(|span| span.contains("::") && span.chars().all(|c| is_word(c) || c == ':'))
            .filter(|span| {
                let mut words = span.split("::");
                let first = words.clone().next().unwrap_or_default();
                !COMPILERS.contains(&first) && !words.all(|word| self.words.contains(word))
            })
            .map(str::to_owned)
            .collect()
    }

    /// Targets of links in the document `file`.
    fn wrong_links(&self, file: &str, said: &str) -> Vec<String> {
        let folder = Path::new(file).parent().unwrap_or(Path::new(""));
        let mut wrong = Vec::new();
        for target in said.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (name, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if name.is_empty() {
                Some(file.to_owned())
            } else {
                normal(folder, name)
            };
            let exists = path.is_some_and(|path| {
                let there = self.files.contains(&format!("/{path}")) || self.others.contains(&path);
                there && (heading.is_empty() || self.anchors.contains(&(path, heading.to_owned())))
            });
            if !exists {
                wrong.push(format!("the target of the link {target}"));
            }
        }
        wrong
    }
}

fn has_ending(file: &str, ending: &str) -> bool {
    Path::new(file).extension().is_some_and(|seen| seen == ending)
}

/// What stands between backquotes.
fn spans(said: &str) -> impl Iterator<Item = &str> {
    said.split('`').skip(1).step_by(2)
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn is_filter(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || "/.-_".contains(c)
}

/// The anchor that a heading gets where documents are shown: lower case, hyphens for spaces, no punctuation.
fn anchor(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_')
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// The path of `name` as seen from `folder`; `None` where it leaves the checkout.
fn normal(folder: &Path, name: &str) -> Option<String> {
    let mut path = PathBuf::new();
    for part in folder.join(name).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir => {
                if !path.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        let files = [
            "README.md",
            "core/src/a.rs",
            "core/tests/share.rs",
            "docs/lab.md",
            "tests/made/core/src/z.rs",
            "fuzz/Cargo.toml",
        ];
        let texts = [
            (
                "docs/lab.md".to_owned(),
                "# The lab\n\n## What it makes: all\n".to_owned(),
            ),
            (
                "core/src/a.rs".to_owned(),
                "impl Slice { fn pause() {} }".to_owned(),
            ),
        ];
        Known::new(
            files.map(str::to_owned).to_vec(),
            ["/fuzz/corpus"].into_iter(),
            &texts,
            &["policy/soak".to_owned(), "host/lint".to_owned()],
        )
    }

    fn wrong(file: &str, text: &str) -> Vec<String> {
        known().offences(file, text)
    }

    /// A line of code that ends with the comment `said`: the test's own text must not look like one.
    fn comment(said: &str) -> String {
        format!("let a = 1; {}{said}", "/".repeat(2))
    }

    #[test]
    fn names_of_files_are_looked_up() {
        for fine in [
            "`a.rs`, core/src/a.rs and `core/src`; fuzz/corpus, `core/tests/*.rs`.",
            "Linux' mm/page_alloc.c, Xen's docs/misc/pvh.pandoc and xen.lds.S",
            "See ../tests/share.rs.",
        ] {
            assert_eq!(
                wrong("core/src/a.rs", &comment(fine)),
                Vec::<String>::new(),
                "{fine}"
            );
        }
        assert_eq!(
            wrong("core/src/a.rs", "let name = \"nothing.rs\";"),
            Vec::<String>::new()
        );
        for (bad, name) in [
            ("! See DESIGN.md, section 2.", "DESIGN.md"),
            ("`core/tests/interleaving.rs` does", "core/tests/interleaving.rs"),
            (" b.rs", "b.rs"),
            ("in core/src/b", "core/src/b"),
            ("core/src/z.rs is below another folder", "core/src/z.rs"),
            ("tests/share.rs is elsewhere; lab/src/a.rs is not", "lab/src/a.rs"),
        ] {
            let expected = format!("core/src/a.rs:1: {name} does not exist");
            assert!(wrong("core/src/a.rs", &comment(bad)).contains(&expected), "{bad}");
        }
    }

    #[test]
    fn links_and_their_headings_are_followed_from_where_they_stand() {
        let fine = "[a](lab.md), [b](../README.md), [c](lab.md#what-it-makes-all), [d](https://x/y)";
        assert_eq!(wrong("docs/x.md", fine), Vec::<String>::new());
        for bad in [
            "[a](docs/lab.md)",
            "[a](lab.md#nowhere)",
            "[a](../../README.md)",
            "[a](#nowhere)",
        ] {
            assert!(!wrong("docs/x.md", bad).is_empty(), "{bad}");
        }
    }

    #[test]
    fn tests_are_looked_up() {
        let fine = "`cargo test -p lacuna-core --test share`, `cargo lab test soak --full`, `policy/soak`, `docs/lab.md`";
        assert_eq!(wrong("README.md", fine), Vec::<String>::new());
        for bad in [
            "`cargo test --test shore`",
            "`cargo lab test sock --full`",
            "`policy/sock`",
        ] {
            assert_eq!(wrong("README.md", bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn items_occur_in_code() {
        assert_eq!(
            wrong("core/src/a.rs", &comment("`Slice::pause()`, `core::panicking`")),
            Vec::<String>::new()
        );
        assert_eq!(wrong("core/src/a.rs", &comment("`Slice::gone`")).len(), 1);
    }
}
