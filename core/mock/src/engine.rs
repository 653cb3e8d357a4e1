//! The mock guest as the engine sees it: the traits, with the faults planned and the guest's interludes.

use super::MockGuest;
use super::faults::Primitive;
use super::hooks::TakeWritten;
use super::machine::{Entry, Violation};
use lacuna_core::abi::{GfnInfo, ShimCounters};
use lacuna_core::{
    BytesRule, Domain, Gfn, GuestMemory, GuestPhys, Order, P2m, PAGE_SIZE, Protect, ReadError, Skip, Status,
    VcpuRegisters, Writes, most_bytes,
};

/// Prices of calls on the mock's clock, in nanoseconds: a read of a mapped frame, and a change of an entry.
pub(super) const READ_NS: u64 = 20;
const ENTRY_NS: u64 = 300;

/// What [`Primitive::ShareZero`] fails with, in turn.
const SKIPS: [Skip; 6] = [
    Skip::NotRam,
    Skip::Held,
    Skip::NotZero,
    Skip::NoPool,
    Skip::EntryRefused,
    Skip::LogDirty,
];

impl MockGuest {
    /// Lets the guest run for a moment, if it is running.
    pub(super) fn interlude(&mut self) {
        if self.machine.running()
            && !self.toolstack_pause
            && let Some(mut program) = self.interlude.take()
        {
            program(self);
            if self.interlude.is_none() {
                self.interlude = Some(program);
            }
        }
    }
}

impl GuestMemory for MockGuest {
    fn read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        self.interlude();
        self.clock += self.read_price;
        self.reads += 1;
        if let Some(trace) = &mut self.trace {
            trace.push(at);
        }
        if at.offset() + into.len() > PAGE_SIZE {
            return Err(ReadError::CrossesFrame(at));
        }
        if self.faults.strikes(Primitive::Read) || !self.machine.peek(at.gfn().get(), at.offset(), into) {
            return Err(ReadError::Absent(at.gfn()));
        }
        Ok(())
    }
}

impl P2m for MockGuest {
    fn pause(&mut self) {
        self.interlude();
        self.machine.pause();
    }

    fn unpause(&mut self) {
        self.machine.unpause();
        self.interlude();
    }

    fn vcpus(&mut self) -> u32 {
        self.config.vcpus
    }

    fn registers(&mut self, vcpu: u32) -> VcpuRegisters {
        if self.machine.running() && !self.toolstack_pause {
            self.machine
                .violations
                .push(Violation::RegistersOfRunning { vcpu });
        }
        let registers = self.registers[vcpu as usize];
        if self.faults.strikes(Primitive::Registers) {
            return VcpuRegisters {
                idt_limit: 0,
                ..registers
            };
        }
        registers
    }

    fn lock(&mut self) {
        self.interlude();
        self.machine.lock();
        self.interlude();
    }

    fn unlock(&mut self) {
        self.machine.unlock();
        self.interlude();
    }

    fn share_zero(&mut self, gfn: Gfn, order: Order, bytes: BytesRule) -> Result<u64, Skip> {
        self.interlude();
        self.clock += ENTRY_NS;
        self.share_calls += 1;
        if self.faults.strikes(Primitive::ShareZero) {
            return Err(SKIPS[(self.share_calls % SKIPS.len() as u64) as usize]);
        }
        let result = self.machine.share_zero(gfn.get(), order, bytes);
        self.interlude();
        result
    }

    fn flush(&mut self) {
        self.interlude();
        self.machine.flush();
        self.interlude();
    }

    fn release(&mut self) {
        self.interlude();
        self.machine.release();
        self.interlude();
    }

    fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

impl Protect for MockGuest {
    fn protect(&mut self, gfn: Gfn, order: Order) -> Result<(), Skip> {
        self.interlude();
        if self.faults.strikes(Primitive::Protect) {
            return Err(Skip::NoPool);
        }
        let result = self.machine.protect(gfn.get(), order, false);
        self.interlude();
        result
    }

    fn restore(&mut self, gfn: Gfn, order: Order) {
        self.interlude();
        // Nothing to undo where nothing was protected.
        let _ = self.machine.protect(gfn.get(), order, true);
        self.interlude();
    }
}

impl Writes for MockGuest {
    fn take_written(&mut self, first: Gfn, count: u32) -> [u64; 8] {
        self.interlude();
        let flush = self.take_written == TakeWritten::Flush;
        let written = self.machine.take_written(first.get(), u64::from(count), flush);
        self.interlude();
        if self.take_written == TakeWritten::Everything {
            return [u64::MAX; 8];
        }
        written
    }
}

impl Domain for MockGuest {
    fn blocker(&mut self) -> Option<(Status, u64)> {
        if self.faults.strikes(Primitive::Blocker) || self.machine.log_dirty {
            // The shim's number for it (docs: the boundary's `lacuna_x_blocker`).
            return Some((Status::LogDirty, 5));
        }
        None
    }

    fn gfns(&mut self) -> u64 {
        self.machine.gfns()
    }

    fn preempted(&mut self) -> bool {
        self.faults.strikes(Primitive::Preempted)
    }

    fn paused_by_toolstack(&mut self) -> bool {
        self.toolstack_pause
    }

    fn counters(&mut self) -> ShimCounters {
        ShimCounters {
            zero_gfns: self.machine.zero_gfns(),
            unshared: self.machine.unshared,
            unshare_enomem: self.machine.unshare_enomem,
            released: self.machine.released,
            pool_refused: self.machine.pool_refused,
            metadata_bytes: self.tables_held.bytes(),
            bitmap_gfns: self.tables_held.bitmap_gfns(),
            metadata_most: most_bytes(self.machine.owned()).1,
            content_gfns: self.machine.content_gfns(),
            content_unshared: self.machine.content_unshared,
            refilled: 0,
            ..ShimCounters::default()
        }
    }

    fn gfn_info(&mut self, gfn: Gfn) -> GfnInfo {
        let entry = self.machine.entry(gfn.get());
        GfnInfo {
            mfn: match entry {
                Entry::Ram { frame, .. } | Entry::Shared(frame) => frame as u64,
                Entry::Hole | Entry::Zero => u64::MAX,
            },
            // One reference for being allocated, as Xen counts (`PGC_allocated | 1`), and one for each
            // holder.
            count_info: self
                .machine
                .references(gfn.get())
                .map_or(0, |held| 1 + u64::from(*held)),
            order: u32::from(self.machine.order_of_entry(gfn.get())),
            zero_frame: u32::from(entry == Entry::Zero),
            ..GfnInfo::default()
        }
    }
}
