#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| roomlog::fuzzing::journal(bytes));
