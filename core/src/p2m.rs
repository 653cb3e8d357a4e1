//! What the engine asks of a domain's p2m and virtual CPUs, and why a page may be left alone.

use crate::profile::BytesRule;
use crate::{Gfn, GuestMemory, Order, VcpuRegisters};

/// Why a free page was left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Not ordinary guest memory (a hole, a device, a page that is already shared by content).
    NotRam,
    /// Someone else holds it: a grant, a foreign mapping, the device model, a type reference.
    Held,
    /// Its bytes are not zero, and the profile demands it.
    NotZero,
    /// The paging pool cannot supply a page table.
    NoPool,
    /// The p2m refused the entry.
    EntryRefused,
    /// Log-dirty mode was turned on.
    LogDirty,
    /// It is a zero frame already.
    Already,
    /// The domain is being destroyed.
    Dying,
    /// Its bytes are not those of the page that it was to share a frame with.
    Differs,
    /// The frame that it was to share has as many sharers as a frame may have.
    Full,
    /// The hypervisor has no memory to keep book of another sharer.
    NoMemory,
    /// The domain with which it was to share is gone, or not of the same trust group.
    NoPartner,
}

impl Skip {
    /// Number of reasons.
    pub const COUNT: usize = 12;

    /// Position of this reason in [`crate::SliceReport::skipped`]; the shim's code is one more.
    pub const fn index(self) -> usize {
        match self {
            Self::NotRam => 0,
            Self::Held => 1,
            Self::NotZero => 2,
            Self::NoPool => 3,
            Self::EntryRefused => 4,
            Self::LogDirty => 5,
            Self::Already => 6,
            Self::Dying => 7,
            Self::Differs => 8,
            Self::Full => 9,
            Self::NoMemory => 10,
            Self::NoPartner => 11,
        }
    }

    /// The reason with the shim's code `code`, 1 to 12.
    pub const fn from_code(code: i32) -> Option<Self> {
        Some(match code {
            1 => Self::NotRam,
            2 => Self::Held,
            3 => Self::NotZero,
            4 => Self::NoPool,
            5 => Self::EntryRefused,
            6 => Self::LogDirty,
            7 => Self::Already,
            8 => Self::Dying,
            9 => Self::Differs,
            10 => Self::Full,
            11 => Self::NoMemory,
            12 => Self::NoPartner,
            _ => return None,
        })
    }
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
    /// [`P2m::release`]. `order` is [`Order::PAGE`] or [`Order::SUPERPAGE`]. Returns the pages newly shared: a block may
    /// contain zero frames already.
    ///
    /// # Errors
    /// [`Skip`]; nothing has changed then.
    fn share_zero(&mut self, gfn: Gfn, order: Order, bytes: BytesRule) -> Result<u64, Skip>;
    /// Makes every processor forget old translations, and waits for it.
    fn flush(&mut self);
    /// Scrubs and frees what [`P2m::share_zero`] queued. The guest runs, no lock is held.
    fn release(&mut self);
    /// A monotonic clock, in nanoseconds.
    fn now(&mut self) -> u64;
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
