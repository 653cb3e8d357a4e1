//! Searches all memory of a guest for its Windows kernel, and says which of several runs.

use super::locate::{self, Candidate, LocateError, Located};
use super::profile;
use super::symbols::facts_of;
use crate::failure::Failure;
use crate::os::Sources;
use crate::progress::{Progress, Remark, Step};
use crate::source::GuestSource;

/// Searches all memory for a Windows kernel. Of several, the one is chosen whose own structures are in order.
///
/// # Errors
/// There is none, or none that is shown to run.
pub fn search<M: GuestSource, P: Progress + ?Sized>(
    memory: &mut M,
    sources: &Sources,
    progress: &mut P,
) -> Result<Located, Failure> {
    progress.begin(Step::SearchForWindows);
    let searched = locate::by_search(memory, &mut |at, end| progress.advance(at, end));
    progress.end();
    let mut refused = searched.others;
    let mut good = Vec::new();
    let is_only = searched.kernels.len() <= 1;
    for ways in searched.kernels {
        match best_way(memory, ways, sources, is_only, progress) {
            Some(Ok(kernel)) => good.push(kernel),
            Some(Err((kernel, why))) => refused.push(candidate(memory, &kernel, why)),
            None => {}
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
                progress.remark(Remark::PassedOver(candidate.to_string()));
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

/// Of several ways to one image, the first whose structures are in order; else the first, with what is wrong with it.
fn best_way<M: GuestSource, P: Progress + ?Sized>(
    memory: &mut M,
    ways: Vec<Located>,
    sources: &Sources,
    is_only: bool,
    progress: &mut P,
) -> Option<Result<Located, (Located, String)>> {
    let mut judged = Vec::new();
    for kernel in ways {
        let verdict = match facts_of(&kernel, sources, true, progress) {
            Ok(facts) => profile::resolve(memory, &kernel, &facts, None)
                .map(|_| "its own MmPfnDatabase and MmPhysicalMemoryBlock are in order")
                .map_err(|error| error.to_string()),
            // Without its PDB it can only be taken when there is no other.
            Err(_) if is_only => Ok("no other image in the kernel's half calls itself a kernel"),
            Err(failure) => Err(failure.what.lines().next().unwrap_or_default().to_owned()),
        };
        judged.push((kernel, verdict));
    }
    if judged.is_empty() {
        return None;
    }
    let chosen = judged
        .iter()
        .position(|(_, verdict)| verdict.is_ok())
        .unwrap_or(0);
    let (mut kernel, verdict) = judged.swap_remove(chosen);
    Some(match verdict {
        Ok(confirmed) => {
            kernel.confirmed.push(confirmed.to_owned());
            Ok(kernel)
        }
        Err(why) => Err((kernel, why)),
    })
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
