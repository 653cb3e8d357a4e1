//! What a kernel's image says of itself.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, IoContext, Result};

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

/// The first kernels that can have an entry for PVH guests (`CONFIG_XEN_PVH`, before 5.0).
const FIRST_PVH: (u32, u32) = (4, 11);
/// That entry (`arch/x86/platform/pvh/head.S`).
const PVH_ENTRY: &str = "pvh_start_xen";
/// Fewest lines of a real System.map.
const FEWEST_SYMBOLS: usize = 1000;
/// The options that build it in.
const PVH_OPTIONS: [&str; 2] = ["CONFIG_PVH=y", "CONFIG_XEN_PVH=y"];

/// What the kernel in `file` calls itself, where it is a bzImage and says so.
pub(super) fn release(file: &Path) -> Result<Option<String>> {
    let mut head = Vec::new();
    let opened = File::open(file).on("open", file)?;
    opened.take(64 << 10).read_to_end(&mut head).on("read", file)?;
    Ok(by_version(&head))
}

/// Where a bzImage says where its version is, less 0x200 (`kernel_version`,
/// `Documentation/arch/x86/boot.rst`).
const VERSION: usize = 0x20e;

fn by_version(head: &[u8]) -> Option<String> {
    let word = head.get(VERSION..VERSION + 2)?;
    let at = usize::from(u16::from_le_bytes([word[0], word[1]]));
    if head.get(MARK..MARK + 4)? != b"HdrS" || at == 0 {
        return None;
    }
    let text = head.get(at + 0x200..)?.split(|byte| *byte == 0).next()?;
    let release = std::str::from_utf8(text).ok()?.split(' ').next()?;
    (!release.is_empty() && release.len() <= 64).then(|| release.to_owned())
}

/// Fails where the kernel in `file` has no entry for PVH guests, as far as its release, its configuration and
/// its System.map tell.
pub(super) fn require_pvh(file: &Path, config: Option<&Path>, system_map: Option<&Path>) -> Result<()> {
    let read = |file: Option<&Path>| {
        file.map(|file| std::fs::read_to_string(file).on("read", file))
            .transpose()
    };
    let (config, map) = (read(config)?, read(system_map)?);
    match lacks_pvh(release(file)?.as_deref(), config.as_deref(), map.as_deref()) {
        None => Ok(()),
        Some(why) => Err(Error::Unexpected {
            what: format!("an entry for PVH guests in {}", file.display()),
            expected: "one, or --hvm for a guest with a device model".to_owned(),
            seen: why,
        }),
    }
}

/// Why a kernel has no such entry.
fn lacks_pvh(release: Option<&str>, config: Option<&str>, map: Option<&str>) -> Option<String> {
    let number = |text: &str| text.parse::<u32>().ok();
    let version = release.and_then(|release| {
        let mut parts = release.split(|letter: char| !letter.is_ascii_digit());
        Some((number(parts.next()?)?, number(parts.next()?)?))
    });
    if version.is_some_and(|version| version < FIRST_PVH) {
        return Some(format!(
            "Linux {}: none before 4.11 has one",
            release.unwrap_or_default()
        ));
    }
    if config.is_some_and(|text| !text.lines().any(|line| PVH_OPTIONS.contains(&line.trim()))) {
        return Some("a configuration without CONFIG_PVH".to_owned());
    }
    // A packaging stub of a line or two names nothing.
    let is_whole = |text: &str| text.lines().count() >= FEWEST_SYMBOLS;
    let names_it = |text: &str| text.lines().any(|line| line.ends_with(PVH_ENTRY));
    map.is_some_and(|text| is_whole(text) && !names_it(text))
        .then(|| format!("a System.map without {PVH_ENTRY}"))
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
    fn an_image_says_what_it_is_called() {
        let mut head = image(0x0206, 0);
        assert_eq!(by_version(&head), None);
        head[VERSION..VERSION + 2].copy_from_slice(&0x100_u16.to_le_bytes());
        let text = b"2.6.18-8.el5 (builder@host) #1 SMP\0";
        head[0x300..0x300 + text.len()].copy_from_slice(text);
        assert_eq!(by_version(&head).as_deref(), Some("2.6.18-8.el5"));
        head[VERSION..VERSION + 2].copy_from_slice(&0xff00_u16.to_le_bytes());
        assert_eq!(by_version(&head), None);
    }

    #[test]
    fn a_kernel_without_an_entry_for_pvh_guests_is_told() {
        let (with, without) = ("CONFIG_PVH=y\n", "# CONFIG_PVH is not set\n");
        let bare = "ffffffff81000000 T _text\n".repeat(FEWEST_SYMBOLS);
        let map = &*format!("{bare}ffffffff82a00000 T pvh_start_xen\n");
        for (release, config, map, lacks) in [
            (Some("2.6.18-8.el5"), None, None, Some("2.6.18-8.el5")),
            (Some("4.10.0"), None, None, Some("4.10.0")),
            (Some("6.1.0-50-amd64"), Some(with), Some(map), None),
            (Some("6.1.0"), Some(without), None, Some("CONFIG_PVH")),
            (None, None, Some(&*bare), Some("pvh_start_xen")),
            (None, None, Some("ffffffffffffffff B a_stub\n"), None),
            (None, None, None, None),
        ] {
            let told = lacks_pvh(release, config, map);
            assert_eq!(told.is_some(), lacks.is_some(), "{told:?}");
            assert!(told.unwrap_or_default().contains(lacks.unwrap_or_default()));
        }
    }

    #[test]
    fn an_old_one_is_told_by_its_symbols() {
        assert!(by_symbols("ffffffff80200000 T _text\n"));
        assert!(!by_symbols("c0100000 T _text\n"));
    }
}
