//! Under mandatory access control: the policy lets dom0 use Lacuna on a guest whose label allows it, and on
//! no other.

use std::time::Duration;

use lacuna_guest::Task;

use super::content::{KINDS, Known, all_shared, intact};
use super::refusals::{Refusal, SMALL_MIB, all_refused_while_stopped, keep_profile, refused_while_stopped};
use crate::failure::{Result, ensure};
use crate::guest::Plan;
use crate::host::Host;

/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(180);
/// `lacuna`'s exit status for a failure that is not the guest's.
const FAILED: i32 = 1;

/// What `lacuna` says when the policy is against it.
const DENIED: Refusal = Refusal {
    status: FAILED,
    words: "the security policy (XSM) forbids this operation",
    figure: "denied",
};
/// The label of an ordinary guest.
const ORDINARY: &str = "seclabel=\"system_u:system_r:domU_t\"";

/// A guest whose label dom0 may not reclaim.
fn protected() -> Plan {
    Plan {
        mib: SMALL_MIB,
        configuration: "seclabel=\"system_u:system_r:prot_domU_t\"",
        ..Plan::stock("protected", "6.12")
    }
}

/// A guest with the label of an ordinary guest gives its free memory back. On one with a label whose domains
/// dom0 may create and save, but not reclaim (Xen's `prot_domU_t`, which has `migrate_domain_out` and no
/// `reclaim_domain`), dom0 may ask, and change nothing.
pub(crate) fn labelled(host: &mut Host) -> Result<()> {
    let plan = Plan {
        configuration: ORDINARY,
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
    refused_while_stopped(host, &protected(), &DENIED)
}

/// Equal pages: of an ordinary guest, in a trust group, they come to share frames. Of a protected guest dom0
/// may share none, nor put it into a group.
pub(crate) fn content(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&Plan {
        mib: 256,
        configuration: ORDINARY,
        ..Plan::stock("labelled", "6.12")
    })?;
    let known = Known::make(&mut guest, KINDS, 16, 64)?;
    let group = [
        "dedup",
        guest.name,
        "--mode",
        "dedup",
        "--trust-group",
        "tenant-a",
    ];
    let merged = host.lacuna(&group)?.number("merged")?;
    host.figure("merged", merged)?;
    all_shared(&guest, &known)?;
    intact(&mut guest, "when they share frames")?;
    guest.order(Task::PatternRewrite { every: 2 }, AGENT_LIMIT)?;
    intact(&mut guest, "after every second was written")?;
    guest.check_health()?;
    let commands: [&[&str]; 2] = [
        &["dedup", "--mode", "dedup"],
        &["dedup", "--mode", "dedup", "--trust-group", "tenant-a"],
    ];
    all_refused_while_stopped(host, &protected(), &commands, &DENIED)
}
