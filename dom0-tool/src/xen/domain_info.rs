//! Domains by number, and what Xen tells of one.

/// A domain's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(u16);

impl DomainId {
    /// `DOMID_FIRST_RESERVED` (`xen.h`): no domain has this number or a higher one.
    const LIMIT: u16 = 0x7ff0;

    /// Dom0; to `XEN_DOMCTL_createdomain` it says that Xen is to choose a number.
    pub const ZERO: Self = Self(0);

    /// Returns the identifier of domain `number`; `None` for a reserved one.
    pub fn new(number: u16) -> Option<Self> {
        (number < Self::LIMIT).then_some(Self(number))
    }

    /// Returns the number.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// What Xen knows of a domain (`XEN_DOMCTL_getdomaininfo`), as far as it is used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// `XEN_DOMINF_*` flags.
    pub flags: u32,
    /// Pages that the domain owns.
    pub pages: u64,
    /// Most pages that it may own.
    pub max_pages: u64,
    /// Time that its virtual CPUs have run, what Xen did for them meanwhile included, in ns.
    pub cpu_time: u64,
    /// Virtual CPUs online.
    pub online_vcpus: u32,
    /// The handle, which toolstacks set to the guest's UUID and keep across a migration.
    pub handle: [u8; 16],
}

impl DomainInfo {
    /// `XEN_DOMINF_dying`: being destroyed.
    pub const DYING: u32 = 1 << 0;
    /// `XEN_DOMINF_hvm_guest`: HVM or PVH.
    pub const HVM: u32 = 1 << 1;
    /// `XEN_DOMINF_shutdown`: it has shut down, for the reason in the bits of
    /// [`DomainInfo::shutdown_reason`].
    pub const SHUTDOWN: u32 = 1 << 2;
    /// `XEN_DOMINF_paused`: by the toolstack.
    pub const PAUSED: u32 = 1 << 3;
    /// `XEN_DOMINF_hap`: hardware-assisted paging.
    pub const HAP: u32 = 1 << 8;

    /// Returns whether no virtual CPU of the domain has run so far: it is being built, restored or received.
    pub const fn has_not_run(&self) -> bool {
        self.cpu_time == 0
    }

    /// Returns why the domain has shut down (`SHUTDOWN_*` of `public/sched.h`: 0 power off, 1 reboot, 2
    /// suspend, 3 crash, 4 watchdog, 5 soft reset); `None` while it has not.
    pub fn shutdown_reason(&self) -> Option<u8> {
        // XEN_DOMINF_shutdownshift and -mask.
        (self.flags & Self::SHUTDOWN != 0).then(|| self.flags.to_le_bytes()[2])
    }

    /// Reads a `struct xen_domctl_getdomaininfo`; `None` when it is of another domain than the one asked for:
    /// older interfaces answer for the next domain when there is none.
    pub(super) fn read(bytes: &[u8], domain: DomainId) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        // domain, pad1, flags, tot_pages, max_pages, four more of 8 bytes, cpu_time, nr_online_vcpus,
        // max_vcpu_id, ssidref, handle.
        (word(0)? & 0xffff == u32::from(domain.get())).then_some(Self {
            flags: word(4)?,
            pages: long(8)?,
            max_pages: long(16)?,
            cpu_time: long(56)?,
            online_vcpus: word(64)?,
            handle: bytes.get(76..92)?.try_into().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_numbers_name_no_domain() {
        assert_eq!(DomainId::new(0x7ff0), None);
        assert_eq!(DomainId::new(0x7fef).map(DomainId::get), Some(0x7fef));
    }

    #[test]
    fn the_answer_for_another_domain_is_none() {
        let mut bytes = [0; 96];
        bytes[..8].copy_from_slice(&[7, 0, 0, 0, 0x0a, 1, 0, 0]);
        bytes[8..10].copy_from_slice(&[0, 2]);
        bytes[17] = 3;
        bytes[58] = 6;
        bytes[64] = 2;
        bytes[76] = 4;
        bytes[91] = 5;
        let domain = |number| DomainId::new(number).expect("not reserved");
        let info = DomainInfo {
            flags: 0x10a,
            pages: 0x200,
            max_pages: 0x300,
            cpu_time: 0x6_0000,
            online_vcpus: 2,
            handle: [4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5],
        };
        assert_eq!(DomainInfo::read(&bytes, domain(7)), Some(info));
        assert_eq!(DomainInfo::read(&bytes, domain(6)), None);
        assert_eq!(DomainInfo::read(&bytes[..91], domain(7)), None);
    }
}
