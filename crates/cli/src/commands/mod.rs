//! The commands, one a file.

pub(crate) mod bench;
pub(crate) mod compare;
pub(crate) mod estimate;
pub(crate) mod eval;
pub(crate) mod inspect;
pub(crate) mod merge;
pub(crate) mod plan;
pub(crate) mod predict;
pub(crate) mod quickstart;
pub(crate) mod report;
pub(crate) mod train;

use std::path::PathBuf;

use colrow_models::config::Config;
use colrow_models::load::Loaded;
use colrow_models::lora::ADAPTER_CONFIG_FILE;
use colrow_models::{hub, load};
use colrow_tensor::rng::Key;
use colrow_tensor::{DType, Device, Error, Result};
use colrow_train::data::{Answers, Examples, LabelMap, Labels, TokenisedSet, Tokeniser};
use colrow_train::engine::Engine;
use colrow_train::optim::{Optimizer, Settings};
use colrow_train::recipe::{Optim, Recipe};
use colrow_train::setup;
use colrow_train::tasks::Task;

use crate::output;

/// A recipe as commands take it.
#[derive(clap::Args)]
pub(crate) struct RecipeArgs {
    /// The recipe, a TOML file (docs/recipe.md lists its keys).
    recipe: PathBuf,
    /// Change a key of the recipe: --set optim.lr=3e-5. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
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

/// A fine-tuned model as commands take it.
#[derive(clap::Args)]
pub(crate) struct ModelArgs {
    /// Model folder or hub id, or the folder of an adapter.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Base model of the adapter [default: the one that its adapter_config.json names].
    #[arg(long, value_name = "DIR")]
    base: Option<String>,
}

impl ModelArgs {
    /// The model's folder, and the model with its adapter, if it is one.
    fn load(&self) -> Result<(PathBuf, Loaded)> {
        let device = Device::cpu();
        if self.model.join(ADAPTER_CONFIG_FILE).exists() {
            let loaded = load::adapted(&self.model, self.base.as_deref(), &device, DType::F32)?;
            return Ok((self.model.clone(), loaded));
        }
        if self.base.is_some() {
            return Err(Error::usage(format!("--base: expected an adapter, found no {ADAPTER_CONFIG_FILE}"))
                .at(self.model.display())
                .hint("leave out --base for a whole model"));
        }
        let dir = hub::resolve(&self.model.to_string_lossy(), "main")?;
        let loaded = load::model(&dir, Config::open(&dir)?, &device, DType::F32, 0, false)?;
        Ok((dir, loaded))
    }
}

/// A fine-tuned model that only predicts, its tokenizer, and its folder.
pub(crate) struct Predictor {
    pub(crate) engine: Engine,
    tokeniser: Tokeniser,
    dir: PathBuf,
}

/// Reads a fine-tuned model.
///
/// # Errors
/// A folder that is not a model's, or whose classifier was never trained.
pub(crate) fn predictor(args: &ModelArgs) -> Result<Predictor> {
    let (dir, loaded) = args.load()?;
    if !loaded.initialised.is_empty() {
        return Err(Error::new(format!(
            "expected a fine-tuned model, found one that was not trained to predict: it lacks {}",
            loaded.initialised.join(", ")
        ))
        .at(dir.display())
        .hint("fine-tune it first by colrow train; the run folder's model/ can predict"));
    }
    loaded.warnings.iter().for_each(|w| output::warn(w));
    let mut model = loaded.model;
    model.registry.freeze(|_| true)?;
    let engine = Engine {
        optimizer: Optimizer::new(Settings::from(&Optim::default()), &model.registry.params),
        model,
        policy: std::sync::Arc::default(),
        norms: None,
        ratios: None,
        probe: None,
        key: Key::new(0),
        dropout: false,
    };
    let tokeniser = Tokeniser::load(&loaded.tokenizer_dir.join(hub::TOKENIZER_FILE))?;
    Ok(Predictor { engine, tokeniser, dir })
}

/// Longest sequence in tokens where a model has no limit, unless one is given.
const LONGEST: usize = 512;

impl Predictor {
    /// The labels of a task, and how the model is asked and answers, if it does so in text.
    pub(crate) fn labels(&self, task: Task) -> (LabelMap, Option<Answers>) {
        let config = &self.engine.model.config;
        let map = match task.labels() {
            _ if task.is_regression() => LabelMap::Value,
            // a classifier's outputs are what its configuration says; text says itself what it means
            Some(names) if config.is_text_to_text() => {
                LabelMap::from_names(names.iter().map(|&name| name.to_owned()).collect())
            }
            _ => LabelMap::from_names(config.labels.clone()),
        };
        let longest = Recipe::default().data.max_target_length;
        let answers = setup::answers(config, task, &map, &self.tokeniser, longest);
        (map, answers)
    }

    /// Tokens of examples, truncated to the model's longest sequence or `max_length`; says on standard error what was cut.
    ///
    /// # Errors
    /// A length or a token that the model does not have.
    pub(crate) fn tokens(
        &self,
        examples: &Examples,
        words: Option<(&Answers, Option<&Labels>)>,
        max_length: Option<usize>,
    ) -> Result<TokenisedSet> {
        let config = &self.engine.model.config;
        let max_length = max_length.unwrap_or(config.longest().unwrap_or(LONGEST));
        if let Some(longest) = config.longest().filter(|&longest| max_length > longest) {
            return Err(Error::usage(format!(
                "--max-length: expected at most {longest} (max_position_embeddings of the model), found {max_length}"
            )));
        }
        let set = match words {
            Some((answers, labels)) => answers.tokenise(examples, labels, max_length)?,
            None => self.tokeniser.tokenise(&examples.rows, None, max_length)?,
        };
        set.check_vocab(config.vocab_size(), config.type_vocab_size()).map_err(|e| e.at(self.dir.display()))?;
        if let Some(warning) = set.warning(max_length) {
            output::warn(&warning);
        }
        Ok(set)
    }
}
