//! The families that there are, a folder each: configuration and net.

pub mod bert;
pub mod t5;

use crate::family::Family;

/// All families. The first is that of a `config.json` without a `model_type`, as those of the first BERTs are.
pub static FAMILIES: &[&Family] = &[&bert::FAMILY, &t5::FAMILY];
