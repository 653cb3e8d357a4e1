//! The engine's hands on the model.

use loom::sync::MutexGuard;

use lacuna_core::{
    BytesRule, Gfn, GuestMemory, GuestPhys, Order, P2m, Protect, ReadError, Skip, VcpuRegisters,
};

use crate::machine::{Entry, Owner, State, World};
use crate::protection::Protection;

/// The engine's view of the [`World`].
pub(crate) struct Engine<'w> {
    world: &'w World,
    paused: Option<MutexGuard<'w, ()>>,
    locked: Option<MutexGuard<'w, ()>>,
    protection: Protection,
}

impl<'w> Engine<'w> {
    pub(crate) const fn new(world: &'w World, protection: Protection) -> Self {
        Self {
            world,
            protection,
            paused: None,
            locked: None,
        }
    }
}

impl GuestMemory for Engine<'_> {
    fn read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        let world = self.world;
        let settled = world.state.lock().unwrap().descriptors_settled;
        let changing = if at.get() == world.block.2 && !settled {
            Some(world.step(|state| state.mark))
        } else if at.get() == world.block.2 {
            Some(world.state.lock().unwrap().mark)
        } else if at.get() == world.snapshot.boot_value_at {
            Some(world.step(|state| state.boot_value))
        } else {
            None
        };
        if let Some(value) = changing {
            into.copy_from_slice(&value.to_le_bytes()[..into.len()]);
            return Ok(());
        }
        match world.snapshot.frames.get(&at.gfn().get()) {
            Some(bytes) => into.copy_from_slice(&bytes[at.offset()..at.offset() + into.len()]),
            None => into.fill(0),
        }
        Ok(())
    }
}

impl P2m for Engine<'_> {
    fn pause(&mut self) {
        self.paused = Some(self.world.running.lock().unwrap());
        self.world.step(State::drain);
    }

    fn unpause(&mut self) {
        self.world.step(|_| ());
        self.paused = None;
    }

    fn vcpus(&mut self) -> u32 {
        1
    }

    fn registers(&mut self, _vcpu: u32) -> VcpuRegisters {
        let profile = &self.world.snapshot.profile;
        let identity = &profile.identity;
        let idt_limit = self.world.step(|state| state.idt_limit);
        VcpuRegisters {
            cr0: 0x8005_0033,
            cr3: profile.root.get(),
            cr4: 0x20,
            efer: 0xd01,
            idt_base: identity.idt_base,
            lstar: identity.lstar,
            sysenter_eip: identity.sysenter_eip,
            idt_limit,
            flags: VcpuRegisters::ONLINE,
        }
    }

    fn lock(&mut self) {
        self.locked = Some(self.world.p2m_lock.lock().unwrap());
    }

    fn unlock(&mut self) {
        self.locked = None;
    }

    fn share_zero(&mut self, gfn: Gfn, order: Order, bytes: BytesRule) -> Result<u64, Skip> {
        if order != self.world.block.1 {
            // A region that could not go as one: its pages are not part of the model.
            return Err(Skip::Held);
        }
        assert_eq!(
            gfn, self.world.block.0,
            "the engine shares only candidates of the scan"
        );
        // Xen reads the bytes, then makes the change. Somebody who can still write does so between the two.
        let written = bytes == BytesRule::Zero
            && self.world.step(|state| match state.entry {
                Entry::Ram { frame, .. } => state.frames[frame].value != 0,
                Entry::Zero => false,
            });
        if written {
            return Err(Skip::NotZero);
        }
        // The other checks and the change are one: the p2m's own code, not the engine's.
        self.world.step(|state| match state.entry {
            Entry::Zero => Err(Skip::Already),
            Entry::Ram { frame, .. } if state.frames[frame].references > 0 => Err(Skip::Held),
            Entry::Ram { frame, .. } => {
                state.frames[frame].owner = Owner::Queued;
                state.entry = Entry::Zero;
                Ok(1)
            }
        })
    }

    fn flush(&mut self) {
        self.world.step(State::forget_translation);
    }

    fn release(&mut self) {
        self.world.step(State::release);
    }

    fn now(&mut self) -> u64 {
        0
    }
}

impl Protect for Engine<'_> {
    fn protect(&mut self, _gfn: Gfn, _order: Order) -> Result<(), Skip> {
        let writable = self.protection.is_writable();
        self.world.step(|state| {
            if let Entry::Ram { frame, .. } = state.entry {
                state.entry = Entry::Ram { frame, writable };
            }
            Ok(())
        })
    }

    fn restore(&mut self, _gfn: Gfn, _order: Order) {
        self.world.step(|state| {
            if let Entry::Ram { frame, .. } = state.entry {
                state.entry = Entry::Ram {
                    frame,
                    writable: true,
                };
            }
        });
    }
}
