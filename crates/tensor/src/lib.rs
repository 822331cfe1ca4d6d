//! Numbers on devices: tensors, kernels, the memory meter. Knows nothing of gradients.

mod backend;
mod codes;
mod cpu;
mod device;
mod dtype;
mod error;
pub mod kernels;
mod map;
mod memory;
mod meta;
mod meter;
mod names;
mod pool;
pub mod printable;
mod profile;
pub mod rng;
mod tensor;

pub use backend::{Backend, Target};
pub use codes::{Code, Coded, Format, Rows, Store, Stored};
pub use cpu::instructions::{check_environment, instructions};
pub use cpu::{Host, HostTarget};
pub use device::{Device, HostBytes, Precision};
pub use dtype::{DType, Element, Float};
pub use error::{Error, Kind, Result};
pub use kernels::{
    AdamW, Attention, AttentionGradients, AttentionInput, Buckets, Dropout, Estimator, Gelu, Kernels, MOMENT_BLOCK,
    Norm,
};
pub use memory::{Memory, PAGE, Region};
pub use meter::{Bytes, Class, Meter};
pub use names::Named;
pub use pool::{Buffer, Pool};
pub use profile::{Cost, Profile};
pub use tensor::Tensor;
