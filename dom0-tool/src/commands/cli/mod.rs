//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lacuna_core::abi::GROUP_NAME_MAX;

use crate::os::linux::layout::DEFAULT_FOLDER;
use crate::os::linux::packages::DEFAULT_CACHE;
use crate::os::linux::stub::toolchain::Compiler;

/// Lets Xen see which pages of a guest are free, and gives them back to the host.
#[derive(Debug, Parser)]
#[command(name = "lacuna", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused as unsafe, 4 not found.")]
pub struct Cli {
    /// Print one JSON object on standard output instead of text (failures too)
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Find out which kernel a guest runs, and what confirms it
    Identify(Identify),
    /// Make or show profiles and layouts
    #[command(subcommand)]
    Profile(ProfileCommand),
    /// Profile a guest and hand the profile to the hypervisor
    ///
    /// Identifies the guest's kernel, finds or makes its layout, builds the profile of this boot, gives it to the
    /// hypervisor, and scans once, so that the hypervisor can hold the scan against the guest's own counters. Nothing
    /// is shared yet.
    Attach(Attach),
    /// Take a guest's profile away
    ///
    /// Pages that were given back stay on zero frames: they are zero, and the guest gets a fresh page when it writes.
    Detach(OneDomain),
    /// Look for a guest's free pages
    Scan(Scan),
    /// Give a guest's pages back to the host: those that it holds free, those that are equal, or both
    ///
    /// The free stage (intro) scans, and puts what is free on zero frames. The content stage (dedup) hashes every page
    /// that it has not shared yet, puts zero pages on zero frames and equal pages on one frame; it needs no profile, and
    /// two rounds, as it leaves alone what has changed since the last one.
    Dedup(Dedup),
    /// Tell beforehand what a migration of a guest would send and leave behind
    ///
    /// Counts what the first iteration would find now. A guest that writes meanwhile has pages sent again in later ones.
    Estimate(Estimate),
    /// Show what the engine knows and has done for a guest; without a guest, what all of them could take back
    Status(Status),
    /// Watch all guests: what they hold, have free, have given back and take back
    Top(Top),
    /// Explain one page of a guest
    Explain(Explain),
    /// Show what a Windows kernel's executable or PDB says
    ///
    /// Of an executable: which PDB belongs to it, and under which path symbol stores keep that. Of a PDB: which build
    /// it belongs to, how an entry of the page-frame database is laid out, and where the kernel's variables are.
    Inspect(Inspect),
    /// Find PDBs in symbol stores
    #[command(subcommand)]
    Symbols(SymbolsCommand),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages
    Man {
        /// Folder to write them to
        folder: PathBuf,
    },
}

/// A domain.
#[derive(Debug, Args)]
pub struct OneDomain {
    /// Number or name of the domain
    pub domain: String,
}

/// A domain, or a file of its memory.
#[derive(Debug, Args)]
pub struct Guest {
    /// Number or name of the domain
    #[arg(required_unless_present = "dump", conflicts_with = "dump")]
    pub domain: Option<String>,
    /// What of a dump
    #[command(flatten)]
    pub dump: DumpSource,
}

/// A dump, and what completes its registers.
#[derive(Debug, Args)]
pub struct DumpSource {
    /// Read guest memory from a file: raw (byte N is guest-physical byte N), an ELF core (QEMU's dump-guest-memory), or a
    /// Xen core (xl dump-core)
    #[arg(long, value_name = "FILE")]
    pub dump: Option<PathBuf>,
    /// The virtual CPUs' registers: the text of QEMU's `info registers -a`, or JSON (docs/profile.md)
    #[arg(long, value_name = "FILE", requires = "dump", conflicts_with = "domain")]
    pub registers: Option<PathBuf>,
    /// CR3 of the first virtual CPU, hexadecimal
    #[arg(long, value_name = "HEX", requires = "dump", conflicts_with = "domain",
        value_parser = parse_hexadecimal)]
    pub cr3: Option<u64>,
    /// Base of the first virtual CPU's IDT, hexadecimal
    #[arg(long, value_name = "HEX", requires = "dump", conflicts_with = "domain",
        value_parser = parse_hexadecimal)]
    pub idt: Option<u64>,
    /// `IA32_LSTAR` of the first virtual CPU, hexadecimal
    #[arg(long, value_name = "HEX", requires = "dump", conflicts_with = "domain",
        value_parser = parse_hexadecimal)]
    pub lstar: Option<u64>,
}

/// Which source of the kernel's layout to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SourceChoice {
    /// Every one that is to be had; they must agree
    Auto,
    /// The headers, compiled and run, alone
    Stub,
    /// The kernel's VMCOREINFO note alone
    Vmcoreinfo,
    /// The kernel's BTF alone
    Btf,
}

/// A C compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CompilerChoice {
    /// GNU's
    Gcc,
    /// LLVM's
    Clang,
}

impl From<CompilerChoice> for Compiler {
    fn from(choice: CompilerChoice) -> Self {
        match choice {
            CompilerChoice::Gcc => Self::Gcc,
            CompilerChoice::Clang => Self::Clang,
        }
    }
}

/// Where the layout comes from.
#[derive(Debug, Args)]
pub struct LayoutSource {
    /// The guest kernel's header tree, or its sources with --config [default: where distributions put it]
    #[arg(long, value_name = "DIR", conflicts_with = "layout")]
    pub headers: Option<PathBuf>,
    /// A layout file
    #[arg(long, value_name = "FILE")]
    pub layout: Option<PathBuf>,
    /// The guest kernel's System.map, a second source for symbols
    #[arg(long, value_name = "FILE")]
    pub system_map: Option<PathBuf>,
    /// The guest kernel's configuration: held against what its memory shows, and used with sources that have none
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The compiler for headers [default: the first of these that is installed]
    #[arg(long, value_enum, value_name = "NAME")]
    pub compiler: Option<CompilerChoice>,
    /// Which source of the kernel's layout to use
    #[arg(long, value_enum, value_name = "SOURCE", default_value_t = SourceChoice::Auto)]
    pub source: SourceChoice,
    /// Folder in which to look for RELEASE.layout.json
    #[arg(long, value_name = "DIR", default_value = DEFAULT_FOLDER)]
    pub layouts: PathBuf,
    /// Folder in which `lacuna profile fetch` keeps headers
    #[arg(long, value_name = "DIR", default_value = DEFAULT_CACHE)]
    pub header_cache: PathBuf,
    /// Where a Windows kernel's PDB comes from
    #[command(flatten)]
    pub symbols: SymbolSource,
}

/// Where a Windows kernel's PDB comes from.
#[derive(Debug, Args)]
pub struct SymbolSource {
    /// A Windows kernel's PDB
    #[arg(long, value_name = "FILE")]
    pub pdb: Option<PathBuf>,
    /// Where to look for PDBs: folders and servers, as in `srv*CACHE*URL;FOLDER` [default: `$_NT_SYMBOL_PATH`, then
    /// Microsoft's public server behind a cache of ours]
    #[arg(long, value_name = "PATH")]
    pub symbols: Option<String>,
    /// Ask no server, only folders
    #[arg(long)]
    pub offline: bool,
}

/// `lacuna identify`.
#[derive(Debug, Args)]
pub struct Identify {
    /// The guest
    #[command(flatten)]
    pub guest: Guest,
    /// What tells one Windows kernel from another when a dump has no registers
    #[command(flatten)]
    pub symbols: SymbolSource,
    /// Folder of what `lacuna profile import` kept
    #[arg(long, value_name = "DIR", default_value = DEFAULT_FOLDER)]
    pub layouts: PathBuf,
}

/// `lacuna profile ...`.
#[allow(clippy::large_enum_variant)] // there is one, parsed once
#[derive(Debug, Subcommand)]
pub enum ProfileCommand {
    /// Build a profile of a guest, or, with --headers alone, a layout of a kernel
    ///
    /// A layout is what of a kernel does not change from boot to boot. It can be made on any machine that has the
    /// kernel's headers, gcc and ld; Dom0 needs none of them then.
    Build(ProfileBuild),
    /// Fetch the headers of a guest's kernel, so that `build` and `attach` find them
    ///
    /// The package comes through apt, from the archives that this machine uses or, if they do not have it, from the other
    /// releases of Debian's archive. It is unpacked into a cache and not installed: nothing on this machine changes. Where
    /// apt cannot help, what to fetch by hand is told.
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
    /// What of a dump
    #[command(flatten)]
    pub dump: DumpSource,
    /// Where the layout comes from
    #[command(flatten)]
    pub layout: LayoutSource,
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
    /// Number or name of the domain whose kernel is meant
    #[arg(conflicts_with_all = ["dump", "release"], required_unless_present_any = ["dump", "release"])]
    pub domain: Option<String>,
    /// What of a dump
    #[command(flatten)]
    pub dump: DumpSource,
    /// The kernel itself, as `uname -r` has it
    #[arg(long, value_name = "RELEASE", conflicts_with = "dump")]
    pub release: Option<String>,
    /// What the kernel is built for [default: by the name of the release, else amd64]
    #[arg(long, value_enum, requires = "release")]
    pub arch: Option<GuestArch>,
    /// The release of the guest's distribution, for example bookworm [default: this machine's, then every one of Debian's]
    #[arg(long, value_name = "NAME", value_parser = parse_word)]
    pub suite: Option<String>,
    /// The distribution's archive, as in apt's sources [default: this machine's]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_word)]
    pub mirror: Option<String>,
    /// Folder to keep headers in
    #[arg(long, value_name = "DIR", default_value = DEFAULT_CACHE)]
    pub header_cache: PathBuf,
}

/// `lacuna profile export`.
#[derive(Debug, Args)]
pub struct ProfileExport {
    /// A PDB, a kernel's executable, or a PDB's path in a symbol store (NAME/GUIDAGE/NAME)
    pub what: String,
    /// Where a PDB comes from that is only named
    #[command(flatten)]
    pub symbols: SymbolSource,
    /// File to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `lacuna profile import`.
#[derive(Debug, Args)]
pub struct ProfileImport {
    /// A file that `lacuna profile export` wrote
    pub file: PathBuf,
    /// Folder to keep it in, where later commands look
    #[arg(long, value_name = "DIR", default_value = DEFAULT_FOLDER)]
    pub layouts: PathBuf,
}

/// `lacuna symbols ...`.
#[derive(Debug, Subcommand)]
pub enum SymbolsCommand {
    /// Find the PDB of an executable, fetching it if need be, and say where it is
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

/// `lacuna attach`.
#[derive(Debug, Args)]
pub struct Attach {
    /// Number or name of the domain
    pub domain: String,
    /// Where the layout comes from
    #[command(flatten)]
    pub layout: LayoutSource,
    /// Use a profile that was built before, in this boot of the guest
    #[arg(long, value_name = "FILE", conflicts_with_all = ["headers", "layout"])]
    pub profile: Option<PathBuf>,
    /// Pause the guest for the first scan, so that its counters stand still
    #[arg(long)]
    pub paused: bool,
}

/// `lacuna scan`.
#[derive(Debug, Args)]
pub struct Scan {
    /// The guest
    #[command(flatten)]
    pub guest: Guest,
    /// Where the layout comes from; for a dump only, a domain has its profile
    #[command(flatten)]
    pub layout: LayoutSource,
    /// Write the free pages there: a bit a page, lowest first
    #[arg(long, value_name = "FILE")]
    pub bitmap: Option<PathBuf>,
    /// Pause the guest during the scan
    #[arg(long, conflicts_with = "dump")]
    pub paused: bool,
}

/// `lacuna dedup`.
#[derive(Debug, Args)]
pub struct Dedup {
    /// Number or name of the domain
    pub domain: String,
    /// What to look for
    #[arg(long, value_enum, default_value_t = Mode::Intro)]
    pub mode: Mode,
    /// Let the guest share pages by content with the members of this group, and them with it, from now on. Guests can then
    /// find out, by the time that a write takes, what others of the group have in memory
    #[arg(long, value_name = "NAME", conflicts_with = "no_trust_group", value_parser = parse_group)]
    pub trust_group: Option<String>,
    /// Let the guest share pages with no other guest
    #[arg(long)]
    pub no_trust_group: bool,
    /// Rounds to do; 0 for ever [default: 1, with the content stage 2]
    #[arg(long, conflicts_with = "until_stable")]
    pub rounds: Option<u64>,
    /// Go on until a round gives back less than a thousandth of what is free (at most 50 rounds)
    #[arg(long)]
    pub until_stable: bool,
    /// Seconds between two rounds
    #[arg(long, default_value = "0", value_parser = parse_seconds)]
    pub interval: Duration,
}

/// What `lacuna dedup` looks for; the names are the paper's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Pages that the guest's kernel holds free
    Intro,
    /// Pages that are zero or equal
    Dedup,
    /// Free pages first, then equal ones among the rest
    #[value(name = "introdedup")]
    IntroDedup,
}

impl Mode {
    /// Whether free pages are looked for.
    pub const fn has_intro(self) -> bool {
        matches!(self, Self::Intro | Self::IntroDedup)
    }

    /// Whether equal pages are looked for.
    pub const fn has_content(self) -> bool {
        matches!(self, Self::Dedup | Self::IntroDedup)
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Intro => "intro",
            Self::Dedup => "dedup",
            Self::IntroDedup => "introdedup",
        }
    }
}

/// `lacuna status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Number or name of the domain; without it, the host's memory against what guests could take back
    pub domain: Option<String>,
}

/// `lacuna top`.
#[derive(Debug, Args)]
pub struct Top {
    /// Look twice, an interval apart, print, and end; without it, go on until interrupted (with --json, a line each time)
    #[arg(long)]
    pub once: bool,
    /// Seconds between two looks
    #[arg(long, default_value = "1", value_parser = parse_seconds)]
    pub interval: Duration,
}

/// `lacuna estimate`.
#[derive(Debug, Args)]
pub struct Estimate {
    /// Number or name of the domain
    pub domain: String,
    /// Who would receive the guest: a host with Lacuna makes what is left behind read as zero
    #[arg(long, value_enum, default_value_t = Receiver::Unknown)]
    pub receiver: Receiver,
}

/// Who receives a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Receiver {
    /// Any host
    Unknown,
    /// A host with Lacuna (the sender is told so with `LACUNA_MIGRATION=lacuna-receiver`)
    Lacuna,
}

/// `lacuna explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// Number or name of the domain
    pub domain: String,
    /// Number of the page (guest frame), decimal or 0x...
    #[arg(value_parser = parse_gfn)]
    pub gfn: u64,
}

/// `lacuna inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// A PE executable or a PDB
    pub file: PathBuf,
}

/// A word of a line of apt's sources.
fn parse_word(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_graphic() && !"[]#\"'".contains(c);
    if text.is_empty() || text.starts_with('-') || !text.chars().all(plain) {
        return Err("a word without blanks, brackets and quotes is wanted".into());
    }
    Ok(text.to_owned())
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|error| format!("not a number of seconds: {error}"))?;
    // A day: more is a mistake, or a task for a timer.
    if (0.0..=86_400.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("0 to 86400 seconds are possible".into())
    }
}

/// What the hypervisor accepts as the name of a trust group.
fn parse_group(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > GROUP_NAME_MAX {
        return Err(format!("a name has 1 to {GROUP_NAME_MAX} characters"));
    }
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("a name has printable ASCII characters, and no spaces".into())
    }
}

fn parse_hexadecimal(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16)
        .map_err(|error| format!("not a hexadecimal number: {error}"))
}

fn parse_gfn(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| format!("not a frame number: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_trust_group_has_a_name_that_the_hypervisor_takes() {
        let dedup = |name: &str| Cli::try_parse_from(["lacuna", "dedup", "web1", "--trust-group", name]);
        assert!(dedup("tenant-7").is_ok());
        for wrong in ["", "two words", "gr\u{fc}n", &"x".repeat(64)] {
            assert!(dedup(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_guest_is_a_domain_or_a_dump() {
        assert!(Cli::try_parse_from(["lacuna", "identify", "web1"]).is_ok());
        assert!(Cli::try_parse_from(["lacuna", "identify", "--dump", "m", "--registers", "r"]).is_ok());
        assert!(
            Cli::try_parse_from(["lacuna", "scan", "--dump", "m", "--cr3", "0x1000", "--idt", "f"]).is_ok()
        );
        for wrong in [
            &["lacuna", "identify"][..],
            &["lacuna", "identify", "web1", "--dump", "m"],
            &["lacuna", "identify", "web1", "--cr3", "1000"],
            &["lacuna", "identify", "--dump", "m", "--cr3", "there"],
        ] {
            let error = Cli::try_parse_from(wrong).map(|_| ()).expect_err("usage");
            assert_eq!(error.exit_code(), 2);
        }
    }
}
