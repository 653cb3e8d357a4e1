//! Instructions per page of the content stage, counted by valgrind and held against the bounds in
//! `content.bounds`.
//!
//! `cargo bench -p lacuna-core --bench content`. Counted is the core's part: hashing, the hash of the last
//! round, the index, and the order of steps. What the hypervisor's own functions take (looking up and mapping
//! a frame, entries, comparing) is not in the figures. Words of memory are read one by one, as `xen-module`
//! reads them: nothing of it is done several at a time by vector instructions, which Xen does not have.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_precision_loss
)]

mod callgrind;

use std::hint::black_box;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use lacuna_core::{
    BytesRule, ContentReport, DomainId, DomainPage, Gfn, GuestMemory, GuestPhys, IndexSize, LINE, Order, P2m,
    PAGE_SIZE, PageState, Part, Peers, Protect, ReadError, Rounds, Seed, Shortage, Skip, Stage, Steps, Table,
    Tables, VcpuRegisters,
};

use callgrind::Counted;

/// 16 MiB.
const PAGES: u64 = 4096;
const WORDS: usize = PAGE_SIZE / 8;

/// A domain whose hypervisor does as it is asked, at no cost.
struct Domain {
    words: Vec<AtomicU64>,
    states: Vec<PageState>,
    rounds: &'static [AtomicU64],
    index: &'static [AtomicU64],
}

fn zeroed(words: usize) -> Vec<AtomicU64> {
    (0..words).map(|_| AtomicU64::new(0)).collect()
}

fn at(gfn: Gfn) -> usize {
    usize::try_from(gfn.get()).unwrap()
}

impl Domain {
    /// With memory in which word `number` of page `gfn` is `word(gfn, number)`.
    fn new(word: impl Fn(u64, u64) -> u64) -> Self {
        let words = (0..PAGES).flat_map(|gfn| (0..WORDS as u64).map(move |number| (gfn, number)));
        Self {
            words: words
                .map(|(gfn, number)| AtomicU64::new(word(gfn, number)))
                .collect(),
            states: (0..PAGES).map(|_| PageState::Private).collect(),
            rounds: zeroed(at(Gfn::new(PAGES / 2))).leak(),
            // Roomy: no two pages are in each other's way.
            index: zeroed(at(Gfn::new(PAGES * 8))).leak(),
        }
    }

    fn frame(&self, gfn: Gfn) -> Result<&[AtomicU64], ReadError> {
        let first = at(gfn) * WORDS;
        self.words.get(first..first + WORDS).ok_or(ReadError::Absent(gfn))
    }
}

impl GuestMemory for Domain {
    fn read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        let first = at.offset() / 8;
        let words = self.frame(at.gfn())?.get(first..first + into.len() / 8);
        for (word, eight) in words
            .ok_or(ReadError::CrossesFrame(at))?
            .iter()
            .zip(into.chunks_exact_mut(8))
        {
            eight.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        Ok(())
    }

    #[inline]
    fn lines<F>(&mut self, gfn: Gfn, first: usize, mut take: F) -> Result<(), ReadError>
    where
        F: FnMut(&[u64; LINE]) -> ControlFlow<()>,
    {
        for line in self.frame(gfn)?[first * LINE..].chunks_exact(LINE) {
            let words = std::array::from_fn(|number| line[number].load(Ordering::Relaxed));
            if take(&words).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl P2m for Domain {
    fn pause(&mut self) {}

    fn unpause(&mut self) {}

    fn vcpus(&mut self) -> u32 {
        1
    }

    fn registers(&mut self, _vcpu: u32) -> VcpuRegisters {
        VcpuRegisters::default()
    }

    fn lock(&mut self) {}

    fn unlock(&mut self) {}

    #[inline(never)]
    fn share_zero(&mut self, gfn: Gfn, _order: Order, _bytes: BytesRule) -> Result<u64, Skip> {
        self.states[at(gfn)] = PageState::Zero;
        Ok(1)
    }

    fn flush(&mut self) {}

    fn release(&mut self) {}

    fn now(&mut self) -> u64 {
        0
    }
}

impl Protect for Domain {
    fn protect(&mut self, _gfn: Gfn, _order: Order) -> Result<(), Skip> {
        Ok(())
    }

    fn restore(&mut self, _gfn: Gfn, _order: Order) {}
}

impl Peers for Domain {
    fn id(&mut self) -> DomainId {
        DomainId::new(1)
    }

    fn page_state(&mut self, gfn: Gfn) -> PageState {
        self.states[at(gfn)]
    }

    #[inline(never)]
    fn equal(&mut self, _gfn: Gfn, _partner: DomainPage) -> bool {
        true
    }

    fn lock_with(&mut self, _partner: DomainId) -> Result<(), Skip> {
        Ok(())
    }

    fn unlock_with(&mut self) {}

    fn protect_partner(&mut self, _partner: DomainPage) -> Result<(), Skip> {
        Ok(())
    }

    fn restore_partner(&mut self, _partner: DomainPage) {}

    #[inline(never)]
    fn merge(&mut self, gfn: Gfn, partner: DomainPage, _most: u32) -> Result<(), Skip> {
        self.states[at(gfn)] = PageState::Shared;
        self.states[at(partner.gfn)] = PageState::Shared;
        Ok(())
    }
}

impl Tables for Domain {
    type Words = &'static [AtomicU64];

    fn part(&mut self, table: Table, _at: u64) -> Part<Self::Words> {
        let words = if table == Table::Index { self.index } else { &[] };
        Part {
            first: 0,
            end: words.len() as u64,
            words,
        }
    }

    fn extend(&mut self, table: Table, at: u64) -> Result<Part<Self::Words>, Shortage> {
        Ok(self.part(table, at))
    }

    fn index_size(&mut self) -> IndexSize {
        IndexSize {
            words: self.index.len() as u64,
            seed: 0x1234_5678,
        }
    }

    fn make_header(&mut self) -> Result<(), Shortage> {
        Ok(())
    }

    fn header(&mut self) -> Option<Self::Words> {
        None
    }
}

/// What callgrind counts: nothing outside this function.
#[inline(never)]
fn measured_round(domain: &mut Domain, stage: &Stage<'_>) -> ContentReport {
    let mut report = ContentReport::default();
    for gfn in 0..PAGES {
        stage.page(domain, Gfn::new(gfn), &mut report).unwrap();
    }
    report
}

/// The child under valgrind.
fn run(case: &str) {
    let spread = |word: u64| word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // Pages of zeros, of zeros but for the last word, alike in pairs, and like no other.
    let mut domain = match case {
        "zero" => Domain::new(|_, _| 0),
        "late" => Domain::new(|gfn, number| if number + 1 == WORDS as u64 { gfn + 1 } else { 0 }),
        "equal" => Domain::new(|gfn, number| spread(gfn / 2 * 1000 + number + 1)),
        "first" | "same" => Domain::new(|gfn, number| spread(gfn * 1000 + number + 1)),
        other => panic!("no case {other}"),
    };
    let index = domain.index_size();
    let stage = Stage {
        rounds: Rounds::part(0, domain.rounds),
        index,
        seed: Seed::new(index.seed),
        rest: None,
        leave: None,
        steps: Steps::default(),
    };
    let before = match case {
        "first" => 0,
        "same" | "late" => 2,
        _ => 1,
    };
    for _ in 0..before {
        stages(&mut domain, &stage);
    }
    let report = black_box(measured_round(&mut domain, &stage));
    let shared = match case {
        "zero" => (PAGES, 0),
        "equal" => (0, PAGES / 2),
        _ => (0, 0),
    };
    assert_eq!((report.zeroed, report.merged), shared, "{case}: {report:?}");
}

/// A round that is not counted.
fn stages(domain: &mut Domain, stage: &Stage<'_>) {
    let mut report = ContentReport::default();
    for gfn in 0..PAGES {
        stage.page(domain, Gfn::new(gfn), &mut report).unwrap();
    }
}

fn main() -> ExitCode {
    let content = Counted {
        subject: "content",
        function: "measured_round",
        bounds: include_str!("content.bounds"),
        bounds_file: "core/benches/content.bounds",
        pages: |_| PAGES,
        run,
    };
    content.main()
}
