//! A run that is killed at any of its calls on files, or whose calls fail there, loses nothing: it never panics, and resumed it ends
//! as if nothing had happened.
//!
//! `faults/shim.c`, preloaded, counts the calls below the run folder and strikes at one of them. `COLROW_FAULTS=all` strikes at each.

#![cfg(target_os = "linux")]

mod common;

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use common::{Place, Ran, finish, random};

/// Everything that a checkpoint has to carry, and one after every second of 12 steps.
const SETS: [&str; 9] = [
    "keep.policy=paper",
    "keep.cache=file",
    "keep.ratio=auto",
    "keep.auto_every=4",
    "train.steps=12",
    "train.save_every=2",
    "train.eval_every=6",
    "train.accumulate=2",
    "train.keep_checkpoints=2",
];

/// Strikes of each kind in a test, unless all are asked for.
const STRIKES: usize = 40;

const EIO: &str = "5";
const ENOSPC: &str = "28";

static SHIM: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("shim.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/shim.c");
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).args([source, "-ldl"]).output();
    let built = built.expect("the C compiler that Rust links with");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    (folder, library)
});

fn train(place: &Place, run: &str, resume: bool) -> Command {
    let output = format!("output={run}");
    let sets = SETS.iter().copied().chain([output.as_str()]).flat_map(|set| ["--set", set]);
    let resume = resume.then_some("--resume");
    place.command(&["--threads", "1", "train", "recipe.toml"].into_iter().chain(sets).chain(resume).collect::<Vec<_>>())
}

/// The command with the shim before it, which looks at calls below the folder of the run.
fn struck(place: &Place, run: &str, resume: bool, settings: &[(&str, &str)]) -> Command {
    let mut command = train(place, run, resume);
    command.env("LD_PRELOAD", &SHIM.1).env("FAULTS_BELOW", place.path(run)).envs(settings.iter().copied());
    command
}

/// The run `whole`, undisturbed, and how many calls one like it makes.
fn whole(place: &Place) -> usize {
    assert_eq!(finish(&mut train(place, "whole", false)).code, Some(0));
    let count = place.path("count");
    let ran = finish(&mut struck(place, "counted", false, &[("FAULTS_COUNT", count.to_str().unwrap())]));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    check_whole(place, "counted");
    place.text("count").trim().parse().unwrap()
}

/// Numbers of calls to strike at, in order, among them the first and the last.
fn strikes(calls: usize, seed: u64) -> Vec<usize> {
    if std::env::var("COLROW_FAULTS").is_ok_and(|v| v == "all") {
        return (1..=calls).collect();
    }
    let mut seed = seed;
    let mut strikes: Vec<_> = (0..STRIKES).map(|_| 1 + random(&mut seed, calls)).chain([1, calls]).collect();
    strikes.sort_unstable();
    strikes.dedup();
    strikes
}

/// That `run` is what `whole` is, and that nothing else is left in its folder.
#[track_caller]
fn check_whole(place: &Place, run: &str) {
    for file in ["model/model.safetensors", "model/config.json", "checkpoints/step-12/model.safetensors"] {
        assert!(place.read(&format!("{run}/{file}")) == place.read(&format!("whole/{file}")), "{run}/{file} differs");
    }
    assert_eq!(place.metrics(run), place.metrics("whole"), "{run}");
    for folder in ["", "/checkpoints", "/model"] {
        assert_eq!(place.names(&format!("{run}{folder}")), place.names(&format!("whole{folder}")), "{run}{folder}");
    }
}

/// Goes on with a run that was struck, and checks it.
#[track_caller]
fn go_on(place: &Place, run: &str, struck: &Ran) {
    let ran = finish(&mut train(place, run, true));
    assert_eq!(ran.code, Some(0), "{run}: {}\nafter: {}", ran.err, struck.err);
    check_whole(place, run);
    std::fs::remove_dir_all(place.path(run)).unwrap();
}

#[track_caller]
fn no_panic(run: &str, ran: &Ran) {
    assert!(!ran.err.contains("panicked") && !matches!(ran.code, Some(101 | 134)), "{run}: {}", ran.err);
}

#[test]
fn killed_at_any_call() {
    let place = Place::new();
    let calls = whole(&place);
    for n in strikes(calls, 1) {
        let run = format!("killed-{n}");
        let ran = finish(&mut struck(&place, &run, false, &[("FAULTS_AT", &n.to_string())]));
        assert_eq!(ran.code, None, "{run}: {}", ran.err);
        go_on(&place, &run, &ran);
    }
}

/// One call fails, as on a bad disk.
#[test]
fn a_call_that_fails() {
    let place = Place::new();
    let calls = whole(&place);
    for n in strikes(calls, 2) {
        let run = format!("failed-{n}");
        let ran = finish(&mut struck(&place, &run, false, &[("FAULTS_AT", &n.to_string()), ("FAULTS_ERRNO", EIO)]));
        no_panic(&run, &ran);
        match ran.code {
            // what failed was not needed
            Some(0) => check_whole(&place, &run),
            Some(1) => {
                assert!(ran.err.contains("error: "), "{run}: {}", ran.err);
                go_on(&place, &run, &ran);
            }
            code => panic!("{run}: exit code {code:?}: {}", ran.err),
        }
    }
}

/// From one call on, nothing takes room any more.
#[test]
fn a_disk_that_is_full() {
    let place = Place::new();
    let calls = whole(&place);
    for n in strikes(calls, 3) {
        let run = format!("full-{n}");
        let settings = [("FAULTS_AT", &*n.to_string()), ("FAULTS_ERRNO", ENOSPC), ("FAULTS_STAYS", "1")];
        let ran = finish(&mut struck(&place, &run, false, &settings));
        no_panic(&run, &ran);
        match ran.code {
            Some(0) => check_whole(&place, &run),
            Some(1) => {
                assert!(ran.err.contains("No space left on device"), "{run}: {}", ran.err);
                go_on(&place, &run, &ran);
            }
            code => panic!("{run}: exit code {code:?}: {}", ran.err),
        }
    }
}
