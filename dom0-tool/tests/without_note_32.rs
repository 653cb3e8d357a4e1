//! A 32-bit kernel as 2.6.32 was on i386: FLATMEM, two-level page tables, free pages marked by a flag, no
//! VMCOREINFO note, no stack protector. It is made by hand and told by its System.map.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod by_hand;

use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::AtomicU64;

use lacuna::os::linux::by_system_map::{MapError, identify};
use lacuna::os::linux::identify::{Identified, Rejection};
use lacuna::os::linux::layout::Layout;
use lacuna::os::linux::other_kernels::Tie;
use lacuna::os::linux::profile::{Sources, build};
use lacuna::source::{Cpu, GuestSource};
use lacuna_core::{
    Bitmap, Blocks, BytesRule, Field, FreeCheck, FreeRule, Gfn, GuestMemory, GuestPhys, Order, PAGE_SIZE,
    PagingLevels, Predicate, ReadError, Scanner,
};

const RELEASE: &str = "2.6.32-made";
const FRAMES: u64 = 4096;
/// The linear map.
const PAGE_OFFSET: u64 = 0xc000_0000;
/// Physical places.
const TEXT: u64 = 0x10_0000;
const ENTRY: u64 = TEXT + 0x100;
const TOP: u64 = 0x10_1000;
const UTS: u64 = 0x10_2000;
const BANNER: u64 = 0x10_2800;
const TASK: u64 = 0x10_3000;
const NODE: u64 = 0x10_4000;
const MEM_MAP: u64 = 0x10_5000;
const CLOCK: u64 = 0x10_5100;
/// Minus a time in 2011, in four bytes.
const BOOTED: u64 = 0xffff_ffff - 1_300_000_000 + 1;
const IDT: u64 = 0x10_6000;
const DESCRIPTORS: u64 = 0x20_0000;
const PARENT: u64 = 0x100;
const NAME: u64 = 0x200;
const ZONE: u64 = 0x200;
const AREA: u64 = 44;
const ORDERS: u64 = 11;
const SPANNED: u64 = 0x1f0;
const FREE_PAGES: u64 = 1024 + 8 + 1;

struct Guest {
    memory: Vec<u8>,
}

impl Guest {
    fn new() -> Self {
        let mut guest = Self {
            memory: vec![0; usize::try_from(FRAMES).unwrap() * PAGE_SIZE],
        };
        for index in 0..4_u64 {
            guest.u32(TOP + (768 + index) * 4, index << 22 | 0xe3);
        }
        guest.write(UTS + 4, b"Linux");
        guest.write(UTS + 4 + 130, RELEASE.as_bytes());
        guest.write(BANNER, format!("Linux version {RELEASE} (made)\n").as_bytes());
        guest.u32(TASK + PARENT, PAGE_OFFSET + TASK);
        guest.write(TASK + NAME, b"swapper\0");
        guest.u32(MEM_MAP, PAGE_OFFSET + DESCRIPTORS);
        guest.u32(CLOCK, BOOTED);
        // One zone, of all of memory, in the one node.
        guest.u32(NODE + SPANNED - 0x10, FRAMES);
        guest.u32(NODE + ZONE + 4, FRAMES);
        guest.u32(NODE + ZONE, PAGE_OFFSET + DESCRIPTORS);
        for (gfn, order) in [(2048, 10), (3080, 3), (3333, 0)] {
            let descriptor = DESCRIPTORS + gfn * 32;
            guest.u32(descriptor, 1 << 19 | 1 << 10);
            guest.u32(descriptor + 12, order);
            guest.u32(NODE + 0x10 + order * AREA + 40, 1);
        }
        // In use: marked by another flag, or held by someone.
        guest.u32(DESCRIPTORS + 3500 * 32, 1 << 18);
        guest
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        let at = usize::try_from(at).unwrap();
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn u32(&mut self, at: u64, value: u64) {
        self.write(at, &u32::try_from(value).unwrap().to_le_bytes());
    }
}

impl GuestMemory for Guest {
    fn read(&mut self, from: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        if from.offset() + into.len() > PAGE_SIZE {
            return Err(ReadError::CrossesFrame(from));
        }
        if from.gfn().get() >= FRAMES {
            return Err(ReadError::Absent(from.gfn()));
        }
        let at = usize::try_from(from.get()).unwrap();
        into.copy_from_slice(&self.memory[at..at + into.len()]);
        Ok(())
    }
}

impl GuestSource for Guest {
    fn end(&self) -> Gfn {
        Gfn::new(FRAMES)
    }
}

fn find(guest: &mut Guest, cpus: &[Cpu], entry: u64) -> Result<Identified, MapError> {
    let mut text = String::new();
    for (name, at) in [
        ("_stext", TEXT),
        ("ia32_sysenter_target", entry),
        ("swapper_pg_dir", TOP),
        ("init_uts_ns", UTS),
        ("linux_banner", BANNER),
        ("init_task", TASK),
        ("contig_page_data", NODE),
        ("mem_map", MEM_MAP),
        ("wall_to_monotonic", CLOCK),
        ("idt_table", IDT),
    ] {
        writeln!(text, "{:08x} D {name}", PAGE_OFFSET + at).unwrap();
    }
    for number in 0..1200 {
        writeln!(text, "{:08x} t filler_{number}", PAGE_OFFSET + TEXT + number).unwrap();
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    identify(guest, cpus, file.path(), &mut |_, _| {})
}

/// A virtual CPU in a process, whose table has the kernel's half.
fn cpus(guest: &mut Guest) -> Vec<Cpu> {
    let process = 0x30_0000;
    for index in 0..4_u64 {
        guest.u32(process + (768 + index) * 4, index << 22 | 0xe3);
    }
    vec![Cpu {
        cr0: Some(0x8005_0033),
        cr3: Some(process),
        cr4: Some(0x690 & !0x20),
        efer: Some(0),
        idt_base: Some(PAGE_OFFSET + IDT),
        idt_limit: Some(0x7ff),
        sysenter_eip: Some(PAGE_OFFSET + ENTRY),
        ..Cpu::default()
    }]
}

fn layout() -> Layout {
    let facts = [
        ("CONFIG_FLATMEM", 1),
        ("MAX_NR_ZONES", 1),
        ("MAX_NUMNODES", 1),
        ("sizeof(struct zone)", ZONE),
        ("offsetof(struct zone,free_area)", 0x10),
        ("offsetof(struct zone,spanned_pages)", SPANNED - 0x10),
        ("sizeof(struct free_area)", AREA),
        ("offsetof(struct free_area,nr_free)", 40),
        ("offsetof(struct pglist_data,node_zones)", 0),
        ("offsetof(struct pglist_data,node_mem_map)", ZONE),
        ("offsetof(struct pglist_data,node_spanned_pages)", ZONE + 4),
        ("offsetof(struct pglist_data,node_start_pfn)", ZONE + 8),
        ("offsetof(struct task_struct,parent)", PARENT),
        ("offsetof(struct task_struct,group_leader)", PARENT),
        ("offsetof(struct task_struct,comm)", NAME),
    ];
    let free = FreeRule {
        predicate: Predicate {
            field: Field { offset: 2, width: 1 },
            mask: 8,
            expected: 8,
        },
        conditions: std::iter::once(Predicate::zero(Field { offset: 4, width: 4 })).collect(),
        blocks: Some(Blocks {
            order: Field { offset: 12, width: 4 },
            max_order: Order::new(ORDERS - 1).unwrap(),
        }),
        bytes: BytesRule::Any,
    };
    by_hand::layout(RELEASE, 32, free, &facts)
}

#[test]
fn a_32_bit_kernel_of_2_6_is_known_by_its_system_map_and_headers() {
    let mut guest = Guest::new();
    let cpus = cpus(&mut guest);
    let kernel = find(&mut guest, &cpus, ENTRY).unwrap();
    assert_eq!((kernel.release.as_str(), kernel.note_at), (RELEASE, None));
    assert_eq!(kernel.space.root.get(), TOP);
    assert_eq!(
        (kernel.space.levels, kernel.tie),
        (PagingLevels::Two, Tie::PageTables)
    );
    let layout = layout();
    let sources = Sources {
        layout: Some(&layout),
        vmcoreinfo: true,
        btf: true,
        system_map: None,
        config: None,
    };
    let built = build(&mut guest, &kernel, &sources, &cpus).unwrap();
    assert_eq!(built.memory_model.name, "flatmem");
    assert_eq!((built.counted.pages, built.unusable), (FREE_PAGES, None));
    let drawn = built.profile.identity.boot_value.unwrap();
    assert_eq!(
        (drawn.at.get(), drawn.bytes, drawn.value),
        (PAGE_OFFSET + CLOCK, 4, BOOTED)
    );
    let words: Vec<AtomicU64> = (0..64).map(|_| AtomicU64::new(0)).collect();
    let bitmap = Bitmap::new(&words);
    let mut scanner = Scanner::new(FreeCheck::new(&built.profile));
    let step = scanner.step(&mut guest, &bitmap, Gfn::new(0), Gfn::new(FRAMES), u64::MAX);
    assert_eq!((step.free, step.unknown), (FREE_PAGES, 0));
    assert!(bitmap.get(Gfn::new(3333)) && !bitmap.get(Gfn::new(3500)));
}

#[test]
fn it_is_found_in_memory_and_held_against_sysenter() {
    let mut guest = Guest::new();
    let found = find(&mut guest, &[], ENTRY).unwrap();
    assert_eq!((found.space.root.get(), found.tie), (TOP, Tie::None));
    let cpus = cpus(&mut guest);
    let refused = find(&mut guest, &cpus, ENTRY + 0x10);
    assert!(
        matches!(
            refused,
            Err(MapError::Rejected {
                moved: 0,
                reason: Rejection::Register {
                    register: "SYSENTER_EIP",
                    ..
                },
                ..
            })
        ),
        "{refused:?}"
    );
}
