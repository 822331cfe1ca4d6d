//! int8 in groups of columns, with stochastic rounding.

use rayon::prelude::*;

use super::rowwise::random_row;
use super::vectorised;
use crate::dtype::Float;
use crate::kernels::QUANT_GROUP;
use crate::rng::Key;

/// Rows that one task handles.
const ROWS: usize = 32;
/// Code of 0, and the largest distance from it.
const ZERO: f64 = 128.0;
const MOST: f64 = 127.0;

vectorised! {
    fn quantise_group<T: Float>(x: &[T], random: &[u16], codes: &mut [u8]) -> T {
        let largest = x.iter().fold(T::ZERO, |m, &x| Float::max(m, x.abs()));
        let scale = largest * T::of(1.0 / MOST);
        let inverse = if scale > T::ZERO { T::ONE / scale } else { T::ZERO };
        for ((code, &x), &r) in codes.iter_mut().zip(x).zip(random) {
            // u in the middle of its 2⁻¹⁶ wide cell; the sum is positive, so that truncation rounds down
            let u = (f64::from(r) + 0.5) * (1.0 / 65536.0);
            let value = (x * inverse).f64() + (ZERO + u);
            *code = value.clamp(ZERO - MOST, ZERO + MOST) as u8;
        }
        scale
    }

    fn dequantise_group<T: Float>(codes: &[u8], scale: T, y: &mut [T]) {
        y.iter_mut().zip(codes).for_each(|(y, &c)| *y = T::of(f64::from(c) - ZERO) * scale);
    }
}

pub(super) fn quantise<T: Float>(key: Key, d: usize, x: &[T], codes: &mut [u8], scale: &mut [T]) {
    let groups = d.div_ceil(QUANT_GROUP);
    x.par_chunks(ROWS * d)
        .zip(codes.par_chunks_mut(ROWS * d))
        .zip(scale.par_chunks_mut(ROWS * groups))
        .enumerate()
        .for_each_init(
            || vec![0; d],
            |random, (chunk, ((x, codes), scale))| {
                let rows = x.chunks_exact(d).zip(codes.chunks_exact_mut(d)).zip(scale.chunks_exact_mut(groups));
                for (i, ((x, codes), scale)) in rows.enumerate() {
                    random_row(key, (chunk * ROWS + i) as u32, random);
                    let parts =
                        x.chunks(QUANT_GROUP).zip(codes.chunks_mut(QUANT_GROUP)).zip(random.chunks(QUANT_GROUP));
                    for (((x, codes), random), scale) in parts.zip(scale) {
                        *scale = quantise_group(x, random, codes);
                    }
                }
            },
        );
}

pub(super) fn dequantise<T: Float>(d: usize, codes: &[u8], scale: &[T], y: &mut [T]) {
    let groups = d.div_ceil(QUANT_GROUP);
    let chunks = y.par_chunks_mut(ROWS * d).zip(codes.par_chunks(ROWS * d)).zip(scale.par_chunks(ROWS * groups));
    chunks.for_each(|((y, codes), scale)| {
        for ((y, codes), scale) in y.chunks_exact_mut(d).zip(codes.chunks_exact(d)).zip(scale.chunks_exact(groups)) {
            for ((y, codes), &scale) in y.chunks_mut(QUANT_GROUP).zip(codes.chunks(QUANT_GROUP)).zip(scale) {
                dequantise_group(codes, scale, y);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(key: Key, d: usize, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let rows = x.len() / d;
        let (mut codes, mut scale) = (vec![0; x.len()], vec![0.0; rows * d.div_ceil(QUANT_GROUP)]);
        quantise(key, d, x, &mut codes, &mut scale);
        let mut y = vec![0.0; x.len()];
        dequantise(d, &codes, &scale, &mut y);
        (y, scale)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(1), ..ProptestConfig::default() })]

        /// Any length, any finite values: each comes back within one step of its group, exact zeros as zeros.
        #[test]
        fn values_come_back_within_a_step(d in 1_usize..200, seed in 0_u64..1000, size in -30_i32..30) {
            let key = Key::new(seed);
            let x: Vec<f32> = (0..3 * d as u64).map(|i| if i % 7 == 0 { 0.0 } else { (key.normal(i) * f64::from(size).exp2()) as f32 }).collect();
            let (y, scale) = round_trip(key.child(1), d, &x);
            for (i, (x, y)) in x.iter().zip(&y).enumerate() {
                let step = scale[i / d * d.div_ceil(QUANT_GROUP) + i % d / QUANT_GROUP];
                prop_assert!((x - y).abs() <= step * 1.0001, "{x} came back as {y}, step {step}");
                prop_assert!(*x != 0.0 || *y == 0.0);
            }
        }
    }

    #[test]
    fn rounding_is_unbiased() {
        let x = [1.0_f32, -0.3, 0.001, 0.71, -0.999, 0.0];
        let trials = 20_000;
        let mut sums = [(0.0_f64, 0.0_f64); 6];
        for t in 0..trials {
            for (s, y) in sums.iter_mut().zip(round_trip(Key::new(t), 6, &x).0) {
                *s = (s.0 + f64::from(y), s.1 + f64::from(y).powi(2));
            }
        }
        for (x, (sum, squares)) in x.iter().zip(sums) {
            let mean = sum / trials as f64;
            let se = ((squares / trials as f64 - mean * mean).max(0.0) / trials as f64).sqrt();
            // u has 16 bits: half of its last one may remain, in units of the step
            assert!((mean - f64::from(*x)).abs() <= 4.0 * se + 1.0 / 127.0 / 131_072.0 + 1e-7, "{x}: {mean} ± {se}");
        }
    }
}
