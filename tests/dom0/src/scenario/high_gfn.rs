//! Memory at the far end of what can be addressed: what the hypervisor keeps for a guest follows from what it
//! has.

use lacuna_core::{Gfn, MAX_GFNS};

use crate::engine::Direct;
use crate::failure::{Result, ensure, equal};
use crate::guest::Plan;
use crate::host::{Host, settled_free_mib};
use crate::tool::Answer;

/// The guest's memory, and what its limit is raised by for the block far away, in MiB.
const GUEST_MIB: u32 = 256;
const MORE_MIB: u32 = 16;
/// The last 2 MiB block that a bitmap can have bits for.
const FAR: Gfn = Gfn::new(MAX_GFNS - 512);
/// What one block may cost, wherever it is: a page of hashes, pages of the index that its 512 pages meet, and
/// their nodes.
const MOST_FOR_A_BLOCK: u64 = 320 << 10;
/// Per mille of the guest's memory that the free stage and both stages may take, beside what a domain costs
/// that was ever asked about (`metadata_bytes` counts it).
const FREE_SHARE: u64 = 1;
const WHOLE_SHARE: u64 = 4;
const FIXED: u64 = 64 << 10;
/// MiB by which the host's free memory may differ for reasons of its own.
const SLACK_MIB: u64 = 2;

/// A block at the highest frames: scanned, shared and compared without more memory than a block anywhere
/// costs.
pub(crate) fn far_block(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&Plan {
        mib: GUEST_MIB,
        ..Plan::stock("far", "6.12")
    })?;
    let name = guest.name;
    host.lacuna(&["attach", name])?;
    host.lacuna(&["dedup", name])?;
    let free_stage = status(host, name)?.number("metadata_bytes")?;
    content(host, name)?;
    let before = status(host, name)?;
    let near = before.number("metadata_bytes")?;
    let free_before = settled_free_mib()?;

    host.xl(&["mem-max", name, &format!("{}m", GUEST_MIB + MORE_MIB)])?;
    Direct::open(guest.domain)?.populate(FAR, 1)?;
    host.lacuna(&["scan", name])?;
    host.lacuna(&["dedup", name])?;
    content(host, name)?;
    let after = status(host, name)?;
    let (far, most) = (after.number("metadata_bytes")?, after.number("metadata_most")?);
    let free_after = settled_free_mib()?;
    host.figure("bytes_free_stage", free_stage)?;
    host.figure("bytes_with_content", near)?;
    host.figure("bytes_with_the_far_block", far)?;
    host.figure("bytes_allowed", most)?;
    host.figure("bitmap_gfns", after.number("bitmap_gfns")?)?;
    host.figure("scan_ms", after.number("scan_ns")? / 1_000_000)?;
    host.figure("free_mib_before", free_before)?;
    host.figure("free_mib_after", free_after)?;

    let memory = u64::from(GUEST_MIB) << 20;
    for (what, bytes, share) in [
        ("the free stage", free_stage, FREE_SHARE),
        ("both stages", near, WHOLE_SHARE),
    ] {
        let limit = FIXED + memory / 1000 * share;
        ensure(
            bytes <= limit,
            &format!("bytes kept for {what}"),
            &format!("at most {limit}"),
            &bytes.to_string(),
        )?;
    }
    ensure(
        far <= near + MOST_FOR_A_BLOCK,
        "bytes kept with a block at the highest frames",
        &format!("at most {MOST_FOR_A_BLOCK} more than {near}"),
        &far.to_string(),
    )?;
    // The block itself is 2 MiB of the host's.
    ensure(
        free_after + 2 + SLACK_MIB >= free_before,
        "the host's free memory after it, in MiB",
        &format!("about {free_before}"),
        &free_after.to_string(),
    )?;
    equal(
        "the profile's state",
        &"admitted".into(),
        &after.body["state"].clone(),
    )?;
    guest.check_health()
}

/// Two rounds of the content stage: pages are entered in the second.
fn content(host: &mut Host, name: &str) -> Result<()> {
    for _ in 0..2 {
        host.lacuna(&["dedup", name, "--mode", "introdedup"])?;
    }
    Ok(())
}

fn status(host: &mut Host, name: &str) -> Result<Answer> {
    host.lacuna(&["status", name])
}
