//! See `entries::prev_result`.
#![no_main]

#[path = "../entries.rs"]
#[expect(dead_code, reason = "each target runs one of the entries")]
mod entries;

libfuzzer_sys::fuzz_target!(|data: &[u8]| entries::prev_result(data));
