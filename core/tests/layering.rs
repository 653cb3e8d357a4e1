//! The shape of the core's sources: modules lie in layers, and files and functions stay small.
//!
//! A module may use those that stand before it in [`LAYERS`], so there is no circle among them.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../../tests/shape.rs"]
mod shape;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use shape::{Exception, assert_small, files};

/// The top modules, the lowest first.
const LAYERS: &[&str] = &[
    "addr", "status", "boundary", "abi", "bitmap", "refusal", "tables", "guest", "profile", "domain",
    "judge", "share", "content", "session",
];
/// What is larger, and why.
const EXCEPTIONS: &[Exception] = &[];

fn sources() -> Vec<(String, String)> {
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

/// The text without its comments, in one line.
fn code(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("//").next().unwrap());
    lines.map(str::trim).collect::<Vec<_>>().join(" ")
}

/// The paths that begin with `start`. Braces are taken apart, so each item of a group is a path of its own.
fn paths(code: &str, start: &str) -> Vec<String> {
    let is_path = |letter: &char| letter.is_alphanumeric() || "_:".contains(*letter);
    let mut found = Vec::new();
    for (at, _) in code.match_indices(start) {
        if code[..at].ends_with(|before: char| before.is_alphanumeric() || "_:$".contains(before)) {
            continue;
        }
        let rest = &code[at + start.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 1;
            let closing = |letter: char| {
                depth += i32::from(letter == '{') - i32::from(letter == '}');
                depth == 0
            };
            let group = &group[..group.find(closing).unwrap()];
            // A group within a group belongs to the path before it, which is in the outer one.
            let mut depth = 0;
            let items = group.split(|letter| {
                depth += i32::from(letter == '{') - i32::from(letter == '}');
                depth == 0 && letter == ','
            });
            found.extend(items.map(|item| item.trim().chars().take_while(is_path).collect()));
        } else {
            found.push(rest.chars().take_while(is_path).collect());
        }
    }
    found.retain(|path: &String| !path.is_empty());
    found
}

/// The module of each name that `lib.rs` re-exports.
fn exports(lib: &str) -> BTreeMap<String, String> {
    let code = code(lib);
    let mut exports = BTreeMap::new();
    for statement in code.split(';') {
        let Some((_, path)) = statement.split_once("pub use ") else {
            continue;
        };
        let (module, _) = path.split_once("::").unwrap();
        for name in paths(path, &format!("{module}::")) {
            exports.insert(name, module.to_owned());
        }
    }
    exports
}

/// What is wrong with the uses of one file.
fn misuses(file: &str, text: &str, exports: &BTreeMap<String, String>) -> Vec<String> {
    let rank = |module: &str| LAYERS.iter().position(|layer| *layer == module);
    let own = file.split(['/', '.']).next().unwrap();
    if own == "lib" {
        return Vec::new();
    }
    let Some(own_rank) = rank(own) else {
        return vec![format!("{file}: module `{own}` is in no layer")];
    };
    let mut wrong = Vec::new();
    for path in paths(&code(text), "crate::") {
        let name = path.split("::").next().unwrap();
        let used = exports.get(name).map_or(name, String::as_str);
        match rank(used) {
            None => wrong.push(format!("{file}: `{path}` is in no layer")),
            Some(rank) if rank > own_rank => {
                wrong.push(format!(
                    "{file}: uses `{path}` of `{used}`, which lies above `{own}`"
                ));
            }
            Some(_) => {}
        }
    }
    wrong
}

#[test]
fn no_module_uses_one_above_it() {
    let files = sources();
    let lib = files.iter().find(|(file, _)| file == "lib.rs").unwrap();
    let exports = exports(&lib.1);
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for (file, text) in &files {
        wrong.extend(misuses(file, text, &exports));
        seen.insert(file.split(['/', '.']).next().unwrap());
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    for layer in LAYERS {
        assert!(seen.contains(layer), "there is no module `{layer}`");
    }
}

#[test]
fn a_use_of_what_lies_above_is_seen() {
    let lib =
        "pub use addr::{\n    Gfn, // a number\n    Order,\n};\n#[cfg(a)]\npub use session::Session;\nmod x;";
    let exports = exports(lib);
    for (file, text, expected) in [
        (
            "judge/scan.rs",
            "use crate::session::frames;",
            "`session::frames` of `session`",
        ),
        (
            "judge/scan.rs",
            "use crate::{\n    Gfn,\n    Session,\n};",
            "`Session` of `session`",
        ),
        (
            "judge/scan.rs",
            "use crate::{Gfn, share::{Slice, Steps}, Order};",
            "`share::` of `share`",
        ),
        (
            "judge/scan.rs",
            "fn a(b: &crate::Session) {}",
            "`Session` of `session`",
        ),
        (
            "judge/scan.rs",
            "use crate::{Gfn, Order};\nuse crate::judge::free;",
            "",
        ),
        ("session/mod.rs", "use crate::{Session, Gfn};", ""),
        ("judge/scan.rs", "/// As [`crate::Session`].", ""),
        ("other.rs", "", "`other` is in no layer"),
        (
            "judge/scan.rs",
            "use crate::other::A;",
            "`other::A` is in no layer",
        ),
    ] {
        let wrong = misuses(file, text, &exports).join("\n");
        assert_eq!(wrong.is_empty(), expected.is_empty(), "{text}: {wrong}");
        assert!(wrong.contains(expected), "{text}: {wrong}");
    }
}

#[test]
fn files_and_functions_are_small_or_have_a_reason() {
    assert_small(&sources(), EXCEPTIONS);
}
