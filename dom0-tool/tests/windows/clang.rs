//! PDBs and executables of another tool chain: clang and lld-link, over the same layouts.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use lacuna::os::windows::pdb;
use lacuna::os::windows::pdb::types::find;
use lacuna_windows_fixtures::layouts::{Bits, Layout, layouts};

use crate::command::inspect_file;

/// C with the types of `layout`, and the variable.
fn source(layout: &Layout) -> String {
    let word = if layout.x64 {
        "unsigned long long"
    } else {
        "unsigned long"
    };
    let word_bytes = if layout.x64 { 8 } else { 4 };
    let [u1, u2, u3, u4, pte_address, original_pte] = layout.offsets;
    let location = layout.page_location;
    let kind = |bytes: u32| match bytes {
        1 => "unsigned char",
        2 => "unsigned short",
        4 => "unsigned long",
        _ => "unsigned long long",
    };
    let mut entry = run(kind(location.storage), "PageLocation", location, &mut 0);
    match layout.rom {
        Some(rom) if rom.offset == location.offset => {
            let mut next = u32::from(location.bit + location.width);
            entry += &run(kind(rom.storage), "Rom", rom, &mut next);
        }
        Some(rom) => {
            assert_eq!(rom.offset, location.offset + location.storage);
            // Else the compiler would go on in the same byte.
            let rest = location.storage * 8 - u32::from(location.bit + location.width);
            let _ = write!(entry, "{} rest : {rest}; ", kind(location.storage));
            entry += &run(kind(rom.storage), "Rom", rom, &mut 0);
        }
        None => {}
    }
    let mut text = String::from("#pragma pack(push,1)\n");
    text += "typedef enum _MMLISTS { ZeroedPageList, FreePageList, StandbyPageList, ModifiedPageList,\n";
    text += "  ModifiedNoWritePageList, BadPageList, ActiveAndValid, TransitionPage } MMLISTS;\n";
    let _ = writeln!(text, "typedef struct {} {{ {entry} }} ENTRY;", layout.entry);
    let before = |bytes: u32| match bytes {
        0 => String::new(),
        bytes => format!("unsigned char pad[{bytes}]; "),
    };
    let third = format!(
        "union {{ struct {{ {}ENTRY e1; }}; struct {{ {}unsigned short ReferenceCount; }} e2; unsigned long Whole; }} u3;",
        before(location.offset - u3),
        before(layout.reference_count - u3),
    );
    let mut second = format!("union {{ {word} Blink; ");
    if let Some(lock) = layout.lock_bit {
        let _ = write!(second, "struct {{ {} }}; ", run(word, "LockBit", lock, &mut 0));
    }
    second += "} u2;";
    let mut fourth = run(word, "PteFrame", layout.pte_frame, &mut 0);
    if let Some(exists) = layout.pfn_exists {
        let mut next = u32::from(layout.pte_frame.width);
        fourth += &run(word, "PfnExists", exists, &mut next);
    }
    let fourth = format!("union {{ struct {{ {fourth} }}; {word} EntireField; }} u4;");
    let pte = if layout.pae { 8 } else { 4 };
    let mut members = vec![
        (u1, word_bytes, format!("{word} u1;")),
        (u2, word_bytes, second),
        (u3, 4, third),
        (u4, word_bytes, fourth),
        (pte_address, word_bytes, "void *PteAddress;".into()),
        (original_pte, pte, format!("{} OriginalPte;", kind(pte))),
    ];
    members.sort_by_key(|(offset, ..)| *offset);
    text += "typedef struct _MMPFN {\n";
    let mut at = 0;
    for (offset, size, member) in members {
        if offset > at {
            let _ = writeln!(text, "  unsigned char gap{at}[{}];", offset - at);
        }
        let _ = writeln!(text, "  {member}");
        at = offset + size;
    }
    if layout.size > at {
        let _ = writeln!(text, "  unsigned char gap{at}[{}];", layout.size - at);
    }
    text += "} MMPFN;\n#pragma pack(pop)\n";
    text += "MMPFN *MmPfnDatabase = (MMPFN *)16;\nMMLISTS List = BadPageList;\n";
    text += "int KiSystemStartup(void *p) {\n";
    text += "  return MmPfnDatabase->u3.e1.PageLocation + (int)List + (p != 0);\n}\n";
    text
}

/// A bit field behind as much padding as it needs; `next` is the first bit that is not taken.
fn run(kind: &str, name: &str, bits: Bits, next: &mut u32) -> String {
    let mut text = String::new();
    let bit = u32::from(bits.bit);
    if bit > *next {
        let _ = write!(text, "{kind} before{name} : {}; ", bit - *next);
    }
    let _ = write!(text, "{kind} {name} : {}; ", bits.width);
    *next = bit + u32::from(bits.width);
    text
}

fn program(name: &str, arguments: &[&str], folder: &Path) {
    let output = Command::new(name)
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap_or_else(|error| panic!("{name}: {error}; install the packages clang and lld"));
    assert!(
        output.status.success(),
        "{name}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "needs clang and lld-link: `cargo lab test windows` installs them"]
fn every_layout_is_read_as_it_is_from_clangs_files() {
    for layout in layouts() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("nt.c"), source(&layout)).unwrap();
        let (target, machine) = if layout.x64 {
            ("--target=x86_64-pc-windows-msvc", "/machine:x64")
        } else {
            ("--target=i686-pc-windows-msvc", "/machine:x86")
        };
        let compile = [
            target,
            "-O1",
            "-g",
            "-gcodeview",
            "-ffreestanding",
            "-fms-extensions",
            "-w",
            "-c",
            "nt.c",
        ];
        program(
            "clang",
            &[&compile[..], &["-o", "nt.obj"]].concat(),
            folder.path(),
        );
        let mut link = vec![
            "/nologo",
            "/nodefaultlib",
            machine,
            "/entry:KiSystemStartup",
            "/subsystem:native",
        ];
        link.extend([
            "/driver",
            "/debug",
            "/pdb:ntkrnlmp.pdb",
            "/pdbaltpath:ntkrnlmp.pdb",
            "/out:ntoskrnl.exe",
        ]);
        if !layout.x64 {
            link.push("/safeseh:no");
        }
        link.push("nt.obj");
        program("lld-link", &link, folder.path());

        let kernel = &layout.profile;
        let file = std::fs::File::open(folder.path().join("ntkrnlmp.pdb")).unwrap();
        let facts = pdb::read(file).unwrap();
        assert_eq!(facts.mmpfn_size, Some(layout.size.into()), "{kernel}");
        for (name, expected) in [
            ("PageLocation", Some(layout.page_location)),
            ("Rom", layout.rom),
            ("PfnExists", layout.pfn_exists),
            ("LockBit", layout.lock_bit),
        ] {
            let found = find(&facts.fields, name).unwrap();
            let found = found.map(|field| (field.first_bit(), field.storage_bytes, field.width));
            let expected = expected.map(|bits| {
                let first = u64::from(bits.offset * 8 + u32::from(bits.bit));
                (first, u64::from(bits.storage), u64::from(bits.width))
            });
            assert_eq!(found, expected, "{name} of {kernel}");
        }
        let references = find(&facts.fields, "ReferenceCount").unwrap().unwrap();
        assert_eq!(references.offset, u64::from(layout.reference_count), "{kernel}");
        assert!(facts.rva.contains_key("MmPfnDatabase"), "{kernel}");
        assert_eq!(facts.lists["ZeroedPageList"], 0, "{kernel}");
        // The executable and the PDB name the same key.
        let (_, of_pe) = inspect_file(&folder.path().join("ntoskrnl.exe"));
        let (_, of_pdb) = inspect_file(&folder.path().join("ntkrnlmp.pdb"));
        assert_eq!(of_pe["symbol_path"], of_pdb["symbol_path"], "{kernel}");
    }
}
