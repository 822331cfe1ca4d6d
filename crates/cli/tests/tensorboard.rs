//! Event files, read back by TensorBoard's own package.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::Place;
use serde_json::{Map, Value};

const READ: &str = "
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0})
events.Reload()
print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()['scalars']}))
";

/// An interpreter that has the package: the one there is, or one of a virtual environment that is made once.
fn python() -> PathBuf {
    let has = |python: &Path| {
        Command::new(python).args(["-c", "import tensorboard"]).output().is_ok_and(|out| out.status.success())
    };
    let usual = PathBuf::from("python3");
    if has(&usual) {
        return usual;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tensorboard");
    let own = folder.join("bin/python");
    if !has(&own) {
        let run = |command: &mut Command| {
            let out = command.output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        };
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
        // a part of pip's that the package still asks for
        run(Command::new(&own).args(["-m", "pip", "install", "--quiet", "tensorboard>=2.16", "setuptools<81"]));
    }
    own
}

fn scalars(folder: &Path) -> Map<String, Value> {
    let out = Command::new(python()).args(["-c", READ]).arg(folder).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Every number of the log is there by step, once, though the run was stopped and resumed.
#[test]
fn tensorboard_reads_the_log() {
    let place = Place::new();
    let sets = [
        "train.log=['jsonl','tensorboard']",
        "train.save_every=3",
        "train.keep_checkpoints=9",
        "train.steps=8",
        "train.eval_every=4",
    ];
    place.train(&sets);
    // as if the process had ended after step 6
    assert!(place.path("run/checkpoints/step-6").exists());
    for name in place.names("run/checkpoints").iter().filter(|name| *name != "step-6") {
        std::fs::remove_dir_all(place.path(&format!("run/checkpoints/{name}"))).unwrap();
    }
    std::fs::remove_file(place.path("run/summary.json")).unwrap();
    let mut args = vec!["train", "recipe.toml", "--json", "--resume"];
    args.extend(sets.iter().flat_map(|s| ["--set", s]));
    place.ok_json(&args);
    let found = scalars(&place.path("run/tensorboard"));
    let logged = |kind: &str, key: &str| {
        let lines = place.metrics("run").into_iter().filter(|line| line["kind"] == kind);
        lines.map(|line| (line["step"].as_u64().unwrap(), line[key].as_f64().unwrap())).collect::<Vec<_>>()
    };
    for (kind, key) in [("train", "loss"), ("train", "lr"), ("train", "kept_bytes"), ("eval", "loss")] {
        let expected = logged(kind, key);
        let pair = |pair: &Value| (pair[0].as_u64().unwrap(), pair[1].as_f64().unwrap());
        let found: Vec<_> = found[&format!("{kind}/{key}")].as_array().unwrap().iter().map(pair).collect();
        assert_eq!(found.len(), expected.len(), "{kind}/{key}: {found:?}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.0, expected.0);
            assert!((found.1 - expected.1).abs() <= 1e-6 * expected.1.abs(), "{found:?} is not {expected:?}");
        }
    }
    assert!(found.contains_key("eval/metrics/accuracy"), "{:?}", found.keys());
    let ran = place.run(&["train", "recipe.toml", "--set", "train.log=['wandb']"]);
    assert!(ran.code == Some(2) && ran.err.contains("train.log: expected"), "{}", ran.err);
}
