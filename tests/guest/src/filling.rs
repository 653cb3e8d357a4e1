//! The words with which the agent fills free memory. Each follows from the one before, so that a page that
//! nobody has written since is recognised by its content alone.

use crate::truth::PAGE_SIZE;

/// Marsaglia's xorshift64: cheap, and never zero, so that no page of it is zero.
pub struct Random(pub u64);

impl Random {
    /// Returns the next word. The sequence does not end, so this is no iterator, which might be collected.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Returns whether `page` holds what it was filled with. The first two words may be the allocator's, where a
/// page begins what was allocated; the page in which it ends, one in a thousand, is not recognised.
pub fn is_filled(page: &[u8; PAGE_SIZE]) -> bool {
    let mut words = page.chunks_exact(8).skip(2).map(|word| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(word);
        u64::from_le_bytes(bytes)
    });
    let mut random = Random(words.next().unwrap_or(0));
    random.0 != 0 && words.all(|word| word == random.next())
}

#[cfg(test)]
mod tests {
    use super::{PAGE_SIZE, Random, is_filled};

    #[test]
    fn a_filled_page_is_known_and_one_changed_byte_is_seen() {
        let mut random = Random(0x1234);
        let mut page = [0; PAGE_SIZE];
        for word in page.chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
        assert!(is_filled(&page));
        page[0] ^= 1;
        assert!(is_filled(&page), "the allocator's own words do not count");
        page[2048] ^= 1;
        assert!(!is_filled(&page));
        assert!(!is_filled(&[0; PAGE_SIZE]));
    }
}
