//! The profile's encoding and its self-checks: what is encoded comes back, and nothing else is taken for a
//! profile.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;

use lacuna_core::{
    Anchor, Blocks, BootValue, BytesRule, Contents, Extent, Field, FieldRule, FreeRule, Gate, Gfn, GuestPhys,
    GuestVirt, MAX_PROFILE_BYTES, MemoryMap, Order, PagingLevels, Predicate, Profile, ProfileError, RootSlot,
    Sections, Status, ZoneCounter,
};
use lacuna_mock::{Config, Layout, MapPages, MockGuest, profile};
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
    let mut bytes = b"LCNA\x02\0\0\0".to_vec();
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
        profile.free.blocks.as_mut().unwrap().max_order = Order::new(max_order).unwrap();
        let zone = profile.zones[0];
        profile.zones = (0..zones).map(|_| zone).collect();
        profile.identity.boot_value.as_mut().unwrap().value = boot_value;
        for index in more_slots {
            if profile.identity.root_slots.iter().all(|slot| slot.index != index) {
                profile.identity.root_slots.push(RootSlot { index, entry: 0x1001 }).unwrap();
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
    bytes[4] = 1;
    assert_eq!(Profile::decode(&bytes), Err(ProfileError::Version(1)));
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
    // The count of zones is the first byte after the two-valued `contents`: find it by encoding one zone
    // more.
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
        with(FieldRule::FieldPlace, &|p| blocks(p).order = field);
        with(FieldRule::FieldPlace, &|p| p.free.conditions[0].field = field);
    }
    with(FieldRule::FieldOverlap, &|p| blocks(p).order.offset = 44);
    with(FieldRule::FieldOverlap, &|p| {
        blocks(p).order = p.free.conditions[0].field;
    });
    with(FieldRule::PredicateMask, &|p| p.free.conditions[0].mask = 0);
    with(FieldRule::PredicateMask, &|p| {
        p.free.conditions[0].mask = 1 << 32;
    });
    with(FieldRule::PredicateValue, &|p| {
        p.free.conditions[0] = Predicate {
            mask: 1,
            expected: 2,
            ..p.free.conditions[0]
        };
    });
    with(FieldRule::Conditions, &|p| p.free.conditions.clear());
    with(FieldRule::BytesRule, &|p| p.free.blocks = None);
    with(FieldRule::PredicateMask, &|p| p.free.predicate.mask = 0);
    with(FieldRule::PredicateMask, &|p| p.free.predicate.mask = 1 << 32);
    with(FieldRule::PredicateValue, &|p| p.free.predicate.expected = 0);
    with(FieldRule::PredicateValue, &|p| p.free.predicate.expected |= 1);
    with(FieldRule::MaxOrder, &|p| blocks(p).max_order = Order::PAGE);
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
        ZoneCounter {
            count_bytes: 2,
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
    with(FieldRule::RootSlots, &|p| p.identity.root_slots.clear());
    for (index, entry) in [
        (255, 0x1001),
        (512, 0x1001),
        (300, 0x1000),
        (300, 0x1021),
        (300, 0x1041),
    ] {
        with(FieldRule::RootSlots, &|p| {
            p.identity.root_slots[0] = RootSlot { index, entry };
        });
    }
    with(FieldRule::RootSlots, &|p| {
        p.identity.root_slots[1] = p.identity.root_slots[0];
    });
    // Without the entry that maps the boot value, or the memory map.
    for position in 0..2 {
        with(FieldRule::RootSlots, &|p| {
            p.identity.root_slots.remove(position);
        });
    }
    with(FieldRule::IdentityAddress, &|p| p.identity.idt_base = 0x1000);
    with(FieldRule::IdentityAddress, &|p| p.identity.lstar = 0x40_0000);
    with(FieldRule::IdentityAddress, &|p| {
        p.identity.sysenter_eip = 0x40_0000;
    });
    with(FieldRule::IdentityAddress, &|p| {
        drawn(p).at = GuestVirt::new(1 << 47);
    });
    with(FieldRule::IdentityAddress, &|p| {
        p.identity.gate = Some(Gate {
            vector: 14,
            handler: GuestVirt::new(0x1000),
        });
    });
    with(FieldRule::IdentityAddress, &|p| {
        p.identity
            .anchors
            .push(Anchor {
                at: GuestVirt::new(0x1000),
                physical: GuestPhys::new(0x1000),
            })
            .unwrap();
    });
    with(FieldRule::IdentityEntry, &|p| p.identity.idt_base = 0);
    with(FieldRule::IdentityEntry, &|p| p.identity.lstar = 0);
    for limit in [0, 510, 4096] {
        with(FieldRule::IdtLimit, &|p| p.identity.idt_limit = limit);
    }
    with(FieldRule::BootValue, &|p| drawn(p).value = 0);
    with(FieldRule::BootValue, &|p| drawn(p).bytes = 2);
    with(FieldRule::BootValue, &|p| drawn(p).bytes = 4);
    with(FieldRule::BootValue, &|p| p.identity.boot_value = None);
    all.extend(broken_memory_maps(&good));
    all.extend(broken_32_bit(&good));
    all
}

fn blocks(profile: &mut Profile) -> &mut Blocks {
    profile.free.blocks.as_mut().unwrap()
}

fn drawn(profile: &mut Profile) -> &mut BootValue {
    profile.identity.boot_value.as_mut().unwrap()
}

/// Sections as 64-bit Linux 5.10 has them without a virtual memory map.
fn sections() -> Sections {
    Sections {
        table: GuestVirt::new(0xffff_8880_0100_0000),
        per_root: 256,
        count: 1 << 19,
        section_bits: 27,
        section_bytes: 16,
        map_offset: 0,
        flag_mask: 0x1f,
        required: 0x6,
        refused: 0x10,
    }
}

fn extent(first: u64, count: u64, array: u64) -> Extent {
    Extent {
        first: Gfn::new(first),
        count,
        array: GuestVirt::new(array),
    }
}

/// An anchor on the page of `address`.
fn anchor(address: u64) -> Anchor {
    Anchor {
        at: GuestVirt::new(address & !0xfff),
        physical: GuestPhys::new(0x100_0000),
    }
}

/// One profile for each way to break the rules of the other memory models.
fn broken_memory_maps(good: &Profile) -> Vec<(FieldRule, Profile)> {
    const ARRAY: u64 = 0xffff_8880_0100_0000;
    let mut all = Vec::new();
    let with_sections = |sections| {
        let mut profile = good.clone();
        profile.memory_map = MemoryMap::Sections(sections);
        profile
            .identity
            .anchors
            .push(anchor(sections.table.get()))
            .unwrap();
        profile
    };
    let right = sections();
    assert_eq!(with_sections(right).check(), Ok(()));
    let flat = Sections { per_root: 0, ..right };
    assert_eq!(with_sections(flat).check(), Ok(()));
    for wrong in [
        Sections {
            table: GuestVirt::new(0x1000),
            ..right
        },
        Sections {
            table: GuestVirt::new(right.table.get() + 4),
            ..right
        },
        Sections {
            per_root: 257,
            ..right
        },
        Sections { count: 0, ..right },
        Sections {
            count: (1 << 25) + 1,
            ..right
        },
        Sections {
            section_bits: 12,
            ..right
        },
        Sections {
            section_bits: 41,
            count: 1,
            ..right
        },
        Sections {
            section_bytes: 20,
            ..right
        },
        Sections {
            section_bytes: 136,
            per_root: 0,
            ..right
        },
        Sections {
            map_offset: 16,
            ..right
        },
        Sections {
            map_offset: 4,
            ..right
        },
        Sections {
            flag_mask: 0x101f,
            ..right
        },
        Sections { required: 0, ..right },
        Sections {
            required: 0x26,
            ..right
        },
        Sections {
            refused: 0x4,
            ..right
        },
    ] {
        all.push((FieldRule::Sections, with_sections(wrong)));
    }
    let with_extents = |extents: &[Extent]| {
        let mut profile = good.clone();
        profile.memory_map = MemoryMap::Extents;
        profile.extents.extend_from_slice(extents).unwrap();
        for extent in extents.iter().take(1) {
            profile.identity.anchors.push(anchor(extent.array.get())).unwrap();
        }
        profile
    };
    let one = extent(16, 240, ARRAY);
    for right in [&[one][..], &[one, extent(256, 1, ARRAY)], &[one; 1]] {
        assert_eq!(with_extents(right).check(), Ok(()));
    }
    for wrong in [
        &[][..],
        &[one, one],
        &[one, extent(255, 16, ARRAY)],
        &[one, extent(0, 16, ARRAY)],
        &[extent(16, 0, ARRAY)],
        &[extent(16, Gfn::LIMIT - 15, ARRAY)],
        &[extent(16, u64::MAX, ARRAY)],
        &[extent(16, 240, ARRAY + 2)],
        &[extent(16, 240, 0x1000)],
        &[extent(16, 240, u64::MAX - 4095)],
    ] {
        all.push((FieldRule::Extents, with_extents(wrong)));
    }
    let mut surplus = good.clone();
    surplus.extents.push(one).unwrap();
    all.push((FieldRule::Extents, surplus));
    all
}

/// One profile for each way in which a 32-bit kernel's rules differ.
fn broken_32_bit(good: &Profile) -> Vec<(FieldRule, Profile)> {
    let mut right = good.clone();
    right.levels = PagingLevels::Pae;
    right.root = GuestPhys::new(0x1234_5660);
    right.memory_map = MemoryMap::Extents;
    right.extents.push(extent(0, 0x1000, 0xf700_0000)).unwrap();
    right.zones.truncate(1);
    right.zones[0] = ZoneCounter {
        array: GuestVirt::new(0xc1a0_0004),
        stride: 44,
        count_offset: 40,
        count_bytes: 4,
    };
    right.identity.idt_base = 0xfffb_9000;
    right.identity.idt_limit = 0x7ff;
    right.identity.lstar = 0;
    right.identity.sysenter_eip = 0xc17d_1234;
    right.identity.root_slots.clear();
    right.identity.anchors = [0xc17d_1000, 0xc1b0_0004, 0xf700_0000]
        .into_iter()
        .map(anchor)
        .collect();
    drawn(&mut right).at = GuestVirt::new(0xc1b0_0004);
    drawn(&mut right).bytes = 4;
    drawn(&mut right).value = 0xdead_beef;
    assert_eq!(right.check(), Ok(()));
    let mut all = Vec::new();
    let mut with = |rule, change: &dyn Fn(&mut Profile)| {
        let mut profile = right.clone();
        change(&mut profile);
        all.push((rule, profile));
    };
    with(FieldRule::RootAligned, &|p| p.root = GuestPhys::new(0x1234_5670));
    with(FieldRule::RootAligned, &|p| p.levels = PagingLevels::Two);
    with(FieldRule::RootAligned, &|p| p.root = GuestPhys::new(1 << 32));
    with(FieldRule::MemoryMapBase, &|p| {
        p.memory_map = MemoryMap::Vmemmap {
            base: GuestVirt::new(0xf700_0000),
        };
    });
    with(FieldRule::Extents, &|p| {
        p.extents[0].array = GuestVirt::new(0xffff_8880_0100_0000);
    });
    with(FieldRule::Extents, &|p| p.extents[0].count = 0x90_0000);
    with(FieldRule::ZonePlace, &|p| {
        p.zones[0].array = GuestVirt::new(0x1_c1a0_0004);
    });
    with(FieldRule::ZonePlace, &|p| p.zones[0].count_bytes = 8);
    with(FieldRule::RootSlots, &|p| p.identity.anchors.clear());
    // Without the one on the boot value's page, or on the memory map's.
    for position in 1..3 {
        with(FieldRule::RootSlots, &|p| {
            p.identity.anchors.remove(position);
        });
    }
    with(FieldRule::RootSlots, &|p| {
        p.identity
            .root_slots
            .push(RootSlot {
                index: 300,
                entry: 0x1001,
            })
            .unwrap();
    });
    with(FieldRule::IdtLimit, &|p| p.identity.idt_limit = 0xfff);
    with(FieldRule::IdentityEntry, &|p| p.identity.sysenter_eip = 0);
    all
}

/// Windows' rule: a page for itself, no counter, no boot value. Its bytes are looked at, which is what allows
/// all that.
#[test]
fn a_rule_that_looks_at_the_bytes_may_lean_on_less() {
    let mut profile = profile();
    profile.free = FreeRule {
        predicate: Predicate {
            field: Field {
                offset: 0x22,
                width: 1,
            },
            mask: 7,
            expected: 0,
        },
        conditions: std::iter::once(Predicate::zero(Field {
            offset: 0x20,
            width: 2,
        }))
        .collect(),
        blocks: None,
        bytes: BytesRule::Zero,
    };
    profile.zones.clear();
    profile.identity.boot_value = None;
    assert_eq!(profile.check(), Ok(()));
    assert_eq!(Profile::decode(&encoded(&profile)), Ok(profile.clone()));
    profile.free.bytes = BytesRule::Any;
    assert!(profile.check().is_err());
}

#[test]
fn each_broken_rule_is_refused_by_its_number() {
    let all = broken();
    for rule in 1..=19_u64 {
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

/// The bytes of version 2. They change only together with the version.
#[test]
fn version_two_has_these_bytes() {
    let mut hex = String::new();
    for byte in encoded(&profile()) {
        write!(hex, "{byte:02x}").unwrap();
    }
    assert_eq!(hex, include_str!("golden/profile-v2.hex").trim());
}
