//! The commands, one a file.

pub(crate) mod bench;
pub(crate) mod compare;
pub(crate) mod data;
pub(crate) mod estimate;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod generate;
pub(crate) mod import;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod merge;
pub(crate) mod paper_memory;
pub(crate) mod plan;
pub(crate) mod predict;
pub(crate) mod quickstart;
mod quickstart_chat;
pub(crate) mod report;
pub(crate) mod train;

use std::path::PathBuf;

use colrow_models::checkpoint::gguf::blocks::Format;
use colrow_tensor::Result;
use colrow_train::recipe::Recipe;
use serde_json::{Value, json};

use crate::arguments::{keys, offering};

/// A recipe as commands take it.
#[derive(clap::Args)]
pub(crate) struct RecipeArgs {
    /// The recipe, a TOML file (docs/recipe.md lists its keys).
    recipe: PathBuf,
    /// Change a key of the recipe: --set optim.lr=3e-5. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = offering(keys), hide_possible_values = true)]
    sets: Vec<String>,
}

impl RecipeArgs {
    fn load(&self) -> Result<Recipe> {
        Recipe::load(&self.recipe, &self.sets)
    }

    /// These arguments as they are typed again.
    fn again(&self) -> String {
        let sets = self.sets.iter().map(|s| format!(" --set '{s}'")).collect::<String>();
        format!("{}{sets}", self.recipe.display())
    }
}

/// How many tensors of a GGUF file are stored how, as JSON.
fn formats(counts: &[(Format, usize)]) -> Value {
    counts.iter().map(|(format, n)| json!({"type": format.name(), "bits": format.bits(), "count": n})).collect()
}
