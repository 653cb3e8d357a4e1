//! Takes and gives back the guest's memory on order.

use std::io;

use lacuna_guest::Report;
use lacuna_guest::filling::Random;
use lacuna_guest::truth::PAGE_WORDS;

use crate::numbers;

/// Left free when filling: without it the kernel would start killing its only process.
const RESERVE_KIB: u64 = 24 * 1024;
/// Allocated at once when filling; a multiple of every page size in use.
const CHUNK_WORDS: usize = (4 << 20) / size_of::<u64>();

/// Memory that the agent keeps.
pub(crate) struct Held(#[expect(dead_code, reason = "kept for what it occupies")] Vec<u64>);

impl Held {
    /// Takes `mib` MiB and looks whether each page was handed out zeroed.
    pub(crate) fn take(mib: u32) -> (Self, Report) {
        let mut words = vec![0_u64; ((mib as usize) << 20) / size_of::<u64>()];
        let (mut pages, mut dirty) = (0, 0);
        for (number, page) in words.chunks_mut(PAGE_WORDS).enumerate() {
            // Writing first: reading an untouched page shows the kernel's own zero page, not memory handed
            // out.
            page[0] = number as u64 | 1 << 63;
            pages += 1;
            dirty += u64::from(page[1..].iter().any(|word| *word != 0));
        }
        (Self(words), Report::Grown { pages, dirty })
    }
}

/// Writes pseudo-random words to nearly all free memory and frees it again.
pub(crate) fn fill() -> io::Result<()> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut chunks = Vec::new();
    while numbers("/proc/meminfo")?
        .get("MemAvailable")
        .copied()
        .unwrap_or(0)
        > RESERVE_KIB
    {
        let chunk: Vec<u64> = (0..CHUNK_WORDS).map(|_| random.next()).collect();
        chunks.push(chunk);
    }
    Ok(())
}
