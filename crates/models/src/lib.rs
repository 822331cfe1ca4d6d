//! Model families, one a folder, and the checkpoints they come from.

pub mod apart;
pub mod atomic;
pub mod config;
pub mod decode;
pub mod elsewhere;
pub mod families;
pub mod family;
pub mod fields;
pub mod files;
pub mod foreign;
pub mod header;
pub mod hub;
pub mod layers;
pub mod load;
pub mod lora;
pub mod matching;
pub mod model;
pub mod net;
pub mod registry;
pub mod save;
pub mod tokens;
pub mod weights;
