//! The container of a PDB (MSF, the "multi-stream file"): checked in full before any parser sees the file.
//!
//! After Microsoft's own description (`microsoft/microsoft-pdb`, `PDB/msf/msf.cpp`). What is checked here
//! bounds what later readers can allocate: no stream is larger than the file, nor are all of them together
//! larger than twice it.

use std::io::{Read, Seek, SeekFrom};

use super::PdbError;

const MAGIC: &[u8; 32] = b"Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0";
const MAGIC_2: &[u8] = b"Microsoft C/C++ program database 2.00";
const MAGIC_COMPRESSED: &[u8] = b"Microsoft MSFZ Container";
/// Largest file read, in bytes. A public PDB of a kernel has 1 to 15 MiB, a private one some 100 MiB.
pub const MAX_FILE: u64 = 1 << 30;
/// Block sizes that Microsoft's tools write.
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 512..=65_536;
/// Most streams: they are named by 16 bits, and 0xffff means none.
const MAX_STREAMS: u32 = 0xffff;
/// A stream that was deleted.
const NO_STREAM: u32 = u32::MAX;

/// The streams of a PDB.
#[derive(Debug)]
pub struct Container {
    block_size: u32,
    streams: Vec<Stream>,
}

#[derive(Debug)]
struct Stream {
    size: u32,
    blocks: Vec<u32>,
}

impl Container {
    /// Whether a file that begins with `head` means to be a PDB, of whatever kind.
    pub fn is_meant_by(head: &[u8]) -> bool {
        [&MAGIC[..24], MAGIC_2, MAGIC_COMPRESSED]
            .iter()
            .any(|magic| head.starts_with(magic))
    }

    /// Reads and checks the directory of `file`.
    ///
    /// # Errors
    /// [`PdbError`] with what is wrong, before anything was allocated by a number that the file made up.
    pub fn read(file: &mut (impl Read + Seek)) -> Result<Self, PdbError> {
        let length = file.seek(SeekFrom::End(0))?;
        if length > MAX_FILE {
            return Err(PdbError::TooLarge {
                what: "the file",
                value: length,
                most: MAX_FILE,
            });
        }
        let mut head = [0; 56];
        read_at(file, 0, &mut head).map_err(|_| PdbError::Truncated {
            needed: 56,
            there: length,
        })?;
        if head.starts_with(MAGIC_2) {
            return Err(PdbError::Unsupported(
                "a PDB 2.00 of Visual C++ 6 or before; kernels since Windows XP have version 7.00",
            ));
        }
        if head.starts_with(MAGIC_COMPRESSED) {
            return Err(PdbError::Unsupported(
                "a compressed PDB (MSFZ); expand it with Microsoft's pdbcopy or pdztool first",
            ));
        }
        if !head.starts_with(MAGIC) {
            return Err(PdbError::NotPdb);
        }
        let word = |index: usize| u32_at(&head, 32 + 4 * index);
        let (block_size, blocks, directory_size) = (word(0), word(2), word(3));
        if !BLOCK_SIZES.contains(&block_size) || !block_size.is_power_of_two() {
            return Err(PdbError::BlockSize(block_size));
        }
        let needed = u64::from(blocks) * u64::from(block_size);
        if needed > length {
            return Err(PdbError::Truncated {
                needed,
                there: length,
            });
        }
        if u64::from(directory_size) > length {
            return Err(PdbError::TooLarge {
                what: "the stream directory",
                value: directory_size.into(),
                most: length,
            });
        }
        let check = |block: u32| {
            if block == 0 || block >= blocks {
                Err(PdbError::BlockOutside { block, blocks })
            } else {
                Ok(block)
            }
        };

        // The header lists the blocks that list the blocks of the directory.
        let directory_blocks = directory_size.div_ceil(block_size);
        let map_blocks = (4 * u64::from(directory_blocks)).div_ceil(u64::from(block_size));
        let mut map = Vec::new();
        for index in 0..map_blocks {
            let mut number = [0; 4];
            let at = 52 + 4 * index;
            if at + 4 > u64::from(block_size) {
                return Err(PdbError::TooLarge {
                    what: "the stream directory",
                    value: directory_size.into(),
                    most: u64::from(block_size / 4) * u64::from(block_size),
                });
            }
            read_at(file, at, &mut number)?;
            map.push(check(u32::from_le_bytes(number))?);
        }
        let list = read_blocks(file, block_size, &map, 4 * directory_blocks)?;
        let list = words(&list).map(check).collect::<Result<Vec<_>, _>>()?;
        let directory = read_blocks(file, block_size, &list, directory_size)?;
        let streams = read_directory(&directory, block_size, blocks, &check)?;
        Ok(Self { block_size, streams })
    }

    /// How many streams there are, deleted ones too.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// The size of a stream in bytes; `None` when there is no such stream.
    pub fn size(&self, stream: u16) -> Option<u32> {
        let size = self.streams.get(usize::from(stream))?.size;
        (size != NO_STREAM).then_some(size)
    }

    /// The first `most` bytes of a stream, or all of it when it is shorter.
    ///
    /// # Errors
    /// [`PdbError::NoStream`], [`PdbError::Io`].
    pub fn stream(&self, file: &mut (impl Read + Seek), stream: u16, most: u32) -> Result<Vec<u8>, PdbError> {
        let size = self.size(stream).ok_or(PdbError::NoStream(stream))?;
        let blocks = &self.streams[usize::from(stream)].blocks;
        read_blocks(file, self.block_size, blocks, size.min(most))
    }
}

fn read_directory(
    directory: &[u8],
    block_size: u32,
    blocks: u32,
    check: &impl Fn(u32) -> Result<u32, PdbError>,
) -> Result<Vec<Stream>, PdbError> {
    let mut rest = words(directory);
    let mut next = || {
        rest.next()
            .ok_or(PdbError::Malformed("the stream directory ends early"))
    };
    let count = next()?;
    if count > MAX_STREAMS {
        return Err(PdbError::TooLarge {
            what: "the number of streams",
            value: count.into(),
            most: MAX_STREAMS.into(),
        });
    }
    let mut sizes = Vec::new();
    for _ in 0..count {
        sizes.push(next()?);
    }
    let mut total = 0;
    let mut streams = Vec::new();
    for size in sizes {
        let count = if size == NO_STREAM {
            0
        } else {
            size.div_ceil(block_size)
        };
        total += u64::from(count);
        // Stream 0 is the directory of the commit before: its blocks may be another's by now, so twice is
        // possible.
        if total > 2 * u64::from(blocks) {
            return Err(PdbError::TooLarge {
                what: "the size of all streams, in blocks",
                value: total,
                most: 2 * u64::from(blocks),
            });
        }
        let mut list = Vec::new();
        for _ in 0..count {
            list.push(next()?);
        }
        streams.push(Stream { size, blocks: list });
    }
    for (index, stream) in streams.iter().enumerate() {
        // Nobody reads stream 0.
        if index != 0 {
            for block in &stream.blocks {
                check(*block)?;
            }
        }
    }
    Ok(streams)
}

fn read_blocks(
    file: &mut (impl Read + Seek),
    block_size: u32,
    blocks: &[u32],
    size: u32,
) -> Result<Vec<u8>, PdbError> {
    let mut bytes = vec![0; size as usize];
    for (chunk, block) in bytes.chunks_mut(block_size as usize).zip(blocks) {
        read_at(file, u64::from(*block) * u64::from(block_size), chunk)?;
    }
    Ok(bytes)
}

fn read_at(file: &mut (impl Read + Seek), at: u64, into: &mut [u8]) -> Result<(), PdbError> {
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(into)?;
    Ok(())
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|word| u32_at(word, 0))
}

/// The little-endian number at `at`; 0 past the end, which no caller asks for.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|word| word.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}
