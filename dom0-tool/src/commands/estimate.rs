//! `lacuna estimate`: what a migration would send now.

use lacuna_core::{Contents, PAGE_SIZE};
use serde_json::{Value, json};

use super::Out;
use super::cli;
use super::words::pages;
use crate::failure::Failure;
use crate::ops::estimate::{Estimate, Receiver, estimate};
use crate::ops::guest::Live;

pub(super) fn run(arguments: &cli::Estimate, out: Out) -> Result<Value, Failure> {
    let live = Live::open(&arguments.domain)?;
    out.line(live.title());
    let receiver: Receiver = arguments.receiver.into();
    let mut answer = match estimate(&live, receiver)? {
        Estimate::Everything {
            reason,
            pages: count,
            bytes,
        } => {
            out.line(format!("everything would be sent: {reason}"));
            out.line(format!("sent at first {}, {bytes} bytes", pages(count)));
            json!({
                "skips": false,
                "reason": reason,
                "pages": count,
                "skipped": 0,
                "skipped_bytes": 0,
                "sent": count,
                "bytes": bytes,
            })
        }
        Estimate::Asks {
            count,
            contents,
            skipped,
            sent,
            bytes,
            reason,
        } => {
            out.line(format!("memory        {}", pages(count.memory)));
            out.line(format!("free          {}", pages(count.free)));
            out.line(format!(
                "zero frames   {}, {} of them not free by now",
                pages(count.zero),
                count.free_or_zero - count.free
            ));
            out.line(format!("left behind   {}", pages(skipped)));
            out.line(format!("sent at first {}, {bytes} bytes", pages(sent)));
            if let Some(reason) = &reason {
                out.line(format!("why not more  {reason}"));
            }
            json!({
                "skips": skipped > 0,
                "reason": reason,
                "receiver": receiver.name(),
                "contents": match contents { Contents::DontCare => "any", Contents::Zero => "zero" },
                "pages": count.memory,
                "free": count.free,
                "zero": count.zero,
                "skipped": skipped,
                "skipped_bytes": skipped * PAGE_SIZE as u64,
                "sent": sent,
                "bytes": bytes,
            })
        }
    };
    answer["domain"] = json!(live.domain.id.get());
    Ok(answer)
}
