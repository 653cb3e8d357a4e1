//! Declares the functions of Xen's C side, as in `xen/arch/x86/lacuna/core.h`. The wrappers that make them
//! safe to call are in [`crate::xen_domain`].

use core::ffi::{c_int, c_void};

use lacuna_core::VcpuRegisters;
use lacuna_core::abi::{GfnInfo, ShimCounters};

/// Xen's `struct domain`, which is opaque here.
#[repr(C)]
pub(crate) struct Domain {
    _opaque: [u8; 0],
}

/// `struct lacuna_part`: words of a table; none where `words` is null.
#[repr(C)]
pub(crate) struct RawPart {
    pub(crate) first: u64,
    pub(crate) end: u64,
    pub(crate) words: *mut u64,
}

/// `struct lacuna_bound`: bytes that the tables take, and may take, and the domain's pages.
#[derive(Default)]
#[repr(C)]
pub(crate) struct RawBound {
    pub(crate) held: u64,
    pub(crate) most: u64,
    pub(crate) pages: u64,
}

// As the C side asserts (`build_assertions` of `domctl.c`).
const _: () = assert!(size_of::<RawPart>() == 24);
const _: () = assert!(size_of::<RawBound>() == 24);

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
    pub(crate) fn lacuna_x_share_zero_pages(d: *mut Domain, gfn: u64, pages: *mut u64, flags: u32) -> c_int;
    pub(crate) fn lacuna_x_flush(d: *mut Domain);
    pub(crate) fn lacuna_x_release(d: *mut Domain);
    pub(crate) fn lacuna_x_take_written(d: *mut Domain, gfn: u64, nr: u32, written: *mut u64);
    pub(crate) fn lacuna_x_blocker(d: *mut Domain) -> u32;
    pub(crate) fn lacuna_x_max_gfn(d: *mut Domain) -> u64;
    pub(crate) fn lacuna_x_part(d: *mut Domain, table: u32, at: u64, out: *mut RawPart);
    pub(crate) fn lacuna_x_extend(d: *mut Domain, table: u32, at: u64, bound: *mut RawBound) -> c_int;
    pub(crate) fn lacuna_x_make_header(d: *mut Domain) -> c_int;
    pub(crate) fn lacuna_x_header(d: *mut Domain) -> *mut u64;
    pub(crate) fn lacuna_x_now() -> u64;
    pub(crate) fn lacuna_x_preempt(d: *mut Domain) -> bool;
    pub(crate) fn lacuna_x_gfn_info(d: *mut Domain, gfn: u64, out: *mut GfnInfo);
    pub(crate) fn lacuna_x_counters(d: *mut Domain, out: *mut ShimCounters);
    pub(crate) fn lacuna_x_index(d: *mut Domain, seed: *mut u64) -> u64;
    pub(crate) fn lacuna_x_domain_id(d: *mut Domain) -> u16;
    pub(crate) fn lacuna_x_page_state(
        d: *mut Domain,
        gfn: u64,
        va: *mut *const c_void,
        token: *mut u64,
    ) -> u32;
    pub(crate) fn lacuna_x_equal(d: *mut Domain, gfn: u64, domid: u16, partner: u64) -> bool;
    pub(crate) fn lacuna_x_pair_lock(d: *mut Domain, domid: u16) -> c_int;
    pub(crate) fn lacuna_x_pair_unlock(d: *mut Domain);
    pub(crate) fn lacuna_x_protect(d: *mut Domain, gfn: u64) -> c_int;
    pub(crate) fn lacuna_x_restore(d: *mut Domain, gfn: u64);
    pub(crate) fn lacuna_x_protect_partner(d: *mut Domain, gfn: u64) -> c_int;
    pub(crate) fn lacuna_x_restore_partner(d: *mut Domain, gfn: u64);
    pub(crate) fn lacuna_x_merge(d: *mut Domain, gfn: u64, partner: u64, most: u32) -> c_int;
    /// Exists in debug builds of Xen alone, so an object with the feature `mutants` does not link into a
    /// release.
    #[cfg(feature = "mutants")]
    pub(crate) fn lacuna_x_mutants_allowed();
}
