//! What a hash must tell apart, and how much it reads.

use std::boxed::Box;
use std::collections::BTreeSet;

use super::*;
use crate::{GuestPhys, PAGE_SIZE};

/// One frame, and how many bytes of it were read.
struct Page {
    bytes: Box<[u8]>,
    read: usize,
}

impl GuestMemory for Page {
    fn read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        if at.gfn() != Gfn::new(0) {
            return Err(ReadError::Absent(at.gfn()));
        }
        into.copy_from_slice(&self.bytes[at.offset()..at.offset() + into.len()]);
        self.read += into.len();
        Ok(())
    }
}

fn page(bytes: impl Fn(usize) -> u8) -> Page {
    Page {
        bytes: (0..PAGE_SIZE).map(bytes).collect(),
        read: 0,
    }
}

fn digest(page: &mut Page) -> Digest {
    Seed::new(7).digest(page, Gfn::new(0)).unwrap()
}

#[test]
fn no_bit_can_change_unnoticed() {
    // One with lines of zeros at its beginning, one of zeros, and one without any.
    for mut page in [
        page(|at| u8::from(at >= 1000)),
        page(|_| 0),
        page(|at| at.to_le_bytes()[0] | 1),
    ] {
        let mut met = BTreeSet::from([digest(&mut page).get()]);
        for bit in 0..PAGE_SIZE * 8 {
            page.bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(met.insert(digest(&mut page).get()), "bit {bit}");
            page.bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn the_same_bytes_elsewhere_in_the_page_are_another_page() {
    let mut met = BTreeSet::new();
    for first in (0..PAGE_SIZE).step_by(8) {
        let mut page = page(|at| u8::from(at / 8 == first / 8) * 0x5a);
        assert!(met.insert(digest(&mut page).get()), "word at {first}");
    }
}

#[test]
fn only_a_page_of_zeros_is_zero() {
    assert!(digest(&mut page(|_| 0)).is_zero());
    for place in [0, 7, 8, 63, 64, 2048, PAGE_SIZE - 64, PAGE_SIZE - 1] {
        assert!(
            !digest(&mut page(|at| u8::from(at == place))).is_zero(),
            "{place}"
        );
    }
}

#[test]
fn who_does_not_know_the_secret_cannot_tell_a_hash() {
    let mut page = page(|at| at.to_le_bytes()[0]);
    let hashes = (0..100).map(|random| Seed::new(random).digest(&mut page, Gfn::new(0)).unwrap());
    assert_eq!(hashes.map(Digest::get).collect::<BTreeSet<_>>().len(), 100);
}

/// Bytes that would cancel a published secret of rapidhash leave the hash as it is bound to be: one that
/// depends on everything before them.
#[test]
fn published_secrets_do_not_erase_what_came_before() {
    let published = rapidhash::v3::DEFAULT_RAPID_SECRETS.secrets;
    for secret in published {
        let mut met = BTreeSet::new();
        for first in 1..=255 {
            let mut page = page(|at| {
                let word = at / 8;
                if word == 0 {
                    first
                } else if word % 2 == 1 {
                    secret.to_le_bytes()[at % 8]
                } else {
                    0
                }
            });
            assert!(met.insert(digest(&mut page).get()), "{secret:#x} {first}");
        }
    }
}

#[test]
fn a_page_is_read_once() {
    for zeros in [0, 1, 64, 65, 3000, PAGE_SIZE] {
        let mut page = page(|at| u8::from(at >= zeros));
        digest(&mut page);
        // The line at which the zeros end is looked at again.
        assert!(page.read <= PAGE_SIZE + 64, "{zeros}: {} bytes", page.read);
    }
}

#[test]
fn a_frame_that_is_not_there_has_no_hash() {
    let absent = Seed::new(7).digest(&mut page(|_| 0), Gfn::new(1));
    assert_eq!(absent, Err(ReadError::Absent(Gfn::new(1))));
}

#[test]
fn is_zero_agrees_and_stops_at_the_first_word_that_is_not() {
    for place in [0, 100, PAGE_SIZE - 1] {
        let mut page = page(|at| u8::from(at == place));
        assert_eq!(page.is_zero(Gfn::new(0)), Ok(false));
        assert_eq!(page.read, (place / 64 + 1) * 64);
    }
    assert_eq!(page(|_| 0).is_zero(Gfn::new(0)), Ok(true));
}
