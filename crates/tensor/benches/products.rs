//! Seconds of matrix products: `cargo bench -p colrow-tensor --bench products`.
//!
//! Reads lines `m k n op precision` and answers each with the seconds of its fastest call; `op` says which operands are stored
//! transposed (`nn`, `nt`, `tn`, `tt`), `precision` is `f32` or `bf16`. The line `roof` is answered with the seconds of 10¹⁰
//! operations of `vdpbf16ps` that wait for nothing. `benches/gemm_bf16.py` asks, between calls of PyTorch.

#![allow(clippy::disallowed_methods, reason = "a program of its own")]

use std::io::{BufRead, Write};
use std::time::Instant;

use colrow_tensor::rng::Key;
use colrow_tensor::{Class, DType, Device, Precision, Tensor};

/// Calls that are timed, after one that is not.
const CALLS: usize = 3;

fn matrix(device: &Device, seed: u64, rows: usize, cols: usize, transposed: bool) -> Tensor {
    let (rows, cols) = if transposed { (cols, rows) } else { (rows, cols) };
    let key = Key::new(seed);
    let data: Vec<f32> = (0..rows * cols).map(|i| key.uniform(i as u64) as f32 - 0.5).collect();
    device.tensor(Class::Workspace, &[rows, cols], &data)
}

fn seconds(device: &Device, [m, k, n]: [usize; 3], [ta, tb]: [bool; 2]) -> f64 {
    let (a, b) = (matrix(device, 1, m, k, ta), matrix(device, 2, k, n, tb));
    let mut c = device.zeros(Class::Workspace, DType::F32, &[m, n]);
    // short products are repeated, so that the clock does not matter
    let repeats = (100_000_000 / (m * k * n)).max(1);
    let mut call = || {
        let clock = Instant::now();
        (0..repeats).for_each(|_| device.kernels().matmul(&a, ta, &b, tb, 0.0, &mut c));
        clock.elapsed().as_secs_f64() / repeats as f64
    };
    call();
    (0..CALLS).map(|_| call()).fold(f64::INFINITY, f64::min)
}

/// Of all threads together; `None` where there is no such instruction.
fn roof() -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
        use std::arch::x86_64::*;
        use std::hint::black_box;

        const SUMS: usize = 24;
        const OPERATIONS: usize = 10_000_000_000;

        #[target_feature(enable = "avx512f,avx512bf16")]
        fn turns(count: usize) {
            // SAFETY: every bit pattern is a vector.
            let ones: __m512bh = unsafe { std::mem::transmute([0x3f80_u16; 32]) };
            let mut sums = [_mm512_setzero_ps(); SUMS];
            for _ in 0..count {
                // keeps the loop from being computed at compile time
                let factor = black_box(ones);
                sums.iter_mut().for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, factor, ones));
            }
            black_box(sums);
        }

        let threads = rayon::current_num_threads();
        let count = OPERATIONS / threads / (SUMS * 64);
        return (0..CALLS)
            .map(|_| {
                let clock = Instant::now();
                // SAFETY: the instructions are there.
                rayon::broadcast(|_| unsafe { turns(count) });
                clock.elapsed().as_secs_f64()
            })
            .reduce(f64::min);
    }
    None
}

fn answer(line: &str, devices: &[Device; 2]) -> Option<f64> {
    if line == "roof" {
        return roof();
    }
    let words: Vec<_> = line.split_whitespace().collect();
    let [m, k, n, op, precision] = words[..] else { return None };
    let size = [m.parse().ok()?, k.parse().ok()?, n.parse().ok()?];
    let transposed = match op {
        "nn" => [false, false],
        "nt" => [false, true],
        "tn" => [true, false],
        "tt" => [true, true],
        _ => return None,
    };
    let device = match precision {
        "f32" => &devices[0],
        "bf16" => &devices[1],
        _ => return None,
    };
    Some(seconds(device, size, transposed))
}

fn main() -> std::io::Result<()> {
    let devices = [Precision::F32, Precision::Bf16].map(Device::cpu_with);
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let mut out = std::io::stdout().lock();
        match answer(&line, &devices) {
            Some(seconds) => writeln!(out, "{seconds:e}")?,
            None if line == "roof" => writeln!(out, "nan")?,
            None => writeln!(out, "expected `m k n op precision`, found `{line}`")?,
        }
        out.flush()?;
    }
    Ok(())
}
