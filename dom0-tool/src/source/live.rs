//! The memory of a live domain, mapped a window at a time.
//!
//! A mapping holds a reference on every frame in it, and a frame that something holds cannot be shared: drop
//! this value before a share round.

use std::collections::VecDeque;
use std::rc::Rc;

use lacuna_core::{Gfn, GuestMemory, GuestPhys, PAGE_SIZE, ReadError};

use crate::source::GuestSource;
use crate::xen::privcmd::{DomainId, ForeignFrames, Privcmd, PrivcmdError};

/// Frames to a window that serves scattered reads: page tables and kernel data lie close together.
const WINDOW: u64 = 16;
/// Windows kept, the latest first.
const WINDOWS: usize = 64;
/// Frames to a window of a search from end to end.
const SEARCH_WINDOW: u64 = 1024;
/// After an empty search window, every so many frames of the next are tried before all of it is mapped. A run
/// of memory shorter than this that follows a hole of [`SEARCH_WINDOW`] frames can be missed by a search.
const PROBE_STEP: usize = 32;

#[derive(Debug)]
struct Window {
    first: u64,
    frames: ForeignFrames,
    length: u64,
}

impl Window {
    fn index(&self, gfn: Gfn) -> Option<usize> {
        let offset = gfn
            .get()
            .checked_sub(self.first)
            .filter(|offset| *offset < self.length)?;
        usize::try_from(offset).ok()
    }
}

/// The memory of one domain.
#[derive(Debug)]
pub struct DomainMemory {
    privcmd: Rc<Privcmd>,
    domain: DomainId,
    end: Gfn,
    /// Most frames that the domain can have: a search that has seen so many is over.
    most_frames: u64,
    windows: VecDeque<Window>,
    search: Option<Window>,
    search_was_empty: bool,
    seen: u64,
    trouble: Option<PrivcmdError>,
}

impl DomainMemory {
    /// The memory of `domain`, which may own up to `most_frames` frames.
    ///
    /// # Errors
    /// [`PrivcmdError`].
    pub fn open(privcmd: &Rc<Privcmd>, domain: DomainId, most_frames: u64) -> Result<Self, PrivcmdError> {
        let end = privcmd.maximum_gfn(domain)?.saturating_add(1);
        Ok(Self {
            privcmd: Rc::clone(privcmd),
            domain,
            end,
            most_frames,
            windows: VecDeque::new(),
            search: None,
            search_was_empty: false,
            seen: 0,
            trouble: None,
        })
    }

    fn map(&self, first: u64, length: u64) -> Option<Window> {
        let frames: Vec<u64> = (first..first + length).collect();
        // A window that cannot be mapped at all reads as absent: the caller reports the frame it wanted.
        let frames = self.privcmd.map_frames(self.domain, &frames).ok()?;
        Some(Window {
            first,
            frames,
            length,
        })
    }

    fn window(&mut self, gfn: Gfn) -> Option<&Window> {
        if let Some(at) = self.windows.iter().position(|window| window.index(gfn).is_some()) {
            if let Some(window) = self.windows.remove(at) {
                self.windows.push_front(window);
            }
        } else {
            let first = gfn.get() - gfn.get() % WINDOW;
            let window = self.map(first, WINDOW)?;
            self.windows.truncate(WINDOWS - 1);
            self.windows.push_front(window);
        }
        self.windows.front()
    }

    /// Maps the next window of a search, or leaves it out as a hole.
    fn advance_search(&mut self, first: u64) {
        let length = SEARCH_WINDOW.min(self.end.get() - first);
        self.search = None;
        if self.search_was_empty {
            let probes: Vec<u64> = (first..first + length).step_by(PROBE_STEP).collect();
            let found = self.privcmd.map_frames(self.domain, &probes);
            if !found.is_ok_and(|frames| (0..probes.len()).any(|index| frames.is_present(index))) {
                return;
            }
        }
        self.search = self.map(first, length);
        let present = self.search.as_ref().map_or(0, |window| {
            (0..window.length)
                .filter(|index| usize::try_from(*index).is_ok_and(|index| window.frames.is_present(index)))
                .count()
        });
        self.search_was_empty = present == 0;
        self.seen += present as u64;
    }
}

impl GuestMemory for DomainMemory {
    fn read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        if at.offset() + into.len() > PAGE_SIZE {
            return Err(ReadError::CrossesFrame(at));
        }
        let gfn = at.gfn();
        let absent = ReadError::Absent(gfn);
        if gfn >= self.end {
            return Err(absent);
        }
        if let Some((window, index)) = self
            .search
            .as_ref()
            .and_then(|window| Some((window, window.index(gfn)?)))
        {
            return if window.frames.copy(index, at.offset(), into) {
                Ok(())
            } else {
                Err(absent)
            };
        }
        let window = self.window(gfn).ok_or(absent)?;
        let index = window.index(gfn).ok_or(absent)?;
        if window.frames.copy(index, at.offset(), into) {
            Ok(())
        } else {
            Err(absent)
        }
    }
}

impl GuestSource for DomainMemory {
    fn end(&self) -> Gfn {
        self.end
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.as_ref().map(ToString::to_string)
    }

    fn next_present(&mut self, from: Gfn) -> Option<Gfn> {
        let mut at = from.get();
        if at == 0 {
            (self.search, self.search_was_empty, self.seen) = (None, false, 0);
        }
        while at < self.end.get() {
            if let Some(window) = &self.search {
                let end = window.first + window.length;
                if (window.first..end).contains(&at) {
                    let found = (at..end).find(|gfn| {
                        window
                            .index(Gfn::new(*gfn))
                            .is_some_and(|index| window.frames.is_present(index))
                    });
                    if let Some(gfn) = found {
                        return Some(Gfn::new(gfn));
                    }
                    at = end;
                    continue;
                }
            }
            if self.seen >= self.most_frames {
                break;
            }
            let first = at - at % SEARCH_WINDOW;
            self.advance_search(first);
            if self.search.is_none() {
                at = first + SEARCH_WINDOW;
            }
        }
        self.search = None;
        None
    }
}
