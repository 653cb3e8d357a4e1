//! Kernels that have no VMCOREINFO note: told by their System.map, and by nothing that does not fit it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

// Not all of what other tests need is needed here.
#[allow(dead_code)]
mod fake_kernel;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::AtomicU64;

use fake_kernel::{DIRECT, FakeKernel, IMAGE, IMAGE_AT, NOTE, PROCESS_TOP, RELEASE, at, by_hand};
use lacuna::failure::{Class, Failure};
use lacuna::os::linux::by_system_map::{MapError, identify};
use lacuna::os::linux::facts::Source;
use lacuna::os::linux::identify::{Identified, Rejection};
use lacuna::os::linux::layout::Layout;
use lacuna::os::linux::other_kernels::Tie;
use lacuna::os::linux::profile::{BuildError, LinuxProfile, Sources, build};
use lacuna::os::{Sources as Everything, identify_linux, with_standing_kernel};
use lacuna::progress::Silent;
use lacuna::source::{Cpu, GuestSource};
use lacuna_core::{Bitmap, FreeCheck, Gfn, GuestMemory, GuestPhys, GuestVirt, ReadError, Scanner};
use tempfile::NamedTempFile;

/// How far the kernel is from where it was linked to.
const MOVED: u64 = 4 << 20;
/// Where in the image the table of sections is pointed at, or is.
const SECTIONS_IN_IMAGE: u64 = 0x7200;
/// Physically: an allocated table of groups of sections, with nothing behind it.
const GROUPS: u64 = 0x64_0000;
/// Physically: what [`FakeKernel`] has of sections.
const SECTIONS: u64 = 0x60_1000;
const COOKIES: u64 = 0x7400;
const POINTER_KEY: u64 = 0x7440;
const BOOT_ID: u64 = 0x7480;
const CLOCK: u64 = 0x74c0;
const IDT: u64 = 0xc000;
/// Where the IDT is mapped for the processors: all of the image is, here.
const ENTRY_AREA: u64 = 0xffff_fe00_0000_0000;
const SECRET: u64 = 0x0123_4567_89ab_cdef;

/// A kernel of this decade, or one as 2.6.18 was.
#[derive(Clone, Copy, PartialEq)]
enum Era {
    New,
    Old,
}

/// A guest without a note.
fn guest(era: Era) -> FakeKernel {
    let mut guest = FakeKernel::new();
    guest.write(NOTE, &[0; 4096]);
    guest.u64(IMAGE_AT + at::NOTE_POINTER, 0);
    guest.u64(GROUPS, DIRECT + SECTIONS);
    guest.u64(IMAGE_AT + COOKIES, SECRET);
    guest.map_large(ENTRY_AREA, IMAGE_AT);
    let tables: Vec<u8> = guest.memory[usize::try_from(IMAGE_AT + at::TOP).unwrap()..][..4096].to_vec();
    guest.write(PROCESS_TOP, &tables);
    match era {
        Era::New => guest.u64(IMAGE_AT + SECTIONS_IN_IMAGE, DIRECT + GROUPS),
        Era::Old => {
            // The table of groups itself; its banner was a pointer to the text.
            guest.u64(IMAGE_AT + SECTIONS_IN_IMAGE, DIRECT + SECTIONS);
            guest.write(
                IMAGE_AT + at::BANNER + 0x100,
                format!("Linux version {RELEASE} (fake)\n").as_bytes(),
            );
            guest.write(IMAGE_AT + at::BANNER, &[0; 64]);
            guest.u64(IMAGE_AT + at::BANNER, IMAGE + at::BANNER + 0x100);
            guest.write(IMAGE_AT + at::INIT_TASK + at::NAME_IN_TASK, b"swapper\0\0\0");
        }
    }
    guest
}

/// The kernel's symbols, by their offsets in the image.
fn symbols(era: Era) -> Vec<(&'static str, u64)> {
    let (root, names, entry) = match era {
        Era::New => ("init_top_pgt", "init_uts_ns", "entry_SYSCALL_64"),
        Era::Old => ("init_level4_pgt", "system_utsname", "system_call"),
    };
    vec![
        ("_stext", 0),
        (root, at::TOP),
        (names, at::UTS),
        (entry, at::ENTRY),
        ("linux_banner", at::BANNER),
        ("init_task", at::INIT_TASK),
        ("node_data", at::NODE_DATA),
        ("mem_section", SECTIONS_IN_IMAGE),
        ("syncookie_secret", COOKIES),
        ("ptr_key", POINTER_KEY),
        ("sysctl_bootid", BOOT_ID),
        ("wall_to_monotonic", CLOCK),
        ("idt_table", IDT),
        ("_page_poisoning_enabled", at::POISON_KEY),
        ("_page_poisoning_enabled_early", at::POISON_EARLY),
        ("init_on_free", at::INIT_ON_FREE),
    ]
}

/// A System.map of them.
fn system_map(symbols: &[(&str, u64)]) -> NamedTempFile {
    let mut text = String::new();
    for (name, offset) in symbols {
        writeln!(text, "{:016x} D {name}", IMAGE - MOVED + offset).unwrap();
    }
    for number in 0..1200 {
        writeln!(text, "{:016x} t filler_{number}", IMAGE - MOVED + number).unwrap();
    }
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    file
}

/// What the headers say.
fn layout(era: Era) -> Layout {
    let mut layout = FakeKernel::layout();
    layout.facts.extend(by_hand::known(&[
        ("MAX_NUMNODES", 4),
        ("SECTIONS_PER_ROOT", 128),
        ("sizeof(mem_section)", if era == Era::New { 8 } else { 16 * 8 }),
    ]));
    if era == Era::Old {
        layout.facts.remove("offsetof(struct task_struct,stack_canary)");
    }
    layout
}

fn cpus() -> Vec<Cpu> {
    let cpu = |registers| Cpu {
        idt_base: Some(ENTRY_AREA + IDT),
        ..Cpu::from_registers(registers)
    };
    FakeKernel::vcpus().iter().map(cpu).collect()
}

fn find(guest: &mut FakeKernel, cpus: &[Cpu], symbols: &[(&str, u64)]) -> Result<Identified, MapError> {
    identify(guest, cpus, system_map(symbols).path(), &mut |_, _| {})
}

fn make(
    guest: &mut FakeKernel,
    kernel: &Identified,
    layout: Option<&Layout>,
) -> Result<LinuxProfile, BuildError> {
    let sources = Sources {
        layout,
        vmcoreinfo: true,
        btf: true,
        system_map: None,
        config: None,
    };
    build(guest, kernel, &sources, &cpus())
}

#[test]
fn a_kernel_without_a_note_is_known_by_its_system_map_and_headers() {
    for era in [Era::New, Era::Old] {
        let mut guest = guest(era);
        let kernel = find(&mut guest, &cpus(), &symbols(era)).unwrap();
        assert_eq!((kernel.release.as_str(), kernel.note_at), (RELEASE, None));
        assert_eq!(kernel.space.root.get(), IMAGE_AT + at::TOP);
        assert_eq!(kernel.tie, Tie::PageTables);
        assert_eq!(kernel.banner.as_deref(), Some("Linux version 6.12.0-fake (fake)"));

        let built = make(&mut guest, &kernel, Some(&layout(era))).unwrap();
        assert_eq!(built.facts.sources(), [Source::Stub]);
        assert_eq!(built.counted.pages, FakeKernel::FREE_PAGES);
        assert_eq!(built.unusable, None);
        let drawn = built.profile.identity.boot_value.unwrap();
        let expected = match era {
            Era::New => (IMAGE + at::INIT_TASK + at::CANARY_IN_TASK, 0x1234_5678_9abc_de00),
            // Without a stack protector it is another secret.
            Era::Old => (IMAGE + COOKIES, SECRET),
        };
        assert_eq!((drawn.at.get(), drawn.value), expected);

        let words: Vec<AtomicU64> = (0..64).map(|_| AtomicU64::new(0)).collect();
        let bitmap = Bitmap::new(&words);
        let mut scanner = Scanner::new(FreeCheck::new(&built.profile));
        let step = scanner.step(&mut guest, &bitmap, Gfn::new(0), Gfn::new(4096), u64::MAX);
        assert_eq!((step.free, step.unknown), (FakeKernel::FREE_PAGES, 0));
    }
}

#[test]
fn without_registers_it_is_found_and_tied_to_nothing() {
    for era in [Era::New, Era::Old] {
        let mut guest = guest(era);
        let kernel = find(&mut guest, &[], &symbols(era)).unwrap();
        assert_eq!(kernel.space.root.get(), IMAGE_AT + at::TOP);
        assert_eq!(kernel.tie, Tie::None);
        // Names that a process wrote, in the right place of 2 MiB, have no page tables.
        guest.write(IMAGE_AT + (4 << 20) + at::UTS, b"Linux\0");
        assert!(find(&mut guest, &[], &symbols(era)).is_ok());
        // A second kernel of the same build has them.
        let moved = 6 << 20;
        let image: Vec<u8> = guest.memory[usize::try_from(IMAGE_AT).unwrap()..]
            [..usize::try_from(COOKIES + 64).unwrap()]
            .to_vec();
        guest.write(IMAGE_AT + moved, &image);
        let mut second = guest.clone();
        second.map_large(IMAGE + (16 << 20), IMAGE_AT + moved);
        let tables: Vec<u8> = second.memory[usize::try_from(IMAGE_AT + at::TOP).unwrap()..][..4096].to_vec();
        second.write(IMAGE_AT + moved + at::TOP, &tables);
        assert!(matches!(
            find(&mut second, &[], &symbols(era)),
            Err(MapError::Several { roots, .. }) if roots.len() == 2
        ));
    }
}

#[test]
fn the_system_map_of_another_build_leads_to_nothing() {
    let changed = |name: &str, offset: u64| {
        let mut symbols = symbols(Era::New);
        symbols.iter_mut().find(|symbol| symbol.0 == name).unwrap().1 += offset;
        symbols
    };
    let mut guest = guest(Era::New);
    for cpus in [cpus(), Vec::new()] {
        let found = find(&mut guest, &cpus, &changed("init_top_pgt", 0x1000));
        assert!(matches!(found, Err(MapError::NotThere { .. })), "{found:?}");
    }
    let reason = |symbols: &[(&str, u64)], guest: &mut FakeKernel| match find(guest, &cpus(), symbols) {
        Err(MapError::Rejected { moved, reason, .. }) => {
            assert_eq!(moved, MOVED);
            reason
        }
        other => panic!("{other:?}"),
    };
    assert!(matches!(
        reason(&changed("init_uts_ns", 8), &mut guest),
        Rejection::NoNames {
            symbol: "init_uts_ns",
            ..
        }
    ));
    assert!(matches!(
        reason(&changed("entry_SYSCALL_64", 0x10), &mut guest),
        Rejection::Register {
            register: "LSTAR",
            ..
        }
    ));
    assert!(matches!(
        reason(&changed("linux_banner", 1), &mut guest),
        Rejection::Banner { .. }
    ));
    // One virtual CPU that runs something else.
    let mut one_elsewhere = cpus();
    one_elsewhere[1].cr3 = Some(0xa0_0000);
    assert!(matches!(
        find(&mut guest, &one_elsewhere, &symbols(Era::New)),
        Err(MapError::Rejected {
            reason: Rejection::PageTables { vcpu: 1, .. },
            ..
        })
    ));
}

#[test]
fn the_idt_of_another_kernel_is_refused() {
    let mut guest = guest(Era::Old);
    let symbols = symbols(Era::Old);
    let with_idt = |idt_base| {
        let mut cpus = cpus();
        cpus[1].idt_base = Some(idt_base);
        cpus
    };
    // Where it was linked to serves as well as where it is mapped besides.
    let kernel = find(&mut guest, &with_idt(IMAGE + IDT), &symbols).unwrap();
    let said = "the IDT of every online virtual CPU is idt_table";
    assert!(kernel.confirmed.iter().any(|line| line == said));
    // Another place of the image, one that nothing maps, and none: a kernel that is being replaced.
    for other in [IMAGE + IDT + 0x1000, ENTRY_AREA + (4 << 20), 0] {
        let refused = find(&mut guest, &with_idt(other), &symbols);
        let Err(MapError::Rejected { reason, .. }) = refused else {
            panic!("{refused:?}")
        };
        assert!(
            matches!(reason, Rejection::Register { vcpu: 1, register: "the IDT's base", found, .. } if found == other),
            "{reason:?}"
        );
    }
    // What is loaded while the kernel traces is its own, too.
    let tracing = [&symbols[..], &[("trace_idt_table", IDT + 0x1000)]].concat();
    assert!(find(&mut guest, &with_idt(IMAGE + IDT + 0x1000), &tracing).is_ok());
}

#[test]
fn without_a_stack_protector_what_was_drawn_or_set_at_boot_ties_it() {
    let mut guest = guest(Era::Old);
    let kernel = find(&mut guest, &cpus(), &symbols(Era::Old)).unwrap();
    let booted = 1_300_000_000_u64.wrapping_neg();
    let places = [
        (COOKIES, SECRET),
        (POINTER_KEY, SECRET + 1),
        (BOOT_ID, SECRET + 2),
        (CLOCK, booted),
    ];
    for (at, value) in places {
        guest.u64(IMAGE_AT + at, value);
    }
    // The best first, and what was not drawn is none.
    for (at, value) in places {
        let built = make(&mut guest, &kernel, Some(&layout(Era::Old))).unwrap();
        let tie = built.profile.identity.boot_value.unwrap();
        assert_eq!(
            (tie.at.get(), tie.value, built.unusable),
            (IMAGE + at, value, None)
        );
        guest.u64(IMAGE_AT + at, 0);
    }
    // Nothing at all, and a clock that was never set, which shows the same at each boot.
    for clock in [0, 3600_u64.wrapping_neg(), 1_300_000_000] {
        guest.u64(IMAGE_AT + CLOCK, clock);
        let built = make(&mut guest, &kernel, Some(&layout(Era::Old))).unwrap();
        let missing = built.unusable.unwrap();
        for name in [
            "syncookie_secret",
            "ptr_key",
            "sysctl_bootid",
            "wall_to_monotonic",
        ] {
            assert!(missing.contains(name), "{missing}");
        }
    }
}

#[test]
fn headers_that_are_not_this_kernels_are_refused() {
    let mut guest = guest(Era::New);
    let kernel = find(&mut guest, &cpus(), &symbols(Era::New)).unwrap();
    assert!(matches!(make(&mut guest, &kernel, None), Err(BuildError::NoNote)));
    let mut other = layout(Era::New);
    other
        .facts
        .get_mut("offsetof(struct task_struct,comm)")
        .unwrap()
        .value += 8;
    assert!(matches!(
        make(&mut guest, &kernel, Some(&other)),
        Err(BuildError::OtherHeaders { at }) if at == GuestVirt::new(IMAGE + at::INIT_TASK)
    ));
    let mut other = layout(Era::New);
    other.release = "6.12.1-fake".to_owned();
    assert!(matches!(
        make(&mut guest, &kernel, Some(&other)),
        Err(BuildError::OtherKernel { .. })
    ));
    // A secret that was not drawn yet ties nothing.
    guest.u64(IMAGE_AT + COOKIES, 0);
    let mut bare = layout(Era::New);
    bare.facts.remove("offsetof(struct task_struct,stack_canary)");
    let built = make(&mut guest, &kernel, Some(&bare)).unwrap();
    assert!(built.unusable.unwrap().contains("syncookie_secret"));
}

#[test]
fn a_file_is_asked_where_no_note_is_confirmed_and_the_failure_names_both() {
    let file = system_map(&symbols(Era::New));
    let mut guest = guest(Era::New);
    let found = identify_linux(&mut guest, &cpus(), Some(file.path()), &mut Silent).unwrap();
    assert_eq!(found.note_at, None);
    // The note of a kernel that was there before does not stand in the way.
    guest.note(NOTE, &FakeKernel::note_text().replace(RELEASE, "6.1.0-before"));
    let found = identify_linux(&mut guest, &cpus(), Some(file.path()), &mut Silent).unwrap();
    assert_eq!((found.note_at, found.release.as_str()), (None, RELEASE));
    assert!(identify_linux(&mut guest, &cpus(), None, &mut Silent).is_err());

    guest.write(NOTE, &[0; 4096]);
    guest.write(IMAGE_AT + at::UTS, b"Minix");
    let sources = Everything {
        system_map: Some(file.path().to_owned()),
        ..Everything::default()
    };
    // Nobody looks for Windows then.
    let failure: Failure =
        with_standing_kernel(&mut guest, &cpus(), &sources, &mut Silent, |_, _, _| Ok(())).unwrap_err();
    assert_eq!(failure.class, Class::NotFound);
    for part in ["no VMCOREINFO note", "init_uts_ns", "System.map"] {
        assert!(failure.what.contains(part), "{failure}");
    }
}

/// A guest of which it is known how many frames were read.
struct Watched {
    guest: FakeKernel,
    frames: BTreeSet<u64>,
}

impl GuestMemory for Watched {
    fn read(&mut self, from: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        self.frames.insert(from.gfn().get());
        self.guest.read(from, into)
    }
}

impl GuestSource for Watched {
    fn end(&self) -> Gfn {
        self.guest.end()
    }
}

#[test]
fn not_all_of_memory_is_read_for_a_note_that_the_file_says_is_not_there() {
    let frames = |symbols: &[(&str, u64)], cpus: &[Cpu]| {
        let mut watched = Watched {
            guest: guest(Era::New),
            frames: BTreeSet::new(),
        };
        let file = system_map(symbols);
        let found = identify_linux(&mut watched, cpus, Some(file.path()), &mut Silent).unwrap();
        assert_eq!((found.note_at, found.release.as_str()), (None, RELEASE));
        watched.frames.len() as u64
    };
    let all = guest(Era::New).end().get();
    let read = frames(&symbols(Era::New), &cpus());
    assert!(read < 32, "{read} of {all} frames");
    // A kernel that can have a note is asked for it first, and one that no register leads to as well.
    let noted = [&symbols(Era::New)[..], &[("vmcoreinfo_note", at::NOTE_POINTER)]].concat();
    assert_eq!(frames(&noted, &cpus()), all);
    assert_eq!(frames(&symbols(Era::New), &[]), all);
}
