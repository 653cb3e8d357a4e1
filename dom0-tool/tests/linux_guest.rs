//! From a guest's memory to a profile, and every way in which that must be refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod fake_kernel;

use std::sync::atomic::AtomicU64;

use fake_kernel::{DIRECT, FakeKernel, IMAGE, IMAGE_AT, NOTE, PROCESS_TOP, RELEASE, VMEMMAP, at};
use lacuna::os::linux::contents::ContentsError;
use lacuna::os::linux::facts::FactError;
use lacuna::os::linux::identify::{Identified, IdentifyError, Rejection, identify, identify_live};
use lacuna::os::linux::kallsyms::KallsymsError;
use lacuna::os::linux::layout::Layout;
use lacuna::os::linux::memory_model::MemoryModelError;
use lacuna::os::linux::profile::{BuildError, LinuxProfile, Sources, build};
use lacuna::os::linux::vmcoreinfo::Kind;
use lacuna::source::Cpu;
use lacuna_core::{Bitmap, Contents, FreeCheck, Gfn, MemoryMap, Scanner, VcpuRegisters};
use proptest::prelude::*;

fn find(guest: &mut FakeKernel) -> Result<Identified, IdentifyError> {
    identify_live(guest, &FakeKernel::vcpus(), &mut |_, _| {})
}

fn make(guest: &mut FakeKernel) -> Result<LinuxProfile, BuildError> {
    let kernel = find(guest).expect("the kernel is found");
    build_with(guest, &kernel, &FakeKernel::layout(), &FakeKernel::vcpus())
}

fn build_with(
    guest: &mut FakeKernel,
    kernel: &Identified,
    layout: &Layout,
    vcpus: &[VcpuRegisters],
) -> Result<LinuxProfile, BuildError> {
    let sources = Sources {
        layout: Some(layout),
        vmcoreinfo: true,
        btf: false,
        system_map: None,
        config: None,
    };
    let cpus: Vec<Cpu> = vcpus.iter().map(Cpu::from_registers).collect();
    build(guest, kernel, &sources, &cpus)
}

/// The one reason for which the only note was rejected.
fn rejection(guest: &mut FakeKernel, vcpus: &[VcpuRegisters]) -> Rejection {
    match identify_live(guest, vcpus, &mut |_, _| {}) {
        Err(IdentifyError::NoneConfirmed { rejected }) if rejected.len() == 1 => rejected[0].reason.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_healthy_kernel_is_found_and_confirmed() {
    let found = find(&mut FakeKernel::new()).unwrap();
    assert_eq!(found.release, RELEASE);
    assert_eq!(found.banner.as_deref(), Some("Linux version 6.12.0-fake (fake)"));
    assert_eq!(found.note_at.unwrap().get(), NOTE);
    assert_eq!(found.space.root.get(), IMAGE_AT + at::TOP);
    assert!(found.rejected.is_empty());
    assert!(
        found
            .confirmed
            .iter()
            .any(|line| line.contains("vmcoreinfo_note")),
        "{:?}",
        found.confirmed
    );
}

#[test]
fn a_profile_says_what_the_kernel_says_and_counts_what_it_counts() {
    let mut guest = FakeKernel::new();
    let built = make(&mut guest).unwrap();
    let MemoryMap::Vmemmap { base } = built.profile.memory_map else {
        panic!("not a vmemmap")
    };
    assert_eq!(base.get(), VMEMMAP);
    assert_eq!(built.profile.contents, Contents::DontCare);
    assert_eq!(built.profile.identity.lstar, IMAGE + at::ENTRY);
    let drawn = built.profile.identity.boot_value.unwrap();
    assert_eq!((drawn.value, drawn.bytes), (0x1234_5678_9abc_de00, 8));
    assert_eq!(built.counted.pages, FakeKernel::FREE_PAGES);
    assert!(built.unusable.is_none());

    let words: Vec<AtomicU64> = (0..64).map(|_| AtomicU64::new(0)).collect();
    let bitmap = Bitmap::new(&words);
    let mut scanner = Scanner::new(FreeCheck::new(&built.profile));
    let step = scanner.step(&mut guest, &bitmap, Gfn::new(0), Gfn::new(4096), u64::MAX);
    assert_eq!((step.free, step.unknown), (FakeKernel::FREE_PAGES, 0));
    assert!(bitmap.get(Gfn::new(3333)) && !bitmap.get(Gfn::new(3334)));
}

#[test]
fn a_forged_note_that_comes_first_is_not_believed() {
    let mut guest = FakeKernel::new();
    // What a process in the guest can do: the very same text with one number changed, in a page of its own.
    let forged = FakeKernel::note_text().replace("SIZE(page)=64", "SIZE(page)=56");
    guest.note(0x5000, &forged);
    let found = find(&mut guest).unwrap();
    assert_eq!(found.note_at.unwrap().get(), NOTE);
    assert_eq!(found.info.unsigned(Kind::Size, "page"), Ok(64));
    // Where the image's own pointer cannot be followed, all of memory is searched, and it is not believed
    // either.
    guest.u64(IMAGE_AT + at::NOTE_POINTER, 0);
    match find(&mut guest) {
        Err(IdentifyError::NoneConfirmed { rejected }) => assert_eq!(rejected.len(), 2),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_forged_note_that_a_word_of_the_image_leads_to_is_not_believed() {
    let mut guest = FakeKernel::new();
    let forged = FakeKernel::note_text().replace("SIZE(page)=64", "SIZE(page)=56");
    guest.note(0x5000, &forged);
    // An address like many: it may be in the image by chance, or in a page of it that the kernel has freed.
    guest.u64(IMAGE_AT + at::NOTE_POINTER + 0x400, DIRECT + 0x5000);
    let found = find(&mut guest).unwrap();
    assert_eq!(found.note_at.unwrap().get(), NOTE);
    assert_eq!(
        found
            .rejected
            .iter()
            .map(|note| note.reason.clone())
            .collect::<Vec<_>>(),
        [Rejection::NotTheKernelsOwn { own: NOTE }]
    );
}

#[test]
fn without_registers_the_kernel_is_found_by_what_its_note_names() {
    let mut guest = FakeKernel::new();
    let found = identify(&mut guest, &[], &mut |_, _| {}).unwrap();
    assert_eq!(
        (found.note_at.unwrap().get(), found.space.root.get()),
        (NOTE, IMAGE_AT + at::TOP)
    );
    // A note of another kernel than the one that they map is not confirmed.
    guest.edit_note("OSRELEASE=6.12.0-fake", "OSRELEASE=6.12.1-fake");
    assert!(matches!(
        identify(&mut guest, &[], &mut |_, _| {}),
        Err(IdentifyError::NoneConfirmed { .. })
    ));
}

#[test]
fn a_guest_that_floods_its_memory_with_notes_is_refused() {
    let mut guest = FakeKernel::new();
    let forged = FakeKernel::note_text().replace("SIZE(page)=64", "SIZE(page)=56");
    for page in 1..=201 {
        guest.note(page * 0x1000, &forged);
    }
    // The image leads to the kernel's own, so that the flood is never looked at.
    assert_eq!(find(&mut guest).unwrap().note_at.unwrap().get(), NOTE);
    guest.u64(IMAGE_AT + at::NOTE_POINTER, 0);
    assert!(matches!(find(&mut guest), Err(IdentifyError::TooMany { rejected }) if rejected.len() == 201));
}

#[test]
fn without_the_symbol_two_notes_that_the_image_leads_to_are_refused_if_they_differ() {
    let mut guest = FakeKernel::new();
    guest.hide_symbol("vmcoreinfo_note");
    let found = find(&mut guest).unwrap();
    assert!(
        found
            .confirmed
            .iter()
            .any(|line| line.contains("a word of the kernel's image"))
    );
    guest.note(
        0x5000,
        &FakeKernel::note_text().replace("SIZE(page)=64", "SIZE(page)=56"),
    );
    assert_eq!(find(&mut guest).unwrap().note_at.unwrap().get(), NOTE);
    guest.u64(IMAGE_AT + at::NOTE_POINTER + 0x400, DIRECT + 0x5000);
    assert!(matches!(find(&mut guest), Err(IdentifyError::Ambiguous { at }) if at.len() == 2));
    // The same text twice (a kernel before a kexec leaves one behind) says nothing else.
    guest.note(0x5000, &FakeKernel::note_text());
    assert!(find(&mut guest).is_ok());
    // What lies beside vmcoreinfo_note tells the kernel's own from a page that a word leads to by chance.
    guest.note(
        0x5000,
        &FakeKernel::note_text().replace("SIZE(page)=64", "SIZE(page)=56"),
    );
    guest.write(0x6000, FakeKernel::note_text().as_bytes());
    guest.u64(
        IMAGE_AT + at::NOTE_POINTER - 8,
        FakeKernel::note_text().len() as u64,
    );
    guest.u64(IMAGE_AT + at::NOTE_POINTER + 8, DIRECT + 0x6000);
    assert_eq!(find(&mut guest).unwrap().note_at.unwrap().get(), NOTE);
}

#[test]
fn a_note_of_a_kernel_that_no_processor_runs_is_not_believed() {
    let mut guest = FakeKernel::new();
    let mut vcpus = FakeKernel::vcpus();
    vcpus[1].lstar = 0xffff_ffff_a000_0080;
    assert!(matches!(
        rejection(&mut guest, &vcpus),
        Rejection::Register {
            vcpu: 1,
            register: "LSTAR",
            ..
        }
    ));

    // Inside the kernel's text, and still not the entry that the symbol table names.
    vcpus[1].lstar = IMAGE + 0x100;
    assert!(matches!(
        rejection(&mut guest, &vcpus),
        Rejection::Register { vcpu: 1, .. }
    ));

    let mut vcpus = FakeKernel::vcpus();
    vcpus[1].cr3 = 0xa0_0000;
    assert!(matches!(
        rejection(&mut guest, &vcpus),
        Rejection::PageTables { vcpu: 1, .. }
    ));

    let mut vcpus = FakeKernel::vcpus();
    vcpus[0].idt_base = 0x1000;
    assert!(matches!(
        rejection(&mut guest, &vcpus),
        Rejection::Register { vcpu: 0, .. }
    ));

    for cpu in &mut vcpus {
        cpu.flags = 0;
    }
    assert_eq!(rejection(&mut guest, &vcpus), Rejection::NotLongMode);
}

#[test]
fn a_processor_stopped_in_user_mode_under_page_table_isolation_is_understood() {
    let mut vcpus = FakeKernel::vcpus();
    // The user half of the pair maps nothing of the kernel, and carries a PCID.
    vcpus[1].cr3 = PROCESS_TOP | 0x1000 | 0x801;
    let found = identify_live(&mut FakeKernel::new(), &vcpus, &mut |_, _| {}).unwrap();
    assert_eq!(found.release, RELEASE);
}

#[test]
fn the_kernel_has_the_last_word_on_its_release() {
    let mut guest = FakeKernel::new();
    guest.write(IMAGE_AT + at::UTS + 130, b"6.1.0-other\0");
    let expected = Rejection::Release {
        stated: RELEASE.into(),
        found: "6.1.0-other".into(),
    };
    assert_eq!(rejection(&mut guest, &FakeKernel::vcpus()), expected);
}

#[test]
fn addresses_outside_the_kernels_image_are_not_followed() {
    let mut guest = FakeKernel::new();
    guest.edit_note(
        &format!("SYMBOL(init_uts_ns)={:x}", IMAGE + at::UTS),
        "SYMBOL(init_uts_ns)=ffff888000500000",
    );
    let reason = rejection(&mut guest, &FakeKernel::vcpus());
    assert_eq!(
        reason,
        Rejection::OutsideImage {
            symbol: "init_uts_ns",
            at: DIRECT + 0x50_0000
        }
    );
}

#[test]
fn a_guest_without_a_note_is_not_found_and_says_how_much_was_searched() {
    let mut guest = FakeKernel::new();
    guest.write(NOTE, &[0; 64]);
    assert!(matches!(
        find(&mut guest),
        Err(IdentifyError::NothingFound { frames: 4096 })
    ));
}

#[test]
fn a_symbol_table_that_contradicts_the_note_is_refused() {
    let mut guest = FakeKernel::new();
    guest.u64(IMAGE_AT + at::BASE, IMAGE + 0x1000);
    let reason = rejection(&mut guest, &FakeKernel::vcpus());
    assert!(
        matches!(reason, Rejection::Kallsyms(KallsymsError::Disagrees { .. })),
        "{reason:?}"
    );

    let mut guest = FakeKernel::new();
    guest.write(IMAGE_AT + at::COUNT, &u32::MAX.to_le_bytes());
    let reason = rejection(&mut guest, &FakeKernel::vcpus());
    assert_eq!(reason, Rejection::Kallsyms(KallsymsError::Count(u32::MAX)));
}

#[test]
fn a_guest_that_poisons_its_free_pages_is_refused() {
    for (place, bytes) in [(at::POISON_KEY, &[1, 0, 0, 0][..]), (at::POISON_EARLY, &[1][..])] {
        let mut guest = FakeKernel::new();
        guest.write(IMAGE_AT + place, bytes);
        let refused = make(&mut guest).map(|_| ()).unwrap_err();
        assert!(
            matches!(
                refused,
                BuildError::Contents(ContentsError::Poisoned { value: 1, .. })
            ),
            "{refused}"
        );
        assert_eq!(lacuna::failure::Failure::from(refused).class.exit_status(), 3);
    }
}

#[test]
fn a_guest_that_clears_its_free_pages_gets_zeros() {
    let mut guest = FakeKernel::new();
    guest.write(IMAGE_AT + at::INIT_ON_FREE, &1_u32.to_le_bytes());
    assert_eq!(make(&mut guest).unwrap().profile.contents, Contents::Zero);
}

/// A guest whose symbol table holds no data, as without `CONFIG_KALLSYMS_ALL`.
fn without_data_symbols() -> FakeKernel {
    let mut guest = FakeKernel::new();
    for name in [
        "init_task",
        "vmemmap_base",
        "_page_poisoning_enabled_early",
        "_page_poisoning_enabled",
        "init_on_free",
        "vmcoreinfo_note",
    ] {
        guest.hide_symbol(name);
    }
    guest
}

#[test]
fn a_kernel_without_symbols_of_data_is_profiled_by_what_its_memory_holds() {
    let built = make(&mut without_data_symbols()).unwrap();
    assert_eq!(built.unusable, None);
    let drawn = built.profile.identity.boot_value.unwrap();
    assert_eq!(
        (drawn.at.get(), drawn.value),
        (IMAGE + at::INIT_TASK + at::CANARY_IN_TASK, 0x1234_5678_9abc_de00)
    );
    // All free pages are zero here, and may have to be.
    assert_eq!(built.profile.contents, Contents::Zero);

    // One that is not zero shows that the kernel does not clear them.
    let mut guest = without_data_symbols();
    for gfn in 1100..1200 {
        guest.write(gfn * 4096 + 17, &[1]);
    }
    let built = make(&mut guest).unwrap();
    assert_eq!(
        (built.unusable, built.profile.contents),
        (None, Contents::DontCare)
    );
}

#[test]
fn what_only_looks_like_the_first_task_is_not_taken_for_it() {
    // Its name, its parent, its leader: each of them counts.
    for member in [at::NAME_IN_TASK, at::PARENT_IN_TASK, at::LEADER_IN_TASK] {
        let mut guest = without_data_symbols();
        guest.write(IMAGE_AT + at::INIT_TASK + member, b"x");
        let missing = make(&mut guest).unwrap().unusable.unwrap();
        assert!(missing.contains("init_task"), "{missing}");
    }
    // A process can make up another one in a page of the image that the kernel has freed.
    let mut guest = without_data_symbols();
    guest.first_task(0x10_0000);
    let missing = make(&mut guest).unwrap().unusable.unwrap();
    assert!(missing.contains("init_task"), "{missing}");
    // Where a symbol says where it is, that is of no avail.
    let mut guest = FakeKernel::new();
    guest.first_task(0x10_0000);
    let drawn = make(&mut guest).unwrap().profile.identity.boot_value.unwrap();
    assert_eq!(drawn.value, 0x1234_5678_9abc_de00);
}

#[test]
fn poisoned_free_pages_without_a_symbol_for_the_switch_are_refused() {
    let poison = |frames: &mut dyn Iterator<Item = u64>| {
        let mut guest = without_data_symbols();
        for gfn in frames {
            guest.write(gfn * 4096, &[0xaa; 4096]);
        }
        make(&mut guest)
    };
    let refused = poison(&mut (1024..1536).chain(2305..3072))
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(refused, BuildError::Contents(ContentsError::Pattern { .. })),
        "{refused}"
    );
    assert_eq!(lacuna::failure::Failure::from(refused).class.exit_status(), 3);
    // A few can be a process' doing, or an old kernel's that did not poison what was free at boot.
    let missing = poison(&mut (1024..1124)).unwrap().unusable.unwrap();
    assert!(missing.contains("poisons"), "{missing}");
}

#[test]
fn headers_and_kernel_that_differ_are_refused_with_both_numbers() {
    let cases: [(&str, &str, &str, &str); 4] = [
        ("SIZE(page)=64", "SIZE(page)=56", "64", "56"),
        ("OFFSET(page.private)=40", "OFFSET(page.private)=32", "40", "32"),
        (
            "LENGTH(zone.free_area)=11",
            "LENGTH(zone.free_area)=10",
            "11",
            "10",
        ),
        ("SIZE(free_area)=88", "SIZE(free_area)=104", "88", "104"),
    ];
    for (from, to, ours, theirs) in cases {
        let mut guest = FakeKernel::new();
        guest.edit_note(from, to);
        match make(&mut guest) {
            Err(BuildError::Fact(FactError::Disagree { one, other, .. })) => {
                assert_eq!((one.as_str(), other.as_str()), (ours, theirs), "{to}");
            }
            other => panic!("{to}: {other:?}"),
        }
    }
    // The mark itself: -129 is what 6.1 puts there.
    let mut guest = FakeKernel::new();
    guest.edit_note("VALUE)=-268435456", "VALUE)=-129");
    assert!(matches!(
        make(&mut guest),
        Err(BuildError::Fact(FactError::Disagree { .. }))
    ));
}

#[test]
fn sources_that_differ_on_the_memory_map_are_refused() {
    let mut guest = FakeKernel::new();
    guest.u64(IMAGE_AT + at::VMEMMAP_BASE, VMEMMAP + (1 << 30));
    let refused = make(&mut guest);
    assert!(
        matches!(
            refused,
            Err(BuildError::MemoryModel(MemoryModelError::Disagree { .. }))
        ),
        "{refused:?}"
    );
}

#[test]
fn another_kernels_layout_is_refused() {
    let mut guest = FakeKernel::new();
    let kernel = find(&mut guest).unwrap();
    let mut layout = FakeKernel::layout();
    layout.release = "6.12.0-other".into();
    let refused = build_with(&mut guest, &kernel, &layout, &FakeKernel::vcpus());
    assert!(matches!(refused, Err(BuildError::OtherKernel { .. })));
}

#[test]
fn a_virtual_cpu_with_another_idt_is_refused() {
    let mut guest = FakeKernel::new();
    let kernel = find(&mut guest).unwrap();
    let mut vcpus = FakeKernel::vcpus();
    vcpus[1].idt_limit = 0;
    let refused = build_with(&mut guest, &kernel, &FakeKernel::layout(), &vcpus);
    assert!(
        matches!(refused, Err(BuildError::OtherIdentity { vcpu: 1, .. })),
        "{refused:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever a guest has in its image, its note and its structures, nothing panics and nothing runs away.
    #[test]
    fn a_damaged_guest_is_profiled_or_refused(
        damage in proptest::collection::vec(
            (prop_oneof![IMAGE_AT..IMAGE_AT + 0xc000, NOTE..NOTE + 2048, 0x60_0000..0x61_2000_u64, 0x10_0000..0x10_8000_u64], any::<u8>()),
            1..24,
        )
    ) {
        let mut guest = FakeKernel::new();
        for (place, byte) in damage {
            guest.write(place, &[byte]);
        }
        if let Ok(kernel) = find(&mut guest) {
            let _ = build_with(&mut guest, &kernel, &FakeKernel::layout(), &FakeKernel::vcpus());
        }
    }
}
