//! A run's processes, where a launcher started several: their threads, and which of them speaks.

use std::thread::available_parallelism;

use colrow_tensor::{Error, Kind, Result};
use colrow_train::comm::{self, Together};

use crate::output;

/// Finds the other processes of this run, and how many of them this machine has, which share its processors unless `--threads` says how many
/// each has.
///
/// # Errors
/// A launcher without an MPI library that speaks with it.
pub(crate) fn start() -> Result<(Together, usize)> {
    let together = comm::world()?;
    let mut here = 1;
    if together.size() > 1 {
        output::be_silent(!together.is_first());
        let hosts = together.values(&host())?;
        here = hosts.iter().filter(|other| **other == hosts[together.rank()]).count();
        let all = available_parallelism().map_or(1, |n| n.get());
        // a launcher that bound this process to some processors has shared them out
        let each = match processors() {
            Some(of_machine) => all.min(of_machine.div_ceil(here)),
            None => all.div_ceil(here),
        };
        // already built where --threads is given
        let _ = rayon::ThreadPoolBuilder::new().num_threads(each.max(1)).build_global();
    }
    Ok((together, here))
}

/// The outcome of work that all did, as this process tells it: what is an error of all is told by the first alone.
///
/// # Errors
/// That of the outcome.
pub(crate) fn end<T>(outcome: Result<T>, together: &Together) -> Result<T> {
    if together.size() == 1 {
        return outcome;
    }
    let alone_knows = together.collective().is_broken() || !together.have_failed();
    outcome.map_err(|e| {
        if alone_knows && !matches!(e.kind(), Kind::Stopped(_)) {
            output::be_silent(false);
            // the launcher would wait for those that still do
            output::say(&format!("error: {}", e.at(format!("process {} of {}", together.rank(), together.size()))));
            together.collective().abort(1);
            return Error::new("other processes are gone");
        }
        // said before any process ends: launchers end the others with the first that fails
        output::say(&format!("error: {e}"));
        output::be_silent(true);
        let _ = together.any(false);
        e
    })
}

/// The name of this machine.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::env::var("HOSTNAME"));
    // machines that are clones of each other share a name, and not what the kernel began with
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    format!("{} {}", name.unwrap_or_default().trim(), boot.trim())
}

/// Processors of this machine, whichever of them this process may use.
fn processors() -> Option<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1)
    };
    text.trim().split(',').map(count).sum()
}
