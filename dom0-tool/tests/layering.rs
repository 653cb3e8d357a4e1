//! The shape of the tool's sources: modules lie in layers, and files and functions stay small.
//!
//! A module may use those that stand before it in [`LAYERS`], so there is no circle among them.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The top modules, the lowest first.
const LAYERS: &[&str] = &[
    "hex", "failure", "progress", "output", "xen", "source", "os", "ops", "policy", "daemon", "commands",
];
/// Below `os`, no kernel knows of another.
const APART: [&str; 2] = ["os::linux", "os::windows"];

/// Most lines of a file.
const FILE_LINES: usize = 500;
/// Most lines of a function.
const FUNCTION_LINES: usize = 80;
/// Most parameters of a function.
const PARAMETERS: usize = 6;
/// What is larger, and why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    (
        "xen/answer.rs",
        "explain_status",
        "a table: one entry for each answer of the engine",
    ),
    ("xen/privcmd.rs", "", "everything unsafe is in this one file"),
    ("xen/privcmd.rs", "hypercall", "the hypercall's own operands"),
    ("daemon/metrics.rs", "", "a table: one entry for each metric"),
];

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file: its path below `src/`, and its text.
fn files() -> Vec<(String, String)> {
    fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                into.push(path);
            }
        }
    }
    let root = sources();
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    paths.sort();
    let name = |path: &Path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
    paths
        .iter()
        .map(|path| (name(path), fs::read_to_string(path).unwrap()))
        .collect()
}

/// The paths that a file uses from the crate's root, such as `os::linux`, by line.
fn uses(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for (at, _) in code.match_indices("crate::") {
            // `$crate::` and `lacuna_core::crate::` do not occur; `pub(crate)` has no `::`.
            let rest = &code[at + "crate::".len()..];
            let path: String = rest
                .chars()
                .take_while(|letter| letter.is_alphanumeric() || "_:".contains(*letter))
                .collect();
            assert!(
                !path.is_empty(),
                "line {}: one path to a `use`: {line}",
                number + 1
            );
            found.push((number + 1, path));
        }
    }
    found
}

/// What is wrong with the uses of one file.
fn misuses(file: &str, text: &str) -> Vec<String> {
    let rank = |module: &str| LAYERS.iter().position(|layer| *layer == module);
    let own = file.trim_end_matches(".rs").replace('/', "::");
    let top = own.split("::").next().unwrap();
    if ["lib", "main", "bin"].contains(&top) {
        return Vec::new();
    }
    let Some(own_rank) = rank(top) else {
        return vec![format!("{file}: module `{top}` is in no layer")];
    };
    let mut wrong = Vec::new();
    for (line, path) in uses(text) {
        let used = path.split("::").next().unwrap();
        match rank(used) {
            None => wrong.push(format!("{file}:{line}: `{used}` is in no layer")),
            Some(rank) if rank > own_rank => {
                wrong.push(format!(
                    "{file}:{line}: `{top}` uses `{used}`, which lies above it"
                ));
            }
            Some(_) => {}
        }
        for (here, there) in [(APART[0], APART[1]), (APART[1], APART[0])] {
            if own.starts_with(here) && path.starts_with(there) {
                wrong.push(format!("{file}:{line}: `{here}` uses `{there}`"));
            }
        }
    }
    wrong
}

#[test]
fn no_module_uses_one_above_it() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for (file, text) in files() {
        wrong.extend(misuses(&file, &text));
        seen.insert(file.split(['/', '.']).next().unwrap().to_owned());
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    for layer in LAYERS {
        assert!(seen.contains(*layer), "there is no module `{layer}`");
    }
}

#[test]
fn a_use_of_what_lies_above_is_seen() {
    for (file, line, expected) in [
        ("xen/engine.rs", "use crate::source::Cpu;", "`xen` uses `source`"),
        ("source/live.rs", "use crate::xen::engine::Engine;", ""),
        (
            "ops/attach.rs",
            "    let a = crate::commands::cli::A;",
            "`ops` uses `commands`",
        ),
        (
            "os/linux/facts.rs",
            "use crate::os::windows::pe;",
            "`os::linux` uses `os::windows`",
        ),
        ("os/linux/facts.rs", "// use crate::daemon::run;", ""),
        (
            "failure.rs",
            "use crate::xen::engine::EngineError;",
            "`failure` uses `xen`",
        ),
        ("other.rs", "", "`other` is in no layer"),
    ] {
        let wrong = misuses(file, line).join("\n");
        assert_eq!(wrong.is_empty(), expected.is_empty(), "{file}: {wrong}");
        assert!(wrong.contains(expected), "{file}: {wrong}");
    }
}

/// A function: its name, its lines, its parameters.
type Function = (String, usize, usize);

/// The functions of a file that the formatter has been over: one ends where its indentation has a closing
/// brace again.
fn functions(text: &str) -> Vec<Function> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (begin, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indentation = &line[..line.len() - code.len()];
        let Some(at) = code.find("fn ") else { continue };
        let qualifiers = code[..at].split_whitespace();
        let is_function = qualifiers
            .filter(|word| !word.starts_with("pub"))
            .all(|word| ["const", "unsafe", "async"].contains(&word));
        if !is_function {
            continue;
        }
        let name: String = code[at + 3..]
            .chars()
            .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
            .collect();
        // The signature ends where the body begins, or, of a declaration, with a semicolon.
        let head = lines[begin..]
            .iter()
            .position(|line| line.contains('{') || line.ends_with(';'))
            .unwrap();
        let closing = format!("{indentation}}}");
        let is_one_line = lines[begin + head].ends_with([';', '}']);
        let end = if is_one_line {
            head
        } else {
            lines[begin..]
                .iter()
                .position(|line| line.trim_end() == closing)
                .unwrap()
        };
        let length = end + 1;
        let signature = format!("{} {}", &code[at..], lines[begin + 1..=begin + head].join(" "));
        found.push((name, length, parameters(&signature)));
    }
    found
}

/// The parameters of the function that `signature` begins with.
fn parameters(signature: &str) -> usize {
    let mut depth = 0_i32;
    let mut count = 0;
    let mut is_empty = true;
    let mut before = ' ';
    // Generics stand before the first parenthesis at depth 0.
    for letter in signature.chars() {
        match letter {
            '(' | '[' | '{' | '<' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            '>' if before != '-' => depth -= 1,
            _ => {}
        }
        before = letter;
        if letter == ')' && depth == 0 {
            break;
        }
        if depth == 0 {
            (count, is_empty) = (0, true);
        } else if letter == ',' && depth == 1 {
            count += 1;
            is_empty = true;
        } else if !(letter.is_whitespace() || letter == '(' && depth == 1) {
            is_empty = false;
        }
    }
    count + usize::from(!is_empty)
}

#[test]
fn files_and_functions_are_small_or_have_a_reason() {
    let mut large = BTreeSet::new();
    for (file, text) in files() {
        if text.lines().count() > FILE_LINES {
            large.insert((file.clone(), String::new()));
        }
        for (name, lines, parameters) in functions(&text) {
            if lines > FUNCTION_LINES || parameters > PARAMETERS {
                large.insert((file.clone(), name));
            }
        }
    }
    let excepted: BTreeSet<(String, String)> = EXCEPTIONS
        .iter()
        .map(|(file, name, _)| ((*file).to_owned(), (*name).to_owned()))
        .collect();
    let new: Vec<_> = large.difference(&excepted).collect();
    assert!(new.is_empty(), "too large: {new:?}");
    let gone: Vec<_> = excepted.difference(&large).collect();
    assert!(gone.is_empty(), "no exceptions any more: {gone:?}");
}

#[test]
fn functions_are_measured() {
    let text = "fn one<T: Into<u8>>(a: T, b: &[(u8, u8)]) -> u8 {\n    0\n}\n\nimpl A {\n    pub(crate) const fn two(\n        &self,\n        f: impl Fn(u8, u8) -> u8,\n    ) -> u8 {\n        1\n    }\n    fn three();\n    fn four() {}\n}\n";
    let expected = [("one", 3, 2), ("two", 6, 2), ("three", 1, 0), ("four", 1, 0)];
    let expected = expected.map(|(name, lines, parameters)| (name.to_owned(), lines, parameters));
    assert_eq!(functions(text), expected);
}
