//! Changes of good inputs, the same in every run.

/// Numbers that end loops and sums where nobody thought they would end.
const EDGES: &[u64] = &[
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX >> 1,
    u64::MAX,
];

/// A source of changed inputs.
#[derive(Clone, Debug)]
pub struct Mutations(u64);

impl Mutations {
    /// The changes that belong to `seed`.
    pub const fn new(seed: u64) -> Self {
        // The generator stands still at zero.
        Self(seed | 1)
    }

    /// Marsaglia's xorshift64.
    fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.number() >> 33).unwrap_or(0) % limit.max(1)
    }

    /// One of `seeds` with one to six changes: a bit, a byte, a number at the edge of its width, bytes taken
    /// from elsewhere, put in or taken out, or the end cut off.
    pub fn next(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len());
            let length = 1 + self.below(16);
            let value = self.number().to_le_bytes();
            match self.below(16) {
                0..5 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << (value[0] & 7);
                    }
                }
                5..8 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = value[0];
                    }
                }
                8..11 => {
                    let edge = EDGES[self.below(EDGES.len())].to_le_bytes();
                    let width = 1 << self.below(4);
                    for (byte, value) in bytes.iter_mut().skip(at).zip(&edge[..width]) {
                        *byte = *value;
                    }
                }
                11 | 12 => {
                    let from = self.below(bytes.len());
                    let piece: Vec<u8> = bytes.iter().skip(from).take(length).copied().collect();
                    for (byte, value) in bytes.iter_mut().skip(at).zip(piece) {
                        *byte = value;
                    }
                }
                13 => {
                    bytes.splice(at..at, value);
                }
                14 => {
                    bytes.drain(at..(at + length).min(bytes.len()));
                }
                _ => bytes.truncate(at),
            }
        }
        bytes
    }
}
