//! A fine-tuned model that only predicts: as its run was told, as far as its folder says so and no flag says otherwise.

use std::path::PathBuf;

use colrow_models::family::HeadKind;
use colrow_tensor::{Error, Named, Precision, Result};
use colrow_train::chat::TrainOn;
use colrow_train::data::{BatchBy, Columns, Examples, LabelMap, Labels, TokenisedSet, Tokeniser, is_unnamed};
use colrow_train::job;
use colrow_train::objective;
use colrow_train::prepare::{self, TokenReading};
use colrow_train::recipe::{Data, Optim, Recipe};
use colrow_train::score::Scorer;
use colrow_train::step::Engine;
use colrow_train::step::Hyperparameters;
use colrow_train::tasks::Task;
use colrow_train::usage::Usage;

use crate::arguments::{MOST_LENGTH, offering, tasks, whole};
use crate::output;
use crate::saved::{ModelArgs, Used};

/// How a model is used. What is left out is as its folder's colrow.json says.
#[derive(clap::Args)]
pub(crate) struct UseArgs {
    /// Task: cola, sst2, mrpc, qqp, mnli, qnli, rte, stsb, classify, regress, chat or text [default: the model's, else classify, or chat of a
    /// model that goes on with texts].
    #[arg(long, value_parser = offering(tasks), hide_possible_values = true)]
    task: Option<String>,
    /// Column of the text [default: the training data's, else the task's usual].
    #[arg(long, value_name = "COLUMN")]
    text: Option<String>,
    /// Column of the second text.
    #[arg(long, value_name = "COLUMN")]
    pair: Option<String>,
    /// Column of the label.
    #[arg(long, value_name = "COLUMN")]
    label: Option<String>,
    /// Truncate sequences to this many tokens [default: as in training, else the model's longest].
    #[arg(long, value_name = "N", value_parser = whole(1..=MOST_LENGTH))]
    max_length: Option<usize>,
    /// Most tokens of an answer in text [default: as in training, else 32].
    #[arg(long, value_name = "N", value_parser = whole(2..=1 << 16))]
    max_target_length: Option<usize>,
    /// Tokens in a batch [default: the training's batches, else 4096].
    #[arg(long, value_name = "N", value_parser = whole(1..=1_000_000_000))]
    batch_tokens: Option<usize>,
    /// What matrix products multiply: f32 or bf16 [default: as in training].
    #[arg(long)]
    precision: Option<String>,
}

/// A model, how it is used, and its tokenizer.
pub(crate) struct Predictor {
    pub(crate) engine: Engine,
    /// The task.
    pub(crate) task: Task,
    /// The labels.
    pub(crate) map: LabelMap,
    /// The columns of its data.
    pub(crate) columns: Columns,
    /// The model's folder.
    pub(crate) dir: PathBuf,
    /// The folders that it was read from.
    pub(crate) read_from: Vec<PathBuf>,
    /// What the folder says of it.
    pub(crate) usage: Option<Usage>,
    tokeniser: Tokeniser,
    tokenizer_dir: PathBuf,
    max_length: usize,
    max_target_length: usize,
    batch_tokens: Option<usize>,
}

/// Longest sequence in tokens where a model has no limit, unless one is given.
const LONGEST: usize = 512;

/// Tokens of a batch where nothing is said of it.
const BATCH_TOKENS: usize = 4096;

impl Predictor {
    /// Reads a fine-tuned model.
    ///
    /// # Errors
    /// A folder that is not a model's, or whose classifier was never trained; flags that do not fit it.
    pub(crate) fn new(model: &ModelArgs, args: &UseArgs) -> Result<Self> {
        let task = args.task.as_ref().map(|task| task.parse::<Task>()).transpose()?;
        let Used { dir, usage, loaded } = model.load(args.precision()?)?;
        if !loaded.initialised.is_empty() {
            return Err(Error::new(format!(
                "expected a fine-tuned model, found one that was not trained to predict: it lacks {}",
                loaded.initialised.join(", ")
            ))
            .at(dir.display())
            .hint("fine-tune it first by colrow train; the run folder's model/ can predict"));
        }
        loaded.warnings.iter().for_each(|w| output::warn(w));
        let read_from = loaded.read_from;
        let mut model = loaded.model;
        model.registry.freeze(|_| true)?;
        let config = &model.config;
        let told = |get: fn(&Usage) -> Option<usize>| usage.as_ref().and_then(get);
        let usual = if config.family().head == HeadKind::Causal { Task::Chat } else { Task::Classify };
        let task = task.or(usage.as_ref().map(|usage| usage.task)).unwrap_or(usual);
        let in_text = config.family().head == HeadKind::Language;
        let names = match task.labels() {
            // a classifier's outputs are what its configuration says; text says itself what it means
            Some(names) if in_text => names.iter().map(|&name| name.to_owned()).collect(),
            // a text-to-text model's file says nothing of what it answers
            None if in_text && usage.is_none() && is_unnamed(&config.labels) => Vec::new(),
            _ => config.labels.clone(),
        };
        let map = LabelMap::of_model(task, names);
        let tokeniser = Tokeniser::load(&loaded.tokenizer_dir, config)?;
        tokeniser.notes().iter().for_each(|w| output::warn(w));
        let max_length = args.max_length.or(told(|usage| Some(usage.max_length)));
        let limits = [config.architecture.longest(), tokeniser.longest()];
        let max_length = max_length.or(limits.into_iter().flatten().min()).unwrap_or(LONGEST);
        if let Some(longest) = config.architecture.longest().filter(|&longest| max_length > longest) {
            return Err(Error::usage(format!(
                "--max-length: expected at most {longest} (max_position_embeddings of the model), found {max_length}"
            )));
        }
        let max_target_length = args.max_target_length.or(told(|usage| usage.max_target_length));
        let max_target_length = max_target_length.unwrap_or(Recipe::default().data.max_target_length);
        // another task's columns are others
        let known = usage.as_ref().filter(|usage| usage.task == task).and_then(|usage| usage.columns.clone());
        let (text, pair, label) = (args.text.clone(), args.pair.clone(), args.label.clone());
        let engine = Engine::new(model, Hyperparameters::from(&Optim::default()));
        let columns = Columns { text, pair, label, known };
        let batch_tokens = args.batch_tokens;
        let mut predictor = Self {
            engine,
            task,
            map,
            columns,
            dir,
            read_from,
            usage,
            tokeniser,
            tokenizer_dir: loaded.tokenizer_dir,
            max_length,
            max_target_length,
            batch_tokens,
        };
        predictor.set_labels()?;
        Ok(predictor)
    }

    /// What is known of data whose tokens the loss is over: what the training's was called, and what counted, unless `train_on` says it.
    pub(crate) fn token_data(&self, train_on: Option<TrainOn>) -> Data {
        let told = self.usage.as_ref().filter(|usage| usage.task == self.task);
        Data {
            text: self.columns.text.clone().or(self.columns.known.as_ref().map(|names| names.text.clone())),
            keys: told.and_then(|usage| usage.conversations.clone()).unwrap_or_default(),
            train_on: train_on.or(told.and_then(|usage| usage.train_on)),
            ..Data::default()
        }
    }

    /// What reads such data.
    ///
    /// # Errors
    /// A setting that the task has no use for.
    pub(crate) fn token_reading<'a>(&self, data: &'a Data) -> Result<TokenReading<'a>> {
        prepare::reading_of_tokens(self.task, data, &self.tokeniser, &self.tokenizer_dir)
    }

    /// Takes the labels of `examples` for those of a model that answers in text and whose folder does not tell them.
    ///
    /// # Errors
    /// Labels that are missing or all the same.
    pub(crate) fn learn_labels(&mut self, examples: &Examples) -> Result<()> {
        if self.map != LabelMap::from_names(Vec::new()) {
            return Ok(());
        }
        self.map = LabelMap::of(self.task, examples)?;
        self.set_labels()
    }

    /// Evaluations measure what `scorer` says.
    ///
    /// # Errors
    /// A label that the tokenizer cannot read.
    pub(crate) fn judge_by(&mut self, scorer: Scorer) -> Result<()> {
        let config = &self.engine.model.config;
        self.engine.objective = objective::of_task(config, scorer, &self.map, &self.tokeniser, self.max_target_length)?;
        Ok(())
    }

    /// Takes the labels as they are now, and says on standard error what is odd about them.
    fn set_labels(&mut self) -> Result<()> {
        self.judge_by(Scorer::of(self.task, self.map.names()))?;
        let fault = self.engine.objective.fault().map(|fault| fault.to_string());
        fault.into_iter().chain(self.engine.objective.warning()).for_each(|w| output::warn(&w));
        Ok(())
    }

    /// Says on standard error what is odd about examples, in their file and for this model.
    pub(crate) fn look_at(&self, examples: &Examples) {
        examples.warnings().iter().for_each(|w| output::warn(w));
        let trained =
            self.usage.as_ref().filter(|usage| usage.task == self.task).and_then(|usage| usage.columns.as_ref());
        let has_pairs = examples.rows.iter().any(|e| e.pair.is_some());
        let Some(trained) = trained.filter(|names| names.pair.is_some() != has_pairs) else { return };
        let source = examples.source.display();
        output::warn(&match &trained.pair {
            Some(pair) => format!(
                "{source}: the model was trained on pairs of texts (columns {:?} and {pair:?}), and these are single texts; --pair names the second",
                trained.text
            ),
            None => format!(
                "{source}: the model was trained on single texts (column {:?}), and these are pairs; --text names one of them",
                trained.text
            ),
        });
    }

    /// Tokens of examples, with their labels if the model is to be judged by them; says on standard error what was cut.
    ///
    /// # Errors
    /// A length or a token that the model does not have.
    pub(crate) fn tokens(&self, examples: &Examples, labels: Option<Labels>) -> Result<TokenisedSet> {
        let set = self.engine.objective.tokenise(&self.tokeniser, examples, labels, self.max_length)?;
        set.warnings.iter().for_each(|w| output::warn(w));
        Ok(set)
    }

    /// The label that F1 is of: the one `given`, else that of training, where the task lets it be chosen.
    pub(crate) fn positive<'a>(&'a self, given: Option<&'a str>) -> Option<&'a str> {
        let told = self.usage.as_ref().filter(|usage| usage.task == self.task && self.task == Task::Classify);
        given.or(told.and_then(|usage| usage.positive.as_deref()))
    }

    /// How `set` is cut into batches: as in training, which decides the last bits of what the model computes.
    pub(crate) fn batches(&self, set: &TokenisedSet) -> BatchBy {
        let budget = match (self.batch_tokens, &self.usage) {
            (Some(n), _) => n,
            (None, None) => BATCH_TOKENS,
            (None, Some(usage)) => match job::batch_by(usage.batch) {
                BatchBy::Examples(n) => return BatchBy::Examples(n),
                BatchBy::Tokens(n) => n,
            },
        };
        BatchBy::Tokens(budget.max(set.lengths().into_iter().max().unwrap_or(1) as usize))
    }
}

impl UseArgs {
    fn precision(&self) -> Result<Option<Precision>> {
        let Some(name) = &self.precision else { return Ok(None) };
        Precision::find(name)
            .map(Some)
            .ok_or_else(|| Error::usage(format!("--precision: expected f32 or bf16, found {name:?}")))
    }
}
