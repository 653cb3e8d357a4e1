//! The steps in which the guest leaves its domain: a save to a file, and a migration.

use std::fs;
use std::path::Path;
use std::time::Duration;

use lacuna_guest::Task;
use lacuna_scenarios::wire::Outcome;

use super::super::migration::{intact, left_in_use, zeroed};
use super::steps::Steps;
use super::{MOVED_SERIAL, NAME, SERIAL, Tried, configuration};
use crate::failure::Result;
use crate::guest::PAGES_PER_MIB;
use crate::host::Host;
use crate::migration::{Journey, compare, migrate};

/// How long a guest that goes on may take to answer, and how often it is asked.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
const TRIES: u32 = 5;
/// The configuration with which the guest arrives.
const MOVED: &str = "/root/try.moved.cfg";
/// Where the guest is saved.
const FILE: &str = "/root/try.saved";

impl Tried<'_> {
    /// Saved to a file and restored it goes on.
    pub(super) fn saved(&mut self, host: &mut Host, steps: &mut Steps) -> Result<()> {
        steps.begin(host, "save and restore")?;
        host.xl(&["save", NAME, FILE])?;
        let mib = fs::metadata(FILE)?.len() >> 20;
        host.xl(&["restore", FILE])?;
        fs::remove_file(FILE)?;
        self.guest.domain = host.domain_number(NAME)?;
        self.goes_on(SERIAL)?;
        self.attached_again(host)?;
        let detail = format!(
            "{mib} MiB for a guest of {}; it goes on, and is attached again",
            self.trial.mib
        );
        steps.end(host, Outcome::Good, &detail)
    }

    /// Moved to another domain of this host it goes on, and its memory is the same on both sides while it
    /// stands still.
    pub(super) fn migrated(&mut self, host: &mut Host, steps: &mut Steps) -> Result<()> {
        steps.begin(host, "migration")?;
        let pages = u64::from(self.trial.mib) * PAGES_PER_MIB;
        let mut in_use = 0;
        fs::write(MOVED, configuration(self.trial, MOVED_SERIAL)?)?;
        let journey = Journey {
            options: &["-C", MOVED],
            ..Journey::default()
        };
        let arrival = migrate(host, &mut self.guest, journey, |host, still| {
            let differences = compare(still, pages)?;
            intact(&differences)?;
            zeroed(&differences)?;
            in_use = left_in_use(host, still, &differences)?.len();
            Ok(())
        })?;
        self.goes_on(MOVED_SERIAL)?;
        self.attached_again(host)?;
        let sum = |of: fn(&crate::stream::tally::Iteration) -> u64| arrival.report.sum(of);
        let detail = format!(
            "{} pages sent, {} left out, {} MiB; the rest is equal on both sides",
            sum(|iteration| iteration.data),
            sum(|iteration| iteration.skipped),
            arrival.report.bytes >> 20
        );
        match in_use {
            0 => steps.end(host, Outcome::Good, &detail),
            // A page that was taken off the free list and not written yet is not told from one that was.
            _ => steps.end(
                host,
                Outcome::Weaker,
                &format!("{detail}; {in_use} of those left out were taken meanwhile"),
            ),
        }
    }

    /// Talks with the guest where it is now, over the socket `serial` if it is one with a device model.
    fn goes_on(&mut self, serial: &str) -> Result<()> {
        if self.trial.hvm {
            self.guest.connect_serial(Path::new(serial))?;
        }
        self.still_runs()?;
        if !self.agent {
            return Ok(());
        }
        // A kernel that is resumed sets its serial port up again, which drops what has come by then: the
        // agent may see the rest of an order, and says that it is none.
        let mut tries = 1;
        loop {
            match self.guest.order(Task::Health, ANSWER_LIMIT) {
                Ok(_) => return Ok(()),
                Err(_) if self.trial.hvm && tries < TRIES => tries += 1,
                Err(failure) => return Err(failure),
            }
        }
    }

    /// A profile is one boot's and one domain's: the toolstack, or an operator, attaches again.
    fn attached_again(&self, host: &mut Host) -> Result<()> {
        host.lacuna(&self.attach_line())?;
        host.lacuna(&["dedup", NAME])?;
        Ok(())
    }
}
