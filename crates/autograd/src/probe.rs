//! A look at what linears multiply, for statistics of real rows.

use colrow_tensor::Tensor;

/// Sees the operands of weight gradients while a backward pass runs.
pub trait Probe: std::fmt::Debug + Send + Sync {
    /// The linear at `site` has `dW = dzᵀ·x`; x (n, in), dz (n, out). All rows where the site keeps its input whole, the drawn ones elsewhere.
    fn linear(&self, site: &str, x: &Tensor, dz: &Tensor);
}
