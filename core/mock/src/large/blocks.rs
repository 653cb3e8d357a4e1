//! Which pages of a large guest are free: computed for each page when it is asked for, and kept nowhere.

/// log2 of the pages of the largest block, and of the unit in which memory is laid out.
const LARGEST: u8 = 10;

/// What has become of a guest's free memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As after boot: all of it in the largest blocks.
    Fresh,
    /// As after some days: of ten stretches of 4 MiB four are in use, two are free, and in four every other
    /// piece is free; pieces have from 4 to 512 pages.
    Aged,
    /// Every other page free: no two free pages are neighbours.
    Fragmented,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Fresh, Self::Aged, Self::Fragmented];

    /// As figures name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Aged => "aged",
            Self::Fragmented => "fragmented",
        }
    }
}

/// Pages of one kind: a free block, or a stretch that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) first: u64,
    pub(super) order: u8,
    pub(super) is_free: bool,
}

impl Piece {
    /// One past its last page.
    pub(super) const fn end(self) -> u64 {
        self.first + (1 << self.order)
    }

    /// Whether it is a free block that begins at `gfn`.
    pub(super) const fn is_head(self, gfn: u64) -> bool {
        self.is_free && self.first == gfn
    }
}

/// The free blocks of a guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    state: State,
    /// Pages before this one are the kernel's own.
    kernel_end: u64,
    /// One past the last page.
    pages: u64,
}

impl Blocks {
    /// # Panics
    /// When a number is no multiple of the largest block, or the kernel needs all memory.
    pub(super) fn new(state: State, kernel_end: u64, pages: u64) -> Self {
        assert!(
            (kernel_end | pages).is_multiple_of(1 << LARGEST) && kernel_end < pages,
            "a guest of {pages} pages with {kernel_end} of the kernel's own"
        );
        Self {
            state,
            kernel_end,
            pages,
        }
    }

    /// The piece that `gfn` lies in.
    pub(super) fn piece(&self, gfn: u64) -> Piece {
        let piece = |order: u8, is_free| Piece {
            first: gfn >> order << order,
            order,
            is_free,
        };
        if gfn < self.kernel_end || gfn >= self.pages {
            return piece(LARGEST, false);
        }
        match self.state {
            State::Fresh => piece(LARGEST, true),
            State::Fragmented => piece(0, gfn % 2 == 1),
            State::Aged => {
                let drawn = mixed(gfn >> LARGEST);
                match drawn % 10 {
                    0..4 => piece(LARGEST, false),
                    4..6 => piece(LARGEST, true),
                    _ => {
                        let order = 2 + (drawn >> 8 & 7) as u8;
                        piece(order, ((gfn >> order) + (drawn >> 16)) % 2 == 1)
                    }
                }
            }
        }
    }

    /// Free blocks of each order, as the kernel counts them.
    pub(super) fn counted(&self) -> [u64; LARGEST as usize + 1] {
        let mut counts = [0; LARGEST as usize + 1];
        let unit = 1 << LARGEST;
        for first in (self.kernel_end..self.pages).step_by(unit) {
            // Within a unit all pieces have the same size, and every other one is free.
            let one = self.piece(first);
            if one.order == LARGEST {
                counts[usize::from(one.order)] += u64::from(one.is_free);
            } else {
                counts[usize::from(one.order)] += unit as u64 >> one.order >> 1;
            }
        }
        counts
    }
}

/// A number that looks drawn, always the same for the same `seed` (splitmix64, public domain).
const fn mixed(seed: u64) -> u64 {
    let z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
