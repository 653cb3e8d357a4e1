//! A guest with a disk and a network card, and what it is asked to do.

use std::net::Ipv4Addr;
use std::time::Duration;

use lacuna_guest::{FilesSeen, Report, Task, TrafficSeen};

use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::{Host, wait_until};
use crate::scenario::debian_host::{AGENT_LIMIT, MIB, expect, follow};

/// How long the agent may take for all of its files.
pub(super) const FILES_LIMIT: Duration = Duration::from_secs(300);
/// What a guest's files come to, in MiB, and how long it rests after each access, in ms.
const FILES_MIB: u32 = 48;
const FILES_REST_MS: u32 = 20;
/// What else it uses, in MiB, and how long it rests after each 2 MiB, in ms.
const WORK_MIB: u32 = 64;
const WORK_REST_MS: u32 = 200;
/// How long it rests after each answer to a message, in ms.
const TRAFFIC_REST_MS: u32 = 50;

/// What a guest is made of.
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// Added to xl's configuration: its disk and its card.
    pub(super) configuration: &'static str,
    /// What its disk is kept in: what the host reads there is what the disk's backend has written, which it
    /// is not on a block device over it.
    pub(super) disk: &'static str,
    /// Makes the contents of its files and messages.
    pub(super) seed: u64,
    pub(super) address: Ipv4Addr,
}

/// A running guest with its disk.
pub(super) struct Machine {
    pub(super) kind: &'static Kind,
    pub(super) guest: Guest,
}

impl Machine {
    /// Starts the guest, with its file system mounted and its card up.
    pub(super) fn start(host: &mut Host, kind: &'static Kind) -> Result<Self> {
        host.note(&format!("starting the guest {}", kind.name))?;
        let plan = Plan {
            mib: u32::try_from(MIB).unwrap_or(u32::MAX),
            initrd: "disks.initrd",
            // Debian's kernels clear each page when they hand it out: then it is the guest that takes it off
            // its zero frame, and never its disk or its card.
            extra: "init_on_alloc=0",
            configuration: kind.configuration,
            ..Plan::stock(kind.name, "debian")
        };
        let guest = Guest::start(host, kind.name, &plan.write()?)?;
        let mut machine = Self { kind, guest };
        machine.booted()?;
        Ok(machine)
    }

    /// Waits until the guest's agent is there, and has it mount its file system and set up its card.
    fn booted(&mut self) -> Result<()> {
        follow(&self.guest)?;
        self.guest.wait_ready()?;
        self.guest.order(Task::Mount, AGENT_LIMIT)?;
        let card = Task::CardUp {
            address: self.kind.address,
        };
        self.guest.order(card, AGENT_LIMIT).map(drop)
    }

    /// Starts reading and writing files, and using memory.
    pub(super) fn work(&mut self) -> Result<()> {
        let files = Task::FilesStart {
            seed: self.kind.seed,
            mib: FILES_MIB,
            rest_ms: FILES_REST_MS,
        };
        self.guest.order(files, AGENT_LIMIT)?;
        let memory = Task::WorkPaced {
            mib: WORK_MIB,
            seed: self.kind.seed,
            rest_ms: WORK_REST_MS,
        };
        self.guest.order(memory, AGENT_LIMIT).map(drop)
    }

    /// Stops that, and returns what files there are.
    pub(super) fn rest(&mut self, host: &mut Host) -> Result<FilesSeen> {
        let (blocks, _) = self.guest.end_work(FILES_LIMIT)?;
        host.figure(&format!("{}_blocks", self.kind.name), blocks)?;
        self.files(host, Task::FilesStop)
    }

    /// Fails unless the guest's files and memory are as they should be, and work on them goes on.
    pub(super) fn works(&mut self, host: &mut Host) -> Result<()> {
        let before = self.files(host, Task::FilesStatus)?;
        wait_until("work on the guest's files goes on", FILES_LIMIT, || {
            let now = self.files(host, Task::FilesStatus)?;
            Ok((now.read > before.read && now.written > before.written).then_some(()))
        })?;
        self.guest.work_so_far(AGENT_LIMIT).map(drop)
    }

    /// Gives an order about files, none of which may be wrong.
    pub(super) fn files(&mut self, host: &mut Host, task: Task) -> Result<FilesSeen> {
        let is_end = task != Task::FilesStatus;
        let sent = self.guest.send(task)?;
        let report = self.guest.answer(&sent, FILES_LIMIT)?;
        let seen = self.right(report)?;
        if is_end {
            host.figure(&format!("{}_pages_written", self.kind.name), seen.written)?;
            host.figure(&format!("{}_pages_read", self.kind.name), seen.read)?;
        }
        Ok(seen)
    }

    /// What a report tells of files, none of which may be wrong.
    pub(super) fn right(&self, report: Report) -> Result<FilesSeen> {
        match report {
            Report::Files(seen) if (seen.wrong, seen.errors) == (0, 0) => Ok(seen),
            other => Err(differs(
                &format!("the files of {}", self.kind.name),
                "no error, and what was written",
                &format!("{other:?}"),
            )),
        }
    }

    /// Has the guest read all files from its disk; they must be those that it had.
    pub(super) fn check(&mut self, host: &mut Host, had: &FilesSeen) -> Result<()> {
        let task = Task::FilesCheck { seed: self.kind.seed };
        let seen = self.files(host, task)?;
        self.same(had, &seen)
    }

    /// Fails where the files `seen` are not those that the guest `had`.
    pub(super) fn same(&self, had: &FilesSeen, seen: &FilesSeen) -> Result<()> {
        ensure(had.files > 0, "files", "some", "none")?;
        equal(
            &format!("files, pages and generations of {}", self.kind.name),
            &(had.files, had.pages, had.generations),
            &(seen.files, seen.pages, seen.generations),
        )
    }

    /// Has the kernel forget what it has read: its file system is taken off and mounted again.
    pub(super) fn forget(&mut self) -> Result<()> {
        self.guest.order(Task::Unmount, AGENT_LIMIT)?;
        self.guest.order(Task::Mount, AGENT_LIMIT).map(drop)
    }

    /// Starts sending messages to another guest.
    pub(super) fn talk_to(&mut self, peer: &Kind) -> Result<()> {
        let task = Task::TrafficStart {
            peer: peer.address,
            seed: self.kind.seed,
            rest_ms: TRAFFIC_REST_MS,
        };
        self.guest.order(task, AGENT_LIMIT).map(drop)
    }

    /// Gives an order about messages, none of which may be wrong.
    pub(super) fn traffic(&mut self, task: Task) -> Result<TrafficSeen> {
        match self.guest.order(task, FILES_LIMIT)? {
            Report::Traffic(seen) if (seen.wrong, seen.errors) == (0, 0) => Ok(seen),
            other => Err(differs(
                &format!("the messages of {}", self.kind.name),
                "no error, and what was sent",
                &format!("{other:?}"),
            )),
        }
    }

    /// Fails unless messages go on arriving.
    pub(super) fn talks(&mut self) -> Result<()> {
        let before = self.traffic(Task::TrafficStatus)?;
        wait_until("messages go on", FILES_LIMIT, || {
            let now = self.traffic(Task::TrafficStatus)?;
            Ok((now.pages > before.pages).then_some(()))
        })
    }

    /// The guest has another number now: it was restored, moved or restarted.
    pub(super) fn has_moved(&mut self, host: &mut Host) -> Result<()> {
        self.guest.domain = host.domain_number(self.kind.name)?;
        follow(&self.guest)
    }

    /// Has the guest restart itself, as a domain of another number, and waits until it is up.
    pub(super) fn restart(&mut self, host: &mut Host) -> Result<()> {
        let before = self.guest.domain;
        self.guest.send(Task::Restart)?;
        self.guest.domain = wait_until("the guest is a new domain", FILES_LIMIT, || {
            // There is none for a moment.
            let now = host.domain_number(self.kind.name).ok();
            Ok(now.filter(|number| *number != before))
        })?;
        self.booted()
    }

    /// Returns the memory that the guest's kernel manages, in pages.
    pub(super) fn total(&mut self) -> Result<u64> {
        match self.guest.order(Task::Health, AGENT_LIMIT)? {
            Report::Health { total_pages, .. } => Ok(total_pages),
            other => Err(differs("the guest's health", "its memory", &format!("{other:?}"))),
        }
    }

    /// Returns a figure of the guest's status.
    pub(super) fn status(&self, host: &mut Host, name: &str) -> Result<u64> {
        host.lacuna(&["status", self.kind.name])?.number(name)
    }

    /// Ends the guest, whose file system must be whole.
    pub(super) fn end(self, host: &mut Host) -> Result<()> {
        self.guest.destroy(host)?;
        let line = format!("sync; e2fsck -fn {}", self.kind.disk);
        expect(host, &line, 0, &[]).map(drop)
    }
}
