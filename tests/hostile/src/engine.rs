//! The engine in the hypervisor: profiles from the toolstack, and guests that lie. The bodies are the core's
//! own.

use lacuna_core::MAX_PROFILE_BYTES;

/// Any bytes as a profile, as they are and as the body under a right header.
pub(crate) fn profile(bytes: &[u8]) -> bool {
    let whole = lacuna_mock::hostile::any_profile(bytes);
    lacuna_mock::hostile::any_profile_body(bytes) || whole
}

/// A valid profile, and its body alone.
pub(crate) fn profile_seeds() -> Vec<Vec<u8>> {
    let mut room = [0; MAX_PROFILE_BYTES];
    let whole = lacuna_mock::profile()
        .encode(&mut room)
        .unwrap_or_default()
        .to_vec();
    let body = whole.get(16..).unwrap_or_default().to_vec();
    vec![whole, body]
}

/// Any bytes as a guest, its profile and the toolstack's requests.
pub(crate) fn hostile_guest(bytes: &[u8]) -> bool {
    lacuna_mock::hostile::hostile_guest(bytes) > 0
}

/// Guests drawn at random that are admitted to some operation.
pub(crate) fn hostile_guest_seeds() -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let guests = (0..40).map(|_| {
        (0..800)
            .map(|_| {
                // Marsaglia's xorshift64.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[3]
            })
            .collect::<Vec<u8>>()
    });
    guests.filter(|bytes| hostile_guest(bytes)).take(8).collect()
}
