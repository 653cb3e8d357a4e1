//! Admission: the scanned total against the guest's own counters, before a page is shared on a profile's
//! word.

use crate::tables::{MAX_GFNS, bitmap_at};
use crate::{BytesRule, Domain, Gfn, GuestMemory, GuestVirt, Mapping, PAGE_SIZE, Profile, walk};

/// Pages that a scan may find beyond the kernel's own count of its list, where the bytes are looked at; or a
/// quarter of that count, if it is more.
const SURPLUS: u64 = 256;
/// Most pages whose bytes a scan looks at in the hypervisor.
const SAMPLE: u64 = 64;

/// The guest's own count of its free pages, read once. The guest may be running, so two readings differ by
/// what it allocated and freed between them.
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
    let mut page = None;
    for (index, zone) in profile.zones.iter().enumerate() {
        for order in 0..=u64::from(profile.free.max_order().get()) {
            let offset = order * u64::from(zone.stride) + u64::from(zone.count_offset);
            let unreadable = |at| CounterError {
                zone: index as u64,
                at,
            };
            let at = zone.array.checked_add(offset).ok_or(unreadable(zone.array))?;
            let count = read_near(memory, profile, at, zone.count_bytes, &mut page).ok_or(unreadable(at))?;
            // A hostile guest can claim any number: keep the sum defined, the comparison refuses it.
            pages = pages.saturating_add(count.saturating_mul(1 << order));
        }
    }
    Ok(CounterReading { pages })
}

/// Reads a value of the kernel's data, in `page` if that is where it lies, and otherwise leaves its page there:
/// counters lie side by side, and a walk for each would take most of the time.
fn read_near<M: GuestMemory>(
    memory: &mut M,
    profile: &Profile,
    at: GuestVirt,
    width: u8,
    page: &mut Option<Mapping>,
) -> Option<u64> {
    if page.is_none_or(|page| page.translate(at).is_none()) {
        *page = Some(walk(memory, profile.root, profile.levels, at).ok()?);
    }
    let physical = page.as_ref()?.translate(at)?;
    if physical.offset() + usize::from(width) > PAGE_SIZE {
        return None;
    }
    memory.read_value(physical, width).ok()
}

/// How far a scan beside the running guest may be from its counters, in pages: what changed between the two
/// readings, and a 128th of the total (at least 256 pages) for what came and went in between, but never more
/// than a quarter of the lower count. The last bound is what keeps a wrong layout out of a guest that has
/// little memory free, or whose counters move fast: such a layout finds nothing, or noise. A stopped guest
/// gets no tolerance at all.
pub(crate) fn tolerance(low: u64, high: u64, paused: bool) -> u64 {
    if paused {
        0
    } else {
        high.saturating_sub(low)
            .saturating_add((high / 128).max(256))
            .min(low / 4)
    }
}

/// Whether a scan that found `found` free pages is borne out by counters that said from `low` to `high`,
/// `slack` pages more or less.
///
/// Where a mark is proof, both count the same thing. Where the bytes are looked at, the mark also stays on
/// pages that were taken off the list a moment ago (docs/windows.md, "What is free"): some more than the
/// counter says are no contradiction, and none of them is acted on before its bytes were seen. But a counter
/// that says none bears nothing out: it counts, and what was found is then something else. A scan that finds
/// nothing proves nothing, even where the guest has nothing free.
///
/// # Errors
/// It is not.
pub(crate) const fn compare(bytes: BytesRule, found: u64, low: u64, high: u64, slack: u64) -> Result<(), ()> {
    let surplus = match bytes {
        BytesRule::Any => 0,
        BytesRule::Zero if high == 0 => 0,
        BytesRule::Zero if high / 4 > SURPLUS => high / 4,
        BytesRule::Zero => SURPLUS,
    };
    let most = high.saturating_add(slack).saturating_add(surplus);
    if found > 0 && found.saturating_add(slack) >= low && found <= most {
        Ok(())
    } else {
        Err(())
    }
}

/// A look at some of the candidates that a scan found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Pages looked at.
    pub(crate) looked_at: u64,
    /// Of those, pages all of whose bytes are zero.
    pub(crate) zero: u64,
}

impl Sample {
    /// Whether the pages are what the profile says they are, but for a few that the guest took meanwhile. A
    /// wrong layout names pages of any kind, few of which are zero.
    pub(crate) const fn bears_out(self) -> bool {
        self.looked_at > 0 && self.zero >= self.looked_at - self.looked_at / 16
    }
}

/// Looks at [`SAMPLE`] of the `found` candidates in the bitmap, at about equal distances.
pub(crate) fn sample<D: Domain>(domain: &mut D, found: u64) -> Sample {
    let mut sample = Sample {
        looked_at: 0,
        zero: 0,
    };
    // Distances in frames for which there are bits: candidates lie in runs, and counting them off would
    // mean going through the bitmap.
    let kept = domain.counters().bitmap_gfns.min(domain.gfns());
    let stride = (kept / SAMPLE).max(1);
    let mut at = 0;
    while at < MAX_GFNS && sample.looked_at < SAMPLE.min(found) {
        let part = bitmap_at(domain, at);
        let bitmap = part.bitmap();
        let end = bitmap.gfns().max(at.saturating_add(1));
        let Some(candidate) = bitmap.next_set(Gfn::new(at), Gfn::new(end)) else {
            at = end;
            continue;
        };
        sample.looked_at += 1;
        sample.zero += u64::from(domain.is_zero(candidate) == Ok(true));
        at = candidate.saturating_add(stride).get();
    }
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_says_none_bears_nothing_out() {
        let agrees = |found, low, high| compare(BytesRule::Zero, found, low, high, 0).is_ok();
        // Marks stay for a moment on pages that were taken off the list, however few are on it.
        assert!(agrees(253, 1, 1) && agrees(256, 0, 256) && agrees(1, 1, 1));
        assert!(!agrees(253, 0, 0) && !agrees(1, 0, 0) && !agrees(0, 0, 0));
        assert!(!agrees(258, 1, 1));
        assert!(compare(BytesRule::Any, 7, 7, 7, 0).is_ok());
        assert!(compare(BytesRule::Any, 8, 7, 7, 0).is_err());
    }
}
