//! What the hypervisor writes into an entry that must not be written through (`lacuna_p2m_protected` and
//! `P2M_NEVER_WRITABLE_TYPES` in `patches/`), and what a processor makes of it.
//!
//! Xen's log-dirty type is read-only only where faults tell which pages are written to. Where the processor
//! logs them (page-modification logging), 4 KiB entries of that type are writable; tracking a guest's video
//! memory switches this on.

/// How the processor tells which pages a guest has written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logging {
    /// By a fault for each.
    Faults,
    /// It logs them by itself.
    Hardware,
}

/// The type of the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    /// `p2m_ram_ro`, which no mode makes writable.
    NeverWritable,
    /// `p2m_ram_logdirty`.
    LogDirty,
}

/// How entries are protected, on which kind of processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Protection {
    pub(crate) kind: Type,
    pub(crate) logging: Logging,
}

impl Protection {
    /// What Xen does, where the other way would go wrong.
    pub(crate) const REAL: Self = Self {
        kind: Type::NeverWritable,
        logging: Logging::Hardware,
    };

    /// Every way that is safe.
    pub(crate) const SAFE: [Self; 3] = [
        Self::REAL,
        Self {
            logging: Logging::Faults,
            ..Self::REAL
        },
        Self {
            kind: Type::LogDirty,
            logging: Logging::Faults,
        },
    ];

    /// The way that is not.
    pub(crate) const UNSAFE: Self = Self {
        kind: Type::LogDirty,
        logging: Logging::Hardware,
    };

    /// Whether a guest can write through a 4 KiB entry that is protected.
    pub(crate) fn is_writable(self) -> bool {
        self == Self::UNSAFE
    }
}
