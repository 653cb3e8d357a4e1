//! Golden bytes of what crosses the hypercall.

use super::*;

#[test]
fn a_request_has_these_bytes() {
    let request = Request {
        version: VERSION,
        op: Op::Scan as u32,
        flags: 2,
        status: 3,
        cursor: 4,
        end: 5,
        budget: 6,
        result: [7, 8, 9, 10],
        buffer: 11,
        buffer_size: 12,
        pad: 0,
    };
    let mut golden = [0_u8; 88];
    for (at, value) in [
        (0, 8),
        (4, 4),
        (8, 2),
        (12, 3),
        (16, 4),
        (24, 5),
        (32, 6),
        (40, 7),
        (48, 8),
        (56, 9),
        (64, 10),
        (72, 11),
        (80, 12),
    ] {
        golden[at] = value;
    }
    assert_eq!(request.as_bytes(), golden);
}

#[test]
fn every_operation_has_one_number() {
    for code in 1..=13 {
        assert_eq!(Op::from_code(code).map(|op| op as u32), Some(code));
    }
    assert_eq!(Op::from_code(0), None);
    assert_eq!(Op::from_code(14), None);
}
