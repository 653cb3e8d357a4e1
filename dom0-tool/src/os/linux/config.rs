//! A kernel's configuration file (`.config`, `/boot/config-RELEASE`): one more witness of what the guest's
//! memory shows.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use lacuna_core::PagingLevels;
use thiserror::Error;

/// Largest file read, in bytes. Debian's have 280 KiB.
const MAX_FILE: u64 = 8 << 20;

/// Why a configuration is of no use.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{}: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// The file is no configuration of a kernel.
    #[error("{} is not a kernel's configuration: it has no CONFIG_... line", file.display())]
    Format {
        /// The file.
        file: PathBuf,
    },
    /// The configuration and the guest differ.
    #[error("{option} is {by_config} by the configuration, and the guest's kernel is {by_guest}")]
    Disagrees {
        /// The option.
        option: &'static str,
        /// By the file.
        by_config: &'static str,
        /// By the guest's memory.
        by_guest: &'static str,
    },
}

/// The options that are set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    set: BTreeMap<String, String>,
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError::Io`], [`ConfigError::Format`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let io_error = |cause| ConfigError::Io {
            file: path.to_owned(),
            cause,
        };
        let mut bytes = Vec::new();
        fs::File::open(path)
            .map_err(io_error)?
            .take(MAX_FILE)
            .read_to_end(&mut bytes)
            .map_err(io_error)?;
        let config = Self::parse(&String::from_utf8_lossy(&bytes));
        if config.set.is_empty() {
            return Err(ConfigError::Format {
                file: path.to_owned(),
            });
        }
        Ok(config)
    }

    /// Parses the text of a configuration. What is no `CONFIG_...=value` is passed over.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| {
            let (name, value) = line.trim().split_once('=')?;
            name.starts_with("CONFIG_")
                .then(|| (name.to_owned(), value.to_owned()))
        });
        Self { set: lines.collect() }
    }

    /// Whether an option is built in.
    pub fn has(&self, option: &str) -> bool {
        self.set.get(option).is_some_and(|value| value == "y")
    }

    /// The configuration as the compiler sees it: the text of `autoconf.h` (`scripts/kconfig/confdata.c`).
    pub fn autoconf(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.set {
            // Writing to a String cannot fail.
            let _ = match value.as_str() {
                "y" => writeln!(text, "#define {name} 1"),
                "m" => writeln!(text, "#define {name}_MODULE 1"),
                other => writeln!(text, "#define {name} {other}"),
            };
        }
        text
    }

    /// Holds the configuration against what the guest's memory shows.
    ///
    /// # Errors
    /// [`ConfigError::Disagrees`].
    pub fn check(&self, levels: PagingLevels, memory_model: &str) -> Result<(), ConfigError> {
        let set = |yes: bool| if yes { "set" } else { "not set" };
        let require = |option: &'static str, holds: bool, by_guest: &'static str| {
            if self.has(option) == holds {
                Ok(())
            } else {
                Err(ConfigError::Disagrees {
                    option,
                    by_config: set(self.has(option)),
                    by_guest,
                })
            }
        };
        let narrow = levels.is_32_bit();
        require(
            "CONFIG_X86_64",
            !narrow,
            if narrow { "a 32-bit one" } else { "a 64-bit one" },
        )?;
        if narrow {
            let pae = levels == PagingLevels::Pae;
            require(
                "CONFIG_X86_PAE",
                pae,
                if pae { "one with PAE" } else { "one without PAE" },
            )?;
        }
        let (model, by_guest) = match memory_model {
            "flatmem" => ("CONFIG_FLATMEM", "a FLATMEM one"),
            "discontigmem" => ("CONFIG_DISCONTIGMEM", "a DISCONTIGMEM one"),
            "sparsemem-vmemmap" => ("CONFIG_SPARSEMEM", "a SPARSEMEM_VMEMMAP one"),
            _ => ("CONFIG_SPARSEMEM", "a SPARSEMEM one without VMEMMAP"),
        };
        // A kernel has one model.
        for option in ["CONFIG_FLATMEM", "CONFIG_DISCONTIGMEM", "CONFIG_SPARSEMEM"] {
            require(option, option == model, by_guest)?;
        }
        let is_virtual = memory_model == "sparsemem-vmemmap";
        require("CONFIG_SPARSEMEM_VMEMMAP", is_virtual, by_guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_of_another_kernel_is_noticed() {
        let config = Config::parse(
            "# comment\nCONFIG_X86_64=y\nCONFIG_SPARSEMEM=y\nCONFIG_SPARSEMEM_VMEMMAP=y\nCONFIG_X=m\n",
        );
        assert!(config.check(PagingLevels::Four, "sparsemem-vmemmap").is_ok());
        assert!(matches!(
            config.check(PagingLevels::Pae, "flatmem"),
            Err(ConfigError::Disagrees {
                option: "CONFIG_X86_64",
                ..
            })
        ));
        assert!(matches!(
            config.check(PagingLevels::Four, "flatmem"),
            Err(ConfigError::Disagrees {
                option: "CONFIG_FLATMEM",
                ..
            })
        ));
        assert!(!config.has("CONFIG_X"));
    }

    #[test]
    fn a_configuration_of_another_memory_model_is_noticed_whichever_they_are() {
        let models = [
            ("flatmem", "CONFIG_FLATMEM=y\n"),
            ("discontigmem", "CONFIG_DISCONTIGMEM=y\n"),
            ("sparsemem", "CONFIG_SPARSEMEM=y\nCONFIG_SPARSEMEM_EXTREME=y\n"),
            (
                "sparsemem-vmemmap",
                "CONFIG_SPARSEMEM=y\nCONFIG_SPARSEMEM_VMEMMAP=y\n",
            ),
        ];
        for (guest, _) in models {
            for (by_config, options) in models {
                let config = Config::parse(&format!("CONFIG_X86_64=y\n{options}"));
                assert_eq!(
                    config.check(PagingLevels::Four, guest).is_ok(),
                    guest == by_config,
                    "{guest}, {by_config}"
                );
            }
        }
    }
}
