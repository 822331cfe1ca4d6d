//! What a run tells, and whom.

use colrow_tensor::Result;

use crate::job::Job;
use crate::plan::Plan;
use crate::score::Evaluation;
use crate::step::StepStats;

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
    /// A step was logged.
    fn logged(&mut self, line: &Logged);
    /// `done` of `of` examples are evaluated.
    fn evaluating(&mut self, done: usize, of: usize);
    /// An evaluation was done at `step`; `best` if it is the best so far.
    fn evaluation(&mut self, step: u64, evaluation: &Evaluation, best: bool);
    /// Something that the user should know.
    fn warn(&mut self, message: &str);
    /// Something that the run does.
    fn note(&mut self, message: &str);
}

/// What the log says of a step.
#[derive(Clone, Copy, Debug)]
pub struct Logged {
    /// The step.
    pub step: u64,
    /// Mean loss of the steps since the last one that was logged.
    pub loss: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Tokens a second, over this process's steps.
    pub tokens_per_second: f64,
    /// Seconds that the remaining steps will take.
    pub seconds_left: f64,
}
