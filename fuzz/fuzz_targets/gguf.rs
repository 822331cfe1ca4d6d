#![no_main]
use colrow_models::checkpoint::gguf::decoder::Decoder;
use colrow_models::checkpoint::gguf::header::Header;
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
        if let Ok(decoder) = Decoder::from_gguf(&header, divisors) {
            assert!(places(&decoder).len() <= 2 + 14 * header.tensors.len());
            assert_eq!(decoder.heads % decoder.kv_heads, 0);
            // what it says in JSON is read again
            let (again, _) = Decoder::from_json(&decoder.to_json("float32")).expect("our own words");
            assert_eq!(again, decoder);
        }
    }
});
