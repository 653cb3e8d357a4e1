//! Estimates what a migration of a guest would send now.

use lacuna_core::abi::State;
use lacuna_core::{Contents, PAGE_SIZE};

use super::guest::Live;
use super::scan::free_bits;
use super::{migration, profile};
use crate::failure::{Class, Failure};
use crate::xen::engine::{EngineError, FrameKind, ScanOf};

/// Bytes of a page's entry in the stream, whether its content follows or not (`xg_sr_stream_format.h`).
const ENTRY: u64 = 8;

/// What of a guest's memory a migration would leave behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Pages that the guest has: memory of its own, and zero frames.
    pub memory: u64,
    /// Of those, free.
    pub free: u64,
    /// Of those, on zero frames.
    pub zero: u64,
    /// Free, or on a zero frame.
    pub free_or_zero: u64,
}

impl Count {
    /// Counts bitmaps, a bit a frame; frames beyond a bitmap's end have none.
    fn of(memory: &[u8], free: &[u8], zero: &[u8]) -> Self {
        let byte = |bitmap: &[u8], at: usize| bitmap.get(at).copied().unwrap_or(0);
        let mut count = Self::default();
        for (at, here) in memory.iter().copied().enumerate() {
            // A guest may call a frame free that it does not have.
            let (free, zero) = (byte(free, at) & here, byte(zero, at) & here);
            count.memory += u64::from(here.count_ones());
            count.free += u64::from(free.count_ones());
            count.zero += u64::from(zero.count_ones());
            count.free_or_zero += u64::from((free | zero).count_ones());
        }
        count
    }

    /// Returns the number of pages that the first iteration leaves behind (docs/migration.md, rule 4).
    fn skipped(&self, contents: Contents, receiver: Receiver) -> u64 {
        match (receiver, contents) {
            (Receiver::Lacuna, _) => self.free_or_zero,
            (Receiver::Unknown, Contents::DontCare) => self.free,
            (Receiver::Unknown, Contents::Zero) => 0,
        }
    }
}

/// Who receives a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Receiver {
    /// Any host.
    #[default]
    Unknown,
    /// A host with Lacuna, which makes what is left behind read as zero.
    Lacuna,
}

impl Receiver {
    /// Returns the receiver's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Lacuna => "lacuna",
        }
    }
}

/// What a migration would find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Estimate {
    /// It would send everything.
    Everything {
        /// Why.
        reason: String,
        /// Pages that the guest has.
        pages: u64,
        /// Bytes on the wire in the first iteration.
        bytes: u64,
    },
    /// It would leave out free pages.
    Asks {
        /// What it would find.
        count: Count,
        /// What the guest expects of free pages.
        contents: Contents,
        /// Pages that the first iteration leaves behind.
        skipped: u64,
        /// Pages that it sends.
        sent: u64,
        /// Bytes on the wire.
        bytes: u64,
        /// Why it sends pages that it could leave out, if it does.
        reason: Option<String>,
    },
}

/// Counts what the first iteration of a migration would find now.
///
/// # Errors
/// The engine's refusal.
pub fn estimate(live: &Live, receiver: Receiver) -> Result<Estimate, Failure> {
    let (contents, free) = match candidates(live) {
        Ok(found) => found,
        Err(Unknown::Failed(failure)) => return Err(failure),
        Err(Unknown::Refused(reason)) => {
            let pages = live.domain.info.pages;
            return Ok(Estimate::Everything {
                reason,
                pages,
                bytes: wire(pages, 0),
            });
        }
    };
    let memory = live.engine.frames(FrameKind::Memory)?;
    let zero = live.engine.frames(FrameKind::Zero)?;
    let count = Count::of(&memory, &free, &zero);
    let skipped = count.skipped(contents, receiver);
    let sent = count.memory - skipped;
    Ok(Estimate::Asks {
        count,
        contents,
        skipped,
        sent,
        bytes: wire(sent, skipped),
        reason: why_sent(contents, receiver, &count),
    })
}

/// Why a guest's free pages are not known.
enum Unknown {
    /// A migration would be told the same, and send everything.
    Refused(String),
    /// Nothing can be said of a migration.
    Failed(Failure),
}

impl From<Failure> for Unknown {
    fn from(failure: Failure) -> Self {
        if failure.class == Class::Refused {
            Self::Refused(failure.what)
        } else {
            Self::Failed(failure)
        }
    }
}

impl From<EngineError> for Unknown {
    fn from(error: EngineError) -> Self {
        Failure::from(error).into()
    }
}

/// Scans the guest. Returns what its kernel expects of free pages and the bitmap of candidates, or why a
/// migration would not use one.
fn candidates(live: &Live) -> Result<(Contents, Vec<u8>), Unknown> {
    let statistics = live.engine.statistics()?;
    if State::from_code(statistics.state) == Some(State::Empty) {
        return Err(Unknown::Refused(match migration::refusal(&live.domain.info) {
            Some(reason) => format!("no profile: {reason}"),
            None => "no profile: `lacuna attach` gives it one".into(),
        }));
    }
    let profile = profile::decode(&live.engine.get_profile()?)?;
    live.engine.scan(ScanOf::Everything)?;
    let (_, free) = free_bits(live)?;
    Ok((profile.contents, free))
}

/// Returns why free or zero pages would still be sent.
fn why_sent(contents: Contents, receiver: Receiver, count: &Count) -> Option<String> {
    if receiver == Receiver::Lacuna {
        return None;
    }
    let remedy = "with a receiver that has Lacuna they would be left behind (--receiver lacuna)";
    match contents {
        Contents::Zero if count.free_or_zero > 0 => Some(format!(
            "the guest relies on zeros in its free pages, and an unknown receiver may not provide them; {remedy}"
        )),
        Contents::DontCare if count.free_or_zero > count.free => Some(format!(
            "{} pages on zero frames are in use and must read as zero; {remedy}",
            count.free_or_zero - count.free
        )),
        _ => None,
    }
}

fn wire(sent: u64, skipped: u64) -> u64 {
    sent * (PAGE_SIZE as u64 + ENTRY) + skipped * ENTRY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_counts() {
        let count = Count::of(&[0b1111_0111, 0xff], &[0b0000_1111, 0, 0xff], &[0b0001_0001]);
        assert_eq!(
            count,
            Count {
                memory: 15,
                free: 3,
                zero: 2,
                free_or_zero: 4
            }
        );
    }

    #[test]
    fn zeros_are_left_behind_only_where_they_come_back_as_zeros() {
        let count = Count {
            memory: 100,
            free: 60,
            zero: 50,
            free_or_zero: 70,
        };
        assert_eq!(count.skipped(Contents::DontCare, Receiver::Unknown), 60);
        assert_eq!(count.skipped(Contents::Zero, Receiver::Unknown), 0);
        assert_eq!(count.skipped(Contents::DontCare, Receiver::Lacuna), 70);
        assert_eq!(count.skipped(Contents::Zero, Receiver::Lacuna), 70);
        assert!(why_sent(Contents::Zero, Receiver::Unknown, &count).is_some());
        assert!(why_sent(Contents::DontCare, Receiver::Unknown, &count).is_some());
        assert!(why_sent(Contents::Zero, Receiver::Lacuna, &count).is_none());
    }

    #[test]
    fn a_page_on_the_wire_is_its_entry_and_its_content() {
        assert_eq!(wire(2, 3), 2 * 4104 + 24);
    }
}
