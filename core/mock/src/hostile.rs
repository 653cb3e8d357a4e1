//! Guests and profiles made from arbitrary bytes: the bodies of the fuzz targets.
//!
//! Each function takes any input, panics when a promise is broken, and says how far it got. `fuzz/` feeds
//! them from libFuzzer, `core/tests/hostile.rs` from random bytes.

use super::{Config, Layout, MapPages, MockGuest, Model, Primitive};
use lacuna_core::abi::{Op, Request};
use lacuna_core::{
    Blocks, BytesRule, Field, GuestPhys, GuestVirt, MAX_PROFILE_BYTES, MemoryMap, Order, Outcome, PAGE_SIZE,
    PagingLevels, Profile, Session, Status,
};

/// Most reads of guest memory that one call of [`Session::operate`] may make, whatever the guest holds: a
/// slice judges at most 512 pages, or a scan 4,096 descriptors, each of them by a walk of five entries and
/// members of eight bytes, and where there are sections by two more walks.
pub const MOST_READS_A_CALL: u64 = 512 * 19 * 36;

/// Bytes taken one after the other; zeros when they run out.
struct Input<'b>(&'b [u8]);

impl Input<'_> {
    fn number(&mut self, width: usize) -> u64 {
        let mut bytes = [0; 8];
        let (taken, rest) = self.0.split_at(width.min(self.0.len()));
        bytes[..taken.len()].copy_from_slice(taken);
        self.0 = rest;
        u64::from_le_bytes(bytes)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.number(2) % limit
    }

    fn flag(&mut self) -> bool {
        self.number(1) & 1 == 1
    }

    const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A value that an attacker would choose: small, extreme, a page-table entry, or anything.
    fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => self.below(32),
            1 => u64::MAX - self.below(32),
            2 => self.below(8192) << 12 | 0x63,
            3 => self.below(16) << 21 | 0xe3,
            4 => 1 << self.below(64),
            _ => self.number(8),
        }
    }
}

/// Decodes any bytes; whatever is accepted keeps every rule and is encoded as it came. Returns whether it was
/// accepted.
///
/// # Panics
/// When one of these is not so.
pub fn any_profile(bytes: &[u8]) -> bool {
    let Ok(profile) = Profile::decode(bytes) else {
        return false;
    };
    assert_eq!(profile.check(), Ok(()));
    let mut room = vec![0; MAX_PROFILE_BYTES];
    let again = profile
        .encode(&mut room)
        .expect("what was decoded can be encoded");
    assert_eq!(Profile::decode(again), Ok(profile), "encoding loses something");
    true
}

/// As [`any_profile`], with a header and a checksum that are right for these bytes as the body.
///
/// # Panics
/// As [`any_profile`].
pub fn any_profile_body(body: &[u8]) -> bool {
    // The profile's own encoder makes the header; only the length and the checksum belong to the body.
    let mut bytes = b"LCNA\x02\0\0\0".to_vec();
    bytes.extend((body.len() as u32).to_le_bytes());
    let checksum = body.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 * (crc & 1))
        })
    });
    bytes.extend((!checksum).to_le_bytes());
    bytes.extend(body);
    any_profile(&bytes)
}

/// A guest that lies in its descriptors, its counters and its page tables, under a profile that is bent as
/// far as the rules allow, and a toolstack that asks for anything. Returns the operations carried out.
///
/// # Panics
/// When the engine panics, works without bound, or leaves a lock, a pause or a frame behind.
pub fn hostile_guest(bytes: &[u8]) -> u32 {
    let mut input = Input(bytes);
    let layouts: Vec<Layout> = Layout::ALL.into_iter().chain(Layout::WINDOWS).collect();
    let levels = any_levels(&mut input);
    // The first is for 64-bit kernels alone.
    let models = [
        Model::Vmemmap,
        Model::Flat,
        Model::Discontiguous,
        Model::SectionsStatic,
        Model::SectionsExtreme,
        Model::Runs,
    ];
    let models = &models[usize::from(levels.is_32_bit())..];
    let mut guest = MockGuest::new(&Config {
        layout: layouts[input.below(layouts.len() as u64) as usize],
        levels,
        model: models[input.below(models.len() as u64) as usize],
        map_pages: [MapPages::Small, MapPages::Large, MapPages::Huge][input.below(3) as usize],
        pages: 2048 + input.below(700),
        host_free: 64,
        ..Config::default()
    });
    for _ in 0..input.below(6) {
        guest.alloc_from(0, input.below(7) as u8, input.flag());
    }
    let profile = bent_profile(&guest, &mut input);
    if profile.check().is_err() {
        return 0;
    }
    let mut room = vec![0; MAX_PROFILE_BYTES];
    let length = profile
        .encode(&mut room)
        .expect("a profile that keeps its rules")
        .len();
    let mut session = Session::new();
    let mut set = Request {
        op: Op::SetProfile as u32,
        ..Request::default()
    };
    session.operate(&mut guest, &mut set, &mut room[..length]);
    assert_eq!(set.status, 0);
    // One bounded piece of work a call.
    guest.fail_all(Primitive::Preempted);

    let mut operations = 0;
    while !input.is_empty() && operations < 24 {
        for _ in 0..input.below(12) {
            // The kernel's own frames, and now and then any other.
            let frame = if input.flag() {
                input.below(160)
            } else {
                input.below(4096)
            };
            let at = frame * PAGE_SIZE as u64 + (input.number(2) & 0xff8);
            let value = input.value();
            guest.overwrite(GuestPhys::new(at), &value.to_le_bytes());
        }
        let mut request = Request {
            op: [Op::Scan, Op::Share, Op::Explain, Op::Registers, Op::ReadBitmap][input.below(5) as usize]
                as u32,
            cursor: if input.flag() { 0 } else { input.below(3000) },
            end: if input.flag() { 0 } else { input.below(3000) },
            budget: if input.flag() { 0 } else { input.below(600) },
            ..Request::default()
        };
        let mut buffer = vec![0; input.below(300) as usize];
        loop {
            let (reads, cursor) = (guest.reads(), request.cursor);
            let outcome = session.operate(&mut guest, &mut request, &mut buffer);
            let made = guest.reads() - reads;
            assert!(
                made <= MOST_READS_A_CALL,
                "{made} reads in one call of {request:?}"
            );
            assert_eq!(guest.audit(), Ok(()));
            assert!(Status::from_code(request.status).is_some());
            if outcome == Outcome::Finished {
                break;
            }
            assert!(request.cursor > cursor, "interrupted without progress");
        }
        operations += 1;
    }
    operations
}

/// A truthful profile with some members replaced.
fn bent_profile(guest: &MockGuest, input: &mut Input<'_>) -> Profile {
    let mut profile = guest.profile();
    for _ in 0..input.below(5) {
        let value = input.value();
        let field = Field {
            offset: input.below(64) as u16,
            width: 1 << input.below(4),
        };
        // An address near the top of the address space, where sums overflow.
        let high = GuestVirt::new(u64::MAX << (3 + input.below(40)));
        match input.below(16) {
            0 => profile.root = GuestPhys::new((value & 0xfff_ffff) << 12),
            1 => profile.descriptor_bytes = (input.below(128) * 4) as u16,
            2 => profile.memory_map = MemoryMap::Vmemmap { base: high },
            3 => profile.free.predicate.field = field,
            4 => bend_blocks(&mut profile, |blocks| blocks.order = field),
            5 => {
                for condition in &mut profile.free.conditions {
                    condition.field = field;
                }
            }
            6 => (profile.free.predicate.mask, profile.free.predicate.expected) = (value, value),
            7 => {
                let order = Order::new(1 + input.below(18)).unwrap_or(Order::MAX);
                bend_blocks(&mut profile, |blocks| blocks.max_order = order);
            }
            8 => profile.zones[0].array = high,
            9 => profile.zones[0].stride = (input.below(513) * 8) as u16,
            10 => {
                if let Some(drawn) = &mut profile.identity.boot_value {
                    drawn.at = high;
                }
            }
            11 => profile.free.bytes = BytesRule::Zero,
            12 => profile.levels = any_levels(input),
            13 => {
                for extent in &mut profile.extents {
                    extent.array = high;
                }
            }
            14 => {
                if let MemoryMap::Sections(sections) = &mut profile.memory_map {
                    sections.table = high;
                    sections.per_root = input.below(300) as u32;
                    sections.section_bits = 13 + input.below(28) as u8;
                    sections.count = 1 + input.below(1 << 15);
                }
            }
            _ => {
                while profile.zones.len() < 1 + input.below(128) as usize {
                    let zone = profile.zones[0];
                    if profile.zones.push(zone).is_err() {
                        break;
                    }
                }
            }
        }
    }
    profile
}

fn any_levels(input: &mut Input<'_>) -> PagingLevels {
    [
        PagingLevels::Four,
        PagingLevels::Five,
        PagingLevels::Pae,
        PagingLevels::Two,
    ][input.below(4) as usize]
}

fn bend_blocks(profile: &mut Profile, change: impl FnOnce(&mut Blocks)) {
    if let Some(blocks) = &mut profile.free.blocks {
        change(blocks);
    }
}
