//! Whether anything ties a kernel to a processor, and signs that another kernel runs in its place.
//!
//! What a kernel left in memory agrees with itself for ever: note, page tables, memory map and counters of
//! one that has crashed into a crash kernel, or was replaced by kexec, are as good as they were. Only a
//! register says which kernel runs. Where a dump has none, memory is searched for another kernel. That none
//! is found proves nothing: the caller says so.

use lacuna_core::{GuestMemory, GuestPhys, GuestVirt, PAGE_SIZE};
use memchr::memmem::Finder;

use super::identify::Identified;
use crate::os::view::{AddressSpace, KernelView};
use crate::source::{Cpu, GuestSource};

/// How far from `_stext` an instruction pointer is taken to be in the kernel's text. Debian's has 14 to 20
/// MiB.
const TEXT_BYTES: u64 = 64 << 20;
/// What the first task is called once the scheduler is up (`init_idle()`, since 3.3).
const FIRST_TASK: &[u8] = b"swapper/0\0";
/// How far `comm` can lie behind `parent` in `struct task_struct`. In Debian's kernels it is 500 to 700
/// bytes.
const BEFORE_NAME: usize = 2048;
/// Words from `real_parent`, which `parent` follows, to `group_leader`: two lists and, up to 2.6.32,
/// debugging members lie between them (`include/linux/sched.h`).
const TO_LEADER: usize = 16;
/// How far `comm` can lie from the beginning of `struct task_struct`.
const TASK_BYTES: u64 = 16 << 10;
/// Most first tasks looked at; a process can make up as many as it has memory.
const MAX_TASKS: usize = 64;

/// What ties a kernel to the processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tie {
    /// The page tables of every virtual CPU that has paging on.
    PageTables,
    /// An instruction pointer in its text: all that a core of kdump's has of registers.
    Instructions,
    /// Nothing.
    None,
}

impl Tie {
    /// By the virtual CPUs of a dump, for a kernel whose text begins at `text`, and that the page tables of
    /// those with paging on map.
    pub(super) fn of(cpus: &[Cpu], text: GuestVirt) -> Self {
        if cpus.iter().any(Cpu::is_paging) {
            return Self::PageTables;
        }
        let in_text = |rip: u64| (text.get()..text.get().saturating_add(TEXT_BYTES)).contains(&rip);
        if cpus
            .iter()
            .any(|cpu| !cpu.offline && cpu.rip.is_some_and(in_text))
        {
            Self::Instructions
        } else {
            Self::None
        }
    }

    /// The name, which does not change.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PageTables => "page tables",
            Self::Instructions => "instruction pointers",
            Self::None => "nothing",
        }
    }
}

/// Looks for signs that another kernel than `kernel` may be the one that runs. There are none where a
/// processor's page tables lead to `kernel`. `progress` is told the frame reached and the last one.
pub(super) fn signs_of_another<M: GuestSource>(
    memory: &mut M,
    kernel: &Identified,
    progress: &mut dyn FnMut(u64, u64),
) -> Vec<String> {
    let mut signs = Vec::new();
    if kernel.tie == Tie::PageTables {
        return signs;
    }
    let mut view = KernelView::new(memory, kernel.space);
    // A core of kdump's is of the kernel that has crashed, and taken by the other.
    if kernel.tie == Tie::None {
        if let Some(time) = kernel.info.word("CRASHTIME") {
            signs.push(format!(
                "its note has CRASHTIME={time}: it has crashed and started a crash kernel"
            ));
        }
        if is_set(&mut view, kernel, "kexec_in_progress") {
            signs.push("kexec_in_progress is set: it has started another kernel".to_owned());
        }
    }
    let crash_area = crash_area(&mut view, kernel);
    for task in other_first_tasks(memory, kernel.space, progress) {
        let place = match &crash_area {
            Some(area) if area.contains(&task.get()) => " in the memory that it reserved for a crash kernel",
            _ => "",
        };
        signs.push(format!(
            "another kernel's first task (\"swapper/0\") lies at guest-physical {:#x}{place}",
            task.get()
        ));
    }
    signs
}

/// Whether the `bool` called `symbol` is set.
fn is_set<M: GuestMemory>(view: &mut KernelView<'_, M>, kernel: &Identified, symbol: &str) -> bool {
    let mut value = [0];
    let at = kernel.symbols.as_ref().and_then(|symbols| symbols.find(symbol));
    at.is_some_and(|at| view.read(at, &mut value).is_ok()) && value == [1]
}

/// The memory that is kept for a crash kernel: `start` and `end` of `crashk_res`, where the kernel's symbols
/// tell it.
fn crash_area<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    kernel: &Identified,
) -> Option<std::ops::RangeInclusive<u64>> {
    let at = kernel.symbols.as_ref()?.find("crashk_res")?;
    let width = u64::from(kernel.space.levels.pointer_bytes());
    let (start, end) = (view.word(at).ok()?, view.word(at.checked_add(width)?).ok()?);
    (start != 0 && start < end).then_some(start..=end)
}

/// Where the names of first tasks are that the page tables at `space` do not lead to.
fn other_first_tasks<M: GuestSource>(
    memory: &mut M,
    space: AddressSpace,
    progress: &mut dyn FnMut(u64, u64),
) -> Vec<GuestPhys> {
    let finder = Finder::new(FIRST_TASK);
    let mut found = Vec::new();
    // A name can run from one frame into the next.
    let mut bytes = vec![0; FIRST_TASK.len() + PAGE_SIZE];
    let (end, mut at, mut last) = (memory.end(), lacuna_core::Gfn::new(0), None);
    while let Some(gfn) = memory.next_present(at) {
        at = gfn.saturating_add(1);
        if gfn.get() % 1024 == 0 {
            progress(gfn.get(), end.get());
        }
        let Some(base) = gfn.base() else { break };
        if last == gfn.get().checked_sub(1) {
            bytes.copy_within(PAGE_SIZE.., 0);
        } else {
            bytes[..FIRST_TASK.len()].fill(0);
        }
        if memory.read(base, &mut bytes[FIRST_TASK.len()..]).is_err() {
            last = None;
            continue;
        }
        last = Some(gfn.get());
        for place in finder.find_iter(&bytes) {
            let name = (base.get() + place as u64).checked_sub(FIRST_TASK.len() as u64);
            let Some(name) = name.map(GuestPhys::new) else {
                continue;
            };
            // One that ends in the frame before was found there.
            if place > 0 && !found.contains(&name) && is_of_another(memory, space, name) {
                found.push(name);
            }
        }
        if found.len() >= MAX_TASKS {
            break;
        }
    }
    progress(end.get(), end.get());
    found
}

/// Whether the name at `name` is that of a first task, and the tables at `space` lead elsewhere for that
/// task.
fn is_of_another<M: GuestSource>(memory: &mut M, space: AddressSpace, name: GuestPhys) -> bool {
    let mut before = vec![0; BEFORE_NAME];
    let Some(from) = name.get().checked_sub(BEFORE_NAME as u64) else {
        return false;
    };
    let mut done = 0;
    while done < BEFORE_NAME {
        let here = GuestPhys::new(from + done as u64);
        let length = (PAGE_SIZE - here.offset()).min(BEFORE_NAME - done);
        if memory.read(here, &mut before[done..done + length]).is_err() {
            return false;
        }
        done += length;
    }
    [8, 4].into_iter().any(|width| {
        task_named(&before, width).is_some_and(|task| {
            let own = space.translate(memory, task);
            own.is_none_or(|own| !(1..TASK_BYTES).contains(&name.get().wrapping_sub(own.get())))
        })
    })
}

/// The first task, in whose `struct task_struct` the bytes `before` lie before its name: it is its own parent
/// twice over, and its own thread group's leader (`init/init_task.c`).
fn task_named(before: &[u8], width: usize) -> Option<GuestVirt> {
    let words: Vec<u64> = before
        .chunks_exact(width)
        .map(|word| {
            word.iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte))
        })
        .collect();
    let is_kernels = |task: u64| {
        let half = if width == 8 {
            task >> 47 == 0x1_ffff
        } else {
            task >= 0x4000_0000
        };
        half && task.is_multiple_of(16)
    };
    (0..words.len().saturating_sub(2)).find_map(|at| {
        let task = words[at];
        let leads = || words[at + 2..].iter().take(TO_LEADER).any(|word| *word == task);
        (is_kernels(task) && words[at + 1] == task && leads()).then(|| GuestVirt::new(task))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(rip: u64) -> Cpu {
        Cpu {
            rip: Some(rip),
            ..Cpu::default()
        }
    }

    #[test]
    fn an_instruction_in_the_text_ties_and_one_elsewhere_does_not() {
        let text = GuestVirt::new(0xffff_ffff_8100_0000);
        let paging = Cpu {
            cr3: Some(0x1000),
            ..Cpu::default()
        };
        assert_eq!(Tie::of(&[paging, cpu(0)], text), Tie::PageTables);
        assert_eq!(
            Tie::of(&[cpu(0x40_0000), cpu(text.get() + 0x1234)], text),
            Tie::Instructions
        );
        assert_eq!(Tie::of(&[cpu(0x40_0000)], text), Tie::None);
        let offline = Cpu {
            offline: true,
            ..cpu(text.get())
        };
        assert_eq!(Tie::of(&[offline], text), Tie::None);
        assert_eq!(Tie::of(&[], text), Tie::None);
    }

    #[test]
    fn a_first_task_is_told_by_its_members_and_not_by_its_name_alone() {
        let with = |members: &[(usize, u64)], width: usize| {
            let mut before = vec![0; BEFORE_NAME];
            for (at, value) in members {
                before[*at..*at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
            task_named(&before, width)
        };
        let task = 0xffff_ffff_8200_0000;
        let members = [(1400, task), (1408, task), (1448, task)];
        assert_eq!(with(&members, 8), Some(GuestVirt::new(task)));
        for missing in 0..3 {
            let rest: Vec<(usize, u64)> = (0..3).filter(|at| *at != missing).map(|at| members[at]).collect();
            assert_eq!(with(&rest, 8), None);
        }
        // A process' own addresses are no task.
        assert_eq!(with(&members.map(|(at, _)| (at, 0x7fff_0000_0000)), 8), None);
        let narrow = [(1400, 0xc1a0_0000), (1404, 0xc1a0_0000), (1424, 0xc1a0_0000)];
        assert_eq!(with(&narrow, 4), Some(GuestVirt::new(0xc1a0_0000)));
    }
}
