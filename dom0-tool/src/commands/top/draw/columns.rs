//! The columns of the list, and which of them fit.

use crate::commands::top::PAGES_PER_MIB;
use crate::commands::top::view::Guest;
use crate::commands::words::clean;

/// Fewest cells of a bar.
const LEAST_BAR: u16 = 12;

/// A column of the list.
pub(super) struct Column {
    pub(super) title: &'static str,
    pub(super) width: u16,
    /// The column with the greatest number goes first where there is no room.
    rank: u8,
    pub(super) is_left: bool,
    pub(super) text: fn(&Guest) -> String,
}

/// Renders pages as MiB.
pub(super) fn mib(pages: u64) -> String {
    (pages / PAGES_PER_MIB).to_string()
}

const COLUMNS: [Column; 9] = [
    Column {
        title: "domid",
        width: 5,
        rank: 6,
        is_left: false,
        text: |guest| guest.row.domain.to_string(),
    },
    Column {
        title: "name",
        width: 16,
        rank: 0,
        is_left: true,
        text: |guest| clean(&guest.row.name),
    },
    Column {
        title: "state",
        width: 8,
        rank: 8,
        is_left: true,
        text: |guest| guest.row.state.to_owned(),
    },
    Column {
        title: "held",
        width: 7,
        rank: 1,
        is_left: false,
        text: |guest| mib(guest.row.held),
    },
    Column {
        title: "free",
        width: 7,
        rank: 3,
        is_left: false,
        text: |guest| mib(guest.row.free_inside()),
    },
    Column {
        title: "given",
        width: 7,
        rank: 2,
        is_left: false,
        text: |guest| mib(guest.row.given_back),
    },
    Column {
        title: "due",
        width: 7,
        rank: 5,
        is_left: false,
        text: |guest| guest.due.map_or_else(|| "-".to_owned(), mib),
    },
    Column {
        title: "taken/s",
        width: 8,
        rank: 4,
        is_left: false,
        text: |guest| format!("{:.1}", guest.row.unshared_rate),
    },
    Column {
        title: "paused %",
        width: 8,
        rank: 7,
        is_left: false,
        text: |guest| format!("{:.3}", guest.row.paused * 100.0),
    },
];

/// Returns the columns that fit into `width` beside a bar.
pub(super) fn columns(width: u16) -> Vec<&'static Column> {
    let mut shown: Vec<&Column> = COLUMNS.iter().collect();
    let taken = |shown: &[&Column]| shown.iter().map(|column| column.width + 1).sum::<u16>();
    while shown.len() > 1 && taken(&shown) + LEAST_BAR > width {
        let least = shown.iter().map(|column| column.rank).max();
        shown.retain(|column| Some(column.rank) != least);
    }
    shown
}
