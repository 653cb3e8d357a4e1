//! Where the headers and the running kernel speak of the same thing, they must say the same.
//!
//! The layout comes from headers, VMCOREINFO from the kernel itself. A number on which they differ means headers of
//! another build, a lying guest, or a mistake of this tool: in each case nothing is done with the guest.

use std::fmt::Write as _;

use lacuna_core::Predicate;
use thiserror::Error;

use super::layout::{Layout, LayoutError};
use super::vmcoreinfo::{Kind, VmcoreInfo, VmcoreInfoError};

/// Why headers and kernel do not go together.
#[derive(Debug, Error)]
pub enum AgreementError {
    /// They differ.
    #[error("{what}: {by_layout} by the headers, {by_kernel} by the running kernel's VMCOREINFO")]
    Disagree {
        /// On what.
        what: String,
        /// By the layout.
        by_layout: String,
        /// By the kernel.
        by_kernel: String,
    },
    /// A line of VMCOREINFO is missing.
    #[error(transparent)]
    Note(#[from] VmcoreInfoError),
    /// A number of the layout is missing.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// Holds every number that both the headers and VMCOREINFO give against each other.
pub(super) fn compare(layout: &Layout, info: &VmcoreInfo) -> Result<Vec<String>, AgreementError> {
    let mut agreed = Vec::new();
    let mut require = |what: &str, by_layout: u64, by_kernel: u64| {
        if by_layout != by_kernel {
            return Err(AgreementError::Disagree {
                what: what.to_owned(),
                by_layout: by_layout.to_string(),
                by_kernel: by_kernel.to_string(),
            });
        }
        agreed.push(format!("{what} = {by_layout}"));
        Ok(())
    };
    // What the free rule rests on: these VMCOREINFO has in every version, and a kernel without them is refused.
    require(
        "sizeof(struct page)",
        u64::from(layout.descriptor_bytes),
        info.unsigned(Kind::Size, "page")?,
    )?;
    let references = info
        .unsigned(Kind::Offset, "page._refcount")
        .or_else(|_| info.unsigned(Kind::Offset, "page._count"))?;
    // The stub's rule has one condition, the reference count, and an order.
    for condition in &layout.free.conditions {
        require(
            "offset of the reference count",
            u64::from(condition.field.offset),
            references,
        )?;
    }
    if let Some(blocks) = layout.free.blocks {
        require(
            "offset of the order",
            u64::from(blocks.order.offset),
            info.unsigned(Kind::Offset, "page.private")?,
        )?;
    }
    let orders = info.unsigned(Kind::Length, "zone.free_area")?;
    require(
        "orders of the allocator",
        u64::from(layout.free.max_order().get()) + 1,
        orders,
    )?;
    for (expression, kind, name) in [
        ("sizeof(struct zone)", Kind::Size, "zone"),
        ("offsetof(struct zone,free_area)", Kind::Offset, "zone.free_area"),
        (
            "offsetof(struct zone,spanned_pages)",
            Kind::Offset,
            "zone.spanned_pages",
        ),
        ("sizeof(struct free_area)", Kind::Size, "free_area"),
        ("sizeof(struct pglist_data)", Kind::Size, "pglist_data"),
        (
            "offsetof(struct pglist_data,node_zones)",
            Kind::Offset,
            "pglist_data.node_zones",
        ),
        (
            "offsetof(struct pglist_data,nr_zones)",
            Kind::Offset,
            "pglist_data.nr_zones",
        ),
        ("sizeof(struct mem_section)", Kind::Size, "mem_section"),
        (
            "offsetof(struct mem_section,section_mem_map)",
            Kind::Offset,
            "mem_section.section_mem_map",
        ),
    ] {
        require(expression, layout.fact(expression)?, info.unsigned(kind, name)?)?;
    }
    // And what is nice to have.
    for (expression, kind, name) in [
        ("offsetof(struct page,flags)", Kind::Offset, "page.flags"),
        ("offsetof(struct page,lru)", Kind::Offset, "page.lru"),
        ("offsetof(struct page,_mapcount)", Kind::Offset, "page._mapcount"),
        ("SECTION_SIZE_BITS", Kind::Number, "SECTION_SIZE_BITS"),
    ] {
        if let (Some(by_layout), Ok(by_kernel)) = (layout.find_fact(expression), info.unsigned(kind, name)) {
            require(expression, by_layout, by_kernel)?;
        }
    }
    agreed.push(compare_predicate(layout, info)?);
    Ok(agreed)
}

/// VMCOREINFO gives the number that a free block's `_mapcount` holds: the learnt predicate must be true of it.
fn compare_predicate(layout: &Layout, info: &VmcoreInfo) -> Result<String, AgreementError> {
    let predicate = &layout.free.predicate;
    let at = info.unsigned(Kind::Offset, "page._mapcount")?;
    let stated = info.wrapping_number("PAGE_BUDDY_MAPCOUNT_VALUE")?;
    let bytes = stated.to_le_bytes();
    let from = u64::from(predicate.field.offset).wrapping_sub(at);
    // _mapcount is an int: the predicate must look at bytes of those four and at no others.
    let inside = from
        .checked_add(u64::from(predicate.field.width))
        .is_some_and(|end| end <= 4);
    let value = (from..from + u64::from(predicate.field.width))
        .rev()
        .filter(|_| inside)
        .fold(0, |value, index| {
            value << 8
                | u64::from(
                    bytes
                        .get(usize::try_from(index).unwrap_or(8))
                        .copied()
                        .unwrap_or(0),
                )
        });
    if !inside || value & predicate.mask != predicate.expected {
        return Err(AgreementError::Disagree {
            what: "the mark of a free block".into(),
            by_layout: describe(predicate),
            by_kernel: format!(
                "PAGE_BUDDY_MAPCOUNT_VALUE {:#010x} in the 4 bytes at {at}",
                stated & 0xffff_ffff
            ),
        });
    }
    Ok(format!(
        "{} is true of PAGE_BUDDY_MAPCOUNT_VALUE",
        describe(predicate)
    ))
}

/// A predicate in words.
pub fn describe(predicate: &Predicate) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "(the {} byte(s) at {} & {:#x}) == {:#x}",
        predicate.field.width, predicate.field.offset, predicate.mask, predicate.expected
    );
    text
}
