#![no_main]
use std::path::Path;

use colrow_models::checkpoint::gguf::header::Header;
use colrow_models::checkpoint::gguf::sizes::Sizes;
use colrow_models::checkpoint::gguf::tensors::places;
use colrow_models::checkpoint::gguf::vocabulary::Vocabulary;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let len = bytes.len() as u64;
    let Ok(header) = Header::read(bytes, len) else { return };
    for stored in header.tensors.values() {
        assert!(stored.range.start <= stored.range.end && stored.range.end <= len);
        let data = &bytes[stored.range.start as usize..stored.range.end as usize];
        assert_eq!(stored.elements() / stored.format.block() * stored.format.block_bytes(), data.len());
        stored.format.decode(data, &mut vec![0.0; stored.elements()]);
    }
    let _ = Vocabulary::from_metadata(&header.metadata, 512, "llama");
    let divisors = [1.0, 1.5, 2.0, 8.0];
    for divisors in [None, Some(&divisors[..])] {
        if let Ok(sizes) = Sizes::from_gguf(&header, divisors) {
            assert!(places(&sizes).len() <= 2 + 14 * header.tensors.len());
            assert_eq!(sizes.heads % sizes.kv_heads, 0);
            // what it says in JSON is read again, if no number of it is absurd
            if let Ok((again, _)) = Sizes::from_json(&sizes.to_json("float32"), Path::new("config.json")) {
                assert_eq!(again, sizes);
            }
        }
    }
});
