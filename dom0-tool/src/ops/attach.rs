//! Gives a guest its profile, and makes the hypervisor compare a scan with the guest's own counters.

use std::path::PathBuf;
use std::time::Duration;

use lacuna_core::abi::Statistics;

use super::guest::{Live, within_memory};
use super::paused::while_paused;
use super::scan::until_admitted;
use super::{Observer, migration, profile};
use crate::failure::{Cause, Class, Failure};
use crate::os::Sources;
use crate::progress::{Remark, Step};
use crate::xen::engine::{ScanFigures, ScanOf};

/// How to attach a guest.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where knowledge of the kernel comes from.
    pub sources: Sources,
    /// A profile that was built before, in this boot of the guest.
    pub profile: Option<PathBuf>,
    /// Stops the guest for the first scan, so that its counters stand still.
    pub paused: bool,
}

/// The result of attaching a guest.
#[derive(Clone, Debug)]
pub struct AttachReport {
    /// Whether the guest's kernel counts its free pages, so that the scan was compared with that count.
    pub is_counted: bool,
    /// Size of the encoded profile in bytes.
    pub profile_bytes: usize,
    /// The scan that admitted the profile.
    pub scanned: ScanFigures,
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
) -> Result<AttachReport, Failure> {
    let attached = give_profile(live, options, observer)
        .map_err(|failure| while_booting(failure, live.run_time().unwrap_or(Duration::MAX)));
    // A migration of the guest shows the reason, because it sends everything then.
    let kept = match &attached {
        Ok(_) => migration::forget_refusal(&live.domain.info),
        Err(failure) if failure.class == Class::Refused => {
            migration::record_refusal(&live.domain.info, &failure.what)
        }
        Err(_) => Ok(()),
    };
    if let Err(error) = kept {
        observer.remark(Remark::RefusalNotKept(error.to_string()));
    }
    attached
}

/// A guest whose kernel cannot be identified is taken to be booting until it has used this much CPU time.
/// Debian 13 takes 3 to 10 s on a processor of this decade, and an idle guest takes long to reach the limit.
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

/// Builds the profile, gives it to the hypervisor, and scans until the guest's own counters confirm it.
fn give_profile<O: Observer + ?Sized>(
    live: &Live,
    options: &Options,
    observer: &mut O,
) -> Result<AttachReport, Failure> {
    let encoded = match &options.profile {
        Some(file) => profile::read_file(file)?,
        None => build(live, &options.sources, observer)?,
    };
    // Decode it here as well, so that an error in the file is reported without the hypervisor's log.
    let is_counted = !profile::decode(&encoded)?.zones.is_empty();
    live.engine.set_profile(&encoded)?;
    let admitted =
        admit(live, options.paused, observer).and_then(|scanned| Ok((scanned, live.engine.statistics()?)));
    let (scanned, statistics) = match admitted {
        Ok(known) => known,
        Err(error) => {
            // Remove a profile that was refused. An error of that does not matter beside the refusal.
            let _ = live.engine.clear_profile();
            return Err(error);
        }
    };
    let scanned = within_memory(scanned, live.memory_pages(&statistics)?);
    observer.scanned(&scanned);
    Ok(AttachReport {
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
                "a guest that is still booting may have it later; otherwise give the kernel's real System.map with --system-map (Debian: in the package linux-image-RELEASE-dbg) and its headers",
            ));
        }
        observer.built(&built);
        profile::encode(built.profile())
    })
}

/// Makes the engine scan until it admits the profile.
fn admit<O: Observer + ?Sized>(live: &Live, paused: bool, observer: &mut O) -> Result<ScanFigures, Failure> {
    observer.begin(Step::ScanGuest);
    // The guest runs for a moment between two tries.
    let outcome =
        until_admitted(|| while_paused(live, paused, || Ok(live.engine.scan(ScanOf::Everything)?)));
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
        // Booting does not explain these.
        let poison = failure().because(Cause::PagePoison);
        assert_eq!(while_booting(poison.clone(), Duration::ZERO), poison);
    }
}
