//! The files of models: reading and writing checkpoints and adapters, and finding them on the hub.

pub mod adapter;
pub mod elsewhere;
pub mod gguf;
pub mod header;
pub mod hub;
pub mod index;
pub mod load;
pub mod matching;
pub mod names;
pub mod safetensors;
pub mod save;
pub mod weights;
