//! `lacuna symbols fetch`, `lacuna profile export` and `lacuna profile import`: PDBs, and what they say.

use serde_json::{Value, json};

use super::Out;
use super::cli::{ProfileExport, ProfileImport, SymbolsFetch};
use super::terminal::Terminal;
use crate::failure::Failure;
use crate::ops::symbols;
use crate::os::windows::store::Miss;

/// Runs `lacuna symbols fetch`.
pub(super) fn fetch(arguments: &SymbolsFetch, out: Out) -> Result<Value, Failure> {
    let sources = (&arguments.symbols).into();
    let (key, hit) = symbols::fetch(&arguments.what, &sources, &mut Terminal::new(out))?;
    out.line(format!("PDB         {}", hit.file.display()));
    out.line(format!("from        {}", hit.from));
    Ok(json!({
        "symbol_path": key.path(),
        "file": hit.file.display().to_string(),
        "from": hit.from,
        "asked_in_vain": misses_json(&hit.misses),
    }))
}

/// Runs `lacuna profile export`.
pub(super) fn export(arguments: &ProfileExport, out: Out) -> Result<Value, Failure> {
    let sources = (&arguments.symbols).into();
    let path = symbols::export(&arguments.what, &sources, &arguments.out, &mut Terminal::new(out))?;
    out.line(format!("written     {}", arguments.out.display()));
    Ok(json!({ "written": arguments.out.display().to_string(), "symbol_path": path }))
}

/// Runs `lacuna profile import`.
pub(super) fn import(arguments: &ProfileImport, out: Out) -> Result<Value, Failure> {
    let (file, key) = symbols::import(&arguments.file, &arguments.layouts)?;
    out.line(format!("kept        {}", file.display()));
    Ok(json!({ "kept": file.display().to_string(), "symbol_path": key.path() }))
}

fn misses_json(misses: &[Miss]) -> Value {
    misses
        .iter()
        .map(|miss| json!({ "place": miss.place, "why": miss.why }))
        .collect()
}
