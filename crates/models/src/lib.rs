//! Model families, one a folder, and the checkpoints they come from.

pub mod apart;
pub mod atomic;
pub mod checkpoint;
pub mod config;
pub mod decode;
pub mod families;
pub mod family;
pub mod fields;
pub mod files;
pub mod foreign;
pub mod layers;
pub mod lora;
pub mod model;
pub mod net;
pub mod registry;
pub mod tokens;
