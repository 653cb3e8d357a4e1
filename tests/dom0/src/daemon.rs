//! `lacunad` as a scenario runs it, and what it serves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::failure::{Result, differs, equal};
use crate::guest::CONSOLES;

/// Where the daemon serves its metrics.
const SOCKET: &str = "/run/lacuna/metrics.sock";
/// Its configuration.
const CONFIGURATION: &str = "/etc/lacuna/lacunad.toml";
/// Its events, beside the guests' consoles.
const LOG: &str = "lacunad.log";
/// How long a scrape may take: the daemon answers from memory.
const SCRAPE_LIMIT: Duration = Duration::from_secs(10);

/// A running daemon. It is killed when this value goes away.
pub(crate) struct Daemon {
    child: Child,
}

/// The daemon's metrics: samples, by name and labels as they stand.
pub(crate) struct Metrics(BTreeMap<String, f64>);

impl Daemon {
    /// Starts it with this configuration. Its events go to the scenario's logs.
    pub(crate) fn start(configuration: &str) -> Result<Self> {
        fs::create_dir_all("/etc/lacuna")?;
        fs::write(CONFIGURATION, configuration)?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(Path::new(CONSOLES).join(LOG))?;
        let child = Command::new("/usr/bin/lacunad")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self { child })
    }

    /// Kills the daemon, without a chance to do anything more.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks the daemon to end, which it has to do without an error.
    pub(crate) fn stop(mut self) -> Result<()> {
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::TERM,
        )?;
        let status = self.child.wait()?;
        equal("exit status of a daemon asked to end", &Some(0), &status.code())?;
        equal(
            "whether its socket is still there",
            &false,
            &Path::new(SOCKET).exists(),
        )
    }

    /// Makes the daemon read another configuration.
    pub(crate) fn configure(&self, configuration: &str) -> Result<()> {
        fs::write(CONFIGURATION, configuration)?;
        Ok(rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::HUP,
        )?)
    }

    /// Returns how often daemons of this scenario have logged `event`, in logs of the format `json`.
    pub(crate) fn told(event: &str) -> Result<usize> {
        let log = fs::read_to_string(Path::new(CONSOLES).join(LOG))?;
        Ok(log.matches(&format!("\"event\":\"{event}\"")).count())
    }

    /// Returns the metrics that the daemon serves; `None` while it does not answer yet. Fails if it has ended
    /// by itself.
    pub(crate) fn metrics(&mut self) -> Result<Option<Metrics>> {
        if let Some(status) = self.child.try_wait()? {
            return Err(differs("the daemon", "running", &status.to_string()));
        }
        let Ok(mut stream) = UnixStream::connect(SOCKET) else {
            return Ok(None);
        };
        stream.set_read_timeout(Some(SCRAPE_LIMIT))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let Some((head, body)) = answer.split_once("\r\n\r\n") else {
            return Err(differs("the daemon's answer to a scrape", "HTTP", &answer));
        };
        if !head.starts_with("HTTP/1.1 200 OK")
            || !head.contains("application/openmetrics-text; version=1.0.0")
        {
            return Err(differs(
                "the head of the daemon's answer",
                "200, OpenMetrics",
                head,
            ));
        }
        // It listens before it has looked at anything.
        if body.is_empty() {
            return Ok(None);
        }
        Metrics::read(body).map(Some)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Of a daemon that was waited for, the system says that it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Metrics {
    /// Reads text in the format of `OpenMetrics`, as strictly as what the daemon writes allows: each sample
    /// belongs to a family with a type and a definition, none comes twice, and the text is whole.
    fn read(text: &str) -> Result<Self> {
        let wrong = |what: &str, line: &str| differs("the daemon's metrics", what, line);
        let mut kinds = BTreeMap::new();
        let mut defined = BTreeSet::new();
        let mut samples = BTreeMap::new();
        let mut ended = false;
        for line in text.lines() {
            if ended {
                return Err(wrong("nothing after # EOF", line));
            }
            if line == "# EOF" {
                ended = true;
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').ok_or_else(|| wrong("a type", line))?;
                kinds.insert(name.to_owned(), kind.to_owned());
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, _) = rest.split_once(' ').ok_or_else(|| wrong("a definition", line))?;
                defined.insert(name.to_owned());
            } else if !line.starts_with("# UNIT ") {
                let (sample, value) = line.rsplit_once(' ').ok_or_else(|| wrong("a sample", line))?;
                let name = sample.split('{').next().unwrap_or_default();
                let family = if kinds.get(name).is_some_and(|kind| kind == "gauge") {
                    name
                } else {
                    let family = name.strip_suffix("_total").unwrap_or_default();
                    if kinds.get(family).is_none_or(|kind| kind != "counter") {
                        return Err(wrong("a gauge, or a counter that ends in _total", line));
                    }
                    family
                };
                if !defined.contains(family) {
                    return Err(wrong("a definition of each metric", line));
                }
                let value = value.parse().map_err(|_| wrong("a number", line))?;
                if samples.insert(sample.to_owned(), value).is_some() {
                    return Err(wrong("each sample once", line));
                }
            }
        }
        if ended {
            Ok(Self(samples))
        } else {
            Err(wrong("# EOF at the end", text))
        }
    }

    /// Returns the sample of `metric` for the guest called `name` with domain number `domain`, if there
    /// is one.
    pub(crate) fn of_guest(&self, metric: &str, name: &str, domain: u16) -> Option<f64> {
        self.0
            .get(&format!(
                "lacuna_guest_{metric}{{domain=\"{domain}\",name=\"{name}\"}}"
            ))
            .copied()
    }

    /// Returns the sample of `metric` without labels, if there is one.
    pub(crate) fn of_host(&self, metric: &str) -> Option<f64> {
        self.0.get(&format!("lacuna_{metric}")).copied()
    }

    /// Returns how many samples there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
