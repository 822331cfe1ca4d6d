//! How the numbers of a GGUF file are stored: blocks of a scale or two and small whole numbers.
//!
//! `x = d·q` or `d·q + m` for the 32 numbers of a block; the formats with a K have blocks of 256, whose parts of 32 or 16 have scales of 6 or 8 bits that
//! are multiples of the block's. Each number is computed in the order of ggml's own decoder, so that both give the same bits.

use half::{bf16, f16};

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "names of the format's own")]
pub enum Format {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4K,
    Q5K,
    Q6K,
}

/// Number in files, name, numbers and bytes of a block, bits of a number without the scales.
const FORMATS: [(Format, u32, &str, usize, usize, u32); 11] = [
    (Format::F32, 0, "F32", 1, 4, 32),
    (Format::F16, 1, "F16", 1, 2, 16),
    (Format::Q4_0, 2, "Q4_0", 32, 18, 4),
    (Format::Q4_1, 3, "Q4_1", 32, 20, 4),
    (Format::Q5_0, 6, "Q5_0", 32, 22, 5),
    (Format::Q5_1, 7, "Q5_1", 32, 24, 5),
    (Format::Q8_0, 8, "Q8_0", 32, 34, 8),
    (Format::Q4K, 12, "Q4_K", 256, 144, 4),
    (Format::Q5K, 13, "Q5_K", 256, 176, 5),
    (Format::Q6K, 14, "Q6_K", 256, 210, 6),
    (Format::BF16, 30, "BF16", 1, 2, 16),
];

/// Formats that exist and are not read.
const OTHERS: [(u32, &str); 22] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

impl Format {
    fn row(self) -> &'static (Format, u32, &'static str, usize, usize, u32) {
        FORMATS.iter().find(|row| row.0 == self).expect("every format has a row")
    }

    /// The format that files call by this number; or, of one that is not read, what it is called.
    pub fn of_number(number: u32) -> Result<Self, String> {
        if let Some(row) = FORMATS.iter().find(|row| row.1 == number) {
            return Ok(row.0);
        }
        let name = OTHERS.iter().find(|other| other.0 == number).map(|other| other.1.to_string());
        Err(name.unwrap_or_else(|| format!("number {number}")))
    }

    /// The formats that are read.
    pub fn names() -> String {
        FORMATS.map(|row| row.2).join(", ")
    }

    /// Its number in files.
    pub fn number(self) -> u32 {
        self.row().1
    }

    /// As ggml calls it.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Numbers of a block.
    pub fn block(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Bits of a number, without its share of the scales.
    pub fn bits(self) -> u32 {
        self.row().5
    }

    /// Whether its numbers are of fewer than 16 bits.
    pub fn is_quantised(self) -> bool {
        self.block() > 1
    }

    /// The numbers of whole blocks.
    ///
    /// # Panics
    /// If `out` has not as many as the blocks.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len() / self.block_bytes() * self.block(), out.len());
        match self {
            Self::F32 => each(bytes, out, |b, x: &mut [f32; 1]| x[0] = f32::from_le_bytes(*b)),
            Self::F16 => each(bytes, out, |b, x: &mut [f32; 1]| x[0] = f16::from_le_bytes(*b).to_f32()),
            Self::BF16 => each(bytes, out, |b, x: &mut [f32; 1]| x[0] = bf16::from_le_bytes(*b).to_f32()),
            Self::Q8_0 => each(bytes, out, q8_0),
            Self::Q4_0 => each(bytes, out, q4_0),
            Self::Q4_1 => each(bytes, out, q4_1),
            Self::Q5_0 => each(bytes, out, q5_0),
            Self::Q5_1 => each(bytes, out, q5_1),
            Self::Q4K => each(bytes, out, q4_k),
            Self::Q5K => each(bytes, out, q5_k),
            Self::Q6K => each(bytes, out, q6_k),
        }
    }

    /// Appends the blocks of these numbers, a multiple of the block. `false` if one of them cannot be said in this format: it, or the scale of its block, is
    /// too large or no number.
    ///
    /// # Panics
    /// For a format that is only read.
    pub fn encode(self, numbers: &[f32], out: &mut Vec<u8>) -> bool {
        match self {
            Self::F32 => {
                out.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
                true
            }
            Self::F16 => {
                out.extend(numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()));
                numbers.iter().all(|&x| !x.is_finite() || f16::from_f32(x).is_finite())
            }
            Self::BF16 => {
                out.extend(numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()));
                numbers.iter().all(|&x| !x.is_finite() || bf16::from_f32(x).is_finite())
            }
            Self::Q8_0 => numbers.as_chunks().0.iter().all(|block| into_q8_0(block, out)),
            other => unreachable!("{} is only read", other.name()),
        }
    }
}

fn each<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn(&[u8; B], &mut [f32; N])) {
    bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0).for_each(|(b, x)| decode(b, x));
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    out.iter_mut().zip(&block[2..]).for_each(|(x, &q)| *x = f32::from(q.cast_signed()) * d);
}

/// The low halves of 16 bytes are the first 16 numbers, the high halves the others.
fn nibbles(bytes: &[u8], i: usize) -> u8 {
    if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 }
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    out.iter_mut().enumerate().for_each(|(i, x)| *x = (f32::from(nibbles(&block[2..], i)) - 8.0) * d);
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    out.iter_mut().enumerate().for_each(|(i, x)| *x = f32::from(nibbles(&block[4..], i)) * d + m);
}

/// Number `i` of five bits: four of `low`, the fifth of `high`.
fn fives(high: &[u8], low: &[u8], i: usize) -> f32 {
    f32::from(nibbles(low, i) | (high[i / 8] >> (i % 8) & 1) << 4)
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    out.iter_mut().enumerate().for_each(|(i, x)| *x = (fives(&block[2..6], &block[6..], i) - 16.0) * d);
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    out.iter_mut().enumerate().for_each(|(i, x)| *x = fives(&block[4..8], &block[8..], i) * d + m);
}

/// Scale and minimum of part `j` of eight, six bits each, of the twelve bytes that hold them.
fn scale_and_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

/// Part `j` is 32 numbers: the low halves of 32 bytes if `j` is even, the high halves of the same if it is odd. `high` gives the fifth bit.
fn k_parts(block: &[u8], low: &[u8], high: impl Fn(usize, usize) -> u8, out: &mut [f32; 256]) {
    let (d, min) = (half_at(block, 0), half_at(block, 2));
    for (j, part) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, offset) = scale_and_min(&block[4..16], j);
        let (d, m) = (d * scale, min * offset);
        for (i, x) in part.iter_mut().enumerate() {
            let q = low[j / 2 * 32 + i] >> (j % 2 * 4) & 15 | high(j, i) << 4;
            *x = d * f32::from(q) - m;
        }
    }
}

fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    k_parts(block, &block[16..], |_, _| 0, out);
}

fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    k_parts(block, &block[48..], |j, i| block[16 + i] >> j & 1, out);
}

fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half_at(block, 208));
    for (i, x) in out.iter_mut().enumerate() {
        // halves of 128; within each, quarters of 32 share bytes
        let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
        let four = low[half * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
        let two = high[half * 32 + l] >> (quarter * 2) & 3;
        let q = f32::from(four | two << 4) - 32.0;
        *x = d * f32::from(scales[i / 16].cast_signed()) * q;
    }
}

/// As ggml rounds: the scale in single precision, halves away from zero; then the scale to half precision.
fn into_q8_0(block: &[f32; 32], out: &mut Vec<u8>) -> bool {
    let most = block.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let d = most / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let scale = f16::from_f32(d);
    out.extend(scale.to_le_bytes());
    out.extend(block.iter().map(|x| ((x * inverse).round() as i8).cast_unsigned()));
    scale.is_finite() && block.iter().all(|x| x.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bits_are_within_half_a_step() {
        let numbers: Vec<_> = (0..320).map(|i| ((i * 37 % 101) as f32 - 50.0) * 1.7e-3 * (1 + i / 32) as f32).collect();
        let (mut bytes, mut back) = (Vec::new(), vec![0.0; 320]);
        assert!(Format::Q8_0.encode(&numbers, &mut bytes));
        Format::Q8_0.decode(&bytes, &mut back);
        for (x, y) in numbers.chunks(32).zip(back.chunks(32)) {
            let step = x.iter().fold(0.0_f32, |m, x| m.max(x.abs())) / 127.0;
            // half a step, and 127 times what the scale loses in half precision
            let bound = step * (0.5 + 127.0 / 2048.0);
            assert!(x.iter().zip(y).all(|(x, y)| (x - y).abs() <= bound));
        }
        // what comes from eight bits is said in eight bits exactly
        let (mut again, mut twice) = (Vec::new(), vec![0.0; 320]);
        assert!(Format::Q8_0.encode(&back, &mut again));
        Format::Q8_0.decode(&again, &mut twice);
        assert_eq!(twice, back);
    }

    #[test]
    fn what_a_format_cannot_say_is_told() {
        let mut out = Vec::new();
        for (format, x) in [(Format::F16, 1e5), (Format::BF16, f32::MAX), (Format::Q8_0, 1e8), (Format::Q8_0, f32::NAN)]
        {
            assert!(!format.encode(&[x; 32], &mut out), "{format:?} {x}");
        }
        for format in [Format::F32, Format::F16, Format::BF16, Format::Q8_0] {
            assert!(format.encode(&[0.0; 32], &mut out));
        }
    }

    #[test]
    fn numbers_and_names_are_the_formats_own() {
        for row in FORMATS {
            assert_eq!(Format::of_number(row.1), Ok(row.0));
        }
        assert_eq!(Format::of_number(23).unwrap_err(), "IQ4_XS");
        assert_eq!(Format::of_number(99).unwrap_err(), "number 99");
    }
}
