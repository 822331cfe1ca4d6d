//! A weight: its numbers, or a matrix in fewer bits.

use crate::codes::{Code, Coded, Format, Pending, Stored, StoredMut};
use crate::cpu::codes::{decoded, encoded};
use crate::cpu::nf4::{self, Scales};
use crate::rng::Key;
use crate::tensor::Tensor;
use crate::{Class, DType, Device, Float};

crate::named! {
    /// How weights that are not trained are held.
    BaseWeights {
        /// As they are: 4 bytes a weight.
        F32 = "f32",
        /// The nearest bfloat16: 2 bytes.
        Bf16 = "bf16",
        /// Whole multiples, −127…127, of a scale that 64 neighbours of a row share, largest/127: a byte, and 4/64 for the scale.
        Int8 = "int8",
        /// NF4: one of 16 levels times a scale, the largest, that 64 neighbours of a row share: half a byte, 1/64 for the scale's own code, and
        /// 4 bytes for 256 scales.
        Nf4 = "nf4",
    }
}

crate::named! {
    /// How matrices that are trained are held.
    TrainedWeights {
        /// As they are: 4 bytes a weight.
        F32 = "f32",
        /// In bfloat16, updated by stochastic rounding: 2 bytes.
        Bf16 = "bf16",
    }
}

impl TrainedWeights {
    /// Their codes, if they have any.
    pub fn format(self) -> Option<Format> {
        match self {
            Self::F32 => None,
            Self::Bf16 => BaseWeights::Bf16.format(),
        }
    }
}

impl BaseWeights {
    /// Its codes, if it has any.
    pub fn format(self) -> Option<Format> {
        let code = match self {
            Self::F32 => return None,
            Self::Bf16 => Code::Bf16,
            Self::Int8 => Code::Int8,
            Self::Nf4 => Code::Nf4,
        };
        Some(Format { code, group: 64 })
    }
}

/// The numbers of a parameter.
#[derive(Clone, Debug)]
pub enum Weight {
    /// As they are.
    Dense(Tensor),
    /// A matrix in codes.
    Coded(Coded),
}

impl Weight {
    /// As kernels read a matrix.
    pub fn stored(&self) -> Stored<'_> {
        match self {
            Self::Dense(x) => Stored::Exact(x),
            Self::Coded(x) => Stored::Coded(x),
        }
    }

    /// As the optimizer updates it: what is in codes is rounded by random numbers of the stream `key`.
    pub fn stored_mut(&mut self, key: Key) -> StoredMut<'_> {
        match self {
            Self::Dense(x) => StoredMut::Exact(x),
            Self::Coded(x) => StoredMut::Coded(Some(key), x),
        }
    }

    /// Lengths of the axes.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Dense(x) => x.shape().to_vec(),
            Self::Coded(x) => vec![x.codes.rows(), x.cols],
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows of a matrix; the length of a vector.
    pub fn rows(&self) -> usize {
        self.stored().rows()
    }

    /// Columns of a matrix; 1 for a vector.
    pub fn cols(&self) -> usize {
        self.stored().cols()
    }

    /// The type of the numbers.
    pub fn dtype(&self) -> DType {
        self.stored().dtype()
    }

    /// Where they are.
    pub fn device(&self) -> &Device {
        match self {
            Self::Dense(x) => x.device(),
            Self::Coded(x) => x.codes.device(),
        }
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(x) => x.bytes(),
            Self::Coded(x) => x.bytes(),
        }
    }

    /// The numbers of a vector, an adapter, or what is known not to be in codes.
    pub fn dense(&self) -> &Tensor {
        match self {
            Self::Dense(x) => x,
            Self::Coded(_) => panic!("{DENSE}"),
        }
    }

    /// As [`Weight::dense`], writable.
    pub fn dense_mut(&mut self) -> &mut Tensor {
        match self {
            Self::Dense(x) => x,
            Self::Coded(_) => panic!("{DENSE}"),
        }
    }

    /// The same numbers in codes, the nearest: a matrix, in [`Class::Weights`].
    #[must_use]
    pub fn coded(&self, format: Format) -> Self {
        let x = self.dense();
        let mut coded = Coded::empty(x.device(), Class::Weights, x.dtype(), [x.rows(), x.cols()], format);
        x.device().kernels().quantise(None, x, &mut coded);
        Self::Coded(coded)
    }

    /// A weight of this shape and kind on a device: zeros, or codes that are to be written.
    #[must_use]
    pub fn empty_on(&self, device: &Device) -> Self {
        match self {
            Self::Dense(x) => Self::Dense(device.zeros(Class::Weights, x.dtype(), x.shape())),
            Self::Coded(x) => {
                let size = [x.codes.rows(), x.cols];
                Self::Coded(Coded::empty(device, Class::Weights, x.scale.dtype(), size, x.format))
            }
        }
    }

    /// Writes numbers one behind the other, from an element on; where they become codes, the first of a row.
    pub fn writer(&mut self, first: usize) -> Writer<'_> {
        Writer { weight: self, next: first, pending: Vec::new() }
    }
}

impl Coded {
    /// Writes whole rows from the host, from row `first` on, as the nearest codes.
    pub fn write_rows(&mut self, first: usize, rows: &[f32]) {
        if rows.is_empty() {
            return;
        }
        match self.scale.dtype() {
            DType::F64 => self.encode(first, &rows.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()),
            _ => self.encode(first, rows),
        }
    }

    fn encode<T: Float>(&mut self, first: usize, rows: &[T]) {
        let (codes, scale) = encoded(self.format, self.cols, rows);
        self.codes.write_range(first * self.format.bytes(self.cols), &codes);
        let at = first * self.format.groups(self.cols);
        let Some(nested) = &mut self.nested else { return self.scale.write_range(at, &scale) };
        let pending = nested.pending.get_or_insert_with(|| Pending::new(nested.codes.len()));
        pending.note(at, scale.iter().map(|&x| x.f64() as f32));
        if pending.missing == 0 {
            let scales: Vec<T> = pending.scales.iter().map(|&x| T::of(f64::from(x))).collect();
            let (mut codes, mut blocks) = (vec![0; scales.len()], vec![T::ZERO; self.scale.len()]);
            nf4::nest(&scales, &mut codes, &mut blocks);
            nested.codes.write_range(0, &codes);
            self.scale.write_range(0, &blocks);
            nested.pending = None;
        }
    }

    /// Reads whole rows to the host, from row `first` on; does nothing on the shape-only device.
    pub fn read_rows(&self, first: usize, rows: &mut [f32]) {
        match self.scale.dtype() {
            DType::F64 => {
                let mut wide = vec![0.0_f64; rows.len()];
                self.decode(first, &mut wide);
                rows.iter_mut().zip(wide).for_each(|(y, x)| *y = x as f32);
            }
            _ => self.decode(first, rows),
        }
    }

    fn decode<T: Float>(&self, first: usize, rows: &mut [T]) {
        let (bytes, groups) = (self.format.bytes(self.cols), self.format.groups(self.cols));
        let count = rows.len() / self.cols;
        let mut codes = vec![0_u8; count * bytes];
        self.codes.read_range(first * bytes, &mut codes);
        let Some(nested) = &self.nested else {
            let mut scale = vec![T::ZERO; count * groups];
            self.scale.read_range(first * groups, &mut scale);
            return decoded(self.format, self.cols, &codes, Scales::Plain(&scale), rows);
        };
        nested.check_whole();
        let (mut scale, mut blocks) = (vec![0_u8; count * groups], vec![T::ZERO; self.scale.len()]);
        nested.codes.read_range(first * groups, &mut scale);
        self.scale.read_range(0, &mut blocks);
        decoded(
            self.format,
            self.cols,
            &codes,
            Scales::Nested { codes: &scale, first: first * groups, blocks: &blocks },
            rows,
        );
    }
}

const DENSE: &str = "what is read as a tensor is not in codes";

/// Writes the numbers of a [`Weight`] in pieces of any length. What becomes codes is rounded row by row, to the same codes however it comes.
#[derive(Debug)]
pub struct Writer<'a> {
    weight: &'a mut Weight,
    /// The element that the next number, or the first pending one, is.
    next: usize,
    /// Of a row that is not whole.
    pending: Vec<f32>,
}

impl Writer<'_> {
    /// Writes the next numbers.
    pub fn push(&mut self, numbers: &[f32]) {
        match self.weight {
            Weight::Dense(x) => {
                match x.dtype() {
                    DType::F64 => x.write_range(self.next, &numbers.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()),
                    _ => x.write_range(self.next, numbers),
                }
                self.next += numbers.len();
            }
            Weight::Coded(x) => {
                self.pending.extend_from_slice(numbers);
                let whole = self.pending.len() / x.cols * x.cols;
                x.write_rows(self.next / x.cols, &self.pending[..whole]);
                self.pending.drain(..whole);
                self.next += whole;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Key;

    fn numbers(n: usize) -> Vec<f32> {
        (0..n as u64).map(|i| Key::new(2).normal(i) as f32).collect()
    }

    /// The same codes as of the whole matrix, whatever the pieces; only the rows that are written change.
    #[test]
    fn pieces_become_the_codes_of_the_whole() {
        let device = Device::cpu();
        for (rows, cols) in [(7, 150), (300, 64), (1, 3), (5, 1)] {
            let all = numbers(rows * cols);
            for format in [BaseWeights::Bf16, BaseWeights::Int8, BaseWeights::Nf4].map(|base| base.format().unwrap()) {
                let dense = Weight::Dense(device.tensor(Class::Weights, &[rows, cols], &all));
                let Weight::Coded(want) = dense.coded(format) else { panic!("codes") };
                for piece in [1, 7, cols, 2 * cols + 1, rows * cols] {
                    let mut weight = dense.coded(format).empty_on(&device);
                    // the second half first
                    for half in [rows / 2..rows, 0..rows / 2] {
                        let mut writer = weight.writer(half.start * cols);
                        all[half.start * cols..half.end * cols].chunks(piece).for_each(|piece| writer.push(piece));
                    }
                    let Weight::Coded(got) = weight else { panic!("codes") };
                    assert_eq!(got.codes.to_vec::<u8>(), want.codes.to_vec::<u8>(), "{rows} {cols} {piece}");
                    assert_eq!(got.scale.to_vec::<f32>(), want.scale.to_vec::<f32>());
                    let scales = [&got, &want].map(|x| x.nested.as_ref().map(|nested| nested.codes.to_vec::<u8>()));
                    assert_eq!(scales[0], scales[1]);
                    let mut back = vec![0.0; 2 * cols.min(rows * cols / 2)];
                    let first = rows.saturating_sub(2);
                    back.resize((rows - first) * cols, 0.0);
                    got.read_rows(first, &mut back);
                    let mut decoded = device.zeros(Class::Workspace, DType::F32, &[rows, cols]);
                    device.kernels().read_rows(&Stored::Coded(&got).into(), None, &mut decoded);
                    assert_eq!(back, decoded.to_vec::<f32>()[first * cols..]);
                }
            }
        }
    }

    /// How far a weight may be from its code: half a step, or half of the largest gap between levels and what the scale is off, in steps of
    /// the dynamic map 0.9/128 of the largest distance of a scale from the mean, at most the largest scale.
    fn bound(base: BaseWeights, x: f32, largest: f32, most: f32) -> f32 {
        match base {
            BaseWeights::F32 => 0.0,
            BaseWeights::Bf16 => x.abs() / 256.0,
            BaseWeights::Int8 => largest / 254.0 * 1.0001,
            BaseWeights::Nf4 => (largest * 0.152 + most * 0.9 / 128.0) * 1.0001,
        }
    }

    /// 4, 2, 1 + 4/64 and ½ + 1/64 bytes a weight, and of the last 4 for 256 scales and 4 for their mean, on the meter as in the sum; a weight is as near to its code as it should.
    #[test]
    fn bytes_and_bounds() {
        let device = Device::cpu();
        let (rows, cols) = (6, 128);
        let all = numbers(rows * cols);
        for (base, bytes) in [
            (BaseWeights::F32, 4 * 768),
            (BaseWeights::Bf16, 2 * 768),
            (BaseWeights::Int8, 768 + 768 / 16),
            (BaseWeights::Nf4, 768 / 2 + 768 / 64 + 4 + 4),
        ] {
            let dense = Weight::Dense(device.tensor(Class::Weights, &[rows, cols], &all));
            let weight = match base.format() {
                Some(format) => dense.coded(format),
                None => dense.clone(),
            };
            drop(dense);
            assert_eq!((weight.bytes(), device.meter().live().weights), (bytes, bytes), "{base}");
            assert_eq!((weight.shape(), weight.len()), (vec![rows, cols], rows * cols));
            let Weight::Coded(coded) = &weight else { continue };
            let most = all.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
            let mut back = vec![0.0; rows * cols];
            coded.read_rows(0, &mut back);
            for (group, read) in all.chunks(64).zip(back.chunks(64)) {
                let largest = group.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
                for (x, y) in group.iter().zip(read) {
                    assert!((x - y).abs() <= bound(base, *x, largest, most), "{base}: {x} {y}");
                }
            }
        }
    }

    /// A large matrix has 4 bits a weight, 8 for the scale of 64, and 32 for those of 256: 4.127.
    #[test]
    fn nf4_takes_four_and_an_eighth_bits() {
        let weight = |rows, cols| {
            let format = BaseWeights::Nf4.format().unwrap();
            Coded::empty(&Device::meta(1), Class::Weights, DType::F32, [rows, cols], format)
        };
        let bytes = weight(4096, 4096).bytes();
        assert_eq!(bytes, (1 << 23) + (1 << 18) + (1 << 12) + 4);
        assert!((bytes as f64 * 8.0 / 4096.0 / 4096.0 - 4.127).abs() < 1e-4);
        // rows of 33 bytes and two groups, of which 14 are one block
        assert_eq!(weight(7, 65).bytes(), 7 * (33 + 2) + 4 + 4);
    }

    /// A linear of codes is off by at most Σ|x|·|ΔW|, and what two sums of f32 round.
    #[test]
    fn a_linear_of_codes_is_within_the_codes_bound() {
        let device = Device::cpu();
        let (n, rows, cols) = (5, 40, 200);
        let all = numbers(rows * cols);
        let x: Vec<f32> = (0..(n * cols) as u64).map(|i| Key::new(3).normal(i) as f32).collect();
        let input = device.tensor(Class::Workspace, &[n, cols], &x);
        let dense = Weight::Dense(device.tensor(Class::Weights, &[rows, cols], &all));
        let most = all.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
        for base in [BaseWeights::Bf16, BaseWeights::Int8, BaseWeights::Nf4] {
            let outputs = [&dense, &dense.coded(base.format().unwrap())].map(|weight| {
                let mut y = device.zeros(Class::Workspace, DType::F32, &[n, rows]);
                device.kernels().linear(&input, &weight.stored(), None, &mut y);
                y.to_vec::<f32>()
            });
            for (i, (exact, coded)) in outputs[0].iter().zip(&outputs[1]).enumerate() {
                let (x, w) = (&x[i / rows * cols..][..cols], &all[i % rows * cols..][..cols]);
                let (mut off, mut sum) = (0.0, 0.0);
                for (x, w) in x.chunks(64).zip(w.chunks(64)) {
                    let largest = w.iter().fold(0.0, |max: f32, w| max.max(w.abs()));
                    for (x, w) in x.iter().zip(w) {
                        off += f64::from(x.abs() * bound(base, *w, largest, most));
                        sum += f64::from((x * w).abs());
                    }
                }
                off += 2.0 * (cols + 1) as f64 * f64::from(f32::EPSILON) * sum;
                assert!(f64::from((exact - coded).abs()) <= off, "{base}: {exact} {coded} {off}");
                assert!(exact != coded, "{base}: what has no error proves nothing");
            }
        }
    }
}
