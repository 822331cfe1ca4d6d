//! Whether and from where a run can go on: the checkpoint, the data, the length.

use std::path::Path;

use colrow_tensor::{Error, Result};

use crate::checkpoint::{self, State};
use crate::digests;
use crate::job::Job;
use crate::observer::Observer;
use crate::step::Engine;

/// Reads a checkpoint of a run of this job, and no other.
pub(crate) fn resume_from(path: &Path, job: &Job, engine: &mut Engine, observer: &mut dyn Observer) -> Result<State> {
    let damaged = |e: Error| {
        e.at(path.display())
            .hint("remove this folder, and --resume goes on from the checkpoint before it, or from the beginning")
    };
    let mut state = checkpoint::state(path).map_err(damaged)?;
    let now = job.fingerprints();
    // an older version wrote none
    if let Some(then) = &state.data {
        for ((then, now), what) in then.iter().zip(&now).zip(["training", "development"]) {
            if let Some(change) = then.change(now) {
                return Err(Error::new(format!("the {what} data is not what this run began with: {change}"))
                    .at(path.display())
                    .hint("resume with that data, or start a new run: --set output=FOLDER"));
            }
        }
    }
    let frozen = digests::of_frozen(&engine.model.registry.params);
    if state.frozen.is_some() && state.frozen != frozen {
        return Err(Error::new("the weights that are not trained are not those that this run began with")
            .at(job.recipe.model.path.clone())
            .at(path.display())
            .hint("resume with that model, or start a new run: --set output=FOLDER"));
    }
    let instructions = colrow_tensor::instructions();
    if let Some(then) = state.instructions.as_ref().filter(|then| *then != instructions) {
        observer.warn(&format!(
            "the run was begun with products on {then}, and goes on with {instructions}: its last bits are not those of a run that was not stopped"
        ));
    }
    checkpoint::restore(path, &state, engine).map_err(damaged)?;
    (state.data, state.frozen) = (Some(now), frozen);
    Ok(state)
}

/// Whether a run that stood at `state` and had `before` steps in all can have `total`.
pub(crate) fn check_length(
    job: &Job,
    state: &State,
    before: u64,
    total: u64,
    observer: &mut dyn Observer,
) -> Result<()> {
    if total < before {
        return Err(Error::usage(format!(
            "train.steps, train.epochs: a run can be made longer, not shorter: it has {before} steps there, {total} here"
        ))
        .hint("resume with the recipe.toml of the run's folder, or --set train.steps"));
    }
    if total > before {
        let (was, is) = (job.learning_rate(state.step, before), job.learning_rate(state.step, total));
        let lr = if was == is { String::new() } else { format!(": {is:.3e} at the next step, instead of {was:.3e}") };
        observer.warn(&format!(
            "the run is made longer, from {before} to {total} steps, and its learning rate follows the schedule of the new length{lr}"
        ));
    }
    let steps = job.steps_in(state.epoch);
    if state.step_in_epoch > 0 && state.step_in_epoch >= steps {
        return Err(Error::new(format!(
            "the checkpoint stands at step {} of an epoch of {steps}: the training data is not what this run began with",
            state.step_in_epoch
        )));
    }
    Ok(())
}
