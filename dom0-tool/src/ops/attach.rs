//! Gives a guest its profile, and has the hypervisor hold a scan against the guest's own counters.

use std::path::PathBuf;

use lacuna_core::abi::Statistics;

use super::guest::Live;
use super::paused::while_paused;
use super::scan::until_believed;
use super::{Observer, migration, profile};
use crate::failure::{Class, Failure};
use crate::os::Sources;
use crate::progress::{Remark, Step};
use crate::xen::engine::Scanned;

/// How to attach a guest.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where what is known of the kernel comes from.
    pub sources: Sources,
    /// A profile that was built before, in this boot of the guest.
    pub profile: Option<PathBuf>,
    /// Stops the guest for the first scan, so that its counters stand still.
    pub paused: bool,
}

/// A guest that was attached.
#[derive(Clone, Debug)]
pub struct Attached {
    /// Whether the guest's kernel counts its free pages, so that the scan was held against that.
    pub is_counted: bool,
    /// Bytes of the profile.
    pub profile_bytes: usize,
    /// The scan that was believed.
    pub scanned: Scanned,
    /// The engine's counters after it.
    pub statistics: Statistics,
}

/// Attaches a guest. It has no profile when this fails.
///
/// # Errors
/// Why the guest is left alone.
pub fn attach<O: Observer + ?Sized>(
    live: &Live,
    options: &Options,
    observer: &mut O,
) -> Result<Attached, Failure> {
    let attached = give_profile(live, options, observer);
    // A migration of the guest tells it: that everything is sent then has a reason that nobody else knows.
    let kept = match &attached {
        Ok(_) => migration::forget_refusal(&live.domain.info),
        Err(failure) if failure.class == Class::Refused => {
            migration::keep_refusal(&live.domain.info, &failure.what)
        }
        Err(_) => Ok(()),
    };
    if let Err(error) = kept {
        observer.remark(Remark::RefusalNotKept(error.to_string()));
    }
    attached
}

/// Builds the profile, hands it over, and has it held against the guest's own counters.
fn give_profile<O: Observer + ?Sized>(
    live: &Live,
    options: &Options,
    observer: &mut O,
) -> Result<Attached, Failure> {
    let encoded = match &options.profile {
        Some(file) => profile::read_file(file)?,
        None => build(live, &options.sources, observer)?,
    };
    // Decoded here too, so that what is wrong with a file is said without the hypervisor's log.
    let is_counted = !profile::decode(&encoded)?.zones.is_empty();
    live.engine.set_profile(&encoded)?;
    let admitted =
        admit(live, options.paused, observer).and_then(|scanned| Ok((scanned, live.engine.statistics()?)));
    let (scanned, statistics) = match admitted {
        Ok(known) => known,
        Err(error) => {
            // A profile that was refused is of no use: take it away. The refusal is what matters.
            let _ = live.engine.clear_profile();
            return Err(error);
        }
    };
    observer.scanned(&scanned);
    Ok(Attached {
        is_counted,
        profile_bytes: encoded.len(),
        scanned,
        statistics,
    })
}

/// The guest's profile, encoded. The guest's memory is closed before anything is shared.
fn build<O: Observer + ?Sized>(live: &Live, sources: &Sources, observer: &mut O) -> Result<Vec<u8>, Failure> {
    live.with_kernel(observer, |memory, kernel, cpus, observer| {
        let built = kernel.build(memory, cpus, sources, observer)?;
        if let Some(missing) = built.unusable() {
            return Err(Failure::new(
                Class::Refused,
                missing,
                "a guest that still boots may have it later; else give the kernel's real System.map with --system-map (Debian: in the package linux-image-RELEASE-dbg) and its headers",
            ));
        }
        observer.built(&built);
        profile::encode(built.profile())
    })
}

/// Has the engine scan until it believes the profile.
fn admit<O: Observer + ?Sized>(live: &Live, paused: bool, observer: &mut O) -> Result<Scanned, Failure> {
    observer.begin(Step::ScanGuest);
    // The guest goes on for a moment between two tries.
    let outcome = until_believed(|| while_paused(live, paused, || Ok(live.engine.scan()?)));
    observer.end();
    outcome
}
