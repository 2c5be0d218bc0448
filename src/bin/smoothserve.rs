//! The smoothserve binary.
fn main() {}
