//! The product's main job on a live guest: find its free pages, give them back, lose nothing.

use std::fs;
use std::time::Duration;

use lacuna::xen::engine::{FrameKind, ScanOf};
use lacuna_guest::Task;
use lacuna_guest::truth::Capture;

use crate::engine::{Direct, refused};
use crate::failure::{Result, ensure, equal};
use crate::guest::{Account, Guest, PAGES_PER_MIB, Plan};
use crate::host::{Host, settled_free_mib};

/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(180);
/// The memory of the guest whose account is compared, in MiB.
const PLAN_MIB: u32 = 640;
/// Captures in a row that must agree before the guest counts as still: with less, a page on its way would be
/// blamed on the scan.
const STILL: u64 = 8;
/// How often a pause may fall between a change of the guest's free pages and its account of them.
const CAPTURE_TRIES: u32 = 4;
/// Where a scan's bitmap is written.
const BITMAP: &str = "/tmp/bitmap";
/// What must be given back of what is free: 99 %, by the issue that this scenario is for.
pub(super) const RECLAIMED_PER_MILLE: u64 = 990;
/// What the engine may keep for a page that is shared: the bitmap, mostly. Stock sharing takes 48.
const METADATA_BYTES_PER_PAGE: u64 = 2;

pub(crate) fn truth_6_12(host: &mut Host) -> Result<()> {
    truth(host, &plan("6.12"))
}

pub(crate) fn truth_6_1(host: &mut Host) -> Result<()> {
    truth(host, &plan("6.1"))
}

/// A kernel that does not say where its symbols are.
pub(crate) fn truth_5_10(host: &mut Host) -> Result<()> {
    truth(host, &plan("5.10"))
}

/// A 32-bit kernel with PAE and a flat memory map, whose symbol table holds no data.
pub(crate) fn truth_686_pae(host: &mut Host) -> Result<()> {
    truth(
        host,
        &Plan {
            initrd: "i386.initrd",
            ..plan("6.1-686-pae")
        },
    )
}

const fn plan(series: &'static str) -> Plan {
    Plan {
        mib: PLAN_MIB,
        ..Plan::stock("truth", series)
    }
}

/// A still guest: the scan agrees with the guest's own account page for page, the free pages come back to the
/// host, and the guest gets zeroed memory when it wants it again.
fn truth(host: &mut Host, plan: &Plan) -> Result<()> {
    let mut guest = host.create(plan)?;
    host.note("filling the guest's free memory, so that free pages are not zero")?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    let account = guest.start_account()?;
    host.lacuna(&["attach", guest.name])?;
    host.figure("guest_pages", u64::from(PLAN_MIB) * PAGES_PER_MIB)?;
    let free = compare(host, &guest, &account, AGENT_LIMIT)?;
    host.figure("map_free", by_block(&fs::read(BITMAP)?))?;

    give_back(host, &guest, free)?;
    host.figure("map_given_back", on_zero_frames(&guest)?)?;
    guest.order(Task::TruthStop, AGENT_LIMIT)?;
    let unshared = use_memory(host, &mut guest, free)?;
    host.figure("unshared", unshared)?;
    host.figure("map_left", on_zero_frames(&guest)?)?;
    host.figure("host_free_again", settled_free_mib()?)?;
    guest.check_health()?;
    host.figure("guest_ok", true)?;
    let took = guest.destroy(host)?;
    host.figure("destroy_ms", u64::try_from(took.as_millis()).unwrap_or(u64::MAX))
}

/// Returns how many pages of each block of 2 MiB have their bit set.
fn by_block(bitmap: &[u8]) -> Vec<u64> {
    /// Bytes of a bitmap for 512 pages.
    const BLOCK: usize = 64;
    let blocks = bitmap.chunks(BLOCK);
    let pages = |block: &[u8]| block.iter().map(|byte| u64::from(byte.count_ones())).sum();
    blocks
        .take(usize::try_from(PLAN_MIB / 2).unwrap_or(0))
        .map(pages)
        .collect()
}

/// Returns how many pages of each block of 2 MiB are on zero frames.
fn on_zero_frames(guest: &Guest) -> Result<Vec<u64>> {
    let frames = Direct::open(guest.domain)?.engine.frames(FrameKind::Zero);
    Ok(by_block(&frames.map_err(|error| refused(&error))?))
}

/// Scans what the guest has written to since the last scan, and returns the bitmap.
fn scan_changes(host: &mut Host, guest: &Guest) -> Result<Vec<u8>> {
    let engine = Direct::open(guest.domain)?.engine;
    let statistics = || engine.statistics().map_err(|error| refused(&error));
    let before = statistics()?;
    engine.scan(ScanOf::Changes).map_err(|error| refused(&error))?;
    let after = statistics()?;
    equal(
        "scans that left out what had not changed",
        &(before.scans_partial + 1),
        &after.scans_partial,
    )?;
    host.figure("changes_descriptors", after.scan_descriptors)?;
    host.figure("everything_descriptors", before.scan_descriptors)?;
    let (_, bits) = engine.read_bitmap().map_err(|error| refused(&error))?;
    Ok(bits)
}

/// Returns for how many pages two bitmaps differ.
fn differing(one: &[u8], other: &[u8]) -> u64 {
    let bits = |bitmap: &[u8], at: usize| bitmap.get(at).copied().unwrap_or(0);
    let bytes = 0..one.len().max(other.len());
    bytes
        .map(|at| u64::from((bits(one, at) ^ bits(other, at)).count_ones()))
        .sum()
}

/// Holds a scan against the guest's own account, page by page, and returns how many pages are free.
pub(super) fn compare(host: &mut Host, guest: &Guest, account: &Account, limit: Duration) -> Result<u64> {
    let mut tries = 0;
    let (scanned, capture) = loop {
        tries += 1;
        account.wait_still(STILL, limit)?;
        guest.pause(host)?;
        let followed = scan_changes(host, guest)?;
        let scanned = host.lacuna(&["scan", guest.name, "--bitmap", BITMAP])?;
        let differing = differing(&followed, &fs::read(BITMAP)?);
        equal("pages of which a scan of changes says otherwise", &0, &differing)?;
        let capture = account.read()?;
        guest.unpause(host)?;
        // The kernel frees some of its memory late, all at once, and may have done so between its last
        // account and the pause. Its own counters, which change with its lists, tell that the account is out
        // of date.
        if capture.free == scanned.number("guest_free_after")? || tries == CAPTURE_TRIES {
            break (scanned, capture);
        }
        host.note("the guest's account is older than the pause; once more")?;
    };
    let comparison = Comparison::of(&capture, &fs::read(BITMAP)?);
    let free_found = scanned.number("free")?;
    host.figure("free_truth", capture.free)?;
    host.figure("free_found", free_found)?;
    host.figure("wrongly_free", comparison.wrongly_free)?;
    host.figure("missed", comparison.missed)?;
    equal(
        "pages called free that the guest says are not",
        &0,
        &comparison.wrongly_free,
    )?;
    equal(
        "free pages of the guest that the scan missed",
        &0,
        &comparison.missed,
    )?;
    Ok(capture.free)
}

/// Gives back what is free, `free` pages at least, and looks that the host has them.
pub(super) fn give_back(host: &mut Host, guest: &Guest, free: u64) -> Result<()> {
    let before = settled_free_mib()?;
    host.note("sharing")?;
    let shared = host.lacuna(&["dedup", guest.name, "--until-stable"])?;
    let pages = shared.number("shared")?;
    let after = settled_free_mib()?;
    host.figure("shared", pages)?;
    host.figure("superpages", shared.number("superpages")?)?;
    host.figure("held", shared.number("held")?)?;
    host.figure("host_free_before", before)?;
    host.figure("host_free_after", after)?;
    ensure(
        pages * 1000 >= free * RECLAIMED_PER_MILLE,
        "pages given back",
        &format!("at least {RECLAIMED_PER_MILLE} of 1000 of {free}"),
        &pages.to_string(),
    )?;
    let risen = after.saturating_sub(before) * PAGES_PER_MIB;
    let reserve = host.lacuna(&["status", guest.name])?.number("reserve")?;
    host.figure("reserve", reserve)?;
    ensure(
        (risen + reserve + PAGES_PER_MIB) * 1000 >= pages * RECLAIMED_PER_MILLE,
        "the rise of the host's free memory",
        &format!("{pages} pages, less the guest's reserve of {reserve}, 1 % and what rounding to MiB takes"),
        &format!("{risen} pages"),
    )
}

/// Lets the guest allocate half of what was free and looks that all of it is zero; returns the pages it got
/// back.
pub(super) fn use_memory(host: &mut Host, guest: &mut Guest, free: u64) -> Result<u64> {
    let before = host.lacuna(&["status", guest.name])?.number("unshared")?;
    let mib = u32::try_from(free / 2 / PAGES_PER_MIB).unwrap_or(u32::MAX);
    host.note(&format!("the guest takes {mib} MiB again"))?;
    guest.grow(mib, AGENT_LIMIT)?;
    let after = host.lacuna(&["status", guest.name])?.number("unshared")?;
    Ok(after - before)
}

/// Destroying a guest whose memory is on zero frames takes no longer than destroying the same guest without,
/// and sharing costs next to nothing in metadata.
pub(crate) fn destroy(host: &mut Host) -> Result<()> {
    // Times on a busy machine differ severalfold from run to run; taking each page apart, as stock sharing
    // does, takes minutes. The figures tell the ratio of this run.
    const SLACK_PER_CENT: u128 = 300;
    const SLACK_MS: u128 = 2000;
    let plan = |name| Plan {
        mib: 896,
        ..Plan::stock(name, "6.12")
    };
    let mut plain = host.create(&plan("plain"))?;
    plain.order(Task::Fill, AGENT_LIMIT)?;
    let without = plain.destroy(host)?.as_millis();
    let mut shared = host.create(&plan("shared"))?;
    shared.order(Task::Fill, AGENT_LIMIT)?;
    host.lacuna(&["attach", shared.name])?;
    host.lacuna(&["dedup", shared.name, "--until-stable"])?;
    let status = host.lacuna(&["status", shared.name])?;
    let (zero, bytes) = (status.number("zero_gfns")?, status.number("metadata_bytes")?);
    let with = shared.destroy(host)?.as_millis();
    host.figure("zero_gfns", zero)?;
    host.figure("metadata_bytes", bytes)?;
    host.figure("destroy_ms_without", u64::try_from(without).unwrap_or(u64::MAX))?;
    host.figure("destroy_ms_with", u64::try_from(with).unwrap_or(u64::MAX))?;
    ensure(
        zero > 150_000,
        "pages on zero frames",
        "hundreds of thousands",
        &zero.to_string(),
    )?;
    ensure(
        bytes <= zero * METADATA_BYTES_PER_PAGE,
        "metadata",
        &format!("at most {METADATA_BYTES_PER_PAGE} bytes for each of {zero} pages"),
        &format!("{bytes} bytes"),
    )?;
    ensure(
        with <= without * SLACK_PER_CENT / 100 + SLACK_MS,
        "destroying a guest on zero frames",
        &format!("about {without} ms, as without"),
        &format!("{with} ms"),
    )
}

/// How a scan's bitmap and the guest's account differ.
pub(super) struct Comparison {
    /// Pages that the scan calls free and the guest does not.
    pub(super) wrongly_free: u64,
    /// Pages that the guest calls free and the scan does not.
    pub(super) missed: u64,
}

impl Comparison {
    /// Compares page by page, also beyond the end of the shorter one.
    pub(super) fn of(capture: &Capture, bitmap: &[u8]) -> Self {
        let pages = capture.pages.max(bitmap.len() as u64 * 8);
        let found = |gfn: u64| {
            let byte = usize::try_from(gfn / 8)
                .ok()
                .and_then(|at| bitmap.get(at))
                .copied()
                .unwrap_or(0);
            byte >> (gfn % 8) & 1 == 1
        };
        let mut comparison = Self {
            wrongly_free: 0,
            missed: 0,
        };
        for gfn in 0..pages {
            match (found(gfn), capture.is_free(gfn)) {
                (true, false) => comparison.wrongly_free += 1,
                (false, true) => comparison.missed += 1,
                _ => {}
            }
        }
        comparison
    }
}
