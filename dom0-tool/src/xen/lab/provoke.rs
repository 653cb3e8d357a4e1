//! Brings domains into states that the engine has to refuse or to survive: log-dirty mode, altp2m, memory
//! errors, domains without memory. A toolstack brings some of them about on other occasions, and others
//! never.
//!
//! Sources: `xen/include/public/{domctl,memory,hvm/hvm_op,hvm/params,hvm/dm_op,arch-x86/xen,arch-x86/xen-mca}.h` of Xen
//! 4.17 and 4.20.

use lacuna_core::Gfn;

use super::super::interface::DomctlVersion;
use super::super::privcmd::{DOMCTL, DomainId, MEMORY_OP, Privcmd, PrivcmdError, UNION};
use super::{HVM_OP, MCA};

/// Domctl numbers (`domctl.h`).
const DOMCTL_CREATE: u32 = 1;
const DOMCTL_DESTROY: u32 = 2;
const DOMCTL_SHADOW_OP: u32 = 10;
const DOMCTL_RESUME: u32 = 27;
/// `XEN_DOMCTL_SHADOW_OP_OFF` and `_ENABLE_LOGDIRTY` (`domctl.h`).
const SHADOW_OP_OFF: u32 = 0;
const SHADOW_OP_ENABLE_LOGDIRTY: u32 = 2;
/// `XENMEM_populate_physmap` and `XENMEM_claim_pages` (`memory.h`).
const POPULATE_PHYSMAP: u64 = 6;
const CLAIM_PAGES: u64 = 24;
/// log2 of the 4 KiB pages in an extent of 2 MiB.
const ORDER_2M: u32 = 9;
/// `HVMOP_set_param` (`hvm/hvm_op.h`), and `HVM_PARAM_VIRIDIAN` (`hvm/params.h`).
const HVMOP_SET_PARAM: u64 = 0;
const PARAM_VIRIDIAN: u32 = 9;
/// `HVMPV_base_freq`, `_time_ref_count`, `_reference_tsc`, `_apic_assist` and `_synic` (`hvm/params.h`).
const VIRIDIAN_FEATURES: u64 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 7;
/// `HVMOP_altp2m`, and its command to set a domain's state (`hvm/hvm_op.h`).
const HVMOP_ALTP2M: u64 = 25;
const ALTP2M_SET_DOMAIN_STATE: u32 = 2;
/// `XEN_DMOP_track_dirty_vram` and `XEN_DMOP_modified_memory` (`hvm/dm_op.h`).
const TRACK_DIRTY_VRAM: u32 = 7;
const MODIFIED_MEMORY: u32 = 11;
/// `XEN_MCA_INTERFACE_VERSION`, `XEN_MC_msrinject` with `MC_MSRINJ_F_INTERPOSE`, and `XEN_MC_mceinject`
/// (`arch-x86/xen-mca.h`).
const MCA_VERSION: u32 = 0x01ec_c003;
const MC_MSRINJECT: u32 = 4;
const MC_INTERPOSE: u32 = 1;
const MC_MCEINJECT: u32 = 5;
/// `sizeof(struct xen_mc)` is no more.
const MC_BYTES: usize = 256;
/// `MSR_IA32_MCG_STATUS`, and status and address of bank 2 (`msr-index.h`).
const MCG_STATUS: u64 = 0x17a;
const BANK_STATUS: u64 = 0x409;
const BANK_ADDRESS: u64 = 0x40a;
/// In progress, and the interrupted program can go on (`MCG_STATUS_MCIP`, `_RIPV`).
const IN_PROGRESS: u64 = 0b101;
/// `MCi_STATUS_VAL`, `_UC`, `_EN`, `_ADDRV`, and a memory error (`MC_EC_MEM_TYPE`): `x86_mca.h`, `mce_amd.h`.
const UNCORRECTED_MEMORY_ERROR: u64 = 1 << 63 | 1 << 61 | 1 << 60 | 1 << 58 | 0x101;

/// `XEN_DOMCTL_CDF_hvm`, `_hap` and `_iommu` (`domctl.h`).
const CDF_HVM: u32 = 1 << 0;
const CDF_HAP: u32 = 1 << 1;
const CDF_IOMMU: u32 = 1 << 5;
/// `XEN_X86_EMU_LAPIC` (`arch-x86/xen.h`), all that Xen emulates for a PVH guest.
const EMULATE_LAPIC: u32 = 1;
/// `XEN_DOMCTL_GRANT_version(1)`: grant tables as old as they come.
const GRANT_VERSION: u32 = 1;

/// Which way [`Privcmd::set_log_dirty`] goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogDirty {
    /// Track writes.
    On,
    /// Track none.
    Off,
}

/// What [`Privcmd::create_empty`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmptyDomain {
    /// A PVH domain like any other.
    Pvh,
    /// A PVH domain to which devices may be assigned, which libxl makes none of.
    PvhWithIommu,
    /// A PV domain.
    Pv,
}

impl Privcmd {
    /// Makes a domain with nothing in it: one virtual CPU allowed and none there, no memory, unknown to the
    /// toolstack. Whoever makes it ends it with [`Privcmd::destroy`].
    ///
    /// # Errors
    /// [`PrivcmdError::Call`]; `EINVAL` when the host lacks what `kind` takes.
    pub fn create_empty(&self, kind: EmptyDomain) -> Result<DomainId, PrivcmdError> {
        let (flags, emulated) = match kind {
            EmptyDomain::Pvh => (CDF_HVM | CDF_HAP, EMULATE_LAPIC),
            EmptyDomain::PvhWithIommu => (CDF_HVM | CDF_HAP | CDF_IOMMU, EMULATE_LAPIC),
            EmptyDomain::Pv => (0, 0),
        };
        let mut bytes = self.domctl(DOMCTL_CREATE, DomainId::ZERO);
        // struct xen_domctl_createdomain: ssidref, handle (16 bytes), flags, iommu_opts, max_vcpus,
        // max_evtchn_port, max_grant_frames and max_maptrack_frames (-1: Xen's default), grant_opts,
        // altp2m_opts (not in each version), vmtrace_size, cpupool_id, and the architecture's emulation_flags
        // and misc_flags.
        let mut set = |at: usize, value: u32| {
            bytes[UNION + at..UNION + at + 4].copy_from_slice(&value.to_le_bytes());
        };
        set(20, flags);
        set(28, 1);
        set(32, u32::MAX);
        set(36, u32::MAX);
        set(40, u32::MAX);
        set(44, GRANT_VERSION);
        set(created_architecture_at(self.domctl_version()), emulated);
        let call = "XEN_DOMCTL_createdomain";
        self.hypercall(call, DOMCTL, None, &mut bytes, &mut [], None)?;
        DomainId::new(u16::from_le_bytes([bytes[8], bytes[9]])).ok_or_else(|| PrivcmdError::Call {
            call,
            cause: std::io::ErrorKind::InvalidData.into(),
        })
    }

    /// Ends a domain made by [`Privcmd::create_empty`].
    ///
    /// # Errors
    /// [`PrivcmdError::Call`].
    pub fn destroy(&self, domain: DomainId) -> Result<(), PrivcmdError> {
        let mut bytes = self.domctl(DOMCTL_DESTROY, domain);
        self.hypercall(
            "XEN_DOMCTL_destroydomain",
            DOMCTL,
            None,
            &mut bytes,
            &mut [],
            None,
        )
        .map(|_| ())
    }

    /// Lets a domain that has shut itself down go on behind its hypercall, as if that had done nothing. The
    /// lab takes the toolstack's soft reset out of a kexec this way: libxl offers one to HVM guests only, and
    /// destroys a PVH guest that asks for it.
    ///
    /// # Errors
    /// [`PrivcmdError::Call`].
    pub fn resume(&self, domain: DomainId) -> Result<(), PrivcmdError> {
        let mut bytes = self.domctl(DOMCTL_RESUME, domain);
        self.hypercall("XEN_DOMCTL_resumedomain", DOMCTL, None, &mut bytes, &mut [], None)
            .map(|_| ())
    }

    /// Makes Xen track the writes of `domain`, as a live migration does, or stops that.
    ///
    /// # Errors
    /// [`PrivcmdError::Call`].
    pub fn set_log_dirty(&self, domain: DomainId, mode: LogDirty) -> Result<(), PrivcmdError> {
        let mut bytes = self.domctl(DOMCTL_SHADOW_OP, domain);
        let op = match mode {
            LogDirty::On => SHADOW_OP_ENABLE_LOGDIRTY,
            LogDirty::Off => SHADOW_OP_OFF,
        };
        bytes[UNION..UNION + 4].copy_from_slice(&op.to_le_bytes());
        self.hypercall("XEN_DOMCTL_shadow_op", DOMCTL, None, &mut bytes, &mut [], None)
            .map(|_| ())
    }

    /// Turns altp2m on for `domain`, which must have been created with it.
    ///
    /// # Errors
    /// [`PrivcmdError::Call`].
    pub fn enable_altp2m(&self, domain: DomainId) -> Result<(), PrivcmdError> {
        // struct xen_hvm_altp2m_op: version, cmd, domain, padding, and a union of 64 bytes whose first is the
        // state.
        let mut bytes = [0; 80];
        bytes[..4].copy_from_slice(&1_u32.to_le_bytes());
        bytes[4..8].copy_from_slice(&ALTP2M_SET_DOMAIN_STATE.to_le_bytes());
        bytes[8..10].copy_from_slice(&domain.get().to_le_bytes());
        bytes[16] = 1;
        self.hypercall(
            "HVMOP_altp2m",
            HVM_OP,
            Some(HVMOP_ALTP2M),
            &mut bytes,
            &mut [],
            None,
        )
        .map(|_| ())
    }

    /// Makes Xen look like Hyper-V to `domain`, which must not have run yet. `xl` does so for HVM guests only
    /// (`viridian=1`), where Xen does it for PVH guests as well.
    ///
    /// # Errors
    /// [`PrivcmdError::Call`]; `EEXIST` when it looks so already, with other features.
    pub fn enable_viridian(&self, domain: DomainId) -> Result<(), PrivcmdError> {
        // struct xen_hvm_param: domid, padding, index, value.
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&domain.get().to_le_bytes());
        bytes[4..8].copy_from_slice(&PARAM_VIRIDIAN.to_le_bytes());
        bytes[8..].copy_from_slice(&VIRIDIAN_FEATURES.to_le_bytes());
        let call = "HVMOP_set_param";
        self.hypercall(call, HVM_OP, Some(HVMOP_SET_PARAM), &mut bytes, &mut [], None)
            .map(|_| ())
    }

    /// Makes Xen track which of `pages` pages of `domain` from `first` on are written to, as device models
    /// do with video memory.
    ///
    /// # Errors
    /// [`PrivcmdError::Call`].
    pub fn track_video(&self, domain: DomainId, first: Gfn, pages: u32) -> Result<(), PrivcmdError> {
        // struct xen_dm_op: op, padding, and here a number, padding, and the first page.
        let mut bytes = [0; 24];
        bytes[..4].copy_from_slice(&TRACK_DIRTY_VRAM.to_le_bytes());
        bytes[8..12].copy_from_slice(&pages.to_le_bytes());
        bytes[16..].copy_from_slice(&first.get().to_le_bytes());
        let bitmap = vec![0; usize::try_from(pages.div_ceil(8)).unwrap_or(0)];
        self.dm_op("XEN_DMOP_track_dirty_vram", domain, &bytes, &bitmap)
    }

    /// Tells Xen that a device model has written to `pages` pages of `domain` from `first` on. In log-dirty
    /// mode each of them that shares a frame gets a frame of its own, or stays as it is.
    ///
    /// # Errors
    /// [`PrivcmdError::Call`].
    pub fn tell_modified(&self, domain: DomainId, first: Gfn, pages: u32) -> Result<(), PrivcmdError> {
        // struct xen_dm_op: op, padding, and here the number of extents, and what Xen keeps there between two
        // parts of it.
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&MODIFIED_MEMORY.to_le_bytes());
        bytes[8..12].copy_from_slice(&1_u32.to_le_bytes());
        let mut extent = [0; 16];
        extent[..4].copy_from_slice(&pages.to_le_bytes());
        extent[8..].copy_from_slice(&first.get().to_le_bytes());
        self.dm_op("XEN_DMOP_modified_memory", domain, &bytes, &extent)
    }

    /// Injects a machine check on processor 0 that reports an uncorrected error in the memory of frame `mfn`.
    ///
    /// # Errors
    /// [`PrivcmdError::Call`].
    pub fn fail_memory(&self, mfn: u64) -> Result<(), PrivcmdError> {
        // struct xen_mc: command, version, and here processor, flags, count, padding, and pairs of MSR and
        // value.
        let mut bytes = [0; MC_BYTES];
        let mut head = |fields: &[u32]| {
            for (place, field) in bytes.chunks_exact_mut(4).zip(fields) {
                place.copy_from_slice(&field.to_le_bytes());
            }
            bytes
        };
        let mut inject = head(&[MC_MSRINJECT, MCA_VERSION, 0, MC_INTERPOSE, 3, 0]);
        let pairs = [
            MCG_STATUS,
            IN_PROGRESS,
            BANK_ADDRESS,
            mfn << 12,
            BANK_STATUS,
            UNCORRECTED_MEMORY_ERROR,
        ];
        for (place, value) in inject[24..].chunks_exact_mut(8).zip(pairs) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        self.hypercall("XEN_MC_msrinject", MCA, None, &mut inject, &mut [], None)?;
        let mut raise = head(&[MC_MCEINJECT, MCA_VERSION, 0, 0, 0, 0]);
        self.hypercall("XEN_MC_mceinject", MCA, None, &mut raise, &mut [], None)
            .map(|_| ())
    }

    /// Makes Xen keep memory for `domain` until it has `pages` pages of 4 KiB, those that it owns among
    /// them; 0 gives a claim up.
    ///
    /// # Errors
    /// [`PrivcmdError::Call`]; `ENOMEM` when that much is not free, or claimed by another domain; `EINVAL`
    /// for a second claim, for no more than the domain owns, and for more than it may own.
    pub fn claim_pages(&self, domain: DomainId, pages: u64) -> Result<(), PrivcmdError> {
        let mut bytes = reservation(domain, pages, 0);
        let call = "XENMEM_claim_pages";
        self.hypercall(call, MEMORY_OP, Some(CLAIM_PAGES), &mut bytes, &mut [], None)
            .map(|_| ())
    }

    /// Gives `domain` `blocks` more blocks of 2 MiB, at `first` and after it; returns how many it got.
    ///
    /// # Errors
    /// [`PrivcmdError::Call`].
    pub fn populate(&self, domain: DomainId, first: Gfn, blocks: u64) -> Result<u64, PrivcmdError> {
        let mut bytes = reservation(domain, blocks, ORDER_2M);
        let mut gfns: Vec<u8> = (0..blocks)
            .flat_map(|block| (first.get() + (block << ORDER_2M)).to_le_bytes())
            .collect();
        let call = "XENMEM_populate_physmap";
        self.hypercall(
            call,
            MEMORY_OP,
            Some(POPULATE_PHYSMAP),
            &mut bytes,
            &mut gfns,
            Some(0),
        )
        .map(u64::from)
    }
}

/// Returns a `struct xen_memory_reservation` of `extents` extents of 2 to the `order` pages each: the handle
/// of their addresses, which is left null, their number, their order, flags, and the domain.
fn reservation(domain: DomainId, extents: u64, order: u32) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[8..16].copy_from_slice(&extents.to_le_bytes());
    bytes[16..20].copy_from_slice(&order.to_le_bytes());
    bytes[24..26].copy_from_slice(&domain.get().to_le_bytes());
    bytes
}

/// Returns where the architecture's part of `struct xen_domctl_createdomain` begins, in bytes: from interface
/// version 0x17 on a word for altp2m precedes it.
fn created_architecture_at(version: DomctlVersion) -> usize {
    if version.number() >= 0x17 { 60 } else { 56 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a wrong offset Xen 4.17 would read the flags as the member after them, and refuse.
    #[test]
    fn a_new_domain_has_its_architecture_where_each_version_expects_it() {
        assert_eq!(DomctlVersion::KNOWN.map(created_architecture_at), [60, 56, 56]);
    }
}
