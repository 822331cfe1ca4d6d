//! The one training loop.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use colrow_models::checkpoint::adapter;
use colrow_models::checkpoint::hub::{self, Needs};
use colrow_models::checkpoint::save::{save_adapter_folder, save_model_folder};
use colrow_models::model::Model;
use colrow_tensor::{Error, Named, Result};
use serde_json::{Map, Value, json};

use crate::checkpoint::{self, State};
use crate::comm::{Together, alike};
use crate::data::Batch;
use crate::digests;
use crate::evaluate::evaluate;
use crate::folder::{self, RunFolder};
use crate::job::{Job, batch_by};
use crate::machine;
use crate::metrics::Metric;
use crate::observer::{Logged, Observer};
use crate::odd::{self, ABSURD, Losses};
use crate::plan::{self, Plan};
use crate::prepare::model_config;
use crate::ratios::Ratios;
use crate::recipe::{Every, Logger, Recipe};
use crate::resume::{check_length, resume_from};
use crate::score::Evaluation;
use crate::step::{Engine, StepStats};
use crate::trained::lora_config;

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// It ran to its end; the summary.
    Finished(Value),
    /// It was asked to stop, and there is a checkpoint at this step.
    Interrupted(u64),
}

/// Runs a recipe in its run folder, from the start or with `resume` from the newest checkpoint. A set `stop` ends the run after
/// the current step, or a batch of an evaluation, with a checkpoint.
///
/// # Errors
/// Anything that is wrong with recipe, model, data or folder; a loss or gradient that is not finite.
pub fn train(recipe: Recipe, resume: bool, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
    train_among(recipe, resume, observer, stop, &Together::default())
}

/// The same as one of several processes, which all run the same recipe and see the same files. The first writes; a `stop` that is set in any of
/// them ends the run of all.
///
/// # Errors
/// The same in all processes: those of any; processes that differ, are gone or do not answer.
pub fn train_among(
    recipe: Recipe,
    resume: bool,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
    together: &Together,
) -> Result<Outcome> {
    alike::check(&recipe, together)?;
    let begun = together.agree(begin(recipe, resume, observer, together))?;
    let Begun { output, mut job, metric, plan, model, weight_warnings, other_length } = match begun {
        Ok(begun) => *begun,
        Err(summary) => return Ok(Outcome::Finished(summary)),
    };
    alike::check_job(&job, together)?;
    let mut folder = together.agree(RunFolder::open(&output, &job.recipe, resume, together))?;
    let mut engine = together.agree(job.engine(model, &folder.norms()))?;
    job.warnings.extend(odd::kept(&job.recipe.keep, &plan));
    let newest = together.agree(checkpoint::list(&folder.checkpoints()))?.pop().filter(|_| resume);
    for (i, warning) in job.warnings.iter().enumerate() {
        // a checkpoint brings what the model's folder lacks
        if newest.is_none() || !weight_warnings.contains(&i) {
            observer.warn(warning);
        }
    }
    let total = job.total_steps(&job.recipe.train);
    let before = other_length.map(|recipe| job.total_steps(&recipe.train)).unwrap_or(total);
    // another number of epochs where steps decide, and the like
    if resume
        && total == before
        && let Some(summary) = together.agree(RunFolder::summary(&output))?
    {
        observer
            .warn(&format!("this run has ended: it has {total} steps with these settings too; nothing is left to do"));
        return Ok(Outcome::Finished(summary));
    }
    let resumed = newest.map(|(_, path)| {
        let state = resume_from(&path, &job, &mut engine, observer)?;
        check_length(&job, &state, before, total, observer).map(|()| state)
    });
    // nobody changes the folder before all have read it
    let resumed = together.agree(resumed.transpose())?;
    let begun = (|| {
        let state = match resumed {
            Some(state) => {
                folder.adopt(&job.recipe, total > before)?;
                // the evaluation that is still to come will be logged again
                folder.rewind(|step, kind| {
                    step < state.step || step == state.step && !(state.evaluates && kind == "eval")
                })?;
                state
            }
            None => {
                if resume {
                    observer.warn("this run has no checkpoint yet; it starts from the beginning");
                }
                folder.adopt(&job.recipe, total != before)?;
                folder.rewind(|_, _| false)?;
                let frozen = digests::of_frozen(&engine.model.registry.params);
                State { data: Some(job.fingerprints()), frozen, ..State::default() }
            }
        };
        if job.recipe.train.log.contains(&Logger::TensorBoard) {
            folder.log_events(state.step + 1)?;
        }
        Ok(state)
    })();
    let state = together.agree(begun)?;
    run(Run::new(job, engine, folder, state, metric, total, together), &plan, observer, stop)
}

/// What a run needs before it opens its folder.
struct Begun {
    output: PathBuf,
    job: Job,
    metric: Metric,
    plan: Plan,
    model: Model,
    /// Which of the job's warnings are about weights.
    weight_warnings: Range<usize>,
    /// The recipe of the run that is resumed, if that tells another length.
    other_length: Option<Recipe>,
}

/// Reads all that a run needs and writes nothing; or gives the summary of the run, if it has ended.
fn begin(
    recipe: Recipe,
    resume: bool,
    observer: &mut dyn Observer,
    together: &Together,
) -> Result<std::result::Result<Box<Begun>, Value>> {
    let Some(output) = recipe.output.clone().map(PathBuf::from) else {
        return Err(Error::usage("output: expected a run folder, found nothing")
            .hint("set it in the recipe or by --set output=FOLDER"));
    };
    // before minutes of tokenising
    let other_length = RunFolder::check(&output, &recipe, resume)?;
    if resume
        && other_length.is_none()
        && let Some(summary) = RunFolder::summary(&output)?
    {
        observer.warn("this run has ended; nothing is left to do");
        return Ok(Err(summary));
    }
    let (model, config) = model_config(&recipe, Needs::Weights)?;
    folder::check_apart(&output, &model, config.family())?;
    let mut job = crate::prepare::prepare(recipe, Needs::Weights)?;
    if together.size() > 1 && !job.auto.is_empty() {
        return Err(Error::usage("keep.ratio: \"auto\" measures variances within one process, and there are several")
            .hint("let one process choose the ratios, and give them as numbers"));
    }
    job.together = together.clone();
    let shards = job.recipe.train.accumulate;
    if together.size() > shards {
        let idle = together.size() - shards;
        job.warnings.push(format!(
            "a step has as many shards as train.accumulate says, {shards}, and there are {} processes: {idle} of them compute none; a smaller \
             train.batch and a larger train.accumulate share the same step out",
            together.size()
        ));
    }
    let metric = best_metric(&job)?;
    let plan = job.plan()?;
    observer.planned(&job, &plan)?;
    // before the folder, so that a model that cannot be read leaves no run behind
    let data_warnings = job.warnings.len();
    let model = job.model()?;
    let weight_warnings = data_warnings..job.warnings.len();
    Ok(Ok(Box::new(Begun { output, job, metric, plan, model, weight_warnings, other_length })))
}

/// Runs the steps that are left.
fn run(mut run: Run, plan: &Plan, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
    let steps_before = run.state.step;
    if run.state.step == 0 {
        run.log_ratios(|_| None)?;
    } else {
        // a run that ended between a checkpoint and the removal of older ones may have none left to write
        run.together.agree(run.prune())?;
    }
    observer.start(run.state.step, run.total);
    let clock = Instant::now();
    let seconds_before = run.state.seconds;
    let finished = run.steps(observer, stop, &|| seconds_before + clock.elapsed().as_secs_f64());
    if !finished.map_err(|e| run.locate(e))? {
        return Ok(Outcome::Interrupted(run.state.step));
    }
    let evaluated = run.last.as_ref().and_then(|e| e.get(Metric::Loss));
    if let Some(warning) = run.losses.at_end(run.state.first_loss, evaluated) {
        observer.warn(&warning);
        run.job.warnings.push(warning);
    }
    let summary = run.summary(plan, run.state.step - steps_before);
    run.together.agree(run.folder.write_summary(&summary))?;
    Ok(Outcome::Finished(summary))
}

fn best_metric(job: &Job) -> Result<Metric> {
    let main = job.task.main_metric();
    let Some(name) = &job.recipe.train.best_metric else { return Ok(main) };
    let mut known = job.objective.metrics().to_vec();
    let has_classes = !job.task.is_regression() && !job.task.is_of_tokens();
    if has_classes && !known.contains(&Metric::MacroF1) {
        known.push(Metric::MacroF1);
    }
    known.push(Metric::Loss);
    known.iter().find(|m| m.name() == name).copied().ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|m| m.name()).collect();
        Error::usage(format!("train.best_metric: expected one of {}, found `{name}`", names.join(", ")))
    })
}

/// What comes after a step.
#[derive(PartialEq)]
enum Next {
    Step,
    End,
    Stop,
}

struct Run {
    job: Job,
    engine: Engine,
    folder: RunFolder,
    state: State,
    metric: Metric,
    total: u64,
    /// Step of the newest checkpoint, while no loss of its weights is known.
    unproven: Option<u64>,
    /// Whether the weights have gone wrong: no loss, gradient or weight of theirs is finite.
    blown_up: bool,
    times: Vec<f64>,
    /// Live bytes over this process's step with the largest peak.
    timeline: Vec<colrow_autograd::Mark>,
    timeline_peak: usize,
    last: Option<Evaluation>,
    tokens: usize,
    losses: Losses,
    /// Whether a step is under way, and not what follows it.
    stepping: bool,
    told_of_one_class: bool,
    together: Together,
}

impl Run {
    fn new(
        job: Job,
        engine: Engine,
        folder: RunFolder,
        state: State,
        metric: Metric,
        total: u64,
        together: &Together,
    ) -> Self {
        // whether the newest checkpoint is good shows in the first loss of its weights
        let unproven = Some(state.step).filter(|&step| step > 0 && state.good != Some(step));
        Self {
            total,
            job,
            engine,
            folder,
            state,
            metric,
            unproven,
            blown_up: false,
            times: Vec::new(),
            timeline: Vec::new(),
            timeline_peak: 0,
            last: None,
            tokens: 0,
            losses: Losses::default(),
            stepping: false,
            told_of_one_class: false,
            together: together.clone(),
        }
    }

    /// Appends a line to the log.
    fn log(&mut self, line: &Value) -> Result<()> {
        self.together.agree(self.folder.log(line))
    }

    /// Runs steps until the end (true) or until asked to stop (false).
    fn steps(&mut self, observer: &mut dyn Observer, stop: &AtomicBool, seconds: &dyn Fn() -> f64) -> Result<bool> {
        if self.state.evaluates {
            match self.after_step(observer, stop)? {
                Next::Step => {}
                next => return self.finish(next, observer, stop),
            }
        }
        while self.state.step < self.total && !self.out_of_patience() {
            let batches = self.job.sampler.epoch(self.state.epoch);
            let groups: Vec<_> = batches.chunks(self.job.recipe.train.accumulate).collect();
            for group in groups.iter().skip(self.state.step_in_epoch as usize) {
                let progress = self.state.epoch as f64 + (self.state.step_in_epoch + 1) as f64 / groups.len() as f64;
                let stats = self.step(group, progress, observer)?;
                self.state.seconds = seconds();
                self.losses.step(stats.loss).iter().for_each(|w| observer.warn(w));
                observer.step(self.state.step, progress, &stats);
                if self.state.step_in_epoch == groups.len() as u64 {
                    self.state.epoch += 1;
                    self.state.step_in_epoch = 0;
                }
                match self.after_step(observer, stop)? {
                    Next::Step => {}
                    next => return self.finish(next, observer, stop),
                }
                if self.state.step_in_epoch == 0 {
                    break;
                }
            }
        }
        // resumed from the last checkpoint of a run that had done all but its summary
        self.finish(Next::End, observer, stop)
    }

    /// Evaluates and writes a checkpoint where they are due. Asked to stop, it leaves the evaluation to the resumed run.
    fn after_step(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Next> {
        let epoch_done = self.state.step_in_epoch == 0;
        let last = self.state.step == self.total;
        let due = |every: Every| match every {
            Every::Epoch => epoch_done || last,
            Every::Steps(n) => self.state.step.is_multiple_of(n) || last,
        };
        let train = &self.job.recipe.train;
        let saves = due(train.save_every);
        self.state.evaluates |= due(train.eval_every);
        let mut proven = self.state.good == Some(self.state.step);
        if self.state.evaluates
            && let Some(loss) = self.evaluate(observer, stop)?
        {
            self.state.evaluates = false;
            proven = self.is_sound(loss);
        }
        let enough = self.out_of_patience();
        let next = match (last || enough) && !self.state.evaluates {
            true => Next::End,
            false if self.together.any(stop.load(Ordering::Relaxed))? => Next::Stop,
            false => Next::Step,
        };
        if saves || enough || next == Next::Stop {
            self.checkpoint(proven)?;
        }
        if let (true, Some((step, best))) = (enough, self.state.best) {
            observer.note(&format!(
                "stopping early: {} has been no better than {best:.4}, of step {step}, in {} evaluations (train.patience)",
                self.metric.name(),
                self.state.evaluations_since_best
            ));
        }
        Ok(next)
    }

    fn step(&mut self, group: &[Vec<u32>], epoch: f64, observer: &mut dyn Observer) -> Result<StepStats> {
        let set = &self.job.train;
        let micros: Vec<Batch> = group.iter().map(|examples| Batch::placed(set, examples)).collect();
        let lr = self.job.learning_rate(self.state.step, self.total);
        let before: Vec<f64> = self.engine.gradient.ratios.iter().flat_map(Ratios::sites).map(|s| s.ratio).collect();
        let clock = Instant::now();
        self.stepping = true;
        let stepped = self.engine.step(&micros, lr, self.state.step + 1, true);
        self.blown_up = stepped.is_err();
        let mut stats = stepped?;
        let seconds = clock.elapsed().as_secs_f64();
        if self.is_sound(stats.loss) {
            self.prove()?;
        }
        self.state.step += 1;
        self.state.step_in_epoch += 1;
        self.stepping = false;
        self.times.push(seconds);
        self.tokens += stats.tokens;
        if stats.kept_bytes > self.state.kept_bytes {
            self.state.kept_bytes = stats.kept_bytes;
            self.state.ledger = stats.ledger.clone();
        }
        self.state.peak = plan::larger(self.state.peak, stats.peak);
        if stats.peak.total() > self.timeline_peak {
            self.timeline_peak = stats.peak.total();
            self.timeline = std::mem::take(&mut stats.timeline);
        }
        self.state.unlogged.0 += stats.loss;
        self.state.unlogged.1 += 1;
        if self.state.step.is_multiple_of(self.job.recipe.train.log_every) || self.state.step == 1 {
            let (sum, steps) = std::mem::take(&mut self.state.unlogged);
            let loss = sum / steps as f64;
            let mut line = json!({
                "kind": "train", "step": self.state.step, "epoch": epoch, "loss": loss, "batch_loss": stats.loss, "lr": lr,
                "grad_norm": stats.grad_norm, "step_seconds": seconds, "tokens": stats.tokens,
                "kept_bytes": stats.kept_bytes, "peak_bytes": stats.peak.total(),
            });
            if let Some(traffic) = stats.traffic {
                let sent = traffic.gradients + traffic.weights;
                extend(
                    &mut line,
                    [("sent_bytes".into(), json!(sent)), ("waited_seconds".into(), json!(traffic.waited))],
                );
            }
            self.log(&line)?;
            let spent: f64 = self.times.iter().sum();
            observer.logged(&Logged {
                step: self.state.step,
                loss,
                lr,
                tokens_per_second: self.tokens as f64 / spent,
                seconds_left: spent / self.times.len() as f64 * (self.total - self.state.step) as f64,
            });
        }
        if stats.measured {
            self.log_ratios(|i| Some(before[i]))?;
        }
        Ok(stats)
    }

    /// Whether a loss is as it should be, or near enough.
    fn is_sound(&mut self, loss: f64) -> bool {
        loss <= ABSURD * self.state.first_loss.get_or_insert(loss).max(1.0)
    }

    /// A loss of the weights as they are is sound, so that a checkpoint that holds them is good, and older ones can go.
    fn prove(&mut self) -> Result<()> {
        let Some(step) = self.unproven.take() else { return Ok(()) };
        self.state.good = Some(step);
        self.together.agree(self.prune())
    }

    fn prune(&self) -> Result<()> {
        if !self.together.is_first() {
            return Ok(());
        }
        checkpoint::prune(&self.folder.checkpoints(), self.job.recipe.train.keep_checkpoints, self.state.good)
    }

    /// Writes a checkpoint; `proven` if a loss of its weights is known and sound.
    fn checkpoint(&mut self, proven: bool) -> Result<()> {
        if let Some(key) = checkpoint::not_finite(&self.engine) {
            self.blown_up = true;
            return self.together.agree(Err(Error::new(format!("{key} is not finite after this step"))));
        }
        if proven {
            self.state.good = Some(self.state.step);
        }
        self.together.agree(self.folder.sync())?;
        checkpoint::write(&self.folder.checkpoints(), &self.engine, &self.state)?;
        self.unproven = Some(self.state.step).filter(|_| !proven);
        self.together.agree(self.prune())
    }

    /// Logs the ratios that the run chooses, to three digits, where those are not what they were before.
    fn log_ratios(&mut self, before: impl Fn(usize) -> Option<f64>) -> Result<()> {
        let digits = |ratio: f64| (ratio * 1e3).round() / 1e3;
        let sites = self.engine.gradient.ratios.iter().flat_map(Ratios::sites).enumerate();
        let changed = sites.filter(|(i, site)| before(*i).is_none_or(|b| digits(b) != digits(site.ratio)));
        let ratios: Map<_, _> = changed.map(|(_, site)| (site.site.clone(), json!(digits(site.ratio)))).collect();
        if ratios.is_empty() {
            return Ok(());
        }
        self.log(&json!({"kind": "ratios", "step": self.state.step, "ratios": ratios}))
    }

    /// Metrics of all development sets, and of the first of them by itself; `None` if asked to stop.
    fn measure(
        &mut self,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Option<(Map<String, Value>, Evaluation)>> {
        let together = self.together.clone();
        let asked = || together.any(stop.load(Ordering::Relaxed));
        if asked()? {
            return Ok(None);
        }
        let device = self.engine.model.registry.params.device().clone();
        device.meter().reset_peak();
        let by = batch_by(self.job.recipe.train.batch);
        let mut metrics = Map::new();
        let mut first = None;
        for dev in &self.job.dev {
            let mut stopped = false;
            let done = |n| {
                observer.evaluating(n, dev.set.len());
                stopped = asked()?;
                if stopped { Err(Error::new("stopped")) } else { Ok(()) }
            };
            let evaluated = evaluate(&self.engine, &dev.set, by, done);
            if stopped {
                return Ok(None);
            }
            let evaluation = evaluated?;
            if let Some(loss) = evaluation.get(Metric::Loss).filter(|loss| !loss.is_finite()) {
                self.blown_up = true;
                return together.agree(Err(Error::new(format!("the loss of the development set is {loss}"))));
            }
            metrics.extend(evaluation.to_json(dev.prefix));
            first.get_or_insert(evaluation);
        }
        self.state.peak = plan::larger(self.state.peak, device.meter().peak());
        Ok(first.map(|first| (metrics, first)))
    }

    /// Evaluates, keeps the model if it is the best so far, and returns the loss; `None` if asked to stop.
    fn evaluate(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Option<f64>> {
        let Some((metrics, evaluation)) = self.measure(observer, stop)? else { return Ok(None) };
        let value = evaluation.get(self.metric).unwrap_or(f64::NAN);
        let better = self
            .state
            .best
            .is_none_or(|(_, best)| if self.metric.higher_is_better() { value > best } else { value < best });
        let loss = evaluation.get(Metric::Loss);
        if better && let Err(e) = self.together.agree(self.save_model()) {
            // what was learned is not lost with the model of it: a resumed run evaluates again, and saves
            let proven = self.is_sound(loss.unwrap_or(f64::NAN));
            // where that cannot be written either, the first error is the one to report
            let _ = self.checkpoint(proven);
            return Err(e);
        }
        self.state.evaluations_since_best = if better { 0 } else { self.state.evaluations_since_best + 1 };
        if better {
            self.state.best = Some((self.state.step, value));
        }
        let mut line = json!({
            "kind": "eval", "step": self.state.step, "epoch": self.epochs(), "loss": loss, "metrics": metrics,
        });
        extend(&mut line, evaluation.by_class_in_short());
        self.log(&line)?;
        observer.evaluation(self.state.step, &evaluation, better);
        if let Some(warning) = evaluation.warning().filter(|_| !self.told_of_one_class) {
            observer.warn(&format!("step {}: {warning}", self.state.step));
            self.told_of_one_class = true;
        }
        self.last = Some(evaluation);
        Ok(Some(loss.unwrap_or(f64::NAN)))
    }

    /// Epochs done.
    fn epochs(&self) -> f64 {
        self.state.epoch as f64 + self.state.step_in_epoch as f64 / self.job.steps_in(self.state.epoch) as f64
    }

    fn out_of_patience(&self) -> bool {
        self.job.recipe.train.patience.is_some_and(|p| self.state.evaluations_since_best >= p)
    }

    fn save_model(&self) -> Result<()> {
        if !self.together.is_first() {
            return Ok(());
        }
        let (model, dir, tokenizer) = (&self.engine.model, self.folder.model(), &self.job.model_dir);
        let usage = Some(self.job.usage.to_json());
        match lora_config(&self.job.recipe, &self.job.config) {
            None => save_model_folder(&dir, &model.config, &model.registry.saved(|_| true), tokenizer, usage),
            Some(settings) => {
                // a folder's name means the same wherever the adapter is used from; a hub id does anyway
                let base = match Path::new(&self.job.recipe.model.path).canonicalize() {
                    Ok(folder) => hub::of_run(&folder).display().to_string(),
                    Err(_) => self.job.recipe.model.path.clone(),
                };
                let tensors = adapter::saved(&model.registry, &settings);
                let settings = adapter::to_json(&settings, model, &base);
                save_adapter_folder(&dir, model.config.family(), settings, &tensors, tokenizer, usage)
            }
        }
    }

    /// Whether the run has ended, as it has not where it was asked to stop.
    fn finish(&mut self, next: Next, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<bool> {
        if next == Next::Stop {
            return Ok(false);
        }
        if self.last.is_none() {
            // the step's evaluation was logged and judged before its checkpoint was written; only its numbers are missing
            self.last = self.measure(observer, stop)?.map(|(_, evaluation)| evaluation);
        }
        Ok(self.last.is_some())
    }

    /// Says where in the run an error came up, and what is safe.
    fn locate(&self, e: Error) -> Error {
        let step = self.state.step + u64::from(self.stepping);
        let e = e.at(format!("step {step} of {}", self.total)).at(self.folder.path().display());
        let folder = |step: u64| self.folder.checkpoints().join(format!("step-{step}")).display().to_string();
        let newest = checkpoint::list(&self.folder.checkpoints()).unwrap_or_default().pop().map(|(step, _)| step);
        let help = "a lower optim.lr or a warm-up often helps where numbers blow up";
        match (newest, self.state.good) {
            (None, _) if self.blown_up => e.or_hint(format!("no checkpoint was written yet; {help}")),
            (None, _) => e.or_hint("no checkpoint was written yet"),
            (Some(newest), _) if !self.blown_up => e.or_hint(format!("--resume goes on from {}", folder(newest))),
            (Some(newest), Some(good)) if newest == good => {
                e.or_hint(format!("the last good checkpoint is {}; {help}", folder(good)))
            }
            (Some(newest), Some(good)) => e.or_hint(format!(
                "the last good checkpoint is {}; the weights in {} had gone wrong already; {help}",
                folder(good),
                folder(newest)
            )),
            (Some(newest), None) => e.or_hint(format!(
                "there is no good checkpoint: the weights in {} had gone wrong already; {help}",
                folder(newest)
            )),
        }
    }

    fn summary(&self, plan: &Plan, steps_here: u64) -> Value {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        let seconds: f64 = self.times.iter().sum();
        let fin = self.last.as_ref().map(|e| e.to_json(""));
        let name = self.folder.path().file_name().map(|n| n.to_string_lossy().into_owned());
        let sites =
            plan::sites(&self.engine.gradient.policy, &self.job.auto, &self.engine.model.sites(), &self.state.ledger);
        let policy: Vec<_> = sites.iter().map(|s| json!({"site": s.name, "keep": s.policy})).collect();
        let mut summary = json!({
            "name": name,
            "task": self.job.task.name(),
            "metric": self.metric.name(),
            "best": self.state.best.map(|(step, value)| json!({"step": step, "value": value})),
            "final": fin,
            "steps": self.state.step,
            "steps_here": steps_here,
            "epochs": self.epochs(),
            "stopped_early": self.out_of_patience(),
            "examples": self.job.train.len(),
            "tokens": self.job.train.ids.len(),
            "seconds": self.state.seconds,
            "step_seconds_median": times.get(times.len() / 2),
            "step_seconds_min": times.first(),
            "tokens_per_second": if seconds > 0.0 { Some(self.tokens as f64 / seconds) } else { None },
            "kept_bytes": self.state.kept_bytes,
            "peak_bytes": self.state.peak.total(),
            "peak_bytes_by_class": self.state.peak,
            "peak_rss_bytes": machine::peak_rss(),
            "planned_kept_bytes": plan.kept_bytes,
            "planned_peak_bytes": plan.peak_bytes,
            "planned_process_bytes": plan.process_bytes,
            "truncated_examples": self.job.train.truncated,
            "warnings": self.job.warnings,
            "policy": policy,
            "ledger": self.state.ledger,
            "timeline": self.timeline,
            "model": self.folder.model(),
            "precision": self.job.recipe.train.precision,
            "threads": rayon::current_num_threads(),
            "version": env!("CARGO_PKG_VERSION"),
        });
        extend(&mut summary, self.last.iter().flat_map(Evaluation::by_class_in_short));
        summary
    }
}

/// Adds fields to a JSON object.
fn extend(object: &mut Value, fields: impl IntoIterator<Item = (String, Value)>) {
    if let Value::Object(object) = object {
        object.extend(fields);
    }
}
