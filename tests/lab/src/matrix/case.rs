//! What the matrix boots: kernels, and variants of one.

/// A kernel of a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flavour {
    /// The Debian release.
    pub(crate) suite: &'static str,
    /// Its architecture.
    pub(crate) architecture: &'static str,
    /// The meta package is `linux-image-` and this.
    pub(crate) name: &'static str,
}

/// What is expected of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Not a page wrongly called free, none missed, with each source.
    Exact,
    /// Exit status 3, with this in the reason.
    Refused(&'static str),
}

/// What happens to a guest's memory before it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing.
    None,
    /// So many MiB are plugged in, above 4 GiB.
    PlugIn(u64),
    /// A balloon leaves so many MiB of them.
    BalloonTo(u64),
}

/// The dumps that are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Memory by guest-physical address, and an ELF core.
    RawAndElf,
    /// The core alone: raw, memory above 4 GiB would be mostly hole.
    Elf,
}

/// One boot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// Its name, by which it is chosen.
    pub(crate) name: &'static str,
    /// The kernel.
    pub(crate) flavour: Flavour,
    /// QEMU's processor.
    pub(crate) processor: &'static str,
    /// Loaded by the guest before anything else.
    pub(crate) module: Option<&'static str>,
    /// Added to the kernel's command line.
    pub(crate) words: &'static str,
    /// Added to QEMU's command line.
    pub(crate) machine: &'static [&'static str],
    /// What happens to its memory.
    pub(crate) change: Change,
    /// The dumps that are taken of it.
    pub(crate) taken: Taken,
    /// What must come of it.
    pub(crate) expected: Expected,
    /// Whether `cargo lab test` runs it, too.
    pub(crate) quick: bool,
}

impl Flavour {
    /// The release series of the stock kernel of its Debian release: another may be listed beside it, as 6.1
    /// is among the security fixes for Debian 11.
    pub(crate) fn series(self) -> Option<&'static str> {
        match self.suite {
            "bullseye" => Some("5.10"),
            "bookworm" => Some("6.1"),
            "trixie" => Some("6.12"),
            // The development release's moves.
            _ => None,
        }
    }
}

pub(crate) const fn amd64(suite: &'static str, name: &'static str) -> Flavour {
    Flavour {
        suite,
        architecture: "amd64",
        name,
    }
}

pub(crate) const fn i386(name: &'static str) -> Flavour {
    Flavour {
        suite: "bookworm",
        architecture: "i386",
        name,
    }
}

/// A kernel as it boots with nothing special.
pub(crate) const fn plain(name: &'static str, flavour: Flavour) -> Case {
    Case {
        name,
        flavour,
        processor: "EPYC",
        module: None,
        words: "",
        machine: &[],
        change: Change::None,
        taken: Taken::RawAndElf,
        expected: Expected::Exact,
        quick: false,
    }
}

const fn variant(name: &'static str, words: &'static str) -> Case {
    Case {
        words,
        ..plain(name, amd64("trixie", "amd64"))
    }
}

/// Every case.
pub(crate) const CASES: &[Case] = &[
    plain("5.10-amd64", amd64("bullseye", "amd64")),
    plain("5.10-cloud-amd64", amd64("bullseye", "cloud-amd64")),
    plain("5.10-rt-amd64", amd64("bullseye", "rt-amd64")),
    plain("6.1-amd64", amd64("bookworm", "amd64")),
    plain("6.1-cloud-amd64", amd64("bookworm", "cloud-amd64")),
    plain("6.1-rt-amd64", amd64("bookworm", "rt-amd64")),
    Case {
        processor: "qemu32",
        ..plain("6.1-686", i386("686"))
    },
    Case {
        processor: "qemu32,+pae,+nx",
        quick: true,
        ..plain("6.1-686-pae", i386("686-pae"))
    },
    Case {
        processor: "qemu32",
        words: "snap.decoys",
        ..plain("6.1-686-decoys", i386("686"))
    },
    Case {
        quick: true,
        ..plain("6.12-amd64", amd64("trixie", "amd64"))
    },
    plain("6.12-cloud-amd64", amd64("trixie", "cloud-amd64")),
    plain("6.12-rt-amd64", amd64("trixie", "rt-amd64")),
    plain("7-amd64", amd64("sid", "amd64")),
    plain("7-cloud-amd64", amd64("sid", "cloud-amd64")),
    Case {
        processor: "max",
        ..variant("6.12-5-level", "")
    },
    variant("6.12-nokaslr", "nokaslr"),
    variant("6.12-decoys", "snap.decoys"),
    Case {
        words: "snap.decoys",
        ..plain("5.10-decoys", amd64("bullseye", "amd64"))
    },
    variant("6.12-mem", "mem=400M"),
    variant("6.12-crashkernel", "crashkernel=128M"),
    variant("6.12-huge-pages", "hugepages=32 snap.huge=8"),
    variant("6.12-fragmented", "snap.fragment snap.fill=90"),
    // Debian's 6.12 has no CMA.
    Case {
        words: "cma=64M",
        ..plain("7-cma", amd64("sid", "amd64"))
    },
    Case {
        change: Change::PlugIn(256),
        taken: Taken::Elf,
        // The last word on -m counts; slots are what memory is plugged into.
        machine: &["-m", "1024,slots=2,maxmem=4G"],
        ..variant("6.12-hot-plug", "memhp_default_state=online snap.wait=more")
    },
    Case {
        change: Change::BalloonTo(768),
        module: Some("virtio_balloon"),
        machine: &["-device", "virtio-balloon-pci"],
        ..variant("6.12-balloon", "snap.wait=less")
    },
    variant("6.12-init-on-free", "init_on_free=1"),
    Case {
        machine: &[
            "-object",
            "memory-backend-ram,id=m0,size=512M",
            "-object",
            "memory-backend-ram,id=m1,size=512M",
            "-numa",
            "node,memdev=m0,cpus=0",
            "-numa",
            "node,memdev=m1,cpus=1",
        ],
        ..variant("6.12-two-nodes", "")
    },
    Case {
        expected: Expected::Refused("page_poison=1"),
        ..variant("6.12-page-poison", "page_poison=1")
    },
    Case {
        words: "page_poison=1",
        expected: Expected::Refused("page_poison=1"),
        ..plain("5.10-page-poison", amd64("bullseye", "amd64"))
    },
];

#[cfg(test)]
mod tests {
    use super::CASES;

    #[test]
    fn names_are_unique() {
        for (index, case) in CASES.iter().enumerate() {
            assert!(
                CASES[..index].iter().all(|other| other.name != case.name),
                "{} twice",
                case.name
            );
        }
    }
}
