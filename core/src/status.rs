//! The answers of the hypercall, one stable number each.

/// What became of an operation. The number crosses the hypercall (`status` of `struct xen_domctl_lacuna`) and
/// never changes its meaning; new answers get new numbers.
///
/// The values that belong to an answer travel beside it in `result[0..4]`, as each variant says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum Status {
    /// The operation was carried out.
    Done = 0,

    /// The profile is shorter than its header, or than its header says. `result`: bytes given, bytes needed.
    ProfileTruncated = 100,
    /// The profile does not begin with the magic number. `result`: the four bytes found, as a little-endian
    /// number.
    ProfileMagic = 101,
    /// The profile has another version than this hypervisor knows. `result`: version found, version known.
    ProfileVersion = 102,
    /// The profile is larger than `MAX_PROFILE_BYTES`. `result`: bytes given, bytes allowed.
    ProfileTooLarge = 103,
    /// The profile's checksum does not match its body. `result`: checksum found, checksum computed.
    ProfileChecksum = 104,
    /// The body is not a postcard-encoded profile, or bytes are left over after it.
    ProfileEncoding = 105,
    /// A field of the profile cannot be right. `result`: number of the rule broken (see
    /// `ProfileError::Field`), value.
    ProfileField = 106,

    /// The domain has no profile.
    NoProfile = 200,
    /// The profile was set but not yet admitted: no complete scan has agreed with the guest's own counters.
    NotAdmitted = 201,
    /// The domain is not HVM or PVH with hardware-assisted paging.
    NotHap = 210,
    /// A device is, or may be, assigned to the domain: its DMA would not fault on a shared page.
    Passthrough = 211,
    /// The domain uses altp2m.
    Altp2m = 212,
    /// The domain runs, or may run, a nested guest.
    Nested = 213,
    /// Log-dirty mode is on: a migration is under way.
    LogDirty = 214,
    /// Paging, access monitoring or forking of the domain is in use.
    MemEvents = 215,
    /// The domain is being destroyed.
    Dying = 216,
    /// Dom0 is a PVH domain, which cannot map shared pages.
    PvhDom0 = 217,
    /// The domain has populate-on-demand memory.
    PopulateOnDemand = 218,
    /// Xen has no zero frames (it found no 2 MiB of memory for them at boot), or the domain is the hardware
    /// domain.
    NoZeroFrames = 220,
    /// The domain cannot leave its trust group: it is on frames that it shares by content, perhaps with other
    /// members. `result`: pages.
    GroupInUse = 221,
    /// The hypervisor gave a reason that this version does not know. `result`: the reason.
    Blocked = 219,

    /// The guest no longer runs the kernel of the profile: a virtual CPU's registers differ. Nothing is
    /// shared. `result`: virtual CPU, which check failed (see `IdentityCheck`), value found, value expected.
    KernelChanged = 300,
    /// No virtual CPU is online, so nothing proves which kernel the guest runs.
    NoVcpuOnline = 301,
    /// The identity check failed for good: the profile is no longer used. Attach again. `result` as for
    /// `KernelChanged`.
    Ended = 302,

    /// The scan found another number of free pages than the guest's own counters say. `result`: pages by the
    /// scan, lowest count by the counters, highest count by the counters, tolerance.
    CountsDisagree = 400,
    /// The guest's counters could not be read. `result`: zone number, virtual address.
    CountersUnreadable = 401,
    /// The profile names no counter, and the pages that the scan found are not zero, as they should be.
    /// `result`: pages by the scan, pages looked at, of them zero.
    ContentsDisagree = 402,

    /// The hypervisor has no memory for the bitmap, or for the content stage's tables. `result`: bytes
    /// wanted, frame that they were for.
    NoMemory = 500,
    /// The buffer is too small. `result`: bytes needed.
    BufferTooSmall = 501,
    /// A frame number is out of range. `result`: the number, the limit.
    OutOfRange = 502,
    /// A flag is not known, or a field that must be zero is not. `result`: the value.
    BadRequest = 503,
    /// Bitmap and tables have reached the share of the guest's memory that they may take: the guest's pages
    /// lie scattered, a few in each of many stretches. `result`: bytes kept for it, most that may be, pages
    /// that it has, frame for which more was needed.
    TablesAtBound = 504,
}

impl Status {
    /// Every answer, in the order of their numbers.
    pub const ALL: [Self; 33] = [
        Self::Done,
        Self::ProfileTruncated,
        Self::ProfileMagic,
        Self::ProfileVersion,
        Self::ProfileTooLarge,
        Self::ProfileChecksum,
        Self::ProfileEncoding,
        Self::ProfileField,
        Self::NoProfile,
        Self::NotAdmitted,
        Self::NotHap,
        Self::Passthrough,
        Self::Altp2m,
        Self::Nested,
        Self::LogDirty,
        Self::MemEvents,
        Self::Dying,
        Self::PvhDom0,
        Self::PopulateOnDemand,
        Self::NoZeroFrames,
        Self::GroupInUse,
        Self::Blocked,
        Self::KernelChanged,
        Self::NoVcpuOnline,
        Self::Ended,
        Self::CountsDisagree,
        Self::CountersUnreadable,
        Self::ContentsDisagree,
        Self::NoMemory,
        Self::BufferTooSmall,
        Self::OutOfRange,
        Self::BadRequest,
        Self::TablesAtBound,
    ];

    /// The number that crosses the hypercall.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The answer with number `code`; `None` for a number that this version does not know.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.code() == code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_names_one_answer() {
        for status in Status::ALL {
            assert_eq!(Status::from_code(status.code()), Some(status));
        }
        assert_eq!(Status::from_code(99), None);
    }
}
