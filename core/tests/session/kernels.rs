//! Sessions with kernels other than a 64-bit Linux: 32-bit ones, classic sparse memory, Windows.

use lacuna_core::abi::{Op, State, Statistics};
use lacuna_core::{
    Anchor, Gate, Gfn, GuestPhys, GuestVirt, IdentityCheck, PAGE_SIZE, PagingLevels, Status, VcpuRegisters,
};
use lacuna_mock::{Access, Config, Layout, MapPages, MockGuest, Model, Primitive};

use super::{admitted, answer, attached, encoded, request, run, set_profile, status};

/// The kernel's data page: its frame, and room in it that nothing uses.
const DATA_FRAME: u64 = 16;
const ROOM: u64 = 0xe00;

/// A kernel of each kind.
fn kernels() -> Vec<Config> {
    let mut all = Vec::new();
    for levels in [PagingLevels::Pae, PagingLevels::Two, PagingLevels::Four] {
        for model in [
            Model::Flat,
            Model::Discontiguous,
            Model::SectionsStatic,
            Model::SectionsExtreme,
            Model::Runs,
        ] {
            let windows = model == Model::Runs;
            let layout = match (levels, windows) {
                (PagingLevels::Four, true) => Layout::windows(),
                (PagingLevels::Four, false) => Layout::modern(),
                (_, true) => Layout::windows_xp(),
                (PagingLevels::Two, false) => Layout::flags_bit(),
                (_, false) => Layout::straddling(),
            };
            all.push(Config {
                layout,
                levels,
                model,
                ..Config::default()
            });
        }
    }
    all
}

#[test]
fn every_kind_of_kernel_is_admitted_and_gives_up_its_free_pages() {
    for config in kernels() {
        let mut guest = MockGuest::new(&config);
        let page = guest.alloc(0, 3).unwrap();
        assert_eq!(guest.stamp(0, page, 0x5ca1_ab1e), Access::Done);
        let mut session = admitted(&mut guest);
        assert_eq!(status(&mut session, &mut guest, Op::Share), Status::Done);
        assert_eq!(guest.zero_gfns(), guest.free_pages(), "{config:?}");
        assert_eq!(guest.verify(), Ok(()));
        assert_eq!(guest.audit(), Ok(()));
        // Taken again and written to, they are the guest's own once more.
        let taken = guest.alloc(1, 5).unwrap();
        assert_eq!(guest.stamp(1, taken, 1), Access::Done);
        assert_eq!(guest.verify(), Ok(()));
    }
}

/// A way to change a virtual CPU's registers, and what notices.
type Change = (fn(&mut VcpuRegisters), IdentityCheck);

#[test]
fn each_register_of_a_32_bit_kernel_that_differs_is_noticed() {
    for levels in [PagingLevels::Pae, PagingLevels::Two] {
        let config = Config {
            layout: Layout::straddling(),
            levels,
            model: Model::Flat,
            ..Config::default()
        };
        let changes: [Change; 7] = [
            (|r| r.idt_limit = 0, IdentityCheck::IdtLimit),
            (|r| r.idt_base ^= 0x1000, IdentityCheck::IdtBase),
            (|r| r.efer |= 1 << 10, IdentityCheck::Mode),
            (|r| r.cr4 ^= 1 << 5, IdentityCheck::Levels),
            (|r| r.sysenter_eip = 0, IdentityCheck::SysenterEip),
            (|r| r.sysenter_eip += 16, IdentityCheck::SysenterEip),
            // A table of zeros.
            (|r| r.cr3 = 20 << 12, IdentityCheck::Unreadable),
        ];
        for (change, failure) in changes {
            let mut guest = MockGuest::new(&config);
            let mut session = admitted(&mut guest);
            change(guest.registers_mut(1));
            let (status, refused, _) = run(&mut session, &mut guest, request(Op::Share));
            assert!(
                matches!(status, Status::KernelChanged | Status::Ended),
                "{failure:?}"
            );
            assert_eq!(
                IdentityCheck::from_code(refused.result[1]),
                Some(failure),
                "{levels:?}"
            );
            assert_eq!((guest.zero_gfns(), guest.audit()), (0, Ok(())));
        }
        let mut guest = MockGuest::new(&config);
        let mut session = admitted(&mut guest);
        guest.kexec_begins();
        guest.kexec_ends();
        let (status, refused, _) = run(&mut session, &mut guest, request(Op::Share));
        assert_eq!(status, Status::Ended);
        assert_eq!(
            IdentityCheck::from_code(refused.result[1]),
            Some(IdentityCheck::BootValue)
        );
    }
}

/// A virtual CPU in another address space, in which the kernel's address leads elsewhere.
#[test]
fn an_anchor_that_leads_elsewhere_is_noticed() {
    let mut guest = MockGuest::new(&Config::default());
    let mut profile = guest.profile();
    let drawn = profile.identity.boot_value.unwrap();
    profile
        .identity
        .anchors
        .push(Anchor {
            at: drawn.at,
            physical: GuestPhys::new((DATA_FRAME + 1) * PAGE_SIZE as u64 + 0x40),
        })
        .unwrap();
    let mut session = attached(&mut guest);
    assert_eq!(
        set_profile(&mut session, &mut guest, &encoded(&profile)),
        Status::Done
    );
    let (status, refused, _) = run(&mut session, &mut guest, request(Op::Scan));
    assert_eq!(status, Status::KernelChanged);
    assert_eq!(
        IdentityCheck::from_code(refused.result[1]),
        Some(IdentityCheck::Anchor)
    );
    assert_eq!(refused.result[2], DATA_FRAME * PAGE_SIZE as u64 + 0x40);
}

/// As Windows: every processor has its own table, and all lead to the same handler.
#[test]
fn a_gate_stands_for_tables_that_lie_elsewhere_on_each_cpu() {
    const HANDLER: u64 = 0xffff_ffff_8145_6780;
    // Intel SDM volume 3, figure 6-8: offset, selector, present interrupt gate, offset, offset.
    let gate = |handler: u64| {
        let low = handler & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        let mut bytes = low.to_le_bytes().to_vec();
        bytes.extend((handler >> 32).to_le_bytes());
        bytes
    };
    let place = |guest: &mut MockGuest, bytes: &[u8]| {
        let at = GuestPhys::new(DATA_FRAME * PAGE_SIZE as u64 + ROOM + 14 * 16);
        guest.overwrite(at, bytes);
    };
    let mut guest = MockGuest::new(&Config::default());
    let mut profile = guest.profile();
    let data = profile.identity.boot_value.unwrap().at.get() & !0xfff;
    for vcpu in 0..2 {
        guest.registers_mut(vcpu).idt_base = data + ROOM;
    }
    place(&mut guest, &gate(HANDLER));
    profile.identity.idt_base = 0;
    profile.identity.gate = Some(Gate {
        vector: 14,
        handler: GuestVirt::new(HANDLER),
    });
    let mut session = attached(&mut guest);
    assert_eq!(
        set_profile(&mut session, &mut guest, &encoded(&profile)),
        Status::Done
    );
    assert_eq!(status(&mut session, &mut guest, Op::Scan), Status::Done);

    let absent = {
        let mut bytes = gate(HANDLER);
        bytes[5] &= 0x7f;
        bytes
    };
    for (bytes, found) in [
        (gate(HANDLER + 16), HANDLER + 16),
        (gate(HANDLER ^ 1 << 40), HANDLER ^ 1 << 40),
        (absent, 0),
    ] {
        place(&mut guest, &bytes);
        let (status, refused, _) = run(&mut session, &mut guest, request(Op::Share));
        assert_eq!(status, Status::KernelChanged);
        assert_eq!(
            IdentityCheck::from_code(refused.result[1]),
            Some(IdentityCheck::Gate)
        );
        assert_eq!((refused.result[2], refused.result[3]), (found, HANDLER));
    }
    // One that lies where nothing is mapped.
    place(&mut guest, &gate(HANDLER));
    guest.registers_mut(1).idt_base = 0xffff_ff00_0000_0000;
    let (_, refused, _) = run(&mut session, &mut guest, request(Op::Share));
    assert_eq!(
        IdentityCheck::from_code(refused.result[1]),
        Some(IdentityCheck::Unreadable)
    );
    guest.registers_mut(1).idt_base = data + ROOM;
    assert_eq!(status(&mut session, &mut guest, Op::Share), Status::Done);
}

/// What the kernel takes offline is not looked at any more, though its descriptors lie there as they were.
#[test]
fn memory_that_is_unplugged_is_no_longer_free() {
    for model in [Model::SectionsStatic, Model::SectionsExtreme] {
        let mut guest = MockGuest::new(&Config {
            model,
            ..Config::default()
        });
        let mut session = admitted(&mut guest);
        guest.take_section_offline(Gfn::new(4096));
        assert_eq!(status(&mut session, &mut guest, Op::Share), Status::Done);
        let statistics: Statistics = answer(&mut session, &mut guest, request(Op::Statistics));
        assert_eq!(guest.zero_gfns(), guest.free_pages() - 1024, "{model:?}");
        assert_eq!(statistics.rejected, 1024);
    }
}

/// A page of the list of zeroed pages that is not zero keeps its data, is counted, and is not looked at
/// again.
#[test]
fn a_windows_guest_that_lies_keeps_its_data() {
    for map_pages in [MapPages::Small, MapPages::Large] {
        let mut guest = MockGuest::new(&Config {
            layout: Layout::windows(),
            model: Model::Runs,
            map_pages,
            ..Config::default()
        });
        let free: Vec<Gfn> = (0..guest.pages())
            .map(Gfn::new)
            .filter(|gfn| guest.is_free(*gfn))
            .collect();
        // One by itself, and a whole region.
        let lies: Vec<Gfn> = std::iter::once(free[3])
            .chain((4096..4608).map(Gfn::new))
            .collect();
        for gfn in &lies {
            assert!(guest.is_free(*gfn));
            assert_eq!(guest.store(0, *gfn, 4095, &[0x77]), Access::Done);
        }
        let mut session = admitted(&mut guest);
        assert_eq!(status(&mut session, &mut guest, Op::Share), Status::Done);
        assert_eq!(guest.zero_gfns(), guest.free_pages() - lies.len() as u64);
        for gfn in &lies {
            let mut byte = [0];
            assert_eq!(guest.load(0, *gfn, 4095, &mut byte), Access::Done);
            assert_eq!(byte, [0x77], "{gfn:?} lost its data");
        }
        let first: Statistics = answer(&mut session, &mut guest, request(Op::Statistics));
        assert_eq!(first.skipped_not_zero, lies.len() as u64);
        // Nothing is left to stop the guest for but the identity check.
        assert_eq!(status(&mut session, &mut guest, Op::Share), Status::Done);
        let second: Statistics = answer(&mut session, &mut guest, request(Op::Statistics));
        assert_eq!(
            (second.slices, second.skipped_not_zero),
            (first.slices, first.skipped_not_zero)
        );
        assert_eq!(guest.audit(), Ok(()));
    }
}

/// Pages that the last complete scan found free, and of those met since `before` the ones that some counter
/// accounts for.
fn found_and_accounted_for(before: &Statistics, now: &Statistics) -> (u64, u64) {
    let sum = |s: &Statistics| {
        s.shared
            + s.rejected
            + s.already
            + s.skipped_not_ram
            + s.skipped_held
            + s.skipped_not_zero
            + s.skipped_no_pool
            + s.skipped_entry_refused
            + s.skipped_log_dirty
    };
    (now.scan_free, sum(now) - sum(before))
}

/// Nothing that the scan found is forgotten: not the first page of a slice whose time was up when the
/// identity check was through (a busy host, an emulated one), nor that of a region which took all the time
/// and could not be one entry.
#[test]
fn every_page_found_is_accounted_for_however_slow_the_machine() {
    let windows = Config {
        layout: Layout::windows(),
        model: Model::Runs,
        ..Config::default()
    };
    for (config, map_pages) in [Config::default(), windows]
        .into_iter()
        .flat_map(|config| [MapPages::Small, MapPages::Large].map(|pages| (config.clone(), pages)))
    {
        // What a read costs: as always; so that 512 looks take longer than a slice may; so that the identity
        // check alone does.
        for price in [20, 5_000, 500_000] {
            let mut guest = MockGuest::new(&Config {
                map_pages,
                ..config.clone()
            });
            // Regions that are wholly free but for the lies and the held pages in them.
            for region in [4096, 4608, 6144] {
                assert!(guest.is_free(Gfn::new(region)));
                guest.store(0, Gfn::new(region + 77), 8, &[1]);
                guest.hold(Gfn::new(region + 100));
            }
            let mut session = admitted(&mut guest);
            guest.set_read_price(price);
            guest.fail_all(Primitive::Preempted);
            let mut before = Statistics::default();
            for round in 0..3 {
                assert_eq!(status(&mut session, &mut guest, Op::Scan), Status::Done);
                assert_eq!(status(&mut session, &mut guest, Op::Share), Status::Done);
                let now: Statistics = answer(&mut session, &mut guest, request(Op::Statistics));
                let (found, accounted) = found_and_accounted_for(&before, &now);
                assert_eq!(accounted, found, "round {round}, {price} ns, {config:?}");
                let lies = if config.model == Model::Runs { 3 } else { 0 };
                assert_eq!(
                    guest.zero_gfns(),
                    guest.free_pages() - 3 - lies,
                    "{price} ns, {config:?}"
                );
                before = now;
                // Some of what was given back is taken again, so that 2 MiB entries fall apart: also one that
                // is free again as a whole, and is put together from entries that are on zero frames and one
                // that is not.
                assert_eq!(guest.store(0, Gfn::new(5120 + 7), 0, &[0]), Access::Done);
                for _ in 0..5 {
                    let page = guest.alloc(0, 0).unwrap();
                    assert_eq!(guest.store(0, page, 0, &[0]), Access::Done);
                    guest.free(0, page);
                }
            }
            assert_eq!((guest.verify(), guest.audit()), (Ok(()), Ok(())));
        }
    }
}

/// Pages that were taken off the list a moment ago still say that they are on it.
#[test]
fn a_condition_that_fails_is_ordinary_where_pages_stand_for_themselves() {
    let config = Config {
        layout: Layout::windows(),
        model: Model::Runs,
        ..Config::default()
    };
    let mut guest = MockGuest::new(&config);
    let taken = guest.alloc(0, 4).unwrap();
    guest.stamp(0, taken, 0xfeed);
    // Active, with a reference, and the location not yet written.
    guest.corrupt(taken, config.layout.predicate.field, config.layout.marked);
    let mut session = admitted(&mut guest);
    let explained: lacuna_core::abi::Explanation = answer(
        &mut session,
        &mut guest,
        lacuna_core::abi::Request {
            cursor: taken.get(),
            ..request(Op::Explain)
        },
    );
    assert_eq!((explained.verdict, explained.reason, explained.value), (1, 3, 1));
    // Off the list, without a reference, and full: only its bytes tell.
    guest.corrupt(taken, config.layout.references, 0);
    assert_eq!(status(&mut session, &mut guest, Op::Scan), Status::Done);
    assert_eq!(status(&mut session, &mut guest, Op::Share), Status::Done);
    assert_eq!(guest.verify(), Ok(()));
}

#[test]
fn without_a_counter_the_pages_themselves_must_bear_the_scan_out() {
    let config = Config {
        layout: Layout::windows(),
        model: Model::Runs,
        ..Config::default()
    };
    for junk in [false, true] {
        let mut guest = MockGuest::new(&config);
        let mut profile = guest.profile();
        profile.zones.clear();
        profile.identity.boot_value = None;
        if junk {
            for gfn in (0..guest.pages()).map(Gfn::new).filter(|gfn| gfn.get() % 3 == 0) {
                if guest.is_free(gfn) {
                    guest.store(0, gfn, 8, &[1]);
                }
            }
        }
        let mut session = attached(&mut guest);
        assert_eq!(
            set_profile(&mut session, &mut guest, &encoded(&profile)),
            Status::Done
        );
        let (status, answer, _) = run(&mut session, &mut guest, request(Op::Scan));
        if junk {
            assert_eq!(status, Status::ContentsDisagree);
            let [found, looked_at, zero, _] = answer.result;
            assert_eq!(found, guest.free_pages());
            assert!(
                (48..=64).contains(&looked_at) && zero < 44,
                "{zero} of {looked_at} are zero"
            );
            assert_eq!(session.state(), State::Loaded);
        } else {
            assert_eq!((status, session.state()), (Status::Done, State::Admitted));
        }
    }
}

/// A rule that fits nothing of this guest is refused for what the kernel counts.
#[test]
fn a_windows_rule_that_finds_too_little_or_far_too_much_is_refused() {
    let config = Config {
        layout: Layout::windows(),
        model: Model::Runs,
        ..Config::default()
    };
    let mut guest = MockGuest::new(&config);
    // Every fifth page is in use, so that a rule for the wrong list finds something.
    while guest.alloc(0, 0).is_some() {}
    let held: Vec<Gfn> = guest.allocated().map(|(head, _)| head).collect();
    for head in held.iter().filter(|head| head.get() % 5 != 0) {
        guest.free(0, *head);
    }
    let good = guest.profile();
    for expected in 0..8 {
        let mut profile = good.clone();
        profile.free.predicate.expected = expected;
        let mut session = attached(&mut guest);
        set_profile(&mut session, &mut guest, &encoded(&profile));
        let (answer, _, _) = run(&mut session, &mut guest, request(Op::Scan));
        let right = if expected == 0 {
            Status::Done
        } else {
            Status::CountsDisagree
        };
        assert_eq!(answer, right, "PageLocation {expected}");
    }
}
