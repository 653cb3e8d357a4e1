//! Memory that fails under a shared frame: one guest at most is lost, and the host goes on.

use std::time::Duration;

use lacuna_core::Gfn;
use lacuna_guest::Task;

use super::content::{P2M_RAM_SHARED, rounds};
use super::named::taken;
use super::windows::{SEVEN, with_symbols};
use crate::engine::{Direct, refused};
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::Plan;
use crate::host::{Host, wait_until};
use crate::tool::REFUSED;

/// How long the guest may take for an order.
const LIMIT: Duration = Duration::from_secs(120);
/// Xen's `p2m_ram_broken` (`xen/arch/x86/include/asm/p2m.h`).
const P2M_RAM_BROKEN: u32 = 13;
/// Pages taken: each two are equal.
const PAGES: u32 = 8;

/// A guest beside the one with the errors.
const OTHER: Plan = Plan {
    name: "other",
    mib: 128,
    ..SEVEN
};

/// Errors in a frame shared by content, then in a zero frame. Nothing is put on zero frames any more from
/// there on, on this host, so this comes last.
pub(crate) fn shared_frames(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&SEVEN)?;
    let mut other = host.create(&OTHER)?;
    let gfns = taken(&mut guest, PAGES, 2)?;
    rounds(host, &guest, 2)?;
    let direct = Direct::open(guest.domain)?;

    host.note("an error in a frame that two pages share")?;
    let [first, second, third, ..] = gfns[..] else {
        return Err(differs(
            "the guest's pages",
            "three at least",
            &format!("{gfns:?}"),
        ));
    };
    let frame = at(&direct, first)?;
    equal("frames of two equal pages", &frame, &at(&direct, second)?)?;
    equal("the type of its pages", &P2M_RAM_SHARED, &frame.0)?;
    let shared = host.lacuna(&["status", guest.name])?.number("content_gfns")?;
    direct.fail_memory(frame.1)?;
    wait_until("the pages are taken away", LIMIT, || {
        Ok((at(&direct, first)?.0 == P2M_RAM_BROKEN).then_some(()))
    })?;
    equal(
        "the type of the other page",
        &P2M_RAM_BROKEN,
        &at(&direct, second)?.0,
    )?;
    equal(
        "the type of a page on another frame",
        &P2M_RAM_SHARED,
        &at(&direct, third)?.0,
    )?;
    let left = host.lacuna(&["status", guest.name])?.number("content_gfns")?;
    equal("pages that share no more", &2, &(shared - left))?;
    guest.check_health()?;
    other.check_health()?;

    host.note("the guest reads one of them")?;
    guest.send(Task::ReadPage { page: 0 })?;
    wait_until("the guest is crashed", LIMIT, || {
        let listing = host.xl(&["list", guest.name])?;
        let state = listing
            .lines()
            .nth(1)
            .and_then(|line| line.split_whitespace().nth(4));
        Ok(state.is_some_and(|state| state.contains('c')).then_some(()))
    })?;
    other.check_health()?;
    guest.destroy(host)?;

    host.note("an error in a zero frame")?;
    with_symbols(host, &["attach"], &other)?;
    host.lacuna(&["dedup", other.name, "--until-stable"])?;
    let direct = Direct::open(other.domain)?;
    let gfn = taken(&mut other, 1, 1)?.first().copied().unwrap_or_default();
    let frame = at(&direct, gfn)?;
    equal("the type of a given-back page", &P2M_RAM_SHARED, &frame.0)?;
    direct.fail_memory(frame.1)?;
    wait_until("nothing is given back any more", LIMIT, || {
        let answer = host.ask_lacuna(&["dedup", other.name])?;
        Ok((answer.status == REFUSED).then_some(()))
    })?;
    equal("where the page is", &frame, &at(&direct, gfn)?)?;
    // What it takes of its memory must be zero.
    let before = host.lacuna(&["status", other.name])?.number("unshared")?;
    other.grow(32, LIMIT)?;
    let unshared = host.lacuna(&["status", other.name])?.number("unshared")? - before;
    host.figure("unshared", unshared)?;
    ensure(unshared > 0, "pages taken off zero frames", "some", "none")?;
    other.check_health()
}

/// Returns the type of a page's entry, and its frame.
fn at(direct: &Direct, gfn: u64) -> Result<(u32, u64)> {
    let found = direct.engine.explain(Gfn::new(gfn));
    let found = found.map_err(|error| refused(&error))?;
    Ok((found.p2m_type, found.mfn))
}
