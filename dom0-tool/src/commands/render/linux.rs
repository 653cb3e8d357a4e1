//! Linux kernels, their profiles and their scans, as text and as JSON.

use lacuna_core::{Contents, OfflineScan};
use serde_json::{Value, json};

use super::merge;
use super::profile::profile_json;
use super::scan::{scanned_json, show_figures};
use crate::commands::{Out, words::pages};
use crate::ops::scan::DumpScan;
use crate::os::linux::facts::Facts;
use crate::os::linux::identify::{Identified, architecture, paging_name};
use crate::os::linux::marks::describe;
use crate::os::linux::other_kernels::Tie;
use crate::os::linux::profile::LinuxProfile;
use crate::xen::engine::ScanFigures;

/// Shows a kernel and what confirms it.
pub(super) fn show_kernel(found: &Identified, out: Out) {
    out.line(format!("kernel      Linux {}", found.release));
    if let Some(banner) = &found.banner {
        out.line(format!("banner      {banner}"));
    }
    if let Some(build_id) = &found.build_id {
        out.line(format!("build id    {build_id} (as VMCOREINFO says)"));
    }
    out.line(match found.note_at {
        Some(at) => format!("VMCOREINFO  at {:#x}", at.get()),
        None => "VMCOREINFO  none: told by its System.map".to_owned(),
    });
    out.line(format!(
        "page tables {:#x}, {}, {}",
        found.space.root.get(),
        paging_name(found.space.levels),
        architecture(found.space.levels)
    ));
    out.line(match found.tie {
        Tie::None => "tied by     nothing: no register says that a processor runs it".to_owned(),
        tie => format!("tied by     {} of the virtual CPUs", tie.name()),
    });
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

pub(super) fn kernel_json(found: &Identified) -> Value {
    json!({
        "os": "linux",
        "release": found.release,
        "kernel": found.release,
        "arch": architecture(found.space.levels),
        "paging": paging_name(found.space.levels),
        "banner": found.banner,
        "build_id": found.build_id,
        "vmcoreinfo_at": found.note_at.map(|at| format!("{:#x}", at.get())),
        "page_table_root": format!("{:#x}", found.space.root.get()),
        "page_table_levels": format!("{:?}", found.space.levels).to_lowercase(),
        "symbols": found.symbols.is_some(),
        "tied_by": tied_by(found),
        "confirmed": found.confirmed,
        "rejected": found.rejected.iter().map(|note| json!({
            "at": format!("{:#x}", note.at.get()),
            "release": note.release,
            "reason": note.reason.to_string(),
        })).collect::<Vec<_>>(),
    })
}

/// Returns what ties a kernel to the processors, if anything does.
fn tied_by(found: &Identified) -> Option<&'static str> {
    (found.tie != Tie::None).then(|| found.tie.name())
}

/// Shows what was built.
pub(super) fn show_built(built: &LinuxProfile, out: Out) {
    let profile = &built.profile;
    out.line(format!(
        "descriptors {} bytes each; free: {}",
        profile.descriptor_bytes,
        describe(&profile.free.predicate)
    ));
    out.line(format!(
        "memory map  {}, by {}",
        built.memory_model.name,
        built.memory_model.sources.join(", ")
    ));
    out.line(format!(
        "agreed      {} numbers that two sources or more give",
        built.agreed.len()
    ));
    for zone in &built.zones {
        out.line(format!(
            "zone        node {}, number {}: {} spanned, counters at {:#x}",
            zone.node,
            zone.index,
            zone.spanned,
            zone.counter.array.get()
        ));
    }
    out.line(format!(
        "contents    {} (init_on_free: {})",
        match profile.contents {
            Contents::DontCare => "of free pages do not matter",
            Contents::Zero => "free pages have to be zero",
        },
        match built.contents.init_on_free {
            None => "not known",
            Some(0) => "off",
            Some(_) => "on",
        }
    ));
    out.line(format!(
        "free        {} by the guest's own counters",
        pages(built.counted.pages)
    ));
    if let Some(missing) = built.unusable {
        out.line(format!(
            "note        {missing}: this profile is for looking at, not for use"
        ));
    }
    show_facts(&built.facts, out);
}

/// What each source says, side by side.
fn show_facts(facts: &Facts, out: Out) {
    let heads: Vec<String> = facts
        .sources()
        .iter()
        .map(|source| format!("{:>12}", source.name()))
        .collect();
    out.line(format!("{:50}{}", "number", heads.concat()));
    for (name, values) in facts.table() {
        let cells: Vec<String> = facts
            .sources()
            .iter()
            .map(|source| {
                values
                    .get(source)
                    .map_or_else(|| format!("{:>12}", "-"), |value| format!("{value:>12}"))
            })
            .collect();
        out.line(format!("{name:50}{}", cells.concat()));
    }
    for (source, mark) in facts.marks() {
        out.line(format!("free page, by {:12} {}", source.name(), describe(mark)));
    }
}

fn sources_json(facts: &Facts) -> Value {
    json!(
        facts
            .sources()
            .iter()
            .map(|source| source.name())
            .collect::<Vec<_>>()
    )
}

fn facts_json(facts: &Facts) -> Value {
    let mut all = serde_json::Map::new();
    for (name, values) in facts.table() {
        let by_source: serde_json::Map<String, Value> = values
            .iter()
            .map(|(source, value)| (source.name().to_owned(), json!(value)))
            .collect();
        all.insert(name.to_owned(), Value::Object(by_source));
    }
    let marks: serde_json::Map<String, Value> = facts
        .marks()
        .map(|(source, mark)| (source.name().to_owned(), json!(describe(mark))))
        .collect();
    all.insert("the mark of a free page".to_owned(), Value::Object(marks));
    Value::Object(all)
}

pub(super) fn built_json(built: &LinuxProfile) -> Value {
    let mut value = profile_json(&built.profile);
    value["agreed"] = json!(built.agreed);
    value["memory_map_sources"] = json!(built.memory_model.sources);
    value["sections_present"] = json!(built.memory_model.present);
    value["guest_free"] = json!(built.counted.pages);
    value["init_on_free"] = json!(built.contents.init_on_free);
    value["usable"] = json!(built.unusable.is_none());
    value["unusable_because"] = json!(built.unusable);
    value["arch"] = json!(architecture(built.profile.levels));
    value["paging"] = json!(paging_name(built.profile.levels));
    value["memory_model"] = json!(built.memory_model.name);
    value["sources"] = sources_json(&built.facts);
    value["facts"] = facts_json(&built.facts);
    value
}

/// Shows the figures of a scan.
pub(super) fn show_scanned(scanned: &OfflineScan, out: Out) {
    show_figures(&figures(scanned), out);
    if let Some(counted) = scanned.counted {
        out.line(format!("counters    {} by the guest's own", pages(counted.pages)));
    }
}

fn figures(scanned: &OfflineScan) -> ScanFigures {
    ScanFigures {
        free: scanned.free(),
        in_use: scanned.step.in_use,
        no_descriptor: scanned.step.no_descriptor,
        unknown: scanned.step.unknown,
    }
}

/// Returns what is particular to a scan of such a guest's dump.
pub(super) fn scan_json(scan: &DumpScan, kernel: &Identified, built: &LinuxProfile) -> Value {
    let mut answer = scanned_json(&figures(&scan.scanned));
    merge(
        &mut answer,
        json!({
            "os": "linux",
            "kernel": kernel.release,
            "arch": architecture(kernel.space.levels),
            "paging": paging_name(kernel.space.levels),
            "memory_model": built.memory_model.name,
            "sources": sources_json(&built.facts),
            "pages": scan.pages,
            "free_pages": scan.scanned.free(),
            "guest_free_pages": built.counted.pages,
            "verdict": scan.verdict.name(),
            "tied_by": tied_by(kernel),
            "dump": { "format": scan.format, "remarks": scan.remarks },
            "bitmap_frames": scan.frames,
        }),
    );
    answer
}
