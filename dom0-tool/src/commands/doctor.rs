//! `lacuna doctor`: what is wrong with this host.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use super::Out;
use crate::daemon::config::Config;
use crate::daemon::run::{LOCK, load};
use crate::ops::doctor::{Check, Expected, Verdict, examine, exit_status};
use crate::os::Sources;

/// Checks the host, shows the findings, and returns them with the exit status.
pub(super) fn run(out: Out) -> (Value, u8) {
    let (config, first) = match load(None) {
        Ok(config) => (config, None),
        Err(error) => {
            let remedy = "correct the file; `lacunad --check` says whether it is right";
            let check = Check::wrong("configuration", Verdict::Bad, error.to_string(), remedy);
            (Config::default(), Some(check))
        }
    };
    let expected = Expected {
        reserve_mib: config.reserve_mib,
        sources: Sources {
            layouts: config.layouts,
            ..Sources::default()
        },
    };
    let mut checks = examine(&expected);
    checks.extend(first);
    checks.push(daemon(Path::new(LOCK)));
    for check in &checks {
        out.line(line(check));
    }
    (answer(&checks), exit_status(&checks))
}

/// Returns whether the daemon runs, by the lock that it holds.
fn daemon(lock: &Path) -> Check {
    let subject = "daemon";
    let is_held = File::open(lock).is_ok_and(|file| {
        let free = flock(&file, FlockOperation::NonBlockingLockShared);
        free.is_err_and(|error| error == rustix::io::Errno::WOULDBLOCK)
    });
    if is_held {
        return Check::good(subject, "lacunad runs");
    }
    Check::wrong(
        subject,
        Verdict::Warning,
        "lacunad does not run: nothing is given back by itself",
        "`systemctl enable --now lacunad`; `systemctl status lacunad` says why it ended",
    )
}

fn line(check: &Check) -> String {
    let mut text = format!("{:8} {}: {}", check.verdict.name(), check.subject, check.what);
    if let Some(remedy) = &check.remedy {
        text.push_str("\n         help: ");
        text.push_str(remedy);
    }
    text
}

fn answer(checks: &[Check]) -> Value {
    let each: Vec<Value> = checks
        .iter()
        .map(|check| {
            json!({
                "subject": check.subject,
                "verdict": check.verdict.name(),
                "what": check.what,
                "remedy": check.remedy,
            })
        })
        .collect();
    json!({ "checks": each, "exit_status": exit_status(checks) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_is_known_by_its_lock() {
        let place = tempfile::tempdir().expect("a folder");
        let path = place.path().join("lacunad.lock");
        assert_eq!(daemon(&path).verdict, Verdict::Warning, "there is no lock");
        let file = File::create(&path).expect("a file");
        assert_eq!(
            daemon(&path).verdict,
            Verdict::Warning,
            "left by one that was killed"
        );
        flock(&file, FlockOperation::NonBlockingLockExclusive).expect("locked");
        assert_eq!(daemon(&path).verdict, Verdict::Good);
    }

    #[test]
    fn a_finding_is_shown_with_its_remedy() {
        let check = Check::wrong("xl", Verdict::Warning, "it loads another", "run ldconfig");
        assert_eq!(
            line(&check),
            "warning  xl: it loads another\n         help: run ldconfig"
        );
        let answer = answer(&[check]);
        assert_eq!(answer["exit_status"], 3);
        assert_eq!(answer["checks"][0]["verdict"], "warning");
    }
}
