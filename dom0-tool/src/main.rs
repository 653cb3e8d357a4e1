//! `lacuna`, the command line.
fn main() {}
