//! Model families, one a folder, and the checkpoints they come from.
//!
//! - A [`Family`](family::Family) says all that is peculiar to one: how it reads `config.json` into an [`Architecture`](family::Architecture), how
//!   its checkpoints name tensors, what its adapters adapt. [`FAMILIES`](families::FAMILIES) is the list.
//! - A [`Net`](net::Net) is a model's layers, made of [`layers`]: it runs on a tape and names its [`Site`](net::Site)s. Its parameters are in a
//!   [`Registry`](registry::Registry), tied to the keys of the checkpoint.
//! - A [`Model`](model::Model) is a [`Config`](config::Config), a registry and a net. It reads [`Tokens`](tokens::Tokens), gives logits, the loss
//!   of texts, and answers.
//! - [`checkpoint`] reads and writes folders of Hugging Face's layout, adapters in PEFT's, and fetches from a hub; [`lora`] adapts a model.
//!
//! ```
//! use std::path::Path;
//!
//! use colrow_autograd::{Mode, Tape};
//! use colrow_models::config::Config;
//! use colrow_models::model::Model;
//! use colrow_models::tokens::Tokens;
//! use colrow_tensor::{DType, Device};
//!
//! // of a folder: Config::open, then checkpoint::load::model
//! let config = r#"{"model_type": "bert", "vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
//!     "intermediate_size": 8, "max_position_embeddings": 8, "num_labels": 3}"#;
//! let config = Config::from_json(config.as_bytes(), Path::new("config.json"))?;
//! let mut model = Model::new(config, &Device::cpu(), DType::F32);
//! model.init(1);
//! let tokens = Tokens { types: vec![0; 5], ..Tokens::of([&[1, 5, 2][..], &[1, 7]]) };
//! let mut tape = Tape::new(&model.registry.params, Mode::Inference);
//! assert_eq!(model.logits(&mut tape, &tokens)?.value.shape(), [2, 3]);
//! # Ok::<(), colrow_tensor::Error>(())
//! ```

pub mod apart;
pub mod atomic;
pub mod checkpoint;
pub mod choose;
pub mod config;
pub mod decode;
pub mod families;
pub mod family;
pub mod fields;
pub mod files;
pub mod foreign;
pub mod generation;
pub mod layers;
pub mod lora;
pub mod model;
pub mod net;
pub mod registry;
pub mod tokens;
