//! What a run may go on from and what it may not: data, recipe, length, checkpoints, and stops in the middle of things.

#![cfg(unix)]

mod common;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Place, Ran, rows, tsv};
use serde_json::{Value, json};

fn args<'a>(sets: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    ["train", "recipe.toml"].into_iter().chain(sets).chain(more.iter().copied()).collect()
}

fn spawn(place: &Place, args: &[&str]) -> Child {
    place.interruptible(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// Waits until there is a file with so many lines.
fn wait_for(place: &Place, child: &mut Child, file: &str, lines: usize) {
    let clock = Instant::now();
    while fs::read_to_string(place.path(file)).map_or(0, |text| text.lines().count()) < lines {
        assert!(clock.elapsed() < Duration::from_secs(60), "{file} has no {lines} lines");
        assert!(child.try_wait().unwrap().is_none(), "the run has ended");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A run in `run/` that was stopped after some steps; its step.
fn stopped(place: &Place, sets: &[&str]) -> u64 {
    let mut child = spawn(place, &args(sets, &[]));
    wait_for(place, &mut child, "run/metrics.jsonl", 4);
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
    newest(place, "run")
}

fn newest(place: &Place, run: &str) -> u64 {
    let steps = place.names(&format!("{run}/checkpoints")).into_iter();
    steps.map(|name| name["step-".len()..].parse().unwrap()).max().unwrap()
}

#[track_caller]
fn refused(ran: &Ran, code: i32, needles: &[&str]) {
    assert_eq!(ran.code, Some(code), "{}", ran.err);
    for needle in needles {
        assert!(ran.err.contains(needle), "{needle:?} is not in {}", ran.err);
    }
}

#[track_caller]
fn same_run(place: &Place, run: &str, whole: &str) {
    for file in ["model/model.safetensors", "model/config.json"] {
        assert!(place.read(&format!("{run}/{file}")) == place.read(&format!("{whole}/{file}")), "{run}/{file} differs");
    }
    assert_eq!(place.metrics(run), place.metrics(whole));
    let (ours, theirs) = (place.json(&format!("{run}/summary.json")), place.json(&format!("{whole}/summary.json")));
    for key in ["best", "final", "steps", "epochs", "kept_bytes", "ledger"] {
        assert_eq!(ours[key], theirs[key], "{run}: {key}");
    }
}

/// The evaluation is left to the resumed run, at a step in the middle and at the last.
#[test]
fn a_stop_in_an_evaluation_is_prompt_and_loses_nothing() {
    let place = Place::new();
    place.write("train.tsv", tsv(&rows(300, 1, None)));
    place.write("dev.tsv", tsv(&rows(20_000, 2, None)));
    let clock = Instant::now();
    place.ok(&args(&["train.steps=8", "train.eval_every=4", "output=whole"], &[]));
    let evaluation = clock.elapsed() / 2;
    for at in [4, 8] {
        let output = format!("output=run-{at}");
        let sets = ["train.steps=8", "train.eval_every=4", &output];
        let mut child = spawn(&place, &args(&sets, &[]));
        let run = format!("run-{at}");
        // the lines of the steps, and of the evaluation before
        wait_for(&place, &mut child, &format!("{run}/metrics.jsonl"), if at == 4 { 4 } else { 9 });
        std::thread::sleep(evaluation / 4);
        signal(&child, "-TERM");
        assert_eq!(child.wait().unwrap().code(), Some(143));
        let state = place.json(&format!("{run}/checkpoints/step-{at}/state.json"));
        assert_eq!(state["evaluates"], true);
        let evaluations = |run: &str| place.metrics(run).iter().filter(|m| m["kind"] == "eval").count();
        assert_eq!(evaluations(&run), at / 4 - 1);
        // as a resumed run leaves it that is killed between the line and the checkpoint
        let line = json!({"kind": "eval", "step": at, "loss": 0.0, "metrics": {}});
        let metrics = format!("{}{line}\n", place.text(&format!("{run}/metrics.jsonl")));
        place.write(&format!("{run}/metrics.jsonl"), metrics);
        place.ok(&args(&sets, &["--resume"]));
        same_run(&place, &run, "whole");
    }
}

#[test]
fn a_stop_before_the_first_step_is_prompt() {
    let place = Place::new();
    let (text, times) = (tsv(&rows(2000, 1, None)), 200);
    let (head, lines) = text.split_once('\n').unwrap();
    place.write("train.tsv", format!("{head}\n{}", lines.repeat(times)));
    for (name, code) in [("-TERM", 143), ("-INT", 130)] {
        let mut child = spawn(&place, &args(&[], &[]));
        std::thread::sleep(Duration::from_millis(400));
        assert!(child.try_wait().unwrap().is_none() && !place.path("run").exists(), "too late: it runs");
        let clock = Instant::now();
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert!(clock.elapsed() < Duration::from_secs(1));
    }
}

#[test]
fn quickstart_takes_its_run_with_it() {
    let place = Place::new();
    place.write("train.tsv", tsv(&rows(4000, 1, None)));
    let args = ["quickstart", "--model", "./model", "--data", "train.tsv", "--out", "out"];
    for (name, code) in [("-TERM", 143), ("-INT", 130)] {
        let mut child = spawn(&place, &args);
        wait_for(&place, &mut child, "out/exact/metrics.jsonl", 1);
        let clock = Instant::now();
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert!(clock.elapsed() < Duration::from_secs(5));
        // nobody runs there any more, and the next try finds the place free
        std::thread::sleep(Duration::from_millis(200));
        assert!(!place.path("out").exists());
    }
}

/// Settings that leave a run as long as it was leave what it said of itself.
#[test]
fn a_run_that_has_ended_keeps_its_summary() {
    let place = Place::new();
    place.train(&["train.steps=3"]);
    let before = (place.text("run/summary.json"), place.text("run/recipe.toml"), place.text("run/metrics.jsonl"));
    let ran = place.run(&args(&["train.steps=3", "train.epochs=9"], &["--resume"]));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains("this run has ended: it has 3 steps with these settings too"), "{}", ran.err);
    assert!(before == (place.text("run/summary.json"), place.text("run/recipe.toml"), place.text("run/metrics.jsonl")));
}

#[test]
fn other_data_is_refused_by_name() {
    let place = Place::new();
    let data = rows(200, 1, None);
    place.write("train.tsv", tsv(&data));
    let sets = ["train.epochs=40", "train.eval_every=50"];
    let step = stopped(&place, &sets);
    let resume = args(&sets, &["--resume"]);
    let state = format!("run/checkpoints/step-{step}/state.json");
    let before = (place.read("run/metrics.jsonl"), place.read(&state));
    let refuses = |needles: &[&str]| {
        refused(&place.run(&resume), 1, needles);
        assert!((place.read("run/metrics.jsonl"), place.read(&state)) == before);
    };
    place.write("train.tsv", tsv(&data[..20]));
    refuses(&["the training data is not what this run began with: 200 examples with ", " then, 20 examples with "]);
    let mut turned = data.clone();
    turned.reverse();
    place.write("train.tsv", tsv(&turned));
    refuses(&["the training data", "200 examples with ", "then and now, but others, in another order"]);
    let mut relabelled = data.clone();
    relabelled[7].1 = 1 - relabelled[7].1;
    place.write("train.tsv", tsv(&relabelled));
    refuses(&["the training data", "or with other labels"]);
    place.write("train.tsv", tsv(&data));
    place.write("dev.tsv", tsv(&rows(13, 2, None)));
    refuses(&["the development data", "12 examples", "13 examples", "hint: resume with that data"]);

    // a checkpoint of an older version says nothing of data: less of it still ends
    place.write("dev.tsv", tsv(&rows(12, 2, None)));
    place.write("train.tsv", tsv(&data[..20]));
    let mut old: Value = serde_json::from_slice(&before.1).unwrap();
    for key in ["data", "digests", "evaluates", "first_loss", "good", "unlogged"] {
        assert!(old.as_object_mut().unwrap().remove(key).is_some());
    }
    (old["epoch"], old["step_in_epoch"]) = (json!(0), json!(5));
    place.write(&state, old.to_string());
    refused(&place.run(&resume), 1, &["stands at step 5 of an epoch of 3: the training data"]);
    place.write("train.tsv", tsv(&data));
    old["step_in_epoch"] = json!(step % 25);
    old["epoch"] = json!(step / 25);
    place.write(&state, old.to_string());
    place.ok(&resume);
}

#[test]
fn recipes_are_compared_key_by_key() {
    let place = Place::new();
    place.ok(&args(&["train.steps=4"], &[]));
    let other = ["train.steps=4", "optim.lr=0.5", "data.limit=30", "keep.sites.'*dense'.ratio=0.5"];
    let told = [
        "the run in this folder has another recipe:\n    data.limit: not set there, 30 here\n    \
         keep.sites.\"*dense\".ratio: not set there, 0.5 here\n    optim.lr: 0.001 there, 0.5 here\n  in run/recipe.toml",
        "hint: resume with the recipe",
    ];
    refused(&place.run(&args(&other, &["--resume"])), 1, &told);
    // these change nothing of what is learned
    let free = ["train.steps=4", "train.log_every=7", "train.keep_checkpoints=3", "train.save_every=2", "output=./run"];
    fs::remove_file(place.path("run/summary.json")).unwrap();
    place.ok(&args(&free, &["--resume", "--threads", "1"]));
    assert!(place.text("run/recipe.toml").contains("log_every = 7"));
    assert_eq!(place.names("run").iter().filter(|name| name.starts_with('.')).count(), 0);
}

#[test]
fn a_run_can_be_made_longer() {
    let place = Place::new();
    let sets = |steps: &'static str, output: &'static str| {
        [steps, output, "train.eval_every=5", "optim.schedule=constant", "optim.warmup=0", "train.log_every=5"]
    };
    place.ok(&args(&sets("train.steps=20", "output=whole"), &[]));
    place.ok(&args(&sets("train.steps=10", "output=run"), &[]));
    refused(
        &place.run(&args(&sets("train.steps=9", "output=run"), &["--resume"])),
        2,
        &["a run can be made longer, not shorter: it has 10 steps there, 9 here"],
    );
    assert!(place.path("run/summary.json").exists() && place.text("run/recipe.toml").contains("steps = 10"));
    let ran = place.run(&args(&sets("train.steps=20", "output=run"), &["--resume"]));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let warning = "warning: the run is made longer, from 10 to 20 steps, and its learning rate follows the schedule of the new length\n";
    assert!(ran.err.contains(warning), "{}", ran.err);
    assert!(place.text("run/recipe.toml").contains("steps = 20"));
    // a constant rate knows no length
    same_run(&place, "run", "whole");

    // epochs, and a rate that had fallen to 0
    place.ok(&args(&["output=epochs"], &[]));
    let ran = place.run(&args(&["output=epochs", "train.epochs=3"], &["--resume"]));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(
        ran.err.contains("from 10 to 15 steps") && ran.err.contains("at the next step, instead of 0.000e0"),
        "{}",
        ran.err
    );
    assert_eq!(place.json("epochs/summary.json")["steps"], 15);
}

#[test]
fn checkpoints_that_cannot_be_listed_are_an_error() {
    let place = Place::new();
    place.ok(&args(&[], &[]));
    let metrics = place.read("run/metrics.jsonl");
    fs::remove_file(place.path("run/summary.json")).unwrap();
    fs::rename(place.path("run/checkpoints"), place.path("elsewhere")).unwrap();
    place.write("run/checkpoints", "");
    let words = ["cannot list the checkpoints: ", "in run/checkpoints"];
    refused(&place.run(&args(&[], &["--resume"])), 1, &words);
    // a disk that is not there today
    fs::remove_file(place.path("run/checkpoints")).unwrap();
    std::os::unix::fs::symlink(place.path("nowhere"), place.path("run/checkpoints")).unwrap();
    refused(&place.run(&args(&[], &["--resume"])), 1, &words);
    assert!(place.read("run/metrics.jsonl") == metrics);
}

#[test]
fn what_killed_processes_left_is_cleared_away() {
    let place = Place::new();
    place.ok(&args(&[], &[]));
    fs::remove_file(place.path("run/summary.json")).unwrap();
    for folder in ["run/checkpoints/.step-3.99.tmp", "run/checkpoints/.step-5.old", "run/.model.99.tmp", "run/.mine"] {
        fs::create_dir(place.path(folder)).unwrap();
        place.write(&format!("{folder}/file"), "");
    }
    for file in ["run/.report.html.99.tmp", "run/.metrics.jsonl.99.tmp", "run/.notes.99.tmp"] {
        place.write(file, "");
    }
    fs::rename(place.path("run/checkpoints/step-10"), place.path("run/checkpoints/.step-10.old")).unwrap();
    place.ok(&args(&[], &["--resume"]));
    assert_eq!(place.json("run/summary.json")["steps_here"], 0, "the checkpoint that was moved aside is found");
    assert_eq!(place.names("run/checkpoints"), ["step-10"], "older ones go, as far as one was left");
    let hidden: Vec<_> = place.names("run").into_iter().filter(|name| name.starts_with('.')).collect();
    assert_eq!(hidden, [".mine", ".notes.99.tmp"]);
}

#[test]
fn a_run_that_was_killed_before_its_first_checkpoint_begins_again() {
    let place = Place::new();
    let sets = ["keep.policy=paper", "keep.ratio=auto", "train.epochs=20"];
    place.ok(&args(&[&sets[..], &["output=whole"]].concat(), &[]));
    let mut child = spawn(&place, &args(&sets, &[]));
    wait_for(&place, &mut child, "run/metrics.jsonl", 2);
    child.kill().unwrap();
    child.wait().unwrap();
    fs::remove_dir_all(place.path("run/checkpoints")).unwrap_or_default();
    let ran = place.run(&args(&sets, &["--resume"]));
    assert!(ran.code == Some(0) && ran.err.contains("no checkpoint yet"), "{}", ran.err);
    same_run(&place, "run", "whole");
}

/// At the first step the rate is 0, at the second the weights become as large as the rate: finite, and of no use.
#[test]
fn a_checkpoint_of_weights_that_have_gone_wrong_is_not_called_good() {
    let place = Place::new();
    let sets = ["optim.lr=1e30", "optim.warmup=1", "optim.schedule=constant", "train.save_every=1"];
    let told = [
        "the last good checkpoint is run/checkpoints/step-1; the weights in run/checkpoints/step-2 had gone wrong already",
    ];
    refused(&place.run(&args(&sets, &[])), 1, &told);
    assert_eq!(place.names("run/checkpoints"), ["step-1", "step-2"]);
    refused(&place.run(&args(&sets, &["--resume"])), 1, &told);
    assert_eq!(place.names("run/checkpoints"), ["step-1", "step-2"]);

    let sets = [&sets[..], &["optim.warmup=0", "output=at-once"]].concat();
    let told =
        ["there is no good checkpoint: the weights in at-once/checkpoints/step-1 had gone wrong already", "optim.lr"];
    refused(&place.run(&args(&sets, &[])), 1, &told);
    // weights that are not even finite are not written
    let sets = [&sets[..], &["optim.lr=1e39", "output=infinite"]].concat();
    refused(&place.run(&args(&sets, &[])), 1, &["is not finite after this step", "no checkpoint was written yet"]);
    assert_eq!(place.names("infinite/checkpoints"), [""; 0]);
}

#[test]
fn the_logged_loss_is_the_mean_since_the_last_line() {
    let place = Place::new();
    place.write("train.tsv", tsv(&rows(300, 1, None)));
    let sets = |every: &'static str, output: &'static str| [every, output, "train.steps=40", "train.save_every=1"];
    place.ok(&args(&sets("train.log_every=1", "output=each"), &[]));
    place.ok(&args(&sets("train.log_every=7", "output=whole"), &[]));
    let lines = |run: &str| place.metrics(run).into_iter().filter(|m| m["kind"] == "train").collect::<Vec<_>>();
    let each: Vec<f64> = lines("each").iter().map(|m| m["batch_loss"].as_f64().unwrap()).collect();
    assert!(lines("each").iter().all(|m| m["loss"] == m["batch_loss"]));
    let mut from = 0;
    for line in lines("whole") {
        let step = line["step"].as_u64().unwrap() as usize;
        assert_eq!(line["loss"].as_f64().unwrap(), each[from..step].iter().sum::<f64>() / (step - from) as f64);
        assert_eq!(line["batch_loss"].as_f64().unwrap(), each[step - 1]);
        from = step;
    }
    assert_eq!(from, 35);
    let mut child = spawn(&place, &args(&sets("train.log_every=7", "output=run"), &[]));
    wait_for(&place, &mut child, "run/metrics.jsonl", 2);
    child.kill().unwrap();
    assert!(child.wait().unwrap().code().is_none(), "the run ended before it was killed");
    place.ok(&args(&sets("train.log_every=7", "output=run"), &["--resume"]));
    same_run(&place, "run", "whole");
}

#[test]
fn a_log_without_a_terminal_tells_some_steps() {
    let place = Place::new();
    let ran = place.run(&args(&["train.steps=100"], &[]));
    let told: Vec<_> = ran.err.lines().filter(|line| line.contains(" tokens/s ")).collect();
    let steps: Vec<_> = told.iter().filter_map(|line| line.split("step ").nth(1)?.split('/').next()).collect();
    assert!(steps.starts_with(&["1", "3", "6"]) && steps.ends_with(&["99"]) && steps.len() == 34, "{}", ran.err);
    for part in ["run: step 3/100  loss ", "  lr 2.00e-4", " tokens/s  ", " left"] {
        assert!(told[1].contains(part), "{}", told[1]);
    }
}

/// What the checkpoint brings is not said to be new, and the summary is that of the whole run.
#[test]
fn a_resumed_run_does_not_speak_of_weights_that_its_checkpoint_brings() {
    let place = Place::new();
    place.write("three.tsv", "sentence\tlabel\ngood film\ta\nbad film\tb\npoor plot\tc\nfine film\ta\n");
    let sets = ["data.train=three.tsv", "data.dev=three.tsv", "train.save_every=1"];
    let first = place.run(&args(&[&sets[..], &["train.steps=2"]].concat(), &[]));
    assert!(first.code == Some(0) && first.err.contains("initialised: classifier"), "{}", first.err);
    let more = place.run(&args(&[&sets[..], &["train.steps=4"]].concat(), &["--resume"]));
    assert!(more.code == Some(0) && !more.err.contains("initialised"), "{}", more.err);
    assert!(place.json("run/summary.json")["warnings"].to_string().contains("initialised: classifier"));
}

#[test]
fn a_run_that_diverged_says_so_at_its_end() {
    let place = Place::new();
    let diverged = ["optim.lr=1e2", "optim.warmup=0", "optim.schedule=constant", "train.steps=4", "output=far"];
    let ran = place.run(&args(&diverged, &[]));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains("warning: the run diverged: its loss is "), "{}", ran.err);
    assert!(place.json("far/summary.json")["warnings"].to_string().contains("the run diverged"));
    let ran = place.run(&args(&["train.steps=4"], &[]));
    assert!(ran.code == Some(0) && !ran.err.contains("diverged"), "{}", ran.err);
}
