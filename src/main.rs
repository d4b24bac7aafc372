//! The `taskpass` binary.
fn main() {}
