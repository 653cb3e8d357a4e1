//! The kernel's own counts of free blocks: `node_data[node]->node_zones[zone].free_area[order].nr_free`.
//!
//! Their sum equals the pages in free blocks exactly, so it is what a scan is held against.

use lacuna_core::{GuestMemory, GuestVirt, MAX_ZONES, ZoneCounter};
use thiserror::Error;

use super::facts::{FactError, Facts};
use super::vmcoreinfo::{Kind, VmcoreInfo, VmcoreInfoError};
use crate::os::view::{KernelView, ViewError};

/// Most memory nodes (`CONFIG_NODES_SHIFT` is at most 10).
const MAX_NODES: u64 = 1024;

/// Most zones of a node: `MAX_NR_ZONES` is at most 7 so far (`include/linux/mmzone.h`).
const MAX_NODE_ZONES: u64 = 16;

/// Why the counters were not found.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ZonesError {
    /// VMCOREINFO lacks a line.
    #[error(transparent)]
    Note(#[from] VmcoreInfoError),
    /// A number of a structure is missing.
    #[error(transparent)]
    Fact(#[from] FactError),
    /// Kernel memory is not readable.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A number is impossible.
    #[error("{name} is {value}, which is not possible")]
    Impossible {
        /// Which.
        name: &'static str,
        /// Its value.
        value: u64,
    },
    /// More zones than a profile holds.
    #[error("the guest has more than {MAX_ZONES} memory zones with memory")]
    TooMany,
}

/// A zone with memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Its memory node.
    pub node: u64,
    /// Its number in the node.
    pub index: u64,
    /// Frames that it spans.
    pub spanned: u64,
    /// Its counters.
    pub counter: ZoneCounter,
}

/// A memory node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub number: u64,
    /// Its `struct pglist_data`.
    pub data: u64,
}

/// Finds every zone that spans memory.
///
/// # Errors
/// [`ZonesError`].
pub fn find_zones<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    info: &VmcoreInfo,
    facts: &Facts,
) -> Result<Vec<Zone>, ZonesError> {
    let word = view.space().levels.pointer_bytes();
    let zone_bytes = facts.at_most("sizeof(struct zone)", 1 << 20)?;
    let zones_at = facts.at_most("offsetof(struct pglist_data,node_zones)", 1 << 30)?;
    let spanned_at = facts.at_most("offsetof(struct zone,spanned_pages)", zone_bytes)?;
    let areas_at = facts.at_most("offsetof(struct zone,free_area)", zone_bytes)?;
    let stride = narrow("sizeof(struct free_area)", facts.get("sizeof(struct free_area)")?)?;
    let count_offset = narrow(
        "offsetof(struct free_area,nr_free)",
        facts.get("offsetof(struct free_area,nr_free)")?,
    )?;
    // How many there can be is a constant of the headers; how many a node has it says itself.
    let constant = facts.find("MAX_NR_ZONES")?;
    let member = facts.find("offsetof(struct pglist_data,nr_zones)")?;
    let mut zones = Vec::new();
    for Node { number, data } in find_nodes(view, info)? {
        let per_node = match (constant, member) {
            (Some(constant), _) => constant,
            (None, Some(member)) => u64::from(view.u32(GuestVirt::new(data.wrapping_add(member)))?),
            (None, None) => facts.get("MAX_NR_ZONES")?,
        };
        if per_node > MAX_NODE_ZONES {
            return Err(ZonesError::Impossible {
                name: "the number of zones of a node",
                value: per_node,
            });
        }
        for index in 0..per_node {
            let zone = data.wrapping_add(zones_at).wrapping_add(index * zone_bytes);
            let spanned = view.word(GuestVirt::new(zone.wrapping_add(spanned_at)))?;
            if spanned == 0 {
                continue;
            }
            if zones.len() == MAX_ZONES {
                return Err(ZonesError::TooMany);
            }
            let array = GuestVirt::new(zone.wrapping_add(areas_at));
            zones.push(Zone {
                node: number,
                index,
                spanned,
                counter: ZoneCounter {
                    array,
                    stride,
                    count_offset,
                    count_bytes: word,
                },
            });
        }
    }
    Ok(zones)
}

/// Number and `pglist_data` of every node.
///
/// # Errors
/// [`ZonesError`].
pub fn find_nodes<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    info: &VmcoreInfo,
) -> Result<Vec<Node>, ZonesError> {
    if let Some(only) = info.find_symbol("contig_page_data") {
        return Ok(vec![Node {
            number: 0,
            data: only.get(),
        }]);
    }
    let table = info.symbol("node_data")?.get();
    let length = info.unsigned(Kind::Length, "node_data")?;
    if !(1..=MAX_NODES).contains(&length) {
        return Err(ZonesError::Impossible {
            name: "LENGTH(node_data)",
            value: length,
        });
    }
    let width = u64::from(view.space().levels.pointer_bytes());
    let mut nodes = Vec::new();
    for number in 0..length {
        let data = view.word(GuestVirt::new(table.wrapping_add(number * width)))?;
        if data != 0 {
            nodes.push(Node { number, data });
        }
    }
    Ok(nodes)
}

/// One past the last frame that any node spans: where the guest's memory ends by its own account. `None`
/// where no source says where nodes have that.
///
/// # Errors
/// [`ZonesError`].
pub fn last_frame<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    info: &VmcoreInfo,
    facts: &Facts,
) -> Result<Option<u64>, ZonesError> {
    let (Some(start), Some(spanned)) = (
        facts.find("offsetof(struct pglist_data,node_start_pfn)")?,
        facts.find("offsetof(struct pglist_data,node_spanned_pages)")?,
    ) else {
        return Ok(None);
    };
    let mut last = 0;
    for node in find_nodes(view, info)? {
        let first = view.word(GuestVirt::new(node.data.wrapping_add(start)))?;
        let count = view.word(GuestVirt::new(node.data.wrapping_add(spanned)))?;
        last = last.max(first.saturating_add(count));
    }
    Ok(Some(last))
}

fn narrow(name: &'static str, value: u64) -> Result<u16, ZonesError> {
    u16::try_from(value).map_err(|_| ZonesError::Impossible { name, value })
}
