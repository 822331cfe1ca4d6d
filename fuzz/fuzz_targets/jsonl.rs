#![no_main]
use colrow_train::data::json;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| colrow_fuzz::examples(|want| json::json(bytes, want)));
