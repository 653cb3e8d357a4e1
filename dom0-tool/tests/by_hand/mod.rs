//! Layouts made by hand, as a kernel's headers would give them.

use lacuna::os::linux::layout::{FORMAT, Known, Layout, Proof};
use lacuna_core::FreeRule;

/// Returns `facts` with their source.
pub(crate) fn known<'a>(
    facts: impl IntoIterator<Item = &'a (&'a str, u64)>,
) -> impl Iterator<Item = (String, Known)> {
    facts.into_iter().map(|&(name, value)| {
        let source = "made by hand".to_owned();
        (name.to_owned(), Known { value, source })
    })
}

/// Returns the layout of `release`, with what its headers say in `facts`.
pub(crate) fn layout(release: &str, descriptor_bytes: u16, free: FreeRule, facts: &[(&str, u64)]) -> Layout {
    Layout {
        format: FORMAT,
        release: release.to_owned(),
        descriptor_bytes,
        free,
        free_source: "made by hand".to_owned(),
        headers: String::new(),
        proof: Proof {
            descriptors: 0,
            free: 0,
            seed: 0,
        },
        facts: known(facts).collect(),
    }
}
