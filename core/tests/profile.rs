//! The profile's encoding and its self-checks: what is encoded comes back, and nothing else is taken for a profile.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;

use lacuna_core::mock::{Config, Layout, MapPages, MockGuest, profile};
use lacuna_core::{
    BytesRule, Contents, Field, FieldRule, GuestPhys, GuestVirt, MAX_PROFILE_BYTES, MemoryMap, Order,
    PagingLevels, Profile, ProfileError, RootSlot, Status, ZoneCounter,
};
use proptest::prelude::*;

fn encoded(profile: &Profile) -> Vec<u8> {
    profile.encode(&mut [0; MAX_PROFILE_BYTES]).unwrap().to_vec()
}

/// CRC-32C by table: written apart from the one under test.
fn crc32c(bytes: &[u8]) -> u32 {
    let table: Vec<u32> = (0..256_u32)
        .map(|byte| (0..8).fold(byte, |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1))))
        .collect();
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        table[usize::from((crc ^ u32::from(*byte)).to_le_bytes()[0])] ^ (crc >> 8)
    })
}

/// A header with the right magic, version, length and checksum around any body.
fn framed(body: &[u8]) -> Vec<u8> {
    let mut bytes = b"LCNA\x01\0\0\0".to_vec();
    bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
    bytes.extend(crc32c(body).to_le_bytes());
    bytes.extend(body);
    bytes
}

/// A profile encoded without the check that [`Profile::encode`] makes.
fn forced(profile: &Profile) -> Vec<u8> {
    let mut room = [0; MAX_PROFILE_BYTES];
    framed(postcard::to_slice(profile, &mut room).unwrap())
}

prop_compose! {
    fn valid_profile()(
        layout in prop::sample::select(&Layout::ALL[..]),
        five in any::<bool>(),
        map_pages in prop::sample::select(vec![MapPages::Small, MapPages::Large, MapPages::Huge]),
        release in "[ -~]{0,64}",
        hash in any::<[u8; 16]>(),
        zeroed in any::<(bool, bool)>(),
        max_order in 1_u64..=18,
        zones in 1_usize..=128,
        boot_value in 1_u64..,
        more_slots in prop::collection::btree_set(256_u16..512, 0..=6),
    ) -> Profile {
        let levels = if five { PagingLevels::Five } else { PagingLevels::Four };
        let mut profile = MockGuest::new(&Config { layout, levels, map_pages, ..Config::default() }).profile();
        profile.kernel.release = release.as_str().try_into().unwrap();
        profile.kernel.layout = hash;
        profile.contents = if zeroed.0 { Contents::Zero } else { Contents::DontCare };
        profile.free.bytes = if zeroed.1 { BytesRule::Zero } else { BytesRule::Any };
        profile.free.max_order = Order::new(max_order).unwrap();
        let zone = profile.zones[0];
        profile.zones = (0..zones).map(|_| zone).collect();
        profile.guard.boot_value = boot_value;
        for index in more_slots {
            if profile.guard.root_slots.iter().all(|slot| slot.index != index) {
                profile.guard.root_slots.push(RootSlot { index, entry: 0x1001 }).unwrap();
            }
        }
        profile
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_encoded_comes_back(profile in valid_profile()) {
        let bytes = encoded(&profile);
        prop_assert!(bytes.len() <= MAX_PROFILE_BYTES);
        prop_assert_eq!(Profile::decode(&bytes), Ok(profile.clone()));
        // The member-by-member decoder reads exactly what serde derives.
        prop_assert_eq!(bytes, forced(&profile));
    }

    #[test]
    fn a_place_that_held_another_profile_holds_only_the_new_one(old in valid_profile(), new in valid_profile()) {
        let mut place = old;
        prop_assert_eq!(place.decode_from(&encoded(&new)), Ok(()));
        prop_assert_eq!(place, new);
    }

    #[test]
    fn random_bodies_are_refused_or_keep_every_rule(body in prop::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(profile) = Profile::decode(&framed(&body)) {
            prop_assert_eq!(profile.check(), Ok(()));
        }
    }

    #[test]
    fn damaged_bodies_with_a_right_checksum_are_refused_or_keep_every_rule(
        at in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        let mut body = encoded(&profile())[16..].to_vec();
        let at = at.index(body.len());
        body[at] = value;
        if let Ok(profile) = Profile::decode(&framed(&body)) {
            prop_assert_eq!(profile.check(), Ok(()));
        }
        body.truncate(cut.index(body.len()));
        prop_assert!(Profile::decode(&framed(&body)).is_err());
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    let good = encoded(&profile());
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Profile::decode(&bytes).is_err(), "bit {bit} flipped unnoticed");
    }
}

#[test]
fn every_truncation_and_every_surplus_is_refused() {
    let good = encoded(&profile());
    for length in 0..good.len() {
        let needed = if length < 16 { 16 } else { good.len() };
        assert_eq!(
            Profile::decode(&good[..length]),
            Err(ProfileError::Truncated {
                given: length,
                needed
            })
        );
    }
    let mut longer = good.clone();
    longer.push(0);
    assert_eq!(Profile::decode(&longer), Err(ProfileError::Encoding));
    // Surplus that the header and the checksum vouch for.
    let mut body = good[16..].to_vec();
    body.push(0);
    assert_eq!(Profile::decode(&framed(&body)), Err(ProfileError::Encoding));
}

#[test]
fn size_magic_and_version_are_refused_by_name() {
    let large = vec![0; MAX_PROFILE_BYTES + 1];
    assert_eq!(
        Profile::decode(&large),
        Err(ProfileError::TooLarge(MAX_PROFILE_BYTES + 1))
    );
    let mut bytes = encoded(&profile());
    bytes[4] = 2;
    assert_eq!(Profile::decode(&bytes), Err(ProfileError::Version(2)));
    bytes[0] = b'X';
    assert_eq!(
        Profile::decode(&bytes).unwrap_err().status().0,
        Status::ProfileMagic
    );
}

#[test]
fn too_many_zones_are_refused_before_they_are_read() {
    let one = profile();
    let mut body = encoded(&one)[16..].to_vec();
    // The count of zones is the first byte after the two-valued `contents`: find it by encoding one zone more.
    let mut two = one.clone();
    two.zones.push(two.zones[0]).unwrap();
    let other = encoded(&two)[16..].to_vec();
    let at = body.iter().zip(&other).position(|(a, b)| a != b).unwrap();
    assert_eq!((body[at], other[at]), (2, 3));
    // 129 as a variable-length number.
    body.splice(at..=at, [0x81, 0x01]);
    assert_eq!(
        Profile::decode(&framed(&body)),
        Err(ProfileError::Field {
            rule: FieldRule::Zones,
            value: 129
        })
    );
}

/// One profile for each way to break a rule.
fn broken() -> Vec<(FieldRule, Profile)> {
    let good = profile();
    let mut all = Vec::new();
    let mut with = |rule, change: &dyn Fn(&mut Profile)| {
        let mut profile = good.clone();
        change(&mut profile);
        all.push((rule, profile));
    };
    with(FieldRule::RootAligned, &|p| p.root = GuestPhys::new(0x1008));
    with(FieldRule::RootAligned, &|p| p.root = GuestPhys::new(1 << 52));
    for size in [0, 4, 66, 516, u16::MAX] {
        with(FieldRule::DescriptorSize, &|p| p.descriptor_bytes = size);
    }
    for base in [0, 0x7fff_ffff_f000, 0x8000_0000_0000, 0xffff_ea00_0000_0004] {
        with(FieldRule::MemoryMapBase, &|p| {
            p.memory_map = MemoryMap::Vmemmap {
                base: GuestVirt::new(base),
            };
        });
    }
    for field in [
        Field { offset: 61, width: 4 },
        Field { offset: 0, width: 3 },
        Field { offset: 0, width: 0 },
        Field {
            offset: u16::MAX,
            width: 8,
        },
    ] {
        with(FieldRule::FieldPlace, &|p| p.free.predicate.field = field);
        with(FieldRule::FieldPlace, &|p| p.free.order = field);
        with(FieldRule::FieldPlace, &|p| p.free.references = field);
    }
    with(FieldRule::FieldOverlap, &|p| p.free.order.offset = 44);
    with(FieldRule::FieldOverlap, &|p| {
        p.free.references = p.free.predicate.field;
    });
    with(FieldRule::PredicateMask, &|p| p.free.predicate.mask = 0);
    with(FieldRule::PredicateMask, &|p| p.free.predicate.mask = 1 << 32);
    with(FieldRule::PredicateValue, &|p| p.free.predicate.expected = 0);
    with(FieldRule::PredicateValue, &|p| p.free.predicate.expected |= 1);
    with(FieldRule::MaxOrder, &|p| p.free.max_order = Order::PAGE);
    with(FieldRule::Zones, &|p| p.zones.clear());
    let zone = good.zones[0];
    for bad in [
        ZoneCounter {
            array: GuestVirt::new(0x1000),
            ..zone
        },
        ZoneCounter {
            array: GuestVirt::new(zone.array.get() + 4),
            ..zone
        },
        ZoneCounter { stride: 0, ..zone },
        ZoneCounter { stride: 4104, ..zone },
        ZoneCounter { stride: 60, ..zone },
        ZoneCounter {
            count_offset: 60,
            ..zone
        },
        ZoneCounter {
            count_offset: 4,
            ..zone
        },
    ] {
        with(FieldRule::ZonePlace, &|p| p.zones[0] = bad);
    }
    with(FieldRule::RootSlots, &|p| p.guard.root_slots.clear());
    for (index, entry) in [
        (255, 0x1001),
        (512, 0x1001),
        (300, 0x1000),
        (300, 0x1021),
        (300, 0x1041),
    ] {
        with(FieldRule::RootSlots, &|p| {
            p.guard.root_slots[0] = RootSlot { index, entry };
        });
    }
    with(FieldRule::RootSlots, &|p| {
        p.guard.root_slots[1] = p.guard.root_slots[0];
    });
    // Without the entry that maps the boot value, or the memory map.
    for position in 0..2 {
        with(FieldRule::RootSlots, &|p| {
            p.guard.root_slots.remove(position);
        });
    }
    with(FieldRule::GuardAddress, &|p| p.guard.idt_base = 0);
    with(FieldRule::GuardAddress, &|p| p.guard.lstar = 0x40_0000);
    with(FieldRule::GuardAddress, &|p| {
        p.guard.boot_value_at = GuestVirt::new(1 << 47);
    });
    for limit in [0, 510, 4096] {
        with(FieldRule::GuardIdtLimit, &|p| p.guard.idt_limit = limit);
    }
    with(FieldRule::GuardBootValue, &|p| p.guard.boot_value = 0);
    all
}

#[test]
fn each_broken_rule_is_refused_by_its_number() {
    let all = broken();
    for rule in 1..=14_u64 {
        assert!(
            all.iter().any(|(broken, _)| *broken as u64 == rule),
            "rule {rule} has no case"
        );
    }
    for (rule, profile) in all {
        let found = |error: ProfileError| match error {
            ProfileError::Field { rule, .. } => Some(rule),
            _ => None,
        };
        let check = profile.check().expect_err("a broken rule passes");
        assert_eq!(found(check), Some(rule), "{profile:?}");
        let decode = Profile::decode(&forced(&profile)).expect_err("a broken rule decodes");
        assert_eq!(found(decode), Some(rule));
        assert_eq!(decode.status().1[0], rule as u64);
        assert!(
            profile.encode(&mut [0; MAX_PROFILE_BYTES]).is_err(),
            "a broken profile is encoded"
        );
    }
}

#[test]
fn a_buffer_too_small_is_no_panic() {
    let profile = profile();
    let length = encoded(&profile).len();
    for room in [0, 15, 16, 17, length - 1] {
        assert_eq!(profile.encode(&mut vec![0; room]), Err(ProfileError::NoRoom));
    }
    assert!(profile.encode(&mut vec![0; length]).is_ok());
}

/// The bytes of version 1. They change only together with the version.
#[test]
fn version_one_has_these_bytes() {
    let mut hex = String::new();
    for byte in encoded(&profile()) {
        write!(hex, "{byte:02x}").unwrap();
    }
    assert_eq!(hex, include_str!("golden/profile-v1.hex").trim());
}
