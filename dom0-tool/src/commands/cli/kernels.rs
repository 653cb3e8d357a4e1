//! What the command line says of where knowledge of kernels comes from.

use std::path::PathBuf;

use clap::Args;

use crate::os::linux::layout::DEFAULT_FOLDER;
use crate::os::linux::packages::DEFAULT_CACHE;
use crate::os::linux::stub::toolchain::Compiler;
use crate::os::{LayoutChoice, Sources, SymbolSources};

/// Which source of the kernel's layout to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SourceChoice {
    /// All that are available; they have to agree
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
    /// The guest kernel's System.map: a second source for symbols, and with --headers what tells a kernel
    /// that has no VMCOREINFO
    #[arg(long, value_name = "FILE")]
    pub system_map: Option<PathBuf>,
    /// The guest kernel's configuration. It is compared with what the guest's memory shows, and used with
    /// sources that have none
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
    /// Where to look for PDBs: folders and servers, as in `srv*CACHE*URL;FOLDER` [default:
    /// `$_NT_SYMBOL_PATH`, then Microsoft's public server behind a local cache]
    #[arg(long, value_name = "PATH")]
    pub symbols: Option<String>,
    /// Look in folders only, ask no server
    #[arg(long)]
    pub offline: bool,
}

impl From<SourceChoice> for LayoutChoice {
    fn from(choice: SourceChoice) -> Self {
        match choice {
            SourceChoice::Auto => Self::Auto,
            SourceChoice::Stub => Self::Stub,
            SourceChoice::Vmcoreinfo => Self::Vmcoreinfo,
            SourceChoice::Btf => Self::Btf,
        }
    }
}

impl From<&SymbolSource> for SymbolSources {
    fn from(source: &SymbolSource) -> Self {
        Self {
            pdb: source.pdb.clone(),
            path: source.symbols.clone(),
            offline: source.offline,
        }
    }
}

impl From<&LayoutSource> for Sources {
    fn from(source: &LayoutSource) -> Self {
        Self {
            headers: source.headers.clone(),
            layout: source.layout.clone(),
            system_map: source.system_map.clone(),
            config: source.config.clone(),
            compiler: source.compiler.map(Into::into),
            choice: source.source.into(),
            layouts: source.layouts.clone(),
            header_cache: source.header_cache.clone(),
            symbols: (&source.symbols).into(),
        }
    }
}
