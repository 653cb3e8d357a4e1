//! One domain as Xen offers it: its virtual CPUs, its p2m, and what the operations ask of it besides.

use crate::abi::{GfnInfo, ShimCounters};
use crate::{BytesRule, Gfn, GuestMemory, Order, Skip, Status, Tables, VcpuRegisters};

/// What [`P2m::share_zero_pages`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedPages {
    /// The pages that were not dealt with, as bits of the 64; the lowest is the one that was refused.
    pub left: u64,
    /// Why it was; `None` where all pages are on zero frames now.
    pub refused: Option<Skip>,
}

impl SharedPages {
    /// All of them are on zero frames now.
    pub const ALL: Self = Self {
        left: 0,
        refused: None,
    };
}

/// The domain's virtual CPUs and its p2m, as the engine needs them.
pub trait P2m: GuestMemory {
    /// Stops every virtual CPU of the guest and waits until each has left it.
    fn pause(&mut self);
    /// Undoes one [`P2m::pause`].
    fn unpause(&mut self);
    /// Number of virtual CPUs, online or not.
    fn vcpus(&mut self) -> u32;
    /// Registers of virtual CPU `vcpu`, which does not run.
    fn registers(&mut self, vcpu: u32) -> VcpuRegisters;
    /// Takes the p2m lock: no entry changes, and nobody takes a new reference to a page through the p2m.
    fn lock(&mut self);
    /// Drops it.
    fn unlock(&mut self);
    /// Replaces the 2^`order` frames at `gfn` by zero frames, all or none, and queues the old ones for
    /// [`P2m::release`]. `order` is [`Order::PAGE`] or [`Order::SUPERPAGE`]. Returns the pages newly shared:
    /// a block may contain zero frames already.
    ///
    /// # Errors
    /// [`Skip`]; nothing has changed then.
    fn share_zero(&mut self, gfn: Gfn, order: Order, bytes: BytesRule) -> Result<u64, Skip>;
    /// Does what [`P2m::share_zero`] does for one page after another: those of `pages`, bits of the 64 frames
    /// from `first` on. Goes no further than the first that is refused. The guest is paused.
    fn share_zero_pages(&mut self, first: Gfn, pages: u64, bytes: BytesRule) -> SharedPages {
        let mut left = pages;
        while left != 0 {
            let gfn = first.saturating_add(u64::from(left.trailing_zeros()));
            if let Err(skip) = self.share_zero(gfn, Order::PAGE, bytes) {
                let refused = Some(skip);
                return SharedPages { left, refused };
            }
            left &= left - 1;
        }
        SharedPages::ALL
    }
    /// Makes every processor forget old translations, and waits for it.
    fn flush(&mut self);
    /// Scrubs and frees what [`P2m::share_zero`] queued. The guest runs, no lock is held.
    fn release(&mut self);
    /// A monotonic clock, in nanoseconds.
    fn now(&mut self) -> u64;
}

/// Frames of which [`Writes::take_written`] tells at once: as many as an entry of 2 MiB maps.
pub const MAX_WRITTEN: u32 = 512;

/// What the processors note of the guest's writes.
pub trait Writes: GuestMemory {
    /// Tells which of the `count` frames from `first` on, [`MAX_WRITTEN`] at most, the guest may have written
    /// to since this was last asked of them, and forgets it. Frame `first + i` is bit `i % 64` of word
    /// `i / 64`. Bits past the last frame mean nothing.
    ///
    /// What the guest wrote before this returns is there to be read then; what it writes later counts the
    /// next time. So an implementation clears what the processors noted, has them forget translations that
    /// they have cached as written to, waits for that, and returns. Where it cannot tell, a frame counts as
    /// written to; so does one that was never asked of, or lies elsewhere than it did.
    ///
    /// Writes of others than the guest's virtual CPUs may be missing.
    fn take_written(&mut self, first: Gfn, count: u32) -> [u64; 8];
}

/// Write protection for the guest that keeps running.
pub trait Protect: P2m {
    /// Makes the entry read-only, so that a write faults and waits for the p2m lock. Not yet flushed.
    ///
    /// # Errors
    /// [`Skip`]; nothing has changed then.
    fn protect(&mut self, gfn: Gfn, order: Order) -> Result<(), Skip>;
    /// Undoes [`P2m::share_zero`]'s precondition: the entry is writable again.
    fn restore(&mut self, gfn: Gfn, order: Order);
}

/// One domain, for the time of one operation: everything that the hypervisor offers for it. A domain that
/// shares by content is one of [`crate::Peers`], too.
pub trait Domain: P2m + Tables + Writes {
    /// Why this domain may not share, if so: `Status` and its value.
    fn blocker(&mut self) -> Option<(Status, u64)>;
    /// One past the highest frame that the guest has mapped.
    fn gfns(&mut self) -> u64;
    /// Whether the processor is wanted elsewhere, or the domain is being destroyed.
    fn preempted(&mut self) -> bool;
    /// Whether the toolstack keeps the guest paused.
    fn paused_by_toolstack(&mut self) -> bool;
    /// What the shim counts.
    fn counters(&mut self) -> ShimCounters;
    /// What the hypervisor has at a frame.
    fn gfn_info(&mut self, gfn: Gfn) -> GfnInfo;
}
