//! A PDB of a kernel's size: types upon types, and behind all of them the ones that are asked for.

use crate::layouts::Layout;
use crate::pdb::Pdb;
use crate::pe::AMD64;
use crate::types::{Types, UCHAR, ULONG, UQUAD, USHORT};

/// Public symbols beside those that are asked for; a kernel has about so many.
const SYMBOLS: u32 = 30_000;
/// Every one in the first section, which has 16 MiB.
const SYMBOL_BYTES: u32 = 512;

/// A PDB with the types of `layout`, in which type records alone take `type_bytes`.
pub fn large(layout: &Layout, type_bytes: usize) -> Vec<u8> {
    let mut pdb = Pdb::new([0x5a; 16], 1, AMD64);
    let types = &mut pdb.types;
    let mut number = 0;
    while types.records().len() < type_bytes {
        family(types, number);
        number += 1;
    }
    layout.write(types);
    for symbol in 0..SYMBOLS {
        pdb.symbols
            .push((format!("NtOfNoConcern{symbol}"), 1, symbol * SYMBOL_BYTES));
    }
    pdb.symbols.push(("MmPfnDatabase".to_owned(), 1, 0x10));
    pdb.to_bytes()
}

/// Types as they come together in a kernel: a structure that points to itself, with bit fields, a union and
/// an array, and an enumeration. `number` makes the names different.
fn family(types: &mut Types, number: u32) {
    let name = format!("_OF_NO_CONCERN_{number}");
    let announced = types.forward(&name);
    let pointer = types.pointer(announced, 8);
    let low = types.bit_field(ULONG, 0, 3);
    let high = types.bit_field(ULONG, 3, 29);
    let array = types.array(UCHAR, 24);
    let either = types.union(
        &format!("_OF_NO_CONCERN_{number}::<unnamed-type-u1>"),
        8,
        &[("Long", UQUAD, 0), ("Short", USHORT, 0), ("Next", pointer, 0)],
    );
    types.structure(
        &name,
        56,
        &[
            ("Flink", pointer, 0),
            ("Blink", pointer, 8),
            ("PageLocationLike", low, 16),
            ("Rest", high, 16),
            ("u1", either, 24),
            ("Reserved", array, 32),
        ],
    );
    types.enumeration(
        &format!("_OF_NO_CONCERN_KIND_{number}"),
        ULONG,
        &[("KindNone", 0), ("KindSome", 1), ("KindMaximum", 2)],
    );
}
