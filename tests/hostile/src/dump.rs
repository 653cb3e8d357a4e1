//! Dumps of guest memory, and the registers that go with them.

use std::io::Write;

use lacuna::source::GuestSource;
use lacuna::source::dump::{Dump, Format, MAX_CPUS, parse_registers};
use lacuna_core::{Gfn, GuestMemory, PAGE_SIZE};

// Not all of what other tests need is needed here.
#[allow(dead_code)]
#[path = "../../../dom0-tool/tests/made/cores.rs"]
mod cores;
#[path = "../../../dom0-tool/tests/made/packed.rs"]
#[allow(dead_code)]
mod packed;

/// Frames looked at in one dump.
const FRAMES: usize = 1000;

/// Any bytes as a dump, of whichever format they begin like: what it says it holds can be walked, and lies
/// where it says.
pub(crate) fn dump(bytes: &[u8]) -> bool {
    let Ok(mut file) = tempfile::NamedTempFile::new() else {
        return false;
    };
    if file.write_all(bytes).is_err() {
        return false;
    }
    let Ok(mut dump) = Dump::open(file.path()) else {
        return false;
    };
    assert!(dump.cpus.len() <= MAX_CPUS);
    // What is packed has a bit for each page at least. Anything else lies where it is said to; more than one
    // segment of an ELF core may have the same bytes.
    let length = bytes.len() as u64;
    let held: u64 = dump.extents().iter().map(|extent| extent.bytes).sum();
    let is_there = match dump.format() {
        Format::Kdump => held <= length * 8 * PAGE_SIZE as u64,
        Format::Avml => held <= length * 65_536,
        _ => dump
            .extents()
            .iter()
            .all(|extent| extent.offset.saturating_add(extent.bytes) <= length),
    };
    assert!(
        is_there || bytes.starts_with(b"makedumpfile"),
        "memory that the file does not have"
    );
    for pair in dump.extents().windows(2) {
        assert!(pair[0].start + pair[0].bytes <= pair[1].start, "extents overlap");
    }
    let mut at = Gfn::new(0);
    for _ in 0..FRAMES {
        let Some(gfn) = dump.next_present(at) else { break };
        assert!(gfn >= at && gfn < dump.end(), "{gfn:?} from {at:?}");
        if let Some(base) = gfn.base() {
            let mut page = [0; PAGE_SIZE];
            // The last frame may be there in part.
            let _ = dump.read(base, &mut page);
        }
        at = gfn.saturating_add(1);
    }
    let _ = dump.check_whole(Some(dump.end().get()));
    true
}

/// Cores of each kind, and raw memory.
pub(crate) fn dump_seeds() -> Vec<Vec<u8>> {
    let notes = [
        cores::qemu_note(0x1000),
        cores::note(b"CORE", 1, &[0; 336]),
        cores::note(b"VMCOREINFO", 0, b"OSRELEASE=1\n"),
    ]
    .concat();
    let pages: Vec<(u64, Vec<u8>)> = [1, 2, 9].map(|page| (page, vec![7; PAGE_SIZE])).to_vec();
    let kdump = |codec| {
        packed::Kdump {
            notes: &notes,
            ..packed::Kdump::new(codec, &pages)
        }
        .to_bytes()
    };
    let ranges = [(0x1000, vec![7; 2 * PAGE_SIZE]), (0x9000, vec![8; PAGE_SIZE])];
    let mut seeds: Vec<Vec<u8>> = packed::Codec::ALL.map(kdump).to_vec();
    seeds.extend([
        packed::flattened(&kdump(packed::Codec::Zlib), 3000),
        packed::lime(&ranges),
        packed::avml(&ranges),
        cores::elf(true, &[1, 2, 9], &notes, false),
        cores::elf(true, &[1, 2, 9], &notes, true),
        cores::elf(false, &[1, 2, 9], &notes, false),
        cores::elf(false, &[1, 2, 9], &notes, true),
        cores::xen(&[1, 2, 9]),
        vec![7; 2 * PAGE_SIZE],
    ]);
    seeds
}

/// Any text as registers, of JSON or of QEMU's monitor.
pub(crate) fn registers(bytes: &[u8]) -> bool {
    match parse_registers(&String::from_utf8_lossy(bytes)) {
        Ok(cpus) => {
            assert!(!cpus.is_empty() && cpus.len() <= MAX_CPUS);
            true
        }
        Err(why) => {
            assert!(!why.is_empty());
            false
        }
    }
}

/// Both forms.
pub(crate) fn registers_seeds() -> Vec<Vec<u8>> {
    let monitor = "CPU#0\r\nRAX=0 RBX=0\r\nRIP=ffffffff81000010 RFL=00000246 [---Z-P-] CPL=0 HLT=1\r\n\
        GS =0000 ffff88803ec00000 00000000 00000000\r\nIDT=     fffffe0000000000 00000fff\r\n\
        CR0=80050033 CR2=0 CR3=0000000001234000 CR4=000006f0\r\nEFER=0000000000000d01\r\n\
        CPU#1\r\nIDT=     c0a00000 000007ff\r\nCR0=80050033 CR2=0 CR3=02000000 CR4=00000690\r\n";
    let json =
        r#"[{"cr0": "0x80050033", "cr3": "0x1000", "cr4": "0x6f0", "efer": "0xd01", "idt_limit": "0xfff"}]"#;
    vec![monitor.as_bytes().to_vec(), json.as_bytes().to_vec()]
}
