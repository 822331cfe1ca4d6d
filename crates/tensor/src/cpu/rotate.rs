//! Rotary position embedding, row by row: all heads of a row turn by the same angles.

use rayon::prelude::*;

use super::rowwise::rows_per_chunk;
use super::vectorised;
use crate::dtype::Float;
use crate::kernels::Rotation;

vectorised! {
    /// Turns columns j of `x` towards columns j of `y`.
    fn turn<T: Float>(cos: &[T], sin: &[T], x: &mut [T], y: &mut [T]) {
        for (((x, y), &c), &s) in x.iter_mut().zip(y).zip(cos).zip(sin) {
            (*x, *y) = (*x * c - *y * s, *y * c + *x * s);
        }
    }
}

/// Of x (n, d).
pub(super) fn rotate<T: Float>(rotation: &Rotation<'_>, d: usize, x: &mut [T]) {
    let Rotation { frequencies, factor, heads, first_position, transposed, .. } = *rotation;
    let bounds: &[u32] = rotation.bounds.as_slice();
    let (half, each) = (frequencies.cols(), frequencies.rows() > 1);
    let frequencies: &[f64] = frequencies.as_slice();
    let rows = rows_per_chunk(d);
    x.par_chunks_mut(rows * d).enumerate().for_each_init(
        || vec![T::ZERO; 2 * half],
        |angles, (chunk, x)| {
            let (cos, sin) = angles.split_at_mut(half);
            for (i, x) in x.chunks_exact_mut(d).enumerate() {
                let row = (chunk * rows + i) as u32;
                let sequence = bounds.partition_point(|&bound| bound <= row) - 1;
                let position = (first_position + (row - bounds[sequence]) as usize) as f64;
                let frequencies = &frequencies[if each { sequence * half } else { 0 }..][..half];
                for ((cos, sin), &frequency) in cos.iter_mut().zip(&mut *sin).zip(frequencies) {
                    let (s, c) = (position * frequency).sin_cos();
                    (*cos, *sin) = (T::of(factor * c), T::of(if transposed { -factor * s } else { factor * s }));
                }
                for head in x.chunks_exact_mut(2 * half).take(heads) {
                    let (x, y) = head.split_at_mut(half);
                    turn(cos, sin, x, y);
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use crate::{Class, Device, Rotation};

    /// At position 257 and frequency 1 the cosine is 0.8193, not the −0.0398 of a position that was rounded to bf16.
    #[test]
    fn angles_are_exact_at_large_positions() {
        let device = Device::cpu();
        let bounds = device.tensor(Class::Workspace, &[3], &[0_u32, 1, 259]);
        let frequencies = device.tensor(Class::Workspace, &[1, 1], &[1.0_f64]);
        let rotation = |transposed| Rotation {
            frequencies: &frequencies,
            factor: 1.0,
            heads: 1,
            bounds: &bounds,
            first_position: 0,
            transposed,
        };
        let ones: Vec<f32> = (0..259 * 3).map(|i| if i % 3 == 1 { 0.0 } else { 1.0 }).collect();
        let mut x = device.tensor(Class::Workspace, &[259, 3], &ones);
        device.kernels().rotate(&rotation(false), &mut x);
        let row = |x: &crate::Tensor, row: usize| x.as_slice::<f32>()[3 * row..][..3].to_vec();
        assert_eq!(row(&x, 1), [1.0, 0.0, 1.0]);
        let last = row(&x, 258);
        assert!((last[0] - 0.8193).abs() < 5e-5 && (last[1] - 257.0_f32.sin()).abs() < 1e-6, "{last:?}");
        assert_eq!(last[2], 1.0);
        device.kernels().rotate(&rotation(true), &mut x);
        assert!(x.as_slice::<f32>().iter().zip(ones).all(|(x, want)| (x - want).abs() < 3e-7));
    }

    /// Each sequence has its own frequencies, and its positions begin at the first row's.
    #[test]
    fn sequences_turn_by_their_own_frequencies() {
        let device = Device::cpu();
        let bounds = device.tensor(Class::Workspace, &[3], &[0_u32, 1, 2]);
        let frequencies = device.tensor(Class::Workspace, &[2, 1], &[0.5_f64, 0.25]);
        let rotation = Rotation {
            frequencies: &frequencies,
            factor: 2.0,
            heads: 1,
            bounds: &bounds,
            first_position: 3,
            transposed: false,
        };
        let mut x = device.tensor(Class::Workspace, &[2, 2], &[1.0_f64, 0.0, 1.0, 0.0]);
        device.kernels().rotate(&rotation, &mut x);
        let want = [2.0 * 1.5_f64.cos(), 2.0 * 1.5_f64.sin(), 2.0 * 0.75_f64.cos(), 2.0 * 0.75_f64.sin()];
        assert!(x.as_slice::<f64>().iter().zip(want).all(|(x, want)| (x - want).abs() < 1e-15));
    }
}
