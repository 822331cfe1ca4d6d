//! Two GEMM crates in turns on the products of BERT-base and MiniLM, f32, on all threads.

use std::time::Instant;

use faer::{Accum, MatMut, MatRef, Par};

/// Rows of a, columns of a, columns of b.
const SHAPES: [(usize, usize, usize); 5] =
    [(4096, 768, 3072), (4096, 3072, 768), (4096, 768, 768), (1200, 768, 3072), (1024, 384, 1536)];
const ROUNDS: usize = 15;

fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut x = seed;
    let next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn with_gemm((m, k, n): (usize, usize, usize), a: &[f32], b: &[f32], c: &mut [f32]) {
    let (rows, cols, threads) = (n as isize, k as isize, gemm::Parallelism::Rayon(0));
    let (c, a, b) = (c.as_mut_ptr(), a.as_ptr(), b.as_ptr());
    // SAFETY: the strides are those of row-major matrices of these sizes.
    unsafe { gemm::gemm(m, n, k, c, 1, rows, false, a, 1, cols, b, 1, rows, 0.0, 1.0, false, false, false, threads) };
}

fn with_faer((m, k, n): (usize, usize, usize), a: &[f32], b: &[f32], c: &mut [f32]) {
    let (a, b) = (MatRef::from_row_major_slice(a, m, k), MatRef::from_row_major_slice(b, k, n));
    let c = MatMut::from_row_major_slice_mut(c, m, n);
    faer::linalg::matmul::matmul(c, Accum::Replace, a, b, 1.0, Par::rayon(0));
}

fn main() {
    for shape @ (m, k, n) in SHAPES {
        let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
        let mut products = [vec![0.0; m * n], vec![0.0; m * n]];
        let mut seconds = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (which, multiply) in [with_gemm, with_faer].into_iter().enumerate() {
                let clock = Instant::now();
                multiply(shape, &a, &b, &mut products[which]);
                seconds[which].push(clock.elapsed().as_secs_f64());
            }
        }
        let [x, y] = &products;
        let difference = x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        let rates = seconds.map(|mut seconds| {
            seconds.sort_by(f64::total_cmp);
            let rate = |seconds: f64| 2e-9 * (m * k * n) as f64 / seconds;
            format!("{:.1} best, {:.1} median", rate(seconds[0]), rate(seconds[ROUNDS / 2]))
        });
        println!("({m}, {k})·({k}, {n}) GFLOP/s: gemm {}; faer {}; differ by {difference:.0e}", rates[0], rates[1]);
    }
}
