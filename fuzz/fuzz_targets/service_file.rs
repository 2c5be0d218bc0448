#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| smoothserve::config::hostile::service_file(input));
