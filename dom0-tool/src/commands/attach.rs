//! `lacuna attach`.

use serde_json::{Value, json};

use super::scan::{patiently, scanned_json, show_scanned};
use super::{Out, identify, profile, progress, windows};
use crate::commands::cli::Attach;
use crate::failure::{Class, Failure};
use crate::ops::guest::{Live, cpus_of, identify_kernel, open_domain};
use crate::ops::migration;
use crate::ops::paused::PausedGuest;
use crate::xen::engine::Scanned;

pub(super) fn run(arguments: &Attach, out: Out) -> Result<Value, Failure> {
    attach(arguments, &open_domain(&arguments.domain)?, out)
}

/// Attaches a domain that is open. It has no profile when this fails.
pub(crate) fn attach(arguments: &Attach, live: &Live, out: Out) -> Result<Value, Failure> {
    out.line(format!("guest       {}", live.title()));
    let attached = give_profile(arguments, live, out);
    // A migration of the guest tells it: that everything is sent then has a reason that nobody else knows.
    let kept = match &attached {
        Ok(_) => migration::forget_refusal(&live.domain.info),
        Err(failure) if failure.class == Class::Refused => {
            migration::keep_refusal(&live.domain.info, &failure.what)
        }
        Err(_) => Ok(()),
    };
    if let Err(error) = kept {
        out.line(format!("a migration's log will not tell the reason: {error}"));
    }
    attached
}

/// Builds the profile, hands it over, and has it held against the guest's own counters.
fn give_profile(arguments: &Attach, live: &Live, out: Out) -> Result<Value, Failure> {
    let encoded = match &arguments.profile {
        Some(file) => profile::read_profile_file(file)?,
        None => match windows::attach(live, &arguments.layout, out)? {
            Some(encoded) => encoded,
            None => build(arguments, live, out)?,
        },
    };
    // Decoded here too, so that what is wrong with a file is said without the hypervisor's log.
    let counted = !profile::decode(&encoded)?.zones.is_empty();
    live.engine.set_profile(&encoded)?;
    let admitted = admit(arguments, live).and_then(|scanned| Ok((scanned, live.engine.statistics()?)));
    let (scanned, statistics) = match admitted {
        Ok(known) => known,
        Err(error) => {
            // A profile that was refused is of no use: take it away. The refusal is what matters.
            let _ = live.engine.clear_profile();
            return Err(error);
        }
    };
    show_scanned(&scanned, out);
    if counted {
        out.line(format!(
            "admitted    the scan agrees with the guest's own counters ({} to {})",
            statistics.guest_free_before.min(statistics.guest_free_after),
            statistics.guest_free_before.max(statistics.guest_free_after)
        ));
    } else {
        out.line("admitted    the kernel counts nothing; pages from all over what the scan found are zero");
    }
    out.line(format!("next        lacuna dedup {}", arguments.domain));
    Ok(json!({
        "domain": live.domain.id.get(),
        "name": live.domain.name,
        "state": "admitted",
        "counted": counted,
        "profile_bytes": encoded.len(),
        "guest_free_before": statistics.guest_free_before,
        "guest_free_after": statistics.guest_free_after,
        "scan": scanned_json(&scanned),
    }))
}

fn build(arguments: &Attach, live: &Live, out: Out) -> Result<Vec<u8>, Failure> {
    let cpus = cpus_of(&live.engine.registers()?);
    let mut memory = live.memory()?;
    let kernel = identify_kernel(&mut memory, &cpus)?;
    identify::show(&kernel, out);
    let built = profile::make(&mut memory, &kernel, &cpus, &arguments.layout, out)?;
    if let Some(missing) = built.unusable {
        return Err(Failure::new(
            Class::Refused,
            missing,
            "a guest that still boots may have it later; else give the kernel's real System.map with --system-map (Debian: in the package linux-image-RELEASE-dbg) and its headers",
        ));
    }
    profile::show_built(&built, out);
    profile::encode(&built.profile)
}

fn admit(arguments: &Attach, live: &Live) -> Result<Scanned, Failure> {
    let spinner = progress::spinner("scanning");
    let outcome = patiently(|| {
        // Anew for each try: it goes on for a moment between two.
        let _paused = arguments.paused.then(|| PausedGuest::pause(live)).transpose()?;
        Ok(live.engine.scan()?)
    });
    spinner.finish_and_clear();
    outcome
}
