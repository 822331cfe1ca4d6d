//! Matrices in codes: writing them, and reading rows of a matrix that may be kept so.

use rayon::prelude::*;

use super::nf4::{self, Scales};
use super::rowwise::{largest, random_row, rows_per_chunk, sum};
use super::vectorised;
use crate::codes::{Code, Coded, Format, Rows, Stored};
use crate::dtype::Float;
use crate::rng::Key;
use crate::tensor::Tensor;

/// Columns of a group where heads of attention do not decide.
const GROUP: usize = 64;
/// Codes of 0, where codes are signed.
const ZERO_8: i32 = 128;
const ZERO_4: i32 = 8;

/// Scale and its inverse for numbers whose largest is `steps` of it. A group with a number that is not finite has scale NaN, so that all of
/// it comes back as NaN: an overflow is not to be hidden. The scale is a normal number, also where the group has smaller ones.
#[inline(always)]
fn scale_of<T: Float>(x: &[T], steps: f64) -> (T, T) {
    let poison = sum([x], |[x]| x * T::ZERO);
    let largest = largest(x, |x| x.abs());
    // a hair less, so that `steps` of it do not overflow where the largest number is the largest that there is
    let scale = Float::max(largest * T::of((1.0 - 0.5_f64.powi(22)) / steps), T::SMALLEST);
    (scale + poison, T::ONE / scale)
}

/// `x/scale + u`, u in ±½, rounded and kept within `bounds`.
#[inline(always)]
fn steps_of<T: Float>(x: T, inverse: T, u: T, bounds: [T; 2]) -> i32 {
    let x = Float::max(x * inverse + u, bounds[0]);
    (if x < bounds[1] { x } else { bounds[1] }).nearest()
}

/// Splits a row into its groups and calls `$one` for each; groups of 64, which nearly all are, with a length that the compiler knows.
macro_rules! by_group {
    ($group:expr, $x:expr, $u:expr, $codes:expr, $scale:expr, $one:expr) => {{
        let (group, x, u, codes, scale) = ($group, $x, $u, $codes, $scale);
        let mut done = 0;
        if group == GROUP {
            let fixed = x.as_chunks::<GROUP>().0.iter().zip(u.as_chunks::<GROUP>().0);
            for (((x, u), codes), scale) in fixed.zip(codes.as_chunks_mut::<GROUP>().0).zip(&mut *scale) {
                *scale = $one(&x[..], &u[..], &mut codes[..]);
                done += 1;
            }
        }
        let (rest, first) = (done * group, done);
        let groups = x[rest..].chunks(group).zip(u[rest..].chunks(group)).zip(codes[rest..].chunks_mut(group));
        for (((x, u), codes), scale) in groups.zip(&mut scale[first..]) {
            *scale = $one(x, u, codes);
        }
    }};
}

#[inline(always)]
fn signed_group<T: Float>(zero: i32, x: &[T], u: &[T], codes: &mut [u8]) -> T {
    let (scale, inverse) = scale_of(x, f64::from(zero - 1));
    let bounds = [T::of_int(1 - zero), T::of_int(zero - 1)];
    for ((code, &x), &u) in codes.iter_mut().zip(x).zip(u) {
        *code = (steps_of(x, inverse, u, bounds) + zero) as u8;
    }
    scale
}

#[inline(always)]
fn positive_group<T: Float>(x: &[T], u: &[T], codes: &mut [u8]) -> T {
    let (scale, inverse) = scale_of(x, 254.0);
    let bounds = [T::ZERO, T::of_int(254)];
    for ((code, &x), &u) in codes.iter_mut().zip(x).zip(u) {
        *code = if x > T::ZERO { (steps_of(x, inverse, u, bounds) + 1) as u8 } else { 0 };
    }
    scale
}

vectorised! {
    /// `zero` plus the number of steps, of −(zero − 1)…zero − 1. Writes the scale of each group.
    fn signed_codes<T: Float>(group: usize, x: &[T], u: &[T], zero: i32, codes: &mut [u8], scale: &mut [T]) {
        by_group!(group, x, u, codes, scale, |x: &[T], u: &[T], codes: &mut [u8]| signed_group(zero, x, u, codes));
    }

    fn positive_codes<T: Float>(group: usize, x: &[T], u: &[T], codes: &mut [u8], scale: &mut [T]) {
        by_group!(group, x, u, codes, scale, positive_group);
    }

    /// The first of two in the low half.
    fn pack(nibbles: &[u8], codes: &mut [u8]) {
        for (code, pair) in codes.iter_mut().zip(nibbles.chunks(2)) {
            *code = pair[0] | pair.get(1).map_or(0, |high| high << 4);
        }
    }

    fn brain_codes<T: Float>(x: &[T], codes: &mut [u8]) {
        for (code, &x) in codes.chunks_exact_mut(2).zip(x) {
            code.copy_from_slice(&x.to_bf16().to_le_bytes());
        }
    }

    /// See [`Float::to_bf16_by`].
    pub(super) fn brain_codes_by<T: Float>(x: &[T], random: &[u16], codes: &mut [u8]) {
        for ((code, &x), &random) in codes.chunks_exact_mut(2).zip(x).zip(random) {
            code.copy_from_slice(&x.to_bf16_by(random).to_le_bytes());
        }
    }

    /// Random numbers with 16 bits in ±½, in the middle of their cells: their mean is 0, and a whole number stays what it is.
    fn centred<T: Float>(random: &[u16], u: &mut [T]) {
        let shift = T::of(0.5 - 0.5_f64.powi(17));
        u.iter_mut().zip(random).for_each(|(u, &r)| *u = T::of_int(i32::from(r)) * T::of(1.0 / 65536.0) - shift);
    }

    fn decode_signed<T: Float>(codes: &[u8], scale: T, zero: i32, y: &mut [T]) {
        y.iter_mut().zip(codes).for_each(|(y, &c)| *y = T::of_int(i32::from(c) - zero) * scale);
    }

    fn decode_positive<T: Float>(codes: &[u8], scale: T, y: &mut [T]) {
        y.iter_mut().zip(codes).for_each(|(y, &c)| *y = T::of_int((i32::from(c) - 1).max(0)) * scale);
    }

    pub(super) fn decode_brain<T: Float>(codes: &[u8], y: &mut [T]) {
        y.iter_mut().zip(codes.chunks_exact(2)).for_each(|(y, c)| *y = T::of_bf16(u16::from_le_bytes([c[0], c[1]])));
    }

    fn unpack(codes: &[u8], nibbles: &mut [u8]) {
        for (pair, &code) in nibbles.chunks_mut(2).zip(codes) {
            pair[0] = code & 15;
            if let Some(high) = pair.get_mut(1) {
                *high = code >> 4;
            }
        }
    }
}

/// Writes one row in codes; `u` (at least d numbers) is added to the number of steps before it is rounded to the nearest: random in ±½, or 0.
pub(super) fn encode_row<T: Float>(format: Format, x: &[T], u: &[T], codes: &mut [u8], scale: &mut [T]) {
    match format.code {
        Code::Bf16 => brain_codes(x, codes),
        Code::Int8 => signed_codes(format.group, x, u, ZERO_8, codes, scale),
        Code::Positive8 => positive_codes(format.group, x, u, codes, scale),
        Code::Int4 => {
            let mut nibbles = vec![0; x.len()];
            signed_codes(format.group, x, u, ZERO_4, &mut nibbles, scale);
            pack(&nibbles, codes);
        }
        Code::Nf4 => nf4::row_codes(format.group, x, codes, scale),
    }
}

/// Rounding decisions for rows of `d` numbers; see [`encode_row`].
pub(super) struct Rounding<T> {
    key: Option<Key>,
    random: Vec<u16>,
    u: Vec<T>,
}

impl<T: Float> Rounding<T> {
    /// Stochastic by the stream `key`, else to the nearest.
    pub(super) fn new(key: Option<Key>, d: usize) -> Self {
        Self { key, random: vec![0; if key.is_some() { d } else { 0 }], u: vec![T::ZERO; d] }
    }

    pub(super) fn row(&mut self, row: usize) -> &[T] {
        if let Some(key) = self.key {
            random_row(key, row as u32, &mut self.random);
            centred(&self.random, &mut self.u);
        }
        &self.u
    }
}

/// Where codes go, as slices.
pub(super) struct CodesMut<'a, T> {
    pub(super) format: Format,
    pub(super) codes: &'a mut [u8],
    pub(super) scale: &'a mut [T],
}

impl<'a, T: Float> CodesMut<'a, T> {
    pub(super) fn new(coded: &'a mut Coded) -> Self {
        Self { format: coded.format, codes: coded.codes.as_mut_slice(), scale: coded.scale.as_mut_slice() }
    }

    /// The codes and scales of each chunk of `rows` rows of `d` numbers.
    pub(super) fn chunks(self, rows: usize, d: usize) -> Vec<Self> {
        let Self { format, codes, mut scale } = self;
        let (bytes, groups) = (format.bytes(d), format.groups(d));
        let part = |codes: &'a mut [u8]| {
            let (part, rest) = std::mem::take(&mut scale).split_at_mut(codes.len() / bytes * groups);
            scale = rest;
            Self { format, codes, scale: part }
        };
        codes.chunks_mut(rows * bytes).map(part).collect()
    }

    /// Writes row `i` of these.
    pub(super) fn write(&mut self, i: usize, x: &[T], u: &[T]) {
        let (bytes, groups) = (self.format.bytes(x.len()), self.format.groups(x.len()));
        encode_row(self.format, x, u, &mut self.codes[i * bytes..][..bytes], &mut self.scale[i * groups..][..groups]);
    }
}

pub(super) fn quantise<T: Float>(key: Option<Key>, d: usize, x: &[T], target: CodesMut<'_, T>) {
    let rows = rows_per_chunk(d);
    x.par_chunks(rows * d).zip(target.chunks(rows, d)).enumerate().for_each_init(
        || Rounding::new(key, d),
        |rounding, (chunk, (x, mut target))| {
            x.chunks_exact(d).enumerate().for_each(|(i, x)| target.write(i, x, rounding.row(chunk * rows + i)));
        },
    );
}

/// Writes a matrix of `d` columns in codes; see [`crate::Kernels::quantise`].
pub(super) fn quantise_whole<T: Float>(key: Option<Key>, d: usize, x: &[T], coded: &mut Coded) {
    if coded.nested.is_none() {
        return quantise(key, d, x, CodesMut::new(coded));
    }
    let Coded { format, codes, scale: blocks, nested, .. } = coded;
    let mut scale = vec![T::ZERO; x.len() / d.max(1) * format.groups(d)];
    quantise(key, d, x, CodesMut { format: *format, codes: codes.as_mut_slice(), scale: &mut scale });
    if let Some(nested) = nested {
        nf4::nest(&scale, nested.codes.as_mut_slice(), blocks.as_mut_slice());
    }
}

/// The nearest codes, and scales, of rows of `d` numbers.
pub(crate) fn encoded<T: Float>(format: Format, d: usize, rows: &[T]) -> (Vec<u8>, Vec<T>) {
    let n = rows.len() / d.max(1);
    let (mut codes, mut scale) = (vec![0; n * format.bytes(d)], vec![T::ZERO; n * format.groups(d)]);
    if !codes.is_empty() {
        quantise(None, d, rows, CodesMut { format, codes: &mut codes, scale: &mut scale });
    }
    (codes, scale)
}

/// The numbers of rows of `d` of them.
pub(crate) fn decoded<T: Float>(format: Format, d: usize, codes: &[u8], scales: Scales<'_, T>, rows: &mut [T]) {
    let (bytes, groups) = (format.bytes(d), format.groups(d));
    for (i, y) in rows.chunks_exact_mut(d).enumerate() {
        decode(format, &codes[i * bytes..][..bytes], |group| scales.at(i * groups + group), 0, y);
    }
}

/// Reads rows of a matrix, however it is kept.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a, T> {
    source: Source<'a, T>,
    index: Option<&'a [u32]>,
    d: usize,
}

#[derive(Clone, Copy)]
enum Source<'a, T> {
    Exact(&'a [T]),
    Coded { format: Format, codes: &'a [u8], scales: Scales<'a, T> },
}

impl<'a, T: Float> Reader<'a, T> {
    pub(super) fn new(rows: &Rows<'a>) -> Self {
        let source = match rows.of {
            Stored::Exact(x) => Source::Exact(x.as_slice()),
            Stored::Coded(x) => Source::Coded { format: x.format, codes: x.codes.as_slice(), scales: Scales::of(x) },
        };
        Self { source, index: rows.index.map(Tensor::as_slice), d: rows.of.cols() }
    }

    pub(super) fn cols(&self) -> usize {
        self.d
    }

    /// The matrix as it is, if it is kept exactly and whole.
    pub(super) fn exact(&self) -> Option<&'a [T]> {
        match (self.source, self.index) {
            (Source::Exact(x), None) => Some(x),
            _ => None,
        }
    }

    /// Row `i` of those named; `buffer` (d) holds it where it is kept in codes.
    pub(super) fn row<'b>(&'b self, i: usize, buffer: &'b mut [T]) -> &'b [T] {
        let at = self.index.map_or(i, |index| index[i] as usize);
        match self.source {
            Source::Exact(x) => &x[at * self.d..][..self.d],
            Source::Coded { .. } => {
                self.read(at, 0, buffer);
                buffer
            }
        }
    }

    /// Columns `first..first + y.len()` of row `at` of the whole matrix.
    pub(super) fn read(&self, at: usize, first: usize, y: &mut [T]) {
        match self.source {
            Source::Exact(x) => y.copy_from_slice(&x[at * self.d + first..][..y.len()]),
            Source::Coded { format, codes, scales } => {
                let (bytes, groups) = (format.bytes(self.d), format.groups(self.d));
                decode(format, &codes[at * bytes..][..bytes], |group| scales.at(at * groups + group), first, y);
            }
        }
    }
}

/// Columns `first..` of a row; `scale` gives that of a group.
fn decode<T: Float>(format: Format, codes: &[u8], scale: impl Fn(usize) -> T, first: usize, y: &mut [T]) {
    if format.code == Code::Bf16 {
        return decode_brain(&codes[2 * first..], y);
    }
    let mut c = first;
    let mut rest = y;
    while !rest.is_empty() {
        let group = c / format.group;
        let (part, after) = rest.split_at_mut(rest.len().min((group + 1) * format.group - c));
        match format.code {
            Code::Int8 => decode_signed(&codes[c..], scale(group), ZERO_8, part),
            Code::Positive8 => decode_positive(&codes[c..], scale(group), part),
            Code::Nf4 => nf4::decode(codes, c, scale(group), part),
            _ => {
                let mut nibbles = [0; 66];
                for (j, part) in part.chunks_mut(64).enumerate() {
                    let (c, odd) = (c + 64 * j, c % 2);
                    let nibbles = &mut nibbles[..odd + part.len()];
                    unpack(&codes[c / 2..], nibbles);
                    decode_signed(&nibbles[odd..], scale(group), ZERO_4, part);
                }
            }
        }
        c += part.len();
        rest = after;
    }
}

vectorised! {
    fn scaled_copy<T: Float>(s: T, x: &[T], y: &mut [T]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = s * x);
    }
}

/// `y_j = scale_j·x_j`.
pub(super) fn read_rows<T: Float>(x: Reader<'_, T>, scale: Option<&[T]>, y: &mut [T]) {
    let d = x.cols();
    let rows = rows_per_chunk(d);
    y.par_chunks_mut(rows * d).enumerate().for_each_init(
        || vec![T::ZERO; d],
        |buffer, (chunk, y)| {
            for (i, y) in y.chunks_exact_mut(d).enumerate() {
                let j = chunk * rows + i;
                let row = x.row(j, buffer);
                match scale {
                    Some(scale) => scaled_copy(scale[j], row, y),
                    None => y.copy_from_slice(row),
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Class, DType, Device};

    const CODES: [(Code, f64); 3] = [(Code::Int8, 127.0), (Code::Int4, 7.0), (Code::Positive8, 254.0)];
    /// Rounding of x/scale and of its sum with u, in steps: at most 255·ε each; the scale's hair is 254·2⁻²² at most.
    const SLACK: f64 = (2.0 * 255.0 + 2.0 * 254.0) * f32::EPSILON as f64;

    fn coded(format: Format, key: Option<Key>, d: usize, x: &[f32]) -> (Device, Coded) {
        let device = Device::cpu();
        let x = device.tensor(Class::Workspace, &[x.len() / d, d], x);
        let mut coded = Coded::empty_like(&x, format);
        device.kernels().quantise(key, &x, &mut coded);
        (device, coded)
    }

    fn read(device: &Device, coded: &Coded, index: Option<&[u32]>, scale: Option<&[f32]>) -> Vec<f32> {
        let n = index.map_or(coded.codes.rows(), <[u32]>::len);
        let index = index.map(|index| device.tensor(Class::Workspace, &[n], index));
        let scale = scale.map(|scale| device.tensor(Class::Workspace, &[n], scale));
        let mut y = device.empty(Class::Workspace, DType::F32, &[n, coded.cols]);
        let rows = Rows { of: Stored::Coded(coded), index: index.as_ref() };
        device.kernels().read_rows(&rows, scale.as_ref(), &mut y);
        y.as_slice().to_vec()
    }

    /// Any number that an f32 can be, with the special ones and constants more often than by chance.
    fn numbers() -> impl Strategy<Value = (usize, Vec<f32>)> {
        let special = prop::sample::select(vec![0.0, -0.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-40, -1e-45, 1.0]);
        let unfit = prop::sample::select(vec![f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
        let ordinary = (-40.0_f32..40.0).prop_map(|x| x.exp2());
        let any = prop_oneof![8 => ordinary.clone(), 8 => ordinary.prop_map(|x| -x), 2 => any::<f32>(), 2 => special, 1 => unfit];
        let row = move |d: usize| {
            prop_oneof![
                4 => prop::collection::vec(any.clone(), 2 * d),
                2 => prop::collection::vec(-1.0_f32..1.0, 2 * d),
                1 => (-3.0_f32..3.0).prop_map(move |x| vec![x; 2 * d]),
            ]
        };
        (1_usize..200).prop_flat_map(move |d| row(d).prop_map(move |x| (d, x)))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(1), ..ProptestConfig::default() })]

        /// Within half a step of its group, or a whole one where rounding is stochastic; zeros are zeros; a group with a number that is not
        /// finite is NaN, and no other.
        #[test]
        fn numbers_come_back_within_their_step((d, x) in numbers(), group in 1_usize..80, seed in any::<Option<u64>>(), which in 0_usize..3) {
            let (code, steps) = CODES[which];
            let x: Vec<f32> = if code == Code::Positive8 { x.iter().map(|x| x.abs()).collect() } else { x };
            let format = Format { code, group };
            let (device, coded) = coded(format, seed.map(Key::new), d, &x);
            let y = read(&device, &coded, None, None);
            for (x, y) in x.chunks(d).zip(y.chunks(d)) {
                for (x, y) in x.chunks(group).zip(y.chunks(group)) {
                    let largest = x.iter().fold(0.0, |m, x| f64::max(m, f64::from(x.abs())));
                    let finite = x.iter().all(|x| x.is_finite());
                    let step = (largest / steps).max(f64::from(f32::MIN_POSITIVE));
                    let bound = step * (if seed.is_some() { 1.0 } else { 0.5 } + SLACK);
                    for (x, y) in x.iter().zip(y) {
                        prop_assert_eq!(finite, y.is_finite());
                        if finite {
                            prop_assert!((f64::from(*x) - f64::from(*y)).abs() <= bound, "{} came back as {}, step {}", x, y, step);
                            prop_assert!(*x != 0.0 || *y == 0.0);
                        }
                    }
                }
            }
        }

        /// Half a unit in the last of 8 bits, at least half of the smallest bfloat16; infinities and NaN stay.
        #[test]
        fn bfloat16_is_the_nearest((d, x) in numbers()) {
            let (device, coded) = coded(Format { code: Code::Bf16, group: 64 }, None, d, &x);
            for (x, y) in x.iter().zip(read(&device, &coded, None, None)) {
                let (x, y) = (f64::from(*x), f64::from(y));
                // the largest f32 are nearer to 2¹²⁸ than to any bfloat16
                let overflows = x.abs() > 255.5 * 120.0_f64.exp2();
                let near = (x - y).abs() <= (x.abs() / 256.0).max((-134.0_f64).exp2());
                prop_assert!(x.is_nan() && y.is_nan() || x == y || near || overflows && y.is_infinite(), "{} came back as {}", x, y);
            }
        }

        /// The codes of positive numbers tell which numbers are above 0, also where rounding takes them to 0.
        #[test]
        fn positive_codes_tell_signs((d, x) in numbers(), seed in any::<Option<u64>>()) {
            let x: Vec<f32> = x.iter().map(|x| x.max(0.0)).collect();
            let (_, coded) = coded(Format { code: Code::Positive8, group: 64 }, seed.map(Key::new), d, &x);
            prop_assert!(x.iter().zip(coded.codes.as_slice::<u8>()).all(|(x, code)| (*x > 0.0) == (*code > 0)));
        }

        /// Some columns of some rows are the same numbers as those of the whole matrix.
        #[test]
        fn parts_are_parts_of_the_whole((d, x) in numbers(), which in 0_usize..5, group in 1_usize..70, cut in any::<(prop::sample::Index, prop::sample::Index)>()) {
            let code = [Code::Int8, Code::Int4, Code::Positive8, Code::Bf16, Code::Nf4][which];
            let (device, coded) = coded(Format { code, group }, None, d, &x);
            let whole = read(&device, &coded, None, None);
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let (first, end) = (cut.0.index(d), cut.1.index(d));
            let (first, end) = (first.min(end), first.max(end) + 1);
            let mut part = vec![0.0; end - first];
            Reader::new(&Stored::Coded(&coded).into()).read(1, first, &mut part);
            prop_assert_eq!(bits(&part), bits(&whole[d + first..d + end]));
            let picked = read(&device, &coded, Some(&[1, 0, 1]), Some(&[1.0, 2.0, 0.5]));
            let want: Vec<f32> = [(1, 1.0), (0, 2.0), (1, 0.5)].iter().flat_map(|&(i, s)| whole[i * d..][..d].iter().map(move |x| s * x)).collect();
            prop_assert_eq!(bits(&picked), bits(&want));
        }
    }

    /// The mean of many roundings is the number itself, in every code.
    #[test]
    fn stochastic_rounding_is_unbiased() {
        let trials = 20_000;
        for (code, steps) in CODES {
            let x = [1.0_f32, 0.3, 0.001, 0.71, 0.999, 0.0];
            let x = if code == Code::Positive8 { x } else { [x[0], -x[1], x[2], x[3], -x[4], x[5]] };
            let mut sums = [(0.0_f64, 0.0_f64); 6];
            for t in 0..trials {
                let (device, coded) = coded(Format { code, group: 64 }, Some(Key::new(t)), 6, &x);
                for ((s, y), x) in sums.iter_mut().zip(read(&device, &coded, None, None)).zip(x) {
                    let e = f64::from(y) - f64::from(x);
                    *s = (s.0 + e, s.1 + e * e);
                }
            }
            for (x, (sum, squares)) in x.iter().zip(sums) {
                let mean = sum / trials as f64;
                let se = ((squares / trials as f64 - mean * mean).max(0.0) / trials as f64).sqrt();
                // u has 16 bits, of which half of the last may remain
                let floor = (0.5_f64.powi(17) + SLACK) / steps;
                assert!(mean.abs() <= 4.0 * se + floor, "{code:?} {x}: off by {mean} ± {se}");
            }
        }
    }
}
