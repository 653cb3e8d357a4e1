//! How far the guest's own counters bear out a scan of its dump.

use lacuna_core::{Agreement, OfflineScan};

use crate::failure::{Class, Failure};
use crate::os::linux::other_kernels::Tie;
use crate::os::linux::profile::Built;
use crate::os::{BuiltProfile, Kernel};
use crate::source::Cpu;

/// What to make of a scan that was not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The guest counts as many free pages as were found.
    Exact,
    /// What it counts differs by what a guest may have been about when it was stopped.
    Close,
    /// It names no count.
    Unconfirmed,
    /// What was found agrees with the guest's counters, exactly or closely, but nothing ties the kernel that keeps them to a
    /// processor: it may be dead, and another run in its place.
    Untied,
}

impl Verdict {
    /// The name, which does not change.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Close => "close",
            Self::Unconfirmed => "unconfirmed",
            Self::Untied => "untied",
        }
    }
}

/// Holds a scan against the guest's own counters.
pub(super) fn judge(
    kernel: &Kernel,
    built: &BuiltProfile,
    scanned: &OfflineScan,
    cpus: &[Cpu],
) -> Result<Verdict, Failure> {
    match built {
        BuiltProfile::Linux(built) => {
            let online = cpus.iter().filter(|cpu| cpu.is_paging()).count();
            let verdict = judge_linux(built, scanned, online)?;
            let is_tied = !matches!(kernel, Kernel::Linux(kernel) if kernel.tie == Tie::None);
            Ok(if is_tied { verdict } else { Verdict::Untied })
        }
        BuiltProfile::Windows { .. } => judge_windows(scanned),
    }
}

/// Exact where both are the same, close where they differ by no more than one block for each virtual CPU that may have been
/// stopped between taking a block off its list and counting it. A page that cannot be told is no such difference: then
/// something of the dump is missing.
fn judge_linux(built: &Built, scanned: &OfflineScan, cpus: usize) -> Result<Verdict, Failure> {
    let (found, counted) = (scanned.free(), built.counted.pages);
    if found == counted && found > 0 {
        return Ok(Verdict::Exact);
    }
    let largest = 1_u64 << built.profile.free.max_order().get();
    let slack = (cpus.max(1) as u64).saturating_mul(largest).min(counted / 4);
    if found > 0 && scanned.step.unknown == 0 && found.abs_diff(counted) <= slack {
        return Ok(Verdict::Close);
    }
    Err(Failure::new(
        Class::Refused,
        format!(
            "the scan found {found} free pages ({} pages could not be told), the guest's own counters say {counted}",
            scanned.step.unknown
        ),
        "was the guest stopped while the dump was taken, and is the dump whole? If so, its memory does not look as its kernel says",
    ))
}

/// Exact where the guest counts as many zeroed pages as were found; close where what it counts lies between those and what
/// the entries alone say, or a little beside; unconfirmed where it names no count.
fn judge_windows(scanned: &OfflineScan) -> Result<Verdict, Failure> {
    match (scanned.counted, scanned.agreement) {
        (None, _) | (_, Agreement::Unconfirmed) => Ok(Verdict::Unconfirmed),
        (Some(counted), _) if counted.pages == scanned.free() => Ok(Verdict::Exact),
        (Some(_), Agreement::Agrees) => Ok(Verdict::Close),
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
