//! What a kernel's image says of itself.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{IoContext, Result};

/// Where a bzImage has what follows (`Documentation/arch/x86/boot.rst`): the mark `HdrS`, the protocol's
/// version, and flags, of which bit 0 tells that the kernel has an entry for 64 bits.
const MARK: usize = 0x202;
const PROTOCOL: usize = 0x206;
const FLAGS: usize = 0x236;
/// The protocol from which on the flags are there (Linux 3.8).
const HAS_FLAGS: u16 = 0x020c;

/// Whether the kernel in `file` runs in 64-bit mode, as far as its image, or else its System.map, says.
pub(super) fn is_64_bit(file: &Path, system_map: Option<&Path>) -> Result<bool> {
    let mut head = Vec::new();
    let opened = File::open(file).on("open", file)?;
    opened.take(4096).read_to_end(&mut head).on("read", file)?;
    if let Some(known) = by_header(&head).or_else(|| by_elf(&head)) {
        return Ok(known);
    }
    let Some(map) = system_map else {
        return Ok(true);
    };
    let text = std::fs::read_to_string(map).on("read", map)?;
    Ok(by_symbols(&text))
}

fn by_header(head: &[u8]) -> Option<bool> {
    let word = |at: usize| Some(u16::from_le_bytes([*head.get(at)?, *head.get(at + 1)?]));
    let marked = head.get(MARK..MARK + 4)? == b"HdrS";
    (marked && word(PROTOCOL)? >= HAS_FLAGS).then_some(word(FLAGS)? & 1 == 1)
}

fn by_elf(head: &[u8]) -> Option<bool> {
    head.starts_with(b"\x7fELF").then(|| head.get(4) == Some(&2))
}

/// Addresses of 16 digits are a 64-bit kernel's.
fn by_symbols(map: &str) -> bool {
    let first = map.split_whitespace().next().unwrap_or_default();
    first.len() > 8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(protocol: u16, flags: u16) -> Vec<u8> {
        let mut head = vec![0; 0x400];
        head[MARK..MARK + 4].copy_from_slice(b"HdrS");
        head[PROTOCOL..PROTOCOL + 2].copy_from_slice(&protocol.to_le_bytes());
        head[FLAGS..FLAGS + 2].copy_from_slice(&flags.to_le_bytes());
        head
    }

    #[test]
    fn an_image_says_how_wide_it_is_since_3_8() {
        assert_eq!(by_header(&image(0x020f, 1)), Some(true));
        assert_eq!(by_header(&image(0x020f, 0)), Some(false));
        assert_eq!(by_header(&image(0x0204, 1)), None);
        assert_eq!(by_header(&[0; 0x400]), None);
        assert_eq!(by_elf(b"\x7fELF\x02"), Some(true));
        assert_eq!(by_elf(b"\x7fELF\x01"), Some(false));
    }

    #[test]
    fn an_old_one_is_told_by_its_symbols() {
        assert!(by_symbols("ffffffff80200000 T _text\n"));
        assert!(!by_symbols("c0100000 T _text\n"));
    }
}
