//! BTF made by hand.
//!
//! Part of the unit tests of `linux::btf` and of the seeds in `tests/hostile`.
#![allow(clippy::unwrap_used)]

/// `struct page { long flags; union { struct { int a; int _mapcount; }; long private; }; int array[7]; }` and
/// an enumerator.
pub(crate) fn sample() -> Vec<u8> {
    let mut strings = vec![0];
    let mut name = |text: &str| {
        let at = u32::try_from(strings.len()).unwrap();
        strings.extend(text.as_bytes());
        strings.push(0);
        at
    };
    let (page, flags, a, mapcount, private, array, int, buddy, kinds) = (
        name("page"),
        name("flags"),
        name("a"),
        name("_mapcount"),
        name("private"),
        name("array"),
        name("int"),
        name("PGTY_buddy"),
        name("pagetype"),
    );
    let words: Vec<u32> = [
        // 1: int
        &[int, 1 << 24, 4, 32][..],
        // 2: array of 7 int
        &[0, 3 << 24, 0, 1, 1, 7],
        // 3: anonymous struct
        &[0, 4 << 24 | 2, 8, a, 1, 0, mapcount, 1, 32],
        // 4: anonymous union
        &[0, 5 << 24 | 2, 8, 0, 3, 0, private, 1, 0],
        // 5: struct page
        &[page, 4 << 24 | 3, 44, flags, 1, 0, 0, 4, 64, array, 2, 128],
        // 6: enum
        &[kinds, 6 << 24 | 1, 4, buddy, 0xf0],
    ]
    .concat();
    let types: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut blob = vec![0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
    for word in [0, types.len(), types.len(), strings.len()] {
        blob.extend(u32::try_from(word).unwrap().to_le_bytes());
    }
    blob.extend(types);
    blob.extend(strings);
    blob
}
