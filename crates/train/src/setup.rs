//! From a recipe to what a run needs: model folder, labels, tokens, policy, sampler.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use colrow_autograd::{Bits, Keep, NormMemory, NormSource, Policy, RowsOf, Sampling, Store, glob_matches};
use colrow_models::config::{Architecture, Config, ProblemType};
use colrow_models::hub::{self, Needs};
use colrow_models::load::{self, Anew};
use colrow_models::lora::{self, LoraConfig};
use colrow_models::matching::NUM_LABELS;
use colrow_models::model::{Model, PAPER_SITES, Site, SiteKind};
use colrow_tensor::rng::Key;
use colrow_tensor::{DType, Device, Error, Estimator, Precision, Result};

use crate::data::{
    self, Answers, BatchBy, Columns, Examples, Fingerprint, LabelMap, Labels, Sampler, Split, TokenisedSet, Tokeniser,
    Wording,
};
use crate::engine::Engine;
use crate::fit::{self, Fit};
use crate::machine::{self, Resident};
use crate::odd::{self, Facts};
use crate::optim::{Optimizer, Settings};
use crate::plan::{self, Lengths, Plan, Shape, remembering_sites};
use crate::ratios::{self, Ratios};
use crate::recipe::{self, CacheIn, Method, PolicyName, Ratio, Recipe, SiteKeep};
use crate::score::Scorer;
use crate::tasks::Task;
use crate::trainer;
use crate::usage::Usage;

/// A labelled development set.
#[derive(Debug)]
pub struct DevSet {
    /// Prefix of its metrics; empty for the only or first one.
    pub prefix: &'static str,
    /// Its tokens.
    pub set: TokenisedSet,
    /// Its labels.
    pub labels: Labels,
}

/// A recipe with its data read and its model looked at, but no weight read.
#[derive(Debug)]
pub struct Job {
    /// The recipe.
    pub recipe: Recipe,
    /// Its task.
    pub task: Task,
    /// The model's folder.
    pub model_dir: PathBuf,
    /// The model's configuration, with this data's labels.
    pub config: Config,
    /// Training tokens.
    pub train: TokenisedSet,
    /// Development sets; the first decides which model is best.
    pub dev: Vec<DevSet>,
    /// What evaluations measure.
    pub scorer: Scorer,
    /// What is written beside the model.
    pub usage: Usage,
    /// The task in words, for a model that answers in text.
    pub answers: Option<Answers>,
    /// Draws batches.
    pub sampler: Sampler,
    /// What linears keep; at sites whose ratio the run chooses, where it starts.
    pub policy: Arc<Policy>,
    /// Those sites, and what their rows are.
    pub auto: Vec<(String, RowsOf)>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Sites of the model.
    sites: Vec<Site>,
    /// What the process holds with all of this read.
    resident: Resident,
}

/// This machine's processor, multiplying as the recipe says.
pub fn device(precision: recipe::Precision) -> Device {
    Device::cpu_with(match precision {
        recipe::Precision::F32 => Precision::F32,
        recipe::Precision::Bf16 => Precision::Bf16,
    })
}

/// How batches are cut.
pub fn batch_by(batch: recipe::Batch) -> BatchBy {
    match batch {
        recipe::Batch::Sequences(n) => BatchBy::Examples(n),
        recipe::Batch::Tokens(n) => BatchBy::Tokens(n),
    }
}

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
        config.set_dropout(p);
    }
    if let Some(longest) = config.longest().filter(|&longest| recipe.data.max_length > longest) {
        return Err(Error::usage(format!(
            "data.max_length: expected at most {longest} (max_position_embeddings of the model), found {}",
            recipe.data.max_length
        )));
    }
    Ok((dir, config))
}

/// Gives the configuration this data's labels.
pub fn set_labels(config: &mut Config, labels: &LabelMap) {
    if let LabelMap::Value = labels {
        config.set_head(vec!["LABEL_0".into()], ProblemType::Regression);
    } else {
        config.set_head(labels.names().to_vec(), ProblemType::Classification);
    }
}

/// Whether a site can keep this.
fn fits(kind: SiteKind, keep: SiteKeep) -> bool {
    match keep {
        SiteKeep::Exact => true,
        SiteKeep::Int8 => kind != SiteKind::Block,
        SiteKeep::Int4 | SiteKeep::Bf16 => !matches!(kind, SiteKind::Relu | SiteKind::Block),
        SiteKeep::Recompute => kind == SiteKind::Block,
        SiteKeep::Rows => kind == SiteKind::Linear,
        SiteKeep::Rebuild => matches!(kind, SiteKind::Linear | SiteKind::Attention),
    }
}

/// What a site keeps by the policy alone.
fn preset(policy: PolicyName, site: &Site) -> SiteKeep {
    let in_paper = || PAPER_SITES.iter().any(|p| glob_matches(p, &site.name));
    match (policy, site.kind) {
        // one row a sequence: next to nothing to save
        _ if site.rows == RowsOf::Sequences => SiteKeep::Exact,
        (PolicyName::Exact, _) => SiteKeep::Exact,
        (PolicyName::Paper, SiteKind::Linear) if in_paper() => SiteKeep::Rows,
        (PolicyName::Paper, _) => SiteKeep::Exact,
        (PolicyName::Recompute, SiteKind::Block) => SiteKeep::Recompute,
        (_, SiteKind::Block) => SiteKeep::Exact,
        (_, SiteKind::Linear) => SiteKeep::Rows,
        (PolicyName::Leanest, SiteKind::Attention) => SiteKeep::Rebuild,
        _ => SiteKeep::Int8,
    }
}

/// What the recipe says of a site: what is kept, and for rows how they are sampled.
fn said_of(keep: &recipe::Keep, site: &Site) -> (SiteKeep, recipe::Estimator, Ratio, recipe::NormSource) {
    let applies = |e: &recipe::Site| e.keep.map_or(site.kind == SiteKind::Linear, |keep| fits(site.kind, keep));
    let exception = keep.exception(&site.name, applies);
    let kind = exception.and_then(|e| e.keep).unwrap_or_else(|| preset(keep.policy, site));
    let estimator = exception.and_then(|e| e.estimator).unwrap_or(keep.estimator);
    let ratio = exception.and_then(|e| e.ratio).unwrap_or(keep.ratio);
    let norms = exception.and_then(|e| e.norms).unwrap_or(keep.norms());
    (kind, estimator, ratio, norms)
}

/// What one site keeps, by the recipe; where the run chooses the ratio, what it starts with.
pub fn site_keep(keep: &recipe::Keep, site: &Site) -> Keep {
    let (kind, estimator, ratio, norms) = said_of(keep, site);
    let estimator = match (kind, estimator) {
        (SiteKeep::Rebuild, _) => return Keep::Nothing,
        (SiteKeep::Recompute, _) => return Keep::Recompute,
        (SiteKeep::Int8, _) => return Keep::Quantised(Bits::Int8),
        (SiteKeep::Int4, _) => return Keep::Quantised(Bits::Int4),
        (SiteKeep::Bf16, _) => return Keep::Quantised(Bits::Bf16),
        (SiteKeep::Exact, _) | (_, recipe::Estimator::Exact) => return Keep::Exact,
        (_, recipe::Estimator::TopK) => Estimator::TopK,
        (_, recipe::Estimator::Crs) => Estimator::Crs,
        (_, recipe::Estimator::Wta) => Estimator::Wta,
        (_, recipe::Estimator::Pps) => Estimator::Pps,
    };
    let norms = match norms {
        recipe::NormSource::Current => NormSource::Current,
        recipe::NormSource::Cached => NormSource::Cached,
        recipe::NormSource::Running => NormSource::Running,
        recipe::NormSource::Uniform => NormSource::Uniform,
    };
    let ratio = match ratio {
        Ratio::Fixed(ratio) => ratio,
        Ratio::Auto => ratios::START,
    };
    Keep::Rows(Sampling { estimator, ratio: ratio as f32, norms, uniform: keep.uniform as f32 })
}

/// The recipe's policy over a model's sites.
///
/// # Errors
/// A pattern that names no site, or none that can keep what it says.
pub fn policy(keep: &recipe::Keep, sites: &[Site]) -> Result<Policy> {
    for exception in &keep.sites {
        let pattern = &exception.pattern;
        let named: Vec<&Site> = sites.iter().filter(|s| glob_matches(pattern, &s.name)).collect();
        if named.is_empty() {
            let names: Vec<_> = sites.iter().take(4).map(|s| s.name.as_str()).collect();
            return Err(Error::usage(format!("keep.sites: `{pattern}` names no site of this model"))
                .hint(format!("sites are {}, …", names.join(", "))));
        }
        if let Some(keep) = exception.keep.filter(|&keep| !named.iter().any(|site| fits(site.kind, keep))) {
            return Err(Error::usage(format!("keep.sites: no site that `{pattern}` names can keep `{keep}`")).hint(
                "linears keep anything, attention all but `rows`, norms and activations neither `rows` nor `rebuild`, a ReLU `exact` or `int8`, \
                 a block `exact` or `recompute`",
            ));
        }
    }
    Policy::new(sites.iter().map(|s| (s.name.clone(), site_keep(keep, s))))
}

/// Sites whose ratio the run chooses, and what their rows are.
fn auto_sites(keep: &recipe::Keep, sites: &[Site]) -> Vec<(String, RowsOf)> {
    let auto = |site: &&Site| matches!(said_of(keep, site), (SiteKeep::Rows, _, Ratio::Auto, _));
    sites.iter().filter(auto).map(|site| (site.name.clone(), site.rows)).collect()
}

/// Whether the run can choose the ratios that the recipe leaves to it.
///
/// # Errors
/// No such site, one whose estimator has no ratio to choose, one sequence a step.
fn check_auto(recipe: &Recipe, sites: &[Site]) -> Result<()> {
    let (keep, train) = (&recipe.keep, &recipe.train);
    if !keep.chooses_ratios() {
        return Ok(());
    }
    let estimators = sites.iter().filter_map(|site| match said_of(keep, site) {
        (SiteKeep::Rows, estimator, Ratio::Auto, _) => Some((site, estimator)),
        _ => None,
    });
    let mut estimators = estimators.peekable();
    if estimators.peek().is_none() {
        return Err(Error::usage(format!(
            "keep.ratio: \"auto\" has nothing to choose: under keep.policy = \"{}\" no site draws rows",
            keep.policy
        ))
        .hint("set keep.policy to lean, leanest or paper"));
    }
    for (site, estimator) in estimators {
        let why = match estimator {
            recipe::Estimator::TopK => "has a bias that it does not see",
            recipe::Estimator::Exact => "keeps all rows",
            _ => continue,
        };
        return Err(Error::usage(format!("keep.ratio: \"auto\" weighs variances; `{estimator}` {why}"))
            .at(&site.name)
            .hint("choose keep.estimator pps, wta or crs, or a number"));
    }
    if train.batch == recipe::Batch::Sequences(1) && train.accumulate == 1 {
        return Err(Error::usage("keep.ratio: \"auto\" compares the sequences of a step, and there is one")
            .hint("set train.batch or train.accumulate to 2 or more, or keep.ratio to a number"));
    }
    Ok(())
}

/// Modules that are trained whole beside adapters or biases: the recipe's, else the head.
fn modules_to_save(train: &recipe::Train, config: &Config) -> Vec<String> {
    let head = || if config.is_text_to_text() { vec![] } else { vec!["classifier".to_owned()] };
    train.modules_to_save.clone().unwrap_or_else(head)
}

/// The recipe's adapters, if its method trains any.
pub fn lora_config(recipe: &Recipe, config: &Config) -> Option<LoraConfig> {
    let recipe::Lora { rank, alpha, dropout, rank_stabilised, targets } = recipe.lora.clone();
    let projections = if config.is_text_to_text() { ["q", "k", "v"] } else { ["query", "key", "value"] };
    let targets = targets.unwrap_or_else(|| projections.map(str::to_owned).to_vec());
    let modules_to_save = modules_to_save(&recipe.train, config);
    let config = LoraConfig {
        lora_rank: rank,
        alpha,
        dropout,
        rank_stabilised,
        targets,
        modules_to_save,
        ..LoraConfig::default()
    };
    matches!(recipe.train.method, Method::Lora | Method::LoraFa).then_some(config)
}

/// Whether the recipe leaves the parameter with this key as it is.
fn is_frozen(train: &recipe::Train, whole: &[String], key: &str) -> bool {
    let learned = match train.method {
        Method::Full => true,
        Method::Lora => lora::is_adapter_key(key),
        Method::LoraFa => lora::is_adapter_key(key) && !lora::is_a_key(key),
        Method::BitFit => key.ends_with(".bias"),
    };
    !learned && !lora::is_saved_whole(whole, key) || train.is_frozen(key)
}

/// Gives the model the recipe's adapters and freezes what the recipe does not train.
///
/// # Errors
/// A pattern that names no linear, module or parameter, or a part of a stacked weight; patterns that freeze all parameters.
pub fn choose_trained(model: &mut Model, recipe: &Recipe) -> Result<()> {
    let train = &recipe.train;
    let entries = &model.registry.entries;
    let some = || entries.iter().take(4).map(|e| e.key.as_str()).collect::<Vec<_>>().join(", ");
    let whole = if train.method == Method::Full { vec![] } else { modules_to_save(train, &model.config) };
    for pattern in &whole {
        let within = |key: &str| lora::is_saved_whole(std::slice::from_ref(pattern), key);
        if entries.iter().all(|e| e.dims.contains(&NUM_LABELS) || within(&e.key)) {
            return Err(Error::usage(format!(
                "train.modules_to_save: `{pattern}` is the whole model: nothing would stay as it is"
            ))
            .hint("name modules within it, or train all by train.method = \"full\""));
        }
        if !entries.iter().any(|e| within(&e.key)) {
            return Err(Error::usage(format!("train.modules_to_save: `{pattern}` names no module of this model"))
                .hint(format!("a module is the beginning of a parameter, up to a dot; parameters are {}, …", some())));
        }
    }
    if let Some(config) = lora_config(recipe, &model.config) {
        lora::adapt(model, &config, recipe.seed)?;
    }
    let entries = &model.registry.entries;
    let some = || entries.iter().take(4).map(|e| e.key.as_str()).collect::<Vec<_>>().join(", ");
    for pattern in &train.freeze {
        if !entries.iter().any(|e| glob_matches(pattern, &e.key)) {
            return Err(Error::usage(format!("train.freeze: `{pattern}` names no parameter of this model"))
                .hint(format!("parameters are {}, …", some())));
        }
    }
    model.registry.freeze(|key| is_frozen(train, &whole, key))?;
    if !model.registry.params.iter().any(|(_, p)| p.trainable) {
        if train.method == Method::BitFit && !model.registry.entries.iter().any(|e| e.key.ends_with(".bias")) {
            return Err(Error::usage("train.method: \"bitfit\" trains biases, and this model has none")
                .hint("choose \"lora\" or \"full\", or name modules in train.modules_to_save"));
        }
        let least = if model.config.is_text_to_text() { "some of the patterns" } else { "at least the classifier" };
        return Err(Error::usage("train.freeze: every parameter is frozen; nothing is left to learn")
            .hint(format!("leave out {least}")));
    }
    Ok(())
}

fn read_dev(
    recipe: &Recipe,
    task: Task,
    map: &LabelMap,
    train: Examples,
) -> Result<(Examples, Vec<(&'static str, Examples)>)> {
    let columns = columns(&recipe.data);
    let path = recipe.data.train.as_deref().unwrap_or_default();
    let folder = Path::new(recipe.data.dev.as_deref().unwrap_or(path));
    let has_dev =
        recipe.data.dev.is_some() || folder.is_dir() && data::glue::split_file(folder, task, Split::Dev).is_some();
    if !has_dev {
        let labels = map.resolve(&train)?;
        let (train, dev) = train.hold_out(recipe.data.dev_share, recipe.seed, &labels)?;
        return Ok((train, vec![("", dev)]));
    }
    let mut sets = vec![("", data::read(folder, task, &columns, Split::Dev, true)?)];
    if folder.is_dir() && data::glue::split_file(folder, task, Split::DevMismatched).is_some() {
        sets.push(("mismatched_", data::read(folder, task, &columns, Split::DevMismatched, true)?));
    }
    Ok((train, sets))
}

/// How a model of this configuration is asked and answers, if it does so in text.
///
/// # Errors
/// A label that the tokenizer cannot read.
pub fn answers(
    config: &Config,
    task: Task,
    map: &LabelMap,
    tokeniser: &Tokeniser,
    longest: usize,
) -> Result<Option<Answers>> {
    let Architecture::T5(t5) = &config.architecture else { return Ok(None) };
    Answers::new(Wording::new(task, map), tokeniser.clone(), t5.eos_token_id as u32, longest).map(Some)
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
    let named = columns(&recipe.data);
    // of a file that is not used whole
    let train = match recipe.data.limit {
        Some(_) => data::read_labels(Path::new(&path), task, &named)?,
        None => data::read(Path::new(&path), task, &named, Split::Train, true)?,
    };
    // of all rows, so that no class is unknown in what is held out
    let mut map = LabelMap::of(task, &train)?;
    if !config.is_text_to_text() {
        map = map.in_order_of(task, &config.labels, &train);
    }
    warnings.extend(map.warnings(&train));
    let (mut train, dev) = read_dev(&recipe, task, &map, train)?;
    set_labels(&mut config, &map);
    let scorer = Scorer::new(task, map.names(), recipe.data.positive.as_deref(), "data.positive")?;
    let usage = Usage::new(&recipe, &config, &scorer, train.columns.clone());
    if let Some(limit) = recipe.data.limit {
        train = train.subset(limit, recipe.seed)?;
    }
    let train = train.complete(task, &named)?;
    warnings.extend(train.warnings());
    let dev = dev.into_iter().map(|(prefix, examples)| Ok((prefix, examples.complete(task, &named)?)));
    let dev = dev.collect::<Result<Vec<_>>>()?;
    if recipe.data.dev.is_some() {
        warnings.extend(dev.iter().flat_map(|(_, examples)| examples.warnings()));
    }
    let tokeniser = Tokeniser::load(&model_dir, &config)?;
    warnings.extend_from_slice(tokeniser.notes());
    let answers = answers(&config, task, &map, &tokeniser, recipe.data.max_target_length)?;
    if let Some(fault) = answers.as_ref().and_then(Answers::fault) {
        return Err(fault);
    }
    warnings.extend(answers.as_ref().and_then(Answers::warning));
    // takes the texts, so that they are gone when the next are tokenised
    let mut tokens = |examples: Examples, name: &str, tokeniser: &Tokeniser, answers: Option<&Answers>| -> Result<_> {
        let labels = map.resolve(&examples)?;
        let set = match answers {
            Some(answers) => answers.tokenise(&examples, Some(&labels), recipe.data.max_length)?,
            None => tokeniser.tokenise(&examples, Some(labels.clone()), recipe.data.max_length)?,
        };
        warnings.extend(set.warnings.iter().map(|w| format!("{name}: {w}")));
        Ok((set, labels))
    };
    let seed = recipe.seed;
    let in_training = answers.as_ref().map(|answers| answers.for_training(seed));
    let (train, _) = tokens(train, "training data", &tokeniser.for_training(seed), in_training.as_ref())?;
    let dev = dev
        .into_iter()
        .map(|(prefix, examples)| {
            let (set, labels) = tokens(examples, "development data", &tokeniser, answers.as_ref())?;
            Ok(DevSet { prefix, set, labels })
        })
        .collect::<Result<Vec<_>>>()?;
    let sampler = Sampler::new(train.lengths(), batch_by(recipe.train.batch), Some(recipe.seed))?;
    let mut blank = Model::new(config.clone(), &Device::meta(1), DType::F32);
    choose_trained(&mut blank, &recipe)?;
    let sites = blank.sites();
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
        scorer,
        usage,
        answers,
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

/// What a label takes as it is counted, told and written: its name in two maps of `config.json`, its figures in an evaluation and in the log.
const LABEL_BYTES: usize = 1536;

/// Lengths of a set's sources under a recipe, which may cut them further.
fn lengths_of(set: &TokenisedSet, recipe: &Recipe) -> Vec<u32> {
    set.lengths().into_iter().map(|length| length.min(recipe.data.max_length as u32)).collect()
}

/// Rows of a batch are numbered by 32 bits.
fn check_tokens(lengths: &[u32]) -> Result<()> {
    let tokens: u64 = lengths.iter().map(|&length| u64::from(length)).sum();
    if tokens <= u64::from(u32::MAX) {
        return Ok(());
    }
    Err(Error::usage(format!("train.batch: expected batches of fewer than 2^32 tokens, found one of {tokens}"))
        .hint("a smaller train.batch, and train.accumulate for as many sequences a step"))
}

impl Job {
    /// What the run learns from and is judged by: training data, development data.
    pub(crate) fn fingerprints(&self) -> [Fingerprint; 2] {
        let names = &self.config.labels;
        let dev = self.dev.iter().map(|dev| (&dev.set, Some(&dev.labels)));
        [Fingerprint::of([(&self.train, None)], names), Fingerprint::of(dev, names)]
    }

    pub(crate) fn cached_tokens(&self) -> usize {
        self.train.ids.len() + self.train.target_bounds.last().unwrap_or(&0)
    }

    fn facts(&self) -> Facts {
        Facts {
            examples: self.train.len(),
            batches: self.sampler.epoch(0).len(),
            steps: trainer::total_steps(self, &self.recipe.train),
            longest: self.train.lengths().into_iter().max().unwrap_or(0) as usize,
            evaluated: self.dev.iter().map(|dev| dev.set.len()).sum(),
            known: self.dev.iter().map(|dev| odd::known(&self.train, &dev.set)).sum(),
        }
    }

    /// The lengths of the largest batch that the sampler can produce. For a model that answers in text, of the longest sources and
    /// the longest targets, whose ever they are: no batch needs more.
    fn largest_batch(&self, recipe: &Recipe) -> Result<Lengths> {
        let by = batch_by(recipe.train.batch);
        let sources = Sampler::new(lengths_of(&self.train, recipe), by, Some(recipe.seed))?.largest_batch();
        check_tokens(&sources)?;
        let mut targets = self.train.target_lengths();
        if let Some(targets) = &mut targets {
            targets.sort_unstable_by(|a, b| b.cmp(a));
            targets.truncate(sources.len());
        }
        Ok(Lengths { sources, targets })
    }

    /// What a run holds on the host beside the batch that is being run: the order of an epoch and of an evaluation, the batches of a step
    /// that wait, predictions, and what is said of each label.
    fn host_bytes(&self, recipe: &Recipe, largest: &Lengths) -> usize {
        // numbers in one list and in one list a batch, which has a header and what the allocator adds
        let order = |examples: usize, tokens: usize| {
            let batches = match recipe.train.batch {
                recipe::Batch::Sequences(n) => examples.div_ceil(n),
                // two batches that follow each other have more tokens than one may have
                recipe::Batch::Tokens(n) => examples.min(2 * tokens.div_ceil(n)),
            };
            // lists that grow take up to twice their length
            8 * examples + (4 + 4) * examples + (2 * 24 + 32 + 16) * batches
        };
        let training = order(self.train.len(), self.train.ids.len());
        let evaluation = self.dev.iter().map(|DevSet { set, .. }| {
            let answer = if self.answers.is_some() { 2 * (24 + 32) + 4 * recipe.data.max_target_length } else { 8 };
            order(set.len(), set.ids.len()) + (4 + answer) * set.len()
        });
        let waiting = (recipe.train.accumulate - 1).saturating_mul(largest.host_bytes());
        // no more than all examples
        let all = Lengths { sources: lengths_of(&self.train, recipe), targets: self.train.target_lengths() };
        let labels = LABEL_BYTES * self.config.num_labels();
        training + evaluation.max().unwrap_or(0) + waiting.min(all.host_bytes()) + labels
    }

    /// What chooses ratios, if the recipe leaves any to the run, by the plan of all rows.
    fn ratios(&self, plan: &Plan) -> Result<Option<Ratios>> {
        let keep = &self.recipe.keep;
        if self.auto.is_empty() {
            return Ok(None);
        }
        // a frozen linear keeps nothing and has no gradient to follow
        let measured = plan.ledger.entries.iter().filter(|e| e.what == "projections");
        let learns: HashSet<&str> = measured.map(|e| e.site.as_str()).collect();
        let sites: Vec<_> = self.auto.iter().filter(|(site, _)| learns.contains(site.as_str())).cloned().collect();
        let settings = ratios::Settings { every: keep.auto_every, share: keep.auto_share };
        let mut ratios = Ratios::new(settings, &sites);
        if let Some(limit) = keep.bytes {
            let largest = self.largest_batch(&self.recipe)?;
            let sum = |lengths: &[u32]| lengths.iter().map(|&l| l as usize).sum();
            let rows = sites.iter().map(|(_, rows)| match rows {
                RowsOf::Tokens => sum(&largest.sources),
                RowsOf::Targets => sum(largest.targets.as_deref().unwrap_or_default()),
                RowsOf::Sequences => largest.sources.len(),
            });
            ratios.limit(limit as usize, &plan.ledger, &rows.collect::<Vec<_>>())?;
        }
        Ok(Some(ratios))
    }

    /// The plan of the largest step that the sampler can produce, and of the evaluations; where the run chooses ratios, of a step that
    /// measures and keeps all rows there, though no more than `keep.bytes`.
    ///
    /// # Errors
    /// Those of [`Job::plan_as`]; a `keep.bytes` that no ratios meet.
    pub fn plan(&self) -> Result<Plan> {
        let mut plan = self.plan_as(&self.recipe)?;
        if let (Some(_), Some(limit)) = (self.ratios(&plan)?, self.recipe.keep.bytes) {
            plan.kept_bytes = plan.kept_bytes.min(limit as usize);
        }
        Ok(plan)
    }

    /// The plan with another recipe over the same model and data, which differs in `[keep]`, `[train]`, `[optim]` or a lower `data.max_length`.
    ///
    /// # Errors
    /// Frozen keys that split a stacked weight; examples longer than a batch by tokens may be; settings of the optimizer that exclude each
    /// other.
    pub fn plan_as(&self, recipe: &Recipe) -> Result<Plan> {
        let by = batch_by(recipe.train.batch);
        let mut evaluated = Vec::new();
        for DevSet { set, .. } in &self.dev {
            let (lengths, targets) = (lengths_of(set, recipe), set.target_lengths());
            let of = |batch: &[u32], lengths: &[u32]| batch.iter().map(|&i| lengths[i as usize]).collect();
            evaluated.extend(Sampler::new(lengths.clone(), by, None)?.epoch(0).iter().map(|batch| Lengths {
                sources: of(batch, &lengths),
                targets: targets.as_ref().map(|targets| of(batch, targets)),
            }));
        }
        let adapted;
        let sites = match recipe.train.method == self.recipe.train.method {
            true => &self.sites,
            false => {
                let mut blank = Model::new(self.config.clone(), &Device::meta(1), DType::F32);
                choose_trained(&mut blank, recipe)?;
                adapted = blank.sites();
                &adapted
            }
        };
        let mut policy = policy(&recipe.keep, sites)?;
        let auto = auto_sites(&recipe.keep, sites);
        auto.iter().for_each(|(site, _)| policy.set_ratio(site, 1.0));
        let largest = self.largest_batch(recipe)?;
        let host = self.host_bytes(recipe, &largest);
        let remembered =
            sites.iter().filter(|site| matches!(site_keep(&recipe.keep, site), Keep::Rows(s) if s.remembers()));
        let cached = remembered.count() * self.cached_tokens();
        // the second batch of a step adds to gradients that are there, and those after it need what it needs
        let distinct = recipe.train.accumulate.min(2);
        let mut plan = plan::plan(&Shape {
            config: &self.config,
            choose_trained: &|model| choose_trained(model, recipe),
            optim: Settings::from(&recipe.optim),
            policy: Arc::new(policy),
            auto: &auto,
            micros: &vec![largest; distinct],
            evaluated: &plan::outermost(evaluated),
            longest_answer: recipe.data.max_target_length,
            cached_tokens: if recipe.keep.cache == CacheIn::Memory { self.cached_tokens() } else { 0 },
            regression: self.task.is_regression(),
            threads: rayon::current_num_threads(),
            resident: self.resident,
            host,
            mapped: if recipe.keep.cache == CacheIn::File { cached } else { 0 },
        })?;
        // a step has no more batches than an epoch
        plan.tokens = (plan.tokens / distinct).saturating_mul(recipe.train.accumulate).min(self.train.ids.len());
        Ok(plan)
    }

    /// What of the recipe fits into `memory` bytes of this process; see [`fit::search`].
    ///
    /// # Errors
    /// Those of [`Job::plan_as`].
    pub fn fits(&self, memory: usize) -> Result<Vec<Fit>> {
        let lengths =
            [&self.train].into_iter().chain(self.dev.iter().map(|dev| &dev.set)).flat_map(TokenisedSet::lengths);
        let batches = match self.recipe.train.batch {
            // one sequence a step says nothing about a ratio
            recipe::Batch::Sequences(_) if !self.auto.is_empty() && self.recipe.train.accumulate == 1 => {
                2..=self.train.len()
            }
            recipe::Batch::Sequences(_) => 1..=self.train.len(),
            recipe::Batch::Tokens(_) => lengths.max().unwrap_or(1) as usize..=self.train.ids.len(),
        };
        fit::search(&self.recipe, memory, batches, &|recipe| self.plan_as(recipe))
    }

    /// The model with its weights.
    ///
    /// # Errors
    /// A checkpoint that does not fit its configuration; new weights that an adapter's folder would lack.
    pub fn model(&mut self) -> Result<Model> {
        let device = device(self.recipe.train.precision);
        let anew = Anew { head: true, body: self.recipe.model.init_missing };
        let loaded = load::model(&self.model_dir, self.config.clone(), &device, DType::F32, self.recipe.seed, anew)?;
        self.warnings.extend(loaded.warnings);
        let mut model = loaded.model;
        choose_trained(&mut model, &self.recipe)?;
        if let Some(settings) = lora_config(&self.recipe, &self.config) {
            let lost = |key: &&String| !lora::is_saved_whole(&settings.modules_to_save, key);
            if let Some(key) = loaded.initialised.iter().find(lost) {
                return Err(Error::usage(format!(
                    "train.modules_to_save: {key} is not in the checkpoint, and would not be in the adapter"
                ))
                .hint("name its module there too, so that it is trained and saved with the adapter"));
            }
        }
        Ok(model)
    }

    /// The model and all that its training needs. `cache` is the norm cache's file, where it lives in one.
    ///
    /// # Errors
    /// A norm cache that cannot be made.
    pub fn engine(&self, model: Model, cache: &Path) -> Result<Engine> {
        let device = model.registry.params.device().clone();
        let norms = match self.policy.remembers_norms() {
            true => {
                let store = match self.recipe.keep.cache {
                    CacheIn::Memory => Store::Memory,
                    CacheIn::File => Store::File(cache),
                };
                let sites = remembering_sites(&self.policy, &model);
                Some(Arc::new(NormMemory::new(&device, &sites, self.cached_tokens(), store)?))
            }
            false => None,
        };
        let ratios = self.ratios(&self.plan_as(&self.recipe)?)?;
        let mut policy = self.policy.clone();
        if let Some(ratios) = &ratios {
            ratios.apply(&mut policy);
        }
        Ok(Engine {
            optimizer: Optimizer::new(Settings::from(&self.recipe.optim), &model.registry.params),
            model,
            policy,
            norms,
            ratios,
            probe: None,
            key: Key::new(self.recipe.seed).named("run"),
            dropout: true,
        })
    }
}
