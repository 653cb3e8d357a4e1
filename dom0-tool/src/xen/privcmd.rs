//! The Linux driver `/dev/xen/privcmd`: hypercalls and mappings of other domains' memory.
//!
//! This is the only file of the tool with `unsafe` in it. What it offers is safe: each hypercall is one
//! function that builds its own argument, so no caller can hand the hypervisor an address, and guest memory
//! is only ever copied, by volatile reads, since the guest may change it at any moment.
//!
//! Sources: Linux `include/uapi/xen/privcmd.h`; Xen `xen/include/public/{domctl,memory,xen}.h`. The
//! hypervisor checks the versions of domctl and sysctl, so another Xen refuses instead of misunderstanding;
//! see `interface.rs`.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr;
use std::rc::Rc;

use lacuna_core::abi::{DOMCTL_LACUNA, Request};
use lacuna_core::{Gfn, PAGE_SIZE};
use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

pub use super::domain_info::{DomainId, DomainInfo};
use super::interface::{DomctlVersion, SysctlVersion, accepted};

/// `_IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall))`.
const IOCTL_HYPERCALL: libc::c_ulong = 48 << 16 | 0x5000;
/// `_IOC(_IOC_NONE, 'P', 4, sizeof(struct privcmd_mmapbatch_v2))`.
const IOCTL_MMAPBATCH_V2: libc::c_ulong = 32 << 16 | 0x5004;
/// `__HYPERVISOR_memory_op` and `__HYPERVISOR_domctl` (`xen.h`).
pub(super) const MEMORY_OP: u64 = 12;
pub(super) const DOMCTL: u64 = 36;
/// `__HYPERVISOR_sysctl` (`xen.h`) and `XEN_SYSCTL_physinfo` (`sysctl.h`).
const SYSCTL: u64 = 35;
const SYSCTL_PHYSINFO: u32 = 3;
/// `sizeof(struct xen_sysctl)`: an 8-byte head and a union of 128.
const SYSCTL_BYTES: usize = 136;
/// `XENMEM_maximum_gpfn` (`memory.h`).
const MAXIMUM_GPFN: u64 = 14;
/// Domctl numbers (`domctl.h`).
const DOMCTL_PAUSE: u32 = 3;
const DOMCTL_UNPAUSE: u32 = 4;
const DOMCTL_GETDOMAININFO: u32 = 5;
/// `sizeof(struct xen_domctl)`: a 16-byte head and a union of 128.
pub(super) const DOMCTL_BYTES: usize = 144;
/// Where the union begins.
pub(super) const UNION: usize = 16;
/// Where the guest handle of the payload is in [`Request`].
const HANDLE_IN_REQUEST: usize = std::mem::offset_of!(Request, buffer);

/// Why the driver cannot be used.
#[derive(Debug, Error)]
pub enum PrivcmdError {
    /// A device file could not be opened.
    #[error("{device}: {cause}")]
    Open {
        /// The file.
        device: &'static str,
        /// Why.
        cause: io::Error,
    },
    /// The hypercall, or the driver, returned an error.
    #[error("{call}: {cause}")]
    Call {
        /// What was asked.
        call: &'static str,
        /// The answer, a Xen error number that Linux shares.
        cause: io::Error,
    },
    /// The hypervisor refused an interface in each version that is known here.
    #[error("{interface}: Xen {xen} refused each version of it that this tool knows ({tried})")]
    NoVersion {
        /// The interface.
        interface: &'static str,
        /// The versions.
        tried: String,
        /// The release that is running.
        xen: String,
    },
}

impl PrivcmdError {
    /// Returns the error number, if the hypervisor or the driver gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Open { cause, .. } | Self::Call { cause, .. } => cause.raw_os_error(),
            Self::NoVersion { .. } => Some(libc::EACCES),
        }
    }
}

/// The host's memory (`XEN_SYSCTL_physinfo`), in pages of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// All of it.
    pub total: u64,
    /// Free, frames that are still to be scrubbed included: Xen scrubs them when they are wanted.
    pub free: u64,
    /// Free, but promised to domains that are being built (claims).
    pub claimed: u64,
}

/// The open driver.
#[derive(Debug)]
pub struct Privcmd {
    calls: File,
    buffers: File,
    domctl: DomctlVersion,
    sysctl: Cell<Option<SysctlVersion>>,
}

impl Privcmd {
    /// Opens the driver, and asks Xen which version of the domctl interface it takes.
    ///
    /// # Errors
    /// [`PrivcmdError::Open`]: not a Xen Dom0, the module `xen_privcmd` is not loaded, or not root.
    /// [`PrivcmdError::NoVersion`]: a Xen that this tool does not know, or one that takes no domctl from this
    /// domain.
    pub fn open() -> Result<Self, PrivcmdError> {
        let open = |device: &'static str| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(Path::new(device))
                .map_err(|cause| PrivcmdError::Open { device, cause })
        };
        let mut opened = Self {
            calls: open("/dev/xen/privcmd")?,
            buffers: open("/dev/xen/hypercall")?,
            domctl: DomctlVersion::KNOWN[0],
            sysctl: Cell::new(None),
        };
        let attempt = |version| {
            opened.domctl = version;
            opened.domain_info(DomainId::ZERO)
        };
        (opened.domctl, _) = accepted("domctl", &DomctlVersion::KNOWN, DomctlVersion::number, attempt)?;
        Ok(opened)
    }

    /// Returns a `struct xen_domctl` with an empty union.
    pub(super) fn domctl(&self, number: u32, domain: DomainId) -> [u8; DOMCTL_BYTES] {
        domctl(self.domctl, number, domain)
    }

    /// Issues the Lacuna operation `request` on `domain`, with `payload` as its buffer in both directions.
    /// On return the request holds what the hypervisor wrote back, also after an error of the hypervisor.
    ///
    /// # Errors
    /// [`PrivcmdError::Call`].
    pub fn lacuna(
        &self,
        domain: DomainId,
        request: &mut Request,
        payload: &mut [u8],
    ) -> Result<(), PrivcmdError> {
        request.buffer_size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        request.buffer = 0;
        let mut bytes = self.domctl(DOMCTL_LACUNA, domain);
        bytes[UNION..UNION + size_of::<Request>()].copy_from_slice(request.as_bytes());
        let handle = (!payload.is_empty()).then_some(UNION + HANDLE_IN_REQUEST);
        let outcome = self.hypercall("the Lacuna hypercall", DOMCTL, None, &mut bytes, payload, handle);
        if let Ok((answer, _)) = Request::read_from_prefix(&bytes[UNION..]) {
            *request = Request { buffer: 0, ..answer };
        }
        outcome.map(|_| ())
    }

    /// Returns what Xen knows of `domain`; `None` when there is no such domain.
    ///
    /// # Errors
    /// [`PrivcmdError::Call`].
    pub fn domain_info(&self, domain: DomainId) -> Result<Option<DomainInfo>, PrivcmdError> {
        let mut bytes = self.domctl(DOMCTL_GETDOMAININFO, domain);
        match self.hypercall(
            "XEN_DOMCTL_getdomaininfo",
            DOMCTL,
            None,
            &mut bytes,
            &mut [],
            None,
        ) {
            Ok(_) => {}
            Err(error) if error.errno() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(DomainInfo::read(&bytes[UNION..], domain))
    }

    /// Returns the host's memory.
    ///
    /// # Errors
    /// [`PrivcmdError::Call`].
    pub fn host_memory(&self) -> Result<HostMemory, PrivcmdError> {
        let ask = |version: SysctlVersion| {
            let mut bytes = [0; SYSCTL_BYTES];
            bytes[..4].copy_from_slice(&SYSCTL_PHYSINFO.to_le_bytes());
            bytes[4..8].copy_from_slice(&version.number().to_le_bytes());
            self.hypercall("XEN_SYSCTL_physinfo", SYSCTL, None, &mut bytes, &mut [], None)
                .map(|_| bytes)
        };
        let bytes = if let Some(version) = self.sysctl.get() {
            ask(version)?
        } else {
            let (version, returned) = accepted("sysctl", &SysctlVersion::KNOWN, SysctlVersion::number, ask)?;
            self.sysctl.set(Some(version));
            returned?
        };
        // struct xen_sysctl_physinfo, after the head of 8: ten members of 4 bytes, then total_pages,
        // free_pages, scrub_pages, outstanding_pages. Xen counts frames to be scrubbed among the free ones as
        // well.
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| bytes[8 + at + index]));
        Ok(HostMemory {
            total: long(40),
            free: long(48),
            claimed: long(64),
        })
    }

    /// Pauses `domain`, or takes one pause back. Pauses are counted.
    ///
    /// # Errors
    /// [`PrivcmdError::Call`].
    pub fn set_paused(&self, domain: DomainId, pause: Pause) -> Result<(), PrivcmdError> {
        let (number, call) = match pause {
            Pause::Begin => (DOMCTL_PAUSE, "XEN_DOMCTL_pausedomain"),
            Pause::End => (DOMCTL_UNPAUSE, "XEN_DOMCTL_unpausedomain"),
        };
        self.hypercall(
            call,
            DOMCTL,
            None,
            &mut self.domctl(number, domain),
            &mut [],
            None,
        )
        .map(|_| ())
    }

    /// Returns the highest frame that `domain` has mapped.
    ///
    /// # Errors
    /// [`PrivcmdError::Call`].
    pub fn maximum_gfn(&self, domain: DomainId) -> Result<Gfn, PrivcmdError> {
        // struct xen_memory_domain is a domid_t.
        let mut bytes = domain.get().to_le_bytes();
        let highest = self.hypercall(
            "XENMEM_maximum_gpfn",
            MEMORY_OP,
            Some(MAXIMUM_GPFN),
            &mut bytes,
            &mut [],
            None,
        )?;
        Ok(Gfn::new(u64::from(highest)))
    }

    /// Issues one hypercall with `argument`. If `handle_at` is given, the guest handle of `payload` is
    /// stored there in the argument. A `command` is passed first and the argument second, as `memory_op` and
    /// `hvm_op` expect.
    pub(super) fn hypercall(
        &self,
        call: &'static str,
        number: u64,
        command: Option<u64>,
        argument: &mut [u8],
        payload: &mut [u8],
        handle_at: Option<usize>,
    ) -> Result<u32, PrivcmdError> {
        let failed = |cause| PrivcmdError::Call { call, cause };
        // The payload begins 16 bytes aligned after the argument.
        let payload_at = argument.len().next_multiple_of(16);
        let buffer = HypercallBuffer::new(&self.buffers, payload_at + payload.len()).map_err(failed)?;
        if let Some(at) = handle_at {
            let handle = (buffer.address + payload_at) as u64;
            argument[at..at + 8].copy_from_slice(&handle.to_le_bytes());
        }
        buffer.write(0, argument);
        buffer.write(payload_at, payload);
        let returned = self.issue(number, command, &buffer);
        buffer.read(0, argument);
        buffer.read(payload_at, payload);
        returned.map_err(failed)
    }

    /// Issues hypercall `number` with the argument at the start of `buffer`, and `command` before it unless
    /// that is 0.
    fn issue(&self, number: u64, command: Option<u64>, buffer: &HypercallBuffer) -> io::Result<u32> {
        let address = buffer.address as u64;
        let arguments = command.map_or([address, 0, 0, 0, 0], |command| [command, address, 0, 0, 0]);
        self.raise(number, arguments)
    }

    /// Issues hypercall `number`. The addresses among its arguments are those of a buffer that the caller
    /// keeps until this returns.
    fn raise(&self, number: u64, arg: [u64; 5]) -> io::Result<u32> {
        #[repr(C)]
        struct Hypercall {
            op: u64,
            arg: [u64; 5],
        }
        let mut request = Hypercall { op: number, arg };
        // SAFETY: the ioctl reads a struct privcmd_hypercall, which `request` is (48 bytes, repr(C)), and the
        // hypervisor reads and writes at the handles in it, all of which lie in the caller's buffer, alive
        // until after the call: each caller in this file sizes argument and payload for its own operation.
        let returned = unsafe {
            libc::ioctl(
                self.calls.as_raw_fd(),
                IOCTL_HYPERCALL,
                ptr::from_mut(&mut request),
            )
        };
        u32::try_from(returned).map_err(|_| io::Error::last_os_error())
    }

    /// Maps frames of `domain` for reading. Frames that do not exist are left out, see
    /// [`ForeignFrames::copy`].
    ///
    /// # Errors
    /// [`PrivcmdError::Call`] when the mapping as a whole fails.
    pub fn map_frames(
        self: &Rc<Self>,
        domain: DomainId,
        frames: &[u64],
    ) -> Result<ForeignFrames, PrivcmdError> {
        #[repr(C)]
        struct MapBatch {
            count: u32,
            domain: u16,
            address: u64,
            frames: *const u64,
            errors: *mut i32,
        }
        let failed = |cause| PrivcmdError::Call {
            call: "mapping guest frames",
            cause,
        };
        let count = u32::try_from(frames.len()).map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        let bytes = frames.len() * PAGE_SIZE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that exists.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ,
                libc::MAP_SHARED,
                self.calls.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error()));
        }
        let mut mapping = ForeignFrames {
            address: address.cast(),
            bytes,
            present: Vec::new(),
        };
        let mut errors = vec![0_i32; frames.len()];
        let mut batch = MapBatch {
            count,
            domain: domain.get(),
            address: address as u64,
            frames: frames.as_ptr(),
            errors: errors.as_mut_ptr(),
        };
        // SAFETY: the ioctl reads a struct privcmd_mmapbatch_v2, which `batch` is (32 bytes, repr(C)), reads
        // `count` numbers at `frames`, writes as many at `errors`, both of that length and alive, and fills
        // the mapping.
        let returned = unsafe {
            libc::ioctl(
                self.calls.as_raw_fd(),
                IOCTL_MMAPBATCH_V2,
                ptr::from_mut(&mut batch),
            )
        };
        // ENOENT says that some frame is paged out; it, like every other, has its own error.
        if returned != 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::ENOENT) {
                return Err(failed(error));
            }
        }
        mapping.present = errors.iter().map(|error| *error == 0).collect();
        Ok(mapping)
    }
}

/// Calls that [`super::lab`] makes, and no command.
#[cfg(feature = "lab")]
impl Privcmd {
    /// Returns the version of the domctl interface that Xen takes.
    pub(super) fn domctl_version(&self) -> DomctlVersion {
        self.domctl
    }

    /// Allocates a buffer for the argument of [`Self::sharing_op`]. That takes two system calls, so a caller
    /// keeps the buffer for all of its operations.
    pub(super) fn sharing_buffer(&self) -> Result<HypercallBuffer, PrivcmdError> {
        HypercallBuffer::new(&self.buffers, super::lab::SHARING_OP_BYTES).map_err(|cause| {
            PrivcmdError::Call {
                call: "a buffer for XENMEM_sharing_op",
                cause,
            }
        })
    }

    /// Issues `XENMEM_sharing_op` with `argument`, a `struct xen_mem_sharing_op`, which holds no address. On
    /// success `argument` is what Xen wrote back.
    pub(super) fn sharing_op(
        &self,
        buffer: &HypercallBuffer,
        call: &'static str,
        argument: &mut [u8; super::lab::SHARING_OP_BYTES],
    ) -> Result<(), PrivcmdError> {
        buffer.write(0, argument);
        self.issue(MEMORY_OP, Some(super::lab::SHARING_OP), buffer)
            .map_err(|cause| PrivcmdError::Call { call, cause })?;
        buffer.read(0, argument);
        Ok(())
    }

    /// Issues `dm_op` on `domain` with `argument`, a `struct xen_dm_op`, and `payload` as its second buffer.
    pub(super) fn dm_op(
        &self,
        call: &'static str,
        domain: DomainId,
        argument: &[u8],
        payload: &[u8],
    ) -> Result<(), PrivcmdError> {
        let failed = |cause| PrivcmdError::Call { call, cause };
        // Two struct xen_dm_op_buf, each an address and a size, then what they lead to.
        let argument_at = 32;
        let payload_at = argument_at + argument.len().next_multiple_of(16);
        let buffer = HypercallBuffer::new(&self.buffers, payload_at + payload.len()).map_err(failed)?;
        for (index, (at, bytes)) in [(argument_at, argument), (payload_at, payload)]
            .into_iter()
            .enumerate()
        {
            buffer.write(16 * index, &((buffer.address + at) as u64).to_le_bytes());
            buffer.write(16 * index + 8, &(bytes.len() as u64).to_le_bytes());
            buffer.write(at, bytes);
        }
        let arguments = [u64::from(domain.get()), 2, buffer.address as u64, 0, 0];
        self.raise(super::lab::DM_OP, arguments).map(drop).map_err(failed)
    }
}

/// Which way [`Privcmd::set_paused`] goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// Stop the domain.
    Begin,
    /// Let it go on.
    End,
}

/// Returns a `struct xen_domctl` with an empty union.
fn domctl(version: DomctlVersion, number: u32, domain: DomainId) -> [u8; DOMCTL_BYTES] {
    let mut bytes = [0; DOMCTL_BYTES];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[4..8].copy_from_slice(&version.number().to_le_bytes());
    bytes[8..10].copy_from_slice(&domain.get().to_le_bytes());
    bytes
}

/// Memory that the hypervisor can reach during a hypercall: it stays in place and is never swapped or copied
/// on write.
#[derive(Debug)]
pub(super) struct HypercallBuffer {
    address: usize,
    bytes: usize,
}

impl HypercallBuffer {
    fn new(device: &File, bytes: usize) -> io::Result<Self> {
        let bytes = bytes.max(1).next_multiple_of(PAGE_SIZE);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that exists.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED,
                device.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            address: address as usize,
            bytes,
        })
    }

    fn write(&self, at: usize, from: &[u8]) {
        assert!(
            at + from.len() <= self.bytes,
            "a hypercall buffer is made large enough"
        );
        // SAFETY: the range lies in the mapping, by the assertion, and nobody holds a reference into it.
        unsafe {
            ptr::copy_nonoverlapping(
                from.as_ptr(),
                ptr::with_exposed_provenance_mut(self.address + at),
                from.len(),
            );
        }
    }

    fn read(&self, at: usize, into: &mut [u8]) {
        assert!(
            at + into.len() <= self.bytes,
            "a hypercall buffer is made large enough"
        );
        // SAFETY: as for `write`; the hypercall is over, so nobody else writes there.
        unsafe {
            ptr::copy_nonoverlapping(
                ptr::with_exposed_provenance(self.address + at),
                into.as_mut_ptr(),
                into.len(),
            );
        }
    }
}

impl Drop for HypercallBuffer {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and nothing refers to it any more.
        unsafe { libc::munmap(ptr::with_exposed_provenance_mut(self.address), self.bytes) };
    }
}

/// Frames of another domain, mapped for reading.
#[derive(Debug)]
pub struct ForeignFrames {
    address: *const u8,
    bytes: usize,
    present: Vec<bool>,
}

impl ForeignFrames {
    /// Returns whether frame `index` of those asked for is there.
    pub fn is_present(&self, index: usize) -> bool {
        self.present.get(index).copied().unwrap_or(false)
    }

    /// Copies `into.len()` bytes from byte `offset` of frame `index` on. False, with `into` unchanged, when
    /// the frame is not there or the range leaves it. An aligned 1, 2, 4 or 8 bytes are read in one access.
    #[must_use]
    #[allow(clippy::cast_ptr_alignment)] // the width is chosen by the address's alignment
    pub fn copy(&self, index: usize, offset: usize, into: &mut [u8]) -> bool {
        if !self.is_present(index) || offset + into.len() > PAGE_SIZE {
            return false;
        }
        // SAFETY: the frame is one of `present`, so mapped, and the range lies inside it.
        let from = unsafe { self.address.add(index * PAGE_SIZE + offset) };
        let mut done = 0;
        if offset.is_multiple_of(8) {
            // Whole pages are read this way, by the hundred thousand: nothing to decide for each word.
            for (word, at) in into.chunks_exact_mut(8).zip((0..).step_by(8)) {
                // SAFETY: as below: in the range, and aligned to 8 as the offset is.
                let value = unsafe { from.add(at).cast::<u64>().read_volatile() };
                word.copy_from_slice(&value.to_ne_bytes());
            }
            done = into.len() - into.len() % 8;
        }
        while done < into.len() {
            let left = into.len() - done;
            let here = (offset + done).trailing_zeros().min(3);
            // The largest power of two that is aligned and still wanted.
            let width = 1 << here.min(usize::ilog2(left).min(3));
            // SAFETY: `width` bytes from here lie in the mapped range and are aligned to `width`, since the
            // frame is aligned to 4096; volatile, because the guest may write there at any moment.
            unsafe {
                let at = from.add(done);
                let chunk = &mut into[done..done + width];
                match width {
                    8 => chunk.copy_from_slice(&at.cast::<u64>().read_volatile().to_ne_bytes()),
                    4 => chunk.copy_from_slice(&at.cast::<u32>().read_volatile().to_ne_bytes()),
                    2 => chunk.copy_from_slice(&at.cast::<u16>().read_volatile().to_ne_bytes()),
                    _ => chunk.copy_from_slice(&[at.read_volatile()]),
                }
            }
            done += width;
        }
        true
    }
}

impl Drop for ForeignFrames {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone; `copy` is the only use of the address and cannot run after this.
        unsafe { libc::munmap(self.address.cast_mut().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domctl_has_its_members_where_the_header_says() {
        let domain = DomainId::new(0x1234).expect("not reserved");
        for (version, number) in DomctlVersion::KNOWN.into_iter().zip([0x17, 0x16, 0x15]) {
            let bytes = domctl(version, DOMCTL_LACUNA, domain);
            assert_eq!(bytes[..10], [0x41, 0x4c, 0, 0, number, 0, 0, 0, 0x34, 0x12]);
        }
        assert_eq!(HANDLE_IN_REQUEST, 72);
        assert!(UNION + size_of::<Request>() <= DOMCTL_BYTES);
    }
}
