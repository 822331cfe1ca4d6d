//! The shape-only device: every primitive does nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::backend::{Backend, Target};
use crate::codes::{Coded, Rows, Stored, StoredMut};
use crate::error::Result;
use crate::kernels::{
    Activation, AdamW, Attention, AttentionGradients, AttentionInput, Dropout, Estimator, Kernels, Norm, Rotation,
};
use crate::pool::Buffer;
use crate::profile::Profile;
use crate::rng::Key;
use crate::tensor::Tensor;

#[derive(Debug)]
pub(crate) struct Meta {
    target: Arc<dyn Target>,
    profile: Profile,
    packing: AtomicUsize,
}

impl Meta {
    pub(crate) fn new(target: Arc<dyn Target>) -> Self {
        Self { target, profile: Profile::default(), packing: AtomicUsize::new(0) }
    }

    /// Notes a product c = a·b with so many terms a sum, b in codes or not.
    fn product(&self, c: &Tensor, k: usize, coded: bool) {
        let bytes = self.target.packing(c.rows(), c.cols(), k, c.dtype(), coded);
        self.packing.fetch_max(bytes, Ordering::Relaxed);
    }
}

impl Backend for Meta {
    fn allocate(&self, _: usize) -> Option<Buffer> {
        None
    }

    fn is_meta(&self) -> bool {
        true
    }

    fn free(&self, _: Buffer) {}

    fn upload(&self, _: &[u8], _: &Buffer, _: usize) {}

    fn download(&self, _: &Buffer, _: usize, _: &mut [u8]) {}

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn target(&self) -> &dyn Target {
        &*self.target
    }

    fn profile(&self) -> &Profile {
        &self.profile
    }

    fn packing(&self) -> usize {
        self.packing.load(Ordering::Relaxed)
    }
}

type In<'a> = &'a Tensor;
type Out<'a> = &'a mut Tensor;

#[rustfmt::skip]
impl Kernels for Meta {
    fn matmul(&self, a: In, ta: bool, _: In, _: bool, _: f64, c: Out) {
        self.product(c, if ta { a.rows() } else { a.cols() }, false);
    }
    fn linear(&self, x: In, weight: &Stored<'_>, _: Option<In>, y: Out) {
        self.product(y, x.cols(), matches!(weight, Stored::Coded(_)));
    }
    fn linear_backward(&self, dy: In, weight: &Stored<'_>, dx: Out) {
        self.product(dx, dy.cols(), matches!(weight, Stored::Coded(_)));
    }
    fn zero(&self, _: Out) {}
    fn copy(&self, _: In, _: Out) {}
    fn scale(&self, _: f64, _: Option<In>, _: Out) {}
    fn add(&self, _: In, _: Out) {}
    fn add_at(&self, _: In, _: usize, _: Out) {}
    fn add_column_sum(&self, _: In, _: Out) {}
    fn row_norms(&self, _: In, _: Out) {}
    fn activate(&self, _: Activation, _: Option<&Rows<'_>>, _: Out) {}
    fn activate_backward(&self, _: Activation, _: &Stored<'_>, _: Out) {}
    fn gated(&self, _: Activation, _: &Rows<'_>, _: Out) {}
    fn gated_backward(&self, _: Activation, _: &Stored<'_>, _: In, _: Out) {}
    fn relu(&self, _: Option<Dropout>, _: Out, _: Option<Out>) {}
    fn relu_backward(&self, _: Option<Dropout>, _: In, _: Out) {}
    fn tanh(&self, _: Out) {}
    fn tanh_backward(&self, _: In, _: Out) {}
    fn dropout(&self, _: Dropout, _: Option<In>, _: Out) {}
    fn layer_norm(&self, _: In, _: &Norm<'_>, _: Out, _: Option<(StoredMut<'_>, Out)>) {}
    fn layer_norm_backward(&self, _: &Stored<'_>, _: In, _: &Norm<'_>, _: Out, _: bool, _: [Option<Out>; 2]) {}
    fn scale_rows(&self, _: &Norm<'_>, _: &Rows<'_>, _: Out) {}
    fn embed(&self, _: In, _: &Stored<'_>, _: bool, _: Out) {}
    fn embed_backward(&self, _: In, _: In, _: Out) {}
    fn read_rows(&self, _: &Rows<'_>, _: Option<In>, _: Out) {}
    fn scatter_rows(&self, _: In, _: In, _: Out) {}
    fn read_columns(&self, _: In, _: usize, _: Out) {}
    fn write_columns(&self, _: In, _: usize, _: Out) {}
    fn quantise(&self, _: Option<Key>, _: In, _: &mut Coded) {}
    fn attention(&self, _: &Attention, _: &AttentionInput<'_>, _: Option<In>, _: Out, _: Out, _: Option<Out>) {}
    fn attention_backward(&self, _: &Attention, _: &AttentionInput<'_>, _: Option<In>, _: In, _: Out, _: AttentionGradients<'_>) {}
    fn rotate(&self, _: &Rotation<'_>, _: Out) {}
    fn cross_entropy(&self, _: Out, _: In, _: Out, _: bool) {}
    fn mean_squared_error(&self, _: In, _: In, _: Out, _: Out) {}
    fn importance(&self, _: In, _: Option<In>, _: f64, _: Out) {}
    fn sample_rows(&self, _: Estimator, _: Key, _: In, _: Out, _: Out) {}
    fn largest(&self, _: In, _: Out) {}
    fn accumulate(&self, _: f64, _: In, _: usize, _: Out) {}
    fn sum_squares(&self, _: In, _: usize, _: Out) {}
    fn block_squares(&self, _: In, _: Out) {}
    fn clip(&self, _: In, _: f64, _: Out) {}
    fn adamw(&self, _: &AdamW, _: In, _: In, _: StoredMut<'_>, _: Out, _: Out) {}
    fn adamw_8bit(&self, _: &AdamW, _: In, _: In, _: StoredMut<'_>, _: [Out; 2], _: [Out; 2]) {}
}
