//! Progress of a run on standard error.

use colrow_tensor::Result;
use colrow_train::engine::StepStats;
use colrow_train::evaluate::Evaluation;
use colrow_train::machine;
use colrow_train::metrics::Metric;
use colrow_train::plan::Plan;
use colrow_train::setup::Job;
use colrow_train::trainer::Observer;

use crate::output::{self, Bar};
use crate::signals::Stop;
use crate::{memory, units};

/// A bar where standard error is a terminal, nothing but warnings and evaluations elsewhere.
pub(crate) struct Progress {
    bar: Option<Bar>,
    name: String,
    loss: f64,
    checks_memory: bool,
    stop: &'static Stop,
}

impl Progress {
    /// For the run `name`, which is refused if `checks_memory` and it needs more than there is, and which `stop` spares once it has begun.
    pub(crate) fn new(name: &str, checks_memory: bool, stop: &'static Stop) -> Self {
        Self { bar: None, name: name.to_owned(), loss: f64::NAN, checks_memory, stop }
    }

    fn message(&self, text: &str) {
        self.bar.iter().for_each(|bar| bar.message(text));
    }
}

impl Observer for Progress {
    fn planned(&mut self, job: &Job, plan: &Plan) -> Result<()> {
        match machine::limit().filter(|_| self.checks_memory) {
            Some(limit) => memory::check(job, plan, limit),
            None => Ok(()),
        }
    }

    fn start(&mut self, step: u64, steps: u64) {
        self.stop.in_good_order("stopping after this step; once more stops at once");
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
}
