//! Numbers on devices: tensors, kernels, the memory meter. Knows nothing of gradients.

mod cpu;
mod device;
mod dtype;
mod error;
pub mod kernels;
mod meta;
mod meter;
mod pool;
pub mod rng;
mod tensor;

pub use device::{Device, Precision};
pub use dtype::{DType, Element, Float};
pub use error::{Error, Kind, Result};
pub use kernels::{AdamW, Attention, AttentionGradients, AttentionInput, Buckets, Dropout, Estimator, Gelu, Kernels};
pub use meter::{Bytes, Class, Meter};
pub use tensor::Tensor;
