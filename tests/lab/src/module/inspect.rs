//! What may not be in the object that Xen links, looked for in the object itself.
//!
//! The compiler flags ask for all of this; here it is seen to be so. An offender for each rule is in the
//! tests.

use std::collections::BTreeSet;

use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use object::{Object, ObjectSection, ObjectSymbol, SectionFlags, SectionKind};

use crate::module::stack;

/// Sections that Xen's link script places and that the module may fill (`xen/arch/x86/xen.lds.S`). No `.data`
/// and no `.bss`: the module has no state of its own.
const SECTIONS: &[&str] = &[".text", ".rodata", ".data.rel.ro"];
/// What the object may ask of Xen, besides the shim's functions: the hardened return (`CONFIG_RETURN_THUNK`).
const RETURN_THUNK: &str = "__x86_return_thunk";
const SHIM_PREFIX: &str = "lacuna_x_";
/// Parts of the names of functions that only a panic calls (Rust's `core::panicking`, `core::slice::index`,
/// `core::result`).
const PANICS: &[&str] = &["panic", "_fail", "unwrap_failed", "begin_unwind"];
/// Bytes of stack that the module may use below `lacuna_core_*`. Xen's primary stack has 8 KiB
/// (`xen/arch/x86/include/asm/current.h`), of which the hypercall's path above us takes less than 2.
const STACK_LIMIT: u64 = 3072;

/// Everything that is wrong with the object `bytes`, in words; empty for a good one.
pub(super) fn offences(bytes: &[u8], exported: &[String]) -> Result<Vec<String>, String> {
    let file = object::File::parse(bytes).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    sections(&file, &mut found);
    symbols(&file, exported, &mut found);
    for section in file
        .sections()
        .filter(|section| section.kind() == SectionKind::Text)
    {
        let code = section.data().map_err(|error| error.to_string())?;
        let name = section.name().unwrap_or("?");
        for instruction in &mut Decoder::with_ip(64, code, section.address(), DecoderOptions::NONE) {
            if let Some(offence) = offence(&instruction) {
                found.push(format!(
                    "{name}+{:#x}: {offence}: {instruction}",
                    instruction.ip() - section.address()
                ));
            }
        }
    }
    match stack::deepest(&file) {
        Ok((depth, path)) if depth > STACK_LIMIT => {
            found.push(format!(
                "stack: {depth} bytes, {STACK_LIMIT} allowed, by way of {}",
                path.join(" > ")
            ));
        }
        Ok(_) => {}
        Err(reason) => found.push(format!("stack: {reason}")),
    }
    Ok(found)
}

/// The names of the shim's functions that the object `bytes` calls.
pub(super) fn wanted(bytes: &[u8]) -> Result<Vec<String>, String> {
    let file = object::File::parse(bytes).map_err(|error| error.to_string())?;
    let names = file.symbols().filter(object::ObjectSymbol::is_undefined);
    Ok(names
        .filter_map(|symbol| symbol.name().ok())
        .filter(|name| name.starts_with(SHIM_PREFIX))
        .map(Into::into)
        .collect())
}

fn sections(file: &object::File<'_>, found: &mut Vec<String>) {
    for section in file.sections() {
        let SectionFlags::Elf { sh_flags } = section.flags() else {
            continue;
        };
        let name = section.name().unwrap_or("?");
        let allocated = sh_flags & u64::from(object::elf::SHF_ALLOC) != 0;
        if allocated && section.size() != 0 && !SECTIONS.contains(&name) {
            found.push(format!(
                "section {name} has {} bytes; only {} may be filled",
                section.size(),
                SECTIONS.join(", ")
            ));
        }
        for (offset, relocation) in section.relocations() {
            if let object::RelocationFlags::Elf { r_type } = relocation.flags()
                && is_table_relocation(r_type)
            {
                found.push(format!(
                    "{name}+{offset:#x}: relocation type {r_type} needs a global offset table"
                ));
            }
        }
    }
}

const fn is_table_relocation(r_type: u32) -> bool {
    use object::elf;
    matches!(
        r_type,
        elf::R_X86_64_GOT32
            | elf::R_X86_64_GOTPCREL
            | elf::R_X86_64_GOTPCRELX
            | elf::R_X86_64_REX_GOTPCRELX
            | elf::R_X86_64_GOTTPOFF
            | elf::R_X86_64_TLSGD
            | elf::R_X86_64_TLSLD
    )
}

fn symbols(file: &object::File<'_>, exported: &[String], found: &mut Vec<String>) {
    let mut missing: BTreeSet<&str> = exported.iter().map(String::as_str).collect();
    for symbol in file.symbols() {
        let Ok(name) = symbol.name() else { continue };
        if name.is_empty() {
            continue;
        }
        if symbol.is_undefined() {
            if !name.starts_with(SHIM_PREFIX) && name != RETURN_THUNK {
                found.push(format!(
                    "symbol {name} is wanted from Xen; only {SHIM_PREFIX}* and {RETURN_THUNK} may be"
                ));
            }
        } else if symbol.is_global() && !missing.remove(name) {
            found.push(format!(
                "symbol {name} is exported but not in linker/exported-symbols"
            ));
        }
        if PANICS.iter().any(|part| name.contains(part)) {
            found.push(format!("symbol {name}: a panic is reachable"));
        }
    }
    for name in missing {
        found.push(format!(
            "symbol {name} is in linker/exported-symbols but not exported"
        ));
    }
}

/// Why an instruction may not be in the object, if it may not.
fn offence(instruction: &Instruction) -> Option<&'static str> {
    if instruction.is_invalid() {
        return Some("not an instruction");
    }
    match instruction.flow_control() {
        FlowControl::IndirectBranch | FlowControl::IndirectCall => return Some("an indirect branch"),
        FlowControl::Return => return Some("a return that bypasses Xen's thunk"),
        FlowControl::Exception if instruction.mnemonic() != Mnemonic::Int3 => return Some("an abort"),
        FlowControl::Interrupt if instruction.code() != Code::Int3 => return Some("an interrupt"),
        _ => {}
    }
    // `rep bsf`: the same bytes, and the same answer for what is not zero, on a processor without BMI1. The
    // compiler uses it only there.
    if instruction.mnemonic() == Mnemonic::Tzcnt {
        return None;
    }
    let plain = instruction.cpuid_features().iter().all(|feature| {
        matches!(
            feature,
            CpuidFeature::INTEL8086
                | CpuidFeature::INTEL186
                | CpuidFeature::INTEL286
                | CpuidFeature::INTEL386
                | CpuidFeature::INTEL486
                | CpuidFeature::X64
                | CpuidFeature::CMOV
                | CpuidFeature::CX8
                | CpuidFeature::MULTIBYTENOP
                | CpuidFeature::PAUSE
                | CpuidFeature::CET_IBT
        )
    });
    (!plain).then_some("not a plain integer instruction")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::process::Command;

    use super::offences;

    /// Compiles `source` as C the way a careless build would, and returns what is wrong with it.
    fn inspect(name: &str, source: &str, flags: &[&str]) -> Vec<String> {
        let directory = std::env::temp_dir().join(format!("lacuna-inspect-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (from, to) = (directory.join("offender.c"), directory.join("offender.o"));
        fs::write(&from, source).unwrap();
        let status = Command::new("cc")
            .args([
                "-c",
                "-O2",
                "-ffreestanding",
                "-fno-asynchronous-unwind-tables",
                "-fno-pic",
                "-mno-red-zone",
            ])
            .args(["-mfunction-return=thunk-extern", "-fno-stack-protector"])
            .args(flags)
            .arg("-o")
            .args([&to, &from])
            .status()
            .unwrap();
        assert!(status.success());
        let bytes = fs::read(&to).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        offences(&bytes, &["entry".to_owned()]).unwrap()
    }

    fn assert_offence(name: &str, source: &str, flags: &[&str], expected: &str) {
        let found = inspect(name, source, flags);
        assert!(
            found.iter().any(|offence| offence.contains(expected)),
            "{name}: expected {expected}, found {found:?}"
        );
    }

    #[test]
    fn a_clean_object_passes() {
        let source = "int lacuna_x_now(void); int entry(int a) { return a ? lacuna_x_now() + a : 3; }";
        assert_eq!(
            inspect("clean", source, &["-mgeneral-regs-only"]),
            Vec::<String>::new()
        );
    }

    #[test]
    fn sse_is_refused() {
        assert_offence(
            "sse",
            "double entry(double a) { return a * 2; }",
            &[],
            "not a plain integer instruction",
        );
    }

    #[test]
    fn indirect_calls_are_refused() {
        assert_offence(
            "call",
            "int entry(int (*f)(void)) { return f() + 1; }",
            &[],
            "an indirect branch",
        );
    }

    #[test]
    fn a_plain_return_is_refused() {
        assert_offence(
            "ret",
            "int entry(void) { return 1; }",
            &["-mfunction-return=keep"],
            "bypasses Xen's thunk",
        );
    }

    #[test]
    fn a_reachable_panic_is_refused() {
        let source = "__attribute__((noinline,noreturn)) static void panic_fmt(void) { for (;;) ; } \
                      int entry(int a) { if (a) panic_fmt(); return 0; }";
        assert_offence("panic", source, &[], "a panic is reachable");
    }

    #[test]
    fn an_abort_is_refused() {
        assert_offence(
            "abort",
            "int entry(int a) { if (a) __builtin_trap(); return 0; }",
            &[],
            "an abort",
        );
    }

    #[test]
    fn state_of_its_own_is_refused() {
        assert_offence(
            "state",
            "int counter; int entry(void) { return ++counter; }",
            &[],
            "section .bss",
        );
    }

    #[test]
    fn a_foreign_symbol_is_refused() {
        assert_offence(
            "foreign",
            "void *xmalloc(int); void *entry(void) { return xmalloc(1); }",
            &[],
            "is wanted from Xen",
        );
    }

    #[test]
    fn a_missing_entry_is_refused() {
        assert_offence(
            "missing",
            "int other(void) { return 1; }",
            &[],
            "but not exported",
        );
    }

    #[test]
    fn a_large_frame_is_refused() {
        let source = "void lacuna_x_take(char *); int entry(void) { char room[4000]; lacuna_x_take(room); return room[7]; }";
        assert_offence("frame", source, &["-mgeneral-regs-only"], "stack: ");
    }

    #[test]
    fn recursion_is_refused() {
        let source = "int lacuna_x_now(void); int entry(int a) { return a ? entry(lacuna_x_now()) + entry(a - 1) : 0; }";
        assert_offence(
            "recursion",
            source,
            &["-mgeneral-regs-only", "-fno-optimize-sibling-calls"],
            "recursion",
        );
    }
}
