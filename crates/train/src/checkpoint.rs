//! Checkpoints: all that a run needs to go on bit for bit.
//!
//! `checkpoints/step-N/` holds `model.safetensors` (weights), `optimizer.safetensors` (moments), `state.json` (where the run
//! stands) and `norms.safetensors` (the norm cache, if there is one). Random numbers need no state: they are functions of seed and step. A
//! checkpoint is written beside its place, synced and renamed, so that one that is there is whole, and `state.json` holds the digests of its
//! files, so that one that is read is what was written.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use colrow_autograd::{Ledger, Running};
use colrow_models::atomic::{remove_dir_atomic, replace_dir_atomic, write_atomic};
use colrow_models::checkpoint::safetensors::{self, Data, Dtype, Part, Saved};
use colrow_models::checkpoint::weights::Weights;
use colrow_models::files;
use colrow_tensor::{Bytes, Class, Coded, DType, Error, Result, Weight};
use serde::{Deserialize, Serialize};

use crate::data::Fingerprint;
use crate::digests::{self, Digests};
use crate::ratios::SiteRatio;
use crate::step::Engine;
use crate::step::Moments;

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done.
    pub step: u64,
    /// Epoch that the next step belongs to, from 0.
    pub epoch: u64,
    /// Optimizer steps done in that epoch.
    pub step_in_epoch: u64,
    /// Step and value of the best evaluation.
    pub best: Option<(u64, f64)>,
    /// Evaluations since then.
    pub evaluations_since_best: u64,
    /// Whether the evaluation that is due at this step is still to come.
    #[serde(default)]
    pub evaluates: bool,
    /// Loss of the first step.
    #[serde(default)]
    pub first_loss: Option<f64>,
    /// Step of the newest checkpoint that is known to be good: a loss of its weights was as it should be.
    #[serde(default)]
    pub good: Option<u64>,
    /// Sum of the losses of the steps that are not logged yet, and their number.
    #[serde(default)]
    pub unlogged: (f64, u64),
    /// What the run is trained and evaluated on: training data, development data.
    #[serde(default)]
    pub data: Option<[Fingerprint; 2]>,
    /// Digest of the weights that the run does not train, which a checkpoint does not hold.
    #[serde(default)]
    pub(crate) frozen: Option<String>,
    /// The processor's instructions that matrix products used.
    #[serde(default)]
    pub instructions: Option<String>,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Largest kept bytes of a step so far.
    pub kept_bytes: usize,
    /// What that step kept where.
    pub ledger: Ledger,
    /// Live bytes by class at the largest peak so far.
    pub peak: Bytes,
    /// Running averages of norms.
    pub running: Option<Running>,
    /// Ratios that follow the gradient.
    #[serde(default)]
    pub ratios: Option<Vec<SiteRatio>>,
    /// Digests of the checkpoint's files, this one's too. The last field: what stands there is found from the end.
    #[serde(default)]
    pub(crate) digests: Digests,
}

const STATE: &str = "state.json";
const WEIGHTS: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const NORMS: &str = "norms.safetensors";
/// Elements of the rows that are read of a matrix in codes at once.
const ROWS: usize = 1 << 16;

/// Checkpoints of a folder by step, newest last; none if there is no folder.
///
/// # Errors
/// A folder that cannot be read.
pub fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let failed = |e: std::io::Error| Error::new(format!("cannot list the checkpoints: {e}")).at(folder.display());
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        // not where a link leads nowhere: the disk with the checkpoints may not be there today
        Err(e) if e.kind() == ErrorKind::NotFound && folder.symlink_metadata().is_err() => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let step = |path: PathBuf| {
        let number = path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
        Some((number, path))
    };
    let mut found = Vec::new();
    for entry in entries {
        found.extend(step(entry.map_err(failed)?.path()));
    }
    found.sort();
    Ok(found)
}

/// Writes a checkpoint.
///
/// # Errors
/// A disk that is full or read-only; other checkpoints stay.
pub fn write(folder: &Path, engine: &Engine, state: &State) -> Result<()> {
    let Some(spread) = &engine.spread else { return write_first(folder, engine, state, |_| Ok(())) };
    let together = spread.together();
    // the others write where the first says
    let fill = |file: Option<PathBuf>| {
        let files = together.values(&file)?;
        let Some(Some(file)) = files.into_iter().next() else { return Ok(()) };
        together.agree(safetensors::fill(&file, &parts(engine)))
    };
    let written = match together.is_first() {
        true => {
            let mut told = false;
            let written = write_first(folder, engine, state, |file| {
                told = true;
                fill(Some(file.to_owned()))
            });
            // what failed before has no part for the others
            if told { written } else { fill(None).and(written) }
        }
        false => fill(None),
    };
    together.agree(written)
}

/// Writes a checkpoint as the first of its processes; `fill` has others write their parts of the file of moments.
fn write_first(folder: &Path, engine: &Engine, state: &State, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::new(format!("cannot make the folder: {e}")).at(folder.display()))?;
    let target = folder.join(format!("step-{}", state.step));
    let running = engine.gradient.norms.as_ref().map(|norms| norms.save(|running, _| running.clone()));
    let ratios = engine.gradient.ratios.as_ref().map(|r| r.sites().to_vec());
    let instructions = Some(colrow_tensor::instructions().to_owned());
    let mut state = State { running, ratios, instructions, ..state.clone() };
    replace_dir_atomic(&target, |new| {
        safetensors::write(&new.join(WEIGHTS), &learned(engine), &[])?;
        let optimizer = new.join(OPTIMIZER);
        match engine.spread {
            None => safetensors::write(&optimizer, &moments(engine), &[])?,
            Some(_) => {
                safetensors::reserve(&optimizer, &moments(engine))?;
                fill(&optimizer)?;
            }
        }
        if let Some(norms) = &engine.gradient.norms {
            norms.save(|_, codes| {
                let codes = Saved { name: "codes".into(), shape: vec![codes.len()], data: Data::U8(codes) };
                safetensors::write(&new.join(NORMS), &[codes], &[])
            })?;
        }
        state.digests = digests::of(new, STATE)?;
        let text = serde_json::to_string_pretty(&state).map_err(|e| Error::new(e.to_string()))?;
        write_atomic(&new.join(STATE), digests::seal(text, STATE))
    })
}

/// Removes all checkpoints but the newest `keep` and that of the step `good`.
///
/// # Errors
/// A folder that cannot be read or written.
pub fn prune(folder: &Path, keep: usize, good: Option<u64>) -> Result<()> {
    let all = list(folder)?;
    let old = &all[..all.len().saturating_sub(keep.max(1))];
    old.iter().filter(|(step, _)| Some(*step) != good).try_for_each(|(_, path)| remove_dir_atomic(path))
}

fn learned(engine: &Engine) -> Vec<Saved<'_>> {
    let registry = &engine.model.registry;
    registry.saved(|entry| registry.is_trainable(entry))
}

/// The name of a learned weight that is not finite, if one is not.
pub fn not_finite(engine: &Engine) -> Option<String> {
    let params = &engine.model.registry.params;
    let mut sums = params.device().zeros(Class::Workspace, DType::F64, &[params.len().max(1)]);
    let mut finite = true;
    for (id, param) in params.iter().filter(|(_, p)| p.trainable) {
        match &param.value {
            Weight::Dense(numbers) => params.device().kernels().sum_squares(numbers, id.index(), &mut sums),
            Weight::Coded(matrix) => finite &= is_finite(matrix, 0, matrix.codes.rows()),
        }
    }
    let sums = sums.to_f64();
    if finite && sums.iter().all(|sum| sum.is_finite()) {
        return None;
    }
    // of a weight that stacks several tensors, which
    let sound = |saved: &Saved<'_>| match saved.data {
        Data::On { of, first, len } => {
            let mut numbers = vec![0.0_f32; len];
            of.read_range(first, &mut numbers);
            numbers.iter().all(|x| x.is_finite())
        }
        Data::Coded { of, first, len, .. } => is_finite(of, first, len / of.cols),
        _ => true,
    };
    learned(engine).into_iter().find(|saved| !sound(saved)).map(|saved| saved.name)
}

fn is_finite(matrix: &Coded, first: usize, rows: usize) -> bool {
    let most = (ROWS / matrix.cols).max(1);
    let mut piece = vec![0.0; most.min(rows) * matrix.cols];
    (0..rows).step_by(most).all(|start| {
        let piece = &mut piece[..most.min(rows - start) * matrix.cols];
        matrix.read_rows(first + start, piece);
        piece.iter().all(|x| x.is_finite())
    })
}

/// The moments of all trained parameters; where this process has not all of one, room for them.
fn moments(engine: &Engine) -> Vec<Saved<'_>> {
    let params = engine.model.registry.params.iter().zip(&engine.update.moments).filter(|((_, p), _)| p.trainable);
    params
        .flat_map(|((_, p), moments)| engine.update.layout(&p.value).map(move |of| (of, p, moments)))
        .map(|((kind, dtype, shape), p, moments)| {
            let own = moments.iter().flat_map(Moments::tensors).find(|(name, _)| *name == kind).map(|(_, t)| t);
            let len = shape.iter().product();
            let data = match own.filter(|t| t.len() == len) {
                Some(t) => Data::On { of: t, first: 0, len },
                None => Data::Room { len, dtype: if dtype == DType::U8 { Dtype::U8 } else { Dtype::F32 } },
            };
            Saved { name: format!("{kind}.{}", p.name), shape, data }
        })
        .collect()
}

/// This process's parts of the moments.
fn parts(engine: &Engine) -> Vec<Part<'_>> {
    let params = engine.model.registry.params.iter().zip(&engine.update.moments);
    params
        .filter_map(|((id, p), moments)| Some((id, p, moments.as_ref()?)))
        .flat_map(|(id, p, moments)| moments.tensors().map(move |(kind, of)| (id, p, kind, of)))
        .map(|(id, p, kind, of)| Part { name: format!("{kind}.{}", p.name), first: engine.update.first(id, kind), of })
        .collect()
}

/// Where the run of a checkpoint stood.
///
/// # Errors
/// A checkpoint that cannot be read, or is not what was written.
pub fn state(checkpoint: &Path) -> Result<State> {
    let file = checkpoint.join(STATE);
    let text = files::open(&file).and_then(std::io::read_to_string);
    let text = text.map_err(|e| Error::new(e.to_string()).at(file.display()))?;
    let state: State = serde_json::from_str(&text).map_err(|e| Error::new(e.to_string()).at(file.display()))?;
    digests::check_text(&text, STATE, &state.digests).map_err(|e| e.at(file.display()))?;
    Ok(state)
}

/// Reads a checkpoint, whose state is `state`, into the engine.
///
/// # Errors
/// A checkpoint that is not this run's, or not what was written.
pub fn restore(checkpoint: &Path, state: &State, engine: &mut Engine) -> Result<()> {
    digests::check_files(checkpoint, STATE, &state.digests)?;
    let stored = Weights::open_file(&checkpoint.join(WEIGHTS))?;
    for i in 0..engine.model.registry.entries.len() {
        let entry = &engine.model.registry.entries[i];
        if !engine.model.registry.is_trainable(entry) {
            continue;
        }
        let key = entry.key.clone();
        check_shape(&stored, &key, &engine.model.registry.entries[i].shape)?;
        engine.model.registry.read(i, &stored, &key)?;
    }
    let stored = Weights::open_file(&checkpoint.join(OPTIMIZER))?;
    let Engine { model, update, gradient, .. } = &mut *engine;
    for (id, param) in model.registry.params.iter().filter(|(_, param)| param.trainable) {
        for (kind, _, shape) in update.layout(&param.value).collect::<Vec<_>>() {
            let key = format!("{kind}.{}", param.name);
            check_shape(&stored, &key, &shape)?;
            let first = update.first(id, kind);
            let moments = update.moments[id.index()].iter_mut().flat_map(Moments::tensors_mut);
            for (_, t) in moments.filter(|(name, _)| *name == kind) {
                stored.read_part(&key, first, t)?;
            }
        }
    }
    if let Some(norms) = &gradient.norms {
        let file = checkpoint.join(NORMS);
        let stored = Weights::open_file(&file)?;
        let mut codes = vec![0; stored.shape("codes").map_or(0, |s| s.iter().product())];
        stored.read_u8("codes", &mut codes)?;
        norms.restore(state.running.clone().unwrap_or_default(), &codes).map_err(|e| e.at(file.display()))?;
    }
    if let Some(ratios) = &mut engine.gradient.ratios {
        let file = checkpoint.join(STATE);
        ratios.restore(state.ratios.clone().unwrap_or_default()).map_err(|e| e.at(file.display()))?;
        ratios.apply(&mut engine.gradient.policy);
    }
    Ok(())
}

fn check_shape(stored: &Weights, key: &str, expected: &[usize]) -> Result<()> {
    match stored.shape(key) {
        Some(found) if found == expected => Ok(()),
        Some(found) => Err(Error::new(format!("{key}: expected shape {expected:?}, found {found:?}"))),
        None => Err(Error::new(format!("{key} is not in the checkpoint"))),
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::rng::Key;

    use super::*;

    /// A last bit that is lost on the way is another draw of rows, and so another run.
    #[test]
    fn numbers_come_back_to_the_bit() {
        let key = Key::new(1);
        for i in 0..200 {
            let numbers = std::array::from_fn(|j| (80.0 * key.uniform(20 * i + j as u64) - 40.0).exp2());
            let running = Some(Running([("site".to_owned(), numbers)].into()));
            let state = State { best: Some((3, numbers[0])), seconds: numbers[1], running, ..State::default() };
            let text = serde_json::to_string_pretty(&state).unwrap();
            assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
        }
    }
}
