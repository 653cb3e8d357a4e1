//! `cargo lab doctor`: looks at the machine, at the archive and at the cache before anything is downloaded or
//! built, and says of each what to do where it will not do. [`cheap`] is the part that every command runs
//! first.

mod machine;
mod origins;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::context::Context;
use crate::error::{Error, Result};

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(30);

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// As it should be.
    Ok,
    /// The lab works, but not as well as it could, or not all of it.
    Warn,
    /// The lab cannot do its work.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// What was looked at.
    pub(crate) name: String,
    /// How it ended.
    pub(crate) state: State,
    /// What was seen, in one line.
    pub(crate) seen: String,
    /// What to do about it; nothing where all is well.
    pub(crate) remedy: Option<String>,
}

impl Check {
    fn ok(name: &str, seen: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            state: State::Ok,
            seen: seen.into(),
            remedy: None,
        }
    }

    fn warn(name: &str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            state: State::Warn,
            remedy: Some(remedy.into()),
            ..Self::ok(name, seen)
        }
    }

    fn fail(name: &str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            state: State::Fail,
            ..Self::warn(name, seen, remedy)
        }
    }
}

/// Looks at what costs well below a second: root, disk, memory, programs.
pub(crate) fn cheap(context: &Context) -> Vec<Check> {
    machine::checks(context)
}

/// Does that, prints what is not as it should be, and fails if anything fails. Whether it runs as root is
/// left to the steps that need it: tests of the host's own do not.
pub(crate) fn quick(context: &Context) -> Result<()> {
    let checks: Vec<Check> = cheap(context)
        .into_iter()
        .filter(|check| check.name != machine::ROOT)
        .collect();
    let trouble: Vec<Check> = checks
        .iter()
        .filter(|check| check.state != State::Ok)
        .cloned()
        .collect();
    eprint!("{}", render(&trouble));
    refuse(&checks)
}

/// Looks at everything, prints it, and fails if anything fails.
pub(crate) fn run(context: &Context, json: bool) -> Result<()> {
    let until = Instant::now() + LIMIT;
    let mut checks = cheap(context);
    checks.extend(origins::checks(context, until));
    if json {
        println!("{}", render_json(&checks));
    } else {
        print!("{}", render(&checks));
    }
    refuse(&checks)
}

/// Fails if any of the checks does.
pub(crate) fn refuse(checks: &[Check]) -> Result<()> {
    let failed = checks.iter().filter(|check| check.state == State::Fail).count();
    if failed == 0 {
        return Ok(());
    }
    Err(Error::Unfit {
        failed,
        total: checks.len(),
    })
}

/// A line for each check: state, name, what was seen; and where there is one, the remedy below it.
pub(crate) fn render(checks: &[Check]) -> String {
    let width = checks
        .iter()
        .map(|check| check.name.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let state = match check.state {
            State::Ok => "ok  ",
            State::Warn => "warn",
            State::Fail => "FAIL",
        };
        let remedy = check
            .remedy
            .as_deref()
            .map_or_else(String::new, |remedy| format!(" -> {remedy}"));
        // Writing to a string does not fail.
        let _ = writeln!(text, "{state}  {:width$}  {}{remedy}", check.name, check.seen);
    }
    text
}

/// The same for programs.
fn render_json(checks: &[Check]) -> String {
    #[derive(Serialize)]
    struct Report<'a> {
        fit: bool,
        checks: &'a [Check],
    }
    let fit = refuse(checks).is_ok();
    // A structure of texts and enumerations can always be written.
    serde_json::to_string_pretty(&Report { fit, checks }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn made() -> Vec<Check> {
        vec![
            Check::ok("root", "user id 0"),
            Check::warn("disk", "1 GiB", "make room"),
            Check::fail("programs", "no cargo", "install Rust"),
        ]
    }

    #[test]
    fn a_failed_check_fails_the_whole_and_a_warning_does_not() {
        let error = refuse(&made()).unwrap_err();
        assert!(matches!(error, Error::Unfit { failed: 1, total: 3 }), "{error}");
        assert!(refuse(&made()[..2]).is_ok());
    }

    #[test]
    fn a_check_is_a_line_with_its_remedy() {
        assert_eq!(
            render(&made()),
            "ok    root      user id 0\n\
             warn  disk      1 GiB -> make room\n\
             FAIL  programs  no cargo -> install Rust\n"
        );
    }

    #[test]
    fn programs_read_the_same() {
        let read: serde_json::Value = serde_json::from_str(&render_json(&made())).unwrap();
        assert_eq!(read["fit"], false);
        assert_eq!(read["checks"][1]["state"], "warn");
        assert_eq!(read["checks"][2]["remedy"], "install Rust");
        assert_eq!(read["checks"][0]["remedy"], serde_json::Value::Null);
    }
}
