//! The header of a safetensors file: 8 bytes of length, then JSON that gives each tensor's type, shape and byte range.
//!
//! The bytes are foreign: nothing here panics, and memory use is bounded by the size of the header itself.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::ops::Range;

use colrow_tensor::{Error, Result};
use safetensors::Dtype;
use serde::de::{self, Deserialize, MapAccess, Visitor, value::StrDeserializer};

use crate::files::shape_text;
use crate::foreign::foreign;

/// The most bytes a header may have, as in the reference implementation.
pub const MOST_HEADER_BYTES: u64 = 100_000_000;

/// What a safetensors file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// By name.
    pub tensors: BTreeMap<String, StoredTensor>,
    /// The free text under `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

/// Where and how one tensor lies in its file.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTensor {
    /// Element type.
    pub dtype: Dtype,
    /// Row-major.
    pub shape: Vec<usize>,
    /// Byte range in the file, counted from its start.
    pub range: Range<u64>,
}

impl StoredTensor {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The length of the JSON header, from the first bytes of a file of `file_len` bytes (16 of them, or all if it is shorter).
pub(crate) fn header_len(start: &[u8], file_len: u64) -> Result<usize> {
    if file_len == 0 {
        return Err(not_safetensors("an empty file").hint("fetch or save it again"));
    }
    // a header's length may begin like another format's mark: 640 is a pickle's
    let begins_a_header = start.get(8) == Some(&b'{') && start[4..8] == [0; 4];
    if let Some((found, hint)) = other_format(start).filter(|_| !begins_a_header) {
        return Err(not_safetensors(found).hint(hint));
    }
    let Some(Ok(len)) = start.get(..8).map(<[u8; 8]>::try_from) else {
        return Err(not_safetensors(&format!("a file of {file_len} bytes")).hint("fetch or save it again"));
    };
    let len = u64::from_le_bytes(len);
    if len > MOST_HEADER_BYTES {
        return Err(not_safetensors(&format!(
            "a header length of {len} bytes (the format allows {MOST_HEADER_BYTES})"
        )));
    }
    if len > file_len - 8 {
        let rest = file_len - 8;
        return Err(Error::new(format!("the header should be {len} bytes long, but only {rest} bytes follow"))
            .hint("the file is truncated, or is not a safetensors file: fetch it again"));
    }
    if start.get(8) != Some(&b'{') {
        return Err(not_safetensors("a header that does not start with \"{\""));
    }
    usize::try_from(len).map_err(|_| Error::new(format!("a header of {len} bytes does not fit into memory")))
}

/// Reads the header of a safetensors file of `file_len` bytes from its beginning; `start` needs to hold no more than the header.
///
/// Every tensor's bytes lie within the file, match its type and shape, and belong to it alone; every byte belongs to a tensor.
pub fn parse_header(start: &[u8], file_len: u64) -> Result<Header> {
    let len = header_len(start, file_len)?;
    let Some(json) = start.get(8..8 + len) else {
        return Err(Error::new(format!("expected {len} bytes of header, found {}", start.len().saturating_sub(8))));
    };
    let raw: RawHeader =
        serde_json::from_slice(json).map_err(|e| Error::new(format!("the header is not as expected: {e}")))?;
    let data_start = 8 + len as u64;
    let data_len = file_len - data_start;
    let mut tensors = BTreeMap::new();
    let mut ends = Vec::with_capacity(raw.tensors.len());
    for (name, raw) in raw.tensors {
        let stored = raw.check(data_start).map_err(|e| Error::new(format!("tensor {name:?}: {e}")))?;
        ends.push((raw.data_offsets.0, raw.data_offsets.1, name.clone()));
        tensors.insert(name, stored);
    }
    check_cover(ends, data_len)?;
    Ok(Header { tensors, metadata: raw.metadata })
}

/// Checks that the ranges follow each other without a gap from 0 to `data_len`.
fn check_cover(mut ranges: Vec<(u64, u64, String)>, data_len: u64) -> Result<()> {
    ranges.sort();
    let mut covered = 0;
    let mut before = None;
    for (start, end, name) in &ranges {
        if *start < covered {
            let before: &str = before.unwrap_or_default();
            return Err(Error::new(format!("tensors {before:?} and {name:?} overlap at byte {start} of the data")));
        }
        if *start > covered {
            return Err(Error::new(format!(
                "bytes {covered}..{start} of the data, before tensor {name:?}, belong to none"
            )));
        }
        if *end > data_len {
            return Err(Error::new(format!("tensor {name:?} ends at byte {end} of the data, which has {data_len}"))
                .hint("the file is truncated: fetch it again"));
        }
        covered = *end;
        before = Some(name);
    }
    if covered < data_len {
        return Err(Error::new(format!("the last {} bytes of the file belong to no tensor", data_len - covered)));
    }
    Ok(())
}

fn not_safetensors(found: &str) -> Error {
    Error::new(format!("expected a safetensors file, found {found}"))
}

/// What people most often have in the place of a safetensors file.
fn other_format(start: &[u8]) -> Option<(&'static str, &'static str)> {
    const CONVERT: &str = "convert it: load it in transformers and save_pretrained(..) it again";
    let known: [(&[u8], _, _); 4] = [
        (b"PK\x03\x04", "a zip archive, as torch.save writes it", CONVERT),
        (b"\x80\x02", "a Python pickle, as torch.save writes it", CONVERT),
        (b"\x89HDF", "an HDF5 file", CONVERT),
        (b"GGUF", "a GGUF file", "make a folder of it: colrow import FILE --out DIR"),
    ];
    let known = known.into_iter().find(|(magic, ..)| start.starts_with(magic)).map(|(_, found, hint)| (found, hint));
    known.or_else(|| foreign(start).map(|other| (other.what, other.hint)))
}

#[derive(Default)]
struct RawHeader {
    tensors: BTreeMap<String, RawTensor>,
    metadata: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

impl RawTensor {
    fn check(&self, data_start: u64) -> std::result::Result<StoredTensor, String> {
        let dtype = Dtype::deserialize(StrDeserializer::<de::value::Error>::new(&self.dtype))
            .map_err(|_| format!("unknown dtype {:?}", self.dtype))?;
        let (start, end) = self.data_offsets;
        // A factor of 0 must not hide an overflow of the others.
        let bits = self.shape.iter().filter(|&&n| n != 0).try_fold(dtype.bitsize(), |bits, &n| bits.checked_mul(n));
        let bits = bits.map(|bits| if self.shape.contains(&0) { 0 } else { bits });
        let described = || format!("{dtype} of shape {}", shape_text(&self.shape));
        let bytes = match bits {
            Some(bits) if bits % 8 == 0 => bits as u64 / 8,
            Some(_) => return Err(format!("{} ends within a byte", described())),
            None => return Err(format!("{} has more bytes than can be counted", described())),
        };
        if end.checked_sub(start) != Some(bytes) {
            return Err(format!("{} needs {bytes} bytes, found the byte range {start}..{end}", described()));
        }
        let absolute = |offset: u64| offset.checked_add(data_start).ok_or("byte range out of all bounds");
        Ok(StoredTensor { dtype, shape: self.shape.clone(), range: absolute(start)?..absolute(end)? })
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tensor names to dtype, shape and data_offsets")
            }

            // By hand, because serde's maps let the last of two equal keys win.
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = map.next_value()?;
                        continue;
                    }
                    let tensor = map.next_value()?;
                    match header.tensors.entry(name) {
                        Entry::Vacant(place) => place.insert(tensor),
                        Entry::Occupied(twice) => {
                            let name = twice.key();
                            return Err(de::Error::custom(format_args!("tensor {name:?} is there twice")));
                        }
                    };
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file with the given header and as many zero bytes of data.
    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Header> {
        parse_header(bytes, bytes.len() as u64)
    }

    #[track_caller]
    fn fails(bytes: &[u8], expected: &str) {
        let e = parse(bytes).unwrap_err().to_string();
        assert!(e.contains(expected), "{e:?} does not contain {expected:?}");
    }

    const TWO: &str = r#"{"__metadata__":{"format":"pt"},
        "a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},
        "b":{"dtype":"BF16","shape":[],"data_offsets":[24,26]}}"#;

    #[test]
    fn a_good_header_gives_types_shapes_and_places() {
        let header = parse(&file(TWO, 26)).unwrap();
        let start = 8 + TWO.len() as u64;
        assert_eq!(
            header.tensors["a"],
            StoredTensor { dtype: Dtype::F32, shape: vec![2, 3], range: start..start + 24 }
        );
        assert_eq!(header.tensors["b"].elements(), 1);
        assert_eq!(header.metadata["format"], "pt");
        assert!(parse(&file("{}", 0)).unwrap().tensors.is_empty());
        // Two tensors without elements share their place.
        let empty = r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"b":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#;
        assert_eq!(parse(&file(empty, 0)).unwrap().tensors.len(), 2);
    }

    #[test]
    fn only_the_header_needs_to_be_at_hand() {
        let bytes = file(TWO, 26);
        assert_eq!(parse_header(&bytes[..8 + TWO.len()], bytes.len() as u64).unwrap(), parse(&bytes).unwrap());
        assert!(parse_header(&bytes[..40], bytes.len() as u64).unwrap_err().what().contains("bytes of header"));
    }

    #[test]
    fn empty_and_short_files_are_named() {
        fails(b"", "found an empty file");
        fails(b"\x08\0\0", "found a file of 3 bytes");
    }

    #[test]
    fn truncated_files_are_named() {
        fails(&file(TWO, 25), "tensor \"b\" ends at byte 26 of the data, which has 25");
        fails(&file(TWO, 26)[..60], "but only 52 bytes follow");
    }

    #[test]
    fn absurd_header_lengths_are_named() {
        fails(&[0xff; 32], "a header length of 18446744073709551615 bytes");
        let mut bytes = file(TWO, 26);
        bytes[..8].copy_from_slice(&(MOST_HEADER_BYTES + 1).to_le_bytes());
        fails(&bytes, "the format allows 100000000");
        bytes[..8].copy_from_slice(&1000u64.to_le_bytes());
        fails(&bytes, "the header should be 1000 bytes long");
    }

    #[test]
    fn other_formats_are_named() {
        fails(b"PK\x03\x04rest of a zip archive", "torch.save");
        fails(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j", "pickle");
        fails(b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull");
        fails(b"<!DOCTYPE html><html>", "web page");
        fails(&file("[]                ", 0), "does not start with \"{\"");
        fails(b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "gzip");
    }

    #[test]
    fn a_length_that_looks_like_another_format_is_a_length() {
        for len in [0x0280, 0x8b1f, 0xfeff] {
            let padded = format!("{:len$}", r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#);
            assert_eq!(parse(&file(&padded, 4)).unwrap().tensors.len(), 1, "{len}");
        }
    }

    #[test]
    fn wrong_headers_are_named() {
        fails(&file("{\"a\":", 0), "the header is not as expected: EOF");
        fails(&file("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4), "invalid value");
        fails(&file("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4), "missing field `data_offsets`");
        fails(&file("{\"a\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4), "unknown dtype \"F31\"");
        fails(&file("{\"\u{1}\":3}", 0), "the header is not as expected");
    }

    #[test]
    fn wrong_ranges_are_named() {
        let one = |shape: &str, range: &str| {
            file(&format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{range}}}}}"#), 8)
        };
        fails(&one("[2]", "[0,4]"), "tensor \"a\": F32 of shape (2) needs 8 bytes, found the byte range 0..4");
        fails(&one("[2]", "[8,0]"), "found the byte range 8..0");
        fails(&one("[2]", "[18446744073709551607,18446744073709551615]"), "out of all bounds");
        fails(&one("[4294967296,4294967296]", "[0,0]"), "more bytes than can be counted");
        fails(&one("[0,4294967296,4294967296]", "[0,0]"), "more bytes than can be counted");
        fails(&one("[1]", "[0,4]"), "the last 4 bytes of the file belong to no tensor");
        fails(&one("[1]", "[4,8]"), "bytes 0..4 of the data, before tensor \"a\", belong to none");
        let overlap = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#;
        fails(&file(overlap, 6), "tensors \"a\" and \"b\" overlap at byte 2");
    }

    #[test]
    fn the_same_name_twice_is_named() {
        let twice = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        fails(&file(twice, 2), "tensor \"a\" is there twice");
    }

    proptest! {
        #![proptest_config(crate::files::fixed_cases(1024))]

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), len in any::<u64>()) {
            let _ = parse(&bytes);
            let _ = parse_header(&bytes, len);
        }

        #[test]
        fn any_json_is_read_without_panic(json in r#"\{("[ab]":\{"dtype":"(F32|F4|U8|X)","shape":\[[0-9]{1,20}(,[0-9]{1,20})?\],"data_offsets":\[[0-9]{1,20},[0-9]{1,20}\]\},?){0,3}\}"#, data in 0usize..40) {
            let _ = parse(&file(&json, data));
        }

        #[test]
        fn a_changed_file_is_read_without_panic(at in 0usize..260, byte in any::<u8>(), cut in 0usize..260) {
            let mut bytes = file(TWO, 26);
            let len = bytes.len();
            bytes[at % len] = byte;
            bytes.truncate(len.min(cut + 30));
            if let Ok(header) = parse(&bytes) {
                prop_assert!(header.tensors.values().all(|t| t.range.end <= bytes.len() as u64));
            }
        }
    }
}
