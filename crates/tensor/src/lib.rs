//! Numbers on devices: tensors, kernels, the memory meter. Knows nothing of gradients.
//!
//! - A [`Device`] stands for a [`Backend`]: [`Kernels`], memory, and waiting for both. [`Host`] is the processor's; a further one implements these
//!   traits.
//! - A [`Tensor`] is shape, type and storage on a device; the host sees its numbers by copies. [`Stored`] is a matrix as kernels read it: its
//!   numbers, or [`Coded`] in fewer bits.
//! - The [`Meter`] counts every byte by what it is for ([`Class`]). The shape-only device ([`Device::meta`]) has a meter and no data: what runs
//!   there is a plan of what it needs on a [`Target`].
//! - [`rng::Key`] gives random numbers by seed, name and place, in any order and on any device the same.
//! - [`Error`] says what is wrong, where, and what to do.
//!
//! ```
//! use colrow_tensor::{Class, DType, Device};
//!
//! let product = |device: &Device| {
//!     let a = device.tensor(Class::Workspace, &[2, 3], &[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
//!     let b = device.tensor(Class::Workspace, &[3, 1], &[1.0_f32, 0.0, -1.0]);
//!     let mut c = device.empty(Class::Workspace, DType::F32, &[2, 1]);
//!     device.kernels().matmul(&a, false, &b, false, 0.0, &mut c);
//!     (c.to_f64(), device.meter().peak().total())
//! };
//! assert_eq!(product(&Device::cpu()), (vec![-2.0, -2.0], 44));
//! // the same on paper
//! assert_eq!(product(&Device::meta(1)), (vec![], 44));
//! ```

mod backend;
mod certain;
mod codes;
mod cpu;
mod device;
mod devices;
mod dtype;
mod error;
pub mod kernels;
mod map;
mod memory;
mod meta;
mod meter;
mod names;
mod pool;
mod precision;
pub mod printable;
mod profile;
pub mod rng;
mod tensor;
mod weight;

pub use backend::{Backend, Target};
pub use certain::certain_rows;
pub use codes::{Code, Coded, Format, Nested, Rows, Stored, StoredMut};
pub use cpu::instructions::check_environment;
pub use cpu::product::gemm::instructions;
pub use cpu::{Host, HostTarget};
pub use device::{Device, HostBytes};
pub use dtype::{DType, Element, Float};
pub use error::{Error, Kind, Result};
pub use kernels::{
    Activation, AdamW, Attention, AttentionGradients, AttentionInput, Buckets, Dropout, Estimator, Kernels,
    MOMENT_BLOCK, Norm, Rotation, UPDATE_BLOCK,
};
pub use memory::{Memory, PAGE, Region};
pub use meter::{Bytes, Class, Meter};
pub use names::Named;
pub use pool::{Buffer, Pool};
pub use precision::Precision;
pub use profile::{Cost, Profile};
pub use tensor::Tensor;
pub use weight::{BaseWeights, TrainedWeights, Weight, Writer};
