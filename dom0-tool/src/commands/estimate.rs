//! `lacuna estimate`: what a migration would find now.

use lacuna_core::abi::State;
use lacuna_core::{Contents, PAGE_SIZE};
use serde_json::{Value, json};

use super::{Out, pages, profile};
use crate::commands::cli::{Estimate, Receiver};
use crate::failure::Failure;
use crate::ops::guest::{Live, open_domain};
use crate::ops::migration;
use crate::xen::engine::{EngineError, FrameKind};

/// Bytes of a page's entry in the stream, whether its content follows or not (`xg_sr_stream_format.h`).
const ENTRY: u64 = 8;

/// What of a guest's memory a migration would leave behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    /// Pages that the guest has: memory of its own, and zero frames.
    memory: u64,
    /// Of those, free.
    free: u64,
    /// Of those, on zero frames.
    zero: u64,
    /// Free, or on a zero frame.
    either: u64,
}

impl Count {
    /// Counts bitmaps, a bit a frame; frames beyond a bitmap's end have none.
    fn of(memory: &[u8], free: &[u8], zero: &[u8]) -> Self {
        let byte = |bitmap: &[u8], at: usize| bitmap.get(at).copied().unwrap_or(0);
        let mut count = Self::default();
        for (at, here) in memory.iter().copied().enumerate() {
            // What a guest calls free need not be there.
            let (free, zero) = (byte(free, at) & here, byte(zero, at) & here);
            count.memory += u64::from(here.count_ones());
            count.free += u64::from(free.count_ones());
            count.zero += u64::from(zero.count_ones());
            count.either += u64::from((free | zero).count_ones());
        }
        count
    }

    /// Pages that the first iteration leaves behind (docs/migration.md, rule 4).
    fn skipped(&self, contents: Contents, receiver: Receiver) -> u64 {
        match (receiver, contents) {
            (Receiver::Lacuna, _) => self.either,
            (Receiver::Unknown, Contents::DontCare) => self.free,
            (Receiver::Unknown, Contents::Zero) => 0,
        }
    }
}

pub(super) fn run(arguments: &Estimate, out: Out) -> Result<Value, Failure> {
    let live = open_domain(&arguments.domain)?;
    out.line(live.title());
    let (contents, free) = match nominated(&live) {
        Ok(found) => found,
        Err(reason) => return Ok(everything(&live, &reason, out)),
    };
    let memory = live.engine.frames(FrameKind::Memory)?;
    let zero = live.engine.frames(FrameKind::Zero)?;
    let count = Count::of(&memory, &free, &zero);
    let skipped = count.skipped(contents, arguments.receiver);
    let sent = count.memory - skipped;
    let bytes = wire(sent, skipped);
    out.line(format!("memory        {}", pages(count.memory)));
    out.line(format!("free          {}", pages(count.free)));
    out.line(format!(
        "zero frames   {}, {} of them not free by now",
        pages(count.zero),
        count.either - count.free
    ));
    out.line(format!("left behind   {}", pages(skipped)));
    out.line(format!("sent at first {}, {bytes} bytes", pages(sent)));
    let reason = why_sent(contents, arguments.receiver, &count);
    if let Some(reason) = &reason {
        out.line(format!("why not more  {reason}"));
    }
    Ok(json!({
        "domain": live.domain.id.get(),
        "skips": skipped > 0,
        "reason": reason,
        "receiver": receiver_name(arguments.receiver),
        "contents": match contents { Contents::DontCare => "any", Contents::Zero => "zero" },
        "pages": count.memory,
        "free": count.free,
        "zero": count.zero,
        "skipped": skipped,
        "skipped_bytes": skipped * PAGE_SIZE as u64,
        "sent": sent,
        "bytes": bytes,
    }))
}

/// The guest's free pages by a scan of now, and what it expects of them; or why a migration would not ask.
fn nominated(live: &Live) -> Result<(Contents, Vec<u8>), String> {
    let told = |error: EngineError| Failure::from(error).what;
    let statistics = live.engine.statistics().map_err(told)?;
    if State::from_code(statistics.state) == Some(State::Empty) {
        return Err(match migration::refusal(&live.domain.info) {
            Some(reason) => format!("no profile: {reason}"),
            None => "no profile: `lacuna attach` gives it one".into(),
        });
    }
    let profile = live.engine.get_profile().map_err(told)?;
    let profile = profile::decode(&profile).map_err(|failure| failure.what)?;
    live.engine.scan().map_err(told)?;
    let mut free = Vec::new();
    live.engine
        .read_bitmap::<EngineError>(|bytes| {
            free.extend_from_slice(bytes);
            Ok(())
        })
        .map_err(told)?;
    Ok((profile.contents, free))
}

/// A migration that leaves nothing behind, for `reason`.
fn everything(live: &Live, reason: &str, out: Out) -> Value {
    let memory = live.domain.info.pages;
    out.line(format!("everything would be sent: {reason}"));
    out.line(format!(
        "sent at first {}, {} bytes",
        pages(memory),
        wire(memory, 0)
    ));
    json!({
        "domain": live.domain.id.get(),
        "skips": false,
        "reason": reason,
        "pages": memory,
        "skipped": 0,
        "skipped_bytes": 0,
        "sent": memory,
        "bytes": wire(memory, 0),
    })
}

/// Why free or zero pages would be sent all the same.
fn why_sent(contents: Contents, receiver: Receiver, count: &Count) -> Option<String> {
    if receiver == Receiver::Lacuna {
        return None;
    }
    let remedy = "with a receiver that has Lacuna they would be left behind (--receiver lacuna)";
    match contents {
        Contents::Zero if count.either > 0 => Some(format!(
            "the guest relies on zeros in its free pages, and a receiver that is not known may not provide them; {remedy}"
        )),
        Contents::DontCare if count.either > count.free => Some(format!(
            "{} pages on zero frames are in use and must read as zero; {remedy}",
            count.either - count.free
        )),
        _ => None,
    }
}

fn wire(sent: u64, skipped: u64) -> u64 {
    sent * (PAGE_SIZE as u64 + ENTRY) + skipped * ENTRY
}

fn receiver_name(receiver: Receiver) -> &'static str {
    match receiver {
        Receiver::Unknown => "unknown",
        Receiver::Lacuna => "lacuna",
    }
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
                either: 4
            }
        );
    }

    #[test]
    fn zeros_are_left_behind_only_where_they_come_back_as_zeros() {
        let count = Count {
            memory: 100,
            free: 60,
            zero: 50,
            either: 70,
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
