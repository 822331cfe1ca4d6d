//! A step: shards give gradients ([`Gradient`]), those are added up ([`Join`]), and weights follow the sum ([`Update`]).

pub mod adamw;
pub mod backprop;
pub mod engine;
pub mod gradient;
mod join;

pub use adamw::{Hyperparameters, Moments, Optimizer, States, When};
pub use backprop::Backprop;
pub use engine::{Engine, StepStats};
pub use gradient::{Gradient, Shard, ShardStats, Sink, Update};
pub use join::Join;
