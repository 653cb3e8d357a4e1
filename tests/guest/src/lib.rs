//! The messages between the agent inside a guest and the driver in dom0, and the layout of the guest's own
//! account of its free pages, which both share.
//!
//! Orders go in as lines of JSON on the guest's console; replies come out as lines that start with [`MARK`],
//! between whatever else the kernel writes there. The Windows-like guest (`tests/windows/kernel`) speaks the
//! same.

use serde::{Deserialize, Serialize};

pub mod filling;
pub mod programs;
mod seen;
pub mod truth;

pub use seen::{FilesSeen, TrafficSeen};

/// The beginning of each line of the agent.
pub const MARK: &str = "@@agent ";

/// The guest's disk, where it has one.
pub const DISK: &str = "xvda";

/// An order to the agent, with a number that its reply will carry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Chosen by the sender, not 0.
    pub id: u32,
    /// What to do.
    pub task: Task,
}

/// What the agent can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Task {
    /// Write random words to nearly all free memory, then free it: free pages are then not zero, and known
    /// (see [`filling`]).
    Fill,
    /// Start capturing which pages are free. Reply: [`Report::Truth`].
    TruthStart,
    /// Stop capturing and give its memory back.
    TruthStop,
    /// Start threads that allocate, write, check and free without pause.
    WorkStart {
        /// How many threads.
        threads: u32,
        /// How much memory all of them use at most, in MiB.
        mib: u32,
        /// Makes the written data this run's own.
        seed: u64,
    },
    /// The same with one thread, which rests after each block: a guest that is mostly idle. The same seed
    /// makes the same large blocks, in the same order.
    WorkPaced {
        /// How much memory it uses at most, in MiB.
        mib: u32,
        /// Makes the written data this run's own.
        seed: u64,
        /// How long it rests, in ms.
        rest_ms: u32,
    },
    /// How far the threads have come. Reply: [`Report::Work`].
    WorkStatus,
    /// Stop the threads, each after its last check. Reply: [`Report::Work`].
    WorkStop,
    /// Allocate memory, check that the kernel hands it out zeroed, and keep it.
    Grow {
        /// How much, in MiB.
        mib: u32,
    },
    /// Free what [`Task::Grow`] took.
    Shrink,
    /// Write pages with known contents and keep them: `kinds` times `copies` that are equal kind by kind, in
    /// turn, and `unique` that are like no other. The same numbers make the same pages in every guest. Reply:
    /// [`Report::Truth`] with the frame of each page.
    PatternMake {
        /// How many different contents have copies.
        kinds: u32,
        /// How many pages have each of them.
        copies: u32,
        /// How many pages have contents of their own.
        unique: u32,
        /// Makes the contents this run's own.
        seed: u64,
    },
    /// Look at every word of them. Reply: [`Report::Checked`].
    PatternCheck,
    /// Give every so many-th of them contents of its own.
    PatternRewrite {
        /// 1 for all.
        every: u32,
    },
    /// Start writing and checking them in random order, always contents that others have too.
    ChurnStart,
    /// Stop that, and look at all of them. Reply: [`Report::Checked`], with the pages written.
    ChurnStop,
    /// Replace the kernel by the one in the image, with KASLR off, by kexec. Reply: [`Report::Done`], before
    /// the jump; the new kernel's agent says [`Report::Ready`] again.
    Kexec,
    /// Put pages that are not zero where only zeroed ones belong: half of them on the list, half as if just
    /// taken off it. The Windows-like guest only.
    Lie {
        /// How many.
        pages: u32,
    },
    /// Look whether those pages still hold what was written to them. Reply: [`Report::Lies`].
    LiesCheck,
    /// Take pages off the zeroed list, in place of those taken before, and leave them as they are; or, with
    /// more than one of `copies`, make so many of them equal at a time. Reply: [`Report::Taken`]. The
    /// Windows-like guest only.
    TakePages {
        /// How many.
        pages: u32,
        /// How many are equal; 1 leaves them zero.
        copies: u32,
    },
    /// Read one of them.
    ReadPage {
        /// Its number.
        page: u32,
    },
    /// Make Xen write to one of them. Reply: [`Report::Handed`].
    HandPage {
        /// Its number.
        page: u32,
        /// What it is for.
        interface: Interface,
    },
    /// Give some of them up. Reply: [`Report::GivenUp`].
    GiveUp {
        /// The first one's number.
        from: u32,
        /// How many.
        pages: u32,
        /// How.
        way: Way,
    },
    /// Carry out operations at random on pages of the guest's own, and on Xen's interfaces that take pages;
    /// see `tests/windows/kernel/campaign.c`. Reply: [`Report::Operated`]. The Windows-like guest only.
    Operate {
        /// How many.
        operations: u32,
        /// Chooses them.
        seed: u64,
    },
    /// Look at every page of theirs whose contents are known. Reply: [`Report::Operated`].
    OperateCheck,
    /// Load the driver of Xen's virtual disks and write the whole of the disk [`DISK`], in pages with known
    /// contents, which the kernel keeps no copy of. Reply: [`Report::Disk`].
    DiskFill {
        /// Makes the contents this run's own.
        seed: u64,
    },
    /// Read all of it into the kernel's page cache, that is into memory which the kernel has not written to
    /// itself, and look at every word; and now and then write a page anew and read it back. What cannot be
    /// read or written is counted, and does not end it. Reply: [`Report::Disk`].
    DiskCheck {
        /// As it was filled with.
        seed: u64,
        /// Every so many-th page is written anew.
        every: u64,
    },
    /// Load the drivers that the image has, and mount the ext4 file system of the disk [`DISK`].
    Mount,
    /// Unmount it, with all that was written.
    Unmount,
    /// Fill it with files whose contents follow from their names, and go on reading them from the disk and
    /// writing them anew. What cannot be read or written is counted, and does not end it.
    FilesStart {
        /// Makes the contents this run's own.
        seed: u64,
        /// How much they come to, in MiB.
        mib: u32,
        /// How long to rest after each access, in ms.
        rest_ms: u32,
    },
    /// What has come of that so far. Reply: [`Report::Files`].
    FilesStatus,
    /// Stop that. Reply: [`Report::Files`], with the files that are there.
    FilesStop,
    /// Read all files that are there. Reply: [`Report::Files`].
    FilesCheck {
        /// As they were started with.
        seed: u64,
    },
    /// Give the network card an address, with a mask of 24 bits, and answer other guests' messages.
    CardUp {
        /// The address.
        address: std::net::Ipv4Addr,
    },
    /// Start sending messages to the guest with that address, each when the one before was answered.
    TrafficStart {
        /// The other guest's address.
        peer: std::net::Ipv4Addr,
        /// Makes the contents this run's own.
        seed: u64,
        /// How long to rest after each answer, in ms.
        rest_ms: u32,
    },
    /// What has come of that so far. Reply: [`Report::Traffic`].
    TrafficStatus,
    /// Stop that. Reply: [`Report::Traffic`].
    TrafficStop,
    /// What has come of other guests' messages so far. Reply: [`Report::Traffic`].
    CardStatus,
    /// Restart the machine. There is no reply.
    Restart,
    /// Run the programs of [`programs`], so many at a time in each phase, and rest between two phases.
    ProgramsStart {
        /// What they do.
        workload: programs::Workload,
        /// How many at a time, phase by phase.
        phases: Vec<u32>,
        /// How long to rest between two phases, in ms.
        rest_ms: u32,
    },
    /// How far they have come. Reply: [`Report::Programs`].
    ProgramsStatus,
    /// What the kernel has logged, and its memory counters. Reply: [`Report::Health`].
    Health,
}

/// An interface of Xen's that takes a page which the guest names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interface {
    /// Any hypercall that returns something in memory.
    CopyOut,
    /// The run state of a virtual CPU, at an address of the guest's.
    RunstateVirtual,
    /// Its time, likewise.
    TimeVirtual,
    /// Its run state, at a place in memory.
    Runstate,
    /// Its time, likewise.
    Time,
    /// Its `vcpu_info`.
    VcpuInfo,
    /// A frame of the grant table in the page's place.
    GrantTable,
    /// The shared info in the page's place.
    SharedInfo,
    /// The FIFO event channels' control block.
    EventControl,
    /// A page of their event array.
    EventArray,
    /// The hypercall page.
    HypercallPage,
    /// Viridian's hypercall page.
    ViridianHypercallPage,
    /// Viridian's page by which a guest reads the time (`HV_X64_MSR_REFERENCE_TSC`).
    ViridianTime,
    /// What a virtual CPU shares with Viridian (`HV_X64_MSR_VP_ASSIST_PAGE`).
    ViridianAssist,
    /// Where Viridian puts messages for a virtual CPU (`HV_X64_MSR_SIMP`).
    ViridianMessages,
}

impl Interface {
    /// Returns the first version of Xen that has the interface, if not every version does that the lab
    /// builds.
    #[must_use]
    pub const fn since(self) -> Option<(u32, u32)> {
        match self {
            // `VCPUOP_register_{runstate,vcpu_time}_phys_area` of Xen's `public/vcpu.h`.
            Self::Runstate | Self::Time => Some((4, 18)),
            _ => None,
        }
    }

    /// Those that each guest has, in an order in which they can be used one after another.
    pub const ALL: [Self; 11] = [
        Self::CopyOut,
        Self::RunstateVirtual,
        Self::TimeVirtual,
        Self::Runstate,
        Self::Time,
        Self::VcpuInfo,
        Self::GrantTable,
        Self::SharedInfo,
        Self::EventControl,
        Self::EventArray,
        Self::HypercallPage,
    ];

    /// Those of a guest to which Xen looks like Hyper-V.
    pub const VIRIDIAN: [Self; 4] = [
        Self::ViridianHypercallPage,
        Self::ViridianTime,
        Self::ViridianAssist,
        Self::ViridianMessages,
    ];
}

/// A way for a page to leave a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// `XENMEM_remove_from_physmap`.
    Remove,
    /// `XENMEM_decrease_reservation`.
    Decrease,
    /// `XENMEM_add_to_physmap` puts the page before it in its place.
    Over,
    /// `XENMEM_exchange` puts a fresh one in its place.
    Exchange,
    /// `XENMEM_populate_physmap` does.
    Populate,
}

impl Way {
    /// All of them; those that take memory come after those that give it.
    pub const ALL: [Self; 5] = [
        Self::Remove,
        Self::Decrease,
        Self::Over,
        Self::Exchange,
        Self::Populate,
    ];
}

/// A line of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The order's number; 0 for what the agent says on its own.
    pub id: u32,
    /// The message.
    pub report: Report,
}

/// A message of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Report {
    /// The guest is up.
    Ready {
        /// The kernel's release, as uname has it.
        release: String,
        /// The kernel's command line.
        command_line: String,
    },
    /// The order is done and there is nothing to tell.
    Done,
    /// Pages were allocated and looked at.
    Grown {
        /// How many pages of 4 KiB.
        pages: u64,
        /// How many of them were not all zero when handed out.
        dirty: u64,
    },
    /// Pages with known contents were looked at.
    Checked {
        /// How many.
        pages: u64,
        /// How many did not hold what was written.
        wrong: u64,
    },
    /// The truth is being captured, or pages with known contents were made.
    Truth {
        /// The guest frames of that memory, in order; see [`truth`] for what a capture's hold.
        gfns: Vec<u64>,
    },
    /// The workload's counters.
    Work {
        /// Blocks allocated, written, checked and freed.
        blocks: u64,
        /// Pages checked.
        pages: u64,
        /// Words that did not hold what was written.
        corrupt: u64,
    },
    /// A word that did not hold what was written; sent at once, by itself.
    Corrupt {
        /// The address in the agent.
        address: u64,
        /// What was written.
        expected: u64,
        /// What is there.
        seen: u64,
    },
    /// The state of the pages that were lied about.
    Lies {
        /// How many there are.
        pages: u64,
        /// How many do not hold what was written to them.
        lost: u64,
    },
    /// Pages were taken off the zeroed list.
    Taken {
        /// How many.
        pages: u64,
        /// The guest frames of the first of them, 32 at most.
        gfns: Vec<u64>,
    },
    /// A page was handed to Xen.
    Handed {
        /// Xen's error number; 0 for none.
        error: u64,
    },
    /// Pages were given up.
    GivenUp {
        /// How many Xen took.
        pages: u64,
    },
    /// What came of operations at random, since the guest started.
    Operated {
        /// How many were carried out.
        operations: u64,
        /// How many Xen refused although it can do them.
        refused: u64,
        /// Looks at a page that did not hold what it must.
        wrong: u64,
    },
    /// What came of work on a disk.
    Disk {
        /// Pages written or read.
        pages: u64,
        /// Pages that did not hold what was written.
        wrong: u64,
        /// Accesses that failed.
        errors: u64,
        /// The first failure.
        first: Option<String>,
    },
    /// What came of work on files.
    Files(FilesSeen),
    /// What came of messages.
    Traffic(TrafficSeen),
    /// How far the programs have come, and the free memory that the guest's kernel has counted meanwhile, in
    /// pages.
    Programs {
        /// The phase, from 0 on.
        phase: u32,
        /// Programs that have ended as they should.
        done: u32,
        /// Whether all phases are over.
        ended: bool,
        /// The first program that did not do what it should, and what it said.
        failed: Option<String>,
        /// Free now.
        free: u64,
        /// Least, most and sum of all looks, and how many there were.
        least: u64,
        /// See [`Report::Programs::least`].
        most: u64,
        /// See [`Report::Programs::least`].
        sum: u64,
        /// See [`Report::Programs::least`].
        looks: u64,
    },
    /// The guest's health.
    Health {
        /// Lines of the kernel log that tell of trouble: Oops, BUG, bad pages, memory corruption, lockups.
        trouble: Vec<String>,
        /// The guest's memory as the kernel manages it, in pages.
        total_pages: u64,
        /// Free pages as the kernel counts them.
        free_pages: u64,
        /// Free pages in buddy blocks: the sum over zones and orders of `/proc/buddyinfo`.
        buddy_pages: u64,
    },
    /// The order could not be carried out.
    Failed {
        /// Why.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Order, Task};

    #[test]
    fn an_order_survives_the_console() {
        let order = Order {
            id: 7,
            task: Task::WorkStart {
                threads: 2,
                mib: 100,
                seed: u64::MAX,
            },
        };
        let line = serde_json::to_string(&order).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Order>(&line).unwrap(), order);
    }
}
