//! A new kernel in the same domain: the old one's memory map lies on in memory and tells lies.

use std::time::Duration;

use lacuna_guest::Task;

use crate::engine::Direct;
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::Plan;
use crate::host::{Host, wait_until};
use crate::tool::REFUSED;

/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(180);
/// How long the old kernel may take to shut itself down, and the session to end.
const END_LIMIT: Duration = Duration::from_secs(90);

/// A kexec into the same kernel, both without KASLR, so that addresses and page tables are the same again:
/// sharing ends, `status` says why, and no page is shared on the old memory map's word.
///
/// A Xen-aware Linux asks for Xen's soft reset on the way, which the toolstack carries out for HVM guests
/// only (it destroys a PVH guest that asks for one). It is kept from doing so, and the guest let go on by
/// itself. The second kernel then does not come up, with Lacuna or without, so what a second kernel does is
/// not looked at here. Why it does not is not confirmed; perhaps Xen, without the reset, goes on writing
/// the old kernel's per-processor areas, and the digest that kexec's purgatory checks fails.
pub(crate) fn ends_sharing(host: &mut Host) -> Result<()> {
    let plan = Plan {
        initrd: "kexec.initrd",
        configuration: "on_soft_reset=\"preserve\"",
        extra: "nokaslr",
        ..Plan::stock("kexec", "6.12")
    };
    let mut guest = host.create(&plan)?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    host.lacuna(&["attach", guest.name])?;
    host.lacuna(&["dedup", guest.name, "--until-stable"])?;
    let before = host.lacuna(&["status", guest.name])?.number("shared")?;
    host.figure("shared_before", before)?;
    ensure(
        before > 0,
        "pages shared before the kexec",
        "more than none",
        "none",
    )?;

    host.note("kexec")?;
    guest.order(Task::Kexec, AGENT_LIMIT)?;
    wait_until("the old kernel shuts itself down", END_LIMIT, || {
        // The state's letters, of which `s` is the one for a domain that has shut itself down.
        let listing = host.xl(&["list", guest.name])?;
        let state = listing
            .lines()
            .nth(1)
            .and_then(|line| line.split_whitespace().nth(4));
        Ok(state.is_some_and(|state| state.contains('s')).then_some(()))
    })?;
    Direct::open(guest.domain)?.resume()?;

    let mut refusals = 0_u64;
    wait_until("the session ends", END_LIMIT, || {
        let answer = host.ask_lacuna(&["dedup", guest.name])?;
        if answer.status == 0 {
            // Still in the old kernel, on its way out: what it calls free is free.
            return Ok(None);
        }
        equal(
            "exit status of `lacuna dedup` after the kexec",
            &REFUSED,
            &answer.status,
        )?;
        refusals += 1;
        let status = host.lacuna(&["status", guest.name])?;
        let state = status.body.get("state").and_then(|state| state.as_str());
        Ok((state == Some("ended")).then_some(()))
    })?;
    host.figure("refusals", refusals)?;
    let status = host.lacuna(&["status", guest.name])?;
    let why = status.body.get("last_refusal").cloned().unwrap_or_default();
    host.figure("last_refusal", why.clone())?;
    ensure(
        !why.is_null(),
        "`last_refusal` of `lacuna status`",
        "the check that failed",
        "nothing",
    )?;
    let after = status.number("shared")?;
    host.figure("shared_after", after)?;

    // Ended for good: not even the same question again is answered, and nothing more is shared.
    let again = host.ask_lacuna(&["dedup", guest.name])?;
    equal("exit status of a further `lacuna dedup`", &REFUSED, &again.status)?;
    equal(
        "pages shared by then",
        &after,
        &host.lacuna(&["status", guest.name])?.number("shared")?,
    )?;
    let identified = host.ask_lacuna(&["identify", guest.name])?;
    if identified.status == 0 {
        return Err(differs(
            "`lacuna identify` while no kernel runs",
            "a refusal",
            &identified.body.to_string(),
        ));
    }
    Ok(())
}
