//! A guest on zero frames that is written to a file: saved and brought back, and dumped. The dump also of a
//! guest on frames that are shared by content.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use lacuna_guest::Task;
use object::{Object, ObjectSection};

use super::content::{all_shared, intact};
use super::migration::sharing_guest;
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::Host;
use crate::migration::Side;

/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(180);
/// Small: the files go into dom0's memory.
const PLAN_MIB: u32 = 256;
/// What the guest allocates when it is back.
const AGAIN_MIB: u32 = 64;
/// Where a file is put.
const FILE: &str = "/root/stored";
/// Where a scan's bitmap is written.
const BITMAP: &str = "/tmp/bitmap";
/// The same for the scan of a dump.
const OFFLINE_BITMAP: &str = "/tmp/offline-bitmap";
/// Bytes of a page.
const PAGE: usize = 4096;
/// Pages of a dump that are looked at together.
const STRETCH: usize = 1024;

/// A guest whose free memory is on zero frames, filled beforehand so that free pages are not zero by
/// themselves.
fn shared_guest(host: &mut Host, name: &'static str) -> Result<Guest> {
    let mut guest = host.create(&Plan {
        mib: PLAN_MIB,
        ..Plan::stock(name, "6.12")
    })?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    host.lacuna(&["attach", guest.name])?;
    let shared = host.lacuna(&["dedup", guest.name, "--until-stable"])?;
    host.figure("shared", shared.number("shared")?)?;
    Ok(guest)
}

/// Saving a guest on zero frames and restoring it: it goes on where it was, and has its memory.
pub(crate) fn save(host: &mut Host) -> Result<()> {
    let mut guest = shared_guest(host, "save")?;
    host.note("saving")?;
    host.xl(&["save", guest.name, FILE])?;
    host.figure("saved_bytes", fs::metadata(FILE)?.len())?;
    equal(
        "domains while the guest is a file",
        &vec!["Domain-0".to_owned()],
        &host.domains()?,
    )?;
    host.note("restoring")?;
    host.xl(&["restore", FILE])?;
    fs::remove_file(FILE)?;
    guest.domain = host.domain_number(guest.name)?;
    guest.grow(AGAIN_MIB, AGENT_LIMIT)?;
    guest.check_health()
}

/// A core dump of a guest on zero frames has every page, with zeroes where the zero frames are, and a scan of
/// it finds what the scan of the guest found.
pub(crate) fn dump(host: &mut Host) -> Result<()> {
    let mut guest = shared_guest(host, "dump")?;
    guest.pause(host)?;
    host.lacuna(&["scan", guest.name, "--bitmap", BITMAP])?;
    let on_zero_frames = host.lacuna(&["status", guest.name])?.number("zero_gfns")?;
    host.note("dumping")?;
    host.xl(&["dump-core", guest.name, FILE])?;
    guest.unpause(host)?;
    host.note("scanning the dump")?;
    let offline = host.lacuna(&["scan", "--dump", FILE, "--bitmap", OFFLINE_BITMAP])?;
    let dump = Dump::read(Path::new(FILE), |_, _| Ok(()))?;
    fs::remove_file(FILE)?;
    let bitmap = fs::read(BITMAP)?;
    let offline_bitmap = fs::read(OFFLINE_BITMAP)?;
    let byte = |bitmap: &[u8], at: usize| bitmap.get(at).copied().unwrap_or(0);
    let differ: u32 = (0..bitmap.len().max(offline_bitmap.len()))
        .map(|at| (byte(&bitmap, at) ^ byte(&offline_bitmap, at)).count_ones())
        .sum();
    host.figure("free_in_the_dump", offline.number("free_pages")?)?;
    equal("pages on which the scan of the dump differs", &0, &differ)?;
    let free = |gfn: &u64| {
        let byte = usize::try_from(gfn / 8).ok().and_then(|at| bitmap.get(at));
        byte.is_some_and(|byte| byte >> (gfn % 8) & 1 == 1)
    };
    let listed: u64 = bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum();
    let dumped = dump.gfns.iter().filter(|gfn| free(gfn)).count() as u64;
    host.figure("on_zero_frames", on_zero_frames)?;
    host.figure("dumped_pages", dump.gfns.len() as u64)?;
    host.figure("dumped_zero_pages", dump.zero)?;
    // Stock Xen's tools cut the last pages off, as many as are shared.
    equal("free pages in the dump", &listed, &dumped)?;
    ensure(
        dump.zero >= on_zero_frames,
        "pages of zeroes in the dump",
        &format!("at least the {on_zero_frames} on zero frames"),
        &dump.zero.to_string(),
    )?;
    guest.check_health()
}

/// A core dump of a guest on shared frames has every page as the guest has it, and making it ends no sharing.
pub(crate) fn content_dump(host: &mut Host) -> Result<()> {
    let (mut guest, known) = sharing_guest(host, "dump")?;
    guest.pause(host)?;
    host.note("dumping")?;
    host.xl(&["dump-core", guest.name, FILE])?;
    let side = Side::open(guest.domain)?;
    let (mut differ, mut page) = (Vec::new(), [0; PAGE]);
    let dump = Dump::read(Path::new(FILE), |gfns, pages| {
        let live = side.map(gfns)?;
        for (index, (gfn, dumped)) in gfns.iter().zip(pages.chunks_exact(PAGE)).enumerate() {
            if !live.copy(index, 0, &mut page) || page != dumped {
                differ.push(*gfn);
            }
        }
        Ok(())
    })?;
    fs::remove_file(FILE)?;
    host.figure("dumped_pages", dump.gfns.len() as u64)?;
    host.figure("dumped_pages_that_differ", differ.len() as u64)?;
    ensure(
        differ.is_empty(),
        "dumped pages that are not the guest's",
        "none",
        &format!(
            "{} of them, the first {:x?}",
            differ.len(),
            &differ[..differ.len().min(8)]
        ),
    )?;
    let dumped: BTreeSet<u64> = dump.gfns.into_iter().collect();
    let missing = known.gfns().iter().filter(|gfn| !dumped.contains(gfn));
    equal("known pages that are not in the dump", &0, &missing.count())?;
    all_shared(&guest, &known)?;
    guest.unpause(host)?;
    intact(&mut guest, "after the dump")?;
    guest.check_health()
}

/// What a core dump holds (Xen's `docs/misc/dump-core-format.txt`).
struct Dump {
    /// The frame number of each page.
    gfns: Vec<u64>,
    /// How many pages are all zero.
    zero: u64,
}

impl Dump {
    /// Reads the dump, and has `look` look at stretches of it: frame numbers, and their pages' bytes.
    fn read(path: &Path, mut look: impl FnMut(&[u64], &[u8]) -> Result<()>) -> Result<Self> {
        let bytes = fs::read(path)?;
        let damaged = |seen: &str| differs("the core dump", "an ELF file with .xen_pfn and .xen_pages", seen);
        let file = object::File::parse(&*bytes).map_err(|error| damaged(&error.to_string()))?;
        let section = |name: &str| {
            let section = file
                .section_by_name(name)
                .ok_or_else(|| damaged(&format!("no {name}")))?;
            section.data().map_err(|error| damaged(&error.to_string()))
        };
        let gfns = section(".xen_pfn")?.chunks_exact(size_of::<u64>());
        let pages = section(".xen_pages")?;
        let gfns: Vec<u64> = gfns
            .filter_map(|gfn| gfn.try_into().ok().map(u64::from_le_bytes))
            // Places that were not needed hold all ones, and stand at the end.
            .filter(|gfn| *gfn != u64::MAX)
            .collect();
        for (gfns, pages) in gfns.chunks(STRETCH).zip(pages.chunks(STRETCH * PAGE)) {
            look(gfns, pages)?;
        }
        let pages = pages.chunks_exact(PAGE);
        Ok(Self {
            gfns,
            zero: pages.filter(|page| page.iter().all(|byte| *byte == 0)).count() as u64,
        })
    }
}
