//! Under mandatory access control: the policy lets dom0 use Lacuna on a guest whose label allows it.

use std::time::Duration;

use lacuna_guest::Task;

use crate::failure::{Result, ensure};
use crate::guest::Plan;
use crate::host::Host;

/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(180);

/// A guest with the label of an ordinary guest gives its free memory back.
pub(crate) fn labelled(host: &mut Host) -> Result<()> {
    let plan = Plan {
        configuration: "seclabel=\"system_u:system_r:domU_t\"",
        ..Plan::stock("labelled", "6.12")
    };
    let mut guest = host.create(&plan)?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    host.lacuna(&["attach", guest.name])?;
    let shared = host.lacuna(&["dedup", guest.name])?.number("shared")?;
    host.figure("shared", shared)?;
    ensure(
        shared > 0,
        "pages given back under FLASK",
        "more than none",
        "none",
    )?;
    guest.check_health()
}
