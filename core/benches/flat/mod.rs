//! A mock guest's memory in one piece, read the way `xen-module` reads a mapped frame: it compares the frame
//! with the last one, checks the range, and loads, or goes along a row of values after one look.

use lacuna_core::{Gfn, GuestMemory, GuestPhys, PAGE_SIZE, Predicate, ReadError, Row};
use lacuna_mock::{Config, Layout, MapPages, MockGuest, Model};

/// 256 MiB: the map takes three 2 MiB pages, so every path is taken more than once.
pub(crate) const PAGES: u64 = 65_536;

/// Guest memory in one piece.
pub(crate) struct Flat {
    bytes: Vec<u8>,
    last: u64,
    changes: u64,
}

impl Flat {
    /// The memory of `guest`, as far as it holds anything.
    pub(crate) fn of(guest: &mut MockGuest) -> Self {
        let mut memory = Self {
            bytes: vec![0; usize::try_from(PAGES).unwrap() * PAGE_SIZE],
            last: u64::MAX,
            changes: 0,
        };
        // Only the kernel's own frames do: the map and the page tables lie below 16 MiB.
        for gfn in 0..4096 {
            let start = usize::try_from(gfn).unwrap() * PAGE_SIZE;
            guest
                .read(
                    Gfn::new(gfn).base().unwrap(),
                    &mut memory.bytes[start..start + PAGE_SIZE],
                )
                .unwrap();
        }
        memory
    }

    fn frame(&mut self, at: GuestPhys) -> Result<usize, ReadError> {
        let gfn = at.gfn();
        if gfn.get() != self.last {
            self.last = gfn.get();
            self.changes += 1;
        }
        let start = usize::try_from(at.get()).map_err(|_| ReadError::Absent(gfn))?;
        if start >= self.bytes.len() {
            return Err(ReadError::Absent(gfn));
        }
        Ok(start)
    }
}

impl GuestMemory for Flat {
    fn read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        let start = self.frame(at)?;
        into.copy_from_slice(
            self.bytes
                .get(start..start + into.len())
                .ok_or(ReadError::CrossesFrame(at))?,
        );
        Ok(())
    }

    #[inline]
    fn read_value(&mut self, at: GuestPhys, width: u8) -> Result<u64, ReadError> {
        let start = self.frame(at)?;
        let width = usize::from(width);
        if at.offset() + width > PAGE_SIZE {
            return Err(ReadError::CrossesFrame(at));
        }
        let bytes = self
            .bytes
            .get(start..start + 8)
            .ok_or(ReadError::Absent(at.gfn()))?;
        let word = u64::from_le_bytes(bytes.try_into().unwrap());
        Ok(match width {
            1 => word & 0xff,
            2 => word & 0xffff,
            4 => word & 0xffff_ffff,
            _ => word,
        })
    }

    fn count_failing(&mut self, row: Row, test: &Predicate) -> Result<u64, ReadError> {
        let start = self.frame(row.first)?;
        let stride = usize::try_from(row.stride).map_err(|_| ReadError::CrossesFrame(row.first))?;
        let last = usize::try_from(row.count - 1).map_err(|_| ReadError::CrossesFrame(row.first))?;
        let length = last * stride + usize::from(test.field.width);
        if row.first.offset() + length > PAGE_SIZE {
            return Err(ReadError::CrossesFrame(row.first));
        }
        let bytes = &self.bytes[start..start + length];
        Ok(match test.field.width {
            1 => count_until_match::<1>(bytes, stride, test),
            2 => count_until_match::<2>(bytes, stride, test),
            4 => count_until_match::<4>(bytes, stride, test),
            _ => count_until_match::<8>(bytes, stride, test),
        })
    }
}

/// A guest in the state that `case` names.
pub(crate) fn guest(case: &str) -> MockGuest {
    let windows = case == "windows";
    let mut guest = MockGuest::new(&Config {
        layout: if windows {
            Layout::windows()
        } else {
            Layout::modern()
        },
        model: if windows { Model::Runs } else { Model::Vmemmap },
        map_pages: MapPages::Large,
        pages: PAGES,
        host_free: 0,
        ..Config::default()
    });
    match case {
        // Just booted: all memory in the largest blocks; with Windows, on the list of zeroed pages, each page
        // for itself.
        "idle" | "windows" => {}
        // No memory left.
        "busy" => while (0..=10).rev().any(|order| guest.alloc(0, order).is_some()) {},
        // Every other page free: no two can merge.
        "fragmented" => {
            while guest.alloc(0, 0).is_some() {}
            let odd: Vec<Gfn> = guest
                .allocated()
                .map(|(head, _)| head)
                .filter(|head| head.get() % 2 == 1)
                .collect();
            for head in odd {
                guest.free(0, head);
            }
        }
        // Blocks of eight, every other one free: the look of a server after some days.
        "mixed" => {
            while guest.alloc(0, 3).is_some() {}
            let odd: Vec<Gfn> = guest
                .allocated()
                .map(|(head, _)| head)
                .filter(|head| head.get() % 16 == 8)
                .collect();
            for head in odd {
                guest.free(0, head);
            }
        }
        other => panic!("no case {other}"),
    }
    guest
}

/// Counts the values of `WIDTH` bytes, `stride` apart, before the first for which `test` holds.
fn count_until_match<const WIDTH: usize>(bytes: &[u8], stride: usize, test: &Predicate) -> u64 {
    let mut passed_over = 0;
    let mut at = 0;
    while let Some(value) = bytes.get(at..at + WIDTH) {
        let mut word = [0; 8];
        word[..WIDTH].copy_from_slice(value);
        if test.holds(u64::from_le_bytes(word)) {
            break;
        }
        passed_over += 1;
        at += stride;
    }
    passed_over
}
