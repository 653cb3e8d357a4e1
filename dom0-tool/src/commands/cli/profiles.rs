//! `lacuna profile` and `lacuna symbols` on the command line.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::guests::DumpSource;
use super::kernels::{LayoutSource, SymbolSource};
use super::values::parse_word;
use crate::failure::{Class, Failure};
use crate::ops::fetch::Wanted;
use crate::ops::guest::Guest;
use crate::os::linux::layout::DEFAULT_FOLDER;
use crate::os::linux::packages::DEFAULT_CACHE;

/// `lacuna profile ...`.
#[allow(clippy::large_enum_variant)] // there is one, parsed once
#[derive(Debug, Subcommand)]
pub enum ProfileCommand {
    /// Build a profile of a guest, or, with --headers alone, a layout of a kernel
    ///
    /// A layout is the part of a profile that is the same for every boot of a kernel build. It can be made on
    /// any machine that has the kernel's headers, gcc and ld. Dom0 then needs none of them.
    Build(ProfileBuild),
    /// Fetch the headers of a guest's kernel, so that `build` and `attach` find them
    ///
    /// The package comes through apt, from the archives that this machine uses or, if they do not have it,
    /// from the other releases of Debian's archive. It is unpacked into a cache and not installed: nothing on
    /// this machine changes. If apt does not have the package, the command says what to fetch by hand.
    Fetch(ProfileFetch),
    /// Show a profile or a layout: a file, or what a domain has
    Show(ProfileShow),
    /// Write what a Windows kernel's PDB says to a small file, for a host without network
    Export(ProfileExport),
    /// Keep what `export` wrote elsewhere, so that the kernel's PDB is not needed here
    Import(ProfileImport),
}

/// `lacuna profile build`.
#[derive(Debug, Args)]
pub struct ProfileBuild {
    /// Number or name of the domain; without it, and without --dump, a layout is made
    #[arg(conflicts_with = "dump", required_unless_present_any = ["dump", "headers"])]
    pub domain: Option<String>,
    /// The dump, and its registers
    #[command(flatten)]
    pub dump: DumpSource,
    /// Where the layout comes from
    #[command(flatten)]
    pub layout: LayoutSource,
    /// For a layout of sources that were never built and do not know it: what the kernel calls itself, as
    /// `uname -r` has it
    #[arg(long, value_name = "RELEASE", conflicts_with_all = ["domain", "dump"])]
    pub release: Option<String>,
    /// File to write
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// What a guest's kernel is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GuestArch {
    /// 64 bits
    Amd64,
    /// 32 bits
    I386,
}

/// `lacuna profile fetch`.
#[derive(Debug, Args)]
pub struct ProfileFetch {
    /// Number or name of the domain whose kernel's headers are wanted
    #[arg(conflicts_with_all = ["dump", "release"], required_unless_present_any = ["dump", "release"])]
    pub domain: Option<String>,
    /// The dump, and its registers
    #[command(flatten)]
    pub dump: DumpSource,
    /// The kernel's release, as `uname -r` prints it
    #[arg(long, value_name = "RELEASE", conflicts_with = "dump")]
    pub release: Option<String>,
    /// What the kernel is built for [default: by the name of the release, else amd64]
    #[arg(long, value_enum, requires = "release")]
    pub arch: Option<GuestArch>,
    /// The release of the guest's distribution, for example bookworm [default: this machine's, then every one
    /// of Debian's]
    #[arg(long, value_name = "NAME", value_parser = parse_word)]
    pub suite: Option<String>,
    /// The distribution's archive, as in apt's sources [default: this machine's]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_word)]
    pub mirror: Option<String>,
    /// The keys that the archive's lists are signed with, as in apt's signed-by [default: Debian's and
    /// Ubuntu's, where they are]
    #[arg(long, value_name = "FILE")]
    pub keyring: Option<PathBuf>,
    /// Folder to keep headers in
    #[arg(long, value_name = "DIR", default_value = DEFAULT_CACHE)]
    pub header_cache: PathBuf,
}

/// `lacuna profile export`.
#[derive(Debug, Args)]
pub struct ProfileExport {
    /// A PDB, a kernel's executable, or a PDB's path in a symbol store (NAME/GUIDAGE/NAME)
    pub what: String,
    /// Where to find the PDB, if only its name is given
    #[command(flatten)]
    pub symbols: SymbolSource,
    /// File to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `lacuna profile import`.
#[derive(Debug, Args)]
pub struct ProfileImport {
    /// A file that `lacuna profile export` wrote, or a Windows kernel's symbol table of Volatility 3 (ISF;
    /// also .xz, .gz)
    pub file: PathBuf,
    /// Folder to keep it in, where later commands look
    #[arg(long, value_name = "DIR", default_value = DEFAULT_FOLDER)]
    pub layouts: PathBuf,
}

/// `lacuna symbols ...`.
#[derive(Debug, Subcommand)]
pub enum SymbolsCommand {
    /// Find the PDB of an executable, fetch it if necessary, and print where it is
    Fetch(SymbolsFetch),
}

/// `lacuna symbols fetch`.
#[derive(Debug, Args)]
pub struct SymbolsFetch {
    /// A kernel's executable, or a PDB's path in a symbol store (NAME/GUIDAGE/NAME)
    pub what: String,
    /// Where to look
    #[command(flatten)]
    pub symbols: SymbolSource,
}

/// `lacuna profile show`.
#[derive(Debug, Args)]
pub struct ProfileShow {
    /// A file, or the number or name of a domain
    pub what: String,
}

impl ProfileBuild {
    /// Returns the guest that was named, if any was.
    pub(crate) fn chosen(&self) -> Option<Guest> {
        self.dump.or_domain(self.domain.as_deref())
    }
}

impl ProfileFetch {
    /// Returns which guest's or which release's headers are wanted.
    pub(crate) fn wanted(&self) -> Result<Wanted, Failure> {
        if let Some(release) = &self.release {
            return Ok(Wanted::Kernel {
                release: release.clone(),
                architecture: self.arch.map(|arch| match arch {
                    GuestArch::Amd64 => "amd64",
                    GuestArch::I386 => "i386",
                }),
            });
        }
        self.dump
            .or_domain(self.domain.as_deref())
            .map(Wanted::Guest)
            // The command line's rules leave no other case.
            .ok_or_else(|| Failure::plain(Class::Failed, "no guest was named"))
    }
}
