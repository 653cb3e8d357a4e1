//! `lacuna identify`.

use serde_json::{Value, json};

use super::Out;
use crate::commands::cli::Identify;
use crate::failure::Failure;
use crate::ops::guest::{cpus_of, identify_kernel, open_domain, open_dump};
use crate::os::linux::identify::{Identified, architecture, paging_name};

pub(super) fn run(arguments: &Identify, out: Out) -> Result<Value, Failure> {
    let found = match (&arguments.guest.domain, &arguments.guest.dump.dump) {
        (Some(domain), _) => {
            let live = open_domain(domain)?;
            let cpus = cpus_of(&live.engine.registers()?);
            identify_kernel(&mut live.memory()?, &cpus)?
        }
        (None, Some(file)) => {
            let mut memory = open_dump(file, &arguments.guest.dump, out)?;
            let cpus = memory.cpus.clone();
            identify_kernel(&mut memory, &cpus)?
        }
        // The command line's rules leave no other case.
        _ => {
            return Err(Failure::plain(
                crate::failure::Class::Failed,
                "no guest was named",
            ));
        }
    };
    show(&found, out);
    Ok(to_json(&found))
}

/// Shows a kernel and what confirms it.
pub(super) fn show(found: &Identified, out: Out) {
    out.line(format!("kernel      Linux {}", found.release));
    if let Some(banner) = &found.banner {
        out.line(format!("banner      {banner}"));
    }
    if let Some(build_id) = &found.build_id {
        out.line(format!("build id    {build_id} (as VMCOREINFO says)"));
    }
    out.line(format!("VMCOREINFO  at {:#x}", found.note_at.get()));
    out.line(format!(
        "page tables {:#x}, {}, {}",
        found.space.root.get(),
        paging_name(found.space.levels),
        architecture(found.space.levels)
    ));
    for line in &found.confirmed {
        out.line(format!("confirmed   {line}"));
    }
    for note in &found.rejected {
        out.line(format!(
            "rejected    a note at {:#x}: {}",
            note.at.get(),
            note.reason
        ));
    }
}

pub(super) fn to_json(found: &Identified) -> Value {
    json!({
        "os": "linux",
        "release": found.release,
        "kernel": found.release,
        "arch": architecture(found.space.levels),
        "paging": paging_name(found.space.levels),
        "banner": found.banner,
        "build_id": found.build_id,
        "vmcoreinfo_at": format!("{:#x}", found.note_at.get()),
        "page_table_root": format!("{:#x}", found.space.root.get()),
        "page_table_levels": format!("{:?}", found.space.levels).to_lowercase(),
        "symbols": found.symbols.is_some(),
        "confirmed": found.confirmed,
        "rejected": found.rejected.iter().map(|note| json!({
            "at": format!("{:#x}", note.at.get()),
            "release": note.release,
            "reason": note.reason.to_string(),
        })).collect::<Vec<_>>(),
    })
}
