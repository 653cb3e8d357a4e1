//! Writes the container of a PDB (MSF 7.00), in any block size.

/// Makes the file that holds `streams`; `None` is a deleted stream.
pub fn container(block_size: u32, streams: &[Option<Vec<u8>>]) -> Vec<u8> {
    let size = block_size as usize;
    let mut file = Blocks {
        size,
        bytes: vec![0; 3 * size],
    };
    let mut directory = Vec::new();
    push_u32(&mut directory, count(streams.len()));
    for stream in streams {
        push_u32(
            &mut directory,
            stream.as_ref().map_or(u32::MAX, |stream| count(stream.len())),
        );
    }
    for stream in streams.iter().flatten() {
        for block in file.write(stream) {
            push_u32(&mut directory, block);
        }
    }
    let mut map = Vec::new();
    for block in file.write(&directory) {
        push_u32(&mut map, block);
    }
    let map_blocks = file.write(&map);

    let mut head = b"Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0".to_vec();
    let blocks = count(file.bytes.len() / size);
    // Block size, the free-block map in use, number of blocks, size of the directory, a reserved word.
    for number in [block_size, 1, blocks, count(directory.len()), 0] {
        push_u32(&mut head, number);
    }
    for block in map_blocks {
        push_u32(&mut head, block);
    }
    file.bytes[..head.len()].copy_from_slice(&head);
    file.bytes
}

struct Blocks {
    size: usize,
    bytes: Vec<u8>,
}

impl Blocks {
    /// Appends `content` in whole blocks and returns their numbers.
    fn write(&mut self, content: &[u8]) -> Vec<u32> {
        content
            .chunks(self.size)
            .map(|chunk| {
                // Two blocks of each interval hold the free-block maps: all clear, which means in use.
                while matches!((self.bytes.len() / self.size) % self.size, 1 | 2) {
                    self.bytes.resize(self.bytes.len() + self.size, 0);
                }
                let number = count(self.bytes.len() / self.size);
                self.bytes.extend_from_slice(chunk);
                let end = (number as usize + 1) * self.size;
                self.bytes.resize(end, 0);
                number
            })
            .collect()
    }
}

/// Appends a little-endian number.
pub(crate) fn push_u32(bytes: &mut Vec<u8>, value: u32) {
    bytes.extend_from_slice(&value.to_le_bytes());
}

/// Appends a little-endian number.
pub(crate) fn push_u16(bytes: &mut Vec<u8>, value: u16) {
    bytes.extend_from_slice(&value.to_le_bytes());
}

/// A length as files hold it.
///
/// # Panics
/// Past 4 GiB, which no fixture reaches.
pub(crate) fn count(length: usize) -> u32 {
    u32::try_from(length).expect("a fixture is small")
}
