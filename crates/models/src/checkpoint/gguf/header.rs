//! The header of a GGUF file: metadata, and for each tensor its format, shape and place.
//!
//! The bytes are foreign: nothing here panics, and memory use is bounded by what the file holds.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Read;
use std::ops::Range;

use colrow_tensor::{Error, Result};

use super::absurd;
use super::blocks::Format;
use super::value::{List, Metadata, Value};
use crate::foreign::{HEAD, foreign};

/// The first bytes of a file.
pub const MAGIC: &[u8; 4] = b"GGUF";

/// Where tensors begin, unless a file says otherwise: at multiples of it.
pub(super) const ALIGNMENT: u64 = 32;

/// More than any tokenizer needs; a header that is longer is none.
const MOST_HEADER_BYTES: u64 = 1 << 26;

/// Lists of lists of lists are nobody's.
const MOST_DEPTH: usize = 3;

/// What a GGUF file says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// By key.
    pub metadata: Metadata,
    /// By name.
    pub tensors: BTreeMap<String, Stored>,
}

/// Where and how one tensor lies in its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// How its numbers are stored.
    pub format: Format,
    /// Row-major: the last is the length of a row. The file has them the other way around.
    pub shape: Vec<usize>,
    /// Byte range in the file, counted from its start.
    pub range: Range<u64>,
}

impl Stored {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Header {
    /// Reads the header of a file of `file_len` bytes from its beginning.
    ///
    /// Every tensor's bytes lie within the file and belong to it alone; its rows are whole blocks.
    ///
    /// # Errors
    /// Another format, version or byte order; a file that ends too early; what no program writes.
    pub fn read(input: impl Read, file_len: u64) -> Result<Self> {
        let mut source = Source { input, at: 0, len: file_len };
        let version = source.start()?;
        let (tensors, pairs) = (source.u64("header")?, source.u64("header")?);
        let mut metadata = Metadata::default();
        for _ in 0..pairs {
            let key = source.text("metadata")?;
            let kind = source.u32("metadata")?;
            let value = source.value(kind).map_err(|e| e.at(format!("metadata {key:?}")))?;
            if metadata.0.insert(key.clone(), value).is_some() {
                return Err(absurd("each key once in the metadata", format!("{key:?} twice")));
            }
        }
        let alignment = match metadata.count("general.alignment")? {
            None => ALIGNMENT,
            Some(n) if n.is_power_of_two() => n as u64,
            Some(n) => return Err(absurd("general.alignment: expected a power of two", n)),
        };
        let mut placed = BTreeMap::new();
        for _ in 0..tensors {
            let name = source.text("list of tensors")?;
            let tensor = source.tensor().map_err(|e| e.at(format!("tensor {name:?}")))?;
            match placed.entry(name) {
                Entry::Vacant(place) => place.insert(tensor),
                Entry::Occupied(twice) => return Err(absurd("each tensor once", format!("{:?} twice", twice.key()))),
            };
        }
        let start = source.at.next_multiple_of(alignment);
        Ok(Self { version, metadata, tensors: place(placed, start, alignment, file_len)? })
    }
}

/// A tensor as the header has it: its offset counts from where the data begin.
struct Offset {
    format: Format,
    shape: Vec<usize>,
    bytes: u64,
    offset: u64,
}

fn place(
    tensors: BTreeMap<String, Offset>,
    start: u64,
    alignment: u64,
    file_len: u64,
) -> Result<BTreeMap<String, Stored>> {
    let mut placed = BTreeMap::new();
    let mut ranges = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let Offset { format, shape, bytes, offset } = tensor;
        if !offset.is_multiple_of(alignment) {
            return Err(absurd(
                &format!("tensor {name:?}: expected an offset that is a multiple of {alignment}"),
                offset,
            ));
        }
        let first = start.checked_add(offset);
        let Some((first, last)) = first.and_then(|first| Some((first, first.checked_add(bytes)?))) else {
            return Err(absurd(&format!("tensor {name:?}: expected an offset within the file"), offset));
        };
        if last > file_len {
            return Err(Error::new(format!("tensor {name:?} ends at byte {last} of the file, which has {file_len}"))
                .hint("the file is truncated: fetch it again"));
        }
        ranges.push((first, last, name.clone()));
        placed.insert(name, Stored { format, shape, range: first..last });
    }
    ranges.sort();
    if let Some(pair) = ranges.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        return Err(absurd("each byte in one tensor", format!("{:?} and {:?} overlapping", pair[0].2, pair[1].2)));
    }
    Ok(placed)
}

/// What is read from the beginning on, and how far.
struct Source<R> {
    input: R,
    at: u64,
    len: u64,
}

impl<R: Read> Source<R> {
    /// `n` bytes more, if the file has them.
    fn claim(&mut self, n: u64, what: &str) -> Result<()> {
        if n > self.len - self.at {
            return Err(Error::new(format!("the file ends within its {what}, at byte {}", self.len))
                .hint("the file is truncated or damaged: fetch it again"));
        }
        self.at += n;
        if self.at > MOST_HEADER_BYTES {
            return Err(absurd(&format!("expected a header of at most {MOST_HEADER_BYTES} bytes"), "a longer one"));
        }
        Ok(())
    }

    fn number<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        self.claim(N as u64, what)?;
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(|e| Error::new(format!("cannot read: {e}")))?;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.number(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.number(what)?))
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let len = self.u64(what)?;
        self.claim(len, what)?;
        let mut bytes = vec![0; len as usize];
        self.input.read_exact(&mut bytes).map_err(|e| Error::new(format!("cannot read: {e}")))?;
        String::from_utf8(bytes).map_err(|e| absurd(&format!("{what}: expected text in UTF-8"), e.utf8_error()))
    }

    /// Checks that this is a GGUF file that we read.
    fn start(&mut self) -> Result<u32> {
        let mut head = Vec::new();
        let mut more = |bytes: usize, head: &mut Vec<u8>| {
            let read = (&mut self.input).take(bytes as u64).read_to_end(head);
            read.map_err(|e| Error::new(format!("cannot read: {e}")))
        };
        more(8, &mut head)?;
        let not = |found: &str| Error::new(format!("expected a GGUF file, found {found}"));
        if !head.starts_with(MAGIC) {
            more(HEAD - 8, &mut head)?;
            return Err(match foreign(&head) {
                None if head.is_empty() => not("an empty file").hint("fetch it again"),
                None if head.get(8) == Some(&b'{') => {
                    not("a safetensors file").hint("a folder of config.json, safetensors and tokenizer needs no import")
                }
                None => not("something else").hint("is it the file itself, and whole?"),
                Some(other) => other.instead_of("a GGUF file"),
            });
        }
        self.claim(8, "header")?;
        let version: [u8; 4] = head.get(4..8).and_then(|v| v.try_into().ok()).unwrap_or_default();
        match u32::from_le_bytes(version) {
            version @ (2 | 3) => Ok(version),
            _ if u32::from_be_bytes(version) < 1 << 16 && u32::from_le_bytes(version) >= 1 << 16 => {
                Err(not("one in big-endian byte order").hint("fetch the little-endian file of the model"))
            }
            version => Err(not(&format!("one of version {version}"))
                .hint("versions 2 and 3 are read: fetch a newer file of the model, or convert the original again")),
        }
    }

    fn value(&mut self, kind: u32) -> Result<Value> {
        const WHAT: &str = "metadata";
        Ok(match kind {
            0 => Value::Unsigned(self.number::<1>(WHAT)?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.number(WHAT)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.number(WHAT)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.number(WHAT)?).into()),
            4 => Value::Unsigned(self.u32(WHAT)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.number(WHAT)?).into()),
            6 => Value::F32(f32::from_le_bytes(self.number(WHAT)?)),
            7 => Value::Bool(self.flag()?),
            8 => Value::Text(self.text(WHAT)?),
            9 => Value::List(self.list(0)?),
            10 => Value::Unsigned(self.u64(WHAT)?),
            11 => Value::Signed(i64::from_le_bytes(self.number(WHAT)?)),
            12 => Value::F64(f64::from_le_bytes(self.number(WHAT)?)),
            other => return Err(absurd("expected a type of value from 0 to 12", other)),
        })
    }

    fn flag(&mut self) -> Result<bool> {
        match self.number::<1>("metadata")? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(absurd("expected 0 or 1", other)),
        }
    }

    fn list(&mut self, depth: usize) -> Result<List> {
        const WHAT: &str = "metadata";
        let (kind, len) = (self.u32(WHAT)?, self.u64(WHAT)?);
        Ok(match kind {
            0 => List::Unsigned(self.items(len, 1, |s| Ok(s.number::<1>(WHAT)?[0].into()))?),
            1 => List::Signed(self.items(len, 1, |s| Ok(i8::from_le_bytes(s.number(WHAT)?).into()))?),
            2 => List::Unsigned(self.items(len, 2, |s| Ok(u16::from_le_bytes(s.number(WHAT)?).into()))?),
            3 => List::Signed(self.items(len, 2, |s| Ok(i16::from_le_bytes(s.number(WHAT)?).into()))?),
            4 => List::Unsigned(self.items(len, 4, |s| Ok(s.u32(WHAT)?.into()))?),
            5 => List::Signed(self.items(len, 4, |s| Ok(i32::from_le_bytes(s.number(WHAT)?).into()))?),
            6 => List::F32(self.items(len, 4, |s| Ok(f32::from_le_bytes(s.number(WHAT)?)))?),
            7 => List::Bools(self.items(len, 1, Self::flag)?),
            8 => List::Texts(self.items(len, 8, |s| s.text(WHAT))?),
            9 if depth + 1 < MOST_DEPTH => List::Lists(self.items(len, 12, |s| s.list(depth + 1))?),
            9 => return Err(absurd("expected lists of lists at most", "lists in lists in lists")),
            10 => List::Unsigned(self.items(len, 8, |s| s.u64(WHAT))?),
            11 => List::Signed(self.items(len, 8, |s| Ok(i64::from_le_bytes(s.number(WHAT)?)))?),
            12 => List::F64(self.items(len, 8, |s| Ok(f64::from_le_bytes(s.number(WHAT)?)))?),
            other => return Err(absurd("expected a type of value from 0 to 12", other)),
        })
    }

    /// `len` items of at least `size` bytes each.
    fn items<T>(&mut self, len: u64, size: u64, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let room = self.len.min(MOST_HEADER_BYTES).saturating_sub(self.at);
        if len > room / size {
            return Err(Error::new(format!(
                "a list of {len} values in the metadata is longer than the rest of the file"
            ))
            .hint("the file is truncated or damaged: fetch it again"));
        }
        let mut items = Vec::with_capacity(len as usize);
        for _ in 0..len {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn tensor(&mut self) -> Result<Offset> {
        const WHAT: &str = "list of tensors";
        let dimensions = self.u32(WHAT)?;
        if !(1..=4).contains(&dimensions) {
            return Err(absurd("expected 1 to 4 dimensions", dimensions));
        }
        let mut sizes = Vec::new();
        for _ in 0..dimensions {
            sizes.push(self.u64(WHAT)?);
        }
        let format = Format::of_number(self.u32(WHAT)?).map_err(|name| {
            Error::new(format!("expected one of the formats that are read, {}; found {name}", Format::names()))
                .hint("fetch a file of the model in one of them, such as Q8_0 or F16")
        })?;
        let offset = self.u64(WHAT)?;
        let elements = sizes.iter().try_fold(1u64, |n, &size| n.checked_mul(size)).filter(|&n| n > 0);
        let Some(elements) = elements.filter(|&n| n < 1 << 48) else {
            return Err(absurd("expected sizes that can be counted", format!("{sizes:?}")));
        };
        let (row, block) = (sizes[0], format.block() as u64);
        if !row.is_multiple_of(block) {
            return Err(absurd(&format!("expected rows of whole blocks of {block} ({})", format.name()), row));
        }
        let shape = sizes.iter().rev().map(|&size| size as usize).collect();
        Ok(Offset { format, shape, bytes: elements / block * format.block_bytes() as u64, offset })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::write::header;
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    /// A file without data: version, pairs of key, type and bytes, tensors of name, sizes, format and offset.
    fn file(version: u32, pairs: &[(&str, u32, &[u8])], tensors: &[(&str, &[u64], u32, u64)]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(version.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend((pairs.len() as u64).to_le_bytes());
        for (key, kind, bytes) in pairs {
            out.extend([&text(key)[..], &kind.to_le_bytes(), bytes].concat());
        }
        for (name, sizes, format, offset) in tensors {
            out.extend(text(name));
            out.extend((sizes.len() as u32).to_le_bytes());
            sizes.iter().for_each(|size| out.extend(size.to_le_bytes()));
            out.extend(format.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out
    }

    /// With so many bytes of data behind the aligned header.
    fn with_data(mut file: Vec<u8>, data: usize) -> Vec<u8> {
        file.resize(file.len().next_multiple_of(32) + data, 0);
        file
    }

    fn parse(bytes: &[u8]) -> Result<Header> {
        Header::read(bytes, bytes.len() as u64)
    }

    #[track_caller]
    fn fails(bytes: &[u8], expected: &str) {
        let e = parse(bytes).unwrap_err().to_string();
        assert!(e.contains(expected), "{e:?} does not contain {expected:?}");
    }

    fn every_type() -> Vec<u8> {
        let list = |kind: u32, items: &[&[u8]]| {
            [&kind.to_le_bytes()[..], &(items.len() as u64).to_le_bytes(), &items.concat()].concat()
        };
        let (one, two) = (text("one"), text("two"));
        let nested = list(9, &[&list(0, &[&[1], &[2]]), &list(8, &[])]);
        let pairs: [(&str, u32, &[u8]); 17] = [
            ("u8", 0, &[200]),
            ("i8", 1, &[0xff]),
            ("u16", 2, &[0, 1]),
            ("i16", 3, &[0xfe, 0xff]),
            ("u32", 4, &[1, 0, 0, 0]),
            ("i32", 5, &[0xff; 4]),
            ("f32", 6, &1.5_f32.to_le_bytes()),
            ("bool", 7, &[1]),
            ("text", 8, &text("é")),
            ("u64", 10, &[0xff; 8]),
            ("i64", 11, &[0xff; 8]),
            ("f64", 12, &0.1_f64.to_le_bytes()),
            ("bools", 9, &list(7, &[&[1], &[0]])),
            ("i16s", 9, &list(3, &[&[1, 0], &[0xff, 0xff]])),
            ("f64s", 9, &list(12, &[&2.5_f64.to_le_bytes()])),
            ("texts", 9, &list(8, &[&one, &two])),
            ("nested", 9, &nested),
        ];
        file(2, &pairs, &[("t", &[32, 3], 8, 0), ("u", &[5], 0, 128)])
    }

    #[test]
    fn every_type_of_value_is_read_and_written() {
        let bytes = with_data(every_type(), 160);
        let header = parse(&bytes).unwrap();
        let value = |key: &str| header.metadata.0[key].clone();
        assert_eq!(header.version, 2);
        for (key, expected) in [
            ("u8", Value::Unsigned(200)),
            ("i8", Value::Signed(-1)),
            ("u16", Value::Unsigned(256)),
            ("i16", Value::Signed(-2)),
            ("i32", Value::Signed(-1)),
            ("f32", Value::F32(1.5)),
            ("bool", Value::Bool(true)),
            ("text", "é".into()),
            ("u64", Value::Unsigned(u64::MAX)),
            ("f64", Value::F64(0.1)),
            ("bools", Value::List(List::Bools(vec![true, false]))),
            ("i16s", Value::List(List::Signed(vec![1, -1]))),
            ("texts", vec!["one".to_string(), "two".to_string()].into()),
            ("nested", Value::List(List::Lists(vec![List::Unsigned(vec![1, 2]), List::Texts(Vec::new())]))),
        ] {
            assert_eq!(value(key), expected, "{key}");
        }
        let stored = &header.tensors["t"];
        let start = bytes.len() as u64 - 160;
        assert_eq!((stored.format, &stored.shape[..]), (Format::Q8_0, &[3, 32][..]));
        assert_eq!(stored.range, start..start + 102);
        // what is written says the same, whatever the widths were
        let again = header_again(&header);
        assert_eq!(parse(&again).unwrap().metadata, header.metadata);
    }

    #[test]
    fn a_file_may_end_nowhere_but_at_its_end() {
        let bytes = with_data(every_type(), 148);
        parse(&bytes).unwrap();
        let start = bytes.len() - 148;
        for len in 0..bytes.len() {
            let e = parse(&bytes[..len]).unwrap_err().to_string();
            assert!(len < start || e.contains("of the file, which has"), "{len}: {e}");
        }
        fails(&bytes[..bytes.len() - 1], "the file is truncated");
        fails(&bytes[..60], "the file is truncated");
    }

    #[test]
    fn other_files_versions_and_orders_are_named() {
        fails(b"", "an empty file");
        fails(b"GGML\x01\0\0\0", "expected a GGUF file, found something else");
        fails(b"version https://git-lfs.github.com/spec/v1\n", "Git LFS");
        fails(b"\x20\0\0\0\0\0\0\0{\"__metadata__\"", "found a safetensors file");
        fails(b"GGUF", "the file ends within its header");
        fails(&file(1, &[], &[]), "found one of version 1");
        fails(&file(4, &[], &[]), "found one of version 4");
        let mut big = file(3, &[], &[]);
        big[4..8].reverse();
        fails(&big, "big-endian");
        parse(&file(3, &[], &[])).unwrap();
    }

    #[test]
    fn what_no_program_writes_is_named() {
        fails(&file(3, &[("a", 7, &[1]), ("a", 7, &[0])], &[]), "found \"a\" twice");
        fails(&file(3, &[("a", 13, &[])], &[]), "from 0 to 12: found 13");
        fails(&file(3, &[("a", 7, &[2])], &[]), "expected 0 or 1: found 2");
        fails(&file(3, &[("a", 8, &u64::MAX.to_le_bytes())], &[]), "the file ends within its metadata");
        let list = [&4_u32.to_le_bytes()[..], &(1_u64 << 61).to_le_bytes()].concat();
        fails(&file(3, &[("a", 9, &list)], &[]), "longer than the rest of the file");
        let deep = [9_u32.to_le_bytes().as_slice(), &1_u64.to_le_bytes()].concat().repeat(6);
        fails(&file(3, &[("a", 9, &deep)], &[]), "lists in lists");
        fails(&file(3, &[("general.alignment", 4, &[24, 0, 0, 0])], &[]), "a power of two: found 24");
        fails(&file(3, &[("a", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff])], &[]), "text in UTF-8");
        let tensor = |sizes: &[u64], format, offset| with_data(file(3, &[], &[("t", sizes, format, offset)]), 64);
        parse(&tensor(&[8, 2], 0, 0)).unwrap();
        fails(&tensor(&[8, 2], 0, 32), "tensor \"t\" ends at byte");
        fails(&tensor(&[8], 0, 4), "a multiple of 32: found 4");
        fails(&tensor(&[8], 0, !31), "an offset within the file");
        fails(&tensor(&[], 0, 0), "1 to 4 dimensions: found 0");
        fails(&tensor(&[1 << 40, 1 << 40], 0, 0), "sizes that can be counted");
        fails(&tensor(&[0, u64::MAX], 0, 0), "sizes that can be counted");
        fails(&tensor(&[48], 8, 0), "whole blocks of 32 (Q8_0): found 48");
        fails(&tensor(&[256], 23, 0), "found IQ4_XS");
        fails(&tensor(&[256], 77, 0), "found number 77");
        let twice = file(3, &[], &[("t", &[8], 0, 0), ("t", &[8], 0, 32)]);
        fails(&with_data(twice, 64), "found \"t\" twice");
        let overlapping = file(3, &[], &[("t", &[16], 0, 0), ("u", &[8], 0, 32)]);
        fails(&with_data(overlapping, 64), "\"t\" and \"u\" overlapping");
    }

    proptest! {
        #![proptest_config(crate::files::fixed_cases(2048))]

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), at in 0_usize..400, to in any::<u8>()) {
            let _ = parse(&[b"GGUF\x03\0\0\0", &bytes[..]].concat());
            let mut changed = with_data(every_type(), 148);
            let at = at % changed.len();
            changed[at] = to;
            if let Ok(header) = parse(&changed) {
                for stored in header.tensors.values() {
                    prop_assert!(stored.range.end <= changed.len() as u64);
                    let blocks = (stored.elements() / stored.format.block() * stored.format.block_bytes()) as u64;
                    prop_assert_eq!(blocks, stored.range.end - stored.range.start);
                }
                let _ = header_again(&header);
            }
        }
    }

    fn header_again(read: &Header) -> Vec<u8> {
        header(&read.metadata, &[])
    }
}
