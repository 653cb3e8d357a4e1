//! Gives a guest its profile, and has the hypervisor hold a scan against the guest's own counters.

use std::path::PathBuf;
use std::time::Duration;

use lacuna_core::abi::Statistics;

use super::guest::{Live, of_memory};
use super::paused::while_paused;
use super::scan::until_believed;
use super::{Observer, migration, profile};
use crate::failure::{Cause, Class, Failure};
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
    let attached = give_profile(live, options, observer)
        .map_err(|failure| while_booting(failure, live.ran().unwrap_or(Duration::MAX)));
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

/// CPU time within which a guest whose kernel is not to be known is taken to be booting: Debian 13 takes 3 to
/// 10 s on a processor of this decade, and an idle guest does not reach this for long.
const BOOTING: Duration = Duration::from_secs(30);

/// Returns the failure to report for a guest that has run for `ran`. A guest that is still booting looks
/// like one whose kernel is unknown or does not fit its profile, so such a `failure` is reported as booting.
fn while_booting(failure: Failure, ran: Duration) -> Failure {
    let looks_so = matches!(failure.cause, Cause::UnknownKernel | Cause::Contradiction);
    if !looks_so || ran >= BOOTING {
        return failure;
    }
    let what = format!(
        "still booting, it seems: the guest has used {:.1} s of processor time ({})",
        ran.as_secs_f64(),
        failure.what
    );
    Failure::new(
        failure.class,
        what,
        "try again when it has booted; lacunad does by itself",
    )
    .because(Cause::Booting)
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
    let scanned = of_memory(scanned, live.memory_pages(&statistics)?);
    observer.scanned(&scanned);
    Ok(Attached {
        is_counted,
        profile_bytes: encoded.len(),
        scanned,
        statistics,
    })
}

/// Builds the guest's profile and encodes it. The guest's memory is closed before anything is shared.
fn build<O: Observer + ?Sized>(live: &Live, sources: &Sources, observer: &mut O) -> Result<Vec<u8>, Failure> {
    live.with_kernel(sources, observer, |memory, kernel, cpus, observer| {
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

/// Makes the engine scan until it admits the profile.
fn admit<O: Observer + ?Sized>(live: &Live, paused: bool, observer: &mut O) -> Result<Scanned, Failure> {
    observer.begin(Step::ScanGuest);
    // The guest goes on for a moment between two tries.
    let outcome = until_believed(|| while_paused(live, paused, || Ok(live.engine.scan()?)));
    observer.end();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_has_hardly_run_is_said_to_be_booting() {
        let failure =
            || Failure::new(Class::Refused, "an entry does not fit", "look").because(Cause::Contradiction);
        let young = while_booting(failure(), Duration::from_secs(4));
        assert_eq!((young.class, young.cause), (Class::Refused, Cause::Booting));
        assert!(
            young.what.contains("still booting")
                && young.what.contains("4.0 s")
                && young.what.contains("entry"),
            "{young}"
        );
        assert_eq!(while_booting(failure(), BOOTING), failure());
        // What no boot explains.
        let poison = failure().because(Cause::PagePoison);
        assert_eq!(while_booting(poison.clone(), Duration::ZERO), poison);
    }
}
