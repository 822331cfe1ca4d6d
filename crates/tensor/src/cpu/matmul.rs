//! Matrix products of tensors.

use std::ops::Range;

use super::coded::CodedView;
use super::product::gemm::{gemm, own};
use super::product::{Destination, Unit};
use super::rowwise;
use super::view::View;
use crate::Precision;
use crate::codes::Stored;
use crate::dtype::Float;
use crate::tensor::Tensor;

/// Bytes of the copies of operands that a product (m, k)·(k, n) of elements of `size` bytes makes, the most of any precision; what each thread
/// copies on its own is not among them.
pub(crate) fn packing(m: usize, n: usize, k: usize, size: usize, coded: bool) -> usize {
    let units =
        [Precision::F32, Precision::Bf16].map(|precision| Unit::of(precision).filter(|_| size == size_of::<f32>()));
    let ours = units.iter().flatten().map(|unit| unit.packing(m, n, k)).max().unwrap_or(0);
    let [Some(_), _] = units else {
        let decoded = if coded { longest_part(n, k) * k * size } else { 0 };
        return ours.max(packing_of_crate(m, n, k, size) + decoded);
    };
    ours
}

/// The GEMM crate computes the transpose, as rows are contiguous, and copies blocks of `a` that fill the last-level cache.
fn packing_of_crate(m: usize, n: usize, k: usize, size: usize) -> usize {
    // its largest tile; a smaller one rounds less
    let (tile_rows, tile_cols) = (48, 8);
    let blocks = gemm_common::cache::kernel_params(n, m, k, tile_rows, tile_cols, size);
    let rows = if blocks.nc > 0 { blocks.nc } else { m.next_multiple_of(tile_cols) };
    blocks.kc * rows * size
}

/// A tensor as a view, transposed if so asked.
fn view<T: Float>(t: &Tensor, transposed: bool) -> View<*const T> {
    let view = View::new(t.as_slice::<T>().as_ptr(), t.rows(), t.cols(), t.cols());
    if transposed { view.t() } else { view }
}

fn view_mut<T: Float>(t: &mut Tensor) -> View<*mut T> {
    let (rows, cols) = (t.rows(), t.cols());
    View::new(t.as_mut_slice::<T>().as_mut_ptr(), rows, cols, cols)
}

fn check_shapes(a: [usize; 2], b: [usize; 2], c: &Tensor) {
    assert!(a[1] == b[0] && a[0] == c.rows() && b[1] == c.cols(), "shapes of a matrix product");
}

/// See [`crate::kernels::Kernels::matmul`].
pub(super) fn matmul<T: Float>(
    precision: Precision,
    [(a, ta), (b, tb)]: [(&Tensor, bool); 2],
    beta: f64,
    c: &mut Tensor,
) {
    let (a, b) = (view::<T>(a, ta), view::<T>(b, tb));
    check_shapes([a.rows, a.cols], [b.rows, b.cols], c);
    // SAFETY: the views cover live row-major tensors of these shapes, and `c` is borrowed mutably.
    unsafe { gemm(precision, 1.0, a, b, beta, view_mut(c), true) }
}

/// See [`crate::kernels::Kernels::linear`].
pub(super) fn linear<T: Float>(
    precision: Precision,
    x: &Tensor,
    weight: &Stored<'_>,
    bias: Option<&Tensor>,
    y: &mut Tensor,
) {
    check_shapes([x.rows(), x.cols()], [weight.cols(), weight.rows()], y);
    assert!(bias.is_none_or(|bias| bias.len() == y.cols()), "shapes of a linear layer");
    if let (Some(unit), Some(bias)) = (own::<T>(precision), bias) {
        let c = view_mut::<f32>(y);
        // the bias is read as every row
        let from = (1.0, View::new(bias.as_slice().as_ptr(), c.rows, c.cols, 0));
        // SAFETY: the views cover live row-major tensors of these shapes, and `y` is borrowed mutably.
        return unsafe { by_unit(unit, view(x, false), weight, true, Destination { alpha: 1.0, from, c }) };
    }
    if let Some(bias) = bias {
        rowwise::broadcast_row::<T>(bias.as_slice(), y.as_mut_slice());
    }
    times_weight::<T>(precision, x, weight, true, if bias.is_some() { 1.0 } else { 0.0 }, y);
}

/// See [`crate::kernels::Kernels::linear_backward`].
pub(super) fn linear_backward<T: Float>(precision: Precision, dy: &Tensor, weight: &Stored<'_>, dx: &mut Tensor) {
    check_shapes([dy.rows(), dy.cols()], [weight.rows(), weight.cols()], dx);
    times_weight::<T>(precision, dy, weight, false, 0.0, dx);
}

/// `c = beta·c + a·weight`, or with its transpose.
fn times_weight<T: Float>(
    precision: Precision,
    a: &Tensor,
    weight: &Stored<'_>,
    transposed: bool,
    beta: f64,
    c: &mut Tensor,
) {
    let coded = match weight {
        Stored::Exact(weight) => return matmul::<T>(precision, [(a, false), (weight, transposed)], beta, c),
        Stored::Coded(coded) => coded,
    };
    if let Some(unit) = own::<T>(precision) {
        let c = view_mut::<f32>(c);
        let to = Destination { alpha: 1.0, from: (beta as f32, c.read()), c };
        // SAFETY: the views cover live row-major tensors of these shapes, and `c` is borrowed mutably.
        return unsafe { by_unit(unit, view(a, false), weight, transposed, to) };
    }
    let b = CodedView::<T>::new(coded);
    let b = if transposed { b.t() } else { b };
    let ([k, n], a, c) = (b.size(), view::<T>(a, false), view_mut::<T>(c));
    let mut room = vec![T::ZERO; longest_part(n, k) * k];
    for columns in decoded_parts(n, k) {
        let b = b.part(0..k, columns.clone()).decode(&mut room[..k * columns.len()]);
        // SAFETY: as above.
        unsafe { gemm(precision, 1.0, a, b, beta, c.part(0..c.rows, columns), true) };
    }
}

/// # Safety
/// As [`Unit::gemm`], of a, and of the weight or its transpose.
unsafe fn by_unit(unit: Unit, a: View<*const f32>, weight: &Stored<'_>, transposed: bool, to: Destination) {
    // SAFETY: as this function requires.
    unsafe {
        match weight {
            Stored::Exact(weight) => unit.gemm(a, view(weight, transposed), to, true),
            Stored::Coded(coded) => {
                let b = CodedView::new(coded);
                unit.gemm(a, if transposed { b.t() } else { b }, to, true);
            }
        }
    }
}

/// Elements of a matrix in codes that are decoded at once for the GEMM crates, unless a few columns have more.
const DECODED: usize = if cfg!(test) { 1 << 14 } else { 1 << 18 };

/// The parts, of n columns of k elements each, that are decoded in turn. Of 64 columns or fewer the crates cut sums in other places, and round
/// them otherwise: a part has more, if the whole has. (Only where c is a single row may last bits still be others than those of one product.)
fn decoded_parts(n: usize, k: usize) -> impl Iterator<Item = Range<usize>> {
    let count = n.div_ceil((DECODED / k.max(1)).max(256));
    (0..count).map(move |i| i * n / count..(i + 1) * n / count)
}

fn longest_part(n: usize, k: usize) -> usize {
    decoded_parts(n, k).map(|part| part.len()).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use crate::rng::Key;
    use crate::{Class, Code, Coded, DType, Device, Format, Precision, Stored, Tensor};

    fn random(device: &Device, key: Key, rows: usize, cols: usize) -> crate::Tensor {
        let data: Vec<f32> = (0..rows * cols).map(|i| key.normal(i as u64) as f32).collect();
        device.tensor(Class::Workspace, &[rows, cols], &data)
    }

    /// Every transposition, with odd sizes, against sums in f64.
    #[test]
    fn matches_the_definition() {
        let device = Device::cpu();
        let (m, k, n) = (37, 65, 23);
        for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
            let a = if ta { random(&device, Key::new(1), k, m) } else { random(&device, Key::new(1), m, k) };
            let b = if tb { random(&device, Key::new(2), n, k) } else { random(&device, Key::new(2), k, n) };
            let mut c = random(&device, Key::new(3), m, n);
            let before = c.to_f64();
            device.kernels().matmul(&a, ta, &b, tb, 0.5, &mut c);
            let (a, b, c) = (a.to_f64(), b.to_f64(), c.to_f64());
            for i in 0..m {
                for j in 0..n {
                    let terms = (0..k).map(|l| {
                        let x = if ta { a[l * m + i] } else { a[i * k + l] };
                        x * if tb { b[j * k + l] } else { b[l * n + j] }
                    });
                    let (sum, abs) = terms.fold((0.0, 0.0), |(s, t), x| (s + x, t + f64::abs(x)));
                    let bound = (k + 2) as f64 * f64::from(f32::EPSILON) * (abs + before[i * n + j].abs());
                    assert!((c[i * n + j] - 0.5 * before[i * n + j] - sum).abs() <= bound);
                }
            }
        }
    }

    #[test]
    fn bf16_rounds_f32_operands_alone() {
        let device = Device::cpu_with(crate::Precision::Bf16);
        let product = |x: &crate::Tensor| {
            let mut y = device.zeros(Class::Workspace, x.dtype(), &[1, 1]);
            device.kernels().matmul(x, false, x, true, 0.0, &mut y);
            y.to_f64()[0]
        };
        // 1 + 2⁻¹⁰ is 1 in bf16
        let x = 1.0 + 1.0 / 1024.0;
        assert_eq!(product(&device.tensor(Class::Workspace, &[1, 1], &[x as f32])), 1.0);
        assert_eq!(product(&device.tensor(Class::Workspace, &[1, 1], &[x])), x * x);
        assert_eq!(device.tensor(Class::Workspace, &[1, 1], &[x as f32]).to_f64()[0], x);
    }

    #[test]
    fn a_linear_adds_its_bias_to_every_row() {
        for device in [crate::Precision::F32, crate::Precision::Bf16].map(Device::cpu_with) {
            let (x, w) = (random(&device, Key::new(1), 70, 1000), random(&device, Key::new(2), 33, 1000));
            let bias = random(&device, Key::new(3), 1, 33);
            let bias = device.tensor(Class::Workspace, &[33], bias.as_slice::<f32>());
            let mut want = device.tensor(Class::Workspace, &[70, 33], &bias.as_slice::<f32>().repeat(70));
            device.kernels().matmul(&x, false, &w, true, 1.0, &mut want);
            let mut y = device.tensor(Class::Workspace, &[70, 33], &[f32::NAN; 70 * 33]);
            device.kernels().linear(&x, &(&w).into(), Some(&bias), &mut y);
            assert_eq!(y.as_slice::<f32>(), want.as_slice::<f32>());
            device.kernels().matmul(&x, false, &w, true, 0.0, &mut want);
            device.kernels().linear(&x, &(&w).into(), None, &mut y);
            assert_eq!(y.as_slice::<f32>(), want.as_slice::<f32>());
        }
    }

    /// A weight in codes, and its numbers.
    fn coded(device: &Device, format: Format, weight: &Tensor) -> (Coded, Tensor) {
        let mut coded = Coded::empty_like(weight, format);
        device.kernels().quantise(None, weight, &mut coded);
        let mut numbers = weight.empty_like();
        device.kernels().read_rows(&Stored::Coded(&coded).into(), None, &mut numbers);
        (coded, numbers)
    }

    /// Not random alone: infinities and NaNs among the numbers, which become scales that are not finite.
    fn weight(device: &Device, dtype: DType, rows: usize, cols: usize, odd: bool) -> Tensor {
        let mut weight = device.empty(Class::Workspace, dtype, &[rows, cols]);
        let special = [f64::INFINITY, f64::NAN, f64::NEG_INFINITY, 1e-40, 0.0];
        weight.write_f64((0..rows * cols).map(|i| match i % 977 {
            at if odd && at < special.len() => special[at],
            _ => Key::new(8).normal(i as u64),
        }));
        weight
    }

    const CODES: [(Code, usize); 5] =
        [(Code::Int8, 64), (Code::Bf16, 64), (Code::Int4, 40), (Code::Positive8, 64), (Code::Nf4, 64)];

    /// Every kernel that reads a weight in codes does to the bit what it does with the weight's numbers.
    #[test]
    fn weights_in_codes_are_their_numbers() {
        // odd sizes; several blocks; quarters whose borders are within groups; few rows; more columns than are decoded at once for the crates
        let sizes = [[37, 23, 65], [5, 700, 130], [401, 390, 425], [2, 515, 200], [9, 517, 1000], [3, 1, 1]];
        for (dtype, precision) in
            [(DType::F32, Precision::F32), (DType::F32, Precision::Bf16), (DType::F64, Precision::F32)]
        {
            let device = Device::cpu_with(precision);
            let random = |key, rows, cols| {
                let mut x = device.empty(Class::Workspace, dtype, &[rows, cols]);
                x.write_f64((0..(rows * cols) as u64).map(|i| Key::new(key).normal(i)));
                x
            };
            for ((code, group), [n, out, input]) in CODES.into_iter().flat_map(|c| sizes.map(|size| (c, size))) {
                for odd in [false, true] {
                    let (coded, numbers) =
                        coded(&device, Format { code, group }, &weight(&device, dtype, out, input, odd));
                    let (x, dy, bias) = (random(1, n, input), random(2, n, out), random(3, out, 1).reshape(&[out]));
                    let run = |weight: &Stored<'_>| {
                        let nan = |cols| {
                            let mut y = device.empty(Class::Workspace, dtype, &[n, cols]);
                            y.write_f64(std::iter::repeat(f64::NAN));
                            y
                        };
                        let (mut y, mut plain, mut dx, mut rows) =
                            (nan(out), nan(out), nan(input), random(4, 5, input));
                        device.kernels().linear(&x, weight, Some(&bias), &mut y);
                        device.kernels().linear(&x, weight, None, &mut plain);
                        device.kernels().linear_backward(&dy, weight, &mut dx);
                        let ids = [0, out - 1, out / 2, 0, out / 3].map(|i| i as u32);
                        device.kernels().embed(&device.tensor(Class::Workspace, &[5], &ids), weight, true, &mut rows);
                        [y, plain, dx, rows].map(|t| t.to_f64().into_iter().map(f64::to_bits).collect::<Vec<_>>())
                    };
                    let (got, want) = (run(&Stored::Coded(&coded)), run(&Stored::Exact(&numbers)));
                    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                        assert!(got == want, "{dtype:?} {precision:?} {code:?} {n} {out} {input} {odd} {i}");
                    }
                }
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let product = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let device = Device::cpu();
                let (a, b) = (random(&device, Key::new(1), 700, 384), random(&device, Key::new(2), 1536, 384));
                let mut c = device.zeros(Class::Workspace, crate::DType::F32, &[700, 1536]);
                device.kernels().matmul(&a, false, &b, true, 0.0, &mut c);
                let mut dw = device.zeros(Class::Workspace, crate::DType::F32, &[1536, 384]);
                device.kernels().matmul(&c, true, &a, false, 0.0, &mut dw);
                (c.as_slice::<f32>().to_vec(), dw.as_slice::<f32>().to_vec())
            })
        };
        let one = product(1);
        assert!(one == product(2) && one == product(4));
    }
}
