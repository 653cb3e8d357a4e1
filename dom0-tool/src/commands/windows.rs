//! Windows guests: identifying, profiling, attaching and scanning one, from a dump or a live domain.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lacuna_core::{Agreement, Bitmap, OfflineScan, PagingLevels, VcpuRegisters, scan_offline};
use serde_json::{Value, json};

use super::symbols::{find, read_pdb};
use super::{Out, pages, progress};
use crate::commands::cli::{Identify, LayoutSource, ProfileBuild, Scan, SymbolSource};
use crate::failure::{Class, Failure};
use crate::ops::guest::{Live, open_domain, open_dump};
use crate::os::windows::facts::KernelFacts;
use crate::os::windows::locate::{self, Candidate, LocateError, Located};
use crate::os::windows::pdb::PdbFacts;
use crate::os::windows::profile::{self, Built};
use crate::os::windows::shadowed;
use crate::source::Cpu;
use crate::source::GuestSource;
use crate::source::dump::Dump;
use crate::source::live::DomainMemory;

/// How long a moment is waited for in which a virtual CPU is in the kernel, where all are in programs on page tables
/// without it. A program that never waits is interrupted at least 64 times a second (Windows' clock).
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// Pause between two looks.
const BETWEEN_LOOKS: Duration = Duration::from_millis(2);
/// While it is not known yet which kind of guest this is, nothing is said.
const SILENT: Out = Out { json: true };

/// Where facts about a kernel may come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sources<'a> {
    /// PDBs.
    pub(super) symbols: &'a SymbolSource,
    /// Folder of imported facts.
    pub(super) layouts: &'a Path,
}

impl<'a> Sources<'a> {
    /// Those that a command line names.
    pub(super) fn of(source: &'a LayoutSource) -> Self {
        Self {
            symbols: &source.symbols,
            layouts: &source.layouts,
        }
    }
}

/// `lacuna identify`: of a Windows guest here, of any other by `linux`.
pub(super) fn identify(
    arguments: &Identify,
    out: Out,
    linux: impl FnOnce() -> Result<Value, Failure>,
) -> Result<Value, Failure> {
    let sources = Sources {
        symbols: &arguments.symbols,
        layouts: &arguments.layouts,
    };
    let shown = |kernel: &Located| {
        show(kernel, out);
        to_json(kernel)
    };
    match (&arguments.guest.domain, &arguments.guest.dump.dump) {
        (Some(domain), _) => match running(&open_domain(domain)?)? {
            Some((_, kernel, _)) => Ok(shown(&kernel)),
            None => linux(),
        },
        (None, Some(file)) => {
            let mut memory = open_dump(file, &arguments.guest.dump, SILENT)?;
            either(&mut memory, sources, out, linux, |_, kernel| Ok(shown(kernel)))
        }
        _ => linux(),
    }
}

/// `lacuna profile build`: of a Windows guest here, of any other by `linux`.
pub(super) fn build(
    arguments: &ProfileBuild,
    out: Out,
    linux: impl FnOnce() -> Result<Value, Failure>,
) -> Result<Value, Failure> {
    let sources = Sources::of(&arguments.layout);
    let file = arguments.out.as_deref();
    match (&arguments.domain, &arguments.dump.dump) {
        (Some(domain), _) => match running(&open_domain(domain)?)? {
            Some((mut memory, kernel, vcpus)) => build_from(&mut memory, &kernel, &vcpus, sources, file, out),
            None => linux(),
        },
        (None, Some(dump)) => {
            let mut memory = open_dump(dump, &arguments.dump, SILENT)?;
            let vcpus = memory.cpus.iter().map(Cpu::registers).collect::<Vec<_>>();
            either(&mut memory, sources, out, linux, |memory, kernel| {
                build_from(memory, kernel, &vcpus, sources, file, out)
            })
        }
        _ => linux(),
    }
}

/// `lacuna scan`: of a Windows guest's dump here; of any other, and of a domain, which the engine scans, by `other`.
pub(super) fn scan(
    arguments: &Scan,
    out: Out,
    other: impl FnOnce() -> Result<Value, Failure>,
) -> Result<Value, Failure> {
    let Some(dump) = &arguments.guest.dump.dump else {
        return other();
    };
    let mut memory = open_dump(dump, &arguments.guest.dump, SILENT)?;
    let vcpus = memory.cpus.iter().map(Cpu::registers).collect::<Vec<_>>();
    let sources = Sources::of(&arguments.layout);
    let bitmap = arguments.bitmap.as_deref();
    either(&mut memory, sources, out, other, |memory, kernel| {
        scan_from(memory, kernel, &vcpus, sources, bitmap, out)
    })
}

/// The profile of a live domain that runs Windows, as the engine takes it; nothing of any other domain.
pub(super) fn attach(live: &Live, source: &LayoutSource, out: Out) -> Result<Option<Vec<u8>>, Failure> {
    let Some((mut memory, kernel, vcpus)) = running(live)? else {
        return Ok(None);
    };
    show(&kernel, out);
    let (built, _) = make(&mut memory, &kernel, &vcpus, Sources::of(source), out)?;
    show_built(&built, out);
    super::profile::encode(&built.profile).map(Some)
}

/// A live domain that runs Windows: its memory, its kernel, its registers.
fn running(live: &Live) -> Result<Option<(DomainMemory, Located, Vec<VcpuRegisters>)>, Failure> {
    let mut memory = live.memory()?;
    let begun = Instant::now();
    loop {
        let vcpus = live.engine.registers()?;
        let cpus: Vec<Cpu> = vcpus.iter().map(Cpu::from_registers).collect();
        if let Some(kernel) = locate::by_registers(&mut memory, &cpus)? {
            return Ok(Some((memory, kernel, vcpus)));
        }
        if begun.elapsed() > LOOK_AGAIN || !shadowed::seems_so(&mut memory, &cpus) {
            return Ok(None);
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
}

/// Does `windows` if the virtual CPUs of a dump are in a Windows kernel; `linux` if not; and `windows` after all if that
/// fails and a search of all memory shows a Windows kernel.
fn either(
    memory: &mut Dump,
    sources: Sources<'_>,
    out: Out,
    linux: impl FnOnce() -> Result<Value, Failure>,
    windows: impl FnOnce(&mut Dump, &Located) -> Result<Value, Failure>,
) -> Result<Value, Failure> {
    let cpus = memory.cpus.clone();
    if let Some(found) = locate::by_registers(memory, &cpus)? {
        return windows(memory, &found);
    }
    let failure = match linux() {
        Err(failure) => failure,
        done => return done,
    };
    if failure.class != Class::NotFound && cpus.iter().any(Cpu::is_paging) {
        return Err(failure);
    }
    match search(memory, sources, out) {
        Ok(found) => windows(memory, &found),
        Err(other) if other.class == Class::NotFound => Err(failure),
        Err(other) if failure.class == Class::NotFound => Err(other),
        Err(_) => Err(failure),
    }
}

/// Searches all memory for a Windows kernel. Of several, the one is chosen whose own structures are in order.
fn search<M: GuestSource>(memory: &mut M, sources: Sources<'_>, out: Out) -> Result<Located, Failure> {
    let bar = progress::over_memory("searching for a Windows kernel");
    let searched = locate::by_search(memory, &mut |at, end| {
        bar.set_length(end);
        bar.set_position(at);
    });
    bar.finish_and_clear();
    let mut refused = searched.others;
    let mut good = Vec::new();
    let several = searched.kernels.len() > 1;
    for ways in searched.kernels {
        let mut judged = Vec::new();
        for kernel in ways {
            let verdict = match facts_of(&kernel, sources, true, out) {
                Ok(facts) => profile::resolve(memory, &kernel, &facts, None)
                    .map(|_| "its own MmPfnDatabase and MmPhysicalMemoryBlock are in order")
                    .map_err(|error| error.to_string()),
                // Without its PDB it can only be taken when there is no other.
                Err(_) if !several => Ok("no other image in the kernel's half calls itself a kernel"),
                Err(failure) => Err(failure.what.lines().next().unwrap_or_default().to_owned()),
            };
            judged.push((kernel, verdict));
        }
        let chosen = judged
            .iter()
            .position(|(_, verdict)| verdict.is_ok())
            .unwrap_or(0);
        if judged.is_empty() {
            continue;
        }
        let (mut kernel, verdict) = judged.swap_remove(chosen);
        match verdict {
            Ok(confirmed) => {
                kernel.confirmed.push(confirmed.to_owned());
                good.push(kernel);
            }
            Err(why) => refused.push(candidate(memory, &kernel, why)),
        }
    }
    if good.len() > 1 {
        for kernel in good.drain(..) {
            let why = "it is in order, and so is another".to_owned();
            refused.push(candidate(memory, &kernel, why));
        }
    }
    match good.pop() {
        Some(kernel) => {
            for candidate in &refused {
                out.line(format!("passed over {candidate}"));
            }
            Ok(kernel)
        }
        None if refused.is_empty() => Err(LocateError::Nothing {
            frames: searched.frames,
        }
        .into()),
        None => Err(LocateError::Unconfirmed { candidates: refused }.into()),
    }
}

fn candidate<M: GuestSource>(memory: &mut M, kernel: &Located, why: String) -> Candidate {
    Candidate {
        physical: kernel
            .space
            .translate(memory, kernel.base)
            .unwrap_or(kernel.space.root),
        mapped_at: Some(kernel.base),
        pdb: Some(kernel.key.path()),
        export_name: kernel.image.export_name.clone(),
        why,
    }
}

/// What the PDB of `kernel` says: the file that was named, facts that were imported, or a symbol store. With `quietly`
/// no server is asked.
fn facts_of(kernel: &Located, sources: Sources<'_>, quietly: bool, out: Out) -> Result<PdbFacts, Failure> {
    if let Some(file) = &sources.symbols.pdb {
        return read_pdb(file);
    }
    let imported = KernelFacts::file_in(sources.layouts, &kernel.key);
    if imported.is_file() {
        return Ok(KernelFacts::load(&imported)?.facts);
    }
    let symbols = SymbolSource {
        pdb: None,
        symbols: sources.symbols.symbols.clone(),
        offline: sources.symbols.offline || quietly,
    };
    read_pdb(&find(&kernel.key, &symbols, out)?.file)
}

fn show(kernel: &Located, out: Out) {
    let name = kernel.image.export_name.as_deref().unwrap_or("name paged out");
    out.line(format!(
        "kernel      Windows, {name}, {}, {}",
        arch(kernel),
        kernel.key.id()
    ));
    out.line(format!(
        "image       {} bytes at {:#x}",
        kernel.image.size, kernel.base
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

fn to_json(kernel: &Located) -> Value {
    let guid = match kernel.key.signature {
        crate::os::windows::symbol_key::Signature::Guid(guid) => Some(guid.to_string()),
        crate::os::windows::symbol_key::Signature::TimeStamp(_) => None,
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
        "image_base": format!("{:#x}", kernel.base),
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

/// Makes the profile of a kernel that was found.
fn make<M: GuestSource>(
    memory: &mut M,
    kernel: &Located,
    vcpus: &[VcpuRegisters],
    sources: Sources<'_>,
    out: Out,
) -> Result<(Built, PdbFacts), Failure> {
    let facts = facts_of(kernel, sources, false, out)?;
    let built = profile::build(memory, kernel, &facts, vcpus, None)?;
    Ok((built, facts))
}

/// Shows the profile of a Windows guest, and writes it to `file`.
fn build_from<M: GuestSource>(
    memory: &mut M,
    kernel: &Located,
    vcpus: &[VcpuRegisters],
    sources: Sources<'_>,
    file: Option<&Path>,
    out: Out,
) -> Result<Value, Failure> {
    show(kernel, out);
    let (built, facts) = make(memory, kernel, vcpus, sources, out)?;
    show_built(&built, out);
    if let Some(file) = file {
        std::fs::write(file, super::profile::encode(&built.profile)?)
            .map_err(|error| Failure::plain(Class::Failed, format!("{}: {error}", file.display())))?;
        out.line(format!("written     {}", file.display()));
    }
    let mut answer = to_json(kernel);
    merge(&mut answer, built_json(&built, &facts));
    answer["verdict"] = json!("built");
    Ok(answer)
}

fn show_built(built: &Built, out: Out) {
    out.line(format!(
        "entries     {} bytes each, from {:#x}",
        built.profile.descriptor_bytes, built.resolved.pfn_database
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

fn total(built: &Built) -> u64 {
    built.resolved.runs.iter().map(|run| run.count).sum()
}

fn built_json(built: &Built, facts: &PdbFacts) -> Value {
    let free = &built.profile.free;
    let test = |predicate: &lacuna_core::Predicate| {
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
        "pfn_database": format!("{:#x}", built.resolved.pfn_database),
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

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// Scans a Windows guest that stands still.
fn scan_from<M: GuestSource>(
    memory: &mut M,
    kernel: &Located,
    vcpus: &[VcpuRegisters],
    sources: Sources<'_>,
    bitmap: Option<&Path>,
    out: Out,
) -> Result<Value, Failure> {
    show(kernel, out);
    let (built, facts) = make(memory, kernel, vcpus, sources, out)?;
    show_built(&built, out);
    let end = memory.end();
    let words: Vec<AtomicU64> = (0..end.get().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
    let bits = Bitmap::new(&words);
    let bar = progress::over_memory("scanning");
    bar.set_length(end.get());
    let scanned = scan_offline(memory, &built.profile, &bits, end, |at| {
        bar.set_position(at.get());
    });
    bar.finish_and_clear();
    let scanned = scanned.map_err(|error| {
        Failure::plain(
            Class::Refused,
            format!("the guest's counter at {:#x} cannot be read", error.at.get()),
        )
    })?;
    show_scanned(&scanned, out);
    let verdict = judge(&scanned)?;
    out.line(format!("verdict     {verdict}"));
    if let Some(path) = bitmap {
        write_bitmap(path, &words)?;
        out.line(format!("bitmap      {} frames, {}", end.get(), path.display()));
    }
    let mut answer = to_json(kernel);
    merge(&mut answer, built_json(&built, &facts));
    answer["free_pages"] = json!(scanned.free());
    answer["guest_free_pages"] = json!(scanned.counted.map(|counted| counted.pages));
    answer["not_zero"] = json!(scanned.not_zero);
    answer["free"] = json!(scanned.free());
    answer["in_use"] = json!(scanned.step.in_use);
    answer["no_descriptor"] = json!(scanned.step.no_descriptor);
    answer["unknown"] = json!(scanned.step.unknown);
    answer["verdict"] = json!(verdict);
    answer["bitmap_frames"] = json!(end.get());
    Ok(answer)
}

fn show_scanned(scanned: &OfflineScan, out: Out) {
    out.line(format!("free        {}", pages(scanned.free())));
    out.line(format!(
        "not zero    {} that the entries call zeroed",
        pages(scanned.not_zero)
    ));
    out.line(format!("in use      {}", pages(scanned.step.in_use)));
    if let Some(counted) = scanned.counted {
        out.line(format!("counters    {} by the guest's own", pages(counted.pages)));
    }
}

/// "exact" where the guest counts as many zeroed pages as were found; "close" where what it counts lies between those
/// and what the entries alone say, or a little beside; "unconfirmed" where it names no count.
fn judge(scanned: &OfflineScan) -> Result<&'static str, Failure> {
    match (scanned.counted, scanned.agreement) {
        (None, _) | (_, Agreement::Unconfirmed) => Ok("unconfirmed"),
        (Some(counted), _) if counted.pages == scanned.free() => Ok("exact"),
        (Some(_), Agreement::Agrees) => Ok("close"),
        (Some(counted), Agreement::Disagrees) => Err(Failure::new(
            Class::Refused,
            format!(
                "the scan found {} zeroed pages ({} more by their entries alone), the guest's own count says {}",
                scanned.free(),
                scanned.not_zero,
                counted.pages
            ),
            "was the guest stopped while the dump was taken, and is the dump whole? If so, its memory does not look as its PDB says",
        )),
    }
}

fn write_bitmap(path: &Path, words: &[AtomicU64]) -> Result<(), Failure> {
    let failed =
        |error: std::io::Error| Failure::plain(Class::Failed, format!("{}: {error}", path.display()));
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).map_err(failed)?);
    for word in words {
        file.write_all(&word.load(Ordering::Relaxed).to_le_bytes())
            .map_err(failed)?;
    }
    file.flush().map_err(failed)
}
