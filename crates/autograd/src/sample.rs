//! Drawing rows for `dW = Σ_i dz_iᵀ x_i`; docs/wta-crs.md has the estimators' derivations.

use colrow_tensor::rng::Key;
use colrow_tensor::{Class, DType, Estimator, Tensor};

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
    let (device, kernels) = (h.device(), h.device().kernels());
    let mut p = h.empty_like();
    kernels.importance(h, dz, f64::from(how.uniform), &mut p);
    let mut index = device.empty(Class::Workspace, DType::U32, &[how.rows]);
    let mut scale = device.empty(Class::Workspace, h.dtype(), &[how.rows]);
    kernels.sample_rows(how.estimator, how.key, &p, &mut index, &mut scale);
    RowSample { index, scale }
}

/// Euclidean norms of the rows of a matrix.
pub(crate) fn row_norms(x: &Tensor) -> Tensor {
    let mut norms = x.device().empty(Class::Workspace, x.dtype(), &[x.rows()]);
    x.device().kernels().row_norms(x, &mut norms);
    norms
}

/// The drawn rows of a matrix, each times its `scale` if given.
pub(crate) fn gather(x: &Tensor, index: &Tensor, scale: Option<&Tensor>) -> Tensor {
    let mut rows = x.device().empty(Class::Workspace, x.dtype(), &[index.len(), x.cols()]);
    x.device().kernels().gather_rows(x, index, scale, &mut rows);
    rows
}

/// The sampled estimate of `dzᵀ·x` (out, in) with true norms; x (n, in), dz (n, out).
pub fn estimate_product(how: &Draw, x: &Tensor, dz: &Tensor) -> Tensor {
    let sample = draw(how, &row_norms(x), Some(&row_norms(dz)));
    let rows = gather(x, &sample.index, None);
    let weighted = gather(dz, &sample.index, Some(&sample.scale));
    let mut dw = x.device().empty(Class::Workspace, x.dtype(), &[dz.cols(), x.cols()]);
    x.device().kernels().matmul(&weighted, true, &rows, false, 0.0, &mut dw);
    dw
}
