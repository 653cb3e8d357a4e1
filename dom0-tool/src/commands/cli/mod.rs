//! The command line.

mod guests;
mod kernels;
mod profiles;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::ops::{dedup, estimate};
use crate::os::linux::layout::DEFAULT_FOLDER;
use values::{parse_gfn, parse_group, parse_length, parse_seconds};

pub use guests::{DumpSource, Guest, OneDomain};
pub use kernels::{CompilerChoice, LayoutSource, SourceChoice, SymbolSource};
pub use profiles::{
    GuestArch, ProfileBuild, ProfileCommand, ProfileExport, ProfileFetch, ProfileImport, ProfileShow,
    SymbolsCommand, SymbolsFetch,
};

/// Lets Xen see which pages of a guest are free, and gives them back to the host.
#[derive(Debug, Parser)]
#[command(name = "lacuna", version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused as unsafe, 4 not found, \
    5 no Xen here or no xen_privcmd, 6 Xen without Lacuna, 7 another version of Xen's interfaces, 8 no rights, \
    9 a dump's scan whose kernel no register ties to a processor."
)]
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
    /// Identifies the guest's kernel, finds or makes its layout, builds the profile of this boot, gives it to
    /// the hypervisor, and scans once, so that the hypervisor can hold the scan against the guest's own
    /// counters. Nothing is shared yet.
    Attach(Attach),
    /// Take a guest's profile away
    ///
    /// Pages that were given back stay on zero frames: they are zero, and the guest gets a fresh page when it
    /// writes.
    Detach(OneDomain),
    /// Look for a guest's free pages
    Scan(Scan),
    /// Give a guest's pages back to the host: free pages, equal pages, or both
    ///
    /// The free stage (intro) scans, and puts free pages on zero frames. The content stage (dedup) hashes
    /// every page that is not shared yet, and puts zero pages on zero frames and equal pages on one frame. It
    /// needs no profile. It takes two rounds, because it leaves alone pages that have changed since the last
    /// round.
    Dedup(Dedup),
    /// Estimate what a migration of a guest would send and leave behind
    ///
    /// Counts what the first iteration would find now. Pages that the guest writes during a migration are
    /// sent again in later iterations, and are not counted here.
    Estimate(Estimate),
    /// Show the engine's counters for a guest; without a guest, what all guests could take back
    Status(Status),
    /// Watch all guests: memory held, free inside, given back and taken back
    ///
    /// On a terminal this is a live view: a bar for each guest; ? shows its keys. Elsewhere it prints a table
    /// for each interval.
    Top(Top),
    /// Show the host's day: memory given back and taken again, rounds, and what happened
    ///
    /// lacunad keeps a history of the host. With --output this draws it as a page for a browser, which needs
    /// nothing else; without, it prints a table.
    Report(Report),
    /// Check the host: what is wrong with it, and what to do
    ///
    /// Checks the hypervisor and its version, the libraries that xl and libvirt load, free memory against the
    /// reserve, the daemon, and for each guest whether Lacuna can work for it. Changes nothing. Exit status:
    /// 0 all is well, 3 something could be better, any other: the reason why Lacuna does not work here.
    Doctor,
    /// Explain one page of a guest
    Explain(Explain),
    /// Show what a Windows kernel's executable or PDB says
    ///
    /// For an executable: which PDB belongs to it, and under which path symbol stores keep it. For a PDB:
    /// which build it belongs to, how an entry of the page-frame database is laid out, and where the kernel's
    /// variables are.
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

/// `lacuna identify`.
#[derive(Debug, Args)]
pub struct Identify {
    /// The guest
    #[command(flatten)]
    pub guest: Guest,
    /// What tells one Windows kernel from another when a dump has no registers
    #[command(flatten)]
    pub symbols: SymbolSource,
    /// The System.map of a Linux kernel, by which one without VMCOREINFO is told
    #[arg(long, value_name = "FILE")]
    pub system_map: Option<PathBuf>,
    /// Folder in which `lacuna profile import` keeps its files
    #[arg(long, value_name = "DIR", default_value = DEFAULT_FOLDER)]
    pub layouts: PathBuf,
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
    /// Pause the guest for the first scan, so that its counters do not change meanwhile
    #[arg(long)]
    pub paused: bool,
}

/// `lacuna scan`.
#[derive(Debug, Args)]
pub struct Scan {
    /// The guest
    #[command(flatten)]
    pub guest: Guest,
    /// Where the layout comes from; only for a dump, since a domain has its profile
    #[command(flatten)]
    pub layout: LayoutSource,
    /// Write a bitmap of the free pages to FILE: one bit a page, lowest first
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
    /// Let the guest share equal pages with the members of this group from now on. Members can then find out,
    /// by timing their writes, what other members have in memory
    #[arg(long, value_name = "NAME", conflicts_with = "no_trust_group", value_parser = parse_group)]
    pub trust_group: Option<String>,
    /// Let the guest share pages with no other guest
    #[arg(long)]
    pub no_trust_group: bool,
    /// Number of rounds; 0: until interrupted [default: 1, with the content stage 2]
    #[arg(long, conflicts_with = "until_stable")]
    pub rounds: Option<u64>,
    /// Repeat until a round gives back less than a thousandth of what is free (at most 50 rounds)
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

impl From<Mode> for dedup::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Intro => Self::Intro,
            Mode::Dedup => Self::Dedup,
            Mode::IntroDedup => Self::IntroDedup,
        }
    }
}

/// `lacuna status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Number or name of the domain; without it, show the host's memory and what guests could take back
    pub domain: Option<String>,
}

/// `lacuna top`.
#[derive(Debug, Args)]
pub struct Top {
    /// Measure over one interval, print, and end; without it, go on until interrupted (with --json, print one
    /// line for each interval)
    #[arg(long)]
    pub once: bool,
    /// Length of the interval in seconds
    #[arg(long, default_value = "1", value_parser = parse_seconds)]
    pub interval: Duration,
    /// Show the live view without colours; so does the variable `NO_COLOR`
    #[arg(long)]
    pub no_color: bool,
}

/// `lacuna report`.
#[derive(Debug, Args)]
pub struct Report {
    /// How far back to look, such as 90m, 24h or 7d
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_length)]
    pub since: Duration,
    /// Write an HTML page to FILE
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The history; without this option, where the daemon of this host keeps it
    #[arg(long, value_name = "FILE")]
    pub history: Option<PathBuf>,
}

/// `lacuna estimate`.
#[derive(Debug, Args)]
pub struct Estimate {
    /// Number or name of the domain
    pub domain: String,
    /// Which host would receive the guest. With Lacuna it makes pages that were left behind read as zero
    #[arg(long, value_enum, default_value_t = Receiver::Unknown)]
    pub receiver: Receiver,
}

/// Who receives a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Receiver {
    /// Any host
    Unknown,
    /// A host with Lacuna (`xl migrate` asks it)
    Lacuna,
}

impl From<Receiver> for estimate::Receiver {
    fn from(receiver: Receiver) -> Self {
        match receiver {
            Receiver::Unknown => Self::Unknown,
            Receiver::Lacuna => Self::Lacuna,
        }
    }
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
    fn a_report_looks_back_as_far_as_it_is_told() {
        let since = |text: &str| match Cli::try_parse_from(["lacuna", "report", "--since", text]) {
            Ok(Cli {
                command: Command::Report(report),
                ..
            }) => Some(report.since.as_secs()),
            _ => None,
        };
        for (text, seconds) in [("90", 90), ("90m", 5400), ("24h", 86_400), ("7d", 604_800)] {
            assert_eq!(since(text), Some(seconds), "{text}");
        }
        for wrong in [
            "",
            "h",
            "-1h",
            "1w",
            "1.5h",
            "59s",
            "4000d",
            "99999999999999999999d",
            "2h30m",
        ] {
            assert_eq!(since(wrong), None, "{wrong}");
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
