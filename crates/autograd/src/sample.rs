//! Drawing rows for `dW = Σ_i dz_iᵀ x_i`; docs/wta-crs.md has the estimators' derivations.

use std::ops::Range;

use colrow_tensor::rng::Key;
use colrow_tensor::{Class, DType, Device, Estimator, Rows, Tensor};

/// Which rows were drawn.
#[derive(Clone, Debug)]
pub struct RowSample {
    /// Row numbers (k), ascending; places left over by repeated draws hold 0.
    pub index: Tensor,
    /// Their weights (k); 0 in places left over.
    pub scale: Tensor,
}

/// How to draw: an estimator, the number of rows, the uniform share of the probabilities, and the stream.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Who is drawn, with what weight.
    pub estimator: Estimator,
    /// Number of rows k ≤ n.
    pub rows: usize,
    /// Uniform share λ of the probabilities.
    pub uniform: f32,
    /// Stream of random numbers.
    pub key: Key,
}

/// Draws rows by the norms `h` of the inputs and `dz` of the output gradients (n each; without `dz`, those count as equal).
pub fn draw(how: &Draw, h: &Tensor, dz: Option<&Tensor>) -> RowSample {
    draw_by(how, &probabilities(how, h, dz))
}

/// The probabilities (n) of rows by their norms, as in [`draw`].
pub(crate) fn probabilities(how: &Draw, h: &Tensor, dz: Option<&Tensor>) -> Tensor {
    let mut p = h.empty_like();
    h.device().kernels().importance(h, dz, f64::from(how.uniform), &mut p);
    p
}

/// Draws rows by their probabilities p (n).
pub(crate) fn draw_by(how: &Draw, p: &Tensor) -> RowSample {
    let device = p.device();
    let mut index = device.empty(Class::Workspace, DType::U32, &[how.rows]);
    let mut scale = device.empty(Class::Workspace, p.dtype(), &[how.rows]);
    device.kernels().sample_rows(how.estimator, how.key, p, &mut index, &mut scale);
    RowSample { index, scale }
}

/// Euclidean norms of the rows of a matrix.
pub fn row_norms(x: &Tensor) -> Tensor {
    let mut norms = x.device().empty(Class::Workspace, x.dtype(), &[x.rows()]);
    x.device().kernels().row_norms(x, &mut norms);
    norms
}

/// The numbers of rows that stand together.
pub(crate) fn numbers(device: &Device, rows: Range<usize>) -> Tensor {
    let rows: Vec<u32> = rows.map(|row| row as u32).collect();
    device.tensor(Class::Workspace, &[rows.len()], &rows)
}

/// The drawn rows of a matrix, each times its `scale` if given.
pub(crate) fn gather(x: &Tensor, index: &Tensor, scale: Option<&Tensor>) -> Tensor {
    let mut rows = x.device().empty(Class::Workspace, x.dtype(), &[index.len(), x.cols()]);
    x.device().kernels().read_rows(&Rows { of: x.into(), index: Some(index) }, scale, &mut rows);
    rows
}

/// The sampled estimate of `dzᵀ·x` (out, in) with true norms; x (n, in), dz (n, out).
pub fn estimate_product(how: &Draw, x: &Tensor, dz: &Tensor) -> Tensor {
    estimate_by(how, x, &row_norms(x), dz, Some(&row_norms(dz)))
}

/// The sampled estimate of `dzᵀ·x` (out, in), drawn by the norms `h` of x's rows and `norms` of dz's, which may be estimates.
pub fn estimate_by(how: &Draw, x: &Tensor, h: &Tensor, dz: &Tensor, norms: Option<&Tensor>) -> Tensor {
    let sample = draw(how, h, norms);
    let rows = gather(x, &sample.index, None);
    let weighted = gather(dz, &sample.index, Some(&sample.scale));
    let mut dw = x.device().empty(Class::Workspace, x.dtype(), &[dz.cols(), x.cols()]);
    x.device().kernels().matmul(&weighted, true, &rows, false, 0.0, &mut dw);
    dw
}

#[cfg(test)]
mod tests {
    use colrow_tensor::Device;

    use super::*;
    use crate::testing::{check_unbiased, random};

    /// Σ of the weights estimates n: the product of columns of ones, whatever norms the rows were drawn by.
    #[test]
    fn weights_sum_to_the_number_of_rows_on_average() {
        let (device, n) = (Device::cpu(), 24);
        let norms = |seed: u64| {
            let mut t = random(&device, DType::F64, Key::new(seed), &[n]);
            let positive: Vec<f64> = t.to_f64().into_iter().map(|x| (1.5 * x).exp()).collect();
            t.write_f64(positive);
            t
        };
        let (h, dz) = (norms(1), norms(2));
        for estimator in [Estimator::Crs, Estimator::Wta, Estimator::Pps] {
            for rows in [1, 8, n - 1, n] {
                for (dz, uniform) in [(Some(&dz), 0.1), (Some(&dz), 0.0), (None, 0.1)] {
                    let sum = |t: u64| {
                        let sample = draw(&Draw { estimator, rows, uniform, key: Key::new(3).child(t) }, &h, dz);
                        Ok(vec![sample.scale.to_f64().iter().sum()])
                    };
                    check_unbiased(&[n as f64], 10_000, sum)
                        .unwrap_or_else(|e| panic!("{estimator:?} {rows} {uniform}: {e}"));
                }
            }
        }
        let how = Draw { estimator: Estimator::TopK, rows: 8, uniform: 0.0, key: Key::new(3) };
        assert_eq!(draw(&how, &h, Some(&dz)).scale.to_f64(), [1.0; 8]);
    }

    #[test]
    fn estimate_of_a_product_is_unbiased_with_true_norms() {
        let device = Device::cpu();
        let (x, dz) =
            (random(&device, DType::F64, Key::new(4), &[20, 3]), random(&device, DType::F64, Key::new(5), &[20, 2]));
        let how = |estimator, rows, t| Draw { estimator, rows, uniform: 0.0, key: Key::new(6).child(t) };
        let mut exact = device.empty(Class::Workspace, DType::F64, &[2, 3]);
        device.kernels().matmul(&dz, true, &x, false, 0.0, &mut exact);
        let exact = exact.to_f64();
        for estimator in [Estimator::Crs, Estimator::Wta, Estimator::Pps] {
            check_unbiased(&exact, 10_000, |t| Ok(estimate_product(&how(estimator, 6, t), &x, &dz).to_f64())).unwrap();
        }
        let topk = |t| Ok(estimate_product(&how(Estimator::TopK, 6, t), &x, &dz).to_f64());
        assert!(check_unbiased(&exact, 10, topk).is_err());
    }
}
