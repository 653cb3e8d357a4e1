//! Searches all memory of a guest for its Windows kernel, and says which of several runs.
//!
//! An address is told only where the guest's own structures leave one way to it. The virtual CPUs' CR3 is
//! asked first, then the kernel's own variables, by its PDB, then the tables themselves: Windows' map
//! themselves, and words that look like entries do not. Where several ways are left, none is taken, and all
//! are named.

use std::collections::HashMap;

use super::locate::{Candidate, LocateError, Located, MOST_NAMED};
use super::pdb::PdbFacts;
use super::profile;
use super::shadowed;
use super::symbols::facts_of;
use super::tables::MAX_PATHS;
use super::ways::{Searched, Way, by_search};
use crate::os::Sources;
use crate::progress::{Progress, Remark, Step};
use crate::source::{Cpu, GuestSource};

/// Searches all memory for a Windows kernel. Of several, the one is chosen that can be shown to run.
///
/// # Errors
/// There is none, or none that is shown to run.
pub fn search<M: GuestSource, P: Progress + ?Sized>(
    memory: &mut M,
    cpus: &[Cpu],
    sources: &Sources,
    progress: &mut P,
) -> Result<Located, LocateError> {
    progress.begin(Step::SearchForWindows);
    let mut searched = by_search(memory, &mut |at, end| progress.advance(at, end));
    progress.end();
    if searched.is_cut {
        return Err(LocateError::TooManyWays { most: MAX_PATHS });
    }
    let mut refused = std::mem::take(&mut searched.others);
    let mut ways = of_the_cpus(memory, cpus, std::mem::take(&mut searched.ways), &mut refused);
    let is_chosen = |way: &Way| way.kernel.confirmed.len() > 1;
    if !ways.iter().any(is_chosen) && contradicts(memory, cpus) && !ways.is_empty() {
        refused.extend(ways.iter().map(|way| way.candidate(NOT_BY_CR3)));
        return Err(LocateError::OtherRegisters { candidates: refused });
    }
    // What CR3 leaves alone needs no other word.
    if !matches!(ways.as_slice(), [way] if way.kernel.confirmed.len() > 1) {
        ways = by_own_structures(memory, sources, ways, &mut refused, progress);
    }
    match <[Way; 1]>::try_from(ways) {
        Ok([way]) => {
            for candidate in refused.iter().take(MOST_NAMED) {
                progress.remark(Remark::PassedOver(candidate.to_string()));
            }
            if let Some(more) = refused.len().checked_sub(MOST_NAMED).filter(|more| *more > 0) {
                progress.remark(Remark::PassedOver(format!("{more} more")));
            }
            Ok(way.kernel)
        }
        Err(_) if refused.is_empty() => Err(nothing(memory, cpus, &searched)),
        Err(_) => Err(LocateError::Unconfirmed { candidates: refused }),
    }
}

/// Why a way is not that of the kernel that runs.
const NOT_BY_CR3: &str = "no virtual CPU's CR3 leads to it";

/// Whether virtual CPUs whose CR3 leads to no kernel say by that that none of those in memory runs. A program
/// of a kernel that shadows it has tables without it. A crash dump is of the kernel that wrote it, whatever
/// process it was in.
fn contradicts<M: GuestSource>(memory: &mut M, cpus: &[Cpu]) -> bool {
    !memory.is_of_windows() && cpus.iter().any(Cpu::is_paging) && !shadowed::seems_so(memory, cpus)
}

/// Where the CR3 of a virtual CPU leads along some of the ways, those alone. A program's own tables lead
/// along none where the kernel shadows it.
fn of_the_cpus<M: GuestSource>(
    memory: &mut M,
    cpus: &[Cpu],
    ways: Vec<Way>,
    refused: &mut Vec<Candidate>,
) -> Vec<Way> {
    let mut chosen = Vec::new();
    let mut others = Vec::new();
    for mut way in ways {
        match way.of_a_cpu(memory, cpus) {
            Some((number, root)) => {
                way.roots = vec![root];
                way.through(root);
                let said = format!("the CR3 of virtual CPU {number} is that of these tables");
                way.kernel.confirmed.push(said);
                chosen.push(way);
            }
            None => others.push(way),
        }
    }
    if chosen.is_empty() {
        return others;
    }
    refused.extend(others.iter().map(|way| way.candidate(NOT_BY_CR3)));
    chosen
}

/// The ways along which the kernel's own structures are in order, by its PDB. Without the PDB, the only one,
/// or the only one whose tables map themselves. More than one are none.
fn by_own_structures<M: GuestSource, P: Progress + ?Sized>(
    memory: &mut M,
    sources: &Sources,
    ways: Vec<Way>,
    refused: &mut Vec<Candidate>,
    progress: &mut P,
) -> Vec<Way> {
    let mut known: HashMap<String, Result<PdbFacts, String>> = HashMap::new();
    let mut good = Vec::new();
    let mut untold = Vec::new();
    for mut way in ways {
        let facts = known.entry(way.kernel.key.path()).or_insert_with(|| {
            facts_of(&way.kernel, sources, true, progress)
                .map_err(|failure| failure.what.lines().next().unwrap_or_default().to_owned())
        });
        match facts {
            Err(why) => {
                let why = why.clone();
                untold.push((way, why));
            }
            Ok(facts) => match in_order(memory, &mut way, facts) {
                Ok(()) => good.push(way),
                Err(why) => refused.push(way.candidate(why)),
            },
        }
    }
    let is_only = good.is_empty() && refused.iter().all(|other| other.mapped_at.is_none());
    if is_only {
        good.extend(the_only_one(&mut untold));
    }
    refused.extend(untold.iter().map(|(way, why)| way.candidate(why.as_str())));
    if good.len() > 1 {
        refused.extend(
            good.drain(..)
                .map(|way| way.candidate("it is in order, and so is another")),
        );
    }
    good
}

/// Where no PDB tells: the only way, by the only table; or the only one whose tables map themselves.
fn the_only_one(untold: &mut Vec<(Way, String)>) -> Option<Way> {
    let themselves = untold.iter().filter(|(way, _)| way.maps_itself).count();
    let (chosen, reason) = match untold.as_slice() {
        [(way, _)] if way.roots.len() == 1 || way.maps_itself => {
            (0, "no other image in the kernel's half calls itself a kernel")
        }
        _ if themselves == 1 => (
            untold.iter().position(|(way, _)| way.maps_itself)?,
            "these tables map themselves, as those of Windows do, and no others that lead to a kernel",
        ),
        _ => return None,
    };
    let (mut way, _) = untold.swap_remove(chosen);
    way.kernel.confirmed.push(reason.to_owned());
    Some(way)
}

/// Whether the kernel's variables are in order through one of the tables that lead along a way; that one is
/// kept.
fn in_order<M: GuestSource>(memory: &mut M, way: &mut Way, facts: &PdbFacts) -> Result<(), String> {
    let mut first = None;
    for root in way.roots.clone() {
        let mut kernel = way.kernel.clone();
        kernel.space.root = root;
        let resolved = profile::resolve(memory, &kernel, facts, None).and_then(|resolved| {
            // What maps the image alone is no table of its.
            profile::is_mapped(memory, &kernel, facts, &resolved)
        });
        match resolved {
            Ok(()) => {
                if root != way.kernel.space.root {
                    way.through(root);
                }
                let said = "its own MmPfnDatabase and MmPhysicalMemoryBlock are in order";
                way.kernel.confirmed.push(said.to_owned());
                return Ok(());
            }
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    Err(first.map_or_else(String::new, |error| error.to_string()))
}

/// No kernel: is it Windows all the same?
fn nothing<M: GuestSource>(memory: &mut M, cpus: &[Cpu], searched: &Searched) -> LocateError {
    let frames = searched.frames;
    let sign = if let Some((at, name)) = searched.record {
        format!("a debug record that names {name} is at physical {:#x}", at.get())
    } else if memory.is_of_windows() {
        "the file is a crash dump of its".to_owned()
    } else if shadowed::seems_so(memory, cpus) {
        "a virtual CPU is in a program of its".to_owned()
    } else {
        return LocateError::Nothing { frames };
    };
    LocateError::Headless { sign, frames }
}
