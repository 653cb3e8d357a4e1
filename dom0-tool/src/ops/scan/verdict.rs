//! Decides how far the guest's own counters confirm a scan of its dump.

use lacuna_core::{Agreement, OfflineScan};

use crate::failure::{Class, Failure};
use crate::os::linux::other_kernels::Tie;
use crate::os::linux::profile::LinuxProfile;
use crate::os::{BuiltProfile, Kernel};
use crate::source::Cpu;

/// The verdict on a scan that was not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The guest counts as many free pages as were found.
    Exact,
    /// The guest's count differs by no more than what it may have been changing when it was stopped.
    Close,
    /// The guest has no counter.
    Unconfirmed,
    /// The scan agrees with the guest's counters, exactly or closely, but nothing ties the kernel that keeps
    /// them to a processor. That kernel may be dead, and another may run in its place.
    Untied,
}

impl Verdict {
    /// Returns the name, which is stable: it is part of the JSON output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Close => "close",
            Self::Unconfirmed => "unconfirmed",
            Self::Untied => "untied",
        }
    }
}

/// Compares a scan with the guest's own counters.
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

/// Compares a scan of a Linux guest's dump with the guest's own counters.
///
/// The verdict is exact if both agree. It is close if they differ by no more than one block for each virtual
/// CPU, since each may have been stopped between taking a block off its list and counting it. Pages of
/// unknown state do not excuse a difference: with them something is missing from the dump.
fn judge_linux(built: &LinuxProfile, scanned: &OfflineScan, cpus: usize) -> Result<Verdict, Failure> {
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

/// Compares a scan of a Windows guest's dump with the guest's own count of zeroed pages.
///
/// The verdict is
/// * exact if the guest counts as many zeroed pages as were found;
/// * close if its count lies between those and what the entries alone say, or a little beside, and all but a
///   few of the pages that it counts are zero;
/// * unconfirmed if there is no count, and all but a few of the pages that the entries name are zero. The
///   hypervisor demands the same.
fn judge_windows(scanned: &OfflineScan) -> Result<Verdict, Failure> {
    let (found, named) = (scanned.free(), scanned.step.free);
    let all_but_few = |pages: u64| pages - pages / 16;
    if scanned.absent > named / 16 {
        return Err(Failure::new(
            Class::Refused,
            format!(
                "of {named} pages that the entries call zeroed, {} are not in the dump: nothing is known of their bytes",
                scanned.absent
            ),
            "take a dump that leaves no page out (of Windows' own the complete one; of makedumpfile's `-d 0`)",
        ));
    }
    match (scanned.counted, scanned.agreement) {
        // There is no counter, and the entries say that the list is empty.
        (_, Agreement::Unconfirmed) if named == 0 => Ok(Verdict::Unconfirmed),
        (Some(counted), _) if counted.pages == found && found > 0 => Ok(Verdict::Exact),
        (Some(counted), Agreement::Agrees) if found + scanned.absent >= all_but_few(counted.pages) => {
            Ok(Verdict::Close)
        }
        (None, _) if found + scanned.absent >= all_but_few(named) => Ok(Verdict::Unconfirmed),
        (None, _) => Err(Failure::new(
            Class::Refused,
            format!(
                "of {named} pages that the entries call zeroed, {} are not zero, and the guest names no count of its own",
                scanned.not_zero
            ),
            STOOD_STILL,
        )),
        (Some(counted), _) => Err(Failure::new(
            Class::Refused,
            format!(
                "the scan found {found} zeroed pages ({} more by their entries alone), the guest's own count says {}",
                named - found,
                counted.pages
            ),
            STOOD_STILL,
        )),
    }
}

const STOOD_STILL: &str = "was the guest stopped while the dump was taken, and is the dump whole? If so, its memory does not look as its PDB says";

#[cfg(test)]
mod tests {
    use lacuna_core::{CounterReading, ScanStep};

    use super::*;

    /// Returns a scan of `named` pages by their entries, of which some are not zero and some absent, and for
    /// which the guest counts `counted`.
    fn scan(named: u64, not_zero: u64, absent: u64, counted: Option<u64>) -> OfflineScan {
        let counted = counted.map(|pages| CounterReading { pages });
        OfflineScan {
            step: ScanStep {
                free: named,
                ..ScanStep::default()
            },
            not_zero,
            absent,
            counted,
            agreement: match counted {
                None => Agreement::Unconfirmed,
                Some(CounterReading { pages: 0 }) if named == 0 => Agreement::Unconfirmed,
                Some(CounterReading { pages }) if pages > 0 && named >= pages && named - pages <= 256 => {
                    Agreement::Agrees
                }
                Some(_) => Agreement::Disagrees,
            },
        }
    }

    #[test]
    fn a_verdict_looks_at_the_bytes_as_the_hypervisor_does() {
        let word = |scan: &OfflineScan| judge_windows(scan).ok().map(Verdict::name);
        for (named, not_zero, absent, counted, expected) in [
            (1000, 200, 0, Some(800), Some("exact")),
            (1000, 40, 0, Some(990), Some("close")),
            // All pages that are counted are non-zero.
            (1000, 1000, 0, Some(1000), None),
            (1000, 500, 0, Some(1000), None),
            // No count: 15 of 16 have to be zero.
            (1000, 62, 0, None, Some("unconfirmed")),
            (1000, 63, 0, None, None),
            (1000, 1000, 0, None, None),
            (0, 0, 0, None, Some("unconfirmed")),
            // A count of 0 is a count.
            (253, 0, 0, Some(0), None),
            (0, 0, 0, Some(0), Some("unconfirmed")),
            // Absent pages are not counted as non-zero.
            (1000, 0, 62, Some(1000), Some("close")),
            (1000, 0, 63, Some(1000), None),
            (1000, 0, 1000, None, None),
        ] {
            let scan = scan(named, not_zero, absent, counted);
            assert_eq!(word(&scan), expected, "{scan:?}");
        }
    }
}
