//! A guest saved to a file and brought back, stock and with Lacuna.

use std::fs::{self, File};
use std::io;

use lacuna_guest::Task;

use super::{AGENT_LIMIT, PAGES_PER_MIB, SKIPPED_PER_MILLE, healthy, tell};
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::Host;
use crate::migration::verify;
use crate::stream::follow;
use crate::stream::tally::{Report, Tally};

/// Small: the files go into dom0's memory.
const MIB: u32 = 192;
/// Where a guest is saved.
const FILE: &str = "/root/saved";
/// What the guest allocates when it is back.
const AGAIN_MIB: u64 = 64;

/// The file is smaller by the free pages, and what comes back is the guest.
pub(crate) fn save_restore(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&Plan {
        mib: MIB,
        ..Plan::stock("stored", "6.12")
    })?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    let stock = saved(host, &mut guest, "stock")?;
    healthy(&mut guest, AGAIN_MIB)?;
    host.lacuna(&["attach", guest.name])?;
    let free = host.lacuna(&["scan", guest.name])?.number("free")?;
    host.figure("free", free)?;
    let lacuna = saved(host, &mut guest, "lacuna")?;
    let smaller = stock.bytes.saturating_sub(lacuna.bytes) / (1 << 20);
    let least = free * SKIPPED_PER_MILLE / 1000 / PAGES_PER_MIB;
    ensure(
        smaller >= least,
        "what the file is smaller by",
        &format!("at least {least} MiB, the free pages"),
        &format!("{smaller} MiB"),
    )?;
    healthy(&mut guest, AGAIN_MIB)
}

/// Saves and restores the guest; returns what the file held.
pub(super) fn saved(host: &mut Host, guest: &mut Guest, side: &str) -> Result<Report> {
    host.note(&format!("saving, {side}"))?;
    host.xl(&["save", guest.name, FILE])?;
    let mut tally = Tally::default();
    let followed = follow(File::open(FILE)?, &mut io::sink(), &mut tally, &mut |_, _| Ok(()));
    followed.map_err(|error| differs("the saved guest", "a whole stream", &error.to_string()))?;
    let report = tally.report();
    tell(host, side, &report)?;
    verify(FILE.as_ref())?;
    equal("domains", &vec!["Domain-0".to_owned()], &host.domains()?)?;
    host.xl(&["restore", FILE])?;
    fs::remove_file(FILE)?;
    guest.domain = host.domain_number(guest.name)?;
    Ok(report)
}
