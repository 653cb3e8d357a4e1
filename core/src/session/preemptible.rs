//! The loop of a long operation: step by step through frames, until their end, the end of the budget, or
//! until the hypervisor wants its processor back.

use core::ops::Range;

use super::Outcome;
use crate::Domain;
use crate::abi::Request;
use crate::refusal::Refusal;

/// What one step did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Step {
    /// What it takes from the request's budget.
    pub(super) cost: u64,
    /// What it adds to the request's `result`.
    pub(super) figures: [u64; 4],
    /// Whether the next step has to follow at once, whatever the budget says and whoever waits.
    pub(super) is_half: bool,
}

/// Goes through `frames` by `step`, which gets the frame to begin at, moves it on, and may spend the budget
/// that it is given ([`u64::MAX`] for no limit). Leaves in `request` how far it came and what is left of the
/// budget, so that the same request goes on from there.
///
/// # Errors
/// That of a step: the operation ends at the frame at which the step left off.
pub(super) fn each_step<D: Domain>(
    domain: &mut D,
    request: &mut Request,
    frames: Range<u64>,
    mut step: impl FnMut(&mut D, &mut u64, u64) -> Result<Step, Refusal>,
) -> Result<Outcome, Refusal> {
    let is_limited = request.budget != 0;
    let mut at = frames.start;
    let mut is_half = false;
    while at < frames.end {
        if !is_half {
            if is_limited && request.budget == 0 {
                break;
            }
            if at != frames.start && domain.preempted() {
                request.cursor = at;
                return Ok(Outcome::Again);
            }
        }
        let budget = if is_limited { request.budget } else { u64::MAX };
        let done = step(domain, &mut at, budget).inspect_err(|_| request.cursor = at)?;
        for (sum, pages) in request.result.iter_mut().zip(done.figures) {
            *sum = sum.wrapping_add(pages);
        }
        if is_limited {
            request.budget = request.budget.saturating_sub(done.cost);
        }
        is_half = done.is_half;
    }
    request.cursor = at;
    Ok(Outcome::Finished)
}
