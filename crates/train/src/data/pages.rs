//! Pages of a Parquet file, whose headers are looked at before they are decoded.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ::parquet::errors::{ParquetError, Result as ParquetResult};
use ::parquet::file::reader::{ChunkReader, Length};

/// A file whose pages are looked at before they are decoded.
pub(super) struct Watched<R> {
    inner: Arc<R>,
    /// The most bytes that a page may decode to; 0 once one would have decoded to more.
    most: Arc<AtomicU64>,
    /// How many values pages may still claim together.
    values: Arc<AtomicU64>,
}

impl<R> Watched<R> {
    /// A file of which no page is refused yet.
    pub(super) fn new(inner: R) -> Self {
        Self {
            inner: Arc::new(inner),
            most: Arc::new(AtomicU64::new(u64::MAX)),
            values: Arc::new(AtomicU64::new(u64::MAX)),
        }
    }

    /// Refuses pages that decode to more bytes from here on.
    pub(super) fn refuse_beyond(&self, bytes: u64) {
        self.most.store(bytes, Ordering::Relaxed);
    }

    /// Refuses pages that claim more values together from here on.
    pub(super) fn limit_values(&self, values: u64) {
        self.values.store(values, Ordering::Relaxed);
    }

    /// Whether a page was refused since, because it is too large.
    pub(super) fn has_refused(&self) -> bool {
        self.most.load(Ordering::Relaxed) == 0
    }
}

impl<R> Clone for Watched<R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), most: self.most.clone(), values: self.values.clone() }
    }
}

impl<R: Length> Length for Watched<R> {
    fn len(&self) -> u64 {
        self.inner.len()
    }
}

impl<R: ChunkReader> ChunkReader for Watched<R> {
    type T = R::T;

    /// Is asked for a page from its header on; the footer is read by [`ChunkReader::get_bytes`].
    fn get_read(&self, start: u64) -> ParquetResult<R::T> {
        let most = self.most.load(Ordering::Relaxed);
        if most < u64::MAX {
            let mut header = Vec::new();
            self.inner.get_read(start)?.take(64).read_to_end(&mut header)?;
            let page = Page::of(&header).ok_or_else(|| ParquetError::General("a page's header is damaged".into()))?;
            if page.bytes > most {
                self.most.store(0, Ordering::Relaxed);
                return Err(ParquetError::General("a page is too large".into()));
            }
            let left = self.values.load(Ordering::Relaxed);
            // the largest number is no limit
            match left.checked_sub(page.values) {
                _ if left == u64::MAX => {}
                Some(rest) => self.values.store(rest, Ordering::Relaxed),
                None => {
                    self.most.store(0, Ordering::Relaxed);
                    return Err(ParquetError::General("the pages claim too many values".into()));
                }
            }
            // a value of a dictionary takes at least a byte, and room for as many as it claims is made before one is read
            if page.is_dictionary && page.values > page.bytes {
                return Err(ParquetError::General("a dictionary claims more values than it has bytes".into()));
            }
        }
        self.inner.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<bytes::Bytes> {
        self.inner.get_bytes(start, length)
    }
}

/// What a page's header says first.
struct Page {
    is_dictionary: bool,
    /// Its size, decoded.
    bytes: u64,
    /// How many values it has.
    values: u64,
}

impl Page {
    /// Reads the beginning of a header in Thrift's compact protocol: type, size, packed size, perhaps a checksum, and within the next
    /// structure the number of values. Fields come in order, each behind a byte of distance and type.
    fn of(header: &[u8]) -> Option<Self> {
        const I32: u8 = 5;
        const STRUCT: u8 = 12;
        let mut bytes = header.iter().copied();
        let mut numbers = [None; 5];
        let mut field = 0;
        loop {
            let next = bytes.next()?;
            field += usize::from(next >> 4);
            match next & 15 {
                I32 if (1..=4).contains(&field) => numbers[field] = Some(number(&mut bytes)?),
                STRUCT if field > 4 => break,
                _ => return None,
            }
        }
        // an index page, which no reader here decodes, has no number of values
        let values = if bytes.next()? == 1 << 4 | I32 { number(&mut bytes)? } else { 0 };
        let positive = |n: i64| u64::try_from(n).ok();
        let is_dictionary = numbers[1]? == 2;
        Some(Self { is_dictionary, bytes: positive(numbers[2]?)?, values: positive(values)? })
    }
}

/// A zigzag varint of at most 32 bits.
fn number(bytes: &mut impl Iterator<Item = u8>) -> Option<i64> {
    let mut value = 0_u64;
    for shift in (0..35).step_by(7) {
        let byte = bytes.next()?;
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_what_its_page_claims() {
        // a dictionary page of 40 bytes with 3 values; then one of 2 GiB; then one of 2 billion values
        let header = |size: &[u8], values: &[u8]| {
            [&[0x15, 4, 0x15], size, &[0x15, 60, 0x4c, 0x15], values, &[0x15, 0, 0]].concat()
        };
        let page = Page::of(&header(&[80], &[6])).unwrap();
        assert_eq!((page.is_dictionary, page.bytes, page.values), (true, 40, 3));
        assert_eq!(Page::of(&header(&[0xfe, 0xff, 0xff, 0xff, 0x0f], &[6])).unwrap().bytes, (1 << 31) - 1);
        assert!(Page::of(&header(&[1], &[6])).is_none(), "a negative size");
        assert!(Page::of(&[]).is_none());
    }
}
