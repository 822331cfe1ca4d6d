//! What files are called in the folders of models, adapters and runs.

/// The model's configuration.
pub const CONFIG_FILE: &str = "config.json";
/// The tokenizer, whole.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// The file with all tensors of a model that is not sharded.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// The file that says which shard holds which tensor.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The file with an adapter's settings; its presence makes a folder an adapter's.
pub const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";
/// The file with an adapter's tensors.
pub const ADAPTER_WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What a model's run was told and other programs have no use for, in the model's folder; see `Usage` of the training crate.
pub const USAGE_FILE: &str = "colrow.json";
/// A run's recipe, in its folder.
pub const RECIPE: &str = "recipe.toml";
