#![no_main]
use colrow_models::checkpoint::header::parse_header;
use colrow_models::checkpoint::index::parse_index;
use libfuzzer_sys::fuzz_target;

/// Bytes of data behind a header whose length is made to fit.
const DATA: u64 = 32;

fuzz_target!(|bytes: &[u8]| {
    check(bytes, bytes.len() as u64);
    // A changed header seldom has the length that the file says: the same bytes once more, as the JSON alone.
    let file = [&(bytes.len() as u64).to_le_bytes(), bytes].concat();
    check(&file, file.len() as u64 + DATA);
    if let Ok(map) = parse_index(bytes) {
        assert!(map.values().all(|file| !file.contains('/') && file != ".."));
    }
});

fn check(start: &[u8], file_len: u64) {
    let Ok(header) = parse_header(start, file_len) else { return };
    for tensor in header.tensors.values() {
        assert!(tensor.range.start <= tensor.range.end && tensor.range.end <= file_len);
        let bits = (tensor.range.end - tensor.range.start) * 8;
        assert_eq!(tensor.elements() as u64 * tensor.dtype.bitsize() as u64, bits);
    }
}
