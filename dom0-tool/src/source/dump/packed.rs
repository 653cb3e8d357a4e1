//! Guest memory that lies compressed in a file, unpacked piece by piece as it is read.

use std::cell::RefCell;
use std::io::Read;

use super::DumpError;
use super::file::ReadFile;

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;
/// Most bytes that a piece of a Snappy stream has unpacked (Snappy's `framing_format.txt`, 4.2).
pub(super) const MAX_CHUNK: u64 = 1 << 16;
/// Unpacked pieces kept, each number in one place.
const KEPT: usize = 512;
/// Bytes of the description of a page (makedumpfile, `diskdump_mod.h`, `page_desc_t`): offset, size, flags,
/// page flags.
pub(super) const DESCRIPTION: u64 = 24;
/// `DUMP_DH_COMPRESSED_*`.
const ZLIB: u64 = 1;
const LZO: u64 = 2;
const SNAPPY: u64 = 4;
const ZSTD: u64 = 0x20;
/// The chunk with which every stream of Snappy begins.
const STREAM_IDENTIFIER: &[u8] = b"\xff\x06\x00\x00sNaPpY";

/// A piece of a Snappy stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    /// Where its unpacked bytes begin, in the row of all.
    pub(super) start: u64,
    /// How many they are.
    pub(super) bytes: u64,
    /// Where it is in the file, with its header.
    pub(super) offset: u64,
    /// How many bytes it has there.
    pub(super) packed: u64,
}

/// How memory is cut into pieces.
#[derive(Debug)]
pub(super) enum Pieces {
    /// Pages, each described at this place and behind it (kdump-compressed).
    Pages(u64),
    /// Pieces of Snappy streams, in a row (AVML).
    Chunks(Vec<Chunk>),
}

/// A file of pieces.
#[derive(Debug)]
pub(super) struct Packed {
    file: ReadFile,
    pieces: Pieces,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    kept: Vec<Option<(u64, Vec<u8>)>>,
    /// Where the first piece is that could not be unpacked.
    damaged: Option<u64>,
}

impl Packed {
    pub(super) fn new(file: ReadFile, pieces: Pieces) -> Self {
        let mut kept = Vec::new();
        kept.resize_with(KEPT, || None);
        Self {
            file,
            pieces,
            state: RefCell::new(State { kept, damaged: None }),
        }
    }

    /// What has gone wrong since the file was opened.
    ///
    /// # Errors
    /// [`DumpError`].
    pub(super) fn check_unharmed(&self) -> Result<(), DumpError> {
        self.file.check_unharmed()?;
        match self.state.borrow_mut().damaged.take() {
            None => Ok(()),
            Some(value) => Err(DumpError::Impossible {
                what: "compressed piece of memory, by its place in the file,",
                value,
            }),
        }
    }

    /// Copies unpacked bytes from `offset` on. False where they are not all there.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> bool {
        let mut done = 0;
        while done < into.len() {
            let Some((number, within)) = self.find(offset + done as u64) else {
                return false;
            };
            // Its place: below KEPT.
            #[allow(clippy::cast_possible_truncation)]
            let place = (number % KEPT as u64) as usize;
            let mut state = self.state.borrow_mut();
            if state.kept[place].as_ref().is_none_or(|(kept, _)| *kept != number) {
                match self.unpack(number) {
                    Ok(bytes) => state.kept[place] = Some((number, bytes)),
                    Err(at) => {
                        state.damaged.get_or_insert(at);
                        return false;
                    }
                }
            }
            let Some((_, bytes)) = &state.kept[place] else {
                return false;
            };
            let Some(bytes) = bytes.get(within..).filter(|bytes| !bytes.is_empty()) else {
                return false;
            };
            let length = bytes.len().min(into.len() - done);
            into[done..done + length].copy_from_slice(&bytes[..length]);
            done += length;
        }
        true
    }

    /// The number of the piece that has the byte `at`, and which of its bytes that is.
    fn find(&self, at: u64) -> Option<(u64, usize)> {
        match &self.pieces {
            Pieces::Pages(_) => Some((at / PAGE as u64, usize::try_from(at % PAGE as u64).ok()?)),
            Pieces::Chunks(chunks) => {
                let index = chunks.partition_point(|chunk| chunk.start <= at).checked_sub(1)?;
                let within = usize::try_from(at - chunks[index].start).ok()?;
                Some((index as u64, within))
            }
        }
    }

    /// Unpacks a piece; where it is in the file, when that fails.
    fn unpack(&self, number: u64) -> Result<Vec<u8>, u64> {
        match &self.pieces {
            Pieces::Pages(descriptions) => {
                let at = descriptions + number * DESCRIPTION;
                let mut description = [0; 24];
                if !self.file.read(at, &mut description) {
                    return Err(at);
                }
                let number = |from: usize, bytes: usize| {
                    let bytes = description[from..from + bytes].iter().rev();
                    bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
                };
                let (offset, size, flags) = (number(0, 8), number(8, 4), number(12, 4));
                // A page that is larger packed is kept as it is.
                let bytes = (size <= PAGE as u64)
                    .then(|| self.file.bytes("page", offset, size).ok())
                    .flatten()
                    .ok_or(at)?;
                unpack_page(&bytes, flags).ok_or(offset)
            }
            Pieces::Chunks(chunks) => {
                let index = usize::try_from(number).unwrap_or(usize::MAX);
                let chunk = chunks.get(index).ok_or(0_u64)?;
                let packed = self
                    .file
                    .bytes("chunk", chunk.offset, chunk.packed)
                    .map_err(|_| chunk.offset)?;
                let stream = [STREAM_IDENTIFIER, &packed].concat();
                let mut bytes = vec![0; usize::try_from(chunk.bytes).unwrap_or(0)];
                snap::read::FrameDecoder::new(stream.as_slice())
                    .read_exact(&mut bytes)
                    .map_err(|_| chunk.offset)?;
                Ok(bytes)
            }
        }
    }
}

/// A page, by what its description says that was done to it.
fn unpack_page(bytes: &[u8], flags: u64) -> Option<Vec<u8>> {
    let mut page = vec![0; PAGE];
    let length = match flags & (ZLIB | LZO | SNAPPY | ZSTD) {
        0 => {
            page.copy_from_slice(bytes.get(..PAGE)?);
            PAGE
        }
        ZLIB => {
            let mut inflate = flate2::Decompress::new(true);
            inflate
                .decompress(bytes, &mut page, flate2::FlushDecompress::Finish)
                .ok()?;
            usize::try_from(inflate.total_out()).ok()?
        }
        LZO => lzokay::decompress::decompress(bytes, &mut page).ok()?,
        SNAPPY => snap::raw::Decoder::new().decompress(bytes, &mut page).ok()?,
        ZSTD => ruzstd::decoding::FrameDecoder::new()
            .decode_all(bytes, &mut page)
            .ok()?,
        _ => return None,
    };
    (length == PAGE).then_some(page)
}
