//! A run folder: `recipe.toml`, `metrics.jsonl`, `checkpoints/`, `model/`, `summary.json`. One process at a time.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use colrow_models::atomic::{clean_dir, write_atomic};
use colrow_models::checkpoint::names::ADAPTER_CONFIG_FILE;
use colrow_models::checkpoint::names::CONFIG_FILE;
use colrow_models::checkpoint::names::RECIPE;
use colrow_models::checkpoint::save;
use colrow_models::family::Family;
use colrow_models::{apart, files};
use colrow_tensor::{Error, Result};
use serde_json::Value;

use crate::comm::Together;
use crate::recipe::{Difference, Recipe};
use crate::tensorboard::EventFile;

const METRICS: &str = "metrics.jsonl";
const SUMMARY: &str = "summary.json";
const MODEL: &str = "model";
const CHECKPOINTS: &str = "checkpoints";
const NORMS: &str = "norms.bin";
const REPORT: &str = "report.html";
/// Where event files go.
const TENSORBOARD: &str = "tensorboard";

/// Keys that change nothing of what is learned, nor which model is the best.
const FREE: [&str; 6] =
    ["keep.cache", "output", "train.keep_checkpoints", "train.log", "train.log_every", "train.save_every"];
/// Keys by which a run may be made longer.
const LENGTH: [&str; 2] = ["train.epochs", "train.steps"];

/// An open run folder, locked until it is dropped.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// None in a process that leaves writing to the first.
    metrics: Option<File>,
    events: Option<EventFile>,
    /// Of several processes, this one's number.
    rank: usize,
    _lock: Option<File>,
}

impl RunFolder {
    /// Checks that `path` can be the folder of a new run, or with `resume` that of a run with the same recipe. Changes nothing. Returns the
    /// recipe of the run there if that tells another length.
    ///
    /// # Errors
    /// A folder that holds another run.
    pub fn check(path: &Path, recipe: &Recipe, resume: bool) -> Result<Option<Recipe>> {
        if path.exists() && !path.is_dir() {
            return Err(Error::new("expected a run folder, found a file").at(path.display()));
        }
        let file = path.join(RECIPE);
        let found = match files::open(&file).and_then(std::io::read_to_string) {
            Ok(found) => found,
            // a file in the place of a parent is named when the folder is made
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return check_free(path).map(|()| None);
            }
            Err(e) => return Err(Error::new(format!("cannot read the run's recipe: {e}")).at(file.display())),
        };
        if !resume {
            return Err(Error::new("this folder holds a run already")
                .at(path.display())
                .hint("go on with it by --resume, choose another folder by --set output=FOLDER, or remove this one"));
        }
        let found = Recipe::parse(&found, RECIPE, &[]).map_err(|e| {
            Error::new(format!("cannot read the recipe of the run in this folder:\n{}", e.what())).at(file.display())
        })?;
        let differences = recipe.differences(&found);
        let is = |difference: &Difference, keys: &[&str]| keys.contains(&difference.key.as_str());
        let others: Vec<_> = differences.iter().filter(|d| !is(d, &FREE) && !is(d, &LENGTH)).collect();
        if !others.is_empty() {
            let lines: String = others.iter().map(|difference| format!("\n    {difference}")).collect();
            return Err(Error::new(format!("the run in this folder has another recipe:{lines}"))
                .at(file.display())
                .hint("resume with the recipe that the run was started with, or choose another folder by --set output=FOLDER; to go on otherwise from what \
                       this run learned, set model.path to its model too"));
        }
        Ok(differences.iter().any(|difference| is(difference, &LENGTH)).then_some(found))
    }

    /// The summary of the run in the folder `path`, if that run has ended.
    ///
    /// # Errors
    /// A summary that cannot be read.
    pub fn summary(path: &Path) -> Result<Option<Value>> {
        let file = path.join(SUMMARY);
        match files::open(&file).and_then(std::io::read_to_string) {
            Ok(text) => match serde_json::from_str(&text) {
                Ok(summary) => Ok(Some(summary)),
                Err(e) => Err(Error::new(format!("expected the summary of a run: {e}"))
                    .at(file.display())
                    .hint("remove the file, and --resume writes it again")),
            },
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(Error::new(format!("cannot read the summary: {e}")).at(file.display())),
        }
    }

    /// Opens the folder of a new run, or with `resume` that of a run with the same recipe. Of several processes the first alone writes there.
    ///
    /// # Errors
    /// As [`RunFolder::check`]; a folder that another process uses, or that cannot be written.
    pub fn open(path: &Path, recipe: &Recipe, resume: bool, together: &Together) -> Result<Self> {
        let rank = together.rank();
        if !together.is_first() {
            return Ok(Self { path: path.to_owned(), metrics: None, events: None, rank, _lock: None });
        }
        let at = |e: std::io::Error, what: &str| Error::new(format!("{what}: {e}")).at(path.display());
        fs::create_dir_all(path).map_err(|e| at(e, "cannot make the run folder"))?;
        let create = |name: &str| {
            let file = path.join(name);
            files::append_own(&file).map_err(|e| files::io_error("cannot write to the run folder", &e, &file))
        };
        let lock = create("lock")?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new("another process is running in this run folder").at(path.display()));
            }
            Err(TryLockError::Error(e)) => return Err(at(e, "cannot lock the run folder")),
        }
        // again, now that no other process can start a run here
        Self::check(path, recipe, resume)?;
        clean_dir(path, |name| [RECIPE, METRICS, SUMMARY, MODEL, REPORT].contains(&name))?;
        let checkpoints = path.join(CHECKPOINTS);
        if checkpoints.is_dir() {
            clean_dir(&checkpoints, |name| name.starts_with("step-"))?;
        }
        if !path.join(RECIPE).exists() {
            write_recipe(path, recipe)?;
        }
        let metrics = create(METRICS)?;
        Ok(Self { path: path.to_owned(), metrics: Some(metrics), events: None, rank, _lock: Some(lock) })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives a resumed run this recipe. If the run is made `longer`, it has not ended any more.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn adopt(&self, recipe: &Recipe, longer: bool) -> Result<()> {
        if self.metrics.is_none() {
            return Ok(());
        }
        let summary = self.path.join(SUMMARY);
        // before the recipe: with that, a run that has a summary has ended
        if longer && summary.exists() {
            fs::remove_file(&summary).map_err(|e| Error::new(format!("cannot remove: {e}")).at(summary.display()))?;
        }
        let written = files::open(&self.path.join(RECIPE)).and_then(std::io::read_to_string).unwrap_or_default();
        if written == recipe.to_toml() { Ok(()) } else { write_recipe(&self.path, recipe) }
    }

    /// From now on the log also goes to a new event file, which voids what earlier ones say of steps from `first` on.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn log_events(&mut self, first: u64) -> Result<()> {
        if self.metrics.is_none() {
            return Ok(());
        }
        let folder = self.path.join(TENSORBOARD);
        let cannot = |e: std::io::Error| Error::new(format!("cannot write event files: {e}")).at(folder.display());
        fs::create_dir_all(&folder).map_err(cannot)?;
        self.events = Some(EventFile::new(&folder, first).map_err(cannot)?);
        Ok(())
    }

    /// Appends one line to `metrics.jsonl`, and its numbers to the event file if there is one.
    ///
    /// # Errors
    /// A full disk.
    pub fn log(&mut self, line: &Value) -> Result<()> {
        let text = format!("{line}\n");
        let Some(metrics) = &mut self.metrics else { return Ok(()) };
        metrics.write_all(text.as_bytes()).map_err(|e| self.cannot_log(&e))?;
        let Some(events) = &mut self.events else { return Ok(()) };
        events.log(line).map_err(|e| Error::new(format!("cannot write events: {e}")).at(events.path().display()))
    }

    fn cannot_log(&self, e: &std::io::Error) -> Error {
        Error::new(format!("cannot write metrics: {e}")).at(self.path.join(METRICS).display())
    }

    /// Makes sure that what was logged survives a loss of power, if a checkpoint does that is written afterwards.
    ///
    /// # Errors
    /// A full disk.
    pub fn sync(&self) -> Result<()> {
        self.metrics.as_ref().map_or(Ok(()), File::sync_data).map_err(|e| self.cannot_log(&e))
    }

    /// Keeps of `metrics.jsonl` what `keep` says by a line's step and kind, and drops what a resumed run will write again.
    ///
    /// # Errors
    /// A file that cannot be read or replaced.
    pub fn rewind(&mut self, keep: impl Fn(u64, &str) -> bool) -> Result<()> {
        if self.metrics.is_none() {
            return Ok(());
        }
        let file = self.path.join(METRICS);
        let mut bytes = Vec::new();
        let read = files::open(&file).and_then(|mut file| file.read_to_end(&mut bytes));
        read.map_err(|e| Error::new(e.to_string()).at(file.display()))?;
        let text = String::from_utf8_lossy(&bytes);
        // a line that a killed process or a full disk left half-written is no line
        let kept = |line: &&str| {
            let Ok(value) = serde_json::from_str::<Value>(line) else { return false };
            value["step"].as_u64().is_some_and(|step| keep(step, value["kind"].as_str().unwrap_or_default()))
        };
        let kept: String = text.lines().filter(kept).flat_map(|l| [l, "\n"]).collect();
        write_atomic(&file, kept)?;
        self.metrics = Some(files::append_own(&file).map_err(|e| self.cannot_log(&e))?);
        Ok(())
    }

    /// Writes `summary.json`.
    ///
    /// # Errors
    /// A full disk.
    pub fn write_summary(&self, summary: &Value) -> Result<()> {
        if self.metrics.is_none() {
            return Ok(());
        }
        write_atomic(&self.path.join(SUMMARY), format!("{summary:#}\n"))
    }

    /// Where checkpoints go.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// Where this process's mapped norm cache goes.
    pub fn norms(&self) -> PathBuf {
        self.path.join(if self.rank == 0 { NORMS.to_owned() } else { format!("norms-{}.bin", self.rank) })
    }

    /// Where the model goes.
    pub fn model(&self) -> PathBuf {
        self.path.join(MODEL)
    }
}

/// Checks that a folder without a recipe holds nothing that a run there would write over.
fn check_free(path: &Path) -> Result<()> {
    let names = [MODEL, CHECKPOINTS, METRICS, SUMMARY, NORMS, REPORT];
    match names.iter().map(|name| path.join(name)).find(|there| there.symlink_metadata().is_ok()) {
        None => Ok(()),
        Some(there) => {
            Err(Error::new("a run would write over this, which no run wrote here: the folder has no recipe.toml")
                .at(there.display())
                .hint("choose another folder by --set output=FOLDER, or move this away"))
        }
    }
}

/// `base` if nothing is there, else the first of `base-2`, `base-3`, … where nothing is.
pub fn free(base: &str) -> String {
    let name = |i: u32| if i == 1 { base.to_owned() } else { format!("{base}-{i}") };
    (1..).map(name).find(|name| Path::new(name).symlink_metadata().is_err()).unwrap_or_else(|| name(1))
}

/// Checks that a run in the folder `output` leaves the model that it starts from, of this family in the folder `model`, as it is, and can take over its
/// files.
///
/// # Errors
/// One of the folders holds the other, or they are one; files of the model that cannot be copied; a model in the run's folder that cannot be
/// replaced.
pub fn check_apart(output: &Path, model: &Path, family: &Family) -> Result<()> {
    // these may be links to elsewhere
    for folder in [output.to_owned(), output.join(MODEL), output.join(CHECKPOINTS)] {
        apart::check_folder(&folder, "the model", model)?;
    }
    check_alone(output)?;
    save::check_source(model, family)?;
    let there = output.join(MODEL);
    if there.exists() { save::check_replaceable(&there, family) } else { Ok(()) }
}

/// A run in a folder that a run has for something else, or in a model's, would go with it, or be taken for a part of it.
fn check_alone(output: &Path) -> Result<()> {
    let output = apart::seen(output);
    for folder in output.ancestors() {
        let is_part = [MODEL, CHECKPOINTS].iter().any(|part| folder.ends_with(part));
        let of_run = folder.parent().is_some_and(|run| run.join(RECIPE).exists() && run.join(METRICS).exists());
        let what = match folder.join(CONFIG_FILE).exists() || folder.join(ADAPTER_CONFIG_FILE).exists() {
            true => "a model's",
            false if is_part && of_run => "another run's",
            false => continue,
        };
        return Err(Error::new(format!("the run's folder lies in {what}, {}", folder.display()))
            .at(output.display())
            .hint("choose another folder: --set output=FOLDER"));
    }
    Ok(())
}

fn write_recipe(path: &Path, recipe: &Recipe) -> Result<()> {
    write_atomic(&path.join(RECIPE), recipe.to_toml())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_taken_gets_a_number() {
        let folder = tempfile::tempdir().unwrap();
        let name = |name: &str| folder.path().join(name).display().to_string();
        assert_eq!(free(&name("a")), name("a"));
        std::fs::create_dir(name("a")).unwrap();
        assert_eq!(free(&name("a")), name("a-2"));
        std::fs::write(name("a-2"), "").unwrap();
        assert_eq!(free(&name("a")), name("a-3"));
    }
}
