//! What marks a free page, learnt from the kernel's own lists of free blocks.
//!
//! `zone.free_area[order].free_list[type]` links the first pages of free blocks by `page.lru` (since 5.18
//! `buddy_list`, at the same place). Whatever a kernel calls its mark, the pages on these lists hold it. It
//! is asked where no source of layout says: BTF before 6.12 has the structures and not the mark, which was a
//! macro.

use std::collections::BTreeMap;

use lacuna_core::{GuestMemory, GuestVirt};

use super::facts::{FactError, Facts};
use super::zones::Zone;
use crate::os::view::KernelView;

/// Most pages asked in a zone.
const PAGES_A_ZONE: usize = 256;
/// Most lists of one order (`MIGRATE_TYPES` is 7 at most so far).
const MOST_LISTS: u64 = 16;

/// The four bytes of `_mapcount` that all pages on the free lists hold; `None` where lists are empty or
/// cannot be followed, or pages differ.
pub(super) fn value_on_free_lists<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    facts: &Facts,
    zones: &[Zone],
) -> Result<Option<u32>, FactError> {
    let link = facts.get("offsetof(struct page,lru)")?;
    let member = facts.get("offsetof(struct page,_mapcount)")?;
    let lists_at = facts.find("offsetof(struct free_area,free_list)")?.unwrap_or(0);
    let counter = facts.get("offsetof(struct free_area,nr_free)")?;
    let orders = facts.at_most("orders", 19)?;
    let width = u64::from(view.space().levels.pointer_bytes());
    let lists = (counter.saturating_sub(lists_at) / (2 * width)).min(MOST_LISTS);
    let mut seen: BTreeMap<u32, u64> = BTreeMap::new();
    for zone in zones {
        let mut asked = 0;
        for order in (0..orders).rev() {
            for list in 0..lists {
                let area = zone
                    .counter
                    .array
                    .get()
                    .wrapping_add(order * u64::from(zone.counter.stride));
                let head = area.wrapping_add(lists_at).wrapping_add(list * 2 * width);
                let mut at = head;
                while asked < PAGES_A_ZONE {
                    // A zone that was never populated has NULL list heads.
                    at = match view.word(GuestVirt::new(at)) {
                        Ok(next) if next != head && next != 0 => next,
                        _ => break,
                    };
                    asked += 1;
                    let page = at.wrapping_sub(link);
                    if let Ok(value) = view.u32(GuestVirt::new(page.wrapping_add(member))) {
                        *seen.entry(value).or_default() += 1;
                    }
                }
            }
        }
    }
    let mut values = seen.into_iter();
    Ok(match (values.next(), values.next()) {
        (Some((value, count)), None) if count >= 2 => Some(value),
        _ => None,
    })
}
