//! Devices: where tensors live and kernels run.

use std::sync::Arc;

use crate::cpu::Cpu;
use crate::kernels::Kernels;
use crate::meta::Meta;
use crate::meter::{Class, Meter};
use crate::pool::{Buffer, Pool};
use crate::profile::Profile;
use crate::tensor::Tensor;
use crate::{DType, Element};

#[derive(Debug)]
enum Backend {
    Cpu(Cpu, Pool),
    Meta(Meta),
}

#[derive(Debug)]
struct Inner {
    meter: Meter,
    profile: Arc<Profile>,
    backend: Backend,
}

crate::named! {
    /// What a device's matrix products do with f32 operands; f64 stays f64.
    #[derive(Default)]
    Precision {
        /// Multiply them as they are.
        #[default]
        F32 = "f32",
        /// Round them to bf16 (8 bits of precision, f32's range) and sum the products in f32. Operands and results remain f32 in
        /// memory. Twice as fast on processors with AVX512-BF16; elsewhere the same up to the order of sums, and slower than f32.
        Bf16 = "bf16",
    }
}

/// A device with its own meter. Clones are the same device.
#[derive(Clone, Debug)]
pub struct Device(Arc<Inner>);

impl Device {
    /// This machine's processor, with the threads of the current rayon pool and products in f32.
    pub fn cpu() -> Self {
        Self::cpu_with(Precision::F32)
    }

    /// As [`Device::cpu`], with products of this precision.
    pub fn cpu_with(precision: Precision) -> Self {
        let profile = Arc::new(Profile::default());
        let cpu = Cpu::new(rayon::current_num_threads(), precision, profile.clone());
        Self::new(Backend::Cpu(cpu, Pool::default()), profile)
    }

    /// The shape-only device: tensors without data, for plans. It asks for the same scratch as a processor with `threads`
    /// threads.
    pub fn meta(threads: usize) -> Self {
        Self::new(Backend::Meta(Meta::new(threads)), Arc::default())
    }

    fn new(backend: Backend, profile: Arc<Profile>) -> Self {
        Self(Arc::new(Inner { meter: Meter::default(), profile, backend }))
    }

    /// Whether tensors here have shapes and no data.
    pub fn is_meta(&self) -> bool {
        matches!(self.0.backend, Backend::Meta(_))
    }

    /// The device's byte counts.
    pub fn meter(&self) -> &Meter {
        &self.0.meter
    }

    /// What the device's kernels cost; nothing on the shape-only device.
    pub fn profile(&self) -> &Profile {
        &self.0.profile
    }

    /// The device's primitives.
    pub fn kernels(&self) -> &dyn Kernels {
        match &self.0.backend {
            Backend::Cpu(cpu, _) => cpu,
            Backend::Meta(meta) => meta,
        }
    }

    /// On the shape-only device, the most bytes that one matrix product so far would copy of an operand: memory that the meter does not
    /// see. 0 elsewhere.
    pub fn packing(&self) -> usize {
        match &self.0.backend {
            Backend::Cpu(..) => 0,
            Backend::Meta(meta) => meta.packing(),
        }
    }

    pub(crate) fn take(&self, bytes: usize) -> Option<Buffer> {
        match &self.0.backend {
            Backend::Cpu(_, pool) => Some(pool.take(bytes)),
            Backend::Meta(_) => None,
        }
    }

    pub(crate) fn give(&self, buffer: Buffer) {
        if let Backend::Cpu(_, pool) = &self.0.backend {
            pool.give(buffer);
        }
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
}
