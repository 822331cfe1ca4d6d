//! Progress of a run on standard error.

use std::time::Duration;

use colrow_tensor::Result;
use colrow_train::engine::StepStats;
use colrow_train::evaluate::Evaluation;
use colrow_train::machine;
use colrow_train::plan::Plan;
use colrow_train::setup::Job;
use colrow_train::trainer::Observer;
use indicatif::{ProgressBar, ProgressStyle};

use crate::{memory, units};

/// A bar where standard error is a terminal, nothing but warnings and evaluations elsewhere.
pub(crate) struct Progress {
    bar: ProgressBar,
    name: String,
    loss: f64,
    checks_memory: bool,
}

impl Progress {
    /// For the run `name`, which is refused if `checks_memory` and it needs more than there is.
    pub(crate) fn new(name: &str, checks_memory: bool) -> Self {
        Self { bar: ProgressBar::hidden(), name: name.to_owned(), loss: f64::NAN, checks_memory }
    }

    fn say(&self, line: &str) {
        if self.bar.is_hidden() {
            eprintln!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
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
        let style = ProgressStyle::with_template("{prefix:>12} {bar:30} {pos}/{len} steps  {msg}  {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bar = ProgressBar::new(steps).with_style(style).with_prefix(self.name.clone());
        self.bar.set_position(step);
        self.bar.enable_steady_tick(Duration::from_millis(500));
        if step > 0 {
            self.say(&format!("{}: going on after step {step}", self.name));
        }
    }

    fn step(&mut self, step: u64, epoch: f64, stats: &StepStats) {
        self.loss = if self.loss.is_nan() { stats.loss } else { 0.95 * self.loss + 0.05 * stats.loss };
        self.bar.set_position(step);
        self.bar.set_message(format!(
            "epoch {epoch:.2}  loss {:.4}  kept {}",
            self.loss,
            units::bytes(stats.kept_bytes as u64)
        ));
    }

    fn evaluating(&mut self, done: usize, of: usize) {
        self.bar.set_message(format!("evaluating {done}/{of}"));
    }

    fn evaluation(&mut self, step: u64, evaluation: &Evaluation, best: bool) {
        let metrics: Vec<_> = evaluation.metrics.iter().map(|(m, x)| format!("{} {x:.4}", m.name())).collect();
        let best = if best { "  (best so far)" } else { "" };
        self.say(&format!("{}: step {step}  {}{best}", self.name, metrics.join("  ")));
    }

    fn warn(&mut self, message: &str) {
        self.say(&format!("warning: {message}"));
    }
}
