//! What marks a free page: by what each era of kernels calls it, the test of its descriptor.

use std::fmt::Write as _;

use lacuna_core::{Field, Predicate};

/// The test of a kernel whose free pages hold `value` in the four bytes at `at` (`_mapcount`, `page_type`).
pub(super) fn mark_of_value(value: u32, at: u64) -> Option<Predicate> {
    let field = Field {
        offset: u16::try_from(at).ok()?,
        width: 4,
    };
    let cleared = !value;
    let (mask, expected) = if value.trailing_zeros() >= 24 && value >> 28 == 0xf {
        // Since 6.12 the type is the upper byte (include/linux/page-flags.h, PGTY_buddy).
        (0xff00_0000, u64::from(value))
    } else if value > 0xffff_ff00 && value.trailing_zeros() >= 7
        || (0xffff_fff0..0xffff_ffff).contains(&value)
    {
        // 2.6.38: -2; up to 4.17: -128. _mapcount is compared as a whole (PAGE_BUDDY_MAPCOUNT_VALUE).
        (0xffff_ffff, u64::from(value))
    } else if cleared.is_power_of_two() && cleared < 1 << 28 {
        // 4.18 to 6.10: a cleared bit below an upper nibble that is set (PAGE_TYPE_BASE 0xf0000000).
        (u64::from(0xf000_0000 | cleared), 0xf000_0000)
    } else if cleared.is_power_of_two() && cleared < 1 << 31 {
        // 6.11: the same with PAGE_TYPE_BASE 0x80000000.
        (u64::from(0x8000_0000 | cleared), 0x8000_0000)
    } else {
        return None;
    };
    Some(Predicate {
        field,
        mask,
        expected,
    })
}

/// The test of a kernel that marks free pages by bit `bit` of `page.flags` at `at` (up to 2.6.37).
pub(super) fn mark_of_flag(bit: u64, at: u64) -> Option<Predicate> {
    let mask = 1_u64
        .checked_shl(u32::try_from(bit).ok()?)
        .filter(|mask| *mask < 1 << 32)?;
    Some(Predicate {
        field: Field {
            offset: u16::try_from(at).ok()?,
            width: 4,
        },
        mask,
        expected: mask,
    })
}

/// Whether two tests look at the same bits for the same values, however wide the member is that each reads.
pub(super) fn same_mark(one: &Predicate, other: &Predicate) -> bool {
    let bytes = |predicate: &Predicate| {
        let mut found = Vec::new();
        for index in 0..u16::from(predicate.field.width.min(8)) {
            let at = |value: u64| value >> (8 * index) & 0xff;
            if at(predicate.mask) != 0 {
                found.push((
                    predicate.field.offset + index,
                    at(predicate.mask),
                    at(predicate.expected),
                ));
            }
        }
        found
    };
    bytes(one) == bytes(other)
}

/// A predicate in words.
pub fn describe(predicate: &Predicate) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "(the {} byte(s) at {} & {:#x}) == {:#x}",
        predicate.field.width, predicate.field.offset, predicate.mask, predicate.expected
    );
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn holds(value: u32, found: u32) -> bool {
        mark_of_value(value, 48).unwrap().holds(u64::from(found))
    }

    #[test]
    fn each_eras_value_becomes_that_eras_test() {
        // 6.12: a byte, not a mask: slab, offline and unaccepted share bits with buddy.
        for (found, free) in [
            (0xf000_0000, true),
            (0xf500_0000, false),
            (0xf100_0000, false),
            (0xffff_ffff, false),
        ] {
            assert_eq!(holds(0xf000_0000, found), free, "{found:#x}");
        }
        // 5.10: the bit 0x80 cleared; offline clears another.
        for (found, free) in [
            (0xffff_ff7f, true),
            (0xffff_ffff, false),
            (0xffff_feff, false),
            (0, false),
        ] {
            assert_eq!(holds(0xffff_ff7f, found), free, "{found:#x}");
        }
        // 6.11.
        for (found, free) in [
            (0xbfff_ffff, true),
            (0xffff_ffff, false),
            (0xdfff_ffff, false),
            (3, false),
        ] {
            assert_eq!(holds(0xbfff_ffff, found), free, "{found:#x}");
        }
        // 4.17: -128 and nothing else; 2.6.38: -2.
        assert!(holds(0xffff_ff80, 0xffff_ff80) && !holds(0xffff_ff80, 0xffff_ffff));
        assert!(holds(0xffff_fffe, 0xffff_fffe) && !holds(0xffff_fffe, 0xffff_ffff));
        assert_eq!(mark_of_value(0x1234_5678, 48), None);
    }

    #[test]
    fn a_byte_and_the_number_that_holds_it_are_the_same_test() {
        let byte = Predicate {
            field: Field { offset: 51, width: 1 },
            mask: 0xff,
            expected: 0xf0,
        };
        let number = mark_of_value(0xf000_0000, 48).unwrap();
        assert!(same_mark(&byte, &number));
        assert!(!same_mark(&byte, &mark_of_value(0xf100_0000, 48).unwrap()));
    }
}
