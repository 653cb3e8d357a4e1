//! Windows kernels, their profiles and their scans, as text and as JSON.

use std::collections::BTreeMap;

use lacuna_core::{OfflineScan, PagingLevels, Predicate};
use serde_json::{Value, json};

use super::merge;
use crate::commands::{Out, words::pages};
use crate::ops::scan::DumpScan;
use crate::os::windows::locate::Located;
use crate::os::windows::pdb::PdbFacts;
use crate::os::windows::profile::WindowsProfile;
use crate::os::windows::symbol_key::Signature;

/// Shows a kernel and what confirms it.
pub(super) fn show_kernel(kernel: &Located, out: Out) {
    let name = kernel.image.export_name.as_deref().unwrap_or("name paged out");
    out.line(format!(
        "kernel      Windows, {name}, {}, {}",
        arch(kernel),
        kernel.key.id()
    ));
    out.line(format!(
        "image       {} bytes at {:#x}",
        kernel.image.size,
        kernel.base.get()
    ));
    out.line(format!(
        "page tables {:#x}, {}",
        kernel.space.root.get(),
        paging(kernel)
    ));
    out.line(format!("PDB         {}", kernel.key.path()));
    for line in &kernel.confirmed {
        out.line(format!("confirmed   {line}"));
    }
}

pub(super) fn kernel_json(kernel: &Located) -> Value {
    let guid = match kernel.key.signature {
        Signature::Guid(guid) => Some(guid.to_string()),
        Signature::TimeStamp(_) => None,
    };
    json!({
        "os": "windows",
        "kernel": format!("{}/{}", kernel.key.name.as_str(), kernel.key.id()),
        "arch": arch(kernel),
        "paging": paging(kernel),
        "guid": guid,
        "age": kernel.key.age,
        "pdb_name": kernel.key.name.as_str(),
        "symbol_path": kernel.key.path(),
        "export_name": kernel.image.export_name,
        "image_base": format!("{:#x}", kernel.base.get()),
        "image_size": kernel.image.size,
        "page_table_root": format!("{:#x}", kernel.space.root.get()),
        "page_table_levels": format!("{:?}", kernel.space.levels).to_lowercase(),
        "confirmed": kernel.confirmed,
    })
}

fn arch(kernel: &Located) -> &'static str {
    kernel.image.machine.name()
}

fn paging(kernel: &Located) -> &'static str {
    match kernel.space.levels {
        PagingLevels::Two => "2-level",
        PagingLevels::Pae => "pae",
        PagingLevels::Four => "4-level",
        PagingLevels::Five => "5-level",
    }
}

/// Shows what was built.
pub(super) fn show_built(built: &WindowsProfile, out: Out) {
    out.line(format!(
        "entries     {} bytes each, from {:#x}",
        built.profile.descriptor_bytes,
        built.resolved.pfn_database.get()
    ));
    out.line(format!(
        "memory      {} in {} runs",
        pages(total(built)),
        built.resolved.runs.len()
    ));
    if built.left_out > 0 {
        out.line(format!(
            "left out    {} in the smallest runs",
            pages(built.left_out)
        ));
    }
    for (what, source) in &built.resolved.sources {
        out.line(format!("found       {what}: {source}"));
    }
}

fn total(built: &WindowsProfile) -> u64 {
    built.resolved.runs.iter().map(|run| run.count).sum()
}

pub(super) fn built_json(built: &WindowsProfile, facts: &PdbFacts) -> Value {
    let free = &built.profile.free;
    let test = |predicate: &Predicate| {
        json!({
            "offset": predicate.field.offset,
            "width": predicate.field.width,
            "mask": format!("{:#x}", predicate.mask),
            "expected": format!("{:#x}", predicate.expected),
        })
    };
    let sources: BTreeMap<&str, &str> = built
        .resolved
        .sources
        .iter()
        .map(|(what, source)| (*what, source.as_str()))
        .chain([("_MMPFN", "PDB"), ("_MMLISTS", "PDB")])
        .collect();
    json!({
        "memory_model": "pfn_database",
        "sources": sources,
        "pages": total(built),
        "pfn_database": format!("{:#x}", built.resolved.pfn_database.get()),
        "mmpfn_size": facts.mmpfn_size,
        "lists": facts.lists,
        "runs": built.resolved.runs.iter().map(|run| json!([run.first, run.count])).collect::<Vec<_>>(),
        "left_out": built.left_out,
        "free_rule": {
            "mark": test(&free.predicate),
            "conditions": free.conditions.iter().map(test).collect::<Vec<_>>(),
            "bytes": "zero",
        },
    })
}

/// Shows the figures of a scan.
pub(super) fn show_scanned(scanned: &OfflineScan, out: Out) {
    out.line(format!("free        {}", pages(scanned.free())));
    out.line(format!(
        "not zero    {} that the entries call zeroed",
        pages(scanned.not_zero)
    ));
    if scanned.absent > 0 {
        out.line(format!(
            "absent      {} of those are not in the dump",
            pages(scanned.absent)
        ));
    }
    out.line(format!("in use      {}", pages(scanned.step.in_use)));
    if let Some(counted) = scanned.counted {
        out.line(format!("counters    {} by the guest's own", pages(counted.pages)));
    }
}

/// Returns what is particular to a scan of such a guest's dump.
pub(super) fn scan_json(
    scan: &DumpScan,
    kernel: &Located,
    built: &WindowsProfile,
    facts: &PdbFacts,
) -> Value {
    let mut answer = kernel_json(kernel);
    merge(&mut answer, built_json(built, facts));
    let scanned = &scan.scanned;
    merge(
        &mut answer,
        json!({
            "free_pages": scanned.free(),
            "guest_free_pages": scanned.counted.map(|counted| counted.pages),
            "not_zero": scanned.not_zero,
            "absent": scanned.absent,
            "free": scanned.free(),
            "in_use": scanned.step.in_use,
            "no_descriptor": scanned.step.no_descriptor,
            "unknown": scanned.step.unknown,
            "verdict": scan.verdict.name(),
            "dump": { "format": scan.format, "remarks": scan.remarks },
            "bitmap_frames": scan.frames,
        }),
    );
    answer
}
