//! What must be refused: damaged profiles, and guests that the engine is not safe for.

use std::time::Duration;

use lacuna::xen::engine::EngineError;
use lacuna_core::MAX_PROFILE_BYTES;

use crate::engine::{Direct, refused};
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::Plan;
use crate::host::Host;
use crate::tool::REFUSED;

/// Profiles with every bit flipped, cut at every length, too long: the hypervisor refuses each with a code
/// that the tool knows, lives, and keeps the good one.
pub(crate) fn damaged_profiles(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&Plan::stock("hostile", "6.12"))?;
    host.lacuna(&["attach", guest.name])?;
    let direct = Direct::open(guest.domain)?;
    let good = direct.engine.get_profile().map_err(|error| refused(&error))?;
    let mut damaged = Vec::new();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        damaged.push((format!("bit {bit} flipped"), bytes));
    }
    for length in 0..good.len() {
        damaged.push((format!("cut to {length} bytes"), good[..length].to_vec()));
    }
    for length in [good.len() + 1, MAX_PROFILE_BYTES, MAX_PROFILE_BYTES + 1, 1 << 20] {
        let mut bytes = good.clone();
        bytes.resize(length, 0xff);
        damaged.push((format!("stretched to {length} bytes"), bytes));
    }
    host.figure("damaged_profiles", damaged.len() as u64)?;
    for (what, bytes) in &damaged {
        match direct.engine.set_profile(bytes) {
            // A number that this version of the tool does not know could not be explained to anybody.
            Err(EngineError::Refused { .. }) => {}
            other => {
                let seen = other.map_or_else(|error| error.to_string(), |()| "accepted".to_owned());
                return Err(differs(
                    &format!("the profile with {what}"),
                    "a refusal with its reason",
                    &seen,
                ));
            }
        }
    }
    let kept = direct.engine.get_profile().map_err(|error| refused(&error))?;
    ensure(
        kept == good,
        "the profile after the refusals",
        "the good one",
        "another",
    )?;
    host.lacuna(&["dedup", guest.name])?;
    guest.check_health()
}

/// A guest that checks its free pages for a pattern would find zeroes: it is refused, and told why.
pub(crate) fn poisoned(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&Plan {
        extra: "page_poison=1",
        ..Plan::stock("poison", "6.12")
    })?;
    let answer = host.ask_lacuna(&["attach", guest.name])?;
    equal(
        "exit status of `lacuna attach` for a guest with page_poison=1",
        &REFUSED,
        &answer.status,
    )?;
    let why = answer
        .body
        .get("error")
        .and_then(|text| text.as_str())
        .unwrap_or_default();
    ensure(
        why.contains("poison"),
        "why it was refused",
        "a word about poisoning",
        why,
    )?;
    guest.check_health()
}

/// What has no engine: dom0 itself, and a domain that does not exist.
pub(crate) fn no_guest(host: &mut Host) -> Result<()> {
    let own = host.ask_lacuna(&["attach", "0"])?;
    equal("exit status of `lacuna attach 0`", &REFUSED, &own.status)?;
    let nobody = host.ask_lacuna(&["attach", "nobody"])?;
    equal("exit status of `lacuna attach` for no domain", &4, &nobody.status)?;
    // Xen still answers, and gave nothing away meanwhile.
    std::thread::sleep(Duration::from_millis(100));
    equal("domains", &vec!["Domain-0".to_owned()], &host.domains()?)
}
