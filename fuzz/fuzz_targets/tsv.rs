#![no_main]
use colrow_train::data::table;
use libfuzzer_sys::fuzz_target;
use std::io::Cursor;

fuzz_target!(|bytes: &[u8]| colrow_fuzz::examples(|want| table::tsv(Cursor::new(bytes), want)));
