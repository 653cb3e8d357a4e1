//! The kernel's first task, found by what it holds.
//!
//! A profile is tied to a boot by `init_task.stack_canary`. Where the kernel's symbol table does not give the
//! address of `init_task`, because it holds functions only (no `CONFIG_KALLSYMS_ALL`: Debian's i386 kernels)
//! or because VMCOREINFO does not say where it is (before 6.0), the task is told by its members: it is its
//! own parent and its own thread group's leader (`init/init_task.c`), at an address in the kernel's image,
//! and it is called `swapper`.

use lacuna_core::{GuestMemory, GuestVirt, PAGE_SIZE};

use super::facts::{FactError, Facts};
use super::image::{area, mapped};
use crate::os::view::KernelView;

/// `INIT_TASK_COMM` (`include/linux/init_task.h`), to which `init_idle()` adds the processor since 3.3.
const NAMES: [&[u8]; 2] = [b"swapper\0", b"swapper/0\0"];
/// `TASK_COMM_LEN` (`include/linux/sched.h`).
const NAME_BYTES: usize = 16;

/// The address of `init_task` in the image around `text`, the kernel's `_stext`; `None` where the sources do
/// not tell the members, or none or several of the image's words could be it.
///
/// A process can write into pages of the image that the kernel has freed (its `__init` sections) where
/// page-table isolation is off. It can make up a second first task there, which leaves the guest without a
/// profile; it cannot hide the real one.
///
/// # Errors
/// [`FactError`] when sources differ.
pub(super) fn find_first_task<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    facts: &Facts,
    text: GuestVirt,
) -> Result<Option<GuestVirt>, FactError> {
    let (Some(leader), Some(parent), Some(name)) = (
        facts.find("offsetof(struct task_struct,group_leader)")?,
        facts.find("offsetof(struct task_struct,parent)")?,
        facts.find("offsetof(struct task_struct,comm)")?,
    ) else {
        return Ok(None);
    };
    let space = view.space();
    let width = usize::from(space.levels.pointer_bytes());
    let (from, bytes) = area(space.levels, text);
    let mut found = None;
    let mut page = vec![0; PAGE_SIZE];
    for run in mapped(view.memory(), space, from, bytes) {
        for offset in (0..run.bytes).step_by(PAGE_SIZE) {
            let here = run.start.get().wrapping_add(offset);
            let length = usize::try_from(run.bytes - offset).map_or(PAGE_SIZE, |rest| rest.min(PAGE_SIZE));
            let read = run
                .physical
                .checked_add(offset)
                .is_some_and(|at| view.memory().read(at, &mut page[..length]).is_ok());
            if !read {
                continue;
            }
            for (index, word) in (0..).zip(page[..length].chunks_exact(width)) {
                let mut value = [0; 8];
                value[..width].copy_from_slice(word);
                let task = u64::from_le_bytes(value);
                let place = here.wrapping_add(index * width as u64);
                if task.wrapping_add(leader) != place || !is_first(view, task, parent, name) {
                    continue;
                }
                if found.replace(GuestVirt::new(task)).is_some() {
                    return Ok(None);
                }
            }
        }
    }
    Ok(found)
}

/// Whether the structure at `task`, which leads its own thread group, is its own parent and is called as the
/// first task is.
pub(super) fn is_first<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    task: u64,
    parent: u64,
    name: u64,
) -> bool {
    let member = |offset: u64| GuestVirt::new(task.wrapping_add(offset));
    let mut called = [0; NAME_BYTES];
    view.word(member(parent)).is_ok_and(|parent| parent == task)
        && view.read(member(name), &mut called).is_ok()
        && NAMES.iter().any(|name| called.starts_with(name))
}
