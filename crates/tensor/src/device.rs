//! Devices: where tensors live and kernels run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::{Backend, Target};
use crate::error::Result;
use crate::kernels::Kernels;
use crate::meter::{Class, Meter};
use crate::profile::Profile;
use crate::tensor::Tensor;
use crate::{DType, Element};

#[derive(Debug)]
struct Inner {
    meter: Meter,
    reads: AtomicU64,
    is_meta: bool,
    backend: Arc<dyn Backend>,
}

/// A device with its own meter. Clones are the same device.
#[derive(Clone, Debug)]
pub struct Device(Arc<Inner>);

impl Device {
    /// A device of any kind.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        let is_meta = backend.is_meta();
        Self(Arc::new(Inner { meter: Meter::default(), reads: AtomicU64::new(0), is_meta, backend }))
    }

    /// Whether tensors here have shapes and no data.
    pub fn is_meta(&self) -> bool {
        self.0.is_meta
    }

    /// The device's byte counts.
    pub fn meter(&self) -> &Meter {
        &self.0.meter
    }

    /// What the device's kernels cost; nothing on the shape-only device.
    pub fn profile(&self) -> &Profile {
        self.0.backend.profile()
    }

    /// The device's primitives.
    pub fn kernels(&self) -> &dyn Kernels {
        &*self.0.backend
    }

    /// What plans must know of the device.
    pub fn target(&self) -> &dyn Target {
        self.0.backend.target()
    }

    /// See [`Backend::packing`].
    pub fn packing(&self) -> usize {
        self.0.backend.packing()
    }

    /// Waits until all that was called is done.
    ///
    /// # Errors
    /// The first thing that went wrong on the device since it was made.
    pub fn sync(&self) -> Result<()> {
        self.0.backend.sync()
    }

    /// How often the host has waited for numbers of this device.
    pub fn reads(&self) -> u64 {
        self.0.reads.load(Ordering::Relaxed)
    }

    /// Copies several tensors of this device to the host at once, widened: one wait for all. Empty on the shape-only device. After an error, which
    /// [`Device::sync`] tells, zeros.
    pub fn read(&self, tensors: &[&Tensor]) -> Vec<Vec<f64>> {
        self.count_read();
        tensors.iter().map(|t| t.widened()).collect()
    }

    pub(crate) fn count_read(&self) {
        self.0.reads.fetch_add(u64::from(!self.is_meta()), Ordering::Relaxed);
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.0.backend
    }

    /// A tensor whose content is unspecified: write it whole before reading.
    pub fn empty(&self, class: Class, dtype: DType, shape: &[usize]) -> Tensor {
        Tensor::new(self, class, dtype, shape)
    }

    /// A tensor of zeros.
    pub fn zeros(&self, class: Class, dtype: DType, shape: &[usize]) -> Tensor {
        let mut t = self.empty(class, dtype, shape);
        self.kernels().zero(&mut t);
        t
    }

    /// A tensor with `data`, row-major; its length must be the shape's product.
    pub fn tensor<T: Element>(&self, class: Class, shape: &[usize], data: &[T]) -> Tensor {
        let mut t = self.empty(class, T::DTYPE, shape);
        t.write(data);
        t
    }

    /// Bytes of zeros on the host that count as this device's in `class`; on the shape-only device counted alone.
    pub fn host_bytes(&self, class: Class, len: usize) -> HostBytes {
        self.meter().add(class, len);
        HostBytes { bytes: vec![0; if self.is_meta() { 0 } else { len }], len, class, device: self.clone() }
    }
}

/// Bytes on the host that the meter counts.
#[derive(Debug)]
pub struct HostBytes {
    bytes: Vec<u8>,
    len: usize,
    class: Class,
    device: Device,
}

impl std::ops::Deref for HostBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::ops::DerefMut for HostBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for HostBytes {
    fn drop(&mut self) {
        self.device.meter().sub(self.class, self.len);
    }
}
