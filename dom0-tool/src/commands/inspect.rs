//! `lacuna inspect`: what a Windows kernel's executable or PDB says.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Out;
use super::cli::Inspect;
use crate::failure::Failure;
use crate::ops::inspect::{KernelFile, inspect};
use crate::os::windows::pdb::PdbFacts;
use crate::os::windows::pdb::types::{Field, find};
use crate::os::windows::pe::{FileLayout, Machine, PeImage};
use crate::os::windows::symbol_key::{PdbName, Signature, SymbolKey};

pub(super) fn run(arguments: &Inspect, out: Out) -> Result<Value, Failure> {
    let path = &arguments.file;
    Ok(match inspect(path)? {
        KernelFile::Pdb(facts) => {
            show_pdb(path, &facts, out);
            pdb_json(path, &facts)
        }
        KernelFile::Executable(image, layout) => {
            show_pe(&image, out);
            pe_json(&image, layout)
        }
    })
}

fn show_pe(image: &PeImage, out: Out) {
    out.line(format!(
        "executable  {}, base {:#x}, {} bytes in memory, {} sections",
        image.machine.name(),
        image.image_base,
        image.size,
        image.sections.len()
    ));
    if let Some(name) = &image.export_name {
        out.line(format!("exports as  {name}"));
    }
    match &image.debug {
        None => match image.damaged_record {
            Some(why) => out.line(format!(
                "PDB         none named: its debug record is damaged, {why}"
            )),
            None => out.line("PDB         none named: it has no debug record"),
        },
        Some(record) => match record.key() {
            Ok(key) => show_key(&key, out),
            Err(error) => out.line(format!("PDB         not usable: {error}")),
        },
    }
}

fn show_key(key: &SymbolKey, out: Out) {
    out.line(format!("PDB         {}", key.name.as_str()));
    match key.signature {
        Signature::Guid(guid) => out.line(format!("GUID        {guid}")),
        Signature::TimeStamp(stamp) => out.line(format!("time stamp  {stamp:08X}")),
    }
    out.line(format!("age         {}", key.age));
    out.line(format!("store path  {}", key.path()));
}

fn pe_json(image: &PeImage, layout: FileLayout) -> Value {
    let key = image.debug.as_ref().and_then(|record| record.key().ok());
    let signature = image.debug.as_ref().map(|record| record.signature);
    json!({
        "kind": "pe",
        "arch": image.machine.name(),
        "layout": match layout {
            FileLayout::OnDisk => "file",
            FileLayout::Mapped => "mapped",
        },
        "image_base": image.image_base,
        "image_size": image.size,
        "time_stamp": image.time_stamp,
        "export_name": image.export_name,
        "guid": match signature {
            Some(Signature::Guid(guid)) => Some(guid.to_string()),
            _ => None,
        },
        "signature": match signature {
            Some(Signature::TimeStamp(stamp)) => Some(format!("{stamp:08X}")),
            _ => None,
        },
        "age": image.debug.as_ref().map(|record| record.age),
        "damaged_record": image.damaged_record,
        "pdb_name": key.as_ref().map(|key| key.name.as_str()),
        "pdb_path": image.debug.as_ref().map(|record| record.path.as_str()),
        "symbol_path": key.as_ref().map(SymbolKey::path),
        "sections": image.sections.iter().map(|section| json!({
            "name": section.name,
            "rva": section.rva,
            "size": section.size,
        })).collect::<Vec<_>>(),
    })
}

/// Returns the key of the PDB at `path`: a PDB does not hold its own name, so that is the file's.
fn pdb_key(path: &Path, facts: &PdbFacts) -> Option<SymbolKey> {
    let name = PdbName::from_path(path.file_name()?.to_str()?).ok()?;
    Some(SymbolKey {
        name,
        signature: Signature::Guid(facts.identity.guid),
        age: facts.identity.age,
    })
}

fn show_pdb(path: &Path, facts: &PdbFacts, out: Out) {
    match pdb_key(path, facts) {
        Some(key) => show_key(&key, out),
        None => out.line(format!("GUID        {}", facts.identity.guid)),
    }
    match facts.mmpfn_size {
        Some(size) => out.line(format!("_MMPFN      {size} bytes")),
        None => out.line("_MMPFN      not in it: this is not the PDB of a Windows kernel"),
    }
    for (name, field) in members(&facts.fields) {
        out.line(format!(
            "  {name:24} byte {:2}, {} bytes, bits {} to {}",
            field.offset,
            field.storage_bytes,
            field.bit,
            (u64::from(field.bit) + field.width).saturating_sub(1)
        ));
    }
    if let Some(offset) = facts.zeroed_total {
        out.line(format!("zeroed      counted at byte {offset} of _MI_PARTITION"));
    }
    for (name, value) in &facts.lists {
        out.line(format!("list {value:2}     {name}"));
    }
    for (name, rva) in &facts.rva {
        out.line(format!("{rva:#010x}  {name}"));
    }
}

/// Members by their own name; by their path where a name stands for several places.
fn members(fields: &[Field]) -> Vec<(String, &Field)> {
    let mut members: Vec<(String, &Field)> = Vec::new();
    for field in fields {
        let name = match find(fields, field.name()) {
            Ok(_) => field.name().to_owned(),
            Err(_) => field.dotted(),
        };
        if !members.iter().any(|(known, _)| *known == name) {
            members.push((name, field));
        }
    }
    members
}

fn pdb_json(path: &Path, facts: &PdbFacts) -> Value {
    let key = pdb_key(path, facts);
    let fields: Map<String, Value> = members(&facts.fields)
        .into_iter()
        .map(|(name, field)| {
            let value = json!({
                "path": field.dotted(),
                "offset": field.offset,
                "storage_bytes": field.storage_bytes,
                "bit": field.bit,
                "width": field.width,
            });
            (name, value)
        })
        .collect();
    json!({
        "kind": "pdb",
        "arch": facts.machine.map(Machine::name),
        "guid": facts.identity.guid.to_string(),
        "age": facts.identity.age,
        "info_age": facts.identity.info_age,
        "pdb_name": key.as_ref().map(|key| key.name.as_str()),
        "symbol_path": key.as_ref().map(SymbolKey::path),
        "type_version": facts.type_version,
        "mmpfn_size": facts.mmpfn_size,
        "fields": fields,
        "lists": facts.lists,
        "zeroed_total": facts.zeroed_total,
        "rva": facts.rva,
    })
}
