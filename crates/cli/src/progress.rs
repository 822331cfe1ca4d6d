//! Progress of a run on standard error.

use colrow_tensor::{Named, Result};
use colrow_train::job::Job;
use colrow_train::machine::{self, Limit};
use colrow_train::metrics::Metric;
use colrow_train::observer::{Logged, Observer};
use colrow_train::plan::Plan;
use colrow_train::score::Evaluation;
use colrow_train::step::StepStats;

use crate::output::{self, Bar};
use crate::signals::Stop;
use crate::{memory, units};

/// About as many steps of a run are told where standard error is no terminal.
const TOLD: u64 = 40;

/// A bar where standard error is a terminal; elsewhere warnings, evaluations and some of the steps.
pub(crate) struct Progress {
    bar: Option<Bar>,
    name: String,
    loss: f64,
    /// By how many processes the memory of this machine is to be shared; unchecked if by none.
    sharing: usize,
    stop: &'static Stop,
    steps: u64,
    /// Steps between two that are told where there is no bar, and the step from which on the next one is.
    told_every: u64,
    next_told: u64,
}

impl Progress {
    /// For the run `name`, which is refused if it needs more than its part of the memory that there is for so many processes `sharing` it, none for
    /// no check, and which `stop` spares once it has begun.
    pub(crate) fn new(name: &str, sharing: usize, stop: &'static Stop) -> Self {
        let name = name.to_owned();
        Self { bar: None, name, loss: f64::NAN, sharing, stop, steps: 0, told_every: 1, next_told: 0 }
    }

    fn message(&self, text: &str) {
        self.bar.iter().for_each(|bar| bar.message(text));
    }
}

/// What the processes of a run say that leave speaking to the first; the memory of each machine is the first's to check.
pub(crate) struct Silent(pub(crate) &'static Stop);

impl Observer for Silent {
    fn start(&mut self, _step: u64, _steps: u64) {
        self.0.in_good_order("stopping after this step; once more stops at once");
    }

    fn step(&mut self, _step: u64, _epoch: f64, _stats: &StepStats) {}
    fn logged(&mut self, _line: &Logged) {}
    fn evaluating(&mut self, _done: usize, _of: usize) {}
    fn evaluation(&mut self, _step: u64, _evaluation: &Evaluation, _best: bool) {}
    fn warn(&mut self, _message: &str) {}
    fn note(&mut self, _message: &str) {}
}

impl Observer for Progress {
    fn planned(&mut self, job: &Job, plan: &Plan) -> Result<()> {
        match machine::limit().filter(|_| self.sharing > 0) {
            Some(limit) => memory::check(job, plan, Limit { bytes: limit.bytes / self.sharing, ..limit }),
            None => Ok(()),
        }
    }

    fn start(&mut self, step: u64, steps: u64) {
        self.stop.in_good_order("stopping after this step; once more stops at once");
        (self.steps, self.told_every) = (steps, steps.div_ceil(TOLD).max(1));
        self.next_told = (step / self.told_every + 1) * self.told_every;
        self.bar = Some(Bar::new(&self.name, step, steps, "{pos}/{len} steps  {msg}  {eta} left"));
        if step > 0 {
            output::say(&format!("{}: going on after step {step}", self.name));
        }
    }

    fn step(&mut self, step: u64, epoch: f64, stats: &StepStats) {
        self.loss = if self.loss.is_nan() { stats.loss } else { 0.95 * self.loss + 0.05 * stats.loss };
        self.bar.iter().for_each(|bar| bar.set(step));
        self.message(&format!(
            "epoch {epoch:.2}  loss {:.4}  kept {}",
            self.loss,
            units::bytes(stats.kept_bytes as u64)
        ));
    }

    fn logged(&mut self, line: &Logged) {
        // the steps that are told follow from the run, not from the clock: two logs of it can be compared
        let told = line.step == 1 || line.step >= self.next_told;
        if self.bar.as_ref().is_some_and(Bar::is_shown) || !told {
            return;
        }
        self.next_told = (line.step / self.told_every + 1) * self.told_every;
        output::say(&format!(
            "{}: step {}/{}  loss {:.4}  lr {:.2e}  {} tokens/s  {} left",
            self.name,
            line.step,
            self.steps,
            line.loss,
            line.lr,
            units::count(line.tokens_per_second as u64),
            units::duration(line.seconds_left),
        ));
    }

    fn evaluating(&mut self, done: usize, of: usize) {
        self.message(&format!("evaluating {done}/{of}"));
    }

    fn evaluation(&mut self, step: u64, evaluation: &Evaluation, best: bool) {
        let of = |metric| match &evaluation.positive {
            Some(name) if metric == Metric::F1 => format!(" of {name:?}"),
            _ => String::new(),
        };
        let metrics: Vec<_> =
            evaluation.metrics.iter().map(|&(m, x)| format!("{}{} {x:.4}", m.name(), of(m))).collect();
        let best = if best { "  (best so far)" } else { "" };
        output::say(&format!("{}: step {step}  {}{best}", self.name, metrics.join("  ")));
    }

    fn warn(&mut self, message: &str) {
        output::warn(message);
    }

    fn note(&mut self, message: &str) {
        output::say(&format!("{}: {message}", self.name));
    }
}
