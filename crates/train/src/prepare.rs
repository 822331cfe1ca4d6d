//! From a recipe to a job: the model looked at, the data read, every setting checked, but no weight read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use colrow_models::checkpoint::hub::{self, Needs};
use colrow_models::config::Config;
use colrow_models::family::HeadKind;
use colrow_tensor::{Error, Result};

use crate::data::{self, Columns, Examples, LabelMap, Sampler, Split, Tokeniser};
use crate::job::{DevSet, Job, batch_by};
use crate::keeping::{auto_sites, check_auto, policy};
use crate::machine::{self, Resident};
use crate::objective::{self, LabelledTexts};
use crate::odd;
use crate::recipe::{self, Recipe};
use crate::score::Scorer;
use crate::tasks::Task;
use crate::trained;
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

fn read_dev(
    recipe: &Recipe,
    reading: &LabelledTexts,
    map: &LabelMap,
    train: Examples,
) -> Result<(Examples, Vec<(&'static str, Examples)>)> {
    let task = reading.task;
    let path = recipe.data.train.as_deref().unwrap_or_default();
    let folder = Path::new(recipe.data.dev.as_deref().unwrap_or(path));
    let has_dev =
        recipe.data.dev.is_some() || folder.is_dir() && data::glue::split_file(folder, task, Split::Dev).is_some();
    if !has_dev {
        let labels = map.resolve(&train)?;
        let (train, dev) = train.hold_out(recipe.data.dev_share, recipe.seed, &labels)?;
        return Ok((train, vec![("", dev)]));
    }
    let mut sets = vec![("", data::read(folder, reading, Split::Dev)?)];
    if folder.is_dir() && data::glue::split_file(folder, task, Split::DevMismatched).is_some() {
        sets.push(("mismatched_", data::read(folder, reading, Split::DevMismatched)?));
    }
    Ok((train, sets))
}

/// Reads all of a recipe but the weights, which need not be there unless the job `needs` them.
///
/// # Errors
/// Anything that is wrong with recipe, model folder or data.
pub fn prepare(recipe: Recipe, needs: Needs) -> Result<Job> {
    let task: Task = recipe.task.parse()?;
    let Some(path) = recipe.data.train.clone() else {
        return Err(Error::usage("data.train: expected a file or a folder in GLUE's layout, found nothing"));
    };
    let (model_dir, mut config) = model_config(&recipe, needs)?;
    let mut warnings = Vec::new();
    let columns = columns(&recipe.data);
    let reading = LabelledTexts { task, columns: &columns, labels_required: true };
    // of a file that is not used whole
    let train = match recipe.data.limit {
        Some(_) => data::read_labels(Path::new(&path), &reading)?,
        None => data::read(Path::new(&path), &reading, Split::Train)?,
    };
    // of all rows, so that no class is unknown in what is held out
    let mut map = LabelMap::of(task, &train)?;
    if config.family().head == HeadKind::Classifier {
        map = map.in_order_of(task, &config.labels, &train);
    }
    warnings.extend(map.warnings(&train));
    let (mut train, dev) = read_dev(&recipe, &reading, &map, train)?;
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
    // takes the texts, so that they are gone when the next are tokenised
    let mut tokens = |examples: Examples, name: &str, tokeniser: &Tokeniser| -> Result<_> {
        let labels = map.resolve(&examples)?;
        let set = objective.tokenise(tokeniser, &examples, Some(labels), recipe.data.max_length)?;
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
        sites,
        resident: Resident::default(),
    };
    job.warnings.extend(odd::settings(&job.recipe, &job.facts()));
    job.resident = machine::resident();
    Ok(job)
}
