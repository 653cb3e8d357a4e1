//! Virtual CPUs that were stopped in a program of Windows, on page tables that have next to nothing of the
//! kernel.
//!
//! Kernels with KVA shadow (against Meltdown) give programs tables of their own: they map where the processor
//! enters the kernel, and not the image around it. [`super::locate`] then finds nothing, and another moment
//! has to be waited for. That it is worth waiting tells a page that Windows maps into each program; a program
//! under Wine has one like it, so this is a hint and no more: nothing is believed because of it.

use lacuna_core::{GuestMemory, GuestPhys, GuestVirt};

use super::locate::{possible_levels, table_of};
use crate::os::view::AddressSpace;
use crate::source::Cpu;

/// `KUSER_SHARED_DATA` (`ntddk.h`) as every program sees it, since Windows NT.
const SHARED_DATA: u64 = 0x7ffe_0000;
/// `NtSystemRoot`: a path in UTF-16, such as `C:\WINDOWS`.
const SYSTEM_ROOT: u64 = 0x30;
/// `NtMajorVersion`.
const MAJOR_VERSION: u64 = 0x26c;
/// Windows XP to 8.1, and all since.
const MAJOR_VERSIONS: [u64; 3] = [5, 6, 10];

/// Whether a virtual CPU seems to be in a program of Windows.
pub fn seems_so<M: GuestMemory>(memory: &mut M, cpus: &[Cpu]) -> bool {
    cpus.iter().filter(|cpu| cpu.is_paging()).any(|cpu| {
        let Some(cr3) = cpu.cr3 else { return false };
        possible_levels(cpu).into_iter().any(|levels| {
            let space = AddressSpace {
                root: GuestPhys::new(table_of(cr3, levels)),
                levels,
            };
            is_shared_data(memory, space)
        })
    })
}

fn is_shared_data<M: GuestMemory>(memory: &mut M, space: AddressSpace) -> bool {
    let mut root = [0; 6];
    if !space.read(memory, GuestVirt::new(SHARED_DATA + SYSTEM_ROOT), &mut root) {
        return false;
    }
    let [drive, 0, b':', 0, b'\\', 0] = root else {
        return false;
    };
    let version = space.number(memory, GuestVirt::new(SHARED_DATA), MAJOR_VERSION, 4);
    drive.is_ascii_alphabetic() && version.is_some_and(|version| MAJOR_VERSIONS.contains(&version))
}

#[cfg(test)]
mod tests {
    use lacuna_core::ReadError;

    use super::*;

    /// Frame N lies N times 4 KiB into it.
    struct Flat(Vec<u8>);

    impl GuestMemory for Flat {
        fn read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
            let start = usize::try_from(at.get()).expect("a small address");
            let bytes = self.0.get(start..start + into.len());
            into.copy_from_slice(bytes.ok_or(ReadError::Absent(at.gfn()))?);
            Ok(())
        }
    }

    /// Tables of four levels in frames 1 to 4, which map the shared data's page to frame 5.
    fn guest(root: &str, version: u32) -> Flat {
        let mut memory = vec![0; 6 * 4096];
        for (table, shift) in [(1, 39), (2, 30), (3, 21), (4, 12_u64)] {
            let index = usize::try_from(SHARED_DATA >> shift & 511).expect("nine bits");
            let entry: u64 = (table + 1) << 12 | 7;
            let at = usize::try_from(table << 12).expect("small") + 8 * index;
            memory[at..at + 8].copy_from_slice(&entry.to_le_bytes());
        }
        for (index, unit) in root.encode_utf16().enumerate() {
            let at = 5 * 4096 + 0x30 + 2 * index;
            memory[at..at + 2].copy_from_slice(&unit.to_le_bytes());
        }
        memory[5 * 4096 + 0x26c..][..4].copy_from_slice(&version.to_le_bytes());
        Flat(memory)
    }

    fn cpu() -> Cpu {
        Cpu {
            cr0: Some(0x8000_0001),
            cr3: Some(0x1000),
            cr4: Some(1 << 5),
            efer: Some(1 << 10),
            ..Cpu::default()
        }
    }

    #[test]
    fn a_program_of_windows_is_known_by_the_page_that_each_has() {
        for (root, version, seems) in [
            ("C:\\WINDOWS", 10, true),
            ("d:\\w", 6, true),
            ("C:\\WINDOWS", 7, false),
            ("/usr/lib", 10, false),
            ("", 0, false),
        ] {
            assert_eq!(seems_so(&mut guest(root, version), &[cpu()]), seems, "{root}");
        }
        // Not mapped, no table, not online.
        let other = Cpu {
            cr3: Some(0x2000),
            ..cpu()
        };
        let offline = Cpu {
            offline: true,
            ..cpu()
        };
        let memory = &mut guest("C:\\WINDOWS", 10);
        assert!(!seems_so(memory, &[other, offline]));
        assert!(seems_so(memory, &[other, cpu()]));
    }
}
