//! Profiles and layouts, as text and as JSON.

use lacuna_core::{MemoryMap, Profile};
use serde_json::{Value, json};

use crate::commands::Out;
use crate::hex::hexadecimal;
use crate::os::linux::layout::Layout;
use crate::os::linux::marks::describe;

/// Renders a profile as JSON. Addresses are strings, since JSON numbers lose bits.
pub(crate) fn profile_json(profile: &Profile) -> Value {
    let hex = |value: u64| format!("{value:#x}");
    let identity = &profile.identity;
    json!({
        "kind": "profile",
        "release": profile.kernel.release.as_str(),
        "layout": hexadecimal(&profile.kernel.layout),
        "page_table_root": hex(profile.root.get()),
        "page_table_levels": format!("{:?}", profile.levels).to_lowercase(),
        "memory_map": memory_map_json(profile),
        "descriptor_bytes": profile.descriptor_bytes,
        "predicate": describe(&profile.free.predicate),
        "conditions": profile.free.conditions.iter().map(describe).collect::<Vec<_>>(),
        "order": profile.free.blocks.map(|blocks| json!({
            "offset": blocks.order.offset, "width": blocks.order.width,
        })),
        "max_order": profile.free.max_order().get(),
        "bytes": format!("{:?}", profile.free.bytes),
        "contents": format!("{:?}", profile.contents),
        "zones": profile.zones.iter().map(|zone| hex(zone.array.get())).collect::<Vec<_>>(),
        "identity": {
            "idt_base": hex(identity.idt_base),
            "idt_limit": hex(u64::from(identity.idt_limit)),
            "lstar": hex(identity.lstar),
            "root_slots": identity.root_slots.iter().map(|slot| json!({
                "index": slot.index, "entry": hex(slot.entry),
            })).collect::<Vec<_>>(),
            "sysenter_eip": hex(identity.sysenter_eip),
            "gate": identity.gate.map(|gate| json!({ "vector": gate.vector, "handler": hex(gate.handler.get()) })),
            "anchors": identity.anchors.iter().map(|anchor| json!({
                "at": hex(anchor.at.get()), "physical": hex(anchor.physical.get()),
            })).collect::<Vec<_>>(),
            "boot_value_at": identity.boot_value.map(|drawn| hex(drawn.at.get())),
        },
    })
}

/// Returns where descriptors lie, as JSON.
fn memory_map_json(profile: &Profile) -> Value {
    let hex = |value: u64| format!("{value:#x}");
    match profile.memory_map {
        MemoryMap::Vmemmap { base } => json!({ "vmemmap": hex(base.get()) }),
        MemoryMap::Extents => json!({
            "extents": profile.extents.iter().map(|extent| json!({
                "first": extent.first.get(), "count": extent.count, "array": hex(extent.array.get()),
            })).collect::<Vec<_>>(),
        }),
        MemoryMap::Sections(sections) => json!({
            "sections": {
                "table": hex(sections.table.get()),
                "per_root": sections.per_root,
                "count": sections.count,
                "section_bits": sections.section_bits,
            },
        }),
        _ => Value::Null,
    }
}

/// Shows a layout.
pub(crate) fn show_layout(layout: &Layout, out: Out) {
    out.line(format!(
        "layout      {} of Linux {}",
        hexadecimal(&layout.id()),
        layout.release
    ));
    out.line(format!("headers     {}", layout.headers));
    out.line(format!("descriptor  {} bytes", layout.descriptor_bytes));
    out.line(format!("free        {}", describe(&layout.free.predicate)));
    for condition in &layout.free.conditions {
        out.line(format!("and         {}", describe(condition)));
    }
    if let Some(blocks) = layout.free.blocks {
        out.line(format!(
            "order       the {} byte(s) at {}, at most {}",
            blocks.order.width,
            blocks.order.offset,
            blocks.max_order.get()
        ));
    }
    out.line(format!(
        "proof       never differed from the kernel's own PageBuddy on {} descriptors, {} of them free",
        layout.proof.descriptors, layout.proof.free
    ));
    for (name, known) in &layout.facts {
        out.line(format!("fact        {name} = {}", known.value));
    }
}

/// Renders a layout as JSON.
pub(crate) fn layout_json(layout: &Layout) -> Value {
    let mut value = serde_json::to_value(layout).unwrap_or(Value::Null);
    value["kind"] = json!("layout");
    value["id"] = json!(hexadecimal(&layout.id()));
    value["predicate"] = json!(describe(&layout.free.predicate));
    value
}

/// Shows a profile of so many bytes.
pub(crate) fn show_profile(profile: &Profile, bytes: usize, out: Out) -> Value {
    let value = profile_json(profile);
    out.line(format!("profile     {bytes} bytes"));
    if let Value::Object(members) = &value {
        for (name, member) in members.iter().filter(|(name, _)| *name != "kind") {
            let text = member.as_str().map_or_else(|| member.to_string(), str::to_owned);
            out.line(format!("{name:17} {text}"));
        }
    }
    value
}
