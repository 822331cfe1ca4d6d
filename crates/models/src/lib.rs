//! Model families, one a file, and the checkpoints they come from.

pub mod apart;
pub mod atomic;
pub mod bert;
pub mod config;
pub mod elsewhere;
pub mod family;
pub mod files;
pub mod foreign;
pub mod header;
pub mod hub;
pub mod layers;
pub mod load;
pub mod lora;
pub mod matching;
pub mod model;
pub mod save;
pub mod t5;
pub mod tokens;
pub mod weights;
