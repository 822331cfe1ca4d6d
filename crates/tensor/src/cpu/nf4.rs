//! NF4 with scales that are quantised again: the code of QLoRA (Dettmers et al. 2023, section 3 and appendix E).

use super::rowwise::{largest, sum};
use super::vectorised;
use crate::codes::{Coded, Nested};
use crate::dtype::Float;

/// The 16 levels: quantiles of a normal distribution, of which one is 0, scaled to ±1.
const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Half way between neighbouring levels.
const BOUNDS: [f32; 15] = {
    let mut bounds = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        bounds[i] = (LEVELS[i] + LEVELS[i + 1]) / 2.0;
        i += 1;
    }
    bounds
};

/// The two levels of each byte.
static PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut i = 0;
    while i < 256 {
        pairs[i] = [LEVELS[i >> 4], LEVELS[i & 15]];
        i += 1;
    }
    pairs
};

/// The signed dynamic map of 8 bits (Dettmers 2015, "8-bit approximations for parallelism in deep learning"): in the decade 10^(i−7)…10^(i−6),
/// i = 0…6, the middles of 2^i equal parts, and their negatives; 0; and 1.
static DYNAMIC: [f32; 256] = {
    let decades = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    let mut map = [0.0; 256];
    let (mut i, mut k) = (0, 0);
    while i < 7 {
        let parts = 1 << i;
        let mut j = 0;
        while j < parts {
            let x = decades[i] * (0.1 + 0.9 * (j as f64 + 0.5) / parts as f64);
            map[128 + k] = x as f32;
            map[126 - k] = -x as f32;
            (j, k) = (j + 1, k + 1);
        }
        i += 1;
    }
    map[255] = 1.0;
    map
};

vectorised! {
    /// How many bounds a number is above.
    fn nearest_levels<T: Float>(x: &[T], inverse: T, codes: &mut [u8]) {
        for (code, &x) in codes.iter_mut().zip(x) {
            let x = x * inverse;
            *code = BOUNDS.iter().map(|&bound| u8::from(x > T::of(f64::from(bound)))).sum();
        }
    }

    fn pack(levels: &[u8], codes: &mut [u8]) {
        for (code, pair) in codes.iter_mut().zip(levels.chunks(2)) {
            *code = pair[0] << 4 | pair.get(1).copied().unwrap_or(ZERO);
        }
    }

    fn decode_pairs<T: Float>(codes: &[u8], scale: T, y: &mut [T]) {
        for (y, &code) in y.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
            *y = PAIRS[usize::from(code)].map(|level| T::of(f64::from(level)) * scale);
        }
    }
}

/// The level 0.
const ZERO: u8 = 7;

/// Writes one row: the nearest levels, and the largest absolute value of each group; NaN where a number is not finite.
pub(super) fn row_codes<T: Float>(group: usize, x: &[T], codes: &mut [u8], scale: &mut [T]) {
    let mut levels = vec![0; x.len()];
    for ((x, levels), scale) in x.chunks(group).zip(levels.chunks_mut(group)).zip(scale) {
        let poison = sum([x], |[x]| x * T::ZERO);
        let largest = largest(x, |x| x.abs());
        nearest_levels(x, T::ONE / Float::max(largest, T::SMALLEST), levels);
        *scale = largest + poison;
    }
    pack(&levels, codes);
}

/// Columns `first..` of a row, which have one scale.
pub(super) fn decode<T: Float>(codes: &[u8], first: usize, scale: T, y: &mut [T]) {
    let level = |i: usize, half: usize| T::of(f64::from(PAIRS[usize::from(codes[i])][half])) * scale;
    let (odd, even) = y.split_at_mut((first % 2).min(y.len()));
    odd.iter_mut().for_each(|y| *y = level(first / 2, 1));
    let next = first.div_ceil(2);
    decode_pairs(&codes[next..], scale, even);
    let at = next + even.len() / 2;
    if let [last] = even.as_chunks_mut::<2>().1 {
        *last = level(at, 0);
    }
}

/// Writes scales in codes; `blocks` gets the scales of their blocks, and their mean.
pub(crate) fn nest<T: Float>(scales: &[T], codes: &mut [u8], blocks: &mut [T]) {
    let Some((mean, blocks)) = blocks.split_last_mut() else { return };
    let finite = || scales.iter().filter(|x| x.is_finite());
    let offset = T::of(finite().map(|x| x.f64()).sum::<f64>() / (finite().count() as f64).max(1.0));
    *mean = offset;
    for ((scales, codes), block) in scales.chunks(Nested::BLOCK).zip(codes.chunks_mut(Nested::BLOCK)).zip(blocks) {
        let largest = scales.iter().fold(T::ZERO, |max, &x| Float::max(max, (x - offset).abs()));
        let inverse = T::ONE / Float::max(largest, T::SMALLEST);
        codes.iter_mut().zip(scales).for_each(|(code, &x)| *code = nearest_dynamic((x - offset) * inverse));
        *block = largest + sum([scales], |[x]| x * T::ZERO);
    }
}

/// The number of the nearest in the dynamic map.
fn nearest_dynamic<T: Float>(x: T) -> u8 {
    let x = x.f64();
    let above = DYNAMIC.partition_point(|&y| f64::from(y) < x).min(255);
    let below = above.saturating_sub(1);
    let nearer = if x - f64::from(DYNAMIC[below]) <= f64::from(DYNAMIC[above]) - x { below } else { above };
    nearer as u8
}

/// Scales of groups, however they are kept.
#[derive(Clone, Copy)]
pub(crate) enum Scales<'a, T> {
    /// As they are.
    Plain(&'a [T]),
    /// In codes, the first of which is that of the matrix's scale `first`; the scales of all blocks, and the mean.
    Nested { codes: &'a [u8], first: usize, blocks: &'a [T] },
}

impl<'a, T: Float> Scales<'a, T> {
    /// Those of a whole matrix.
    pub(super) fn of(coded: &'a Coded) -> Self {
        let Some(nested) = &coded.nested else { return Self::Plain(coded.scale.as_slice()) };
        nested.check_whole();
        Self::Nested { codes: nested.codes.as_slice(), first: 0, blocks: coded.scale.as_slice() }
    }

    /// Scale `i`.
    #[inline]
    pub(super) fn at(&self, i: usize) -> T {
        match *self {
            Self::Plain(scales) => scales[i],
            Self::Nested { codes, first, blocks } => {
                let code = T::of(f64::from(DYNAMIC[usize::from(codes[i])]));
                code * blocks[(first + i) / Nested::BLOCK] + blocks[blocks.len() - 1]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Key;
    use crate::{BaseWeights, Class, DType, Device, Rows, Stored, Weight};

    /// As `bitsandbytes` has it; see tests/golden/make_nf4.py.
    const GOLDEN: &str = include_str!("../../../../tests/golden/nf4.txt");

    /// The numbers of a matrix of the golden file: 24 bits of a generator, by kind.
    fn numbers(kind: &str, n: usize) -> Vec<f32> {
        let mut state = 12345_u32;
        let number = |i: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = (state >> 8) as f32 / 16_777_216.0 - 0.5;
            match kind {
                "uniform" => x,
                "cubes" => x * x * x,
                "zeros" => 0.0,
                "some zeros" => x * f32::from(u8::from(i / 64 % 3 != 1 && !i.is_multiple_of(5))),
                "equal" => 0.75,
                "negative" => -x.abs() - 0.125,
                "outliers" => x * if i % 211 == 7 { 1024.0 } else { 1.0 },
                _ => panic!("{kind}"),
            }
        };
        (0..n).map(number).collect()
    }

    fn matrix(rows: usize, cols: usize, x: &[f32]) -> Coded {
        let dense = Weight::Dense(Device::cpu().tensor(Class::Weights, &[rows, cols], x));
        let Weight::Coded(coded) = dense.coded(BaseWeights::Nf4.format().unwrap()) else { panic!("codes") };
        coded
    }

    fn read(coded: &Coded) -> Vec<f32> {
        let mut y = vec![0.0; coded.codes.rows() * coded.cols];
        coded.read_rows(0, &mut y);
        y
    }

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    }

    fn floats(hex: &str) -> Vec<f32> {
        bytes(hex).as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
    }

    fn close(a: &[f32], b: &[f32], of: f32) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 4.0 * f32::EPSILON * of)
    }

    #[test]
    fn codes_are_those_of_bitsandbytes() {
        let mut lines = GOLDEN.lines();
        let mut line = || lines.next().map(|line| line.split_once(' ').unwrap_or((line, "")));
        assert!(close(&floats(line().unwrap().1), &LEVELS, 0.0));
        let map = floats(line().unwrap().1);
        assert!(map.iter().zip(&DYNAMIC).all(|(a, b)| (a - b).abs() <= f32::EPSILON * a.abs()));
        let mut count = 0;
        while let Some((size, kind)) = line() {
            let (rows, cols) = size.split_once('x').unwrap();
            let (rows, cols): (usize, usize) = (rows.parse().unwrap(), cols.parse().unwrap());
            let [codes, scales, blocks, back] = std::array::from_fn(|_| line().unwrap().1);
            let (coded, name) = (matrix(rows, cols, &numbers(kind, rows * cols)), format!("{kind} {size}"));
            let most = numbers(kind, rows * cols).iter().fold(0.0, |max: f32, x| max.max(x.abs()));
            assert_eq!(coded.codes.to_vec::<u8>(), bytes(codes), "{name}");
            assert!(close(&coded.scale.to_vec::<f32>(), &floats(blocks), most), "{name}");
            let distances = blocks.len() > 8 && floats(blocks)[0] > 1e-5 * most;
            let nested = coded.nested.as_ref().unwrap();
            // where all scales are equal any code means their mean
            assert!(!distances || nested.codes.to_vec::<u8>() == bytes(scales), "{name}");
            let every: Vec<f32> = read(&coded).into_iter().step_by(7).collect();
            assert!(close(&every, &floats(back), most), "{name}");
            count += 1;
        }
        assert_eq!(count, 11);
    }

    /// What is made of levels and one scale is itself, to the bit.
    #[test]
    fn levels_come_back() {
        for (rows, cols, scale) in [(1, 16, 1.0), (3, 130, 0.75), (40, 1024, 3.0), (5, 1, 2.0)] {
            let x: Vec<f32> = (0..rows * cols)
                .map(|i| match i % cols % 64 {
                    0 => scale,
                    at => LEVELS[(at + i / cols) % 16] * scale,
                })
                .collect();
            let coded = matrix(rows, cols, &x);
            assert_eq!(read(&coded), x);
            assert_eq!(read(&matrix(rows, cols, &read(&coded))), x);
        }
    }

    #[test]
    fn the_nearest_of_the_dynamic_map() {
        assert!(DYNAMIC.is_sorted() && DYNAMIC[127] == 0.0);
        for i in 0..4000_u64 {
            let x = 2.0 * Key::new(1).uniform(i) - 1.0;
            let x = if i % 2 == 0 { x } else { x.powi(9) };
            let off = |code: usize| (f64::from(DYNAMIC[code]) - x).abs();
            let least = (0..256).map(off).fold(f64::INFINITY, f64::min);
            assert_eq!(off(usize::from(nearest_dynamic(x))), least, "{x}");
        }
        assert_eq!([-2.0, -1e-9, 0.0, 1.0, 2.0_f64].map(nearest_dynamic), [0, 127, 127, 255, 255]);
    }

    /// A number that is not finite makes NaN of the 256 scales that its own is among, and of nothing else.
    #[test]
    fn what_is_not_finite_is_not_hidden() {
        for odd in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let mut x = numbers("uniform", 10 * 64 * 64);
            x[300 * 64 + 9] = odd;
            let y = read(&matrix(10, 64 * 64, &x));
            assert!(y.chunks(64).enumerate().all(|(i, y)| y.iter().all(|y| y.is_nan() == (i / 256 == 1))));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(1), ..ProptestConfig::default() })]

        /// Whatever the columns and the size of numbers: within half of the largest gap of its own scale, and what the scale is off; the same
        /// numbers by whole rows, by parts of a row, and row by row in any order; zeros are zeros.
        #[test]
        fn numbers_come_back_within_the_bound(rows in 1_usize..6, cols in 1_usize..400, seed in any::<u64>(), sizes in -30_i32..30, spread in 0_i32..12, cut in any::<(prop::sample::Index, prop::sample::Index)>()) {
            let key = Key::new(seed);
            let x: Vec<f32> = (0..(rows * cols) as u64).map(|i| {
                let size = sizes + (key.uniform(1_000_000 + i / 50) * f64::from(spread)) as i32;
                if i % 9 == 4 { 0.0 } else { (key.normal(i) * f64::from(size).exp2()) as f32 }
            }).collect();
            let coded = matrix(rows, cols, &x);
            let y = read(&coded);
            let largest = |x: &[f32]| x.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
            let scales: Vec<f32> = x.chunks(cols).flat_map(|row| row.chunks(64).map(largest)).collect();
            let mean = scales.iter().sum::<f32>() / scales.len() as f32;
            let distance = scales.iter().fold(0.0, |max: f32, x| max.max((x - mean).abs()));
            let groups = x.chunks(cols).flat_map(|row| row.chunks(64)).zip(y.chunks(cols).flat_map(|row| row.chunks(64)));
            for ((x, y), scale) in groups.zip(&scales) {
                for (x, y) in x.iter().zip(y) {
                    let bound = 0.152 * scale + 0.00704 * distance + 4.0 * f32::EPSILON * (scale + mean);
                    prop_assert!((x - y).abs() <= bound, "{} came back as {}, not within {}", x, y, bound);
                    prop_assert!(*x != 0.0 || *y == 0.0);
                }
            }
            let (first, end) = (cut.0.index(cols), cut.1.index(cols));
            let (first, end) = (first.min(end), first.max(end) + 1);
            let row = cut.0.index(rows);
            let mut part = vec![0.0; end - first];
            super::super::codes::Reader::new(&Rows::from(Stored::Coded(&coded))).read(row, first, &mut part);
            prop_assert_eq!(&part, &y[row * cols + first..row * cols + end]);
            let mut one = vec![0.0; cols];
            coded.read_rows(row, &mut one);
            prop_assert_eq!(&one, &y[row * cols..][..cols]);
            let device = Device::cpu();
            let format = BaseWeights::Nf4.format().unwrap();
            let mut other = Coded::empty(&device, Class::Weights, DType::F32, [rows, cols], format);
            for i in (0..rows).map(|i| (i + row) % rows) {
                other.write_rows(i, &x[i * cols..][..cols]);
            }
            prop_assert_eq!(read(&other), y);
        }
    }
}
