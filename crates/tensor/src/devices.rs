//! The devices that there are.

use std::sync::Arc;

use crate::backend::Target;
use crate::cpu::{Host, HostTarget};
use crate::device::Device;
use crate::meta::Meta;
use crate::precision::Precision;

impl Device {
    /// This machine's processor, with the threads of the current rayon pool and products in f32.
    pub fn cpu() -> Self {
        Self::cpu_with(Precision::F32)
    }

    /// As [`Device::cpu`], with products of this precision.
    pub fn cpu_with(precision: Precision) -> Self {
        Self::new(Arc::new(Host::new(rayon::current_num_threads(), precision)))
    }

    /// The shape-only device in the place of a processor with `threads` threads: tensors without data, for plans.
    pub fn meta(threads: usize) -> Self {
        Self::in_place_of(Arc::new(HostTarget { threads }))
    }

    /// The shape-only device: it asks for the same memory as what it stands in for.
    pub fn in_place_of(target: Arc<dyn Target>) -> Self {
        Self::new(Arc::new(Meta::new(target)))
    }
}
