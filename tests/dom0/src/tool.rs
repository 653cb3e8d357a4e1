//! The product's command as a scenario runs it: `lacuna --json …`.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::failure::{Failure, Result, differs};

/// `lacuna`'s exit status for "refused as unsafe".
pub(crate) const REFUSED: i32 = 3;

/// Where the command is: in the lab's own dom0, and where the package has it.
const PLACES: [&str; 2] = ["/usr/bin/lacuna", "/usr/sbin/lacuna"];

/// What `lacuna` answered.
pub(crate) struct Answer {
    /// Its exit status.
    pub(crate) status: i32,
    /// The object it printed.
    pub(crate) body: Value,
}

impl Answer {
    /// Returns the member `name`, which must be a whole number.
    pub(crate) fn number(&self, name: &str) -> Result<u64> {
        number(&self.body, name)
    }
}

/// Returns the member of `body` at `path` (members separated by dots), which must be a whole number.
pub(crate) fn number(body: &Value, path: &str) -> Result<u64> {
    let found = path.split('.').try_fold(body, |value, name| value.get(name));
    found.and_then(Value::as_u64).ok_or_else(|| {
        differs(
            &format!("`{path}` in lacuna's answer"),
            "a number",
            &body.to_string(),
        )
    })
}

/// Runs `lacuna` and returns what it answered, whatever that is.
pub(crate) fn ask(arguments: &[&str]) -> Result<Answer> {
    let line = format!("lacuna --json {}", arguments.join(" "));
    let [own, packaged] = PLACES;
    let program = if Path::new(own).exists() { own } else { packaged };
    let ran = Command::new(program).arg("--json").args(arguments).output()?;
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    let Some(status) = ran.status.code() else {
        return Err(Failure::Program {
            command: line,
            status: ran.status.to_string(),
            output: text,
        });
    };
    let body = serde_json::from_str(&text).map_err(|error| Failure::Program {
        command: line,
        status: format!("{status}, and no JSON ({error})"),
        output: format!("{text}{}", String::from_utf8_lossy(&ran.stderr)),
    })?;
    Ok(Answer { status, body })
}
