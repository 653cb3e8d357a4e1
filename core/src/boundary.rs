//! What crosses the boundary between Xen's C side and the core: the numbers of `core.h`, which `patches/` put
//! into `xen/arch/x86/lacuna/`. (Structures that the C side fills in for whoever asked are in
//! [`crate::abi`].)
//!
//! A number has one name here and one there. `core/tests/boundary/main.rs` reads the header out of the
//! patches, and compares names, numbers, and the layout of every structure that both sides know.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Status;

/// An enumeration whose numbers are the C side's; `as` gives the C name behind the prefix, where there is
/// one.
macro_rules! codes {
    (
        $(#[$meta:meta])*
        $name:ident, $prefix:literal {
            $($(#[$doc:meta])+ $variant:ident = $code:literal $(as $c:literal)?,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$doc])+ $variant,)+
        }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// Names and numbers of the C side.
            pub const C_NAMES: &'static [(&'static str, u32)] = &[$($((concat!($prefix, $c), $code),)?)+];

            /// The number that crosses the boundary.
            pub const fn code(self) -> u32 {
                match self {
                    $(Self::$variant => $code,)+
                }
            }

            /// The value with number `code`; `None` for a number that is not known.
            pub const fn from_code(code: u32) -> Option<Self> {
                Some(match code {
                    $($code => Self::$variant,)+
                    _ => return None,
                })
            }
        }
    };
}

codes! {
    /// Why a page was left alone. The C side returns it negated (`LACUNA_SKIP_*`).
    Skip, "LACUNA_SKIP_" {
        /// Not ordinary guest memory (a hole, a device, a page that is already shared by content).
        NotRam = 1 as "NOT_RAM",
        /// Someone else holds it: a grant, a foreign mapping, the device model, a type reference.
        Held = 2 as "HELD",
        /// Its bytes are not zero, and the profile demands it.
        NotZero = 3 as "NOT_ZERO",
        /// The paging pool cannot supply a page table.
        NoPool = 4 as "NO_POOL",
        /// The p2m refused the entry.
        EntryRefused = 5 as "SET_ENTRY",
        /// Log-dirty mode was turned on.
        LogDirty = 6 as "LOG_DIRTY",
        /// It is a zero frame already.
        Already = 7 as "ALREADY",
        /// The domain is being destroyed.
        Dying = 8 as "DYING",
        /// Its bytes are not those of the page that it was to share a frame with. The core's own: it
        /// compares.
        Differs = 9,
        /// The frame that it was to share has as many sharers as a frame may have.
        Full = 10 as "FULL",
        /// The hypervisor has no memory to keep book of another sharer.
        NoMemory = 11 as "NO_MEMORY",
        /// The domain with which it was to share is gone, or not of the same trust group.
        NoPartner = 12 as "NO_PARTNER",
        /// The host has no memory to put aside for accesses on the domain's behalf.
        NoReserve = 13 as "NO_RESERVE",
    }
}

impl Skip {
    /// Number of reasons.
    pub const COUNT: usize = Self::ALL.len();

    /// Position of this reason in [`crate::SliceReport::skipped`].
    pub const fn index(self) -> usize {
        // The numbers begin at 1 and leave none out; a test sees to it.
        self.code() as usize - 1
    }

    /// The reason that the C side returned; what it does not say in words that are known is a refusal of the
    /// entry.
    pub fn from_result(result: i32) -> Self {
        u32::try_from(result.wrapping_neg())
            .ok()
            .and_then(Self::from_code)
            .unwrap_or(Self::EntryRefused)
    }
}

codes! {
    /// What is at a frame number (`LACUNA_PAGE_*`).
    PageState, "LACUNA_PAGE_" {
        /// Nothing that could be shared: a hole, a device, a frame of Xen's.
        Other = 0 as "OTHER",
        /// Ordinary memory of the domain's own.
        Private = 1 as "PRIVATE",
        /// A frame that is shared by content.
        Shared = 2 as "SHARED",
        /// A zero frame.
        Zero = 3 as "ZERO",
    }
}

codes! {
    /// Why a domain's memory cannot be shared at all (`LACUNA_BLOCK_*`).
    Blocker, "LACUNA_BLOCK_" {
        /// No hardware-assisted paging.
        NotHap = 1 as "NOT_HAP",
        /// A device is assigned.
        Passthrough = 2 as "PASSTHROUGH",
        /// Alternate p2ms are in use.
        Altp2m = 3 as "ALTP2M",
        /// Nested virtualisation is on.
        Nested = 4 as "NESTED",
        /// Log-dirty mode is on.
        LogDirty = 5 as "LOG_DIRTY",
        /// Somebody listens to its memory events: paging, access monitoring, forks.
        MemEvents = 6 as "VM_EVENT",
        /// It is being destroyed.
        Dying = 7 as "DYING",
        /// It is asked for by a PVH domain 0.
        PvhDom0 = 8 as "PVH_DOM0",
        /// It has populate-on-demand memory left.
        PopulateOnDemand = 9 as "POD",
        /// Xen has no zero frames that are fit, or the domain is the hardware domain.
        NoZeroFrames = 10 as "NO_ZERO",
    }
}

impl Blocker {
    /// The answer that says so.
    pub const fn status(self) -> Status {
        match self {
            Self::NotHap => Status::NotHap,
            Self::Passthrough => Status::Passthrough,
            Self::Altp2m => Status::Altp2m,
            Self::Nested => Status::Nested,
            Self::LogDirty => Status::LogDirty,
            Self::MemEvents => Status::MemEvents,
            Self::Dying => Status::Dying,
            Self::PvhDom0 => Status::PvhDom0,
            Self::PopulateOnDemand => Status::PopulateOnDemand,
            Self::NoZeroFrames => Status::NoZeroFrames,
        }
    }
}

/// Flag of `lacuna_x_share_zero`: the page's bytes must be zero (`LACUNA_SHARE_ONLY_ZERO`).
pub const SHARE_ONLY_ZERO: u32 = 1;

/// Reason of `lacuna_core_reset`: the domain went through a soft reset (`LACUNA_RESET_SOFT`). There is no
/// other.
pub const RESET_SOFT: u32 = 1;

/// The registers of one virtual CPU, read while it does not run (`struct lacuna_vcpu`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuRegisters {
    /// CR0.
    pub cr0: u64,
    /// CR3, with PCID bits.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// `IA32_EFER`.
    pub efer: u64,
    /// Base of the interrupt descriptor table.
    pub idt_base: u64,
    /// `IA32_LSTAR`.
    pub lstar: u64,
    /// `IA32_SYSENTER_EIP`.
    pub sysenter_eip: u64,
    /// Limit of the interrupt descriptor table, in bytes minus one.
    pub idt_limit: u32,
    /// Bit 0: the virtual CPU is online (it has been brought up and not taken down).
    pub flags: u32,
}

impl VcpuRegisters {
    /// Bit of `flags`: online (`LACUNA_VCPU_ONLINE`).
    pub const ONLINE: u32 = 1;
}
