//! The engine inside Xen: one function per operation of the hypercall.

use std::ops::AddAssign;
use std::rc::Rc;

use lacuna_core::abi::{ContentFlags, Explanation, Op, Request, SCAN_CHANGED, Statistics, VERSION};
use lacuna_core::{Gfn, MAX_PROFILE_BYTES, PAGE_SIZE, Status, VcpuRegisters};
use thiserror::Error;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::answer::explain_status;
pub use super::figures::{ContentFigures, Part, ScanFigures, ShareFigures};
use super::privcmd::{DomainId, Privcmd, PrivcmdError};

/// Most virtual CPUs that a domain can have (`HVM_MAX_VCPUS` is 128; room for more).
const MAX_VCPUS: usize = 1024;
/// Bytes of bitmap fetched at once: 2 GiB of guest memory.
const BITMAP_CHUNK: usize = 64 << 10;

/// Why an operation was not carried out.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The engine answered, with a reason.
    #[error("{}", explain_status(*status, values).what)]
    Refused {
        /// Its answer.
        status: Status,
        /// The answer's values.
        values: [u64; 4],
    },
    /// The engine answered with a number that this tool does not know.
    #[error("the engine answered {code} ({values:x?}), which this version of the tool does not know")]
    UnknownStatus {
        /// The number.
        code: u32,
        /// The answer's values.
        values: [u64; 4],
    },
    /// This hypervisor has no Lacuna.
    #[error("this hypervisor has no Lacuna (CONFIG_LACUNA)")]
    NotThere,
    /// The hypervisor's Lacuna speaks another version.
    #[error("the hypervisor does not accept version {VERSION} of the Lacuna hypercall for operation {op:?}")]
    OtherVersion {
        /// What was asked.
        op: Op,
    },
    /// The hypervisor says that its Lacuna speaks another version.
    #[error(
        "the hypervisor offers version {version} of the Lacuna hypercall, this tool speaks version {VERSION}"
    )]
    Offers {
        /// The version that it speaks.
        version: u32,
    },
    /// The domain is not a guest that the engine works for.
    #[error("domain {domain} is not an HVM or PVH guest")]
    NotHvm {
        /// The domain.
        domain: u16,
    },
    /// The engine does not work for the calling domain.
    #[error("domain {domain} is the calling domain, for which the engine does not work")]
    Myself {
        /// The domain.
        domain: u16,
    },
    /// XSM forbids it.
    #[error("the security policy (XSM) forbids this operation on domain {domain}")]
    Forbidden {
        /// The domain.
        domain: u16,
    },
    /// Another operation runs on the domain.
    #[error("another Lacuna operation runs on domain {domain}")]
    Busy {
        /// The domain.
        domain: u16,
    },
    /// The domain is gone.
    #[error("domain {domain} does not exist any more")]
    Gone {
        /// The domain.
        domain: u16,
    },
    /// The hypervisor had no memory for it.
    #[error("the hypervisor has no memory for operation {op:?} on domain {domain}")]
    NoMemory {
        /// The domain.
        domain: u16,
        /// What was asked.
        op: Op,
    },
    /// The hypercall failed otherwise.
    #[error(transparent)]
    Privcmd(#[from] PrivcmdError),
}

/// What a scan of all memory reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanOf {
    /// All descriptors.
    Everything,
    /// Those that the guest may have written to since the last scan, where the hypervisor can tell, and now
    /// and then all of them.
    Changes,
}

/// Descriptors that one hypercall scans: some milliseconds of work, as for the other parts below.
///
/// Xen interrupts a long hypercall for dom0's events, but dom0's kernel may not run anything else on that
/// processor until the hypercall is over. Linux with `CONFIG_PREEMPTION` is built without
/// `xen_maybe_preempt_hcall` (`drivers/xen/preempt.c`), and has no replacement for it when it runs without
/// full preemption (`CONFIG_PREEMPT_DYNAMIC`, as Debian's 6.12). A single call for 71,000 pages took 53 ms.
pub const SCAN_PART: u64 = 1 << 16;
/// Pages that one hypercall shares.
pub const SHARE_PART: u64 = 1 << 13;
/// Frames that one hypercall of the content stage goes through.
pub const CONTENT_PART: u64 = 1 << 12;

/// The flags of a content stage that leaves out what the last scan found free, or does not.
fn content_flags(leave_free: bool) -> ContentFlags {
    if leave_free {
        ContentFlags::LEAVE_FREE
    } else {
        ContentFlags::empty()
    }
}

/// Runs an operation over all of a domain's memory by calling `part` with the frame to begin at, and sums up
/// the figures.
fn in_parts<T: Default + AddAssign>(
    mut part: impl FnMut(u64) -> Result<Part<T>, EngineError>,
) -> Result<T, EngineError> {
    let mut sum = T::default();
    let mut next = Some(0);
    while let Some(from) = next {
        let done = part(from)?;
        sum += done.figures;
        next = done.next;
    }
    Ok(sum)
}

/// What [`Engine::frames`] looks for; the numbers are those of `XEN_DOMCTL_LACUNA_FRAMES_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Frames that a zero frame is mapped at.
    Zero = 0,
    /// Frames with memory of any kind, zero frames too.
    Memory = 1,
}

/// The engine, as far as it concerns one domain.
#[derive(Clone, Debug)]
pub struct Engine {
    privcmd: Rc<Privcmd>,
    domain: DomainId,
}

impl Engine {
    /// Returns the engine as it concerns `domain`.
    pub fn new(privcmd: &Rc<Privcmd>, domain: DomainId) -> Self {
        Self {
            privcmd: Rc::clone(privcmd),
            domain,
        }
    }

    fn call(&self, op: Op, cursor: u64, payload: &mut [u8]) -> Result<Request, EngineError> {
        self.call_request(
            op,
            Request {
                cursor,
                ..Request::default()
            },
            payload,
        )
    }

    fn call_request(&self, op: Op, request: Request, payload: &mut [u8]) -> Result<Request, EngineError> {
        let mut request = Request {
            version: VERSION,
            op: op as u32,
            ..request
        };
        let outcome = self.privcmd.lacuna(self.domain, &mut request, payload);
        // The engine's status says more than the error number of the hypercall.
        if request.status != 0 {
            return Err(match Status::from_code(request.status) {
                Some(status) => EngineError::Refused {
                    status,
                    values: request.result,
                },
                None => EngineError::UnknownStatus {
                    code: request.status,
                    values: request.result,
                },
            });
        }
        match outcome {
            Ok(()) => Ok(request),
            Err(error) => Err(self.name(op, error)),
        }
    }

    fn name(&self, op: Op, error: PrivcmdError) -> EngineError {
        let domain = self.domain.get();
        match error.errno() {
            // A stock hypervisor does not know the domctl at all and says ENOSYS.
            Some(libc::ENOSYS | libc::EOPNOTSUPP) => EngineError::NotThere,
            Some(libc::ENODEV) => EngineError::NotHvm { domain },
            Some(libc::EINVAL) if domain == 0 => EngineError::Myself { domain },
            Some(libc::EINVAL) => EngineError::OtherVersion { op },
            Some(libc::EPERM | libc::EACCES) => EngineError::Forbidden { domain },
            Some(libc::EBUSY) => EngineError::Busy { domain },
            Some(libc::ESRCH) => EngineError::Gone { domain },
            Some(libc::ENOMEM) => EngineError::NoMemory { domain, op },
            _ => EngineError::Privcmd(error),
        }
    }

    /// Gives the domain an encoded profile.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn set_profile(&self, encoded: &[u8]) -> Result<(), EngineError> {
        self.call(Op::SetProfile, 0, &mut encoded.to_vec()).map(|_| ())
    }

    /// Returns the domain's encoded profile.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn get_profile(&self) -> Result<Vec<u8>, EngineError> {
        let mut bytes = vec![0; MAX_PROFILE_BYTES];
        let answer = self.call(Op::GetProfile, 0, &mut bytes)?;
        bytes.truncate(usize::try_from(answer.buffer_size).unwrap_or(0));
        Ok(bytes)
    }

    /// Removes the domain's profile.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn clear_profile(&self) -> Result<(), EngineError> {
        self.call(Op::ClearProfile, 0, &mut []).map(|_| ())
    }

    /// Scans all of the domain's memory, part by part. The first scan of a profile also admits it.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn scan(&self, what: ScanOf) -> Result<ScanFigures, EngineError> {
        in_parts(|from| self.scan_part(what, from, SCAN_PART))
    }

    /// Shares the candidates (pages that the last scan found free) in all of the domain's memory, part by
    /// part.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn share(&self) -> Result<ShareFigures, EngineError> {
        in_parts(|from| self.share_part(from, None, SHARE_PART))
    }

    /// Scans frames from `from` on, about `descriptors` descriptors (not 0). Parts that follow one another
    /// from frame 0 to the end count as one scan, which admits the profile.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn scan_part(
        &self,
        what: ScanOf,
        from: u64,
        descriptors: u64,
    ) -> Result<Part<ScanFigures>, EngineError> {
        let request = Request {
            flags: match what {
                ScanOf::Everything => 0,
                ScanOf::Changes => SCAN_CHANGED,
            },
            cursor: from,
            budget: descriptors.max(1),
            ..Request::default()
        };
        let answer = self.call_request(Op::Scan, request, &mut [])?;
        let [free, in_use, no_descriptor, unknown] = answer.result;
        let figures = ScanFigures {
            free,
            in_use,
            no_descriptor,
            unknown,
        };
        Ok(Part::of(figures, &answer))
    }

    /// Shares candidates from frame `from` on, before frame `end` if that is given, about `pages` of them
    /// (not 0).
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn share_part(
        &self,
        from: u64,
        end: Option<u64>,
        pages: u64,
    ) -> Result<Part<ShareFigures>, EngineError> {
        let request = Request {
            cursor: from,
            end: end.unwrap_or(0),
            budget: pages.max(1),
            ..Request::default()
        };
        let answer = self.call_request(Op::Share, request, &mut [])?;
        let [pages, superpages, rejected, held] = answer.result;
        let figures = ShareFigures {
            pages,
            superpages,
            rejected,
            held,
        };
        Ok(Part::of(figures, &answer))
    }

    /// Runs one round of the content stage over all memory, part by part. With `leave_free` it leaves out
    /// what the last scan found free. At its end it looks once more at pages that it met for the first time
    /// and that could be shared if they stood still.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn content(&self, leave_free: bool) -> Result<ContentFigures, EngineError> {
        let flags = content_flags(leave_free);
        let mut sum = in_parts(|from| self.content_request(from, CONTENT_PART, flags))?;
        sum += in_parts(|from| self.content_request(from, CONTENT_PART, flags | ContentFlags::AGAIN))?;
        Ok(sum)
    }

    /// Runs a part of one of many rounds of the content stage: over `frames` frame numbers (not 0) from
    /// `from` on, without a look at the end, and without pages that stood still for rounds; `leave_free` as
    /// in [`Self::content`].
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn content_part(
        &self,
        from: u64,
        frames: u64,
        leave_free: bool,
    ) -> Result<Part<ContentFigures>, EngineError> {
        self.content_request(from, frames, content_flags(leave_free) | ContentFlags::REST)
    }

    fn content_request(
        &self,
        from: u64,
        frames: u64,
        flags: ContentFlags,
    ) -> Result<Part<ContentFigures>, EngineError> {
        let request = Request {
            flags: flags.bits(),
            cursor: from,
            budget: frames.max(1),
            ..Request::default()
        };
        let answer = self.call_request(Op::Content, request, &mut [])?;
        let [zeroed, merged, hashed, changed] = answer.result;
        let figures = ContentFigures {
            zeroed,
            merged,
            hashed,
            changed,
        };
        Ok(Part::of(figures, &answer))
    }

    /// Lets the domain share by content with the members of the trust group called `name`, or with nobody
    /// else if `name` is empty.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn set_group(&self, name: &str) -> Result<(), EngineError> {
        let mut bytes = name.as_bytes().to_vec();
        self.call(Op::SetGroup, 0, &mut bytes).map(|_| ())
    }

    /// Returns the domain's counters.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn statistics(&self) -> Result<Statistics, EngineError> {
        let mut statistics = Statistics::new_zeroed();
        self.call(Op::Statistics, 0, statistics.as_mut_bytes())?;
        Ok(statistics)
    }

    /// Returns what is known of one frame.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn explain(&self, gfn: Gfn) -> Result<Explanation, EngineError> {
        let mut explanation = Explanation::new_zeroed();
        self.call(Op::Explain, gfn.get(), explanation.as_mut_bytes())?;
        Ok(explanation)
    }

    /// Returns the registers of every virtual CPU. The domain is paused for the moment that takes.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn registers(&self) -> Result<Vec<VcpuRegisters>, EngineError> {
        let mut bytes = vec![0; MAX_VCPUS * size_of::<VcpuRegisters>()];
        let answer = self.call(Op::Registers, 0, &mut bytes)?;
        bytes.truncate(usize::try_from(answer.buffer_size).unwrap_or(0));
        Ok(bytes
            .chunks_exact(size_of::<VcpuRegisters>())
            .filter_map(|chunk| VcpuRegisters::read_from_bytes(chunk).ok())
            .collect())
    }

    /// Returns the frames of `kind`: a bit a frame, lowest first, up to the last frame that the domain has
    /// mapped.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn frames(&self, kind: FrameKind) -> Result<Vec<u8>, EngineError> {
        let mut all = Vec::new();
        loop {
            let mut bytes = vec![0; BITMAP_CHUNK];
            let request = Request {
                cursor: all.len() as u64 * 8,
                flags: kind as u32,
                ..Request::default()
            };
            let answer = self.call_request(Op::ZeroFrames, request, &mut bytes)?;
            let used = usize::try_from(answer.buffer_size).unwrap_or(0).min(bytes.len());
            if used == 0 {
                return Ok(all);
            }
            all.extend_from_slice(&bytes[..used]);
        }
    }

    /// Returns the bitmap of free pages as of the last scan, with how many frames it is for: a bit a frame,
    /// lowest first.
    ///
    /// Ranges for which the hypervisor keeps no bits are not read. Their zeros stay untouched memory of this
    /// process, so a guest with a page at a very high frame does not make this program use memory.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn read_bitmap(&self) -> Result<(u64, Vec<u8>), EngineError> {
        let mut bits = Vec::new();
        let mut cursor = 0;
        loop {
            let mut bytes = vec![0; BITMAP_CHUNK];
            let answer = self.call(Op::ReadBitmap, cursor, &mut bytes)?;
            let [frames, first, ..] = answer.result;
            if bits.is_empty() {
                bits = vec![0; usize::try_from(frames / 8).unwrap_or(0)];
            }
            let used = usize::try_from(answer.buffer_size).unwrap_or(0).min(bytes.len());
            let at = usize::try_from(cursor / 8).unwrap_or(usize::MAX);
            if first > cursor {
                cursor = first;
            } else {
                // The guest may have grown meanwhile. New memory is left to the next scan.
                let room = bits.get_mut(at..).unwrap_or_default();
                let fits = used.min(room.len());
                room[..fits].copy_from_slice(&bytes[..fits]);
                cursor += used as u64 * 8;
            }
            if used == 0 || cursor >= frames || cursor / 8 >= bits.len() as u64 {
                return Ok((frames, bits));
            }
        }
    }
}

/// Bytes of the largest payload an operation uses: the hypervisor copies it in page by page.
const _: () = assert!(BITMAP_CHUNK.is_multiple_of(PAGE_SIZE));
