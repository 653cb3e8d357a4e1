//! The content stage on live guests whose equal pages are known, page by page.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lacuna_core::Gfn;
use lacuna_guest::{Report, Task};

use crate::engine::{Direct, refused};
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{Guest, PAGES_PER_MIB, Plan};
use crate::host::{Host, settled_free_mib};

/// How long the agent may take for what touches all of the guest's memory.
pub(super) const AGENT_LIMIT: Duration = Duration::from_secs(180);
/// Contents that have copies, and how many pages have each: 16 MiB together. Fewer copies than a frame may
/// have sharers.
pub(super) const KINDS: u32 = 32;
pub(super) const COPIES: u32 = 128;
/// Pages that are like no other.
pub(super) const UNIQUE: u32 = 1024;
/// The seed of the contents.
const SEED: u64 = 0x00c0_ffee_1ac4_14a0;
/// Xen's `p2m_ram_rw` and `p2m_ram_shared` (`xen/arch/x86/include/asm/p2m.h`).
const P2M_RAM_RW: u32 = 0;
pub(super) const P2M_RAM_SHARED: u32 = 12;
/// Rounds while a guest goes on writing.
const RACE_ROUNDS: u64 = 25;
/// What the stage may keep: 12 bytes for each of the guest's pages, and Xen about 160 for each page that
/// shares a frame (a reverse map's node, and what a shared frame has), with what its allocator wastes.
const STAGE_BYTES_PER_PAGE: u64 = 12;
const XEN_BYTES_PER_SHARER: u64 = 256;

/// A guest's pages with known contents.
pub(super) struct Known {
    gfns: Vec<u64>,
    kinds: u32,
    copies: u32,
}

/// Where the pages are in the host.
#[derive(Default)]
pub(super) struct Where {
    /// The frames of each kind with copies.
    pub(super) frames: BTreeMap<u64, BTreeSet<u64>>,
    /// Pages with copies that are on a shared frame.
    pub(super) shared: u64,
    /// Pages like no other that share a frame.
    pub(super) unique_shared: u64,
}

impl Where {
    /// Returns the frames of all pages with copies.
    pub(super) fn all_frames(&self) -> BTreeSet<u64> {
        self.frames.values().flatten().copied().collect()
    }
}

impl Known {
    pub(super) fn make(guest: &mut Guest, kinds: u32, copies: u32, unique: u32) -> Result<Self> {
        let task = Task::PatternMake {
            kinds,
            copies,
            unique,
            seed: SEED,
        };
        match guest.order(task, AGENT_LIMIT)? {
            Report::Truth { gfns } if gfns.len() == (kinds * copies + unique) as usize => {
                Ok(Self { gfns, kinds, copies })
            }
            other => Err(differs(
                "the agent's answer",
                "the frames of its pages",
                &format!("{other:?}").chars().take(200).collect::<String>(),
            )),
        }
    }

    /// Returns the guest frames of all of them.
    pub(super) fn gfns(&self) -> &[u64] {
        &self.gfns
    }

    pub(super) fn places(&self, guest: &Guest) -> Result<Where> {
        self.places_in(guest.domain)
    }

    /// Returns the same for a copy of the guest.
    pub(super) fn places_in(&self, domain: u16) -> Result<Where> {
        let direct = Direct::open(domain)?;
        let mut places = Where::default();
        for (page, gfn) in (0_u64..).zip(&self.gfns) {
            let found = direct
                .engine
                .explain(Gfn::new(*gfn))
                .map_err(|error| refused(&error))?;
            let shared = u64::from(found.p2m_type == P2M_RAM_SHARED);
            if page < u64::from(self.kinds) * u64::from(self.copies) {
                let frames = places.frames.entry(page % u64::from(self.kinds)).or_default();
                frames.insert(found.mfn);
                places.shared += shared;
            } else {
                places.unique_shared += shared;
            }
            if shared == 0 && found.p2m_type != P2M_RAM_RW {
                return Err(differs(
                    &format!("the p2m type of page {gfn:#x}"),
                    "memory, shared or not",
                    &found.p2m_type.to_string(),
                ));
            }
        }
        Ok(places)
    }
}

/// Fails unless every page that the agent knows holds what was written there.
pub(super) fn intact(guest: &mut Guest, when: &str) -> Result<()> {
    match guest.order(Task::PatternCheck, AGENT_LIMIT)? {
        Report::Checked { wrong: 0, .. } => Ok(()),
        other => Err(differs(
            &format!("the guest's pages {when}"),
            "as written",
            &format!("{other:?}"),
        )),
    }
}

/// Fails unless all pages with copies share frames.
pub(super) fn copies_shared(guest: &Guest, known: &Known) -> Result<Where> {
    let places = known.places(guest)?;
    equal(
        &format!("known duplicates of {} on shared frames", guest.name),
        &(u64::from(known.kinds) * u64::from(known.copies)),
        &places.shared,
    )?;
    Ok(places)
}

/// Does the same, and checks that no page shares a frame that equals no other in this guest.
pub(super) fn all_shared(guest: &Guest, known: &Known) -> Result<Where> {
    let places = copies_shared(guest, known)?;
    equal(
        "pages like no other that share a frame",
        &0,
        &places.unique_shared,
    )?;
    Ok(places)
}

/// Ends the guest's writing of its pages, which must all hold what was written; the pages written.
pub(super) fn end_churn(guest: &mut Guest) -> Result<u64> {
    match guest.order(Task::ChurnStop, AGENT_LIMIT)? {
        Report::Checked { pages, wrong: 0 } => Ok(pages),
        other => Err(differs(
            "the pages that the guest wrote and checked",
            "as written",
            &format!("{other:?}"),
        )),
    }
}

/// Rounds of the content stage alone; the pages merged.
pub(super) fn rounds(host: &mut Host, guest: &Guest, count: u64) -> Result<u64> {
    let answer = host.lacuna(&[
        "dedup",
        guest.name,
        "--mode",
        "dedup",
        "--rounds",
        &count.to_string(),
    ])?;
    answer.number("merged")
}

/// A guest without any profile: one round finds nearly all of its known duplicates, which stand still
/// meanwhile, the next one all, and nothing else of what is known. The host has the memory, and the guest
/// reads what it wrote before and after it writes again.
pub(crate) fn duplicates(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&Plan::stock("content", "6.12"))?;
    // Free pages are then like no other, and what is found is the agent's.
    guest.order(Task::Fill, AGENT_LIMIT)?;
    let known = Known::make(&mut guest, KINDS, COPIES, UNIQUE)?;
    host.note("two rounds over all of the guest")?;
    let before = settled_free_mib()?;
    let first = rounds(host, &guest, 1)?;
    let at_first = known.places(&guest)?.shared;
    host.figure("known_shared_at_first", at_first)?;
    let all = u64::from(KINDS * COPIES);
    ensure(
        at_first * 100 >= all * 99,
        "known duplicates on shared frames after one round",
        &format!("99 % of {all}"),
        &at_first.to_string(),
    )?;
    let merged = first + rounds(host, &guest, 1)?;
    let after = settled_free_mib()?;
    let status = host.lacuna(&["status", guest.name])?;
    let gfns = status.number("content_gfns")?;
    for name in [
        "content_hashed",
        "content_zeroed",
        "content_merged",
        "content_indexed",
        "content_evicted",
        "content_differed",
        "content_held",
        "content_refused",
        "metadata_bytes",
    ] {
        host.figure(name, status.number(name)?)?;
    }
    host.figure("content_gfns", gfns)?;
    host.figure("host_free_before", before)?;
    host.figure("host_free_after", after)?;

    let places = all_shared(&guest, &known)?;
    let spread = places.frames.values().map(BTreeSet::len).max().unwrap_or(0);
    host.figure("known_shared", places.shared)?;
    host.figure("frames_for_a_kind", spread as u64)?;
    equal("frames for each known content", &1, &spread)?;
    let given_back = merged + status.number("content_zeroed")?;
    let guest_pages = 512 * PAGES_PER_MIB;
    let kept = (guest_pages * STAGE_BYTES_PER_PAGE + gfns * XEN_BYTES_PER_SHARER) / 4096
        + status.number("reserve")?;
    let risen = after.saturating_sub(before) * PAGES_PER_MIB;
    ensure(
        risen + kept + PAGES_PER_MIB >= given_back,
        "the rise of the host's free memory",
        &format!(
            "{given_back} pages, less {kept} for book-keeping and the reserve, and what rounding to MiB takes"
        ),
        &format!("{risen} pages"),
    )?;

    intact(&mut guest, "when they share frames")?;
    guest.order(Task::PatternRewrite { every: 3 }, AGENT_LIMIT)?;
    intact(&mut guest, "after every third was written")?;
    guest.order(Task::PatternRewrite { every: 1 }, AGENT_LIMIT)?;
    intact(&mut guest, "after all were written")?;
    let places = known.places(&guest)?;
    equal("written pages on shared frames", &0, &places.shared)?;
    let unshared = host.lacuna(&["status", guest.name])?.number("content_unshared")?;
    host.figure("content_unshared", unshared)?;
    ensure(
        unshared >= u64::from(KINDS * COPIES),
        "write faults that ended sharing",
        &format!("at least {}", KINDS * COPIES),
        &unshared.to_string(),
    )?;
    guest.check_health()?;
    let took = guest.destroy(host)?;
    host.figure("destroy_ms", u64::try_from(took.as_millis()).unwrap_or(u64::MAX))
}

/// Free pages by the profile, equal ones among the rest, in one command; and the guest takes its free memory
/// back.
pub(crate) fn both(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&Plan::stock("both", "6.12"))?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    let known = Known::make(&mut guest, KINDS, COPIES, UNIQUE)?;
    host.lacuna(&["attach", guest.name])?;
    let answer = host.lacuna(&["dedup", guest.name, "--mode", "introdedup"])?;
    let (shared, merged, hashed) = (
        answer.number("shared")?,
        answer.number("merged")?,
        answer.number("hashed")?,
    );
    host.figure("shared", shared)?;
    host.figure("merged", merged)?;
    host.figure("hashed", hashed)?;
    all_shared(&guest, &known)?;
    ensure(
        shared > 50_000,
        "free pages given back",
        "tens of thousands",
        &shared.to_string(),
    )?;
    // Two rounds over what is not free: the free stage spares the content stage the rest.
    ensure(
        hashed < 512 * PAGES_PER_MIB,
        "pages hashed in two rounds",
        "fewer than the guest has",
        &hashed.to_string(),
    )?;
    guest.grow(200, AGENT_LIMIT)?;
    intact(&mut guest, "after the guest took free memory")?;
    guest.order(Task::PatternRewrite { every: 2 }, AGENT_LIMIT)?;
    intact(&mut guest, "after every second was written")?;
    guest.check_health()?;
    guest.destroy(host).map(drop)
}

/// A guest that goes on writing its duplicates while they are hashed, compared and shared.
pub(crate) fn race(host: &mut Host) -> Result<()> {
    let guest = host.create(&CHURN)?;
    nothing_is_lost(host, guest)
}

/// The same with a guest whose video memory is tracked, on a hypervisor that does then what page-modification
/// logging does on Intel's processors: entries of the log-dirty type are writable. What a page is protected
/// by must not be of that type.
pub(crate) fn race_logging(host: &mut Host) -> Result<()> {
    let guest = host.create(&CHURN)?;
    // Any page will do: it is the tracking that matters.
    Direct::open(guest.domain)?.track_video(Gfn::new(1), 1)?;
    nothing_is_lost(host, guest)
}

/// The guest for the races.
const CHURN: Plan = Plan {
    mib: 384,
    vcpus: 2,
    ..Plan::stock("churn", "6.12")
};

fn nothing_is_lost(host: &mut Host, mut guest: Guest) -> Result<()> {
    Known::make(&mut guest, KINDS, COPIES, 0)?;
    guest.order(Task::ChurnStart, AGENT_LIMIT)?;
    host.note(&format!("{RACE_ROUNDS} rounds while the guest writes its pages"))?;
    let merged = rounds(host, &guest, RACE_ROUNDS)?;
    let pages = end_churn(&mut guest)?;
    let status = host.lacuna(&["status", guest.name])?;
    host.figure("rounds", RACE_ROUNDS)?;
    host.figure("merged", merged)?;
    for name in [
        "content_unshared",
        "content_differed",
        "content_changed",
        "content_held",
    ] {
        host.figure(name, status.number(name)?)?;
    }
    host.figure("pages_written", pages)?;
    for (what, seen) in [
        ("pages merged", merged),
        (
            "pages taken off shared frames",
            status.number("content_unshared")?,
        ),
        ("pages found changed", status.number("content_changed")?),
    ] {
        ensure(seen > 0, what, "some", "none")?;
    }
    guest.check_health()
}

/// Three guests with the same contents, two of them in one trust group: these share, the third shares with
/// nobody but itself. A guest cannot leave a group in which it shares; a group's frames outlive the guest
/// that brought them.
pub(crate) fn groups(host: &mut Host) -> Result<()> {
    let plan = |name| Plan {
        mib: 320,
        ..Plan::stock(name, "6.12")
    };
    let mut guests = Vec::new();
    for (name, group) in [("one", "tenant-a"), ("two", "tenant-a"), ("three", "tenant-b")] {
        let mut guest = host.create(&plan(name))?;
        let known = Known::make(&mut guest, KINDS, 4, 64)?;
        host.lacuna(&["dedup", name, "--mode", "dedup", "--trust-group", group])?;
        guests.push((guest, known));
    }
    let mut of = Vec::new();
    for (guest, known) in &guests {
        of.push(copies_shared(guest, known)?.all_frames());
    }
    let in_common = |one: usize, other: usize| of[one].intersection(&of[other]).count();
    host.figure("frames_in_common_one_group", in_common(0, 1) as u64)?;
    host.figure(
        "frames_in_common_two_groups",
        (in_common(0, 2) + in_common(1, 2)) as u64,
    )?;
    equal(
        "frames in common, of guests in one group",
        &(KINDS as usize),
        &in_common(0, 1),
    )?;
    equal(
        "frames in common, of guests in different groups",
        &0,
        &(in_common(0, 2) + in_common(1, 2)),
    )?;
    let leaving = host.ask_lacuna(&["dedup", "two", "--mode", "dedup", "--no-trust-group"])?;
    equal("the exit status of leaving a group in use", &3, &leaving.status)?;

    for (guest, _) in &mut guests {
        intact(guest, "when guests share")?;
    }
    if let Some((guest, _)) = guests.get_mut(1) {
        guest.order(Task::PatternRewrite { every: 2 }, AGENT_LIMIT)?;
    }
    for (guest, _) in &mut guests {
        intact(guest, "after one guest wrote")?;
    }
    guests.remove(0).0.destroy(host)?;
    for (guest, _) in &mut guests {
        intact(guest, "after another guest was destroyed")?;
        guest.order(Task::PatternRewrite { every: 1 }, AGENT_LIMIT)?;
        intact(guest, "after it wrote all")?;
        guest.check_health()?;
    }
    Ok(())
}
