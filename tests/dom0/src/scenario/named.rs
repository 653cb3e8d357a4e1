//! Pages that a guest names to Xen, or gives up, while they are on zero frames or share one with an equal
//! page: the guest does not know, and must fare as with any other page. The Windows-like guest makes the
//! hypercalls, for it is its own master.

use std::time::Duration;

use lacuna_core::Gfn;
use lacuna_core::abi::Explanation;
use lacuna_guest::{Interface, Report, Task, Way};

use super::content::{P2M_RAM_SHARED, rounds};
use super::windows::{SEVEN, with_symbols};
use crate::engine::{Direct, refused};
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::Guest;
use crate::host::{Host, settled_free_mib, xen_release};

/// How long the guest may take for an order.
const LIMIT: Duration = Duration::from_secs(120);
/// Pages that go in each way: with two to a frame, the frames of one way are more than the host's free memory
/// may lack.
const PAGES_PER_WAY: u32 = 1600;
/// Xen's error for an operation that it does not know (`public/errno.h`).
const ENOSYS: u64 = 38;
/// What there is room for beyond the limit, in pages.
const BEYOND: u64 = 512;
/// Where the guest has nothing: at 8 GiB.
const NOTHING_AT: u64 = 1 << 21;

/// Where a guest's pages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    /// On zero frames: they are given back, and nobody has written to them.
    Zero,
    /// Each two on one frame.
    Shared,
}

impl On {
    const fn copies(self) -> u32 {
        match self {
            Self::Zero => 1,
            Self::Shared => 2,
        }
    }

    /// Returns the counter of such pages.
    const fn counter(self) -> &'static str {
        match self {
            Self::Zero => "zero_gfns",
            Self::Shared => "content_gfns",
        }
    }

    /// Makes the guest take `pages` pages which are there, and returns the guest frames of the first of them.
    fn take(self, host: &mut Host, guest: &mut Guest, pages: u32) -> Result<Vec<u64>> {
        if self == Self::Zero {
            with_symbols(host, &["attach"], guest)?;
            host.lacuna(&["dedup", guest.name, "--until-stable"])?;
        }
        let gfns = taken(guest, pages, self.copies())?;
        if self == Self::Shared {
            rounds(host, guest, 3)?;
        }
        Ok(gfns)
    }

    /// Fails unless the page is there.
    fn expect(self, direct: &Direct, gfn: u64, what: &str) -> Result<()> {
        let found = explain(direct, gfn)?;
        equal(
            &format!("where the page for {what} is"),
            &(P2M_RAM_SHARED, self == Self::Zero),
            &(found.p2m_type, found.zero_frame != 0),
        )
    }
}

/// Makes the guest take pages off its zeroed list, and make each `copies` of them equal.
pub(super) fn taken(guest: &mut Guest, pages: u32, copies: u32) -> Result<Vec<u64>> {
    match guest.order(Task::TakePages { pages, copies }, LIMIT)? {
        Report::Taken { pages: taken, gfns } if taken == u64::from(pages) => Ok(gfns),
        other => Err(differs(
            "the guest's answer",
            &format!("{pages} pages taken"),
            &format!("{other:?}"),
        )),
    }
}

fn explain(direct: &Direct, gfn: u64) -> Result<Explanation> {
    direct
        .engine
        .explain(Gfn::new(gfn))
        .map_err(|error| refused(&error))
}

/// Given-back pages, for every interface that takes one.
pub(crate) fn free_pages(host: &mut Host) -> Result<()> {
    let guest = host.create(&SEVEN)?;
    named(host, guest, On::Zero, &Interface::ALL)
}

/// Pages that share a frame with an equal one, for every interface.
pub(crate) fn equal_pages(host: &mut Host) -> Result<()> {
    let guest = host.create(&SEVEN)?;
    named(host, guest, On::Shared, &Interface::ALL)
}

/// Pages in both places, for the interfaces that a guest of Hyper-V has.
pub(crate) fn viridian_pages(host: &mut Host) -> Result<()> {
    for on in [On::Zero, On::Shared] {
        let mut guest = Guest::start_as(host, SEVEN.name, &SEVEN.write()?, |domain| {
            Direct::open(domain)?.enable_viridian()
        })?;
        guest.wait_ready()?;
        named(host, guest, on, &Interface::VIRIDIAN)?;
        host.xl(&["destroy", SEVEN.name])?;
    }
    Ok(())
}

/// Makes a guest hand pages which are there to the interfaces: each works, and has got a page of the guest's
/// own.
fn named(host: &mut Host, mut guest: Guest, on: On, interfaces: &[Interface]) -> Result<()> {
    let pages = u32::try_from(interfaces.len()).unwrap_or(u32::MAX) * on.copies();
    let gfns = on.take(host, &mut guest, pages)?;
    let direct = Direct::open(guest.domain)?;
    let release = xen_release()?;
    let (mut failed, mut absent) = (Vec::new(), 0);
    let every = on.copies() as usize;
    for (page, (gfn, interface)) in (0..)
        .step_by(every)
        .zip(gfns.iter().step_by(every).zip(interfaces.iter().copied()))
    {
        host.note(&format!("{interface:?}: page {gfn:#x}"))?;
        on.expect(&direct, *gfn, &format!("{interface:?}"))?;
        let is_there = interface.since().is_none_or(|first| release >= first);
        match guest.order(Task::HandPage { page, interface }, LIMIT)? {
            // Refused before the page is looked at: there is nothing to see.
            Report::Handed { error: ENOSYS } if !is_there => absent += 1,
            Report::Handed { error: 0 } if is_there => {
                if explain(&direct, *gfn)?.p2m_type == P2M_RAM_SHARED {
                    failed.push(format!("{interface:?}: accepted, and the page is still shared"));
                }
            }
            other => failed.push(format!("{interface:?}: {other:?}")),
        }
    }
    host.figure(&format!("interfaces_{on:?}"), interfaces.len() as u64 - absent)?;
    host.figure(&format!("interfaces_that_this_xen_lacks_{on:?}"), absent)?;
    ensure(
        failed.is_empty(),
        &format!("interfaces that were handed pages ({on:?})"),
        "each works as with any other page",
        &failed.join("; "),
    )?;
    guest.check_health()
}

/// Pages leave a guest in every way that there is for them: they are counted no more, and nothing of them is
/// left when the guest is gone.
pub(crate) fn given_up(host: &mut Host) -> Result<()> {
    let before = settled_free_mib()?;
    for on in [On::Zero, On::Shared] {
        let mut guest = host.create(&SEVEN)?;
        let ways = u32::try_from(Way::ALL.len()).unwrap_or(u32::MAX);
        on.take(host, &mut guest, ways * PAGES_PER_WAY)?;
        for (from, way) in (0..).step_by(PAGES_PER_WAY as usize).zip(Way::ALL) {
            give_up(host, &mut guest, on, from, way)?;
        }
        guest.check_health()?;
        guest.destroy(host)?;
    }
    host.expect_free(before)
}

/// Makes the guest give up [`PAGES_PER_WAY`] of the pages that it took.
fn give_up(host: &mut Host, guest: &mut Guest, on: On, from: u32, way: Way) -> Result<()> {
    let pages = u64::from(PAGES_PER_WAY);
    // Xen has no exchange for guests whose memory it translates (`steal_page()`). It unshares what it looks
    // at before it says so.
    let taken = if way == Way::Exchange { 0 } else { pages };
    let there = host.lacuna(&["status", guest.name])?.number(on.counter())?;
    let task = Task::GiveUp {
        from,
        pages: PAGES_PER_WAY,
        way,
    };
    let sent = guest.send(task)?;
    equal(
        &format!("what comes of {way:?} ({on:?})"),
        &Report::GivenUp { pages: taken },
        &guest.answer(&sent, LIMIT)?,
    )?;
    let gone = there.saturating_sub(host.lacuna(&["status", guest.name])?.number(on.counter())?);
    host.figure(&format!("{on:?}_{way:?}"), gone)?;
    // A page in a hundred may not have been found in so few rounds.
    ensure(
        gone <= pages && gone * 100 >= taken * 99,
        &format!("pages that {way:?} took off ({on:?})"),
        &format!("{taken}, less one in a hundred at most"),
        &gone.to_string(),
    )
}

/// Pages that a toolstack shared by Xen's own hypercalls, more than the guest may own: unshared, they do not
/// exceed its limit.
pub(crate) fn stock_limits(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&SEVEN)?;
    // Two, so that they are not zero.
    let gfns = taken(&mut guest, 2, 2)?;
    let source = gfns.first().copied().unwrap_or_default();
    let direct = Direct::open(guest.domain)?;
    // From here on the domain is one that Lacuna knows.
    explain(&direct, source)?;
    let most = direct.most_pages()?;
    let pages = most.saturating_sub(direct.pages()?) + BEYOND;
    let sharing = direct.stock_sharing()?;
    let unusable =
        |error: lacuna::xen::privcmd::PrivcmdError| differs("memory sharing", "to work", &error.to_string());
    let nominated = sharing.nominate(Gfn::new(source)).map_err(unusable)?;
    for page in 0..pages {
        sharing
            .add(nominated, Gfn::new(NOTHING_AT + page))
            .map_err(unusable)?;
    }
    let content = host.lacuna(&["status", guest.name])?.number("content_gfns")?;
    equal("pages that are counted as shared by Lacuna", &0, &content)?;
    direct.set_log_dirty(lacuna::xen::lab::provoke::LogDirty::On)?;
    // All but the last: Xen takes the highest page of a domain for one past its end (`modified_memory()`).
    let all_but_one = u32::try_from(pages - 1).unwrap_or(u32::MAX);
    direct.tell_modified(Gfn::new(NOTHING_AT), all_but_one)?;
    direct.set_log_dirty(lacuna::xen::lab::provoke::LogDirty::Off)?;
    let owned = direct.pages()?;
    host.figure("most_pages", most)?;
    host.figure("pages_shared", pages)?;
    host.figure("pages_owned", owned)?;
    ensure(
        owned <= most,
        "the pages that the guest owns",
        &format!("at most {most}, its limit"),
        &owned.to_string(),
    )?;
    // It did get those which it may have.
    equal("the pages that the guest owns", &most, &owned)?;
    guest.check_health()
}
