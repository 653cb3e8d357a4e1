//! What is read of a Linux kernel: its note, its types, its symbols, the stub's greeting, and the whole of a
//! guest.

use std::fmt::Write as _;
use std::fs;

use lacuna::os::linux::btf::Btf;
use lacuna::os::linux::identify::identify_live;
use lacuna::os::linux::profile::{Sources, build};
use lacuna::os::linux::stub::run::Greeting;
use lacuna::os::linux::system_map;
use lacuna::os::linux::vmcoreinfo::VmcoreInfo;
use lacuna::source::Cpu;
use lacuna_core::{Bitmap, FreeCheck, Gfn, Scanner};
use std::sync::atomic::AtomicU64;

use fake_kernel::{FRAMES, FakeKernel, IMAGE_AT, NOTE, PROCESS_TOP, VMEMMAP_AT};

#[path = "../../../dom0-tool/tests/made/btf.rs"]
mod made_btf;

// Not all of what its own tests need is needed here, and a guest that cannot be made is no input.
#[allow(dead_code, clippy::unwrap_used)]
#[path = "../../../dom0-tool/tests/fake_kernel/mod.rs"]
mod fake_kernel;

/// Any bytes as the text of a VMCOREINFO note: what is accepted can be asked for.
pub(crate) fn vmcoreinfo(bytes: &[u8]) -> bool {
    let Ok(info) = VmcoreInfo::parse_text(bytes) else {
        return false;
    };
    for (name, at) in info.symbols() {
        assert_eq!(info.find_symbol(name), Some(at));
        assert_eq!(info.symbol(name), Ok(at));
    }
    info.release().is_ok()
}

/// The made kernel's note, and the beginning of a 32-bit one's.
pub(crate) fn vmcoreinfo_seeds() -> Vec<Vec<u8>> {
    let narrow = "OSRELEASE=6.1.0-686\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=cf5a4000\nSIZE(page)=40\n\
        SYMBOL(mem_map)=cf7b1c24\nOFFSET(page.flags)=0\nNUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129\nKERNELOFFSET=6000000\n\
        CONFIG_X86_PAE=y\n";
    vec![FakeKernel::note_text().into_bytes(), narrow.as_bytes().to_vec()]
}

/// Any bytes as BTF, asked as the tool asks it.
pub(crate) fn btf(bytes: &[u8]) -> bool {
    let structures = ["page", "zone", "pglist_data"];
    let Ok(btf) = Btf::parse(bytes, &structures, &["PGTY_buddy"]) else {
        return false;
    };
    for structure in structures {
        for member in ["flags", "_mapcount", "private", "array"] {
            let _ = (btf.offset(structure, member), btf.elements(structure, member));
        }
        let _ = btf.size(structure);
    }
    let _ = btf.enumerator("PGTY_buddy");
    true
}

/// A blob with each kind of type that matters.
pub(crate) fn btf_seeds() -> Vec<Vec<u8>> {
    vec![made_btf::sample()]
}

/// Any bytes as the beginning of a System.map, which goes on with as many symbols as one has at least: what
/// is believed fits the running kernel.
pub(crate) fn system_map(bytes: &[u8]) -> bool {
    let note = b"SYMBOL(_stext)=ffffffff91000000\nSYMBOL(init_uts_ns)=ffffffff92000000\n";
    let (Ok(info), Ok(file)) = (VmcoreInfo::parse_text(note), tempfile::NamedTempFile::new()) else {
        return false;
    };
    let mut whole = bytes.to_vec();
    let mut rest = String::from("\n");
    for number in 0..1100_u64 {
        // Writing to a String cannot fail.
        let _ = writeln!(rest, "{:016x} t filler_{number}", 0xffff_ffff_8200_0000 + number);
    }
    whole.extend_from_slice(rest.as_bytes());
    if fs::write(file.path(), whole).is_err() {
        return false;
    }
    let Ok(symbols) = system_map::read(file.path(), &info, &["filler_7", "init_task"]) else {
        return false;
    };
    assert_eq!(symbols.find("_stext"), info.find_symbol("_stext"));
    let witness = symbols.find("init_uts_ns");
    assert!(witness.is_none() || witness == info.find_symbol("init_uts_ns"));
    true
}

/// With and without a second symbol to hold against the note.
pub(crate) fn system_map_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "ffffffff81000000 T _stext\nffffffff82000000 D init_uts_ns\nffffffff82100000 D init_task\n",
        "0000000000000000 A fixed_percpu_data\nffffffff81000000 T _stext\n",
        "ffffffff81000000 T _stext\nffffffff82100000 d init_task\nffffffff82200000 d init_task\n",
    ];
    texts.map(|text| text.as_bytes().to_vec()).into()
}

/// Any bytes as what a stub says first; a stub holds foreign code.
pub(crate) fn stub(mut bytes: &[u8]) -> bool {
    let Ok(greeting) = Greeting::read(&mut bytes) else {
        return false;
    };
    assert!((8..=512).contains(&greeting.descriptor_bytes) && greeting.facts.len() <= 256);
    for fact in &greeting.facts {
        assert!(greeting.fact(&fact.name).is_some());
    }
    true
}

/// A greeting with two facts (`struct lacuna_greeting` in `stub.c`).
pub(crate) fn stub_seeds() -> Vec<Vec<u8>> {
    let mut bytes = b"LACSTUB1".to_vec();
    for number in [64_u64, 2, 64] {
        bytes.extend(number.to_le_bytes());
    }
    let mut text = |text: &str, room: usize| {
        let end = bytes.len() + room;
        bytes.extend(text.as_bytes());
        bytes.resize(end, 0);
    };
    text("6.12.0-fake", 128);
    text("14.2.0", 64);
    for (name, value) in [("sizeof(struct page)", 64), ("orders", 11)] {
        text(name, 56);
        text(std::str::from_utf8(&[value]).unwrap_or_default(), 8);
    }
    vec![bytes]
}

/// Places of the made guest that the tool reads, and how many bytes of each.
const PLACES: [(u64, u64); 7] = [
    (IMAGE_AT, 0xc000),
    (NOTE, 0x800),
    // Sections and the node.
    (0x60_0000, 0x2000),
    (0x61_0000, 0x2000),
    // Page tables.
    (0x10_0000, 0x8000),
    (PROCESS_TOP, 0x1000),
    (VMEMMAP_AT, FRAMES * 64),
];

/// A guest whose memory is changed in places that matter, four bytes for each change: which place, where in
/// it, and what is put there. From identification to the scan.
pub(crate) fn guest(bytes: &[u8]) -> bool {
    let mut guest = FakeKernel::new();
    for change in bytes.chunks_exact(4).take(64) {
        let (start, length) = PLACES[usize::from(change[0]) % PLACES.len()];
        let offset = u64::from(u16::from_le_bytes([change[1], change[2]])) * 7 % length;
        guest.write(start + offset, &[change[3]]);
    }
    let vcpus = FakeKernel::vcpus();
    let Ok(kernel) = identify_live(&mut guest, &vcpus, &mut |_, _| {}) else {
        return false;
    };
    let layout = FakeKernel::layout();
    let sources = Sources {
        layout: Some(&layout),
        vmcoreinfo: true,
        btf: false,
        system_map: None,
        config: None,
    };
    let cpus: Vec<Cpu> = vcpus.iter().map(Cpu::from_registers).collect();
    let Ok(built) = build(&mut guest, &kernel, &sources, &cpus) else {
        return false;
    };
    let words: Vec<AtomicU64> = (0..FRAMES / 64).map(|_| AtomicU64::new(0)).collect();
    let mut scanner = Scanner::new(FreeCheck::new(&built.profile));
    let end = Gfn::new(FRAMES);
    let step = scanner.step(&mut guest, &Bitmap::new(&words), Gfn::new(0), end, u64::MAX);
    assert_eq!(
        step.free + step.in_use + step.no_descriptor + step.unknown,
        FRAMES,
        "every frame has one verdict"
    );
    true
}

/// A healthy guest, and one with a bit of a descriptor changed.
pub(crate) fn guest_seeds() -> Vec<Vec<u8>> {
    vec![
        Vec::new(),
        vec![6, 40, 0, 1, 6, 0, 1, 0],
        vec![0, 0, 0, 0, 1, 0, 0, 11],
    ]
}
