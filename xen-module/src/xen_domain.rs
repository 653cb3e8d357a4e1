//! Implements `lacuna-core`'s traits by Xen's functions.

use core::ops::ControlFlow;

use lacuna_core::abi::{GfnInfo, ShimCounters};
use lacuna_core::boundary::SHARE_ONLY_ZERO;
use lacuna_core::{
    Blocker, BytesRule, Gfn, GuestMemory, GuestPhys, LINE, MAX_WRITTEN, Order, P2m, Predicate, ReadError,
    Row, SharedPages, Skip, Status, VcpuRegisters, Writes, count_failing_one_by_one, value_by_bytes,
};

use crate::mapped_frame::MappedFrame;
use crate::shim::{self, Domain};

/// The flags of `lacuna_x_share_zero` and `lacuna_x_share_zero_pages`.
const fn flags(bytes: BytesRule) -> u32 {
    match bytes {
        BytesRule::Any => 0,
        BytesRule::Zero => SHARE_ONLY_ZERO,
    }
}

/// One domain, during one operation.
///
/// # Invariant
///
/// `domain` is a live domain other than the caller's own, held by a reference for as long as this value
/// exists, and the domain's Lacuna lock is held. The caller of [`XenDomain::new`] promises it, and
/// every `unsafe` block below relies on it.
pub(crate) struct XenDomain {
    pub(crate) domain: *mut Domain,
    /// The frame that was read last, kept mapped: the next read is often of the same frame, since descriptors
    /// and page-table entries of neighbouring pages lie side by side.
    pub(crate) last: Option<MappedFrame>,
}

impl XenDomain {
    /// Creates the hypervisor's side of an operation on `domain`.
    ///
    /// # Safety
    /// The caller promises the invariant of the type.
    pub(crate) const unsafe fn new(domain: *mut Domain) -> Self {
        Self { domain, last: None }
    }

    #[inline]
    fn frame(&mut self, gfn: Gfn) -> Result<&MappedFrame, ReadError> {
        if self.last.as_ref().is_none_or(|frame| frame.gfn() != gfn) {
            // Unmap first: the hypervisor has few mapping slots.
            self.last = None;
            self.last = MappedFrame::map(self.domain, gfn);
        }
        self.last.as_ref().ok_or(ReadError::Absent(gfn))
    }
}

impl GuestMemory for XenDomain {
    fn read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        self.frame(at.gfn())?
            .copy(at.offset(), into)
            .ok_or(ReadError::CrossesFrame(at))
    }

    #[inline]
    fn read_value(&mut self, at: GuestPhys, width: u8) -> Result<u64, ReadError> {
        match self.frame(at.gfn())?.value(at.offset(), width) {
            Some(value) => Ok(value),
            None => value_by_bytes(self, at, width),
        }
    }

    fn count_failing(&mut self, row: Row, test: &Predicate) -> Result<u64, ReadError> {
        if let Some(passed_over) = self.frame(row.first.gfn())?.count_failing(row, test) {
            return Ok(passed_over);
        }
        count_failing_one_by_one(self, row, test)
    }

    #[inline]
    fn lines<F>(&mut self, gfn: Gfn, first: usize, take: F) -> Result<(), ReadError>
    where
        F: FnMut(&[u64; LINE]) -> ControlFlow<()>,
    {
        self.frame(gfn)?.lines(first, take);
        Ok(())
    }
}

impl P2m for XenDomain {
    fn pause(&mut self) {
        // A mapping made while the guest ran may be of a frame that the guest has since moved elsewhere.
        self.last = None;
        // SAFETY: invariant; not the caller's own domain.
        unsafe { shim::lacuna_x_pause(self.domain) };
    }

    fn unpause(&mut self) {
        self.last = None;
        // SAFETY: invariant; the engine calls it once for each `pause`.
        unsafe { shim::lacuna_x_unpause(self.domain) };
    }

    fn vcpus(&mut self) -> u32 {
        // SAFETY: invariant.
        unsafe { shim::lacuna_x_vcpus(self.domain) }
    }

    fn registers(&mut self, vcpu: u32) -> VcpuRegisters {
        let mut registers = VcpuRegisters::default();
        // SAFETY: invariant; the out-pointer is to a local of the layout that the C side asserts.
        let result = unsafe { shim::lacuna_x_vcpu(self.domain, vcpu, &raw mut registers) };
        if result == 0 {
            registers
        } else {
            // An online virtual CPU whose registers are all wrong: the identity check refuses it.
            VcpuRegisters {
                flags: VcpuRegisters::ONLINE,
                ..VcpuRegisters::default()
            }
        }
    }

    fn lock(&mut self) {
        self.last = None;
        // SAFETY: invariant; no p2m lock is held (the engine pairs `lock` and `unlock`).
        unsafe { shim::lacuna_x_p2m_lock(self.domain) };
    }

    fn unlock(&mut self) {
        self.last = None;
        // SAFETY: invariant; taken by `lock`.
        unsafe { shim::lacuna_x_p2m_unlock(self.domain) };
    }

    fn share_zero(&mut self, gfn: Gfn, order: Order, bytes: BytesRule) -> Result<u64, Skip> {
        // Our own mapping holds a reference: it would make the frame look held.
        self.last = None;
        // SAFETY: invariant; the engine holds the p2m lock.
        let result = unsafe {
            shim::lacuna_x_share_zero(self.domain, gfn.get(), u32::from(order.get()), flags(bytes))
        };
        u64::try_from(result).map_err(|_| Skip::from_result(result))
    }

    fn share_zero_pages(&mut self, first: Gfn, pages: u64, bytes: BytesRule) -> SharedPages {
        // As above.
        self.last = None;
        let mut left = pages;
        // SAFETY: invariant; the engine holds the p2m lock. The pointer is to a local.
        let result =
            unsafe { shim::lacuna_x_share_zero_pages(self.domain, first.get(), &raw mut left, flags(bytes)) };
        let refused = (result < 0).then(|| Skip::from_result(result));
        SharedPages { left, refused }
    }

    fn flush(&mut self) {
        // SAFETY: invariant; the engine holds the p2m lock.
        unsafe { shim::lacuna_x_flush(self.domain) };
    }

    fn release(&mut self) {
        self.last = None;
        // SAFETY: invariant; the p2m lock is not held.
        unsafe { shim::lacuna_x_release(self.domain) };
    }

    fn now(&mut self) -> u64 {
        // SAFETY: no precondition.
        unsafe { shim::lacuna_x_now() }
    }
}

impl Writes for XenDomain {
    fn take_written(&mut self, first: Gfn, count: u32) -> [u64; 8] {
        let mut written = [u64::MAX; 8];
        if count > MAX_WRITTEN {
            return written;
        }
        // SAFETY: invariant; no p2m lock is held. The pointer is to a local that has a bit for each of
        // `MAX_WRITTEN` frames, and the C side writes the words that have one of the first `count`.
        unsafe { shim::lacuna_x_take_written(self.domain, first.get(), count, written.as_mut_ptr()) };
        if written != [0; 8] {
            // It is going to be read, and the frame that is mapped may not be there any more.
            self.last = None;
        }
        written
    }
}

impl lacuna_core::Domain for XenDomain {
    fn blocker(&mut self) -> Option<(Status, u64)> {
        // SAFETY: invariant.
        let reason = unsafe { shim::lacuna_x_blocker(self.domain) };
        if reason == 0 {
            return None;
        }
        let status = Blocker::from_code(reason).map_or(Status::Blocked, Blocker::status);
        Some((status, u64::from(reason)))
    }

    fn gfns(&mut self) -> u64 {
        // SAFETY: invariant.
        unsafe { shim::lacuna_x_max_gfn(self.domain) }
    }

    fn preempted(&mut self) -> bool {
        // SAFETY: invariant.
        unsafe { shim::lacuna_x_preempt(self.domain) }
    }

    fn paused_by_toolstack(&mut self) -> bool {
        // SAFETY: invariant.
        unsafe { shim::lacuna_x_paused_by_toolstack(self.domain) }
    }

    fn counters(&mut self) -> ShimCounters {
        let mut counters = ShimCounters::default();
        // SAFETY: invariant; the out-pointer is to a local of the layout that the C side asserts.
        unsafe { shim::lacuna_x_counters(self.domain, &raw mut counters) };
        counters
    }

    fn gfn_info(&mut self, gfn: Gfn) -> GfnInfo {
        let mut info = GfnInfo::default();
        // SAFETY: as in `counters`.
        unsafe { shim::lacuna_x_gfn_info(self.domain, gfn.get(), &raw mut info) };
        info
    }
}
