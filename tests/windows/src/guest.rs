//! The memory of a Windows-like guest that stands still: page tables, the kernel's image, its variables, and
//! a page-frame database in a chosen layout, with every trap that real ones have.

use crate::layouts::{Bits, Layout};
use crate::page_tables::Build;
use crate::pdb::Pdb;
use crate::pe::{AMD64, DATA, I386, IMAGE_SIZE, Pe, Record};
use crate::types::{Types, ULONG, UQUAD};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Where the variables are in `.data`.
pub(crate) const PFN_DATABASE: u32 = 0x10;
pub(crate) const MEMORY_BLOCK: u32 = 0x20;
pub(crate) const ZEROED_LIST: u32 = 0x40;
const DEBUGGER_BLOCK: u32 = 0x400;
/// Where the head of the zeroed list lies in `_MI_PARTITION`, and the partition in `.data`, with a guest that
/// has one.
const ZEROED_IN_PARTITION: u32 = 2176 + 64;
pub(crate) const PARTITION: u32 = 0x800;
pub(crate) const PARTITION_ZEROED: u32 = PARTITION + ZEROED_IN_PARTITION;
/// Where the structure is that `MmPhysicalMemoryBlock` points to.
const DESCRIPTOR: u32 = 0x100;
/// Where the exception handlers and the system call's entry lie in the image.
const HANDLER: u64 = 0x1020;
pub(crate) const ENTRY: u64 = 0x1040;
/// The first frame that lies above 4 GiB, in a guest that has memory there, by its place in [`Made::memory`].
pub(crate) const FIRST_HIGH: u64 = 0x900;
/// Where that frame is for the guest.
pub(crate) const FOUR_GIB: u64 = 1 << 20;
/// Most frames of page tables.
pub(crate) const TABLE_FRAMES: u64 = 64;

/// The form of the page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    /// 32 bits, 4-byte entries.
    Two,
    /// 32 bits, 8-byte entries.
    Pae,
    /// 64 bits, 4 levels.
    Four,
    /// 64 bits, 5 levels.
    Five,
}

/// What a page is, for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// On the zeroed list, and zero: free.
    Zeroed,
    /// On the zeroed list by its entry, with a byte that is not zero.
    ZeroedButDirty,
    /// Reads location 0 without a reference, being cleared this moment.
    OffList,
    /// Location 0 and a reference; the page is zero.
    Referenced,
    /// Location 0, ROM; zero.
    Rom,
    /// Location 0, but there is no such page; zero.
    Absent,
    /// Location 0, the entry is locked; zero.
    Locked,
    /// On another list, and zero all the same.
    OtherList(u8),
    /// In use, full of something.
    Active,
}

/// What of a guest's memory lies above 4 GiB: the second half, or none. In [`Made::memory`] it always comes
/// right behind what is below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Above {
    /// Nothing.
    Nothing,
    /// The page-frame database among it.
    Half,
    /// The page tables, too.
    Tables,
}

/// A guest to be made.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The layout of `_MMPFN`.
    pub layout: Layout,
    /// The form of the page tables.
    pub paging: Paging,
    /// GUID of the PDB, as files hold it.
    pub guid: [u8; 16],
    /// Its age.
    pub age: u32,
    /// Its name, by the executable.
    pub pdb_name: String,
    /// Whether the page with the exported name is in memory.
    pub exports_present: bool,
    /// Whether there is a debugger's block, and the PDB names only it.
    pub by_debugger_block: bool,
    /// Whether the lists are those of the system's partition, as since Windows 10: then
    /// `MmZeroedPageListHead` is no name.
    pub partition: bool,
    /// Whether nothing leads to the number of zeroed pages.
    pub uncounted: bool,
    /// What the zeroed list says that it has; `None`: what is true.
    pub total: Option<u64>,
    /// Where its memory is.
    pub above: Above,
    /// Whether a copy of the image is mapped elsewhere in the kernel's half, its variables never written.
    pub copy: bool,
    /// Whether images that call themselves kernels lie in memory that no table maps: one without a debug
    /// record, and one as it is on disk, with it.
    pub decoys: bool,
}

/// A guest that was made.
#[derive(Clone, Debug)]
pub struct Made {
    /// Its memory.
    pub memory: Vec<u8>,
    /// Its registers file.
    pub registers: String,
    /// CR3.
    pub cr3: u64,
    /// Where the kernel is.
    pub base: u64,
    /// Which frames are free.
    pub free: Vec<bool>,
    /// Runs of physical memory: first frame, frames.
    pub runs: Vec<(u64, u64)>,
    /// The PDB.
    pub pdb: Vec<u8>,
    /// What became of each frame.
    pub states: Vec<Option<State>>,
}

impl Guest {
    /// A guest with `layout`, in the paging that goes with it.
    pub fn new(layout: Layout, guid: [u8; 16]) -> Self {
        let paging = match (layout.x64, layout.pae) {
            (true, _) => Paging::Four,
            (false, true) => Paging::Pae,
            (false, false) => Paging::Two,
        };
        Self {
            layout,
            paging,
            guid,
            age: 1,
            pdb_name: "ntkrnlmp.pdb".into(),
            exports_present: true,
            by_debugger_block: false,
            partition: false,
            uncounted: false,
            total: None,
            above: Above::Nothing,
            copy: false,
            decoys: false,
        }
    }

    fn wide(&self) -> bool {
        matches!(self.paging, Paging::Four | Paging::Five)
    }

    pub(crate) fn base(&self) -> u64 {
        match self.paging {
            Paging::Four => 0xffff_f803_12c0_0000,
            Paging::Five => 0xff3a_f803_12c0_0000,
            Paging::Pae | Paging::Two => 0x8281_f000,
        }
    }

    pub(crate) fn database(&self) -> u64 {
        match self.paging {
            Paging::Four => 0xffff_fa80_0000_0000,
            Paging::Five => 0xff3a_fa80_0000_0000,
            Paging::Pae | Paging::Two => 0x83c0_0000,
        }
    }

    fn pointer(&self, value: u64) -> Vec<u8> {
        let size = if self.wide() { 8 } else { 4 };
        value.to_le_bytes()[..size].to_vec()
    }

    /// The executable, with these in its variables.
    pub(crate) fn executable(&self, data: Vec<(u32, Vec<u8>)>) -> Pe {
        Pe {
            machine: if self.wide() { AMD64 } else { I386 },
            image_base: 0x40_0000,
            record: Record::Rsds(self.guid, self.age, self.pdb_name.clone()),
            export_name: Some("ntoskrnl.exe".into()),
            data,
        }
    }

    pub(crate) fn pdb(&self) -> Vec<u8> {
        let mut pdb = Pdb::new(self.guid, self.age, if self.wide() { AMD64 } else { I386 });
        self.layout.write(&mut pdb.types);
        let prefix = if self.wide() { "" } else { "_" };
        let all = [
            ("MmPfnDatabase", PFN_DATABASE),
            ("MmPhysicalMemoryBlock", MEMORY_BLOCK),
            ("MmZeroedPageListHead", ZEROED_LIST),
            ("KdDebuggerDataBlock", DEBUGGER_BLOCK),
        ];
        if self.partition {
            self.write_partition(&mut pdb.types);
            let place = DATA + PARTITION - 0x1000;
            pdb.symbols.push((format!("{prefix}MiSystemPartition"), 1, place));
        }
        for (name, offset) in all {
            let is_list = name == "MmZeroedPageListHead";
            if self.partition && is_list || self.uncounted && (is_list || name.starts_with("Kd")) {
                continue;
            }
            if !self.by_debugger_block || name.starts_with("Kd") {
                // The PDB's one section begins at 0x1000.
                pdb.symbols
                    .push((format!("{prefix}{name}"), 1, DATA + offset - 0x1000));
            }
        }
        pdb.to_bytes()
    }

    /// `_MI_PARTITION`, as far as it leads to the number of zeroed pages: through a type that is announced
    /// first.
    fn write_partition(&self, types: &mut Types) {
        let word = if self.wide() { UQUAD } else { ULONG };
        let announced = types.forward("_MI_PARTITION_PAGE_LISTS");
        let list = types.structure("_MMPFNLIST", 40, &[("Total", word, 0), ("Flink", word, 16)]);
        types.structure(
            "_MI_PARTITION_PAGE_LISTS",
            1024,
            &[("FreePageListHead", list, 128), ("ZeroedPageListHead", list, 64)],
        );
        let fields = [
            ("Core", word, 0),
            ("PageLists", announced, ZEROED_IN_PARTITION - 64),
        ];
        types.structure("_MI_PARTITION", 4096, &fields);
    }

    /// Where the guest has the frame that lies at `place` in [`Made::memory`].
    pub fn frame_at(&self, place: u64) -> u64 {
        if self.above != Above::Nothing && place >= FIRST_HIGH {
            place - FIRST_HIGH + FOUR_GIB
        } else {
            place
        }
    }

    /// Where the page tables begin in [`Made::memory`].
    pub(crate) fn first_table(&self) -> u64 {
        if self.above == Above::Tables { 0xe00 } else { 0x200 }
    }

    /// Makes the guest: 16 MiB, of which some are firmware's and some are not there.
    pub fn make(&self) -> Made {
        let frames = 4096_u64;
        let runs: Vec<(u64, u64)> = vec![(1, 0x9e), (0x100, 0x700), (FIRST_HIGH, 0x700)];
        let mut states: Vec<Option<State>> = vec![None; usize::try_from(frames).expect("small")];
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ u64::from(self.layout.size) << 8);
        for (first, count) in &runs {
            for frame in *first..first + count {
                states[index(frame)] = Some(self.choose(&mut random));
            }
        }
        let mut build = Build {
            memory: vec![0; index(frames) * PAGE],
            guest: self.clone(),
            next_table: self.first_table(),
            root: 0,
        };
        // Infrastructure takes frames of its own, out of order so that nothing is in a row by luck.
        let tables = self.first_table()..self.first_table() + TABLE_FRAMES;
        let image_frames: Vec<u64> = (0..u64::from(IMAGE_SIZE) / 4096)
            .map(|page| 0x7f0 - 3 * page)
            .collect();
        let copy_frames: Vec<u64> = (0..u64::from(IMAGE_SIZE) / 4096)
            .map(|page| 0xa80 - 2 * page)
            .collect();
        let decoy = 0xb00..0xb00 + 2 * u64::from(IMAGE_SIZE) / 4096 + 2;
        // One more where a part of it begins anew, above 4 GiB.
        let parts = u64::from(self.above != Above::Nothing);
        let database_pages = (frames * u64::from(self.layout.size)).div_ceil(4096) + parts;
        let database_frames = 0xc00..0xc00 + database_pages;
        let idt_frame = 0x123;
        let used = tables
            .clone()
            .chain(image_frames.iter().copied())
            .chain(copy_frames.iter().copied())
            .chain(decoy.clone())
            .chain(database_frames.clone())
            .chain([idt_frame]);
        for frame in used {
            states[index(frame)] = Some(State::Active);
        }
        for (frame, state) in states.iter().enumerate() {
            match state {
                Some(State::Active | State::OffList) => {
                    random.fill(&mut build.memory[frame * PAGE..][..PAGE]);
                }
                Some(State::ZeroedButDirty) => {
                    let at = usize::try_from(random.next() % 4096).expect("small");
                    build.memory[frame * PAGE + at] = 1;
                }
                // Firmware's ranges are full of what is not memory of the guest's.
                None if (0x9f..0x100).contains(&(frame as u64)) => {
                    random.fill(&mut build.memory[frame * PAGE..][..PAGE]);
                }
                _ => {}
            }
        }
        for frame in tables {
            build.memory[index(frame) * PAGE..][..PAGE].fill(0);
        }
        build.root = build.table();
        build.map_itself();

        let truth: Vec<bool> = states.iter().map(|state| *state == Some(State::Zeroed)).collect();
        let free = truth.iter().filter(|free| **free).count() as u64;
        self.write_image(
            &mut build,
            &image_frames,
            &copy_frames,
            &runs,
            self.total.unwrap_or(free),
        );
        if self.decoys {
            let mut nameless = self.executable(Vec::new());
            nameless.record = Record::None;
            build.write(decoy.start, &nameless.mapped());
            build.write(
                decoy.start + u64::from(IMAGE_SIZE) / 4096,
                &self.executable(Vec::new()).file(),
            );
        }

        self.write_database(&mut build, &states, database_frames, &mut random);

        let idt = self.base() - 0x10_0000;
        build.map(idt, idt_frame);
        build.write(idt_frame, &self.idt());
        Made {
            registers: self.registers(build.root, idt),
            cr3: build.root,
            base: self.base(),
            memory: build.memory,
            free: truth,
            runs: runs
                .iter()
                .map(|(first, count)| (self.frame_at(*first), *count))
                .collect(),
            pdb: self.pdb(),
            states,
        }
    }

    fn choose(&self, random: &mut Random) -> State {
        match random.next() % 16 {
            0..6 => State::Zeroed,
            6 => State::ZeroedButDirty,
            7 => State::OffList,
            8 => State::Referenced,
            9 if self.layout.rom.is_some() => State::Rom,
            10 if self.layout.pfn_exists.is_some() => State::Absent,
            11 if self.layout.lock_bit.is_some() => State::Locked,
            12 => State::OtherList(u8::try_from(1 + random.next() % 7).expect("small")),
            _ => State::Active,
        }
    }

    /// The page-frame database, on `frames` in their order.
    fn write_database(
        &self,
        build: &mut Build,
        states: &[Option<State>],
        frames: std::ops::Range<u64>,
        random: &mut Random,
    ) {
        let size = u64::from(self.layout.size);
        let mut frames = frames;
        let mut pages = std::collections::BTreeMap::new();
        for (place, state) in (0..).zip(states) {
            let mut entry = vec![0; index(size)];
            // Entries of frames that are no memory were never filled in.
            if let Some(state) = state {
                random.fill(&mut entry);
                self.write_entry(&mut entry, *state);
            }
            for (at, byte) in (self.frame_at(place) * size..).zip(entry) {
                let page = pages.entry(at / PAGE as u64).or_insert_with(|| vec![0; PAGE]);
                page[index(at % PAGE as u64)] = byte;
            }
        }
        for (page, bytes) in pages {
            let frame = frames.next().expect("as many as it takes");
            build.map(self.database() + page * PAGE as u64, frame);
            build.write(frame, &bytes);
        }
    }

    fn write_entry(&self, entry: &mut [u8], state: State) {
        let count = Bits {
            offset: self.layout.reference_count,
            storage: 2,
            bit: 0,
            width: 16,
        };
        let (location, references) = match state {
            State::Referenced => (0, 1),
            State::OtherList(list) => (u64::from(list), 0),
            State::Active => (6, 1),
            _ => (0, 0),
        };
        set(entry, self.layout.page_location, location);
        set(entry, count, references);
        for (bits, value) in [
            (self.layout.rom, state == State::Rom),
            (self.layout.pfn_exists, state != State::Absent),
            (self.layout.lock_bit, state == State::Locked),
        ] {
            if let Some(bits) = bits {
                set(entry, bits, value.into());
            }
        }
    }

    fn write_image(
        &self,
        build: &mut Build,
        frames: &[u64],
        copy_frames: &[u64],
        runs: &[(u64, u64)],
        total: u64,
    ) {
        let at = |offset: u32| self.base() + u64::from(DATA + offset);
        let pages: u64 = runs.iter().map(|(_, count)| count).sum();
        // NumberOfRuns is padded to the size of a page number.
        let mut descriptor = self.pointer(runs.len() as u64);
        descriptor.extend(self.pointer(pages));
        for (first, count) in runs {
            descriptor.extend(self.pointer(self.frame_at(*first)));
            descriptor.extend(self.pointer(*count));
        }
        let sign = |value: u64| {
            if self.wide() {
                value
            } else {
                value | 0xffff_ffff_0000_0000
            }
        };
        let mut block = vec![0; 0x300];
        for (offset, value) in [
            (0x10, 0x300 << 32 | 0x4742_444b),
            (0x18, sign(self.base())),
            (0xc0, sign(at(PFN_DATABASE))),
            (0x180, sign(at(ZEROED_LIST))),
            (0x270, sign(at(MEMORY_BLOCK))),
        ] {
            block[offset..offset + 8].copy_from_slice(&u64::to_le_bytes(value));
        }
        let list = if self.partition {
            PARTITION_ZEROED
        } else {
            ZEROED_LIST
        };
        let image = self
            .executable(vec![
                (PFN_DATABASE, self.pointer(self.database())),
                (MEMORY_BLOCK, self.pointer(at(DESCRIPTOR))),
                (list, self.pointer(total)),
                (DESCRIPTOR, descriptor),
                (DEBUGGER_BLOCK, block),
            ])
            .mapped();
        let copy = self.executable(Vec::new()).mapped();
        for (page, frame) in frames.iter().enumerate() {
            build.write(*frame, &image[page * PAGE..][..PAGE]);
            // The third page holds the export directory.
            if self.exports_present || page != 3 {
                build.map(self.base() + (page * PAGE) as u64, *frame);
            }
        }
        if self.copy {
            for (page, frame) in copy_frames.iter().enumerate() {
                build.write(*frame, &copy[page * PAGE..][..PAGE]);
                // Below the real one, but too far for its addresses to lie in it.
                build.map(self.base() - 0x80_0000 + (page * PAGE) as u64, *frame);
            }
        }
    }

    fn idt(&self) -> Vec<u8> {
        let handler = self.base() + HANDLER;
        let mut table = Vec::new();
        for _ in 0..32 {
            let low = handler & 0xffff | (handler >> 16 & 0xffff) << 48 | 0x8e00 << 32 | 0x10 << 16;
            table.extend_from_slice(&low.to_le_bytes());
            if self.wide() {
                table.extend_from_slice(&(handler >> 32).to_le_bytes());
            }
        }
        table
    }

    fn registers(&self, cr3: u64, idt: u64) -> String {
        let limit = if self.wide() { 0xfff } else { 0x7ff };
        let (cr4, efer, lstar) = match self.paging {
            Paging::Two => (0x90, 0, 0),
            Paging::Pae => (0xb0, 0, 0),
            Paging::Four => (0x6b0, 0xd01, self.base() + ENTRY),
            Paging::Five => (0x16b0, 0xd01, self.base() + ENTRY),
        };
        format!(
            r#"[{{"cr0": "0x80050033", "cr3": "{cr3:#x}", "cr4": "{cr4:#x}", "efer": "{efer:#x}", "idt_base": "{idt:#x}", "idt_limit": "{limit:#x}", "lstar": "{lstar:#x}"}}]"#
        )
    }
}

/// Sets some bits of an entry.
fn set(entry: &mut [u8], bits: Bits, value: u64) {
    let at = bits.offset as usize..(bits.offset + bits.storage) as usize;
    let mut word = [0; 8];
    word[..at.len()].copy_from_slice(&entry[at.clone()]);
    let mask = (u64::MAX >> (64 - bits.width)) << bits.bit;
    let word = u64::from_le_bytes(word) & !mask | value << bits.bit & mask;
    entry[at.clone()].copy_from_slice(&word.to_le_bytes()[..at.len()]);
}

pub(crate) fn index(number: u64) -> usize {
    usize::try_from(number).expect("a fixture is small")
}

/// Numbers that are the same in each run (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.next().to_le_bytes()[2];
        }
    }
}
