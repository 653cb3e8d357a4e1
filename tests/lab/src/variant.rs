//! The kinds of hypervisor the lab builds. Each has a build tree of its own, so that none spoils another's
//! objects.

use crate::module::Kind;

/// One kind of hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Variant {
    /// Its name, which is also that of its directory.
    pub(crate) name: &'static str,
    /// Kconfig lines on top of [`BASE_CONFIG`].
    pub(crate) config: &'static [&'static str],
    /// The Rust object that goes into it.
    pub(crate) module: Kind,
}

/// Kconfig lines that every variant has: sharing is an expert's, unsupported option in Xen 4.20.
pub(crate) const BASE_CONFIG: &[&str] = &[
    "CONFIG_EXPERT=y",
    "CONFIG_UNSUPPORTED=y",
    "CONFIG_MEM_SHARING=y",
    "CONFIG_LACUNA=y",
];

/// Has Xen avoid what QEMU does wrong (docs/lab.md): for hypervisors that run under QEMU.
const EMULATED_EVENTS: &str = "CONFIG_SVM_TCG_EVENTS=y";
const EMULATED_PAE: &str = "CONFIG_HVM_TCG_PDPTE=y";

/// Whether allocations can be made to fail (docs/lab.md).
const FAILING: &str = "CONFIG_ALLOC_FAILURE=y";
const NOT_FAILING: &str = "# CONFIG_ALLOC_FAILURE is not set";

/// Whether log-dirty entries can be writable, as they are with page-modification logging (docs/lab.md).
const LOGGING: &str = "CONFIG_LOGDIRTY_WRITABLE=y";
const NOT_LOGGING: &str = "# CONFIG_LOGDIRTY_WRITABLE is not set";

/// Whether memory errors are handled on QEMU's processor (docs/lab.md).
const MEMORY_ERRORS: &str = "CONFIG_MEMORY_ERRORS=y";
const NO_MEMORY_ERRORS: &str = "# CONFIG_MEMORY_ERRORS is not set";

/// What a real host installs.
pub(crate) const PRODUCT: Variant = Variant {
    name: "product",
    config: &[
        "# CONFIG_DEBUG is not set",
        "# CONFIG_SVM_TCG_EVENTS is not set",
        "# CONFIG_HVM_TCG_PDPTE is not set",
        NOT_FAILING,
        NOT_LOGGING,
        NO_MEMORY_ERRORS,
    ],
    module: Kind::Release,
};

/// The same, for the emulator.
pub(crate) const RELEASE: Variant = Variant {
    name: "release",
    config: &[
        "# CONFIG_DEBUG is not set",
        EMULATED_EVENTS,
        EMULATED_PAE,
        NOT_FAILING,
        NOT_LOGGING,
        NO_MEMORY_ERRORS,
    ],
    module: Kind::Release,
};

/// A debug build, which checks its assertions and can have allocations fail, with the module that can leave a
/// step of a share slice out.
pub(crate) const MUTANTS: Variant = Variant {
    name: "mutants",
    config: &[
        "CONFIG_DEBUG=y",
        EMULATED_EVENTS,
        EMULATED_PAE,
        FAILING,
        LOGGING,
        MEMORY_ERRORS,
    ],
    module: Kind::Mutants,
};

/// With mandatory access control: Xen's own policy, compiled in, decides who may call Lacuna.
pub(crate) const FLASK: Variant = Variant {
    name: "flask",
    config: &[
        "# CONFIG_DEBUG is not set",
        EMULATED_EVENTS,
        EMULATED_PAE,
        NOT_FAILING,
        NOT_LOGGING,
        NO_MEMORY_ERRORS,
        "CONFIG_XSM=y",
        "CONFIG_XSM_FLASK=y",
        "CONFIG_XSM_FLASK_POLICY=y",
        "CONFIG_XSM_FLASK_DEFAULT=y",
    ],
    module: Kind::Release,
};
