//! Identifies the kernel of a guest.

use super::Observer;
use super::guest::{Guest, Live, with_dumped_kernel};
use crate::failure::Failure;
use crate::os::{Kernel, Sources};

/// Identifies the kernel of a guest, and says what confirms it.
///
/// # Errors
/// Why none was identified.
pub fn identify<O: Observer + ?Sized>(
    guest: &Guest,
    sources: &Sources,
    observer: &mut O,
) -> Result<Kernel, Failure> {
    match guest {
        Guest::Domain(text) => {
            Live::open(text)?.with_kernel(sources, observer, |_, kernel, _, _| Ok(kernel.clone()))
        }
        Guest::Dump(file) => {
            let mut dump = file.open(observer)?;
            with_dumped_kernel(&mut dump, sources, observer, |_, kernel, _, _| Ok(kernel))
        }
    }
}
