//! A scan of memory that stands still, with the last word on every page: what `lacuna scan --dump` says.
//!
//! In the hypervisor a scan finds candidates, and the share step decides. Nothing comes after a scan of a
//! dump, so it decides itself: where the profile looks at the bytes of a page, they are looked at here.

use crate::judge::admission::compare;
use crate::{
    Bitmap, BytesRule, CounterError, CounterReading, FreeCheck, Gfn, GuestMemory, Profile, ScanStep, Scanner,
    free_by_counters,
};

/// Descriptors looked at between two reports of progress: those of 256 MiB.
const CHUNK: u64 = 1 << 16;

/// Whether the guest's own counters bear out what a scan found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// They do.
    Agrees,
    /// They say something else: the layout is wrong, or the memory did not stand still when it was written
    /// down.
    Disagrees,
    /// The profile names no counter, or there was nothing to count. What was found is what the descriptors
    /// say, and nobody else has said it.
    Unconfirmed,
}

/// What a scan of all memory came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfflineScan {
    /// The descriptors' word. `free` counts the pages whose bytes were not as they should be, too.
    pub step: ScanStep,
    /// Of those pages, how many are not free after all: the profile looks at the bytes, and they are not
    /// zero.
    pub not_zero: u64,
    /// Of those pages, how many nothing is known of: the profile looks at the bytes, and they are not there.
    pub absent: u64,
    /// The guest's own count; `None` where the profile names no counter.
    pub counted: Option<CounterReading>,
    /// What it says of the scan.
    pub agreement: Agreement,
}

impl OfflineScan {
    /// Pages that are free: the bits set in the bitmap.
    pub const fn free(&self) -> u64 {
        self.step.free.saturating_sub(self.not_zero + self.absent)
    }
}

/// Scans frames below `end`, which the bitmap covers, and calls `progress` with how far it has come.
///
/// Memory that can be read in large pieces is best wrapped in [`crate::FrameCopies`].
///
/// # Errors
/// [`CounterError`] when a counter that the profile names cannot be read; the bitmap is then unspecified.
pub fn scan_offline<M: GuestMemory>(
    memory: &mut M,
    profile: &Profile,
    bitmap: &Bitmap<'_>,
    end: Gfn,
    mut progress: impl FnMut(Gfn),
) -> Result<OfflineScan, CounterError> {
    let counted = if profile.zones.is_empty() {
        None
    } else {
        Some(free_by_counters(memory, profile)?)
    };
    let end = end.min(Gfn::new(bitmap.gfns()));
    let mut scanner = Scanner::new(FreeCheck::new(profile));
    let mut total = ScanStep::default();
    let mut taken = Taken::default();
    while total.next < end.get() {
        let from = Gfn::new(total.next);
        let step = scanner.step(memory, bitmap, from, end, CHUNK);
        total.add(&step);
        // Every step goes on; were one not to, the scan would end here and not run for ever.
        if step.next <= from.get() {
            break;
        }
        if profile.free.bytes == BytesRule::Zero {
            taken.add(confirm_zero(memory, bitmap, from, Gfn::new(step.next)));
        }
        progress(Gfn::new(step.next));
    }
    let agreement = match counted {
        Some(CounterReading { pages }) if pages > 0 || total.free > 0 => {
            match compare(profile.free.bytes, total.free, pages, pages, 0) {
                Ok(()) => Agreement::Agrees,
                Err(()) => Agreement::Disagrees,
            }
        }
        _ => Agreement::Unconfirmed,
    };
    Ok(OfflineScan {
        step: total,
        not_zero: taken.not_zero,
        absent: taken.absent,
        counted,
        agreement,
    })
}

/// Pages from which [`confirm_zero`] took the mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Whose bytes are not all zero.
    pub not_zero: u64,
    /// Whose bytes cannot be read.
    pub absent: u64,
}

impl Taken {
    const fn add(&mut self, other: Self) {
        self.not_zero += other.not_zero;
        self.absent += other.absent;
    }
}

/// Takes the mark from every page of `from..to` whose bytes are not all zero, or cannot be read. Returns how
/// many.
pub fn confirm_zero<M: GuestMemory>(memory: &mut M, bitmap: &Bitmap<'_>, from: Gfn, to: Gfn) -> Taken {
    let mut taken = Taken::default();
    let mut at = from;
    while let Some(candidate) = bitmap.next_set(at, to) {
        at = candidate.saturating_add(1);
        match memory.is_zero(candidate) {
            Ok(true) => continue,
            Ok(false) => taken.not_zero += 1,
            Err(_) => taken.absent += 1,
        }
        bitmap.clear_range(candidate, at);
    }
    taken
}
