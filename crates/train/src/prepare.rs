//! From a recipe to a job: the model looked at, the data read, every setting checked, but no weight read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use colrow_models::checkpoint::hub::{self, Needs};
use colrow_models::config::Config;
use colrow_models::family::HeadKind;
use colrow_tensor::{Error, Result};

use crate::chat::{ChatTemplate, Moment, TrainOn};
use crate::comm::Together;
use crate::data::record::Reading;
use crate::data::{self, Columns, Examples, LabelMap, Labels, Sampler, Split, Tokeniser};
use crate::job::{DevSet, Job, batch_by};
use crate::keeping::{auto_sites, check_auto, policy};
use crate::machine::{self, Resident};
use crate::objective::{self, Causal, Conversations, LabelledTexts, Objective, PlainTexts};
use crate::odd;
use crate::recipe::{self, Recipe};
use crate::score::Scorer;
use crate::tasks::Task;
use crate::trained;
use crate::unused;
use crate::usage::Usage;

fn columns(data: &recipe::Data) -> Columns {
    Columns { text: data.text.clone(), pair: data.pair.clone(), label: data.label.clone(), known: None }
}

/// The model's folder, with what is needed of it, and its configuration as the recipe changes it.
///
/// # Errors
/// A model that cannot be found or read.
pub fn model_config(recipe: &Recipe, needs: Needs) -> Result<(PathBuf, Config)> {
    let dir = hub::resolve(&recipe.model.path, &recipe.model.revision, needs)?;
    let mut config = Config::open(&dir)?;
    if let Some(p) = recipe.model.dropout {
        config.architecture.set_dropout(p);
    }
    if let Some(longest) = config.architecture.longest().filter(|&longest| recipe.data.max_length > longest) {
        return Err(Error::usage(format!(
            "data.max_length: expected at most {longest} (max_position_embeddings of the model), found {}",
            recipe.data.max_length
        )));
    }
    Ok((dir, config))
}

/// Training and development data of a recipe, the latter with prefixes of its metrics.
struct Read {
    train: Examples,
    dev: Vec<(&'static str, Examples)>,
}

/// The recipe's development data, or a share of the training data, whose `labels` say what is alike.
fn read_dev(
    recipe: &Recipe,
    reading: &dyn Reading,
    train: Examples,
    labels: impl FnOnce(&Examples) -> Result<Labels>,
) -> Result<Read> {
    let task = reading.task();
    let path = recipe.data.train.as_deref().unwrap_or_default();
    let folder = Path::new(recipe.data.dev.as_deref().unwrap_or(path));
    let has_dev =
        recipe.data.dev.is_some() || folder.is_dir() && data::glue::split_file(folder, task, Split::Dev).is_some();
    if !has_dev {
        let labels = labels(&train)?;
        let (train, dev) = train.hold_out(recipe.data.dev_share, recipe.seed, &labels)?;
        return Ok(Read { train, dev: vec![("", dev)] });
    }
    let mut dev = vec![("", data::read(folder, reading, Split::Dev)?)];
    if folder.is_dir() && data::glue::split_file(folder, task, Split::DevMismatched).is_some() {
        dev.push(("mismatched_", data::read(folder, reading, Split::DevMismatched)?));
    }
    Ok(Read { train, dev })
}

/// A recipe with its data read and its model looked at, before anything is made tokens.
#[derive(Debug)]
pub struct Sources {
    /// The recipe.
    pub recipe: Recipe,
    /// Its task.
    pub task: Task,
    /// The model's folder.
    pub model_dir: PathBuf,
    /// The model's configuration, with this data's labels.
    pub config: Config,
    /// Training data.
    pub train: Examples,
    /// Development data; the first decides which model is best.
    pub dev: Vec<(&'static str, Examples)>,
    /// The labels, where the task has any.
    pub map: Option<LabelMap>,
    /// What the model is trained for.
    pub objective: Arc<dyn Objective>,
    /// What is written beside the model.
    pub usage: Usage,
    /// The model's tokenizer.
    pub tokeniser: Tokeniser,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Reads a recipe's data.
///
/// # Errors
/// Anything that is wrong with recipe, model folder or data.
pub fn sources(recipe: Recipe, needs: Needs) -> Result<Sources> {
    let task: Task = recipe.task.parse()?;
    let Some(path) = recipe.data.train.clone() else {
        let folder = if task.is_of_tokens() { "a folder with a file train" } else { "a folder in GLUE's layout" };
        return Err(Error::usage(format!("data.train: expected a file or {folder}, found nothing")));
    };
    let (model_dir, config) = model_config(&recipe, needs)?;
    objective::check_head(&config, task)?;
    let path = Path::new(&path);
    match task.is_of_tokens() {
        true => of_tokens(recipe, task, model_dir, config, path),
        false => labelled(recipe, task, model_dir, config, path),
    }
}

/// Texts with labels.
fn labelled(recipe: Recipe, task: Task, model_dir: PathBuf, mut config: Config, path: &Path) -> Result<Sources> {
    let mut warnings = Vec::new();
    let columns = columns(&recipe.data);
    let reading = LabelledTexts { task, columns: &columns, labels_required: true };
    // of a file that is not used whole
    let train = match recipe.data.limit {
        Some(_) => data::read_labels(path, &reading)?,
        None => data::read(path, &reading, Split::Train)?,
    };
    // of all rows, so that no class is unknown in what is held out
    let mut map = LabelMap::of(task, &train)?;
    if config.family().head == HeadKind::Classifier {
        map = map.in_order_of(task, &config.labels, &train);
    }
    warnings.extend(map.warnings(&train));
    let Read { mut train, dev } = read_dev(&recipe, &reading, train, |train| map.resolve(train))?;
    map.write_to(&mut config);
    let scorer = Scorer::new(task, map.names(), recipe.data.positive.as_deref(), "data.positive")?;
    let usage = Usage::new(&recipe, &config, &scorer, train.columns.clone());
    if let Some(limit) = recipe.data.limit {
        train = train.subset(limit, recipe.seed)?;
    }
    let train = train.complete(&reading)?;
    warnings.extend(train.warnings());
    let dev = dev.into_iter().map(|(prefix, examples)| Ok((prefix, examples.complete(&reading)?)));
    let dev = dev.collect::<Result<Vec<_>>>()?;
    if recipe.data.dev.is_some() {
        warnings.extend(dev.iter().flat_map(|(_, examples)| examples.warnings()));
    }
    let tokeniser = Tokeniser::load(&model_dir, &config)?;
    warnings.extend_from_slice(tokeniser.notes());
    let objective = objective::of_task(&config, scorer, &map, &tokeniser, recipe.data.max_target_length)?;
    if let Some(fault) = objective.fault() {
        return Err(fault);
    }
    warnings.extend(objective.warning());
    let map = Some(map);
    Ok(Sources { recipe, task, model_dir, config, train, dev, map, objective, usage, tokeniser, warnings })
}

/// What reads texts of whose tokens the loss is.
///
/// # Errors
/// A setting that the task has no use for; a template that cannot be read.
pub fn reading_of_tokens<'a>(
    task: Task,
    data: &'a recipe::Data,
    tokeniser: &Tokeniser,
    folder: &Path,
) -> Result<TokenReading<'a>> {
    if task == Task::Text {
        if let Some(other) = data.train_on.filter(|&train_on| train_on != TrainOn::All) {
            return Err(Error::usage(format!("data.train_on: task text counts everything, found \"{other}\""))
                .hint("leave it out, or read conversations by task = \"chat\""));
        }
        return Ok(TokenReading::Texts(PlainTexts { text: data.text.as_deref() }));
    }
    let variables = tokeniser.named().iter().map(|(&name, text)| (name.to_owned(), text.clone().into())).collect();
    let now = data.date.as_deref().and_then(Moment::of_day).unwrap_or_else(Moment::now);
    let template = ChatTemplate::open(folder, variables, now);
    let special = tokeniser.special();
    let reading = Conversations { keys: &data.keys, template, train_on: data.train_on, special };
    Ok(TokenReading::Conversations(Box::new(reading)))
}

/// See [`reading_of_tokens`].
#[derive(Debug)]
pub enum TokenReading<'a> {
    /// Conversations and completions.
    Conversations(Box<Conversations<'a>>),
    /// Plain texts.
    Texts(PlainTexts<'a>),
}

impl TokenReading<'_> {
    /// It as what readers of files ask.
    pub fn reading(&self) -> &dyn Reading {
        match self {
            Self::Conversations(reading) => &**reading,
            Self::Texts(reading) => reading,
        }
    }

    /// Whether what was read depends on the day it was read.
    pub fn is_dated(&self) -> bool {
        matches!(self, Self::Conversations(reading) if reading.template.as_ref().is_ok_and(ChatTemplate::is_dated))
    }
}

/// Texts that a model goes on with.
fn of_tokens(recipe: Recipe, task: Task, model_dir: PathBuf, config: Config, path: &Path) -> Result<Sources> {
    let tokeniser = Tokeniser::load(&model_dir, &config)?;
    let mut warnings = tokeniser.notes().to_vec();
    let of_tokens = reading_of_tokens(task, &recipe.data, &tokeniser, &model_dir)?;
    let reading = of_tokens.reading();
    let train = data::read(path, reading, Split::Train)?;
    // no example is like another
    let Read { mut train, dev } =
        read_dev(&recipe, reading, train, |train| Ok(Labels::Value(vec![0.0; train.rows.len()])))?;
    if let Some(limit) = recipe.data.limit {
        train = train.subset(limit, recipe.seed)?;
    }
    warnings.extend(train.warnings());
    if recipe.data.dev.is_some() {
        warnings.extend(dev.iter().flat_map(|(_, examples)| examples.warnings()));
    }
    if of_tokens.is_dated() && recipe.data.date.is_none() {
        warnings.push(format!(
            "the chat template writes today's date, and on another day the data is other data: data.date = \"{}\" fixes it",
            Moment::now().day()
        ));
    }
    let usage = Usage::of_tokens(&recipe, task);
    let objective = Arc::new(Causal::of(&config, &tokeniser));
    Ok(Sources { recipe, task, model_dir, config, train, dev, map: None, objective, usage, tokeniser, warnings })
}

/// Reads all of a recipe but the weights, which need not be there unless the job `needs` them.
///
/// # Errors
/// Anything that is wrong with recipe, model folder or data.
pub fn prepare(recipe: Recipe, needs: Needs) -> Result<Job> {
    let sources = sources(recipe, needs)?;
    let Sources { recipe, task, model_dir, config, train, dev, map, objective, usage, tokeniser, mut warnings } =
        sources;
    // takes the texts, so that they are gone when the next are tokenised
    let mut tokens = |examples: Examples, name: &str, tokeniser: &Tokeniser| -> Result<_> {
        let labels = map.as_ref().map(|map| map.resolve(&examples)).transpose()?;
        let set = objective.tokenise(tokeniser, &examples, labels, recipe.data.max_length)?;
        warnings.extend(set.warnings.iter().map(|w| format!("{name}: {w}")));
        Ok(set)
    };
    let train = tokens(train, "training data", &tokeniser.for_training(recipe.seed))?;
    let dev = dev
        .into_iter()
        .map(|(prefix, examples)| Ok(DevSet { prefix, set: tokens(examples, "development data", &tokeniser)? }));
    let dev = dev.collect::<Result<Vec<_>>>()?;
    let sampler = Sampler::new(train.lengths(), batch_by(recipe.train.batch), Some(recipe.seed))?;
    let sites = trained::meta_model(config.clone(), &recipe)?.sites();
    let policy = Arc::new(policy(&recipe.keep, &sites)?);
    check_auto(&recipe, &sites)?;
    let auto = auto_sites(&recipe.keep, &sites);
    warnings.extend(unused::keys(&recipe, task, config.family().head, &sites));
    let mut job = Job {
        recipe,
        task,
        model_dir,
        config,
        train,
        dev,
        objective,
        usage,
        sampler,
        policy,
        auto,
        warnings,
        together: Together::default(),
        sites,
        resident: Resident::default(),
    };
    job.warnings.extend(odd::settings(&job.recipe, &job.facts()));
    job.resident = machine::resident();
    Ok(job)
}
