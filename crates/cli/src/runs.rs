//! Runs of a comparison: each `colrow train` in a process of its own, with its recipe beside it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use colrow_tensor::{Error, Result};

use crate::signals::Stop;

/// The recipe of the run `name` in the folder `out`.
pub(crate) fn recipe_file(out: &Path, name: &str) -> PathBuf {
    out.join(format!("{name}.toml"))
}

/// Checks that nothing is where something will be written.
///
/// # Errors
/// The first that is there.
pub(crate) fn check_new(mut writes: impl Iterator<Item = PathBuf>) -> Result<()> {
    match writes.find(|path| path.symlink_metadata().is_ok()) {
        None => Ok(()),
        Some(there) => Err(Error::new("this exists already, and would be written over")
            .at(there.display())
            .hint("choose another folder by --out, or remove this")),
    }
}

/// Runs `colrow train` as a process of its own, so that its peak memory is its own too.
pub(crate) fn train(recipe: &Path, stop: &Stop) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::new(format!("cannot run colrow train: {e}"));
    let program = std::env::current_exe().map_err(|e| failed(&e))?;
    let mut command = Command::new(program);
    command.arg("--threads").arg(rayon::current_num_threads().to_string());
    command.arg("train").arg(recipe).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().map_err(|e| failed(&e))?;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| failed(&e))? {
            break status;
        }
        if stop.signal().is_some() {
            // half a comparison is of no use to anybody, and a run survives this
            let _ = child.kill();
        }
        thread::sleep(Duration::from_millis(20));
    };
    if let Some(signal) = stop.signal() {
        return Err(Error::stopped(signal, "stopped").at(recipe.display()));
    }
    if !status.success() {
        return Err(Error::new(format!("the run failed ({status})")).at(recipe.display()));
    }
    Ok(())
}
