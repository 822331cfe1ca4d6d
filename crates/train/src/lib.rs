//! The training loop and what it needs: recipes, data, objectives, steps, metrics, checkpoints, the plan.
//!
//! - A [`Recipe`](recipe::Recipe) says what a run does. [`prepare`] makes a [`Job`](job::Job) of it and of the files that it names, [`trainer`]
//!   runs that, and [`plan`] says what it will need.
//! - [`data`] reads files as [`Examples`](data::Examples), which an [`Objective`](objective::Objective) turns into tokens and targets; it also
//!   gives the loss and measures predictions.
//! - An [`Engine`](step::Engine) runs steps: shards give gradients ([`Gradient`](step::Gradient)), those are added up, and weights follow the sum
//!   ([`Update`](step::Update)). A plan is such a step on a device without data.
//!
//! ```
//! use std::path::Path;
//!
//! use colrow_models::config::Config;
//! use colrow_models::model::Model;
//! use colrow_tensor::{DType, Device};
//! use colrow_train::data::Lengths;
//! use colrow_train::recipe::Optim;
//! use colrow_train::step::{Engine, Hyperparameters};
//!
//! let config = r#"{"model_type": "bert", "vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
//!     "intermediate_size": 8, "max_position_embeddings": 8, "num_labels": 3}"#;
//! let config = Config::from_json(config.as_bytes(), Path::new("config.json"))?;
//! let step = |device: &Device| {
//!     let mut model = Model::new(config.clone(), device, DType::F32);
//!     model.init(1);
//!     let mut engine = Engine::new(model, Hyperparameters::from(&Optim::default()));
//!     let batch = engine.objective.batch_of_lengths(&Lengths { sources: vec![3, 5], targets: None });
//!     engine.step(&[batch], 1e-3, 1, false)
//! };
//! let run = step(&Device::cpu())?;
//! let plan = step(&Device::meta(rayon::current_num_threads()))?;
//! assert!((run.loss - 3_f64.ln()).abs() < 0.1);
//! assert_eq!((run.kept_bytes, run.peak), (plan.kept_bytes, plan.peak));
//! assert_eq!(run.kept_bytes, run.ledger.total());
//! # Ok::<(), colrow_tensor::Error>(())
//! ```

pub mod chat;
pub mod checkpoint;
pub mod comm;
pub mod data;
mod digests;
pub mod draft;
pub mod evaluate;
pub mod fit;
pub mod folder;
pub mod inspect;
pub mod job;
pub mod keeping;
pub mod machine;
pub mod metrics;
pub mod objective;
pub mod observer;
pub mod odd;
pub mod plan;
pub mod prepare;
pub mod preview;
pub mod ratios;
pub mod recipe;
mod resume;
pub mod schedule;
pub mod score;
pub mod step;
pub mod tasks;
mod tensorboard;
pub mod trained;
pub mod trainer;
mod unknown;
mod unused;
pub mod usage;
