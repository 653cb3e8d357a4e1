//! Operations on a large guest, from their beginning to their end.

use lacuna_core::abi::{Op, Request};
use lacuna_core::{MAX_PROFILE_BYTES, Outcome, Session, Status};

use super::{LargeGuest, Work};

/// Carries out `op` over all of the guest, as often interrupted as its work has it, and returns what it asked
/// of the hypervisor.
///
/// # Errors
/// What it was refused with.
///
/// # Panics
/// When an interrupted operation has made no progress.
#[inline(never)]
pub fn operate(session: &mut Session, guest: &mut LargeGuest, op: Op) -> Result<Work, Status> {
    operate_by(session, guest, op, 0)
}

/// The same with `flags`.
///
/// # Errors
/// As [`operate`].
///
/// # Panics
/// As [`operate`].
#[inline(never)]
pub fn operate_by(session: &mut Session, guest: &mut LargeGuest, op: Op, flags: u32) -> Result<Work, Status> {
    guest.forget_work();
    let mut request = Request {
        op: op as u32,
        flags,
        ..Request::default()
    };
    while session.operate(guest, &mut request, &mut []) == Outcome::Again {
        let cursor = core::mem::replace(&mut guest.interrupted_at, request.cursor);
        assert!(
            cursor < request.cursor,
            "interrupted at {cursor:#x} without progress"
        );
    }
    guest.interrupted_at = 0;
    match Status::from_code(request.status) {
        Some(Status::Done) => Ok(guest.finished_work()),
        other => Err(other.unwrap_or(Status::BadRequest)),
    }
}

/// Gives `session` the guest's profile.
///
/// # Panics
/// When it is refused.
pub fn set_profile(session: &mut Session, guest: &mut LargeGuest) {
    let mut room = [0; MAX_PROFILE_BYTES];
    let mut bytes = guest
        .profile()
        .encode(&mut room)
        .expect("a profile fits")
        .to_vec();
    let mut request = Request {
        op: Op::SetProfile as u32,
        ..Request::default()
    };
    session.operate(guest, &mut request, &mut bytes);
    assert_eq!(request.status, Status::Done.code(), "the profile is refused");
}

/// Does that, and scans all memory, which admits it. Returns what the scan asked of the hypervisor.
///
/// # Errors
/// As [`operate`].
///
/// # Panics
/// As [`set_profile`].
pub fn admit(session: &mut Session, guest: &mut LargeGuest) -> Result<Work, Status> {
    set_profile(session, guest);
    operate(session, guest, Op::Scan)
}
