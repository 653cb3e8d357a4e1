//! The kernel's own symbol table, read out of its memory.
//!
//! Kernels from 6.0 on give the addresses of the tables in VMCOREINFO (commit 5fd8fea935a1). The tables hold
//! every name, compressed: 256 tokens, and per symbol a length and that many token numbers; the expanded name
//! begins with the symbol's type letter (`scripts/kallsyms.c`, `kernel/kallsyms.c`).
//!
//! Invariant: every loop is bounded by a constant of this file, whatever the tables hold.

use std::collections::BTreeMap;

use lacuna_core::{GuestMemory, GuestVirt, PAGE_SIZE};
use thiserror::Error;

use super::vmcoreinfo::{VmcoreInfo, VmcoreInfoError};
use crate::os::view::{KernelView, ViewError};

/// Most symbols accepted. Debian's 6.12 has about 165,000 built in, a kernel with everything built in
/// 400,000.
const MAX_SYMBOLS: u32 = 1 << 20;
/// Longest name accepted, in bytes (`KSYM_NAME_LEN` is 512 since 6.1).
const MAX_NAME: usize = 1024;
/// Bytes of compressed names accepted.
const MAX_NAMES_BYTES: usize = 32 << 20;
/// Longest token, in bytes: the table's last token is read up to this.
const MAX_TOKEN: usize = 256;

/// Why the kernel's symbols could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KallsymsError {
    /// VMCOREINFO does not say where the tables are. Kernels before 6.0 do not.
    #[error("{0}: this kernel does not say where its symbol table is (kernels before 6.0 do not)")]
    NotOffered(VmcoreInfoError),
    /// A table is not mapped.
    #[error("the kernel's symbol table is not readable: {0}")]
    View(#[from] ViewError),
    /// The number of symbols is absurd.
    #[error("the kernel claims {0} symbols (1 to {MAX_SYMBOLS} are accepted)")]
    Count(u32),
    /// The names run past the bound, or one is longer than the bound.
    #[error("symbol {index} of the kernel's table is malformed")]
    Name {
        /// Number of the symbol.
        index: u32,
    },
    /// No known encoding of the addresses gives those that VMCOREINFO states.
    #[error("the kernel's symbol table does not agree with VMCOREINFO on the address of {symbol}")]
    Disagrees {
        /// The first symbol on which they differ.
        symbol: String,
    },
}

/// How the 32-bit entries of `kallsyms_offsets` become addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    /// Up to 6.14 on x86 SMP (`CONFIG_KALLSYMS_ABSOLUTE_PERCPU`): a negative entry counts back from the base,
    /// others are per-cpu offsets.
    AbsolutePercpu,
    /// Otherwise: unsigned offsets from the base.
    Relative,
}

impl Encoding {
    #[allow(clippy::cast_possible_wrap)] // two's complement is the encoding
    fn address(self, base: u64, entry: u32) -> u64 {
        match self {
            Self::AbsolutePercpu if (entry as i32) < 0 => base
                .wrapping_sub(1)
                .wrapping_add(i64::from(entry as i32).unsigned_abs()),
            Self::AbsolutePercpu => u64::from(entry),
            Self::Relative => base.wrapping_add(u64::from(entry)),
        }
    }
}

/// Addresses of the symbols that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols {
    /// By name; two symbols of one name (local to different files) are `None`.
    found: BTreeMap<String, Option<GuestVirt>>,
}

impl Symbols {
    /// The address of `name`, if exactly one symbol has that name.
    pub fn find(&self, name: &str) -> Option<GuestVirt> {
        self.found.get(name).copied().flatten()
    }

    /// The first of `names` on which two sets that both have it differ: its name and both addresses.
    pub fn differ(
        &self,
        other: &Self,
        names: &[&'static str],
    ) -> Option<(&'static str, GuestVirt, GuestVirt)> {
        names.iter().find_map(|name| {
            let (one, two) = (self.find(name)?, other.find(name)?);
            (one != two).then_some((*name, one, two))
        })
    }

    /// Makes a set from pairs, as a System.map gives them.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (String, GuestVirt)>) -> Self {
        let mut symbols = Self::default();
        for (name, address) in pairs {
            symbols.add(name, address);
        }
        symbols
    }

    fn add(&mut self, name: String, address: GuestVirt) {
        self.found
            .entry(name)
            .and_modify(|known| *known = None)
            .or_insert(Some(address));
    }
}

/// Looks up `wanted` in the kernel's symbol table, and confirms the table against VMCOREINFO.
///
/// # Errors
/// [`KallsymsError`]. A wanted name that is not in the table is no error: [`Symbols::find`] then gives
/// `None`.
pub fn look_up<M: GuestMemory + ?Sized>(
    view: &mut KernelView<'_, M>,
    info: &VmcoreInfo,
    wanted: &[&str],
) -> Result<Symbols, KallsymsError> {
    let table = |name: &str| info.symbol(name).map_err(KallsymsError::NotOffered);
    let count = view.u32(table("kallsyms_num_syms")?)?;
    if !(1..=MAX_SYMBOLS).contains(&count) {
        return Err(KallsymsError::Count(count));
    }
    let tokens = read_tokens(
        view,
        table("kallsyms_token_table")?,
        table("kallsyms_token_index")?,
    )?;

    // Those that VMCOREINFO gives too, to confirm the table by. mem_section and vmemmap are left out:
    // VMCOREINFO gives their values and not their addresses.
    let witnesses: Vec<(&str, GuestVirt)> = info
        .symbols()
        .filter(|(name, _)| {
            [
                "_stext",
                "init_uts_ns",
                "init_top_pgt",
                "swapper_pg_dir",
                "node_data",
            ]
            .contains(name)
        })
        .collect();
    let is_wanted =
        |name: &str| wanted.contains(&name) || witnesses.iter().any(|(witness, _)| *witness == name);
    let hits = find_names(view, table("kallsyms_names")?, count, &tokens, is_wanted)?;

    let base_at = info.find_symbol("kallsyms_relative_base");
    let mut entries = Vec::with_capacity(hits.len());
    for (index, name) in hits {
        let value = if base_at.is_some() {
            u64::from(view.u32(element(table("kallsyms_offsets")?, index, 4))?)
        } else {
            {
                let width = u64::from(view.space().levels.pointer_bytes());
                view.word(element(table("kallsyms_addresses")?, index, width))?
            }
        };
        entries.push((name, value));
    }
    let Some(base_at) = base_at else {
        let symbols = Symbols::from_pairs(
            entries
                .into_iter()
                .map(|(name, value)| (name, GuestVirt::new(value))),
        );
        return confirm(&symbols, &witnesses).map(|()| symbols);
    };
    let base = view.word(base_at)?;
    let narrow = view.space().levels.is_32_bit();
    let mut refusal = None;
    for encoding in [Encoding::AbsolutePercpu, Encoding::Relative] {
        let symbols = Symbols::from_pairs(entries.iter().map(|(name, value)| {
            let entry = u32::try_from(*value).unwrap_or(u32::MAX);
            let address = encoding.address(base, entry);
            // 32-bit kernels wrap where their addresses end.
            let address = if narrow { address & 0xffff_ffff } else { address };
            (name.clone(), GuestVirt::new(address))
        }));
        match confirm(&symbols, &witnesses) {
            Ok(()) => return Ok(symbols),
            Err(error) => refusal = Some(error),
        }
    }
    Err(refusal.unwrap_or(KallsymsError::Disagrees {
        symbol: "_stext".into(),
    }))
}

/// Requires `_stext`, and that every witness found has the address that VMCOREINFO gives.
fn confirm(symbols: &Symbols, witnesses: &[(&str, GuestVirt)]) -> Result<(), KallsymsError> {
    let disagrees = |name: &str| {
        Err(KallsymsError::Disagrees {
            symbol: name.to_owned(),
        })
    };
    if symbols.find("_stext").is_none() {
        return disagrees("_stext");
    }
    for (name, stated) in witnesses {
        // swapper_pg_dir is a macro for init_top_pgt on x86-64 and has no entry of its own.
        if symbols.find(name).is_some_and(|found| found != *stated) {
            return disagrees(name);
        }
    }
    Ok(())
}

fn element(table: GuestVirt, index: u32, size: u64) -> GuestVirt {
    GuestVirt::new(table.get().wrapping_add(u64::from(index) * size))
}

fn read_tokens<M: GuestMemory + ?Sized>(
    view: &mut KernelView<'_, M>,
    table: GuestVirt,
    index: GuestVirt,
) -> Result<Vec<Vec<u8>>, KallsymsError> {
    let mut raw = [0; 512];
    view.read(index, &mut raw)?;
    let mut tokens = Vec::with_capacity(256);
    for pair in raw.chunks_exact(2) {
        let start = u64::from(u16::from_le_bytes([pair[0], pair[1]]));
        let mut bytes = vec![0; MAX_TOKEN];
        view.read(GuestVirt::new(table.get().wrapping_add(start)), &mut bytes)?;
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(MAX_TOKEN);
        bytes.truncate(end);
        tokens.push(bytes);
    }
    Ok(tokens)
}

/// Reads on from `at`, a page at a time, never more than [`MAX_NAMES_BYTES`].
struct NameStream {
    at: GuestVirt,
    buffer: Vec<u8>,
    position: usize,
    taken: usize,
}

impl NameStream {
    fn byte<M: GuestMemory + ?Sized>(
        &mut self,
        view: &mut KernelView<'_, M>,
        index: u32,
    ) -> Result<u8, KallsymsError> {
        if self.position == self.buffer.len() {
            if self.taken >= MAX_NAMES_BYTES {
                return Err(KallsymsError::Name { index });
            }
            // Up to the end of the page: the next one need not be mapped.
            let length = PAGE_SIZE - usize::try_from(self.at.get() % PAGE_SIZE as u64).unwrap_or(0);
            self.buffer.resize(length, 0);
            view.read(self.at, &mut self.buffer)?;
            self.at = GuestVirt::new(self.at.get().wrapping_add(length as u64));
            self.position = 0;
            self.taken += length;
        }
        self.position += 1;
        Ok(self.buffer[self.position - 1])
    }
}

fn find_names<M: GuestMemory + ?Sized>(
    view: &mut KernelView<'_, M>,
    names: GuestVirt,
    count: u32,
    tokens: &[Vec<u8>],
    is_wanted: impl Fn(&str) -> bool,
) -> Result<Vec<(u32, String)>, KallsymsError> {
    let mut stream = NameStream {
        at: names,
        buffer: Vec::new(),
        position: 0,
        taken: 0,
    };
    let mut hits = Vec::new();
    let mut name = Vec::with_capacity(MAX_NAME);
    for index in 0..count {
        let mut length = usize::from(stream.byte(view, index)?);
        if length & 0x80 != 0 {
            // ULEB128 of two bytes, since 6.1 (commit 73bbb94466fd).
            length = (length & 0x7f) | usize::from(stream.byte(view, index)?) << 7;
        }
        name.clear();
        for _ in 0..length {
            let token = usize::from(stream.byte(view, index)?);
            name.extend_from_slice(&tokens[token]);
            if name.len() > MAX_NAME {
                return Err(KallsymsError::Name { index });
            }
        }
        // The first byte is the type letter.
        if let Some(text) = name.get(1..).and_then(|bytes| std::str::from_utf8(bytes).ok())
            && is_wanted(text)
        {
            hits.push((index, text.to_owned()));
        }
    }
    Ok(hits)
}
