//! Where what is known of kernels comes from, apart from the guest itself.

use std::path::PathBuf;

use super::linux::layout::DEFAULT_FOLDER;
use super::linux::packages::DEFAULT_CACHE;
use super::linux::stub::toolchain::Compiler;

/// Which source of a Linux kernel's layout to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LayoutChoice {
    /// Every one that is to be had; they must agree.
    #[default]
    Auto,
    /// The headers, compiled and run, alone.
    Stub,
    /// The kernel's VMCOREINFO note alone.
    Vmcoreinfo,
    /// The kernel's BTF alone.
    Btf,
}

/// Where a Windows kernel's PDB comes from.
#[derive(Clone, Debug, Default)]
pub struct SymbolSources {
    /// The PDB itself.
    pub pdb: Option<PathBuf>,
    /// Folders and servers, in the syntax of `_NT_SYMBOL_PATH`.
    pub path: Option<String>,
    /// Asks no server, only folders.
    pub offline: bool,
}

/// Where what is known of kernels comes from. By default, where it usually is.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The kernel's header tree, or its sources.
    pub headers: Option<PathBuf>,
    /// A layout file.
    pub layout: Option<PathBuf>,
    /// The kernel's System.map.
    pub system_map: Option<PathBuf>,
    /// The kernel's configuration.
    pub config: Option<PathBuf>,
    /// The compiler for headers; the first that is installed if left out.
    pub compiler: Option<Compiler>,
    /// Which source of the layout to use.
    pub choice: LayoutChoice,
    /// The folder of layouts and of imported facts.
    pub layouts: PathBuf,
    /// The folder in which fetched headers are kept.
    pub header_cache: PathBuf,
    /// Where a Windows kernel's PDB comes from.
    pub symbols: SymbolSources,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            headers: None,
            layout: None,
            system_map: None,
            config: None,
            compiler: None,
            choice: LayoutChoice::Auto,
            layouts: DEFAULT_FOLDER.into(),
            header_cache: DEFAULT_CACHE.into(),
            symbols: SymbolSources::default(),
        }
    }
}
