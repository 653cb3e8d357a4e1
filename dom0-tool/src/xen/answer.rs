//! Describes the engine's answers in words.

use lacuna_core::{IdentityCheck, Status};

use crate::failure::Class;

/// An answer of the engine in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What it means, with its values.
    pub what: String,
    /// What to do.
    pub remedy: String,
    /// The class, which decides the exit status.
    pub class: Class,
}

/// Explains `status` and its `values`.
pub fn explain_status(status: Status, values: &[u64; 4]) -> Answer {
    let [one, two, three, four] = *values;
    let (class, what, remedy): (Class, String, &str) = match status {
        Status::Done => (
            Class::Failed,
            "the operation was carried out".into(),
            "nothing to do",
        ),
        Status::ProfileTruncated => (
            Class::Failed,
            format!("the profile is cut short: {one} bytes given, {two} needed"),
            "build it again; was the file copied whole?",
        ),
        Status::ProfileMagic => (
            Class::Failed,
            format!("this is not a profile: it begins with {one:#010x}"),
            "give a file that `lacuna profile build DOMAIN --out FILE` wrote",
        ),
        Status::ProfileVersion => (
            Class::Failed,
            format!("the profile has version {one}, the hypervisor knows version {two}"),
            "build it again with the `lacuna` that belongs to this hypervisor",
        ),
        Status::ProfileTooLarge => (
            Class::Failed,
            format!("the profile has {one} bytes, {two} are allowed"),
            "build it again",
        ),
        Status::ProfileChecksum => (
            Class::Failed,
            format!("the profile is damaged: its checksum is {one:#010x}, its contents give {two:#010x}"),
            "build it again; was the file changed?",
        ),
        Status::ProfileEncoding => (
            Class::Failed,
            "the profile's contents cannot be decoded".into(),
            "build it again",
        ),
        Status::ProfileField => (
            Class::Refused,
            format!("the profile breaks rule {one} ({}): {two:#x}", rule(one)),
            "build it again; if it lasts, the guest's memory does not look as its kernel says",
        ),
        Status::NoProfile => (
            Class::NotFound,
            "the domain has no profile".into(),
            "run `lacuna attach DOMAIN` first",
        ),
        Status::NotAdmitted => (
            Class::Refused,
            "the profile is not admitted: no complete scan has agreed with the guest's own counters".into(),
            "run `lacuna scan DOMAIN`; on a busy guest, `lacuna scan --paused DOMAIN`",
        ),
        Status::NotHap => (
            Class::Refused,
            "the domain is not an HVM or PVH guest with hardware-assisted paging".into(),
            "start it as HVM or PVH with hap=1 on a machine that has it",
        ),
        Status::Passthrough => (
            Class::Refused,
            "a device is, or may be, assigned to the domain, and its DMA would not fault on a shared page"
                .into(),
            "start it without pci=[...] and with passthrough=\"disabled\"",
        ),
        Status::Altp2m => (
            Class::Refused,
            "the domain uses altp2m".into(),
            "start it with altp2m=\"disabled\"",
        ),
        Status::Nested => (
            Class::Refused,
            "the domain runs, or may run, nested guests".into(),
            "start it with nestedhvm=0",
        ),
        Status::LogDirty => (
            Class::Refused,
            "the domain's writes are being tracked: a migration or a save is under way".into(),
            "wait until it is over",
        ),
        Status::MemEvents => (
            Class::Refused,
            "the domain's memory is being paged, monitored or forked".into(),
            "end xenpaging, the monitor or the fork first",
        ),
        Status::Dying => (
            Class::NotFound,
            "the domain is being destroyed".into(),
            "nothing to do",
        ),
        Status::PvhDom0 => (
            Class::Refused,
            "Dom0 is a PVH domain, which cannot map shared pages".into(),
            "boot Xen with a PV Dom0 (without dom0=pvh)",
        ),
        Status::PopulateOnDemand => (
            Class::Refused,
            "the domain has populate-on-demand memory".into(),
            "start it with memory equal to maxmem",
        ),
        Status::NoZeroFrames => (
            Class::Refused,
            "Xen has no zero frames, or this is the hardware domain".into(),
            "see `xl dmesg` for why Xen could not set 2 MiB of memory aside at boot; Dom0 itself is never shared",
        ),
        Status::GroupInUse => (
            Class::Refused,
            format!(
                "the domain cannot leave its trust group: {one} of its pages are on frames that other members may share"
            ),
            "let the guest write them (a reboot does), or destroy it; a guest joins a group for its lifetime",
        ),
        Status::Blocked => (
            Class::Refused,
            format!("the hypervisor refuses for a reason this version does not know ({one})"),
            "install the `lacuna` that belongs to this hypervisor",
        ),
        Status::KernelChanged => (
            Class::Refused,
            format!(
                "virtual CPU {one} does not run the kernel of the profile: {}",
                mismatch(two, three, four)
            ),
            "it may be a moment's state (a virtual CPU on its way up): try again; after a kexec, attach again",
        ),
        Status::NoVcpuOnline => (
            Class::Refused,
            "no virtual CPU is online, so nothing proves which kernel the guest runs".into(),
            "try again when the guest runs",
        ),
        Status::Ended => (
            Class::Refused,
            format!(
                "the guest runs another kernel than the profile's (virtual CPU {one}: {}); sharing has ended",
                mismatch(two, three, four)
            ),
            "the guest has been through a kexec or a reboot: run `lacuna attach DOMAIN` again",
        ),
        Status::CountsDisagree => (
            Class::Refused,
            format!(
                "the scan found {one} free pages, the guest's own counters say {two} to {three} (tolerance {four})"
            ),
            "on a busy guest try `lacuna scan --paused DOMAIN`; if it lasts, the profile does not fit this guest",
        ),
        Status::CountersUnreadable => (
            Class::Refused,
            format!("the guest's counters of zone {one} at {two:#x} cannot be read"),
            "the guest's kernel may have changed: attach again",
        ),
        Status::ContentsDisagree => (
            Class::Refused,
            format!(
                "the scan found {one} pages that should be zero; of {two} that were checked, {three} are"
            ),
            "on a busy guest try `lacuna scan --paused DOMAIN`; if it lasts, the profile does not fit this guest",
        ),
        Status::NoMemory => (
            Class::Failed,
            format!("the hypervisor has no memory for its tables ({one} bytes, for frame {two:#x})"),
            "free some host memory (`xl info` shows it)",
        ),
        Status::BufferTooSmall => (
            Class::Failed,
            format!("the answer needs {one} bytes"),
            "install the `lacuna` that belongs to this hypervisor",
        ),
        Status::OutOfRange => (
            Class::NotFound,
            format!("frame {one:#x} is out of range: the limit is {two:#x}"),
            "name a frame that the domain has",
        ),
        Status::BadRequest => (
            Class::Failed,
            format!("the hypervisor does not accept the value {one:#x} in the request"),
            "install the `lacuna` that belongs to this hypervisor",
        ),
        Status::TablesAtBound => (
            Class::Refused,
            format!(
                "the guest's pages are too scattered: the tables take {one} bytes for its {three} pages, {two} are \
                 allowed, and frame {four:#x} needs more"
            ),
            "give the guest more memory, or restart it, which frees the tables",
        ),
        // The core may grow answers before this table does.
        other => (
            Class::Failed,
            format!("the engine answered {other:?} ({one:#x}, {two:#x}, {three:#x}, {four:#x})"),
            "see docs/profile.md",
        ),
    };
    Answer {
        what,
        remedy: remedy.to_owned(),
        class,
    }
}

/// Describes a failed identity check.
pub fn mismatch(check: u64, found: u64, expected: u64) -> String {
    let name = match IdentityCheck::from_code(check) {
        Some(IdentityCheck::Mode) => "processor mode",
        Some(IdentityCheck::Levels) => "levels of the page tables",
        Some(IdentityCheck::IdtBase) => "base of the IDT",
        Some(IdentityCheck::IdtLimit) => "limit of the IDT",
        Some(IdentityCheck::Lstar) => "LSTAR",
        Some(IdentityCheck::SysenterEip) => "SYSENTER_EIP",
        Some(IdentityCheck::Gate) => "where a gate of the IDT leads",
        Some(IdentityCheck::Anchor) => "where an address of the kernel leads",
        Some(IdentityCheck::RootSlot) => "top-level page-table entry",
        Some(IdentityCheck::BootValue) => "random value of this boot",
        Some(IdentityCheck::Unreadable) => return format!("memory at {found:#x} cannot be read"),
        None => "an unknown check",
    };
    format!("{name} is {found:#x}, expected {expected:#x}")
}

/// Describes the rule of `lacuna_core::profile::FieldRule` with number `code`.
fn rule(code: u64) -> &'static str {
    match code {
        1 => "the page-table root is aligned",
        2 => "size of a page descriptor",
        3 => "place of the memory map",
        4 => "a field lies inside the descriptor",
        5 => "the predicate's mask",
        6 => "the predicate's value",
        7 => "largest order",
        8 => "there is a counter of free pages",
        9 => "place of a zone's counters",
        10 => "top-level page-table entries",
        11 => "addresses that identify the kernel",
        12 => "limit of the IDT",
        13 => "random value of the boot",
        14 => "fields do not overlap",
        15 => "the runs of frames that have descriptors",
        16 => "the table of memory sections",
        17 => "a free block has a condition besides its mark",
        18 => "a rule without blocks looks at the bytes",
        19 => "the identity check compares where the kernel is entered",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_explained_with_a_remedy() {
        for status in Status::ALL {
            let answer = explain_status(status, &[1, 2, 3, 4]);
            assert!(!answer.what.is_empty() && !answer.remedy.is_empty(), "{status:?}");
            assert!(
                !answer.what.contains("the engine answered"),
                "{status:?} has no words of its own"
            );
        }
    }

    #[test]
    fn the_values_of_an_answer_are_shown() {
        let answer = explain_status(Status::CountsDisagree, &[111, 222, 333, 44]);
        for value in ["111", "222", "333", "44"] {
            assert!(answer.what.contains(value), "{}", answer.what);
        }
    }
}
