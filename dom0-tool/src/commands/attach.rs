//! `lacuna attach`.

use serde_json::{Value, json};

use super::Out;
use super::cli::Attach;
use super::render::scan::scanned_json;
use super::terminal::Terminal;
use crate::failure::Failure;
use crate::ops::attach::{Options, attach};
use crate::ops::guest::Live;

pub(super) fn run(arguments: &Attach, out: Out) -> Result<Value, Failure> {
    let live = Live::open(&arguments.domain)?;
    out.line(format!("guest       {}", live.title()));
    let options = Options {
        sources: (&arguments.layout).into(),
        profile: arguments.profile.clone(),
        paused: arguments.paused,
    };
    let attached = attach(&live, &options, &mut Terminal::new(out))?;
    let statistics = &attached.statistics;
    if attached.is_counted {
        out.line(format!(
            "admitted    the scan agrees with the guest's own counters ({} to {})",
            statistics.guest_free_before.min(statistics.guest_free_after),
            statistics.guest_free_before.max(statistics.guest_free_after)
        ));
    } else {
        out.line(
            "admitted    the kernel has no counter of free pages; a sample of what the scan found is zero",
        );
    }
    out.line(format!("next        lacuna dedup {}", arguments.domain));
    Ok(json!({
        "domain": live.domain.id.get(),
        "name": live.domain.name,
        "state": "admitted",
        "counted": attached.is_counted,
        "profile_bytes": attached.profile_bytes,
        "guest_free_before": statistics.guest_free_before,
        "guest_free_after": statistics.guest_free_after,
        "scan": scanned_json(&attached.scanned),
    }))
}
