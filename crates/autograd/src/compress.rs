//! A matrix in fewer bits: int8 in groups of columns, with stochastic rounding, so that the copy is an unbiased estimate.

use colrow_tensor::kernels::QUANT_GROUP;
use colrow_tensor::rng::Key;
use colrow_tensor::{Class, DType, Tensor};

/// A matrix (n, d) in int8: n·d bytes of codes and a scale for every 64 columns of a row.
#[derive(Clone, Debug)]
pub struct Quantised {
    /// Codes (n, d), 128 for 0.
    pub codes: Tensor,
    /// Step sizes (n, ⌈d/64⌉).
    pub scale: Tensor,
}

impl Quantised {
    /// Rounds `x` with random numbers of the stream `key`.
    pub fn new(x: &Tensor, key: Key) -> Self {
        let device = x.device();
        let mut codes = device.empty(Class::Workspace, DType::U8, x.shape());
        let mut scale = device.empty(Class::Workspace, x.dtype(), &[x.rows(), x.cols().div_ceil(QUANT_GROUP)]);
        device.kernels().quantise(key, x, &mut codes, &mut scale);
        Self { codes, scale }
    }

    /// The matrix again, in the type that it had.
    pub fn whole(&self) -> Tensor {
        let mut x = self.codes.device().empty(Class::Workspace, self.scale.dtype(), self.codes.shape());
        self.codes.device().kernels().dequantise(&self.codes, &self.scale, &mut x);
        x
    }
}
