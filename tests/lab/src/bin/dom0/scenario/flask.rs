//! Under mandatory access control: the policy lets dom0 use Lacuna on a guest whose label allows it, and on no other.

use std::time::Duration;

use lacuna_guest::Task;

use super::refusals::{Refusal, SMALL_MIB, keep_profile, refused_while_stopped};
use crate::failure::{Result, ensure};
use crate::guest::Plan;
use crate::host::Host;

/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(180);
/// `lacuna`'s exit status for a failure that is not the guest's.
const FAILED: i32 = 1;

/// A guest with the label of an ordinary guest gives its free memory back. On one with a label whose domains dom0 may
/// create and save, but not reclaim (Xen's `prot_domU_t`, which has `migrate_domain_out` and no `reclaim_domain`), dom0 may
/// ask, and change nothing.
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
    guest.check_health()?;

    keep_profile(&guest)?;
    let protected = Plan {
        mib: SMALL_MIB,
        configuration: "seclabel=\"system_u:system_r:prot_domU_t\"",
        ..Plan::stock("protected", "6.12")
    };
    let denied = Refusal {
        status: FAILED,
        words: "the security policy (XSM) forbids this operation",
        figure: "denied",
    };
    refused_while_stopped(host, &protected, &denied)
}
