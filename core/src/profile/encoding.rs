//! The profile as bytes.

use heapless::{String, Vec};
use serde::Deserialize;

use super::{
    BytesRule, Contents, FieldRule, FreeRule, Identity, Kernel, MemoryMap, PagingLevels, Predicate, Profile,
};
use crate::refusal::Refusal;
use crate::{Field, GuestPhys, Status};

/// Largest encoded profile, in bytes, header included.
pub const MAX_PROFILE_BYTES: usize = 16 * 1024;

const MAGIC: u32 = u32::from_le_bytes(*b"LCNA");
/// 2: every memory model of Linux, Windows' rule, 32-bit kernels.
const VERSION: u16 = 2;
const HEADER_BYTES: usize = 16;

/// Why bytes are not a usable profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProfileError {
    /// Fewer bytes than the header, or than it promises.
    Truncated {
        /// Bytes given.
        given: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// Not a profile at all: its first four bytes.
    Magic(u32),
    /// A version this code does not know.
    Version(u16),
    /// Larger than [`MAX_PROFILE_BYTES`].
    TooLarge(usize),
    /// The body was damaged.
    Checksum {
        /// In the header.
        stated: u32,
        /// Of the body.
        computed: u32,
    },
    /// The body is not one encoded profile and nothing else.
    Encoding,
    /// A field breaks a rule.
    Field {
        /// Which rule.
        rule: FieldRule,
        /// The offending value.
        value: u64,
    },
    /// The buffer for the encoded profile is too small.
    NoRoom,
}

impl ProfileError {
    /// The answer for the hypercall, with its values.
    pub fn status(self) -> (Status, [u64; 4]) {
        match self {
            Self::Truncated { given, needed } => {
                (Status::ProfileTruncated, [given as u64, needed as u64, 0, 0])
            }
            Self::Magic(found) => (Status::ProfileMagic, [u64::from(found), 0, 0, 0]),
            Self::Version(found) => (
                Status::ProfileVersion,
                [u64::from(found), u64::from(VERSION), 0, 0],
            ),
            Self::TooLarge(given) => (
                Status::ProfileTooLarge,
                [given as u64, MAX_PROFILE_BYTES as u64, 0, 0],
            ),
            Self::Checksum { stated, computed } => (
                Status::ProfileChecksum,
                [u64::from(stated), u64::from(computed), 0, 0],
            ),
            Self::Encoding | Self::NoRoom => (Status::ProfileEncoding, [0; 4]),
            Self::Field { rule, value } => (Status::ProfileField, [rule as u64, value, 0, 0]),
        }
    }
}

impl From<ProfileError> for Refusal {
    fn from(error: ProfileError) -> Self {
        let (status, values) = error.status();
        Self::new(status, values)
    }
}

/// CRC-32C (Castagnoli), reflected, as in RFC 3720 appendix B.4. Bit by bit: a profile is read once, and a
/// table would cost the hypervisor a kilobyte.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 0 {
                crc >> 1
            } else {
                (crc >> 1) ^ 0x82f6_3b78
            }
        })
    })
}

/// The body of an encoded profile, whose header and checksum are right.
fn checked_body(bytes: &[u8]) -> Result<&[u8], ProfileError> {
    if bytes.len() > MAX_PROFILE_BYTES {
        return Err(ProfileError::TooLarge(bytes.len()));
    }
    let truncated = |needed| ProfileError::Truncated {
        given: bytes.len(),
        needed,
    };
    let (header, body) = bytes
        .split_at_checked(HEADER_BYTES)
        .ok_or(truncated(HEADER_BYTES))?;
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if word(0) != MAGIC {
        return Err(ProfileError::Magic(word(0)));
    }
    let version = u16::from_le_bytes([header[4], header[5]]);
    if version != VERSION || header[6..8] != [0, 0] {
        return Err(ProfileError::Version(version));
    }
    let length = word(8) as usize;
    if body.len() < length {
        return Err(truncated(HEADER_BYTES.saturating_add(length)));
    }
    if body.len() > length {
        return Err(ProfileError::Encoding);
    }
    let computed = crc32c(body);
    if word(12) != computed {
        return Err(ProfileError::Checksum {
            stated: word(12),
            computed,
        });
    }
    Ok(body)
}

/// The next member of a body.
fn take<'b, T: Deserialize<'b>>(from: &mut &'b [u8]) -> Result<T, ProfileError> {
    let (value, rest) = postcard::take_from_bytes(from).map_err(|_| ProfileError::Encoding)?;
    *from = rest;
    Ok(value)
}

/// The next member, a list: one element at a time, since a whole one would be too much for the stack.
fn take_list<'b, T: Deserialize<'b>, const MOST: usize>(
    from: &mut &'b [u8],
    into: &mut Vec<T, MOST>,
    rule: FieldRule,
) -> Result<(), ProfileError> {
    into.clear();
    let count: usize = take(from)?;
    if count > MOST {
        return Err(ProfileError::Field {
            rule,
            value: count as u64,
        });
    }
    for _ in 0..count {
        let element = take(from)?;
        into.push(element).map_err(|_| ProfileError::Encoding)?;
    }
    Ok(())
}

impl Profile {
    /// A profile that describes nothing: the place that [`Profile::decode_from`] fills. It keeps no
    /// [`FieldRule`].
    pub const fn blank() -> Self {
        Self {
            kernel: Kernel {
                release: String::new(),
                layout: [0; 16],
            },
            root: GuestPhys::new(0),
            levels: PagingLevels::Four,
            memory_map: MemoryMap::Extents,
            extents: Vec::new(),
            descriptor_bytes: 0,
            free: FreeRule {
                predicate: Predicate {
                    field: Field { offset: 0, width: 0 },
                    mask: 0,
                    expected: 0,
                },
                conditions: Vec::new(),
                blocks: None,
                bytes: BytesRule::Zero,
            },
            contents: Contents::DontCare,
            zones: Vec::new(),
            identity: Identity {
                idt_base: 0,
                idt_limit: 0,
                lstar: 0,
                sysenter_eip: 0,
                gate: None,
                root_slots: Vec::new(),
                anchors: Vec::new(),
                boot_value: None,
            },
        }
    }

    /// Decodes and checks a profile.
    ///
    /// # Errors
    /// [`ProfileError`]; a profile that is returned keeps every [`FieldRule`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ProfileError> {
        let mut profile = Self::blank();
        profile.decode_from(bytes)?;
        Ok(profile)
    }

    /// Decodes and checks a profile in place: `self` becomes it, or is unspecified after an error.
    ///
    /// A profile has some kilobytes and the hypervisor's stack only eight, so members are decoded one by one.
    /// The encoding is still what serde derives: postcard writes a structure's members one after the other.
    ///
    /// # Errors
    /// [`ProfileError`]; after success every [`FieldRule`] is kept.
    pub fn decode_from(&mut self, bytes: &[u8]) -> Result<(), ProfileError> {
        let mut body = checked_body(bytes)?;
        self.kernel = take(&mut body)?;
        self.root = take(&mut body)?;
        self.levels = take(&mut body)?;
        self.memory_map = take(&mut body)?;
        take_list(&mut body, &mut self.extents, FieldRule::Extents)?;
        self.descriptor_bytes = take(&mut body)?;
        self.free.predicate = take(&mut body)?;
        take_list(&mut body, &mut self.free.conditions, FieldRule::Conditions)?;
        self.free.blocks = take(&mut body)?;
        self.free.bytes = take(&mut body)?;
        self.contents = take(&mut body)?;
        take_list(&mut body, &mut self.zones, FieldRule::Zones)?;
        let identity = &mut self.identity;
        identity.idt_base = take(&mut body)?;
        identity.idt_limit = take(&mut body)?;
        identity.lstar = take(&mut body)?;
        identity.sysenter_eip = take(&mut body)?;
        identity.gate = take(&mut body)?;
        take_list(&mut body, &mut identity.root_slots, FieldRule::RootSlots)?;
        take_list(&mut body, &mut identity.anchors, FieldRule::IdentityAddress)?;
        identity.boot_value = take(&mut body)?;
        if !body.is_empty() {
            return Err(ProfileError::Encoding);
        }
        self.check()
    }

    /// Encodes the profile into `buffer` and returns the bytes used.
    ///
    /// # Errors
    /// [`ProfileError::Field`] for a profile that [`Profile::decode`] would refuse, [`ProfileError::NoRoom`].
    pub fn encode<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b [u8], ProfileError> {
        self.check()?;
        let room = buffer.len().min(MAX_PROFILE_BYTES);
        let (header, body) = buffer[..room]
            .split_at_mut_checked(HEADER_BYTES)
            .ok_or(ProfileError::NoRoom)?;
        let body = postcard::to_slice(self, body).map_err(|_| ProfileError::NoRoom)?;
        let length = body.len();
        let length_field = u32::try_from(length).map_err(|_| ProfileError::NoRoom)?;
        header[..4].copy_from_slice(&MAGIC.to_le_bytes());
        header[4..6].copy_from_slice(&VERSION.to_le_bytes());
        header[6..8].fill(0);
        header[8..12].copy_from_slice(&length_field.to_le_bytes());
        header[12..].copy_from_slice(&crc32c(body).to_le_bytes());
        buffer.get(..HEADER_BYTES + length).ok_or(ProfileError::NoRoom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_castagnoli() {
        // RFC 3720, appendix B.4: 32 bytes of zeros.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
