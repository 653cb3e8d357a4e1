//! What ends a session: another kernel in the domain, seen by the identity check, or Xen's soft reset.

use lacuna_core::abi::{Op, Request, State};
use lacuna_core::{Gfn, IdentityCheck, Status, VcpuRegisters};
use lacuna_mock::{Access, Config, Layout, MockGuest};
use proptest::prelude::*;

use super::{admitted, attached, encoded, request, run, set_profile, status};

/// A way to change a virtual CPU's registers, what notices, and whether that ends the session at once.
type Change = (fn(&mut VcpuRegisters), IdentityCheck, bool);

#[test]
fn each_register_that_differs_is_noticed_on_each_cpu() {
    let changes: [Change; 9] = [
        (|r| r.idt_limit = 0, IdentityCheck::IdtLimit, false),
        (|r| r.idt_base ^= 0x1000, IdentityCheck::IdtBase, false),
        (|r| r.cr0 &= !(1 << 31), IdentityCheck::Mode, false),
        (|r| r.cr0 &= !1, IdentityCheck::Mode, false),
        (|r| r.efer &= !(1 << 10), IdentityCheck::Mode, false),
        (|r| r.cr4 |= 1 << 12, IdentityCheck::Levels, false),
        (|r| r.lstar = 0, IdentityCheck::Lstar, false),
        (|r| r.lstar += 64, IdentityCheck::Lstar, true),
        // A table of zeros: the frame after the kernel's data.
        (|r| r.cr3 = 20 << 12, IdentityCheck::RootSlot, false),
    ];
    for vcpu in 0..2 {
        for (change, failure, ends) in changes {
            let mut guest = MockGuest::new(&Config::default());
            let mut session = admitted(&mut guest);
            let good = *guest.registers_mut(vcpu);
            change(guest.registers_mut(vcpu));
            let (status, refused, _) = run(&mut session, &mut guest, request(Op::Share));
            let expected = if ends {
                Status::Ended
            } else {
                Status::KernelChanged
            };
            assert_eq!(
                (status, refused.result[0]),
                (expected, vcpu as u64),
                "{failure:?}"
            );
            assert_eq!(IdentityCheck::from_code(refused.result[1]), Some(failure));
            assert_eq!((guest.zero_gfns(), guest.audit()), (0, Ok(())));
            // What can pass in a healthy guest may pass.
            *guest.registers_mut(vcpu) = good;
            let again = run(&mut session, &mut guest, request(Op::Share)).0;
            assert_eq!(
                again,
                if ends { Status::Ended } else { Status::Done },
                "{failure:?}"
            );
            // A virtual CPU that is offline runs nothing.
            let mut guest = MockGuest::new(&Config::default());
            let mut session = admitted(&mut guest);
            change(guest.registers_mut(vcpu));
            guest.registers_mut(vcpu).flags = 0;
            assert_eq!(run(&mut session, &mut guest, request(Op::Share)).0, Status::Done);
        }
    }
}

#[test]
fn a_table_that_cannot_be_read_is_refused() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = admitted(&mut guest);
    guest.registers_mut(0).cr3 = 1 << 40;
    let (status, refused, _) = run(&mut session, &mut guest, request(Op::Share));
    assert_eq!(status, Status::KernelChanged);
    assert_eq!(
        IdentityCheck::from_code(refused.result[1]),
        Some(IdentityCheck::Unreadable)
    );
}

#[test]
fn user_tables_of_page_table_isolation_are_known() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = admitted(&mut guest);
    // The table after the kernel's, which lacks the kernel's entries.
    guest.registers_mut(1).cr3 |= 1 << 12;
    assert_eq!(status(&mut session, &mut guest, Op::Share), Status::Done);
    assert!(guest.zero_gfns() > 0);
}

#[test]
fn with_no_cpu_online_nothing_is_shared() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = admitted(&mut guest);
    for vcpu in 0..2 {
        guest.registers_mut(vcpu).flags = 0;
    }
    assert_eq!(status(&mut session, &mut guest, Op::Share), Status::NoVcpuOnline);
    assert_eq!((guest.zero_gfns(), guest.audit()), (0, Ok(())));
}

#[test]
fn an_identity_check_that_keeps_failing_ends_the_session() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = admitted(&mut guest);
    let good = *guest.registers_mut(0);
    for op in [Op::Scan, Op::Share, Op::Scan] {
        guest.registers_mut(0).idt_limit = 0;
        for _ in 0..7 {
            assert_eq!(status(&mut session, &mut guest, Op::Share), Status::KernelChanged);
        }
        // One pass in between, of either operation, and the count begins anew.
        *guest.registers_mut(0) = good;
        let page = guest.alloc(0, 0).unwrap();
        guest.stamp(0, page, 1);
        guest.free(0, page);
        assert_eq!(status(&mut session, &mut guest, op), Status::Done);
    }
    guest.registers_mut(0).idt_limit = 0;
    for _ in 0..7 {
        status(&mut session, &mut guest, Op::Share);
    }
    assert_eq!(status(&mut session, &mut guest, Op::Share), Status::Ended);
    *guest.registers_mut(0) = good;
    for op in [Op::Scan, Op::Share] {
        assert_eq!(status(&mut session, &mut guest, op), Status::Ended);
    }
    // A fresh profile is a fresh start.
    let bytes = encoded(&guest.profile());
    assert_eq!(set_profile(&mut session, &mut guest, &bytes), Status::Done);
    assert_eq!(status(&mut session, &mut guest, Op::Scan), Status::Done);
}

#[test]
fn a_soft_reset_ends_the_session() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = admitted(&mut guest);
    session.reset();
    assert_eq!(session.state(), State::Ended);
    assert_eq!(status(&mut session, &mut guest, Op::Share), Status::Ended);
    assert_eq!(guest.zero_gfns(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A kexec into the same kernel, without KASLR: registers and page tables come back, the old memory map
    /// lies on. What the new kernel writes where the old map says *free* must stay, however the operations
    /// fall.
    #[test]
    fn a_kexec_ends_the_session_and_loses_nothing(
        layout in prop::sample::select(&Layout::ALL[..]),
        shared_before in any::<bool>(),
        pages in prop::collection::btree_set(600_u64..8192, 1..30),
        during in prop::collection::vec(any::<bool>(), 0..6),
        after in prop::collection::vec(any::<bool>(), 1..4),
    ) {
        let mut guest = MockGuest::new(&Config { layout, ..Config::default() });
        let mut session = admitted(&mut guest);
        if shared_before { prop_assert_eq!(status(&mut session, &mut guest, Op::Share), Status::Done); }
        let zero = guest.zero_gfns();
        guest.kexec_begins();
        for page in &pages { prop_assert_eq!(guest.stamp(0, Gfn::new(*page), *page), Access::Done); }
        let unshared = if shared_before { pages.iter().filter(|page| guest.is_free(Gfn::new(**page))).count() as u64 } else { 0 };
        for share in during {
            let op = if share { Op::Share } else { Op::Scan };
            prop_assert_eq!(status(&mut session, &mut guest, op), Status::KernelChanged);
        }
        guest.kexec_ends();
        for share in after {
            let op = if share { Op::Share } else { Op::Scan };
            let (status, request, _) = run(&mut session, &mut guest, request(op));
            prop_assert_eq!(status, Status::Ended);
            prop_assert_eq!(IdentityCheck::from_code(request.result[1]), Some(IdentityCheck::BootValue));
        }
        prop_assert_eq!(session.state(), State::Ended);
        prop_assert_eq!(guest.zero_gfns(), zero - unshared);
        prop_assert_eq!(guest.verify(), Ok(()));
        prop_assert_eq!(guest.audit(), Ok(()));
    }
}

#[test]
fn a_scan_asks_at_its_first_call_and_at_its_last() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = attached(&mut guest);
    let mut part = Request {
        budget: 50,
        ..request(Op::Scan)
    };
    let mut calls = 0;
    let before = session.statistics(&mut guest).pauses;
    while session.state() != State::Admitted {
        let (status, done, _) = run(&mut session, &mut guest, part);
        assert_eq!(status, Status::Done);
        part = Request { budget: 50, ..done };
        calls += 1;
    }
    assert!(calls > 3);
    assert_eq!(session.statistics(&mut guest).pauses, before + 2);
    // A part that carries nothing on is asked about by itself.
    let elsewhere = Request {
        cursor: 64,
        end: 128,
        ..request(Op::Scan)
    };
    assert_eq!(run(&mut session, &mut guest, elsewhere).0, Status::Done);
    assert_eq!(session.statistics(&mut guest).pauses, before + 3);
}

#[test]
fn a_kexec_in_the_middle_of_a_scan_is_seen_at_its_end() {
    for over in [false, true] {
        let mut guest = MockGuest::new(&Config::default());
        let mut session = attached(&mut guest);
        let first = Request {
            budget: 50,
            ..request(Op::Scan)
        };
        let (status, stopped, _) = run(&mut session, &mut guest, first);
        assert_eq!(status, Status::Done);
        guest.kexec_begins();
        if over {
            guest.kexec_ends();
        }
        let (status, ..) = run(&mut session, &mut guest, Request { budget: 0, ..stopped });
        let expected = if over {
            Status::Ended
        } else {
            Status::KernelChanged
        };
        assert_eq!(status, expected);
        assert_ne!(session.state(), State::Admitted);
    }
}
