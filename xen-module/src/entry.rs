//! Defines the functions that Xen's C side calls (`xen/arch/x86/lacuna/`, `linker/exported-symbols`).

use core::ffi::c_int;

use lacuna_core::abi::Request;
use lacuna_core::{Outcome, Refill, Session, Status};

use crate::shim::Domain;
use crate::xen_domain::XenDomain;

/// Pages of 4 KiB in a block of 2 MiB.
const BLOCK_PAGES: u64 = 512;
/// The request is done.
const FINISHED: c_int = 0;
/// Call again with the same request: a continuation.
const AGAIN: c_int = 1;
/// `-EPROTO` (`xen/include/public/errno.h`): refused, the request's `status` says why.
const REFUSED: c_int = -71;

/// Returns the size in bytes of the state for one domain, to be allocated 16-byte aligned.
#[unsafe(no_mangle)]
pub extern "C" fn lacuna_core_state_size() -> usize {
    const { assert!(align_of::<Session>() <= 16) };
    size_of::<Session>()
}

/// Makes `state` a session without a profile.
///
/// # Safety
/// `state` points to [`lacuna_core_state_size`] bytes, 16-byte aligned, that nobody else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_core_init(state: *mut Session) {
    #[cfg(feature = "mutants")]
    // SAFETY: an empty function. The call is there for the linker to refuse a release build.
    unsafe {
        crate::shim::lacuna_x_mutants_allowed();
    }
    // SAFETY: the caller's promise; the old bytes are not a session and need no drop.
    unsafe { state.write(Session::new()) };
}

/// Carries out one operation. Returns 0 (done), 1 (call again) or `-EPROTO` (`request.status` says why).
///
/// # Safety
/// `domain` is live, referenced, and not the caller's own; its Lacuna lock is held. `state` was made by
/// [`lacuna_core_init`]. `request` is hypervisor memory; `buffer` is `buffer_size` bytes of it, or null with
/// 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_core_op(
    domain: *mut Domain,
    state: *mut Session,
    request: *mut Request,
    buffer: *mut u8,
    buffer_size: usize,
) -> c_int {
    // SAFETY: the caller's promises; the Lacuna lock makes these the only references to the session and the
    // request.
    let (session, request) = unsafe { (&mut *state, &mut *request) };
    let buffer = if buffer.is_null() || buffer_size == 0 {
        &mut [][..]
    } else {
        // SAFETY: the caller's promise: initialised hypervisor memory that nobody else uses.
        unsafe { core::slice::from_raw_parts_mut(buffer, buffer_size) }
    };
    // SAFETY: the caller's promise is the invariant of `XenDomain`.
    let mut xen_domain = unsafe { XenDomain::new(domain) };
    match session.operate(&mut xen_domain, request, buffer) {
        Outcome::Finished if request.status == Status::Done.code() => FINISHED,
        Outcome::Finished => REFUSED,
        Outcome::Again => AGAIN,
    }
}

/// Ends the use of the profile, because the domain went through Xen's soft reset.
///
/// # Safety
/// As for [`lacuna_core_op`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_core_reset(state: *mut Session, _reason: u32) {
    // SAFETY: the caller's promise; the Lacuna lock is held.
    unsafe { (*state).reset() };
}

/// Returns whether a guest that writes to a block of 2 MiB wholly on zero frames should get all of it.
///
/// # Safety
/// `refill` points to the domain's state of refills, which is all zero at first. The domain's p2m lock is
/// held for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_core_refill_wanted(refill: *const Refill) -> bool {
    // SAFETY: the caller's promise.
    unsafe { (*refill).wants_block() }
}

/// Records that the guest got all of such a block by one fault.
///
/// # Safety
/// As for [`lacuna_core_refill_wanted`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_core_refill_block(refill: *mut Refill) {
    // SAFETY: the caller's promise; the lock makes this the only reference.
    unsafe { (*refill).block_given() };
}

/// Records that the guest got the page `gfn` by a fault. `first` says that its block was wholly on zero
/// frames, in one entry, until now.
///
/// # Safety
/// As for [`lacuna_core_refill_wanted`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_core_refill_page(refill: *mut Refill, gfn: u64, first: bool) {
    // SAFETY: the caller's promise; the lock makes this the only reference.
    unsafe { (*refill).page_given(gfn / BLOCK_PAGES, first) };
}
