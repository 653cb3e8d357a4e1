//! The daemon's configuration file, TOML. `docs/daemon.md` describes it for operators.
//!
//! An unknown key is an error: otherwise a misspelt setting would silently do nothing. An error names the
//! line, what is written there, and what is allowed.

mod error;
mod raw;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lacuna_core::abi::GROUP_NAME_MAX;
use serde::Deserialize;
use toml::Spanned;

pub use error::ConfigError;
use raw::Raw;

use crate::ops::history::DEFAULT_FILE as DEFAULT_HISTORY;
use crate::os::linux::layout::DEFAULT_FOLDER;
use crate::os::windows::store::path::SymbolPath;

/// Where the file is unless the command line says otherwise.
pub const DEFAULT_FILE: &str = "/etc/lacuna/lacunad.toml";
/// Where metrics are served unless the file says otherwise.
const DEFAULT_SOCKET: &str = "/run/lacuna/metrics.sock";

/// What the daemon does with a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing at all. What was given back before stays so until the guest writes to it.
    Off,
    /// Attach it and look for free pages, to see what could be given back.
    Observe,
    /// Give free pages back.
    #[default]
    Free,
    /// The same, and share pages that hold the same bytes, in whatever use they are.
    #[serde(rename = "free+content")]
    FreeContent,
}

impl Mode {
    /// Returns the mode as the file has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Observe => "observe",
            Self::Free => "free",
            Self::FreeContent => "free+content",
        }
    }

    /// Returns whether free pages are given back.
    pub const fn gives_back(self) -> bool {
        matches!(self, Self::Free | Self::FreeContent)
    }

    /// Returns whether pages are shared by content.
    pub const fn has_content(self) -> bool {
        matches!(self, Self::FreeContent)
    }
}

/// What of a guest's free memory is given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Extent {
    /// What will stay free, as far as can be told ([`crate::policy`]).
    #[default]
    Settled,
    /// All of it, whatever that costs the guest.
    Everything,
}

impl Extent {
    /// Returns the extent as the file has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Everything => "everything",
        }
    }
}

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text, one line for each event.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// Which events are written: those of this level and graver ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What needs the operator.
    Error,
    /// What the operator may want to look into.
    Warn,
    /// What was done, one event for each guest that comes, goes or changes.
    #[default]
    Info,
    /// Every round.
    Debug,
}

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// On a Unix socket.
    Unix(PathBuf),
    /// On a port of the loopback interface.
    Tcp(SocketAddr),
}

/// The history that the daemon keeps ([`crate::ops::history`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Its file.
    pub file: PathBuf,
    /// Most MiB of it; 0 for none.
    pub mib: u64,
}

/// How one guest is treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Treatment {
    /// What is done.
    pub mode: Mode,
    /// What of its free memory is given back.
    pub extent: Extent,
    /// Between the beginnings of two rounds.
    pub interval: Duration,
    /// The trust group with whose members pages are shared by content; empty for none but the guest itself.
    pub group: String,
}

/// The configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Between two looks at which domains there are.
    pub poll: Duration,
    /// Most of one CPU that the daemon uses in the long run, hypercalls included, in per cent.
    pub cpu_percent: u32,
    /// After the first failure to attach a guest, until the next try.
    pub retry_first: Duration,
    /// Longest time between two tries.
    pub retry_longest: Duration,
    /// Folder of layouts.
    pub layouts: PathBuf,
    /// Folders in which PDBs are looked for, in the syntax of `_NT_SYMBOL_PATH`; that variable's if left out.
    pub symbols: Option<String>,
    /// How events are written.
    pub log_format: LogFormat,
    /// Which.
    pub log_level: LogLevel,
    /// Where metrics are served.
    pub listen: Listen,
    /// Free memory of the host, in MiB, below which nothing more is given back.
    pub reserve_mib: u64,
    /// The history.
    pub history: History,
    defaults: Treatment,
    domains: BTreeMap<String, Treatment>,
}

impl Default for Config {
    fn default() -> Self {
        // An empty file is a whole configuration; `an_empty_file_is_the_default` keeps this from failing.
        match Self::parse("", Path::new(DEFAULT_FILE)) {
            Ok(config) => config,
            Err(error) => unreachable!("an empty configuration is refused: {error}"),
        }
    }
}

impl Config {
    /// Reads `file`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|cause| ConfigError::Io {
            file: file.to_owned(),
            cause,
        })?;
        Self::parse(&text, file)
    }

    /// Reads a configuration from `text`; `file` is for messages.
    ///
    /// # Errors
    /// [`ConfigError::Line`].
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let source = Source { text, file };
        let raw: Raw = toml::from_str(text).map_err(|error| source.of_toml(&error))?;
        let daemon = raw.daemon;
        let defaults_group = source.group(raw.defaults.trust_group.as_ref())?;
        let defaults = Treatment {
            mode: raw.defaults.mode.unwrap_or_default(),
            extent: raw.defaults.give_back.unwrap_or_default(),
            interval: source.interval(raw.defaults.interval_seconds.as_ref(), Duration::from_secs(60))?,
            group: defaults_group.unwrap_or_default(),
        };
        let mut domains = BTreeMap::new();
        for (name, domain) in raw.domain {
            let group = source.group(domain.trust_group.as_ref())?;
            let treatment = Treatment {
                mode: domain.mode.unwrap_or(defaults.mode),
                extent: domain.give_back.unwrap_or(defaults.extent),
                interval: source.interval(domain.interval_seconds.as_ref(), defaults.interval)?,
                group: group.unwrap_or_else(|| defaults.group.clone()),
            };
            // A group that was asked for and does nothing would be taken for one that does.
            if let (Some(given), false, false) = (
                &domain.trust_group,
                treatment.group.is_empty(),
                treatment.mode.has_content(),
            ) {
                return Err(source.wrong(
                    given.span().start,
                    format!(
                        "a trust group, and the mode of guest {name:?} is {:?}",
                        treatment.mode.name()
                    ),
                    format!("a trust group where the mode is {:?}", Mode::FreeContent.name()),
                ));
            }
            domains.insert(name, treatment);
        }
        let retry_first = source.seconds(daemon.retry_first_seconds.as_ref(), 5, 1..=3600)?;
        let retry_longest = source.seconds(daemon.retry_longest_seconds.as_ref(), 600, 1..=86_400)?;
        let listen = match raw.metrics.listen {
            None => Listen::Unix(DEFAULT_SOCKET.into()),
            Some(listen) => source.listen(&listen)?,
        };
        let percent = source.number(daemon.cpu_percent.as_ref(), 5, 1..=100)?;
        Ok(Self {
            poll: source.seconds(daemon.poll_seconds.as_ref(), 2, 1..=3600)?,
            // At most 100.
            cpu_percent: u32::try_from(percent).unwrap_or(100),
            retry_first,
            retry_longest: retry_longest.max(retry_first),
            layouts: daemon.layouts.unwrap_or_else(|| DEFAULT_FOLDER.into()),
            symbols: source.symbols(daemon.symbols.as_ref())?,
            log_format: raw.log.format.unwrap_or_default(),
            log_level: raw.log.level.unwrap_or_default(),
            listen,
            reserve_mib: source.number(raw.host.reserve_mib.as_ref(), 256, 0..=1 << 30)?,
            history: History {
                file: raw.history.file.unwrap_or_else(|| DEFAULT_HISTORY.into()),
                mib: source.number(raw.history.mib.as_ref(), 16, 0..=1024)?,
            },
            defaults,
            domains,
        })
    }

    /// Returns how the guest called `name` is treated. A guest without a name is treated by the defaults.
    pub fn treatment(&self, name: Option<&str>) -> &Treatment {
        name.and_then(|name| self.domains.get(name))
            .unwrap_or(&self.defaults)
    }

    /// Renders the settings in force as text.
    pub fn describe(&self) -> String {
        use std::fmt::Write;
        let listen = match &self.listen {
            Listen::Off => "off".to_owned(),
            Listen::Unix(path) => format!("unix:{}", path.display()),
            Listen::Tcp(address) => format!("tcp:{address}"),
        };
        let mut text = format!(
            "poll every {} s, at most {} % of a CPU, retries after {} to {} s, layouts in {}\nmetrics on {listen}, reserve of {} MiB, at most {} MiB of history in {}\n",
            self.poll.as_secs(),
            self.cpu_percent,
            self.retry_first.as_secs(),
            self.retry_longest.as_secs(),
            self.layouts.display(),
            self.reserve_mib,
            self.history.mib,
            self.history.file.display(),
        );
        let each = self
            .domains
            .iter()
            .map(|(name, treatment)| (name.as_str(), treatment));
        for (name, treatment) in std::iter::once(("(any other)", &self.defaults)).chain(each) {
            let _ = write!(
                text,
                "guest {name}: {}, {}, a round every {} s",
                treatment.mode.name(),
                treatment.extent.name(),
                treatment.interval.as_secs_f64()
            );
            let _ = match (treatment.mode.has_content(), treatment.group.as_str()) {
                (false, _) => writeln!(text),
                (true, "") => writeln!(text, ", equal pages shared with no other guest"),
                (true, group) => writeln!(text, ", equal pages shared in trust group {group:?}"),
            };
        }
        text
    }
}

/// The text that messages point into.
struct Source<'t> {
    text: &'t str,
    file: &'t Path,
}

impl Source<'_> {
    fn wrong(&self, at: usize, what: impl AsRef<str>, allowed: impl AsRef<str>) -> ConfigError {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let text = self.text.lines().nth(line - 1).unwrap_or_default();
        ConfigError::Line {
            file: self.file.to_owned(),
            line,
            text: text.trim().to_owned(),
            what: one_line(what.as_ref()),
            allowed: one_line(allowed.as_ref()),
        }
    }

    /// Converts an error of the TOML parser, which names what it expected after a comma.
    fn of_toml(&self, error: &toml::de::Error) -> ConfigError {
        let at = error.span().map_or(0, |span| span.start);
        let message = error.message().trim();
        let (what, allowed) = match message.split_once(", expected ") {
            Some((what, allowed)) => (what, allowed.trim_start_matches("one of ")),
            None => (message, "TOML as docs/daemon.md describes it"),
        };
        self.wrong(at, what, allowed)
    }

    fn number(
        &self,
        given: Option<&Spanned<u64>>,
        default: u64,
        allowed: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        let Some(given) = given else { return Ok(default) };
        let value = *given.get_ref();
        if allowed.contains(&value) {
            return Ok(value);
        }
        Err(self.wrong(
            given.span().start,
            format!("{value} is out of range"),
            format!("{} to {}", allowed.start(), allowed.end()),
        ))
    }

    fn seconds(
        &self,
        given: Option<&Spanned<u64>>,
        default: u64,
        allowed: std::ops::RangeInclusive<u64>,
    ) -> Result<Duration, ConfigError> {
        self.number(given, default, allowed).map(Duration::from_secs)
    }

    fn interval(&self, given: Option<&Spanned<f64>>, default: Duration) -> Result<Duration, ConfigError> {
        let Some(given) = given else { return Ok(default) };
        let value = *given.get_ref();
        if (0.1..=86_400.0).contains(&value) {
            return Ok(Duration::from_secs_f64(value));
        }
        Err(self.wrong(
            given.span().start,
            format!("{value} is out of range"),
            "0.1 to 86400.0",
        ))
    }

    fn group(&self, given: Option<&Spanned<String>>) -> Result<Option<String>, ConfigError> {
        let Some(given) = given else { return Ok(None) };
        let name = given.get_ref();
        if name.len() <= GROUP_NAME_MAX && name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(Some(name.clone()));
        }
        Err(self.wrong(
            given.span().start,
            format!("{name:?} is no name of a trust group"),
            format!(
                "at most {GROUP_NAME_MAX} printable ASCII characters without spaces, or \"\" for no group"
            ),
        ))
    }

    fn symbols(&self, given: Option<&Spanned<String>>) -> Result<Option<String>, ConfigError> {
        let Some(given) = given.filter(|given| !given.get_ref().is_empty()) else {
            return Ok(None);
        };
        let path = given.get_ref();
        match SymbolPath::parse(path, Path::new("/")) {
            Ok(_) => Ok(Some(path.clone())),
            Err(error) => Err(self.wrong(
                given.span().start,
                error.to_string(),
                "folders and srv*FOLDER, separated by \";\", or \"\"",
            )),
        }
    }

    fn listen(&self, given: &Spanned<String>) -> Result<Listen, ConfigError> {
        let text = given.get_ref().as_str();
        let parsed = match text.split_once(':') {
            None if text == "off" => Some(Listen::Off),
            Some(("unix", path)) if path.starts_with('/') => Some(Listen::Unix(path.into())),
            Some(("tcp", address)) => address.parse::<SocketAddr>().ok().map(Listen::Tcp),
            _ => None,
        };
        let what = match parsed {
            // Metrics name guests and what they use, so they must not be served to other hosts.
            Some(Listen::Tcp(address)) if !address.ip().is_loopback() => {
                format!("{} is not an address of the loopback interface", address.ip())
            }
            Some(listen) => return Ok(listen),
            None => format!("{text:?} names no place to listen"),
        };
        Err(self.wrong(
            given.span().start,
            what,
            "\"off\", \"unix:/path\", \"tcp:127.0.0.1:PORT\" or \"tcp:[::1]:PORT\"",
        ))
    }
}

/// Returns the same text without line breaks: an error is one line of a journal.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
