//! The one training loop.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use colrow_models::hub::Needs;
use colrow_models::lora;
use colrow_models::save::{save_adapter_folder, save_model_folder};
use colrow_tensor::{Error, Result};
use serde_json::{Map, Value, json};

use crate::checkpoint::{self, State};
use crate::data::{collate, places};
use crate::engine::{Engine, Micro, StepStats};
use crate::evaluate::{Evaluation, evaluate};
use crate::folder::{self, RunFolder};
use crate::machine;
use crate::metrics::Metric;
use crate::plan::{self, Plan};
use crate::ratios::Ratios;
use crate::recipe::{Batch, Every, Recipe};
use crate::schedule::{lr_at, warmup_steps};
use crate::setup::{Job, batch_by, lora_config, model_config};

/// What a run tells while it runs.
pub trait Observer {
    /// What the run needs is known, and nothing is written or read in yet.
    ///
    /// # Errors
    /// One that ends the run here.
    fn planned(&mut self, _job: &Job, _plan: &Plan) -> Result<()> {
        Ok(())
    }
    /// A run is about to start or go on at `step` of `steps`.
    fn start(&mut self, step: u64, steps: u64);
    /// A step was done.
    fn step(&mut self, step: u64, epoch: f64, stats: &StepStats);
    /// `done` of `of` examples are evaluated.
    fn evaluating(&mut self, done: usize, of: usize);
    /// An evaluation was done at `step`; `best` if it is the best so far.
    fn evaluation(&mut self, step: u64, evaluation: &Evaluation, best: bool);
    /// Something that the user should know.
    fn warn(&mut self, message: &str);
}

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// It ran to its end; the summary.
    Finished(Value),
    /// It was asked to stop, and wrote a checkpoint at this step.
    Interrupted(u64),
}

/// Runs a recipe in its run folder, from the start or with `resume` from the newest checkpoint. A set `stop` ends the run after
/// the current step with a checkpoint.
///
/// # Errors
/// Anything that is wrong with recipe, model, data or folder; a loss or gradient that is not finite.
pub fn train(recipe: Recipe, resume: bool, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
    let Some(output) = recipe.output.clone().map(PathBuf::from) else {
        return Err(Error::usage("output: expected a run folder, found nothing")
            .hint("set it in the recipe or by --set output=FOLDER"));
    };
    // before minutes of tokenising
    RunFolder::check(&output, &recipe, resume)?;
    if resume && let Some(summary) = RunFolder::summary(&output)? {
        observer.warn("this run has ended; nothing is left to do");
        return Ok(Outcome::Finished(summary));
    }
    let (model, _) = model_config(&recipe, Needs::Weights)?;
    folder::check_apart(&output, &model)?;
    let mut job = crate::setup::prepare(recipe, Needs::Weights)?;
    let metric = best_metric(&job)?;
    let plan = job.plan()?;
    observer.planned(&job, &plan)?;
    // before the folder, so that a model that cannot be read leaves no run behind
    let model = job.model()?;
    let mut folder = RunFolder::open(&output, &job.recipe, resume)?;
    let mut engine = job.engine(model, &folder.norms())?;
    job.warnings.iter().for_each(|w| observer.warn(w));
    let state = match checkpoint::list(&folder.checkpoints()).pop() {
        Some((step, path)) if resume => {
            let state = checkpoint::read(&path, &mut engine).map_err(|e| {
                e.at(path.display()).hint(
                    "remove this folder, and --resume goes on from the checkpoint before it, or from the beginning",
                )
            })?;
            folder.rewind(step)?;
            state
        }
        _ => {
            if resume {
                observer.warn("this run has no checkpoint yet; it starts from the beginning");
            }
            folder.rewind(0)?;
            State::default()
        }
    };
    let steps_before = state.step;
    let mut run = Run {
        total: total_steps(&job),
        job,
        engine,
        folder,
        state,
        metric,
        times: Vec::new(),
        timeline: Vec::new(),
        timeline_peak: 0,
        last: None,
        tokens: 0,
    };
    if run.state.step == 0 {
        run.log_ratios(|_| None)?;
    }
    observer.start(run.state.step, run.total);
    let clock = Instant::now();
    let seconds_before = run.state.seconds;
    let finished = run.steps(observer, stop, &|| seconds_before + clock.elapsed().as_secs_f64());
    if !finished.map_err(|e| run.locate(e))? {
        return Ok(Outcome::Interrupted(run.state.step));
    }
    let summary = run.summary(&plan, run.state.step - steps_before);
    run.folder.write_summary(&summary)?;
    Ok(Outcome::Finished(summary))
}

fn best_metric(job: &Job) -> Result<Metric> {
    let main = job.task.main_metric();
    let Some(name) = &job.recipe.train.best_metric else { return Ok(main) };
    let mut known = job.scorer.metrics().to_vec();
    if !job.task.is_regression() && !known.contains(&Metric::MacroF1) {
        known.push(Metric::MacroF1);
    }
    known.push(Metric::Loss);
    known.iter().find(|m| m.name() == name).copied().ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|m| m.name()).collect();
        Error::usage(format!("train.best_metric: expected one of {}, found `{name}`", names.join(", ")))
    })
}

/// Optimizer steps of epoch `epoch`.
fn steps_in(job: &Job, epoch: u64) -> u64 {
    let batches = match job.recipe.train.batch {
        Batch::Sequences(n) => job.train.len().div_ceil(n),
        Batch::Tokens(_) => job.sampler.epoch(epoch).len(),
    };
    batches.div_ceil(job.recipe.train.accumulate) as u64
}

/// Optimizer steps of the whole run: whole epochs and a part of the last.
fn total_steps(job: &Job) -> u64 {
    if let Some(steps) = job.recipe.train.steps {
        return steps;
    }
    let epochs = job.recipe.train.epochs;
    let whole = match job.recipe.train.batch {
        Batch::Sequences(_) => (epochs as u64).saturating_mul(steps_in(job, 0)),
        Batch::Tokens(_) => (0..epochs as u64).map(|e| steps_in(job, e)).sum(),
    };
    let part = epochs.fract();
    let rest = if part > 0.0 { (part * steps_in(job, epochs as u64) as f64).ceil() as u64 } else { 0 };
    whole.saturating_add(rest).max(1)
}

struct Run {
    job: Job,
    engine: Engine,
    folder: RunFolder,
    state: State,
    metric: Metric,
    total: u64,
    times: Vec<f64>,
    /// Live bytes over this process's step with the largest peak.
    timeline: Vec<colrow_autograd::Mark>,
    timeline_peak: usize,
    last: Option<Evaluation>,
    tokens: usize,
}

impl Run {
    /// Runs steps until the end (true) or until asked to stop (false).
    fn steps(&mut self, observer: &mut dyn Observer, stop: &AtomicBool, seconds: &dyn Fn() -> f64) -> Result<bool> {
        while self.state.step < self.total && !self.out_of_patience() {
            let batches = self.job.sampler.epoch(self.state.epoch);
            let groups: Vec<_> = batches.chunks(self.job.recipe.train.accumulate).collect();
            for group in groups.iter().skip(self.state.step_in_epoch as usize) {
                let progress = self.state.epoch as f64 + (self.state.step_in_epoch + 1) as f64 / groups.len() as f64;
                let stats = self.step(group, progress)?;
                self.state.seconds = seconds();
                let epoch_done = self.state.step_in_epoch == groups.len() as u64;
                observer.step(self.state.step, progress, &stats);
                if epoch_done {
                    self.state.epoch += 1;
                    self.state.step_in_epoch = 0;
                }
                let last = self.state.step == self.total;
                let due = |every: Every| match every {
                    Every::Epoch => epoch_done || last,
                    Every::Steps(n) => self.state.step.is_multiple_of(n) || last,
                };
                let (evaluates, saves) = (due(self.job.recipe.train.eval_every), due(self.job.recipe.train.save_every));
                let mut enough = false;
                if evaluates {
                    enough = self.evaluate(progress, observer)?;
                }
                let stopping = stop.load(Ordering::Relaxed) && !last;
                if saves || stopping || enough {
                    let keep = self.job.recipe.train.keep_checkpoints;
                    checkpoint::write(&self.folder.checkpoints(), &self.engine, &self.state, keep)?;
                }
                if last || enough {
                    return self.finish(observer).map(|()| true);
                }
                if stopping {
                    return Ok(false);
                }
                if epoch_done {
                    break;
                }
            }
        }
        // resumed from the last checkpoint of a run that had done all but its summary
        self.finish(observer).map(|()| true)
    }

    fn step(&mut self, group: &[Vec<u32>], epoch: f64) -> Result<StepStats> {
        let set = &self.job.train;
        let micro = |examples: &Vec<u32>| {
            let (places, target_places) = places(set, examples);
            Micro { batch: collate(set, examples), places: Some(places), target_places }
        };
        let micros: Vec<Micro> = group.iter().map(micro).collect();
        let optim = &self.job.recipe.optim;
        let warmup = warmup_steps(optim.warmup, self.total);
        let lr = lr_at(optim.schedule, optim.lr, self.state.step, warmup, self.total);
        let before: Vec<f64> = self.engine.ratios.iter().flat_map(Ratios::sites).map(|s| s.ratio).collect();
        let clock = Instant::now();
        let mut stats = self.engine.step(&micros, lr, self.state.step + 1, true)?;
        let seconds = clock.elapsed().as_secs_f64();
        self.state.step += 1;
        self.state.step_in_epoch += 1;
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
        if self.state.step.is_multiple_of(self.job.recipe.train.log_every) || self.state.step == 1 {
            self.folder.log(&json!({
                "kind": "train", "step": self.state.step, "epoch": epoch, "loss": stats.loss, "lr": lr,
                "grad_norm": stats.grad_norm, "step_seconds": seconds, "tokens": stats.tokens,
                "kept_bytes": stats.kept_bytes, "peak_bytes": stats.peak.total(),
            }))?;
        }
        if stats.measured {
            self.log_ratios(|i| Some(before[i]))?;
        }
        Ok(stats)
    }

    /// Logs the ratios that the run chooses, to three digits, where those are not what they were before.
    fn log_ratios(&mut self, before: impl Fn(usize) -> Option<f64>) -> Result<()> {
        let digits = |ratio: f64| (ratio * 1e3).round() / 1e3;
        let sites = self.engine.ratios.iter().flat_map(Ratios::sites).enumerate();
        let changed = sites.filter(|(i, site)| before(*i).is_none_or(|b| digits(b) != digits(site.ratio)));
        let ratios: Map<_, _> = changed.map(|(_, site)| (site.site.clone(), json!(digits(site.ratio)))).collect();
        if ratios.is_empty() {
            return Ok(());
        }
        self.folder.log(&json!({"kind": "ratios", "step": self.state.step, "ratios": ratios}))
    }

    /// Metrics of all development sets, and of the first of them by itself; `None` if there is none.
    fn measure(&mut self, observer: &mut dyn Observer) -> Result<Option<(Map<String, Value>, Evaluation)>> {
        let device = self.engine.model.registry.params.device().clone();
        device.meter().reset_peak();
        let by = batch_by(self.job.recipe.train.batch);
        let mut metrics = Map::new();
        let mut first = None;
        for dev in &self.job.dev {
            let done = |n| observer.evaluating(n, dev.labels.len());
            let evaluation =
                evaluate(&self.engine, &self.job.scorer, &dev.set, &dev.labels, self.job.answers.as_ref(), by, done)?;
            if let Some(loss) = evaluation.get(Metric::Loss).filter(|loss| !loss.is_finite()) {
                return Err(Error::new(format!("the loss of the development set is {loss}")));
            }
            metrics.extend(evaluation.to_json(dev.prefix));
            first.get_or_insert(evaluation);
        }
        self.state.peak = plan::larger(self.state.peak, device.meter().peak());
        Ok(first.map(|first| (metrics, first)))
    }

    /// Evaluates, keeps the model if it is the best so far, and says whether it is time to stop early.
    fn evaluate(&mut self, epoch: f64, observer: &mut dyn Observer) -> Result<bool> {
        let Some((metrics, evaluation)) = self.measure(observer)? else { return Ok(false) };
        let value = evaluation.get(self.metric).unwrap_or(f64::NAN);
        let better = self
            .state
            .best
            .is_none_or(|(_, best)| if self.metric.higher_is_better() { value > best } else { value < best });
        self.state.evaluations_since_best = if better { 0 } else { self.state.evaluations_since_best + 1 };
        if better {
            self.state.best = Some((self.state.step, value));
            self.save_model()?;
        }
        let loss = evaluation.get(Metric::Loss);
        let mut line = json!({
            "kind": "eval", "step": self.state.step, "epoch": epoch, "loss": loss, "metrics": metrics,
        });
        extend(&mut line, evaluation.by_class_in_short());
        self.folder.log(&line)?;
        observer.evaluation(self.state.step, &evaluation, better);
        self.last = Some(evaluation);
        Ok(self.out_of_patience())
    }

    fn out_of_patience(&self) -> bool {
        self.job.recipe.train.patience.is_some_and(|p| self.state.evaluations_since_best >= p)
    }

    fn save_model(&self) -> Result<()> {
        let (model, dir, tokenizer) = (&self.engine.model, self.folder.model(), &self.job.model_dir);
        let usage = Some(self.job.usage.to_json());
        match lora_config(&self.job.recipe, &self.job.config) {
            None => save_model_folder(&dir, &model.config, &model.registry.saved(|_| true), tokenizer, usage),
            Some(settings) => {
                // a folder's name means the same wherever the adapter is used from; a hub id does anyway
                let base = match Path::new(&self.job.recipe.model.path).canonicalize() {
                    Ok(folder) => folder.display().to_string(),
                    Err(_) => self.job.recipe.model.path.clone(),
                };
                let tensors = lora::saved(&model.registry, &settings);
                let settings = lora::to_json(&settings, model, &base);
                save_adapter_folder(&dir, settings, &tensors, tokenizer, usage)
            }
        }
    }

    fn finish(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if self.last.is_none() {
            // the step's evaluation was logged and judged before its checkpoint was written; only its numbers are missing
            self.last = self.measure(observer)?.map(|(_, evaluation)| evaluation);
        }
        Ok(())
    }

    /// Says where in the run an error came up, and what is safe.
    fn locate(&self, e: Error) -> Error {
        let e = e.at(format!("step {} of {}", self.state.step + 1, self.total)).at(self.folder.path().display());
        match checkpoint::list(&self.folder.checkpoints()).pop() {
            Some((_, path)) => e.or_hint(format!("the last good checkpoint is {}", path.display())),
            None => e.or_hint(
                "no checkpoint was written yet; a lower optim.lr or a warm-up often helps where numbers blow up",
            ),
        }
    }

    fn summary(&self, plan: &Plan, steps_here: u64) -> Value {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        let seconds: f64 = self.times.iter().sum();
        let fin = self.last.as_ref().map(|e| e.to_json(""));
        let name = self.folder.path().file_name().map(|n| n.to_string_lossy().into_owned());
        let sites = plan::sites(&self.engine.policy, &self.job.auto, &self.engine.model.sites(), &self.state.ledger);
        let policy: Vec<_> = sites.iter().map(|s| json!({"site": s.name, "keep": s.policy})).collect();
        let mut summary = json!({
            "name": name,
            "task": self.job.task.name(),
            "metric": self.metric.name(),
            "best": self.state.best.map(|(step, value)| json!({"step": step, "value": value})),
            "final": fin,
            "steps": self.state.step,
            "steps_here": steps_here,
            "epochs": self.state.epoch as f64 + self.state.step_in_epoch as f64 / steps_in(&self.job, self.state.epoch) as f64,
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
