//! The optimizer's arithmetic: one pass over weights, gradient and moments.

use rayon::prelude::*;

use super::codes::{brain_codes_by, decode_brain};
use super::rowwise::random_row;
use super::vectorised;
use crate::codes::{Code, StoredMut};
use crate::dtype::Float;
use crate::kernels::{AdamW, UPDATE_BLOCK as CHUNK};
use crate::rng::Key;

vectorised! {
    fn sum_squares_chunk<T: Float>(x: &[T]) -> f64 {
        let mut acc = [0.0_f64; 16];
        let whole = x.chunks_exact(16);
        for (a, &x) in acc.iter_mut().zip(whole.remainder()) {
            *a += x.f64() * x.f64();
        }
        for x in whole {
            for (a, &x) in acc.iter_mut().zip(x) {
                *a += x.f64() * x.f64();
            }
        }
        acc.iter().sum()
    }

    fn adamw_chunk<T: Float>(rule: &Rule<T>, g: &[T], w: &mut [T], m: &mut [T], v: &mut [T]) {
        for (((&g, w), m), v) in g.iter().zip(w).zip(m).zip(v) {
            (*m, *v) = rule.moments(g, *m, *v);
            *w = rule.weight(*w, *m, v.sqrt());
        }
    }
}

/// One step's rule for one weight, its factors rounded to the weights' type.
pub(super) struct Rule<T> {
    scale: T,
    beta: [T; 2],
    rest: [T; 2],
    rate: T,
    root: T,
    decay: T,
    eps: T,
}

impl<T: Float> Rule<T> {
    pub(super) fn new(step: &AdamW, factor: f64) -> Self {
        let beta = [step.beta1, step.beta2];
        let exponent = i32::try_from(step.step).unwrap_or(i32::MAX);
        let [unbiased1, unbiased2] = beta.map(|beta| 1.0 - beta.powi(exponent));
        Self {
            scale: T::of(factor),
            beta: beta.map(T::of),
            rest: beta.map(|beta| T::of(1.0 - beta)),
            rate: T::of(step.lr / unbiased1),
            root: T::of(unbiased2.sqrt().recip()),
            decay: T::of(1.0 - step.lr * step.weight_decay),
            eps: T::of(step.eps),
        }
    }

    /// The moments with gradient `g` in them.
    #[inline(always)]
    pub(super) fn moments(&self, g: T, m: T, v: T) -> (T, T) {
        let g = g * self.scale;
        (self.beta[0] * m + self.rest[0] * g, self.beta[1] * v + self.rest[1] * g * g)
    }

    /// The weight after its step; `r` is the root of the second moment.
    #[inline(always)]
    pub(super) fn weight(&self, w: T, m: T, r: T) -> T {
        w * self.decay - self.rate * m / (r * self.root + self.eps)
    }
}

pub(super) fn sum_squares<T: Float>(x: &[T]) -> f64 {
    // partial sums are collected in order, so that threads do not change the total
    block_squares(x).iter().sum()
}

pub(super) fn block_squares<T: Float>(x: &[T]) -> Vec<f64> {
    x.par_chunks(CHUNK).map(sum_squares_chunk).collect()
}

pub(super) fn clip(sums: &[f64], most: f64) -> f64 {
    if !sums.iter().all(|x| x.is_finite()) {
        return f64::NAN;
    }
    if most > 0.0 { (most / (sums[1..].iter().sum::<f64>().sqrt() + 1e-6)).min(1.0) } else { 1.0 }
}

/// Weights that are updated.
pub(super) enum Weights<'a, T> {
    /// As they are.
    Exact(&'a mut [T]),
    /// In bfloat16, two bytes a weight, written back by random numbers of a stream.
    Brain(Key, &'a mut [u8]),
}

impl<'a, T: Float> Weights<'a, T> {
    pub(super) fn new(w: StoredMut<'a>) -> Self {
        match w {
            StoredMut::Exact(w) => Self::Exact(w.as_mut_slice()),
            StoredMut::Coded(Some(key), w) if w.format.code == Code::Bf16 => Self::Brain(key, w.codes.as_mut_slice()),
            StoredMut::Coded(..) => panic!("weights are updated in floats, or in bfloat16 by random numbers"),
        }
    }

    /// Chunks from the element `first` on, each with its number.
    pub(super) fn chunks(self, first: usize) -> Vec<(usize, Self)> {
        assert!(first.is_multiple_of(CHUNK), "whole chunks are updated");
        let numbers = first / CHUNK..;
        match self {
            Self::Exact(w) => numbers.zip(w[first..].chunks_mut(CHUNK).map(Self::Exact)).collect(),
            Self::Brain(key, codes) => {
                numbers.zip(codes[2 * first..].chunks_mut(2 * CHUNK).map(|codes| Self::Brain(key, codes))).collect()
            }
        }
    }

    /// Has `step` update the first `n` of these, which are chunk `number`.
    pub(super) fn update(self, number: usize, n: usize, decoded: &mut Decoded<T>, step: impl FnOnce(&mut [T])) {
        match self {
            Self::Exact(w) => step(&mut w[..n]),
            Self::Brain(key, codes) => {
                let codes = &mut codes[..2 * n];
                decoded.numbers.resize(n, T::ZERO);
                decoded.random.resize(n, 0);
                decode_brain(codes, &mut decoded.numbers);
                step(&mut decoded.numbers);
                random_row(key, number as u32, &mut decoded.random);
                brain_codes_by(&decoded.numbers, &decoded.random, codes);
            }
        }
    }
}

/// A chunk of weights in bfloat16, as numbers, and what they are rounded by.
pub(super) struct Decoded<T> {
    numbers: Vec<T>,
    random: Vec<u16>,
}

impl<T> Default for Decoded<T> {
    fn default() -> Self {
        Self { numbers: Vec::new(), random: Vec::new() }
    }
}

pub(super) fn adamw<T: Float>(step: &AdamW, factor: f64, g: &[T], w: Weights<'_, T>, m: &mut [T], v: &mut [T]) {
    let rule = Rule::new(step, factor);
    let w = w.chunks(step.first);
    let chunks = g.par_chunks(CHUNK).zip(w).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK));
    chunks.for_each_init(Decoded::default, |decoded, (((g, (number, w)), m), v)| {
        w.update(number, g.len(), decoded, |w| adamw_chunk(&rule, g, w, m, v));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BaseWeights, Class, Coded, DType, Device, Format, Tensor, TrainedWeights, Weight};

    const HOW: AdamW = AdamW { lr: 6e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 1, first: 0 };

    fn in_bf16(device: &Device, [rows, cols]: [usize; 2], numbers: &[f32]) -> Weight {
        let format = TrainedWeights::Bf16.format().unwrap();
        Weight::Dense(device.tensor(Class::Weights, &[rows, cols], numbers)).coded(format)
    }

    fn read(weight: &Weight) -> Vec<f32> {
        let Weight::Coded(codes) = weight else { panic!("codes") };
        let mut numbers = vec![0.0; weight.len()];
        codes.read_rows(0, &mut numbers);
        numbers
    }

    /// Moments in floats or in eight bits, and their steps.
    struct Moments(Vec<Tensor>);

    impl Moments {
        fn new(device: &Device, shape: [usize; 2], eight_bit: bool) -> Self {
            let zeros = |dtype, shape: &[usize]| device.zeros(Class::Optimizer, dtype, shape);
            let scale = || zeros(DType::F32, &[(shape[0] * shape[1]).div_ceil(crate::kernels::MOMENT_BLOCK)]);
            Self(match eight_bit {
                false => vec![zeros(DType::F32, &shape), zeros(DType::F32, &shape)],
                true => vec![zeros(DType::U8, &shape), scale(), zeros(DType::U8, &shape), scale()],
            })
        }

        fn step(&mut self, how: &AdamW, g: &Tensor, w: StoredMut<'_>) {
            let device = g.device();
            let factor = device.tensor(Class::Workspace, &[1], &[1.0_f64]);
            match &mut self.0[..] {
                [m, v] => device.kernels().adamw(how, &factor, g, w, m, v),
                [m, m_scale, r, r_scale] => {
                    device.kernels().adamw_8bit(how, &factor, g, w, [m, m_scale], [r, r_scale]);
                }
                _ => unreachable!(),
            }
        }
    }

    /// A weight's own spacing below 1 is 2⁻⁸: to the nearest it would never leave 1.
    #[test]
    fn updates_below_half_a_place_add_up() {
        let device = Device::cpu();
        // of no whole number of chunks
        let shape = [70, 1001];
        let n = shape[0] * shape[1];
        for eight_bit in [false, true] {
            let mut weight = in_bf16(&device, shape, &vec![1.0; n]);
            let mut moments = Moments::new(&device, shape, eight_bit);
            let g = device.tensor(Class::Gradients, &shape, &vec![0.5_f32; n]);
            for step in 1..=100 {
                moments.step(&AdamW { step, ..HOW }, &g, weight.stored_mut(Key::new(7).child(step)));
            }
            let numbers = read(&weight);
            let mean = numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
            // A step of δ is one place up or down with probability p = δ·2⁸, and otherwise none: its variance is p(1 − p)·2⁻¹⁶, at
            // steps that are independent. Each new weight is rounded to f32 first, by at most 2⁻²⁵. Moments in eight bits
            // make steps that are off by up to a hundredth on average.
            let p: f64 = 6e-4 * 256.0;
            let error = (100.0 * p * (1.0 - p)).sqrt() / 256.0 / (n as f64).sqrt();
            let floor = if eight_bit { 0.06 * 1e-2 } else { 100.0 * 2.0_f64.powi(-25) };
            assert!((mean - 0.94).abs() <= 4.0 * error + floor, "{eight_bit}: {mean} ± {error}");
            let spread = numbers.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n as f64;
            let want = 100.0 * p * (1.0 - p) / 65536.0;
            // the relative standard error of a variance is about √(2/n)
            assert!((spread / want - 1.0).abs() < 0.05, "{eight_bit}: {spread} {want}");
        }
    }

    /// Of numbers of every size and sign: each is one of its neighbours, and over many streams their mean is the number.
    #[test]
    fn rounding_by_random_numbers_is_unbiased() {
        let key = Key::new(3);
        let spread = |i: u64| (key.normal(i) * (20.0 * key.child(1).normal(i)).exp2()) as f32;
        let mut numbers: Vec<f32> = (0..500).map(spread).collect();
        numbers.extend([0.0, -0.0, 1.0, -1.5, 1e-40, -3e-42, f32::MIN_POSITIVE, 1.0 + f32::EPSILON]);
        let trials = 4096;
        let (mut sums, mut random) = (vec![0.0_f64; numbers.len()], vec![0; numbers.len()]);
        for t in 0..trials {
            random_row(key.child(2), t, &mut random);
            let mut codes = vec![0; 2 * numbers.len()];
            brain_codes_by(&numbers, &random, &mut codes);
            for ((sum, &x), code) in sums.iter_mut().zip(&numbers).zip(codes.chunks_exact(2)) {
                let y = f32::of_bf16(u16::from_le_bytes([code[0], code[1]]));
                assert!(
                    y.to_bits() >> 16 == x.to_bits() >> 16 || y.to_bits() == ((x.to_bits() >> 16) + 1) << 16,
                    "{x} {y}"
                );
                *sum += f64::from(y) - f64::from(x);
            }
        }
        let mut squares = 0.0;
        for (&x, sum) in numbers.iter().zip(sums) {
            let share = f64::from(x.to_bits() as u16) / 65536.0;
            let low = f32::from_bits(x.to_bits() & !0xFFFF);
            let place = (f64::from(f32::from_bits(low.to_bits() + 0x1_0000)) - f64::from(low)).abs();
            let error = place * (share * (1.0 - share) / f64::from(trials)).sqrt();
            let mean = sum / f64::from(trials);
            assert!(mean.abs() <= 5.0 * error, "{x}: off by {mean} ± {error}");
            if error > 0.0 {
                squares += (mean / error).powi(2) / numbers.len() as f64;
            }
        }
        assert!((0.7..1.3).contains(&squares), "{squares}");
        assert!([f32::INFINITY, f32::NEG_INFINITY].map(|x| f32::of_bf16(x.to_bf16_by(u16::MAX)) == x) == [true; 2]);
        assert!(f32::of_bf16(f32::NAN.to_bf16_by(u16::MAX)).is_nan());
    }

    /// Moments are those of a run in floats over the same numbers, and the weight that is rounded is that run's.
    #[test]
    fn only_what_is_written_back_is_rounded() {
        let device = Device::cpu();
        let shape = [40, 500];
        let numbers: Vec<f32> = (0..20_000).map(|i| Key::new(1).normal(i) as f32).collect();
        let g: Vec<f32> = (0..20_000).map(|i| Key::new(2).normal(i) as f32).collect();
        let g = device.tensor(Class::Gradients, &shape, &g);
        for eight_bit in [false, true] {
            let mut weight = in_bf16(&device, shape, &numbers);
            let mut dense = device.tensor(Class::Weights, &shape, &read(&weight));
            let (mut moments, mut others) =
                (Moments::new(&device, shape, eight_bit), Moments::new(&device, shape, eight_bit));
            let how = AdamW { lr: 1e-2, weight_decay: 0.1, ..HOW };
            moments.step(&how, &g, weight.stored_mut(Key::new(5)));
            others.step(&how, &g, StoredMut::Exact(&mut dense));
            let off = |x: f32, y: f32| (x.to_bits() >> 16).abs_diff(y.to_bits() >> 16);
            assert!(
                dense
                    .to_vec::<f32>()
                    .iter()
                    .zip(read(&weight))
                    .all(|(&x, y)| off(x, y) <= 1 && x.signum() == y.signum())
            );
            match &moments.0[0] {
                m if m.dtype() == DType::U8 => assert_eq!(m.to_vec::<u8>(), others.0[0].to_vec::<u8>()),
                m => assert_eq!(m.to_vec::<f32>(), others.0[0].to_vec::<f32>()),
            }
        }
    }

    /// The same stream gives the same bits on any number of threads, another stream others; a gradient of zero without decay changes nothing.
    #[test]
    fn threads_do_not_matter_and_streams_do() {
        let shape = [90, 777];
        let numbers: Vec<f32> = (0..69_930).map(|i| Key::new(1).normal(i) as f32).collect();
        let run = |threads: usize, key: Key, g: f32| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let device = Device::cpu();
                let mut weight = in_bf16(&device, shape, &numbers);
                let before = read(&weight);
                let mut moments = Moments::new(&device, shape, true);
                let g = device.tensor(Class::Gradients, &shape, &vec![g; 69_930]);
                moments.step(&HOW, &g, weight.stored_mut(key));
                (read(&weight), before)
            })
        };
        let one = run(1, Key::new(1), 1.0).0;
        assert!(one == run(2, Key::new(1), 1.0).0 && one == run(3, Key::new(1), 1.0).0);
        assert!(one != run(1, Key::new(2), 1.0).0);
        let (after, before) = run(2, Key::new(1), 0.0);
        assert!(after == before && after != one);
    }

    #[test]
    #[should_panic(expected = "in bfloat16 by random numbers")]
    fn weights_in_other_codes_are_not_updated() {
        let device = Device::cpu();
        let format: Format = BaseWeights::Int8.format().unwrap();
        let mut coded = Coded::empty(&device, Class::Weights, DType::F32, [1, 64], format);
        Weights::<f32>::new(StoredMut::Coded(Some(Key::new(1)), &mut coded));
    }
}
