//! Reads a guest's own account of its free pages straight out of the guest's memory.

use std::rc::Rc;

use lacuna::xen::privcmd::{DomainId, Privcmd};
use lacuna_guest::truth::{Capture, PAGE_SIZE, PAGE_WORDS};

use crate::failure::{Result, differs};

/// Returns the latest complete capture in the account that the guest `domain` keeps in the frames `gfns`.
///
/// The mapping, which holds references on the frames, is gone when this returns.
pub(crate) fn read(domain: u16, gfns: &[u64]) -> Result<Capture> {
    let failed = |error: &dyn std::fmt::Display| {
        differs("the guest's account of its pages", "readable", &error.to_string())
    };
    let domain = DomainId::new(domain).ok_or_else(|| failed(&"no such domain"))?;
    let privcmd = Rc::new(Privcmd::open().map_err(|error| failed(&error))?);
    let frames = privcmd.map_frames(domain, gfns).map_err(|error| failed(&error))?;
    let mut words = Vec::with_capacity(gfns.len() * PAGE_WORDS);
    let mut page = [0; PAGE_SIZE];
    for (index, gfn) in gfns.iter().enumerate() {
        if !frames.copy(index, 0, &mut page) {
            return Err(failed(&format!("frame {gfn:#x} cannot be mapped")));
        }
        for bytes in page.chunks_exact(size_of::<u64>()) {
            let mut word = [0; size_of::<u64>()];
            word.copy_from_slice(bytes);
            words.push(u64::from_le_bytes(word));
        }
    }
    Capture::latest(&words).map_err(|error| failed(&error))
}
