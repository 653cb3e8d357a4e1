//! What the kernel expects to find in a page that it takes from its free list.
//!
//! Three boot options decide (`mm/page_alloc.c`, `mm/mm_init.c`, `mm/page_poison.c`; `init_mem_debugging_and_hardening`):
//! `page_poison=1` fills free pages with a pattern and checks it, so a page that reads as zero would be reported as
//! corruption: such a guest is refused. `init_on_free=1` clears pages when they are freed and relies on it: zeros are
//! right. Otherwise the contents do not matter. The switches are read from the kernel itself and not from its
//! command line, which can be set at build time and overridden.

use lacuna_core::{Contents, GuestMemory, GuestVirt};
use thiserror::Error;

use super::kallsyms::Symbols;
use super::kernel_view::{KernelView, ViewError};
use super::layout::{Layout, LayoutError};

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
    /// The kernel can poison pages, and where its switch is is not known.
    #[error(
        "the kernel is built with CONFIG_PAGE_POISONING and its switch was not found, so whether it is on is not known"
    )]
    SwitchUnknown,
    /// Kernel memory is not readable.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The layout lacks a number.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// What was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeContents {
    /// What free pages must read as.
    pub contents: Contents,
    /// The kernel's switch for `init_on_free`: how often it was enabled; `None` when it has none.
    pub init_on_free: Option<u32>,
}

/// Reads the kernel's switches.
///
/// # Errors
/// [`ContentsError`]; `Poisoned` and `SwitchUnknown` are refusals.
pub fn free_contents<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    symbols: &Symbols,
    layout: &Layout,
) -> Result<FreeContents, ContentsError> {
    let mut seen = false;
    // The static key and the plain flag from which it is set (since 5.11, commit 8f424750baaa); the flag of before.
    if let Some(key) = symbols.find("_page_poisoning_enabled") {
        seen = true;
        let value = static_key(view, layout, key)?;
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
    if !seen && layout.find_fact("CONFIG_PAGE_POISONING").is_some() {
        return Err(ContentsError::SwitchUnknown);
    }
    let init_on_free = symbols
        .find("init_on_free")
        .map(|key| static_key(view, layout, key))
        .transpose()?;
    let contents = if init_on_free.is_some_and(|count| count != 0) {
        Contents::Zero
    } else {
        Contents::DontCare
    };
    Ok(FreeContents {
        contents,
        init_on_free,
    })
}

/// `struct static_key.enabled`: how often the key was enabled.
fn static_key<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    layout: &Layout,
    key: GuestVirt,
) -> Result<u32, ContentsError> {
    let offset = layout.fact("offsetof(struct static_key,enabled)")?;
    Ok(view.u32(GuestVirt::new(key.get().wrapping_add(offset)))?)
}
