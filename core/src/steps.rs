//! The steps of a share slice, and the test-only ways to leave one out.

/// A step left out or moved, to show that tests notice. Exists only with the feature `mutants`.
///
/// Steps that come in pairs (unpause, unlock, restore, release) are not here but for `NoRestore`: the mock guest's audit
/// after every operation sees a pair that is not closed.
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// P left out: the guest runs on (paused variant).
    NoPause,
    /// I left out (paused variant).
    NoGuard,
    /// C left out: the scan is trusted, which is C moved to before P or R.
    NoRecheck,
    /// The flush after S left out.
    NoFlush,
    /// U before C and S (paused variant).
    UnpauseFirst,
    /// Old frames freed before the flush. While the guest is stopped that harms nobody, so in the paused variant both
    /// come after U.
    ReleaseFirst,
    /// R left out (protected variant).
    NoProtect,
    /// C before R (protected variant).
    RecheckFirst,
    /// The flush after R left out (protected variant).
    NoProtectFlush,
    /// I before P (paused variant).
    GuardFirst,
    /// U before the flush (paused variant).
    UnpauseBeforeFlush,
    /// The p2m lock not taken.
    NoLock,
    /// The entry left read-only when the block is not shared (protected variant).
    NoRestore,
    /// R left out for the page whose frame is to be shared (content).
    NoProtectPartner,
}

/// Which steps a slice takes: all of them, in their order. Only with the test-only feature `mutants` is there another
/// value, so a build without it cannot leave a step out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steps {
    #[cfg(feature = "mutants")]
    pub(crate) mutation: Option<Mutation>,
}

#[cfg(feature = "mutants")]
impl Steps {
    /// The steps with one fault.
    pub const fn with(mutation: Mutation) -> Self {
        Self {
            mutation: Some(mutation),
        }
    }
}

/// Whether `steps` carries the named mutation; the constant `false` where mutations do not exist.
macro_rules! mutated {
    ($steps:expr, $name:ident) => {{
        #[cfg(feature = "mutants")]
        {
            $steps.mutation == Some($crate::Mutation::$name)
        }
        #[cfg(not(feature = "mutants"))]
        {
            let _ = $steps;
            false
        }
    }};
}

pub(crate) use mutated;
