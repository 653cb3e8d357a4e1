//! The steps of a share slice, and the test-only ways to leave one out.

/// A step left out or moved, to show that tests notice. Exists only with the feature `mutants`.
///
/// Steps that come in pairs (resume, unlock, restore, release) are not here but for `NoRestore`: the mock
/// guest's audit after every operation sees a pair that is not closed.
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// *pause* left out: the guest runs on (slice).
    NoPause,
    /// *identify* left out (slice).
    NoIdentify,
    /// *identify* before *pause* (slice).
    IdentifyFirst,
    /// *recheck* left out: the scan is trusted, which is *recheck* moved to before *pause*. For equal pages:
    /// not compared.
    NoRecheck,
    /// The comparison before *protect* (equal pages).
    RecheckFirst,
    /// The flush after *share* left out.
    NoFlush,
    /// *resume* before *recheck* (slice).
    ResumeFirst,
    /// *resume* before *flush* (slice).
    ResumeBeforeFlush,
    /// Old frames freed before *flush*. While the guest is stopped that harms nobody, so in a slice both come
    /// after *resume*.
    ReleaseFirst,
    /// The p2m lock not taken.
    NoLock,
    /// *protect* left out (content).
    NoProtect,
    /// *protect* left out for the page whose frame is to be shared (equal pages).
    NoProtectPartner,
    /// The flush after *protect* left out (content).
    NoProtectFlush,
    /// The entry left read-only when the page is not shared (content).
    NoRestore,
}

/// Which steps a slice takes: all of them, in their order. Only with the test-only feature `mutants` is there
/// another value, so a build without it cannot leave a step out.
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

/// Whether `steps` carries one of the named mutations; the constant `false` where mutations do not exist.
macro_rules! mutated {
    ($steps:expr, $($name:ident)|+) => {{
        #[cfg(feature = "mutants")]
        {
            matches!($steps.mutation, Some($($crate::Mutation::$name)|+))
        }
        #[cfg(not(feature = "mutants"))]
        {
            let _ = $steps;
            false
        }
    }};
}

pub(crate) use mutated;
