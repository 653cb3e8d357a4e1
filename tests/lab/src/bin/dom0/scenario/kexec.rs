//! A new kernel in the same domain: the old one's memory map lies on in memory and tells lies.

use std::time::Duration;

use lacuna_guest::{Report, Task};

use crate::failure::{Result, differs, ensure};
use crate::guest::Plan;
use crate::host::Host;

/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(180);

/// A kexec into the same kernel, both without KASLR, ends sharing with a clear state, loses nothing, and the new kernel
/// can be attached in its turn.
///
/// Runs under `--full` only, because it has not been seen to hold: libxl carries out a soft reset, through which a
/// Xen-aware Linux goes on kexec, for HVM guests only, and destroys a PVH guest that asks for one.
pub(crate) fn ends_sharing(host: &mut Host) -> Result<()> {
    let plan = Plan {
        initrd: "kexec.initrd",
        extra: "nokaslr",
        ..Plan::stock("kexec", "6.12")
    };
    let mut guest = host.create(&plan)?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    host.lacuna(&["attach", guest.name])?;
    let first = host.lacuna(&["dedup", guest.name])?.number("shared")?;
    host.figure("shared_before", first)?;
    host.note("kexec")?;
    guest.order(Task::Kexec, AGENT_LIMIT)?;
    guest.wait_ready()?;

    let refused = host.ask_lacuna(&["dedup", guest.name])?;
    ensure(
        refused.status != 0,
        "`lacuna dedup` after the kexec",
        "a refusal",
        &refused.body.to_string(),
    )?;
    let status = host.lacuna(&["status", guest.name])?;
    let state = status
        .body
        .get("state")
        .and_then(|state| state.as_str())
        .unwrap_or_default()
        .to_owned();
    host.figure("state_after", state.clone())?;
    // Linux goes through Xen's soft reset on kexec, which drops the profile; without it the guard ends it.
    ensure(
        ["ended", "empty"].contains(&state.as_str()),
        "the state after the kexec",
        "ended or empty",
        &state,
    )?;
    guest.check_health()?;

    host.lacuna(&["attach", guest.name])?;
    let again = host.lacuna(&["dedup", guest.name])?.number("shared")?;
    host.figure("shared_after", again)?;
    match guest.order(Task::Grow { mib: 200 }, AGENT_LIMIT)? {
        Report::Grown { dirty: 0, .. } => {}
        other => {
            return Err(differs(
                "memory of the new kernel",
                "all zero",
                &format!("{other:?}"),
            ));
        }
    }
    guest.check_health()
}
