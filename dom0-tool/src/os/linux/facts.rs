//! What is known of a kernel's structures, number by number, each with the source that says so.
//!
//! Where two sources speak of the same number they must agree: [`Facts::get`] refuses otherwise, with both
//! values. Names are C expressions, the same as in a [`Layout`]'s facts, so that sources can be shown side by
//! side.

use std::collections::BTreeMap;
use std::fmt;

use lacuna_core::Predicate;
use thiserror::Error;

use super::btf::Btf;
use super::layout::Layout;
use super::marks::{describe, mark_of_flag, mark_of_value, same_mark};
use super::vmcoreinfo::{Kind, VmcoreInfo};

/// Where a number comes from, the most trusted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The kernel's headers, compiled and run.
    Stub,
    /// The kernel's VMCOREINFO note.
    VmcoreInfo,
    /// The kernel's BTF.
    Btf,
    /// The kernel's own lists of free blocks, for the mark alone: what all pages on them hold.
    FreeLists,
}

impl Source {
    /// As `--source` and `--json` have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stub => "stub",
            Self::VmcoreInfo => "vmcoreinfo",
            Self::Btf => "btf",
            Self::FreeLists => "free-lists",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Why a number cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FactError {
    /// No source gives it.
    #[error("{name} is given by none of the sources ({asked})")]
    Missing {
        /// The C expression.
        name: String,
        /// Those asked.
        asked: String,
    },
    /// Two sources differ.
    #[error("{name}: {one} by {one_source}, {other} by {other_source}")]
    Disagree {
        /// The C expression.
        name: String,
        /// By the first.
        one: String,
        /// The first.
        one_source: Source,
        /// By the second.
        other: String,
        /// The second.
        other_source: Source,
    },
    /// The number that marks a free page has no known meaning.
    #[error("PAGE_BUDDY_MAPCOUNT_VALUE {0:#010x} is none of the kernel's ways to mark a free page")]
    Mark(u32),
    /// A number is out of the question.
    #[error("{name} is {value}, which is not possible")]
    Impossible {
        /// The C expression.
        name: String,
        /// Its value.
        value: u64,
    },
}

/// See the module's header.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    sources: Vec<Source>,
    by_name: BTreeMap<String, BTreeMap<Source, u64>>,
    marks: BTreeMap<Source, Predicate>,
}

/// Names in BTF and VMCOREINFO of what is needed: expression, structure, member.
const OFFSETS: &[(&str, &str, &str)] = &[
    ("offsetof(struct page,flags)", "page", "flags"),
    ("offsetof(struct page,lru)", "page", "lru"),
    ("offsetof(struct page,_mapcount)", "page", "_mapcount"),
    ("offsetof(struct page,private)", "page", "private"),
    ("offsetof(struct page,_refcount)", "page", "_refcount"),
    ("offsetof(struct zone,free_area)", "zone", "free_area"),
    ("offsetof(struct zone,spanned_pages)", "zone", "spanned_pages"),
    ("offsetof(struct free_area,free_list)", "free_area", "free_list"),
    (
        "offsetof(struct pglist_data,node_zones)",
        "pglist_data",
        "node_zones",
    ),
    ("offsetof(struct pglist_data,nr_zones)", "pglist_data", "nr_zones"),
    (
        "offsetof(struct pglist_data,node_start_pfn)",
        "pglist_data",
        "node_start_pfn",
    ),
    (
        "offsetof(struct pglist_data,node_spanned_pages)",
        "pglist_data",
        "node_spanned_pages",
    ),
    (
        "offsetof(struct pglist_data,node_mem_map)",
        "pglist_data",
        "node_mem_map",
    ),
    (
        "offsetof(struct mem_section,section_mem_map)",
        "mem_section",
        "section_mem_map",
    ),
];
/// The same for what VMCOREINFO does not have.
const BTF_OFFSETS: &[(&str, &str, &str)] = &[
    ("offsetof(struct free_area,nr_free)", "free_area", "nr_free"),
    ("offsetof(struct static_key,enabled)", "static_key", "enabled"),
    (
        "offsetof(struct task_struct,stack_canary)",
        "task_struct",
        "stack_canary",
    ),
    (
        "offsetof(struct task_struct,group_leader)",
        "task_struct",
        "group_leader",
    ),
    ("offsetof(struct task_struct,parent)", "task_struct", "parent"),
    ("offsetof(struct task_struct,comm)", "task_struct", "comm"),
];
/// Structures whose size is wanted.
const SIZES: &[(&str, &str)] = &[
    ("sizeof(struct page)", "page"),
    ("sizeof(struct zone)", "zone"),
    ("sizeof(struct free_area)", "free_area"),
    ("sizeof(struct pglist_data)", "pglist_data"),
    ("sizeof(struct mem_section)", "mem_section"),
];
/// What [`Facts::add_btf`] asks of BTF.
pub const BTF_STRUCTURES: &[&str] = &[
    "page",
    "zone",
    "free_area",
    "pglist_data",
    "mem_section",
    "static_key",
    "task_struct",
];
/// Enumerators that [`Facts::add_btf`] asks of BTF.
pub const BTF_ENUMERATORS: &[&str] = &["PGTY_buddy", "__MAX_NR_ZONES"];

impl Facts {
    /// Which sources spoke.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    fn add(&mut self, source: Source, name: &str, value: u64) {
        self.by_name
            .entry(name.to_owned())
            .or_default()
            .insert(source, value);
    }

    /// Takes in a layout.
    pub fn add_layout(&mut self, layout: &Layout) {
        let source = Source::Stub;
        self.sources.push(source);
        for (name, known) in &layout.facts {
            self.add(source, name, known.value);
        }
        self.add(source, "sizeof(struct page)", u64::from(layout.descriptor_bytes));
        if let Some(blocks) = layout.free.blocks {
            self.add(
                source,
                "offsetof(struct page,private)",
                u64::from(blocks.order.offset),
            );
        }
        if let Some(references) = layout.free.conditions.first() {
            self.add(
                source,
                "offsetof(struct page,_refcount)",
                u64::from(references.field.offset),
            );
        }
        self.add(source, "orders", u64::from(layout.free.max_order().get()) + 1);
        self.marks.insert(source, layout.free.predicate);
    }

    /// Takes in a note. `pointer` is the width of the kernel's pointers.
    ///
    /// # Errors
    /// [`FactError::Mark`].
    pub fn add_vmcoreinfo(&mut self, info: &VmcoreInfo, pointer: u64) -> Result<(), FactError> {
        let source = Source::VmcoreInfo;
        self.sources.push(source);
        let mut found = Vec::new();
        for (name, structure) in SIZES {
            found.push((*name, info.unsigned(Kind::Size, structure).ok()));
        }
        for (name, structure, member) in OFFSETS {
            found.push((
                *name,
                info.unsigned(Kind::Offset, &format!("{structure}.{member}")).ok(),
            ));
        }
        // Until 4.6 the reference count was called _count.
        if info.unsigned(Kind::Offset, "page._refcount").is_err() {
            found.push((
                "offsetof(struct page,_refcount)",
                info.unsigned(Kind::Offset, "page._count").ok(),
            ));
        }
        found.push(("orders", info.unsigned(Kind::Length, "zone.free_area").ok()));
        found.push((
            "SECTION_SIZE_BITS",
            info.unsigned(Kind::Number, "SECTION_SIZE_BITS").ok(),
        ));
        // struct free_area is the lists, of two pointers each, and the count behind them
        // (include/linux/mmzone.h).
        if let (Ok(at), Ok(lists)) = (
            info.unsigned(Kind::Offset, "free_area.free_list"),
            info.unsigned(Kind::Length, "free_area.free_list"),
        ) && lists <= 64
        {
            found.push((
                "offsetof(struct free_area,nr_free)",
                Some(at + lists * 2 * pointer),
            ));
        }
        for (name, value) in found {
            if let Some(value) = value {
                self.add(source, name, value);
            }
        }
        if let (Ok(value), Ok(at)) = (
            info.wrapping_number("PAGE_BUDDY_MAPCOUNT_VALUE"),
            info.unsigned(Kind::Offset, "page._mapcount"),
        ) {
            let value = u32::try_from(value & 0xffff_ffff).unwrap_or(0);
            let predicate = mark_of_value(value, at).ok_or(FactError::Mark(value))?;
            self.marks.insert(source, predicate);
        } else if let (Ok(bit), Ok(at)) = (
            info.unsigned(Kind::Number, "PG_buddy"),
            info.unsigned(Kind::Offset, "page.flags"),
        ) && let Some(predicate) = mark_of_flag(bit, at)
        {
            self.marks.insert(source, predicate);
        }
        Ok(())
    }

    /// Takes in BTF.
    pub fn add_btf(&mut self, btf: &Btf) {
        let source = Source::Btf;
        self.sources.push(source);
        for (name, structure) in SIZES {
            if let Some(value) = btf.size(structure) {
                self.add(source, name, value);
            }
        }
        for (name, structure, member) in OFFSETS.iter().chain(BTF_OFFSETS) {
            if let Some(value) = btf.offset(structure, member) {
                self.add(source, name, value);
            }
        }
        for (name, value) in [
            ("orders", btf.elements("zone", "free_area")),
            ("MAX_NR_ZONES", btf.elements("pglist_data", "node_zones")),
        ] {
            if let Some(value) = value {
                self.add(source, name, value);
            }
        }
        // The type has a byte of its own since 6.12; the field is called page_type where BTF has it.
        let at = btf
            .offset("page", "page_type")
            .or_else(|| btf.offset("page", "_mapcount"));
        if let (Some(byte), Some(at)) = (btf.enumerator("PGTY_buddy"), at)
            && let Ok(byte) = u8::try_from(byte)
        {
            self.marks
                .extend(mark_of_value(u32::from(byte) << 24, at).map(|mark| (source, mark)));
        }
    }

    /// Takes in what the pages on the kernel's own free lists hold in the four bytes of `_mapcount`.
    ///
    /// # Errors
    /// [`FactError`].
    pub fn add_free_lists(&mut self, value: u32) -> Result<(), FactError> {
        let at = self.get("offsetof(struct page,_mapcount)")?;
        let predicate = mark_of_value(value, at).ok_or(FactError::Mark(value))?;
        self.sources.push(Source::FreeLists);
        self.marks.insert(Source::FreeLists, predicate);
        Ok(())
    }

    /// A number on which all sources that give it agree.
    ///
    /// # Errors
    /// [`FactError`].
    pub fn get(&self, name: &str) -> Result<u64, FactError> {
        self.find(name)?.ok_or_else(|| FactError::Missing {
            name: name.to_owned(),
            asked: self
                .sources
                .iter()
                .map(|source| source.name())
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    /// The same, if any source gives it.
    ///
    /// # Errors
    /// [`FactError::Disagree`].
    pub fn find(&self, name: &str) -> Result<Option<u64>, FactError> {
        let Some(values) = self.by_name.get(name) else {
            return Ok(None);
        };
        let mut values = values.iter();
        let Some((first_source, first)) = values.next() else {
            return Ok(None);
        };
        match values.find(|(_, value)| *value != first) {
            None => Ok(Some(*first)),
            Some((source, value)) => Err(FactError::Disagree {
                name: name.to_owned(),
                one: first.to_string(),
                one_source: *first_source,
                other: value.to_string(),
                other_source: *source,
            }),
        }
    }

    /// A number that has to be at most `most`.
    ///
    /// # Errors
    /// [`FactError`].
    pub fn at_most(&self, name: &str, most: u64) -> Result<u64, FactError> {
        let value = self.get(name)?;
        if value <= most {
            Ok(value)
        } else {
            Err(FactError::Impossible {
                name: name.to_owned(),
                value,
            })
        }
    }

    /// Holds all that sources give against each other.
    ///
    /// # Errors
    /// [`FactError::Disagree`].
    pub fn check(&self) -> Result<Vec<String>, FactError> {
        let mut agreed = Vec::new();
        for (name, values) in &self.by_name {
            if let Some(value) = self.find(name)?
                && values.len() > 1
            {
                agreed.push(format!("{name} = {value}"));
            }
        }
        if let Some(mark) = self.mark()?
            && self.marks.len() > 1
        {
            agreed.push(format!("a free page: {}", describe(&mark)));
        }
        Ok(agreed)
    }

    /// What marks a free page, by the most trusted source, if the others agree.
    ///
    /// # Errors
    /// [`FactError::Disagree`].
    pub fn mark(&self) -> Result<Option<Predicate>, FactError> {
        let mut marks = self.marks.iter();
        let Some((first_source, first)) = marks.next() else {
            return Ok(None);
        };
        for (source, other) in marks {
            if !same_mark(first, other) {
                return Err(FactError::Disagree {
                    name: "the mark of a free page".to_owned(),
                    one: describe(first),
                    one_source: *first_source,
                    other: describe(other),
                    other_source: *source,
                });
            }
        }
        Ok(Some(*first))
    }

    /// Every number with what each source says.
    pub fn table(&self) -> impl Iterator<Item = (&str, &BTreeMap<Source, u64>)> {
        self.by_name.iter().map(|(name, values)| (name.as_str(), values))
    }

    /// What marks a free page, by each source.
    pub fn marks(&self) -> impl Iterator<Item = (Source, &Predicate)> {
        self.marks.iter().map(|(source, mark)| (*source, mark))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sources_that_differ_are_refused_with_both_values() {
        let mut facts = Facts::default();
        facts.add(Source::Stub, "sizeof(struct page)", 64);
        assert_eq!(facts.get("sizeof(struct page)").unwrap(), 64);
        facts.add(Source::Btf, "sizeof(struct page)", 56);
        assert!(matches!(
            facts.get("sizeof(struct page)"),
            Err(FactError::Disagree { .. })
        ));
        assert!(matches!(
            facts.get("sizeof(struct zone)"),
            Err(FactError::Missing { .. })
        ));
        assert!(facts.check().is_err());
    }
}
