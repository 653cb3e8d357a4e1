//! The demonstration as a picture: the guest's memory in blocks of 2 MiB, before a round, after it, and in
//! use again.

use serde_json::{Map, Value};
use svg::Document;
use svg::node::element::{Rectangle, Text, Title};

/// Pages of a block.
const BLOCK_PAGES: u64 = 512;
/// Blocks in a row.
const COLUMNS: u32 = 20;
/// A block's edge, and the space between two, in the picture's units.
const EDGE: u32 = 12;
const GAP: u32 = 2;
/// Around and between the panels.
const MARGIN: u32 = 24;
/// For a panel's title above it, and for its figures below it.
const ABOVE: u32 = 40;
const BELOW: u32 = 64;

/// Memory in use; free, and the host has it all the same; given back.
const USED: &str = "#334155";
const FREE: &str = "#f59e0b";
const GIVEN: &str = "#e2e8f0";
const WORDS: &str = "#0f172a";
const PAPER: &str = "#ffffff";

/// A moment of the run.
struct Panel<'a> {
    title: &'a str,
    /// Pages of each block that are not in use, and what they are drawn as.
    blocks: Vec<u64>,
    colour: &'a str,
    /// The host's free memory, in MiB.
    host_free: u64,
    below: String,
}

/// Draws the figures of a run that went to its end; nothing for others.
pub(super) fn drawn(figures: &Map<String, Value>) -> Option<String> {
    let number = |name: &str| figures.get(name)?.as_u64();
    let blocks = |name: &str| -> Option<Vec<u64>> {
        figures.get(name)?.as_array()?.iter().map(Value::as_u64).collect()
    };
    let mib = |blocks: &[u64]| blocks.iter().sum::<u64>() / 256;
    let (free, given, left) = (
        blocks("map_free")?,
        blocks("map_given_back")?,
        blocks("map_left")?,
    );
    let panels = [
        Panel {
            title: "Before: the host holds all of it",
            below: format!("{} MiB free inside the guest", mib(&free)),
            blocks: free,
            colour: FREE,
            host_free: number("host_free_before")?,
        },
        Panel {
            title: "After: the free pages are given back",
            below: format!("{} MiB given back", mib(&given)),
            blocks: given,
            colour: GIVEN,
            host_free: number("host_free_after")?,
        },
        Panel {
            title: "The guest has used half of them again",
            below: format!("{} MiB still given back", mib(&left)),
            blocks: left,
            colour: GIVEN,
            host_free: number("host_free_again")?,
        },
    ];
    Some(document(&panels).to_string())
}

fn document(panels: &[Panel]) -> Document {
    let rows = panels.iter().map(|panel| rows(&panel.blocks)).max().unwrap_or(0);
    let panel_width = COLUMNS * (EDGE + GAP);
    let count = u32::try_from(panels.len()).unwrap_or(0);
    let width = MARGIN + count * (panel_width + MARGIN);
    let height = ABOVE + rows * (EDGE + GAP) + BELOW;
    let mut document = Document::new()
        .set("viewBox", (0, 0, width, height))
        .set("font-family", "sans-serif")
        .set("font-size", 13)
        .set("role", "img")
        .add(Title::new(
            "A guest's memory in blocks of 2 MiB, before a round of Lacuna, after it, and when half of it is used again",
        ))
        .add(rectangle((0, 0), (width, height), PAPER));
    let mut left = MARGIN;
    for panel in panels {
        document = document.add(text((left, ABOVE - 14), panel.title, "bold"));
        for (number, pages) in (0..).zip(&panel.blocks) {
            let place = (
                left + number % COLUMNS * (EDGE + GAP),
                ABOVE + number / COLUMNS * (EDGE + GAP),
            );
            document = document.add(rectangle(place, (EDGE, EDGE), USED));
            let part = part(*pages);
            if part > 0 {
                document = document.add(rectangle(place, (EDGE, part), panel.colour));
            }
        }
        let under = ABOVE + rows * (EDGE + GAP) + 20;
        document = document
            .add(text((left, under), &panel.below, "normal"))
            .add(text(
                (left, under + 20),
                &format!("host: {} MiB free", panel.host_free),
                "normal",
            ));
        left += panel_width + MARGIN;
    }
    document
}

fn rows(blocks: &[u64]) -> u32 {
    u32::try_from(blocks.len()).unwrap_or(u32::MAX).div_ceil(COLUMNS)
}

/// How much of a block's edge so many pages are: one of them shows, and one that is missing does.
fn part(pages: u64) -> u32 {
    let edge = u64::from(EDGE);
    let part = match pages {
        0 => 0,
        BLOCK_PAGES.. => edge,
        _ => (pages * edge / BLOCK_PAGES).clamp(1, edge - 1),
    };
    u32::try_from(part).unwrap_or(EDGE)
}

fn rectangle((x, y): (u32, u32), (width, height): (u32, u32), colour: &str) -> Rectangle {
    Rectangle::new()
        .set("x", x)
        .set("y", y)
        .set("width", width)
        .set("height", height)
        .set("fill", colour)
}

fn text((x, y): (u32, u32), words: &str, weight: &str) -> Text {
    Text::new(words)
        .set("x", x)
        .set("y", y)
        .set("fill", WORDS)
        .set("font-weight", weight)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn figures() -> Map<String, Value> {
        json!({
            "map_free": [0, 512, 100],
            "map_given_back": [0, 512, 90],
            "map_left": [0, 0, 90],
            "host_free_before": 1000,
            "host_free_after": 1002,
            "host_free_again": 1001,
        })
        .as_object()
        .unwrap()
        .clone()
    }

    #[test]
    fn each_block_is_drawn_with_what_is_not_in_use() {
        let text = drawn(&figures()).unwrap();
        // Three blocks in each of three panels, the free parts of two, two and one of them, and the paper.
        assert_eq!(text.matches("<rect").count(), 9 + 5 + 1);
        assert_eq!(text.matches(FREE).count(), 2);
        assert_eq!(text.matches(GIVEN).count(), 3);
        assert!(text.contains("2 MiB free inside the guest"), "{text}");
        assert!(text.contains("host: 1001 MiB free"), "{text}");
    }

    #[test]
    fn a_run_that_ended_early_is_not_drawn() {
        let mut figures = figures();
        figures.remove("map_left");
        assert_eq!(drawn(&figures), None);
    }

    #[test]
    fn a_block_that_is_nearly_full_or_empty_looks_so() {
        assert_eq!([0, 1, 256, 511, 512].map(part), [0, 1, 6, EDGE - 1, EDGE]);
    }
}
