//! The fuzz targets' bodies on random bytes, for every toolchain: no input makes the engine panic or work
//! without bound.

use lacuna_core::MAX_PROFILE_BYTES;
use lacuna_mock::hostile::{any_profile, any_profile_body, hostile_guest};
use lacuna_mock::profile;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn no_guest_and_no_request_breaks_the_engine(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
        hostile_guest(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn no_bytes_break_the_decoder(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
        any_profile(&bytes);
        any_profile_body(&bytes);
    }

    #[test]
    fn no_change_of_a_good_profile_breaks_the_decoder(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        insert in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut room = [0; MAX_PROFILE_BYTES];
        let mut body = profile().encode(&mut room).expect("it is valid")[16..].to_vec();
        for (at, value) in changes {
            let at = at.index(body.len());
            body[at] = value;
        }
        if let Some((at, value)) = insert { body.insert(at.index(body.len()), value); }
        any_profile_body(&body);
    }
}

/// Shows that the inputs get somewhere: most reach the operations.
#[test]
fn random_guests_are_mostly_admitted_to_the_operations() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut operations = 0;
    for _ in 0..200 {
        let bytes: Vec<u8> = (0..800)
            .map(|_| {
                // Marsaglia's xorshift64.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[3]
            })
            .collect();
        operations += hostile_guest(&bytes);
    }
    assert!(operations > 400, "only {operations} operations in 200 guests");
}
