//! The kernel's own counts of free blocks: `node_data[node]->node_zones[zone].free_area[order].nr_free`.
//!
//! Their sum equals the pages in free blocks exactly, so it is what a scan is held against.

use lacuna_core::{GuestMemory, GuestVirt, MAX_ZONES, ZoneCounter};
use thiserror::Error;

use super::kernel_view::{KernelView, ViewError};
use super::layout::{Layout, LayoutError};
use super::vmcoreinfo::{Kind, VmcoreInfo, VmcoreInfoError};

/// Most memory nodes (`CONFIG_NODES_SHIFT` is at most 10).
const MAX_NODES: u64 = 1024;

/// Why the counters were not found.
#[derive(Debug, Error)]
pub enum ZonesError {
    /// VMCOREINFO lacks a line.
    #[error(transparent)]
    Note(#[from] VmcoreInfoError),
    /// The layout lacks a number.
    #[error(transparent)]
    Layout(#[from] LayoutError),
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

/// Finds every zone that spans memory.
///
/// # Errors
/// [`ZonesError`].
pub fn find_zones<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    info: &VmcoreInfo,
    layout: &Layout,
) -> Result<Vec<Zone>, ZonesError> {
    let zone_bytes = info.unsigned(Kind::Size, "zone")?;
    let zones_at = info.unsigned(Kind::Offset, "pglist_data.node_zones")?;
    let spanned_at = info.unsigned(Kind::Offset, "zone.spanned_pages")?;
    let areas_at = info.unsigned(Kind::Offset, "zone.free_area")?;
    let stride = narrow("SIZE(free_area)", info.unsigned(Kind::Size, "free_area")?)?;
    let count_offset = narrow(
        "offsetof(nr_free)",
        layout.fact("offsetof(struct free_area,nr_free)")?,
    )?;
    let per_node = layout.fact("MAX_NR_ZONES")?;
    if !(1..=16).contains(&per_node) {
        return Err(ZonesError::Impossible {
            name: "MAX_NR_ZONES",
            value: per_node,
        });
    }
    if zone_bytes == 0 || zone_bytes > 1 << 20 {
        return Err(ZonesError::Impossible {
            name: "SIZE(zone)",
            value: zone_bytes,
        });
    }
    let mut zones = Vec::new();
    for (node, data) in nodes(view, info)? {
        for index in 0..per_node {
            let zone = data.wrapping_add(zones_at).wrapping_add(index * zone_bytes);
            let spanned = view.u64(GuestVirt::new(zone.wrapping_add(spanned_at)))?;
            if spanned == 0 {
                continue;
            }
            if zones.len() == MAX_ZONES {
                return Err(ZonesError::TooMany);
            }
            let array = GuestVirt::new(zone.wrapping_add(areas_at));
            zones.push(Zone {
                node,
                index,
                spanned,
                counter: ZoneCounter {
                    array,
                    stride,
                    count_offset,
                    count_bytes: 8,
                },
            });
        }
    }
    Ok(zones)
}

/// Number and `pglist_data` of every node.
fn nodes<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    info: &VmcoreInfo,
) -> Result<Vec<(u64, u64)>, ZonesError> {
    if let Some(only) = info.find_symbol("contig_page_data") {
        return Ok(vec![(0, only.get())]);
    }
    let table = info.symbol("node_data")?.get();
    let length = info.unsigned(Kind::Length, "node_data")?;
    if !(1..=MAX_NODES).contains(&length) {
        return Err(ZonesError::Impossible {
            name: "LENGTH(node_data)",
            value: length,
        });
    }
    let mut nodes = Vec::new();
    for node in 0..length {
        let data = view.u64(GuestVirt::new(table.wrapping_add(node * 8)))?;
        if data != 0 {
            nodes.push((node, data));
        }
    }
    Ok(nodes)
}

fn narrow(name: &'static str, value: u64) -> Result<u16, ZonesError> {
    u16::try_from(value).map_err(|_| ZonesError::Impossible { name, value })
}
