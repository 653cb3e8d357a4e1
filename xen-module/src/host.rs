//! `lacuna-core`'s traits on Xen.

use core::ptr;
use core::sync::atomic::AtomicU64;

use lacuna_core::abi::{GfnInfo, ShimCounters};
use lacuna_core::boundary::SHARE_ONLY_ZERO;
use lacuna_core::{
    BYTES_PER_PAGE, Blocker, BytesRule, ContentArea, Gfn, GuestMemory, GuestPhys, Host, Order, P2m,
    PAGE_SIZE, Predicate, ReadError, Row, Skip, Status, VcpuRegisters, failing_one_by_one, value_by_bytes,
};

use crate::content::words;
use crate::mapped_frame::MappedFrame;
use crate::shim::{self, Domain};

/// One domain, for the time of one operation.
///
/// # Invariant
///
/// `domain` is a live domain other than the caller's own, held by a reference for as long as this value exists, and the
/// domain's Lacuna lock is held. [`XenHost::new`]'s caller promises it; every `unsafe` block below leans on it.
pub(crate) struct XenHost {
    pub(crate) domain: *mut Domain,
    /// The frame read last. Descriptors of neighbours lie side by side, and so do page-table entries.
    pub(crate) last: Option<MappedFrame>,
}

impl XenHost {
    /// # Safety
    /// The invariant of the type.
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

impl GuestMemory for XenHost {
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

    fn failing(&mut self, row: Row, test: &Predicate) -> Result<u64, ReadError> {
        if let Some(passed_over) = self.frame(row.first.gfn())?.failing(row, test) {
            return Ok(passed_over);
        }
        failing_one_by_one(self, row, test)
    }
}

impl P2m for XenHost {
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
            // Online with no register right: the guard refuses it.
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
        let flags = match bytes {
            BytesRule::Any => 0,
            BytesRule::Zero => SHARE_ONLY_ZERO,
        };
        // Our own mapping holds a reference: it would make the frame look held.
        self.last = None;
        // SAFETY: invariant; the engine holds the p2m lock.
        let result =
            unsafe { shim::lacuna_x_share_zero(self.domain, gfn.get(), u32::from(order.get()), flags) };
        u64::try_from(result).map_err(|_| Skip::from_result(result))
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

/// The bitmap's words: hypervisor memory of the domain's Lacuna state.
pub(crate) struct Words(pub(crate) &'static [AtomicU64]);

impl AsRef<[AtomicU64]> for Words {
    fn as_ref(&self) -> &[AtomicU64] {
        self.0
    }
}

impl Host for XenHost {
    type Words = Words;

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

    fn bitmap(&mut self, gfns: u64) -> Result<Self::Words, u64> {
        let mut words: *mut u64 = ptr::null_mut();
        let mut covered = 0;
        // SAFETY: invariant; both out-pointers are to locals.
        let result = unsafe { shim::lacuna_x_bitmap(self.domain, gfns, &raw mut words, &raw mut covered) };
        let Ok(length) = usize::try_from(covered / 64) else {
            return Err(gfns / 8);
        };
        if result != 0 {
            return Err(gfns / 8);
        }
        if words.is_null() || length == 0 {
            return Ok(Words(&[]));
        }
        // SAFETY: the C side keeps `covered` bits of zero-initialised, 8-byte-aligned memory at `words`, which only grows
        // (by another mapping) in this very function, and goes with the domain. The Lacuna lock is held throughout an
        // operation, `Words` do not outlive one, and the engine does not keep an older one across a growth. All access is
        // through atomics.
        Ok(Words(unsafe {
            core::slice::from_raw_parts(words.cast::<AtomicU64>(), length)
        }))
    }

    fn header(&mut self) -> Option<Self::Words> {
        // SAFETY: invariant.
        let words = unsafe { shim::lacuna_x_header(self.domain) };
        if words.is_null() {
            return None;
        }
        // SAFETY: the C side keeps a page at `words`, aligned to a page, that is mapped elsewhere when the bitmap grows and
        // goes with the domain. For the rest as in `bitmap`. Others who map it cannot write to it.
        Some(Words(unsafe {
            core::slice::from_raw_parts(words.cast::<AtomicU64>(), PAGE_SIZE / 8)
        }))
    }

    fn preempted(&mut self) -> bool {
        // SAFETY: invariant.
        unsafe { shim::lacuna_x_preempt(self.domain) }
    }

    fn paused_by_toolstack(&mut self) -> bool {
        // SAFETY: invariant.
        unsafe { shim::lacuna_x_paused_by_toolstack(self.domain) }
    }

    fn content_area(&mut self, gfns: u64) -> Result<ContentArea<Self::Words>, u64> {
        let mut area = shim::RawContentArea {
            rounds: ptr::null_mut(),
            rounds_words: 0,
            index: ptr::null_mut(),
            index_words: 0,
            seed: 0,
        };
        // SAFETY: invariant; the out-pointer is to a local of the C side's layout.
        let result = unsafe { shim::lacuna_x_content_area(self.domain, gfns, &raw mut area) };
        if result != 0 {
            return Err(gfns.saturating_mul(BYTES_PER_PAGE));
        }
        // SAFETY: the C side keeps that many words of zero-initialised, 8-byte-aligned memory at both places. The rounds
        // grow in this very function, which is called once in an operation; a domain's own index does not, nor does its
        // group's, which stays while the domain is a member: it leaves under the Lacuna lock. All access is by atomics.
        let (rounds, index) = unsafe {
            (
                words(area.rounds, area.rounds_words),
                words(area.index, area.index_words),
            )
        };
        Ok(ContentArea {
            rounds,
            index,
            seed: area.seed,
        })
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
