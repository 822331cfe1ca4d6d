//! Numbers on devices: tensors, kernels, the memory meter. Knows nothing of gradients.

mod error;

pub use error::{Error, Kind, Result};
