//! What the kernel expects to find in a page that it takes from its free list.
//!
//! Three boot options decide (`mm/page_alloc.c`, `mm/mm_init.c`, `mm/page_poison.c`;
//! `init_mem_debugging_and_hardening`): `page_poison=1` fills free pages with a pattern and checks it, so a
//! page that reads as zero would be reported as corruption: such a guest is refused. `init_on_free=1` clears
//! pages when they are freed and relies on it: zeros are right. Otherwise the contents do not matter. The
//! switches are read from the kernel itself and not from its command line, which can be set at build time and
//! overridden. Where no symbol says where they are, the free pages themselves tell: a poisoning kernel leaves
//! none of them without its pattern, a clearing one none that is not zero.

use lacuna_core::{Contents, FreeCheck, Gfn, GuestMemory, GuestVirt, PAGE_SIZE, Profile, Verdict};
use thiserror::Error;

use super::facts::{FactError, Facts, Source};
use super::kallsyms::Symbols;
use crate::os::view::{KernelView, ViewError};

/// Why the contents of free pages may not be dropped.
#[derive(Debug, Error)]
pub enum ContentsError {
    /// The guest poisons its free pages.
    #[error(
        "the guest poisons its free pages (page_poison=1; the kernel's {switch} is {value}): a page that reads as zero would be taken for corruption"
    )]
    Poisoned {
        /// The variable that says so.
        switch: &'static str,
        /// Its value.
        value: u64,
    },
    /// Kernel memory is not readable.
    #[error(transparent)]
    View(#[from] ViewError),
    /// Sources differ on a number.
    #[error(transparent)]
    Fact(#[from] FactError),
    /// Free pages hold the pattern that a poisoning kernel writes.
    #[error(
        "the guest poisons its free pages (page_poison=1): {poisoned} of {looked_at} free pages looked at hold nothing but 0xaa; a page that reads as zero would be taken for corruption"
    )]
    Pattern {
        /// Pages that hold it.
        poisoned: u64,
        /// Pages looked at.
        looked_at: u64,
    },
}

/// What was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeContents {
    /// What free pages must read as.
    pub contents: Contents,
    /// The kernel's switch for `init_on_free`: how often it was enabled; `None` when it has none, or its
    /// place is not known.
    pub init_on_free: Option<u32>,
    /// Whether it is known that the kernel does not poison: its switch was found, it is known to have none,
    /// or [`by_free_pages`] tells.
    pub switch_known: bool,
    /// Whether `contents` is what the kernel expects, and not only what is assumed.
    pub contents_known: bool,
}

/// Reads the kernel's switches, as far as their places are known.
///
/// # Errors
/// [`ContentsError`]; `Poisoned` is a refusal.
pub fn free_contents<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    symbols: Option<&Symbols>,
    facts: &Facts,
) -> Result<FreeContents, ContentsError> {
    let Some(symbols) = symbols else {
        return Ok(FreeContents {
            contents: Contents::DontCare,
            init_on_free: None,
            switch_known: false,
            contents_known: false,
        });
    };
    // With the headers' word for it, a kernel without the option has no switch.
    let mut seen = facts.sources().contains(&Source::Stub) && facts.find("CONFIG_PAGE_POISONING")?.is_none();
    // The static key and the plain flag from which it is set (since 5.11, commit 8f424750baaa); the flag of
    // before.
    if let Some(key) = symbols.find("_page_poisoning_enabled") {
        seen = true;
        let value = static_key(view, facts, key)?;
        if value != 0 {
            return Err(ContentsError::Poisoned {
                switch: "_page_poisoning_enabled",
                value: u64::from(value),
            });
        }
    }
    for switch in ["_page_poisoning_enabled_early", "want_page_poisoning"] {
        if let Some(flag) = symbols.find(switch) {
            seen = true;
            let mut byte = [0];
            view.read(flag, &mut byte)?;
            if byte != [0] {
                return Err(ContentsError::Poisoned {
                    switch,
                    value: u64::from(byte[0]),
                });
            }
        }
    }
    let init_on_free = symbols
        .find("init_on_free")
        .map(|key| static_key(view, facts, key))
        .transpose()?;
    let contents = if init_on_free.is_some_and(|count| count != 0) {
        Contents::Zero
    } else {
        Contents::DontCare
    };
    Ok(FreeContents {
        contents,
        init_on_free,
        switch_known: seen,
        // A table without data (no CONFIG_KALLSYMS_ALL) says nothing by not having the switch.
        contents_known: init_on_free.is_some() || symbols.find("init_task").is_some(),
    })
}

/// `PAGE_POISON` (`include/linux/poison.h`).
const PATTERN: u8 = 0xaa;
/// Frames asked whether they are free, at most.
const MOST_ASKED: u64 = 1 << 14;
/// Free pages looked at, at most.
const MOST_LOOKED_AT: u64 = 256;
/// With fewer free pages than this nothing is concluded.
const FEWEST: u64 = 16;

/// What the bytes of free pages below `end` say: that the kernel does not poison them, and what it expects of
/// them. `None` where they do not tell. A page that was taken while it was looked at is not counted.
///
/// Old kernels do not poison what was free at boot, so that one page with the pattern is enough to leave it
/// undecided.
///
/// # Errors
/// [`ContentsError::Pattern`], a refusal, when most of them hold nothing else.
pub fn by_free_pages<M: GuestMemory>(
    memory: &mut M,
    profile: &Profile,
    end: Gfn,
) -> Result<Option<Contents>, ContentsError> {
    let mut check = FreeCheck::new(profile);
    let mut page = vec![0; PAGE_SIZE];
    let (mut poisoned, mut zero, mut looked_at) = (0, 0, 0);
    let mut is_free = |memory: &mut M, gfn| matches!(check.page(memory, gfn), Verdict::Free { .. });
    for index in 0..MOST_ASKED {
        // From all over memory: the golden ratio's multiples spread evenly, however soon the loop ends.
        let share = u128::from(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let gfn = Gfn::new(u64::try_from((share * u128::from(end.get())) >> 64).unwrap_or(0));
        let Some(at) = gfn.base() else { continue };
        // Of a page that is not in a dump, is_zero() knows nothing, where read() may have zeros in its place.
        let is_there =
            |memory: &mut M, page: &mut [u8]| memory.is_zero(gfn).is_ok() && memory.read(at, page).is_ok();
        if !is_free(memory, gfn) || !is_there(memory, &mut page) || !is_free(memory, gfn) {
            continue;
        }
        looked_at += 1;
        poisoned += u64::from(page.iter().all(|byte| *byte == PATTERN));
        zero += u64::from(page.iter().all(|byte| *byte == 0));
        if looked_at == MOST_LOOKED_AT {
            break;
        }
    }
    if poisoned > 0 && poisoned * 2 >= looked_at {
        return Err(ContentsError::Pattern { poisoned, looked_at });
    }
    Ok(
        (looked_at >= FEWEST && poisoned == 0).then_some(if zero == looked_at {
            // It may be chance, as in a guest that has just booted; that they must be zero is the safe thing
            // to say.
            Contents::Zero
        } else {
            Contents::DontCare
        }),
    )
}

/// `struct static_key.enabled`: how often the key was enabled.
fn static_key<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    facts: &Facts,
    key: GuestVirt,
) -> Result<u32, ContentsError> {
    // The first member since there are static keys (3.3, include/linux/jump_label.h).
    let offset = facts.find("offsetof(struct static_key,enabled)")?.unwrap_or(0);
    Ok(view.u32(GuestVirt::new(key.get().wrapping_add(offset)))?)
}

/// Looks at the bytes of some free pages for the pattern of a poisoning kernel: what shows it whatever its
/// switches are called. `free` yields first frames of free pages; the interiors of blocks are as good as any.
///
/// # Errors
/// [`ContentsError::Pattern`] when most of them hold nothing else.
pub fn look_for_poison<M: GuestMemory>(
    memory: &mut M,
    free: impl Iterator<Item = Gfn>,
) -> Result<(), ContentsError> {
    const MOST: usize = 64;
    let (mut poisoned, mut looked_at) = (0, 0);
    let mut page = vec![0; PAGE_SIZE];
    for gfn in free.take(MOST) {
        let Some(at) = gfn.base() else { continue };
        if memory.is_zero(gfn).is_err() || memory.read(at, &mut page).is_err() {
            continue;
        }
        looked_at += 1;
        poisoned += u64::from(page.iter().all(|byte| *byte == PATTERN));
    }
    if poisoned > 0 && poisoned * 2 >= looked_at {
        Err(ContentsError::Pattern { poisoned, looked_at })
    } else {
        Ok(())
    }
}
