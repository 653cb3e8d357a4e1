//! The host, for scenarios: xl, lacuna, free memory and guests, and reports to the lab.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use lacuna_scenarios::wire::Event;
use serde_json::Value;

use crate::channel::Channel;
use crate::failure::{Failure, Result, differs, ensure};
use crate::guest::{CONSOLES, Guest, Plan};
use crate::services::xen;
use crate::tool::{self, Answer};

/// Interval at which something awaited is checked.
const POLL: Duration = Duration::from_millis(50);

/// Memory that Xen takes for a neighbour beside what it is given, in MiB: its page tables and its paging
/// pool.
const NEIGHBOUR_OVERHEAD_MIB: u64 = 24;

/// What guests that take memory back leave to others, in MiB (`FLOOR_PAGES` in `patches/`).
pub(crate) const FLOOR_MIB: u64 = 8;

/// What the host may lack when guests are gone, in MiB: Xen's own pools keep what they have grown to, and
/// `xl info` rounds.
const SLACK_MIB: u64 = 2;

/// The host, as a scenario sees it.
pub(crate) struct Host<'a> {
    channel: &'a mut Channel,
}

impl<'a> Host<'a> {
    /// Creates the host, which reports over `channel`.
    pub(crate) fn new(channel: &'a mut Channel) -> Self {
        Self { channel }
    }

    /// Tells the lab what is going on.
    pub(crate) fn note(&mut self, text: &str) -> Result<()> {
        self.channel.send(&Event::Note {
            text: text.to_owned(),
        })
    }

    /// Tells the lab a measured figure.
    pub(crate) fn figure(&mut self, name: &str, value: impl Into<Value>) -> Result<()> {
        self.channel.send(&Event::Figure {
            name: name.to_owned(),
            value: value.into(),
        })
    }

    /// Tells the lab that `domain` shut down before any operation of Lacuna on it.
    pub(crate) fn died_untouched(&mut self, domain: u16) -> Result<()> {
        self.channel.send(&Event::DiedUntouched { domain })
    }

    /// Runs xl and returns what it wrote. The lab's log of the scenario names each call.
    pub(crate) fn xl(&mut self, arguments: &[&str]) -> Result<String> {
        self.log("commands.log", &format!("xl {}\n", arguments.join(" ")))?;
        run(&mut xen("sbin/xl", arguments))
    }

    /// Returns the number of the domain called `name`.
    pub(crate) fn domain_number(&mut self, name: &str) -> Result<u16> {
        let text = self.xl(&["domid", name])?;
        text.trim()
            .parse()
            .map_err(|_| differs("`xl domid`", "a number", &text))
    }

    /// Creates a paused guest, `neighbour`, that takes all but `left` of the `free` MiB that the host has
    /// free.
    pub(crate) fn crowd(&mut self, free: u64, left: u64) -> Result<()> {
        let neighbour = Plan {
            mib: u32::try_from(free.saturating_sub(left + NEIGHBOUR_OVERHEAD_MIB)).unwrap_or(u32::MAX),
            ..Plan::stock("neighbour", "6.12")
        };
        self.note(&format!(
            "a neighbour takes {} of the {free} MiB free",
            neighbour.mib
        ))?;
        self.xl(&["create", "-q", "-p", &neighbour.write()?])?;
        Ok(())
    }

    /// Adds `text` to a log of the scenario on the lab's side.
    pub(crate) fn log(&mut self, file: &str, text: &str) -> Result<()> {
        // Whole lines would be nice to have; whole serial writes of bounded size are needed.
        let characters: Vec<char> = text.chars().collect();
        for chunk in characters.chunks(2048) {
            self.channel.send(&Event::Log {
                file: file.to_owned(),
                text: chunk.iter().collect(),
            })?;
        }
        Ok(())
    }

    /// Runs `lacuna --json`, which must succeed, and returns what it answered.
    pub(crate) fn lacuna(&mut self, arguments: &[&str]) -> Result<Answer> {
        let answer = self.ask_lacuna(arguments)?;
        if answer.status == 0 {
            return Ok(answer);
        }
        let seen = format!("exit status {}: {}", answer.status, answer.body);
        Err(differs(
            &format!("lacuna {}", arguments.join(" ")),
            "success",
            &seen,
        ))
    }

    /// Runs `lacuna --json` and returns what it answered, a failure too.
    pub(crate) fn ask_lacuna(&mut self, arguments: &[&str]) -> Result<Answer> {
        let answer = tool::ask(arguments)?;
        let text = format!(
            "lacuna {}\n  {} {}\n",
            arguments.join(" "),
            answer.status,
            answer.body
        );
        self.log("commands.log", &text)?;
        Ok(answer)
    }

    /// Returns the names of the domains that exist, dom0 included.
    pub(crate) fn domains(&mut self) -> Result<Vec<String>> {
        let listing = self.xl(&["list"])?;
        Ok(listing
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().next())
            .map(Into::into)
            .collect())
    }

    /// Creates a guest and waits until its agent answers.
    pub(crate) fn create(&mut self, plan: &Plan) -> Result<Guest> {
        self.note(&format!(
            "creating {} ({}, {} MiB, {} vCPUs)",
            plan.name, plan.kernel, plan.mib, plan.vcpus
        ))?;
        Guest::create(self, plan)
    }

    /// Fails unless the host's free memory is `before` MiB again, as when there were no guests.
    pub(crate) fn expect_free(&mut self, before: u64) -> Result<()> {
        let after = settled_free_mib()?;
        self.figure("host_free_before", before)?;
        self.figure("host_free_after", after)?;
        ensure(
            after + SLACK_MIB >= before,
            "the host's free memory when the guests are gone",
            &format!("{before} MiB, as before they came"),
            &format!("{after} MiB"),
        )
    }

    /// Destroys every guest that a scenario left behind, and gives the lab the consoles' logs.
    pub(crate) fn clean_up(&mut self) -> Result<()> {
        for name in self.domains()? {
            if name != "Domain-0" {
                self.xl(&["destroy", &name])?;
            }
        }
        for entry in fs::read_dir(CONSOLES)? {
            let path = entry?.path();
            let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
            let file = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            self.log(&file, &text)?;
            fs::remove_file(&path)?;
        }
        Ok(())
    }
}

/// Returns the free host memory in MiB, as `xl info` shows it. Scrubbing lags behind freeing: see
/// [`settled_free_mib`].
pub(crate) fn free_mib() -> Result<u64> {
    of_information("free_memory")
}

/// Returns the host memory in MiB that is claimed for domains being built, as `xl info` shows it.
pub(crate) fn claimed_mib() -> Result<u64> {
    of_information("outstanding_claims")
}

/// Returns the number called `name` in `xl info`.
fn of_information(name: &str) -> Result<u64> {
    let information = information()?;
    let text = information.get(name).cloned().unwrap_or_default();
    text.parse()
        .map_err(|_| differs(&format!("{name} of `xl info`"), "a number", &text))
}

/// Waits until the free host memory does not change any more, and returns it in MiB.
pub(crate) fn settled_free_mib() -> Result<u64> {
    let mut last = free_mib()?;
    wait_until(
        "the host's free memory stands still",
        Duration::from_secs(60),
        || {
            std::thread::sleep(Duration::from_millis(500));
            let now = free_mib()?;
            let settled = now == last;
            last = now;
            Ok(settled.then_some(now))
        },
    )
}

/// Returns Xen's version.
pub(crate) fn xen_version() -> Result<String> {
    let information = information()?;
    let field = |name: &str| information.get(name).cloned().unwrap_or_default();
    Ok(format!(
        "{}.{}{}",
        field("xen_major"),
        field("xen_minor"),
        field("xen_extra")
    ))
}

/// Returns Xen's major and minor version.
pub(crate) fn xen_release() -> Result<(u32, u32)> {
    let information = information()?;
    let number = |name: &str| {
        let text = information.get(name).cloned().unwrap_or_default();
        // `xen_minor` may have more behind the number.
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits
            .parse()
            .map_err(|_| differs(&format!("{name} of `xl info`"), "a number", &text))
    };
    Ok((number("xen_major")?, number("xen_minor")?))
}

/// Returns the fields of `xl info`.
fn information() -> Result<BTreeMap<String, String>> {
    let text = run(&mut xen("sbin/xl", &["info"]))?;
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    Ok(fields
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect())
}

/// Runs a program to its end and returns its standard output; a failure carries both outputs.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let _ = write!(line, " {}", argument.to_string_lossy());
    }
    let ran = command.output().map_err(|error| Failure::Program {
        command: line.clone(),
        status: error.to_string(),
        output: String::new(),
    })?;
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    if ran.status.success() {
        return Ok(text);
    }
    let output = format!("{}{}", text, String::from_utf8_lossy(&ran.stderr));
    Err(Failure::Program {
        command: line,
        status: ran.status.to_string(),
        output: output.trim().to_owned(),
    })
}

/// Looks until `look` finds something, at most for `limit`.
pub(crate) fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if started.elapsed() >= limit {
            return Err(Failure::Late {
                what: what.to_owned(),
                limit,
                seen: "nothing".to_owned(),
            });
        }
        std::thread::sleep(POLL);
    }
}
