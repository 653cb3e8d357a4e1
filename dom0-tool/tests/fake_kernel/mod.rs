//! A Linux guest made by hand: 16 MiB of memory with page tables, a kernel image, a symbol table, a
//! VMCOREINFO note, a memory map and zone counters, all in the places and encodings of a 6.12 kernel on
//! x86-64.
//!
//! Every place is a constant, so a test can damage exactly what it is about.

#[path = "../by_hand/mod.rs"]
pub(crate) mod by_hand;

use lacuna::os::linux::layout::Layout;
use lacuna::source::GuestSource;
use lacuna_core::{
    Blocks, BytesRule, Field, FreeRule, Gfn, GuestMemory, GuestPhys, Order, PAGE_SIZE, Predicate, ReadError,
    VcpuRegisters,
};

/// Release that the kernel calls itself by.
pub(crate) const RELEASE: &str = "6.12.0-fake";
/// Frames of memory.
pub(crate) const FRAMES: u64 = 4096;
/// The image: virtual 16 MiB into the kernel's map, physical 2 MiB.
pub(crate) const IMAGE: u64 = 0xffff_ffff_8100_0000;
/// Where the image lies physically.
pub(crate) const IMAGE_AT: u64 = 0x20_0000;
/// `phys_base`, negative here: the image is linked to 16 MiB and lies at 2.
const PHYS_BASE: i64 = 0x20_0000 - 0x100_0000;
/// The direct map, and the memory map.
pub(crate) const DIRECT: u64 = 0xffff_8880_0000_0000;
/// Start of the descriptors, virtually.
pub(crate) const VMEMMAP: u64 = 0xffff_ea00_0000_0000;
/// Start of the descriptors, physically: 64 bytes a frame, 256 KiB.
pub(crate) const VMEMMAP_AT: u64 = 0x80_0000;

/// Offsets of the symbols in the image.
pub(crate) mod at {
    pub(crate) const ENTRY: u64 = 0x80;
    pub(crate) const TOP: u64 = 0x2000;
    pub(crate) const UTS: u64 = 0x4000;
    pub(crate) const BANNER: u64 = 0x5000;
    pub(crate) const NOTE_POINTER: u64 = 0x5800;
    pub(crate) const INIT_TASK: u64 = 0x6000;
    pub(crate) const CANARY_IN_TASK: u64 = 0x988;
    pub(crate) const REAL_PARENT_IN_TASK: u64 = 0x910;
    pub(crate) const PARENT_IN_TASK: u64 = 0x918;
    pub(crate) const LEADER_IN_TASK: u64 = 0x960;
    pub(crate) const NAME_IN_TASK: u64 = 0xb80;
    pub(crate) const VMEMMAP_BASE: u64 = 0x7000;
    pub(crate) const POISON_KEY: u64 = 0x7100;
    pub(crate) const POISON_EARLY: u64 = 0x7110;
    pub(crate) const INIT_ON_FREE: u64 = 0x7120;
    pub(crate) const NODE_DATA: u64 = 0x8000;
    pub(crate) const COUNT: u64 = 0x9000;
    pub(crate) const NAMES: u64 = 0x9100;
    pub(crate) const TOKENS: u64 = 0xa000;
    pub(crate) const TOKEN_INDEX: u64 = 0xb000;
    pub(crate) const BASE: u64 = 0xb400;
    pub(crate) const OFFSETS: u64 = 0xb500;
}

/// Physical places outside the image.
const SECTION_ROOTS: u64 = 0x60_0000;
const SECTIONS: u64 = 0x60_1000;
const NODE: u64 = 0x61_0000;
/// The genuine note.
pub(crate) const NOTE: u64 = 0x70_0000;
/// A process' top-level table, and its user half under page-table isolation.
pub(crate) const PROCESS_TOP: u64 = 0x90_0000;
const ZONE_BYTES: u64 = 1536;
const FREE_AREA: u64 = 256;
const AREA_BYTES: u64 = 88;

/// The guest.
#[derive(Clone)]
pub(crate) struct FakeKernel {
    /// Its memory.
    pub(crate) memory: Vec<u8>,
    tables: u64,
}

impl FakeKernel {
    /// A healthy guest with free blocks of orders 0, 3 and 10.
    pub(crate) fn new() -> Self {
        let mut guest = Self {
            memory: vec![0; usize::try_from(FRAMES).unwrap() * PAGE_SIZE],
            tables: 0x10_0000,
        };
        for megabytes in (0..16).step_by(2) {
            let offset = megabytes << 20;
            guest.map_large(DIRECT + offset, offset);
        }
        guest.map_large(IMAGE, IMAGE_AT);
        guest.map_large(VMEMMAP, VMEMMAP_AT);
        let top = guest.bytes(IMAGE_AT + at::TOP, PAGE_SIZE).to_vec();
        guest.write(PROCESS_TOP, &top);

        guest.write(IMAGE_AT + at::UTS, b"Linux");
        guest.write(IMAGE_AT + at::UTS + 130, RELEASE.as_bytes());
        guest.write(
            IMAGE_AT + at::BANNER,
            format!("Linux version {RELEASE} (fake)\n").as_bytes(),
        );
        guest.u64(IMAGE_AT + at::NOTE_POINTER, DIRECT + NOTE);
        guest.u64(
            IMAGE_AT + at::INIT_TASK + at::CANARY_IN_TASK,
            0x1234_5678_9abc_de00,
        );
        guest.first_task(at::INIT_TASK);
        guest.u64(IMAGE_AT + at::VMEMMAP_BASE, VMEMMAP);
        guest.u64(IMAGE_AT + at::NODE_DATA, DIRECT + NODE);
        guest.symbol_table();
        guest.sections();
        guest.zone();
        for (gfn, order) in [(1024, 10), (2048, 10), (3080, 3), (3333, 0)] {
            guest.free_block(gfn, order);
        }
        let text = Self::note_text();
        guest.note(NOTE, &text);
        guest
    }

    fn bytes(&self, from: u64, length: usize) -> &[u8] {
        let from = usize::try_from(from).unwrap();
        &self.memory[from..from + length]
    }

    /// Writes at a physical address.
    pub(crate) fn write(&mut self, to: u64, bytes: &[u8]) {
        let to = usize::try_from(to).unwrap();
        self.memory[to..to + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes eight bytes at a physical address.
    pub(crate) fn u64(&mut self, to: u64, value: u64) {
        self.write(to, &value.to_le_bytes());
    }

    fn read_u64(&self, from: u64) -> u64 {
        u64::from_le_bytes(self.bytes(from, 8).try_into().unwrap())
    }

    /// Maps 2 MiB in the reference table.
    pub(crate) fn map_large(&mut self, va: u64, physical: u64) {
        let mut table = IMAGE_AT + at::TOP;
        for shift in [39, 30] {
            let entry = table + (va >> shift & 0x1ff) * 8;
            if self.read_u64(entry) == 0 {
                self.u64(entry, self.tables | 0x63);
                self.tables += PAGE_SIZE as u64;
            }
            table = self.read_u64(entry) & !0xfff;
        }
        self.u64(table + (va >> 21 & 0x1ff) * 8, physical | 0xe3);
    }

    /// A symbol table whose tokens are single letters, addresses encoded as 6.12 does.
    fn symbol_table(&mut self) {
        let symbols = [
            ("T_stext", 0),
            ("Tentry_SYSCALL_64", at::ENTRY),
            ("Dinit_top_pgt", at::TOP),
            ("Dinit_uts_ns", at::UTS),
            ("Rlinux_banner", at::BANNER),
            ("Dvmcoreinfo_note", at::NOTE_POINTER),
            ("Dinit_task", at::INIT_TASK),
            ("Dvmemmap_base", at::VMEMMAP_BASE),
            ("B_page_poisoning_enabled", at::POISON_KEY),
            ("B_page_poisoning_enabled_early", at::POISON_EARLY),
            ("Binit_on_free", at::INIT_ON_FREE),
            ("Bnode_data", at::NODE_DATA),
        ];
        self.write(
            IMAGE_AT + at::COUNT,
            &u32::try_from(symbols.len()).unwrap().to_le_bytes(),
        );
        let mut names = Vec::new();
        for (index, (name, offset)) in symbols.iter().enumerate() {
            names.push(u8::try_from(name.len()).unwrap());
            names.extend_from_slice(name.as_bytes());
            // Backwards from the base, minus one: what CONFIG_KALLSYMS_ABSOLUTE_PERCPU makes of a text
            // symbol.
            let encoded = -1 - i32::try_from(*offset).unwrap();
            self.write(IMAGE_AT + at::OFFSETS + index as u64 * 4, &encoded.to_le_bytes());
        }
        self.write(IMAGE_AT + at::NAMES, &names);
        self.u64(IMAGE_AT + at::BASE, IMAGE);
        for letter in 0..=255_u8 {
            let token = u64::from(letter) * 2;
            self.write(IMAGE_AT + at::TOKENS + token, &[letter, 0]);
            self.write(
                IMAGE_AT + at::TOKEN_INDEX + token,
                &u16::try_from(token).unwrap().to_le_bytes(),
            );
        }
    }

    /// What tells the first task, at an offset of the image.
    pub(crate) fn first_task(&mut self, at: u64) {
        self.u64(IMAGE_AT + at + at::REAL_PARENT_IN_TASK, IMAGE + at);
        self.u64(IMAGE_AT + at + at::PARENT_IN_TASK, IMAGE + at);
        self.u64(IMAGE_AT + at + at::LEADER_IN_TASK, IMAGE + at);
        self.write(IMAGE_AT + at + at::NAME_IN_TASK, b"swapper/0\0");
    }

    /// Renames a symbol in the table.
    pub(crate) fn hide_symbol(&mut self, name: &str) {
        let from = usize::try_from(IMAGE_AT + at::NAMES).unwrap();
        let table = &mut self.memory[from..from + 0x800];
        let place = table
            .windows(name.len())
            .position(|window| window == name.as_bytes())
            .unwrap();
        table[place] = b'~';
    }

    fn sections(&mut self) {
        self.u64(SECTION_ROOTS, DIRECT + SECTIONS);
        // One section of 128 MiB: present, with a memory map, online, early.
        self.u64(SECTIONS, VMEMMAP | 0xf);
    }

    fn zone(&mut self) {
        self.u64(NODE + 160, FRAMES);
        let zones = 3 * ZONE_BYTES;
        self.write(NODE + zones, &1_u32.to_le_bytes());
        self.u64(NODE + zones + 16, FRAMES);
    }

    /// Puts a free block into the memory map and the counters.
    pub(crate) fn free_block(&mut self, gfn: u64, order: u64) {
        let descriptor = VMEMMAP_AT + gfn * 64;
        self.u64(descriptor + 40, order);
        self.write(descriptor + 48, &0xf000_0000_u32.to_le_bytes());
        let count = NODE + FREE_AREA + order * AREA_BYTES + 80;
        let now = self.read_u64(count);
        self.u64(count, now + 1);
    }

    /// Pages in free blocks, by construction.
    pub(crate) const FREE_PAGES: u64 = 1024 + 1024 + 8 + 1;

    /// The text of the genuine note.
    pub(crate) fn note_text() -> String {
        let image = |offset| IMAGE + offset;
        format!(
            "OSRELEASE={RELEASE}\nBUILD-ID=00112233\nPAGESIZE=4096\nSYMBOL(init_uts_ns)={:x}\n\
             OFFSET(uts_namespace.name)=0\nSYMBOL(swapper_pg_dir)={:x}\nSYMBOL(init_top_pgt)={:x}\nSYMBOL(_stext)={:x}\n\
             SYMBOL(vmemmap)={VMEMMAP:x}\nSYMBOL(mem_section)={:x}\nLENGTH(mem_section)=16\nSIZE(mem_section)=32\n\
             OFFSET(mem_section.section_mem_map)=0\nNUMBER(SECTION_SIZE_BITS)=27\nSIZE(page)=64\n\
             OFFSET(page._refcount)=52\nOFFSET(page._mapcount)=48\nOFFSET(page.private)=40\nOFFSET(page.flags)=0\n\
             OFFSET(page.lru)=8\nSIZE(pglist_data)=4864\nOFFSET(pglist_data.node_zones)=0\n\
             OFFSET(pglist_data.nr_zones)=4608\nOFFSET(pglist_data.node_start_pfn)=4616\n\
             OFFSET(pglist_data.node_spanned_pages)=4624\nSIZE(zone)=1536\nOFFSET(zone.free_area)=256\n\
             OFFSET(zone.spanned_pages)=160\nSIZE(free_area)=88\nLENGTH(zone.free_area)=11\nLENGTH(node_data)=4\n\
             SYMBOL(node_data)={:x}\nNUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-268435456\nNUMBER(phys_base)={PHYS_BASE}\n\
             NUMBER(pgtable_l5_enabled)=0\nSYMBOL(kallsyms_names)={:x}\nSYMBOL(kallsyms_num_syms)={:x}\n\
             SYMBOL(kallsyms_token_table)={:x}\nSYMBOL(kallsyms_token_index)={:x}\nSYMBOL(kallsyms_offsets)={:x}\n\
             SYMBOL(kallsyms_relative_base)={:x}\n",
            image(at::UTS),
            image(at::TOP),
            image(at::TOP),
            IMAGE,
            DIRECT + SECTION_ROOTS,
            image(at::NODE_DATA),
            image(at::NAMES),
            image(at::COUNT),
            image(at::TOKENS),
            image(at::TOKEN_INDEX),
            image(at::OFFSETS),
            image(at::BASE),
        )
    }

    /// Puts a note with `text` into memory.
    pub(crate) fn note(&mut self, to: u64, text: &str) {
        self.write(to, &11_u32.to_le_bytes());
        self.write(to + 4, &u32::try_from(text.len()).unwrap().to_le_bytes());
        self.write(to + 8, &[0; 4]);
        self.write(to + 12, b"VMCOREINFO\0");
        self.write(to + 24, text.as_bytes());
    }

    /// Replaces the genuine note's text.
    pub(crate) fn edit_note(&mut self, from: &str, to: &str) {
        let text = Self::note_text();
        assert!(text.contains(from), "{from} is not in the note");
        self.note(NOTE, &text.replace(from, to));
    }

    /// Two virtual CPUs: one in the kernel's reference table, one in a process.
    pub(crate) fn vcpus() -> Vec<VcpuRegisters> {
        let first = VcpuRegisters {
            cr0: 0x8005_0033,
            cr3: IMAGE_AT + at::TOP,
            cr4: 0x6f0,
            efer: 0xd01,
            idt_base: 0xffff_fe00_0000_0000,
            lstar: IMAGE + at::ENTRY,
            sysenter_eip: 0,
            idt_limit: 0xfff,
            flags: VcpuRegisters::ONLINE,
        };
        vec![
            first,
            VcpuRegisters {
                cr3: PROCESS_TOP,
                ..first
            },
        ]
    }

    /// The layout that this kernel's headers would give.
    pub(crate) fn layout() -> Layout {
        let facts = [
            ("CONFIG_SPARSEMEM_VMEMMAP", 1),
            ("CONFIG_PAGE_POISONING", 1),
            ("MAX_NR_ZONES", 3),
            ("offsetof(struct free_area,nr_free)", 80),
            ("offsetof(struct static_key,enabled)", 0),
            ("offsetof(struct task_struct,stack_canary)", at::CANARY_IN_TASK),
            ("offsetof(struct task_struct,parent)", at::PARENT_IN_TASK),
            ("offsetof(struct task_struct,group_leader)", at::LEADER_IN_TASK),
            ("offsetof(struct task_struct,comm)", at::NAME_IN_TASK),
            ("sizeof(struct zone)", ZONE_BYTES),
            ("offsetof(struct zone,free_area)", FREE_AREA),
            ("offsetof(struct zone,spanned_pages)", 160),
            ("sizeof(struct free_area)", AREA_BYTES),
            ("sizeof(struct pglist_data)", 4864),
            ("offsetof(struct pglist_data,node_zones)", 0),
            ("offsetof(struct pglist_data,nr_zones)", 4608),
            ("sizeof(struct mem_section)", 32),
            ("offsetof(struct mem_section,section_mem_map)", 0),
            ("SECTION_SIZE_BITS", 27),
        ];
        let free = FreeRule {
            predicate: Predicate {
                field: Field { offset: 51, width: 1 },
                mask: 0xff,
                expected: 0xf0,
            },
            conditions: std::iter::once(Predicate::zero(Field { offset: 52, width: 4 })).collect(),
            blocks: Some(Blocks {
                order: Field { offset: 40, width: 8 },
                max_order: Order::new(10).unwrap(),
            }),
            bytes: BytesRule::Any,
        };
        by_hand::layout(RELEASE, 64, free, &facts)
    }
}

impl GuestMemory for FakeKernel {
    fn read(&mut self, from: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        if from.offset() + into.len() > PAGE_SIZE {
            return Err(ReadError::CrossesFrame(from));
        }
        if from.gfn().get() >= FRAMES {
            return Err(ReadError::Absent(from.gfn()));
        }
        into.copy_from_slice(self.bytes(from.get(), into.len()));
        Ok(())
    }
}

impl GuestSource for FakeKernel {
    fn end(&self) -> Gfn {
        Gfn::new(FRAMES)
    }
}
