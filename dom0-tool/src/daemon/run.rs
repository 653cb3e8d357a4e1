//! The daemon's life: configuration, lock, server, and the loop.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Parser;
use rustix::fs::{FlockOperation, flock};
use tracing::{error, info, warn};

use crate::daemon::config::{Config, ConfigError, DEFAULT_FILE};
use crate::daemon::log;
use crate::daemon::metrics::Snapshot;
use crate::daemon::recorder::{EventQueue, Recorder};
use crate::daemon::server::{MetricsPage, Server};
use crate::daemon::signals::{Signals, Wake};
use crate::daemon::supervisor::Supervisor;
use crate::failure::{Class, Failure};
use crate::ops::host::{ThisHost, Xen};

/// Lock file, which the running daemon holds. Two daemons would do no harm, but would do all work twice.
pub const LOCK: &str = "/run/lacuna/lacunad.lock";
/// Longest time to wait at once. It only limits how long a wrongly computed wait lasts.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Exit status of a wrong command line or configuration: clap's own.
const WRONG_USAGE: u8 = 2;
/// How often metrics are rendered at most.
const PUBLISH: Duration = Duration::from_millis(250);

/// Attaches guests when they appear, gives their free memory back to the host, and reports what it did.
#[derive(Debug, Parser)]
#[command(name = "lacunad", version, max_term_width = 100)]
#[command(
    after_help = "SIGTERM ends it, SIGHUP makes it read its configuration again. \
    Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 5 no Xen here or no xen_privcmd, 6 Xen without Lacuna, \
    7 another version of Xen's interfaces, 8 no rights."
)]
pub struct Arguments {
    /// Configuration; without this option and without the file, the defaults are used
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the configuration, show it, and end
    #[arg(long, visible_alias = "check")]
    pub check_config: bool,
    /// Attach every guest, do one round with each, and end
    #[arg(long, conflicts_with = "check_config")]
    pub once: bool,
}

/// Runs the daemon to its end. Returns the exit status.
pub fn run(arguments: &Arguments) -> u8 {
    let config = match load(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("lacunad: {error}");
            return WRONG_USAGE;
        }
    };
    if arguments.check_config {
        println!("{}", config.describe().trim_end());
        return 0;
    }
    match serve(arguments, config) {
        Ok(()) => 0,
        Err(failure) => {
            eprintln!("lacunad: {failure}");
            failure.class.exit_status()
        }
    }
}

/// Reads the configuration from `file`, or from the usual file, which may be absent.
///
/// # Errors
/// What is wrong with the file.
pub fn load(file: Option<&Path>) -> Result<Config, ConfigError> {
    match Config::load(file.unwrap_or(Path::new(DEFAULT_FILE))) {
        Err(ConfigError::Io { cause, .. }) if file.is_none() && cause.kind() == io::ErrorKind::NotFound => {
            Ok(Config::default())
        }
        other => other,
    }
}

fn serve(arguments: &Arguments, config: Config) -> Result<(), Failure> {
    let _lock = lock(Path::new(LOCK))?;
    let mut signals = Signals::take()?;
    let events = EventQueue::default();
    log::start(config.log_format, config.log_level, events.clone())
        .map_err(|error| Failure::plain(Class::Failed, error))?;
    let page = MetricsPage::default();
    let server = Server::start(&config.listen, &page).map_err(|error| {
        Failure::new(
            Class::Failed,
            format!("metrics cannot be served on {:?}: {error}", config.listen),
            "choose another place under [metrics], or \"off\"",
        )
    })?;
    let host = ThisHost::open()?;
    let mut recorder = Recorder::open(&config.history, events);
    let mut supervisor = Supervisor::new(host, config);
    info!(event = "daemon.started", version = env!("CARGO_PKG_VERSION"));
    // systemd takes the unit for started from here on; without systemd nobody is told.
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        warn!(event = "daemon.not_announced", what = %error);
    }
    tend(arguments, &mut supervisor, &mut signals, (&page, &mut recorder));
    info!(event = "daemon.stopped", guests = supervisor.guests().len());
    recorder.record(&supervisor, SystemTime::now());
    drop(server);
    Ok(())
}

fn tend<X: Xen>(
    arguments: &Arguments,
    supervisor: &mut Supervisor<X>,
    signals: &mut Signals,
    (page, recorder): (&MetricsPage, &mut Recorder),
) {
    let mut published = None;
    loop {
        let idle = supervisor.tick();
        let now = supervisor.now();
        // During a long piece of work the text is not needed after each part.
        if !idle.is_zero() || published.is_none_or(|at: Duration| now.saturating_sub(at) >= PUBLISH) {
            page.publish(Snapshot::of(supervisor).text());
            published = Some(now);
        }
        recorder.record(supervisor, SystemTime::now());
        if arguments.once && supervisor.all_served() {
            return;
        }
        match signals.wait(idle.min(LONGEST_WAIT)) {
            Wake::Time => {}
            Wake::Stop => return,
            Wake::Reload => reload(arguments, supervisor),
        }
    }
}

/// Reads the configuration again. A wrong one changes nothing.
fn reload<X: Xen>(arguments: &Arguments, supervisor: &mut Supervisor<X>) {
    match load(arguments.config.as_deref()) {
        Ok(config) => {
            let old = supervisor.config();
            // Where to listen, how to log and where the history is, is read only at the start.
            let restart = old.listen != config.listen
                || old.history != config.history
                || old.log_format != config.log_format
                || old.log_level != config.log_level;
            info!(event = "config.reloaded", needs_restart = restart);
            supervisor.configure(config);
        }
        Err(error) => error!(
            event = "config.refused",
            what = %error,
            remedy = "the configuration from before stays in force; see `lacunad --check`",
        ),
    }
}

/// Takes the lock. The system releases it when the process ends, however it ends.
fn lock(path: &Path) -> Result<File, Failure> {
    let failed = |error: io::Error| Failure::plain(Class::Failed, format!("{}: {error}", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
        Failure::new(
            Class::Failed,
            format!("{}: {}", path.display(), io::Error::from(error)),
            "another lacunad runs on this host",
        )
    })?;
    Ok(file)
}
