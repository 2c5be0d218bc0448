#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| smoothserve::proxy::check::http2(input));
