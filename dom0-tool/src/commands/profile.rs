//! `lacuna profile build` and `lacuna profile show`.

use std::fs;
use std::io::Read;
use std::path::Path;

use lacuna_core::{GuestMemory, MAX_PROFILE_BYTES, MemoryMap, Profile};
use serde_json::{Value, json};

use super::{Out, identify, pages};
use crate::commands::cli::{LayoutSource, ProfileBuild, ProfileShow, SourceChoice};
use crate::failure::{Class, Failure};
use crate::hex::hexadecimal;
use crate::ops::guest::{cpus_of, from_headers, identify_kernel, open_domain, open_dump, wanted_layout};
use crate::os::linux::facts::{Facts, describe};
use crate::os::linux::identify::{Identified, architecture, paging_name};
use crate::os::linux::layout::Layout;
use crate::os::linux::profile::{Built, Sources, build as build_profile};
use crate::source::Cpu;

/// `lacuna profile build`.
pub(super) fn build(arguments: &ProfileBuild, out: Out) -> Result<Value, Failure> {
    let (built, kernel) = match (&arguments.domain, &arguments.dump.dump) {
        (Some(domain), _) => {
            let live = open_domain(domain)?;
            let cpus = cpus_of(&live.engine.registers()?);
            let mut memory = live.memory()?;
            let kernel = identify_kernel(&mut memory, &cpus)?;
            (make(&mut memory, &kernel, &cpus, &arguments.layout, out)?, kernel)
        }
        (None, Some(file)) => {
            let mut memory = open_dump(file, &arguments.dump, out)?;
            let cpus = memory.cpus.clone();
            let kernel = identify_kernel(&mut memory, &cpus)?;
            (make(&mut memory, &kernel, &cpus, &arguments.layout, out)?, kernel)
        }
        _ => return build_layout(arguments, out),
    };
    identify::show(&kernel, out);
    show_built(&built, out);
    if let Some(file) = &arguments.out {
        fs::write(file, encode(&built.profile)?)
            .map_err(|error| Failure::plain(Class::Failed, format!("{}: {error}", file.display())))?;
        out.line(format!("written     {}", file.display()));
    }
    Ok(built_json(&built))
}

fn build_layout(arguments: &ProfileBuild, out: Out) -> Result<Value, Failure> {
    let Some(headers) = &arguments.layout.headers else {
        return Err(Failure::new(
            Class::NotFound,
            "neither a guest nor headers were named",
            "name a domain for its profile, or --headers DIR for a layout",
        ));
    };
    let layout = from_headers(headers, &arguments.layout, None)?;
    if let Some(file) = &arguments.out {
        layout.save(file)?;
    }
    show_layout(&layout, out);
    Ok(layout_json(&layout))
}

/// Builds the profile of an identified kernel.
pub(super) fn make<M: GuestMemory>(
    memory: &mut M,
    kernel: &Identified,
    cpus: &[Cpu],
    source: &LayoutSource,
    out: Out,
) -> Result<Built, Failure> {
    let layout = wanted_layout(source, kernel, out)?;
    let sources = Sources {
        layout: layout.as_ref(),
        vmcoreinfo: matches!(source.source, SourceChoice::Auto | SourceChoice::Vmcoreinfo),
        btf: matches!(source.source, SourceChoice::Auto | SourceChoice::Btf),
        system_map: source.system_map.as_deref(),
        config: source.config.as_deref(),
    };
    Ok(build_profile(memory, kernel, &sources, cpus)?)
}

/// The profile as the hypervisor wants it.
pub(super) fn encode(profile: &Profile) -> Result<Vec<u8>, Failure> {
    let mut buffer = vec![0; MAX_PROFILE_BYTES];
    let encoded = profile.encode(&mut buffer).map_err(|error| {
        Failure::plain(Class::Failed, format!("the profile cannot be encoded: {error:?}"))
    })?;
    Ok(encoded.to_vec())
}

/// Shows what was built.
pub(super) fn show_built(built: &Built, out: Out) {
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
        "contents    {:?} (init_on_free: {:?})",
        profile.contents, built.contents.init_on_free
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

pub(super) fn sources_json(facts: &Facts) -> Value {
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

fn built_json(built: &Built) -> Value {
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

/// A profile as JSON. Addresses are strings, since JSON numbers lose bits.
pub(super) fn profile_json(profile: &Profile) -> Value {
    let hex = |value: u64| format!("{value:#x}");
    let guard = &profile.guard;
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
        "guard": {
            "idt_base": hex(guard.idt_base),
            "idt_limit": hex(u64::from(guard.idt_limit)),
            "lstar": hex(guard.lstar),
            "root_slots": guard.root_slots.iter().map(|slot| json!({
                "index": slot.index, "entry": hex(slot.entry),
            })).collect::<Vec<_>>(),
            "sysenter_eip": hex(guard.sysenter_eip),
            "gate": guard.gate.map(|gate| json!({ "vector": gate.vector, "handler": hex(gate.handler.get()) })),
            "anchors": guard.anchors.iter().map(|anchor| json!({
                "at": hex(anchor.at.get()), "physical": hex(anchor.physical.get()),
            })).collect::<Vec<_>>(),
            "boot_value_at": guard.boot_value.map(|drawn| hex(drawn.at.get())),
        },
    })
}

/// Where descriptors lie, as JSON.
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

fn show_layout(layout: &Layout, out: Out) {
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

fn layout_json(layout: &Layout) -> Value {
    let mut value = serde_json::to_value(layout).unwrap_or(Value::Null);
    value["kind"] = json!("layout");
    value["id"] = json!(hexadecimal(&layout.id()));
    value["predicate"] = json!(describe(&layout.free.predicate));
    value
}

/// `lacuna profile show`.
pub(super) fn show(arguments: &ProfileShow, out: Out) -> Result<Value, Failure> {
    let file = Path::new(&arguments.what);
    if file.is_file() {
        let bytes = read_profile_file(file)?;
        if bytes.first() == Some(&b'{') {
            let layout = Layout::load(file)?;
            show_layout(&layout, out);
            return Ok(layout_json(&layout));
        }
        return show_profile(&bytes, out);
    }
    let live = open_domain(&arguments.what)?;
    show_profile(&live.engine.get_profile()?, out)
}

/// The bytes of a profile file, or the beginning of any other.
pub(super) fn read_profile_file(file: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error: std::io::Error| {
        let class = if error.kind() == std::io::ErrorKind::NotFound {
            Class::NotFound
        } else {
            Class::Failed
        };
        Failure::plain(class, format!("{}: {error}", file.display()))
    };
    let mut bytes = Vec::new();
    fs::File::open(file)
        .map_err(failed)?
        .take(MAX_PROFILE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

fn show_profile(bytes: &[u8], out: Out) -> Result<Value, Failure> {
    let profile = decode(bytes)?;
    let value = profile_json(&profile);
    out.line(format!("profile     {} bytes", bytes.len()));
    if let Value::Object(members) = &value {
        for (name, member) in members.iter().filter(|(name, _)| *name != "kind") {
            let text = member.as_str().map_or_else(|| member.to_string(), str::to_owned);
            out.line(format!("{name:17} {text}"));
        }
    }
    Ok(value)
}

/// Decodes and checks a profile, with the hypervisor's own words for what is wrong.
pub(super) fn decode(bytes: &[u8]) -> Result<Profile, Failure> {
    Profile::decode(bytes).map_err(|error| {
        let (status, values) = error.status();
        crate::xen::engine::EngineError::Refused { status, values }.into()
    })
}
