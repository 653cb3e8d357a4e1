//! Guests and hosts that the engine is not safe for: each is refused, with the reason.

use std::fs;
use std::time::Duration;

use lacuna::xen::lab::provoke::{EmptyDomain, LogDirty};
use lacuna_guest::Task;

use crate::engine::{Direct, refused};
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::Host;
use crate::tool::REFUSED;

/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(180);
/// Where a good profile is kept for guests that do not run.
const PROFILE: &str = "/root/good.profile";
/// Memory of a guest that is only to be refused, in MiB: Debian's kernel needs more than 64 to be loaded.
pub(super) const SMALL_MIB: u32 = 128;

/// A refusal as it must look.
pub(super) struct Refusal {
    /// `lacuna`'s exit status.
    pub(super) status: i32,
    /// Words of its message.
    pub(super) words: &'static str,
    /// The figure that tells the whole message.
    pub(super) figure: &'static str,
}

/// A refusal as unsafe.
const fn unsafe_for(figure: &'static str, words: &'static str) -> Refusal {
    Refusal {
        status: REFUSED,
        words,
        figure,
    }
}

/// What a plain host can be brought to: a guest with populate-on-demand memory, and one whose writes are
/// tracked.
pub(crate) fn plain_host(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&Plan::stock("normal", "6.12"))?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    host.lacuna(&["attach", guest.name])?;

    // Tracked from now on, as by a migration: still scanned (a migration wants to know), and not
    // shared.
    let direct = Direct::open(guest.domain)?;
    direct.set_log_dirty(LogDirty::On)?;
    host.lacuna(&["scan", guest.name])?;
    check(
        host,
        &["dedup", guest.name],
        &unsafe_for("log_dirty", "being tracked"),
    )?;
    let shared = host.lacuna(&["status", guest.name])?.number("shared")?;
    equal("pages shared while writes are tracked", &0, &shared)?;
    direct.set_log_dirty(LogDirty::Off)?;
    let shared = host.lacuna(&["dedup", guest.name])?.number("shared")?;
    ensure(shared > 0, "pages shared afterwards", "more than none", "none")?;
    guest.check_health()?;
    keep_profile(&guest)?;
    guest.destroy(host)?;
    refused_while_empty(
        host,
        EmptyDomain::Pv,
        &unsafe_for("pv", "not an HVM or PVH guest"),
    )?;
    refused_while_empty(host, EmptyDomain::Pvh, &unsafe_for("no_vcpu", "virtual CPU"))?;

    let on_demand = Plan {
        mib: 64,
        configuration: "maxmem=128",
        ..Plan::stock("demand", "6.12")
    };
    refused_while_stopped(
        host,
        &on_demand,
        &unsafe_for("populate_on_demand", "populate-on-demand"),
    )
}

/// What only Intel's processors offer in Xen: a guest that may run nested guests, and one that uses altp2m.
pub(crate) fn on_ept(host: &mut Host) -> Result<()> {
    let nested = Plan {
        mib: SMALL_MIB,
        configuration: "nestedhvm=1",
        ..Plan::stock("nested", "6.12")
    };
    refused_while_stopped(host, &nested, &unsafe_for("nested", "nested guests"))?;
    let views = Plan {
        mib: SMALL_MIB,
        configuration: "altp2m=\"external\"",
        ..Plan::stock("views", "6.12")
    };
    host.xl(&["create", "-q", "-p", &views.write()?])?;
    let text = host.xl(&["domid", views.name])?;
    let domain = text
        .trim()
        .parse()
        .map_err(|_| differs("`xl domid`", "a number", &text))?;
    Direct::open(domain)?.enable_altp2m()?;
    check(
        host,
        &["attach", "--profile", PROFILE, views.name],
        &unsafe_for("altp2m", "altp2m"),
    )?;
    host.xl(&["destroy", views.name]).map(drop)
}

/// A host with an IOMMU: a domain to which devices may be assigned.
pub(crate) fn with_iommu(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&Plan::stock("normal", "6.12"))?;
    host.lacuna(&["attach", guest.name])?;
    keep_profile(&guest)?;
    guest.check_health()?;
    guest.destroy(host)?;
    refused_while_empty(
        host,
        EmptyDomain::PvhWithIommu,
        &unsafe_for("passthrough", "may be, assigned to the domain"),
    )
}

/// A PVH dom0: no guest can be shared.
pub(crate) fn pvh_dom0(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&Plan::stock("normal", "6.12"))?;
    check(
        host,
        &["attach", guest.name],
        &unsafe_for("pvh_dom0", "Dom0 is a PVH domain"),
    )?;
    guest.check_health()
}

/// Keeps the profile of `guest` for [`refused_while_stopped`].
pub(super) fn keep_profile(guest: &Guest) -> Result<()> {
    let direct = Direct::open(guest.domain)?;
    let profile = direct.engine.get_profile().map_err(|error| refused(&error))?;
    Ok(fs::write(PROFILE, profile)?)
}

/// Creates a guest, does not let it run, and looks that the kept profile is refused for it.
pub(super) fn refused_while_stopped(host: &mut Host, plan: &Plan, refusal: &Refusal) -> Result<()> {
    all_refused_while_stopped(host, plan, &[&["attach", "--profile", PROFILE]], refusal)
}

/// Creates a guest, does not let it run, and looks that each of `commands` is refused for it.
pub(super) fn all_refused_while_stopped(
    host: &mut Host,
    plan: &Plan,
    commands: &[&[&str]],
    refusal: &Refusal,
) -> Result<()> {
    host.note(&format!("creating {} ({})", plan.name, plan.configuration))?;
    host.xl(&["create", "-q", "-p", &plan.write()?])?;
    for command in commands {
        check(host, &[*command, &[plan.name]].concat(), refusal)?;
    }
    host.xl(&["destroy", plan.name]).map(drop)
}

/// Makes an empty domain, and looks that the kept profile is refused for it.
fn refused_while_empty(host: &mut Host, kind: EmptyDomain, refusal: &Refusal) -> Result<()> {
    host.note(&format!("an empty domain: {kind:?}"))?;
    let empty = Direct::with_empty(kind)?;
    let checked = check(host, &["attach", "--profile", PROFILE, &empty.number()], refusal);
    empty.destroy()?;
    checked
}

/// Runs `lacuna`, which must refuse and say why.
fn check(host: &mut Host, arguments: &[&str], refusal: &Refusal) -> Result<()> {
    let answer = host.ask_lacuna(arguments)?;
    let why = answer
        .body
        .get("error")
        .and_then(|text| text.as_str())
        .unwrap_or_default()
        .to_owned();
    host.figure(refusal.figure, why.clone())?;
    equal(
        &format!("exit status of lacuna {}", arguments.join(" ")),
        &refusal.status,
        &answer.status,
    )?;
    ensure(
        why.contains(refusal.words),
        "why it was refused",
        refusal.words,
        &why,
    )
}
