//! What a device is made of: kernels, memory, and waiting for both.

use std::fmt;

use crate::DType;
use crate::error::Result;
use crate::kernels::{Attention, Kernels};
use crate::pool::Buffer;
use crate::profile::Profile;

/// A kind of device. Kernels may run later than they are called, in their order; what is read comes after all that was called before.
///
/// Kernels and reads have no errors of their own. What goes wrong on the device is remembered, makes what follows do nothing or read
/// zeros, and comes out of [`Backend::sync`], again and again.
///
/// A back end of another crate, here one that notes what it is asked to multiply and leaves the rest to the processor's:
///
/// ```
/// # use colrow_tensor::*;
/// # use colrow_tensor::kernels::*;
/// # use colrow_tensor::rng::Key;
/// # use std::sync::atomic::{AtomicUsize, Ordering};
/// #[derive(Debug)]
/// struct Counting {
///     host: Host,
///     products: AtomicUsize,
/// }
///
/// impl Backend for Counting {
///     fn allocate(&self, bytes: usize) -> Option<Buffer> {
///         self.host.allocate(bytes)
///     }
///     fn free(&self, buffer: Buffer) {
///         self.host.free(buffer);
///     }
///     fn upload(&self, from: &[u8], to: &Buffer, offset: usize) {
///         self.host.upload(from, to, offset);
///     }
///     fn download(&self, from: &Buffer, offset: usize, to: &mut [u8]) {
///         self.host.download(from, offset, to);
///     }
///     fn sync(&self) -> Result<()> {
///         self.host.sync()
///     }
///     fn target(&self) -> &dyn Target {
///         self.host.target()
///     }
///     fn profile(&self) -> &Profile {
///         self.host.profile()
///     }
/// }
///
/// impl Kernels for Counting {
///     fn matmul(&self, a: &Tensor, ta: bool, b: &Tensor, tb: bool, beta: f64, c: &mut Tensor) {
///         self.products.fetch_add(1, Ordering::Relaxed);
///         self.host.matmul(a, ta, b, tb, beta, c);
///     }
///     // and so on for every other primitive
///     # fn linear(&self, x: &Tensor, weight: &Stored<'_>, bias: Option<&Tensor>, y: &mut Tensor) { self.host.linear(x, weight, bias, y) }
///     # fn linear_backward(&self, dy: &Tensor, weight: &Stored<'_>, dx: &mut Tensor) { self.host.linear_backward(dy, weight, dx) }
///     # fn zero(&self, x: &mut Tensor) { self.host.zero(x) }
///     # fn copy(&self, x: &Tensor, y: &mut Tensor) { self.host.copy(x, y) }
///     # fn scale(&self, factor: f64, by: Option<&Tensor>, x: &mut Tensor) { self.host.scale(factor, by, x) }
///     # fn add(&self, x: &Tensor, y: &mut Tensor) { self.host.add(x, y) }
///     # fn add_at(&self, x: &Tensor, first: usize, y: &mut Tensor) { self.host.add_at(x, first, y) }
///     # fn add_column_sum(&self, x: &Tensor, y: &mut Tensor) { self.host.add_column_sum(x, y) }
///     # fn row_norms(&self, x: &Tensor, y: &mut Tensor) { self.host.row_norms(x, y) }
///     # fn activate(&self, form: Activation, x: Option<&Rows<'_>>, y: &mut Tensor) { self.host.activate(form, x, y) }
///     # fn activate_backward(&self, form: Activation, x: &Stored<'_>, dy: &mut Tensor) { self.host.activate_backward(form, x, dy) }
///     # fn gated(&self, form: Activation, x: &Rows<'_>, y: &mut Tensor) { self.host.gated(form, x, y) }
///     # fn gated_backward(&self, form: Activation, x: &Stored<'_>, dy: &Tensor, dx: &mut Tensor) { self.host.gated_backward(form, x, dy, dx) }
///     # fn relu(&self, dropout: Option<Dropout>, x: &mut Tensor, bits: Option<&mut Tensor>) { self.host.relu(dropout, x, bits) }
///     # fn relu_backward(&self, dropout: Option<Dropout>, above: &Tensor, dy: &mut Tensor) { self.host.relu_backward(dropout, above, dy) }
///     # fn tanh(&self, x: &mut Tensor) { self.host.tanh(x) }
///     # fn tanh_backward(&self, y: &Tensor, dy: &mut Tensor) { self.host.tanh_backward(y, dy) }
///     # fn dropout(&self, dropout: Dropout, index: Option<&Tensor>, x: &mut Tensor) { self.host.dropout(dropout, index, x) }
///     # fn layer_norm(&self, x: &Tensor, norm: &Norm<'_>, y: &mut Tensor, kept: Option<(StoredMut<'_>, &mut Tensor)>) { self.host.layer_norm(x, norm, y, kept) }
///     # fn layer_norm_backward(&self, z: &Stored<'_>, r: &Tensor, norm: &Norm<'_>, dy: &mut Tensor, dx: bool, sums: [Option<&mut Tensor>; 2]) { self.host.layer_norm_backward(z, r, norm, dy, dx, sums) }
///     # fn scale_rows(&self, norm: &Norm<'_>, z: &Rows<'_>, y: &mut Tensor) { self.host.scale_rows(norm, z, y) }
///     # fn embed(&self, ids: &Tensor, table: &Stored<'_>, add: bool, y: &mut Tensor) { self.host.embed(ids, table, add, y) }
///     # fn embed_backward(&self, ids: &Tensor, dy: &Tensor, dtable: &mut Tensor) { self.host.embed_backward(ids, dy, dtable) }
///     # fn read_rows(&self, x: &Rows<'_>, scale: Option<&Tensor>, y: &mut Tensor) { self.host.read_rows(x, scale, y) }
///     # fn scatter_rows(&self, x: &Tensor, index: &Tensor, y: &mut Tensor) { self.host.scatter_rows(x, index, y) }
///     # fn read_columns(&self, x: &Tensor, first: usize, y: &mut Tensor) { self.host.read_columns(x, first, y) }
///     # fn write_columns(&self, x: &Tensor, first: usize, y: &mut Tensor) { self.host.write_columns(x, first, y) }
///     # fn quantise(&self, key: Option<Key>, x: &Tensor, coded: &mut Coded) { self.host.quantise(key, x, coded) }
///     # fn attention(&self, spec: &Attention, input: &AttentionInput<'_>, index: Option<&Tensor>, scratch: &mut Tensor, out: &mut Tensor, lse: Option<&mut Tensor>) { self.host.attention(spec, input, index, scratch, out, lse) }
///     # fn attention_backward(&self, spec: &Attention, input: &AttentionInput<'_>, lse: Option<&Tensor>, dout: &Tensor, scratch: &mut Tensor, gradients: AttentionGradients<'_>) { self.host.attention_backward(spec, input, lse, dout, scratch, gradients) }
///     # fn rotate(&self, rotation: &Rotation<'_>, x: &mut Tensor) { self.host.rotate(rotation, x) }
///     # fn cross_entropy(&self, logits: &mut Tensor, labels: &Tensor, loss: &mut Tensor, gradient: bool) { self.host.cross_entropy(logits, labels, loss, gradient) }
///     # fn mean_squared_error(&self, x: &Tensor, target: &Tensor, loss: &mut Tensor, dx: &mut Tensor) { self.host.mean_squared_error(x, target, loss, dx) }
///     # fn importance(&self, h: &Tensor, dz: Option<&Tensor>, uniform: f64, p: &mut Tensor) { self.host.importance(h, dz, uniform, p) }
///     # fn sample_rows(&self, estimator: Estimator, key: Key, p: &Tensor, index: &mut Tensor, scale: &mut Tensor) { self.host.sample_rows(estimator, key, p, index, scale) }
///     # fn largest(&self, x: &Tensor, index: &mut Tensor) { self.host.largest(x, index) }
///     # fn accumulate(&self, factor: f64, x: &Tensor, slot: usize, sums: &mut Tensor) { self.host.accumulate(factor, x, slot, sums) }
///     # fn sum_squares(&self, x: &Tensor, slot: usize, sums: &mut Tensor) { self.host.sum_squares(x, slot, sums) }
///     # fn block_squares(&self, x: &Tensor, sums: &mut Tensor) { self.host.block_squares(x, sums) }
///     # fn clip(&self, sums: &Tensor, most: f64, factor: &mut Tensor) { self.host.clip(sums, most, factor) }
///     # fn adamw(&self, step: &AdamW, factor: &Tensor, g: &Tensor, w: StoredMut<'_>, m: &mut Tensor, v: &mut Tensor) { self.host.adamw(step, factor, g, w, m, v) }
///     # fn adamw_8bit(&self, step: &AdamW, factor: &Tensor, g: &Tensor, w: StoredMut<'_>, m: [&mut Tensor; 2], v: [&mut Tensor; 2]) { self.host.adamw_8bit(step, factor, g, w, m, v) }
/// }
///
/// let backend = std::sync::Arc::new(Counting { host: Host::default(), products: AtomicUsize::new(0) });
/// let device = Device::new(backend.clone());
/// let a = device.tensor(Class::Workspace, &[1, 2], &[1.0_f32, 2.0]);
/// let b = device.tensor(Class::Workspace, &[2, 1], &[3.0_f32, 4.0]);
/// let mut c = device.zeros(Class::Workspace, DType::F32, &[1, 1]);
/// device.kernels().matmul(&a, false, &b, false, 0.0, &mut c);
/// assert_eq!((c.to_f64(), backend.products.load(Ordering::Relaxed)), (vec![11.0], 1));
/// ```
pub trait Backend: Kernels + fmt::Debug + Send + Sync {
    /// Memory of at least so many bytes, its content unspecified; none where tensors have shapes and no data.
    fn allocate(&self, bytes: usize) -> Option<Buffer>;
    /// Whether tensors have shapes and no data.
    fn is_meta(&self) -> bool {
        false
    }
    /// Takes memory back, once all kernels that were called before are done with it.
    fn free(&self, buffer: Buffer);
    /// Copies from the host to the bytes from `offset` on.
    fn upload(&self, from: &[u8], to: &Buffer, offset: usize);
    /// Copies the bytes from `offset` on to the host, when all that was called before is done.
    fn download(&self, from: &Buffer, offset: usize, to: &mut [u8]);
    /// Waits until all is done.
    ///
    /// # Errors
    /// The first thing that went wrong since the device was made.
    fn sync(&self) -> Result<()>;
    /// What plans must know of this device.
    fn target(&self) -> &dyn Target;
    /// Where kernels note what they cost.
    fn profile(&self) -> &Profile;
    /// On the shape-only device, the most bytes that one matrix product so far would copy of its operands: memory that the meter does not see.
    fn packing(&self) -> usize {
        0
    }
}

/// What the shape-only device must know of a device to stand in for it.
pub trait Target: fmt::Debug + Send + Sync {
    /// Elements of scratch that attention with heads of `h` columns needs, forward or backward, for sequences of at most `longest` queries and
    /// `kv_longest` keys.
    fn attention_scratch(&self, spec: &Attention, h: usize, longest: usize, kv_longest: usize) -> usize;
    /// Most bytes that a product (m, k)·(k, n) copies of its operands, the second of which may be in codes.
    fn packing(&self, m: usize, n: usize, k: usize, dtype: DType, coded: bool) -> usize;
}
