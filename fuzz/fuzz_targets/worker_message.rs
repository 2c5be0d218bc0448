#![no_main]

#[path = "../bounded.rs"]
mod bounded;

libfuzzer_sys::fuzz_target!(|input: &[u8]| smoothserve::manager::worker_message(input));
