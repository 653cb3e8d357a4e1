//! The large guest as the engine sees it.

use lacuna_core::abi::{CHUNK_GFNS, GfnInfo, ShimCounters};
use lacuna_core::{
    BytesRule, Domain, DomainId, DomainPage, Gfn, GuestMemory, GuestPhys, Order, P2m, PAGE_SHIFT, PAGE_SIZE,
    PageState, Peers, Predicate, Protect, ReadError, Row, Skip, Status, VcpuRegisters, Writes,
    count_failing_one_by_one, most_bytes,
};

use super::{LargeGuest, MAP_FIRST};

/// Work after which an interrupt is pending: some milliseconds of it.
const INTERRUPT: u64 = 1 << 20;

fn bit(gfn: u64) -> (usize, u64) {
    (usize::try_from(gfn / 64).unwrap_or(usize::MAX), 1 << (gfn % 64))
}

/// Whether `words` has the bit of `gfn`.
fn has(words: &[u64], gfn: u64) -> bool {
    let (word, mask) = bit(gfn);
    words[word] & mask != 0
}

impl LargeGuest {
    /// Counts a read of `gfn`.
    #[inline]
    fn count(&mut self, gfn: u64, values: u64) {
        self.work.values += values;
        self.work.frames += u64::from(self.mapped != gfn);
        self.mapped = gfn;
    }

    /// The page whose descriptor has the byte at `at`, and the byte's offset in it.
    #[inline]
    fn described(&self, at: GuestPhys) -> Option<(u64, u64)> {
        let size = u64::from(self.layout.descriptor_bytes);
        let inside = at.get().checked_sub(MAP_FIRST << PAGE_SHIFT)?;
        let gfn = inside / size;
        (gfn < self.pages).then_some((gfn, inside % size))
    }

    /// The bytes of the descriptor of `gfn`.
    fn descriptor(&self, gfn: u64) -> [u8; 64] {
        let mut bytes = [0; 64];
        let piece = self.blocks.piece(gfn);
        let mut put = |field: lacuna_core::Field, value: u64| {
            let offset = usize::from(field.offset);
            let width = usize::from(field.width);
            bytes[offset..offset + width].copy_from_slice(&value.to_le_bytes()[..width]);
        };
        let is_head = piece.is_head(gfn);
        let mark = if is_head {
            self.layout.marked
        } else {
            self.layout.unmarked[0]
        };
        put(self.layout.predicate.field, mark);
        put(self.layout.references, u64::from(!piece.is_free));
        if is_head {
            put(self.layout.order, u64::from(piece.order));
        }
        bytes
    }

    #[inline(never)]
    fn mock_read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        self.count(at.gfn().get(), 1);
        if at.offset() + into.len() > PAGE_SIZE {
            return Err(ReadError::CrossesFrame(at));
        }
        if at.gfn().get() >= self.pages {
            return Err(ReadError::Absent(at.gfn()));
        }
        if let Some((gfn, offset)) = self.described(at) {
            // A member, or part of one: nothing asks for more of the map at once.
            let bytes = self.descriptor(gfn);
            let first = usize::try_from(offset).unwrap_or(usize::MAX);
            let found = bytes
                .get(first..first + into.len())
                .ok_or(ReadError::CrossesFrame(at))?;
            into.copy_from_slice(found);
        } else if let Some(bytes) = self.kept.get(&at.gfn().get()) {
            into.copy_from_slice(&bytes[at.offset()..at.offset() + into.len()]);
        } else {
            into.fill(0);
        }
        Ok(())
    }

    /// `None` for another row than one of marks.
    #[inline(never)]
    fn mock_count_failing(&mut self, row: Row, test: &Predicate) -> Option<u64> {
        let (gfn, offset) = self.described(row.first)?;
        let is_of_marks = *test == self.layout.predicate
            && offset == u64::from(test.field.offset)
            && row.stride == u64::from(self.layout.descriptor_bytes);
        if !is_of_marks {
            return None;
        }
        let end = gfn + row.count;
        let mut at = gfn;
        while at < end {
            let piece = self.blocks.piece(at);
            if piece.is_head(at) {
                break;
            }
            at = piece.end();
        }
        let passed_over = at.min(end) - gfn;
        self.count(row.first.gfn().get(), (passed_over + 1).min(row.count));
        Some(passed_over)
    }

    #[inline(never)]
    fn mock_share_zero(&mut self, gfn: u64, order: Order) -> Result<u64, Skip> {
        self.work.entries += 1;
        let first = bit(gfn).0;
        if order == Order::PAGE {
            let (word, mask) = bit(gfn);
            if self.zero[word] & mask != 0 {
                return Err(Skip::Already);
            }
            self.zero[word] |= mask;
            self.note_zero(first);
            let (word, mask) = bit(gfn >> 9);
            self.split[word] |= mask;
            return Ok(1);
        }
        let words = &mut self.zero[first..first + 8];
        let before: u32 = words.iter().map(|word| word.count_ones()).sum();
        words.fill(u64::MAX);
        (first..first + 8).for_each(|word| self.note_zero(word));
        Ok(order.pages() - u64::from(before))
    }

    #[inline(never)]
    fn mock_gfn_info(&mut self, gfn: u64) -> GfnInfo {
        self.work.lookups += 1;
        if gfn >= self.pages {
            return GfnInfo {
                mfn: u64::MAX,
                order: 9,
                ..GfnInfo::default()
            };
        }
        let is_zero = has(&self.zero, gfn);
        GfnInfo {
            mfn: if is_zero { u64::MAX } else { gfn },
            order: if has(&self.split, gfn >> 9) { 0 } else { 9 },
            zero_frame: u32::from(is_zero),
            ..GfnInfo::default()
        }
    }

    #[inline(never)]
    fn mock_take_written(&mut self, first: u64, count: u64) -> [u64; 8] {
        // One entry of 2 MiB, or those of one page table.
        self.work.lookups += 1;
        let mut written = [0; 8];
        let is_split = has(&self.split, first >> 9);
        for at in 0..count.min(512) {
            let entry = if is_split {
                first + at
            } else {
                (first + at) >> 9 << 9
            };
            if !self.unwritten.contains(&entry) {
                written[(at / 64) as usize] |= 1 << (at % 64);
            }
        }
        for at in 0..count.min(512) {
            let entry = if is_split {
                first + at
            } else {
                (first + at) >> 9 << 9
            };
            self.unwritten.insert(entry);
        }
        written
    }

    #[inline(never)]
    fn mock_preempted(&mut self) -> bool {
        self.work.checks += 1;
        let total = self.work.total();
        self.work.longest = self.work.longest.max(total - self.checked_at);
        self.checked_at = total;
        let is_pending = total - self.continued_at >= INTERRUPT;
        if is_pending {
            self.continued_at = total;
            self.work.continuations += 1;
        }
        is_pending
    }
}

impl GuestMemory for LargeGuest {
    fn read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        self.mock_read(at, into)
    }

    #[inline]
    fn count_failing(&mut self, row: Row, test: &Predicate) -> Result<u64, ReadError> {
        match self.mock_count_failing(row, test) {
            Some(count) => Ok(count),
            None => count_failing_one_by_one(self, row, test),
        }
    }
}

impl P2m for LargeGuest {
    fn pause(&mut self) {
        self.work.pauses += 1;
    }

    fn unpause(&mut self) {}

    fn vcpus(&mut self) -> u32 {
        1
    }

    fn registers(&mut self, _vcpu: u32) -> VcpuRegisters {
        Self::register_values()
    }

    fn lock(&mut self) {}

    fn unlock(&mut self) {}

    fn share_zero(&mut self, gfn: Gfn, order: Order, _bytes: BytesRule) -> Result<u64, Skip> {
        self.mock_share_zero(gfn.get(), order)
    }

    fn flush(&mut self) {}

    fn release(&mut self) {}

    /// Ten nanoseconds for each piece of work.
    fn now(&mut self) -> u64 {
        self.clock = self.clock.max(10 * self.work.total()) + 1;
        self.clock
    }
}

/// Nothing of it runs, so nothing is written but what [`LargeGuest::touch`] says.
impl Writes for LargeGuest {
    fn take_written(&mut self, first: Gfn, count: u32) -> [u64; 8] {
        self.mock_take_written(first.get(), u64::from(count))
    }
}

impl Protect for LargeGuest {
    fn protect(&mut self, _gfn: Gfn, _order: Order) -> Result<(), Skip> {
        Err(Skip::NoPool)
    }

    fn restore(&mut self, _gfn: Gfn, _order: Order) {}
}

/// It has nobody to share by content with.
impl Peers for LargeGuest {
    fn id(&mut self) -> DomainId {
        DomainId::new(1)
    }

    fn page_state(&mut self, gfn: Gfn) -> PageState {
        if has(&self.zero, gfn.get()) {
            PageState::Zero
        } else {
            PageState::Private
        }
    }

    fn equal(&mut self, _gfn: Gfn, _partner: DomainPage) -> bool {
        false
    }

    fn lock_with(&mut self, _partner: DomainId) -> Result<(), Skip> {
        Err(Skip::NoPartner)
    }

    fn unlock_with(&mut self) {}

    fn protect_partner(&mut self, _partner: DomainPage) -> Result<(), Skip> {
        Err(Skip::NoPartner)
    }

    fn restore_partner(&mut self, _partner: DomainPage) {}

    fn merge(&mut self, _gfn: Gfn, _partner: DomainPage, _most: u32) -> Result<(), Skip> {
        Err(Skip::NoPartner)
    }
}

impl Domain for LargeGuest {
    fn blocker(&mut self) -> Option<(Status, u64)> {
        None
    }

    fn gfns(&mut self) -> u64 {
        self.pages
    }

    fn preempted(&mut self) -> bool {
        self.mock_preempted()
    }

    fn paused_by_toolstack(&mut self) -> bool {
        false
    }

    fn counters(&mut self) -> ShimCounters {
        ShimCounters {
            metadata_bytes: self.held.bytes(),
            metadata_most: most_bytes(self.pages).1,
            bitmap_gfns: self.held.pages() * CHUNK_GFNS,
            ..ShimCounters::default()
        }
    }

    fn gfn_info(&mut self, gfn: Gfn) -> GfnInfo {
        self.mock_gfn_info(gfn.get())
    }
}
