//! Admission: the scanned total against the guest's own counters, before a page is shared on a profile's word.

use crate::memory_map::read_virtual;
use crate::{GuestMemory, GuestVirt, Profile};

/// The guest's own count of its free pages, read once. The guest may be running, so two readings differ by what it
/// allocated and freed between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterReading {
    /// Pages: the sum of `count << order` over all zones and orders.
    pub pages: u64,
}

/// Why the counters could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterError {
    /// Index of the zone in the profile.
    pub zone: u64,
    /// The address that could not be read.
    pub at: GuestVirt,
}

/// Sums the kernel's own counters of free blocks (Linux: `zone.free_area[order].nr_free`).
///
/// # Errors
/// [`CounterError`] when one cannot be read.
pub fn free_by_counters<M: GuestMemory>(
    memory: &mut M,
    profile: &Profile,
) -> Result<CounterReading, CounterError> {
    let mut pages = 0_u64;
    for (index, zone) in profile.zones.iter().enumerate() {
        for order in 0..=u64::from(profile.free.max_order.get()) {
            let offset = order * u64::from(zone.stride) + u64::from(zone.count_offset);
            let unreadable = |at| CounterError {
                zone: index as u64,
                at,
            };
            let at = zone.array.checked_add(offset).ok_or(unreadable(zone.array))?;
            let count =
                read_virtual(memory, profile.root, profile.levels, at, 8).map_err(|_| unreadable(at))?;
            // A hostile guest can claim any number: keep the sum defined, the comparison refuses it.
            pages = pages.saturating_add(count.saturating_mul(1 << order));
        }
    }
    Ok(CounterReading { pages })
}

/// How far a scan beside the running guest may be from its counters, in pages: what changed between the two readings,
/// and a 128th of the total (at least 256 pages) for what came and went in between, but never more than a quarter of the
/// lower count. The last bound is what keeps a wrong layout out of a guest that has little memory free, or whose counters move
/// fast: such a layout finds nothing, or noise. A stopped guest gets no tolerance at all.
pub(crate) fn tolerance(low: u64, high: u64, paused: bool) -> u64 {
    if paused {
        0
    } else {
        high.saturating_sub(low)
            .saturating_add((high / 128).max(256))
            .min(low / 4)
    }
}
