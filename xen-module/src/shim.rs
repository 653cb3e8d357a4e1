//! What Xen's C side offers. One line here for each function of `xen/arch/x86/lacuna/core.h`; the wrappers that make them
//! safe to call are in [`crate::host`].

use core::ffi::{c_int, c_void};

use lacuna_core::VcpuRegisters;
use lacuna_core::abi::{GfnInfo, ShimCounters};

/// Xen's `struct domain`, never looked into.
#[repr(C)]
pub(crate) struct Domain {
    _opaque: [u8; 0],
}

/// `struct lacuna_content_area`: where the C side keeps the content stage's memory, in words of 64 bits.
#[repr(C)]
pub(crate) struct RawContentArea {
    pub(crate) rounds: *mut u64,
    pub(crate) rounds_words: u64,
    pub(crate) index: *mut u64,
    pub(crate) index_words: u64,
    pub(crate) seed: u64,
}

// As the C side asserts (`build_assertions` of `domctl.c`).
const _: () = assert!(size_of::<RawContentArea>() == 40);

unsafe extern "C" {
    pub(crate) fn lacuna_x_map(d: *mut Domain, gfn: u64, va: *mut *const c_void, token: *mut u64) -> c_int;
    pub(crate) fn lacuna_x_unmap(va: *const c_void, token: u64);
    pub(crate) fn lacuna_x_vcpus(d: *mut Domain) -> u32;
    pub(crate) fn lacuna_x_vcpu(d: *mut Domain, id: u32, out: *mut VcpuRegisters) -> c_int;
    pub(crate) fn lacuna_x_pause(d: *mut Domain);
    pub(crate) fn lacuna_x_unpause(d: *mut Domain);
    pub(crate) fn lacuna_x_paused_by_toolstack(d: *mut Domain) -> bool;
    pub(crate) fn lacuna_x_p2m_lock(d: *mut Domain);
    pub(crate) fn lacuna_x_p2m_unlock(d: *mut Domain);
    pub(crate) fn lacuna_x_share_zero(d: *mut Domain, gfn: u64, order: u32, flags: u32) -> c_int;
    pub(crate) fn lacuna_x_flush(d: *mut Domain);
    pub(crate) fn lacuna_x_release(d: *mut Domain);
    pub(crate) fn lacuna_x_blocker(d: *mut Domain) -> u32;
    pub(crate) fn lacuna_x_max_gfn(d: *mut Domain) -> u64;
    pub(crate) fn lacuna_x_bitmap(
        d: *mut Domain,
        gfns: u64,
        words: *mut *mut u64,
        covered: *mut u64,
    ) -> c_int;
    pub(crate) fn lacuna_x_header(d: *mut Domain) -> *mut u64;
    pub(crate) fn lacuna_x_now() -> u64;
    pub(crate) fn lacuna_x_preempt(d: *mut Domain) -> bool;
    pub(crate) fn lacuna_x_gfn_info(d: *mut Domain, gfn: u64, out: *mut GfnInfo);
    pub(crate) fn lacuna_x_counters(d: *mut Domain, out: *mut ShimCounters);
    pub(crate) fn lacuna_x_content_area(d: *mut Domain, gfns: u64, out: *mut RawContentArea) -> c_int;
    pub(crate) fn lacuna_x_domain_id(d: *mut Domain) -> u16;
    pub(crate) fn lacuna_x_page_state(d: *mut Domain, gfn: u64) -> u32;
    pub(crate) fn lacuna_x_equal(d: *mut Domain, gfn: u64, domid: u16, partner: u64) -> bool;
    pub(crate) fn lacuna_x_pair_lock(d: *mut Domain, domid: u16) -> c_int;
    pub(crate) fn lacuna_x_pair_unlock(d: *mut Domain);
    pub(crate) fn lacuna_x_protect(d: *mut Domain, gfn: u64) -> c_int;
    pub(crate) fn lacuna_x_restore(d: *mut Domain, gfn: u64);
    pub(crate) fn lacuna_x_protect_partner(d: *mut Domain, gfn: u64) -> c_int;
    pub(crate) fn lacuna_x_restore_partner(d: *mut Domain, gfn: u64);
    pub(crate) fn lacuna_x_merge(d: *mut Domain, gfn: u64, partner: u64, most: u32) -> c_int;
    /// Offered by debug builds of Xen alone: an object with the feature `mutants` does not link into a release.
    #[cfg(feature = "mutants")]
    pub(crate) fn lacuna_x_mutants_allowed();
}
