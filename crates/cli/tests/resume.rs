//! Runs that are killed, stopped, or hit a full disk go on and end as if nothing had happened.

#![cfg(unix)]

mod common;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Place, config, finish, random, rows, tsv, wait_for_steps};
use serde_json::{Value, json};

/// Rows drawn by remembered norms, dropout, accumulation, a part of an epoch: everything that a checkpoint has to carry.
const SETS: [&str; 12] = [
    "--set",
    "keep.policy=paper",
    "--set",
    "train.steps=120",
    "--set",
    "train.save_every=4",
    "--set",
    "train.eval_every=30",
    "--set",
    "train.accumulate=2",
    "--set",
    "train.keep_checkpoints=2",
];

fn place() -> Place {
    let place = Place::new();
    let mut larger = config();
    (larger["hidden_size"], larger["intermediate_size"]) = (json!(48), json!(96));
    place.model("model", &larger);
    place.write("train.tsv", tsv(&rows(300, 1, None)));
    place
}

fn train<'a>(output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "recipe.toml", "--json", "--set", output], &SETS[..], more].concat()
}

fn spawn(place: &Place, args: &[&str]) -> Child {
    place.interruptible(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// Waits until a run has done this share of what the run `whole` has.
fn wait_for_share(place: &Place, child: &mut Child, run: &str, whole: &str, share: f64) {
    wait_for_steps(place, child, run, (share * place.metrics(whole).len() as f64) as usize);
}

#[track_caller]
fn same_model(place: &Place, run: &str) {
    for file in ["model/model.safetensors", "model/config.json"] {
        assert!(place.read(&format!("{run}/{file}")) == place.read(&format!("whole/{file}")), "{run}/{file} differs");
    }
    // not the peak: attention has scratch for every thread
    let losses = |run: &str| place.metrics(run).iter().map(|m| m["loss"].clone()).collect::<Vec<_>>();
    assert_eq!(losses(run), losses("whole"));
}

#[track_caller]
fn same_run(place: &Place, run: &str) {
    same_model(place, run);
    // not as a whole: a failure would print both runs
    for (ours, whole) in place.metrics(run).iter().zip(&place.metrics("whole")) {
        assert_eq!(ours, whole);
    }
    let (ours, theirs) = (place.json(&format!("{run}/summary.json")), place.json("whole/summary.json"));
    for key in ["best", "final", "steps", "epochs", "kept_bytes", "peak_bytes", "peak_bytes_by_class", "ledger"] {
        assert_eq!(ours[key], theirs[key], "{run}: {key}");
    }
}

#[test]
fn killed_runs_end_as_if_they_had_not_been() {
    let place = place();
    place.ok(&train("output=whole", &[]));
    for threads in ["1", "3"] {
        let run = format!("threads-{threads}");
        place.ok(&train(&format!("output={run}"), &["--threads", threads]));
        same_model(&place, &run);
    }

    let mut seed = 11;
    // the norm cache in memory and in a file: only the recipe differs
    for (output, cache) in [("output=a", "keep.cache=memory"), ("output=b", "keep.cache=file")] {
        let mut kills = 0;
        for attempt in 0.. {
            let resume: &[&str] = if attempt == 0 { &["--set", cache] } else { &["--set", cache, "--resume"] };
            let mut child = spawn(&place, &train(output, resume));
            if attempt < 6 {
                // a little later each time, so that every attempt gets somewhere
                let share = 0.1 * (1.0 + f64::from(attempt)) + 0.1 * random(&mut seed, 1000) as f64 / 1000.0;
                wait_for_share(&place, &mut child, output.trim_start_matches("output="), "whole", share);
                std::thread::sleep(Duration::from_millis(random(&mut seed, 10) as u64));
                child.kill().unwrap();
            }
            let output = child.wait_with_output().unwrap();
            match output.status.code() {
                Some(code) => {
                    assert_eq!(code, 0, "{}", String::from_utf8_lossy(&output.stderr));
                    break;
                }
                None => kills += 1,
            }
        }
        assert!(kills >= 2, "the run ended before it was killed");
        let run = output.trim_start_matches("output=");
        if run == "a" {
            same_run(&place, run);
        } else {
            // the cache is not on the meter
            assert!(place.read("b/model/model.safetensors") == place.read("whole/model/model.safetensors"));
        }
        let left: Vec<_> = place.names(run).into_iter().chain(place.names(&format!("{run}/checkpoints"))).collect();
        assert!(!left.iter().any(|name| name.ends_with(".tmp")), "{left:?}");
    }
}

/// Only what is learned is in a checkpoint; the rest comes from the base model.
#[test]
fn a_killed_adapter_run_goes_on() {
    let place = place();
    let sets = ["--set", "train.method=lora", "--set", "lora.dropout=0.1", "--set", "keep.sites.'*.lora'.keep=rows"];
    place.ok(&train("output=whole", &sets));
    for part in [0.4, 0.7] {
        let run = format!("killed-{part}");
        let output = format!("output={run}");
        let mut child = spawn(&place, &train(&output, &sets));
        wait_for_share(&place, &mut child, &run, "whole", part);
        child.kill().unwrap();
        let killed = child.wait().unwrap().code().is_none();
        assert!(killed, "the run ended before it was killed");
        place.ok(&train(&output, &[&sets[..], &["--resume"]].concat()));
        for file in ["adapter_model.safetensors", "adapter_config.json"] {
            let file = format!("model/{file}");
            assert!(
                place.read(&format!("{run}/{file}")) == place.read(&format!("whole/{file}")),
                "{run}/{file} differs"
            );
        }
        assert_eq!(place.metrics(&run), place.metrics("whole"));
    }
    let step = place.names("whole/checkpoints").pop().unwrap();
    let size = |file: &str| place.read(file).len();
    let checkpoint = size(&format!("whole/checkpoints/{step}/model.safetensors"));
    assert!(checkpoint < size("model/model.safetensors") / 2, "{checkpoint} bytes");
}

/// Codes and scales come back, and codes are rounded as they would have been.
#[test]
fn eight_bit_states_and_updates_in_the_backward_pass_go_on() {
    let place = place();
    let sets: Vec<&str> = ["optim.states=8bit", "optim.update=in-backward", "optim.clip=0", "train.accumulate=1"]
        .into_iter()
        .flat_map(|set| ["--set", set])
        .collect();
    place.ok(&train("output=whole", &sets));
    let mut child = spawn(&place, &train("output=run", &sets));
    wait_for_steps(&place, &mut child, "run", 3);
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let step = place.names("run/checkpoints").pop().unwrap();
    let stored = place.read(&format!("run/checkpoints/{step}/optimizer.safetensors"));
    let holds = |key: &str| stored.windows(key.len()).any(|w| w == key.as_bytes());
    let key = "bert.encoder.layer.0.output.dense.weight";
    let names = ["m.codes", "m.scale", "r.codes", "r.scale"].map(|kind| format!("\"{kind}.{key}\""));
    assert!(names.iter().all(|name| holds(name)) && !holds(&format!("\"m.{key}\"")));
    assert!(holds("\"m.classifier.bias\""), "small parameters have floats");
    place.ok(&train("output=run", &[&sets[..], &["--resume"]].concat()));
    same_run(&place, "run");
}

/// Rounded products are no less fixed: neither the number of threads nor a stop changes a bit.
#[test]
fn a_killed_bf16_run_goes_on() {
    let place = place();
    let bf16 = ["--set", "train.precision=bf16"];
    place.ok(&train("output=whole", &bf16));
    place.ok(&train("output=threads", &[&bf16[..], &["--threads", "3"]].concat()));
    same_model(&place, "threads");
    let mut child = spawn(&place, &train("output=killed", &bf16));
    wait_for_share(&place, &mut child, "killed", "whole", 0.6);
    child.kill().unwrap();
    assert!(child.wait().unwrap().code().is_none(), "the run ended before it was killed");
    place.ok(&train("output=killed", &[&bf16[..], &["--resume"]].concat()));
    same_run(&place, "killed");

    place.ok(&train("output=f32", &[]));
    assert!(place.read("f32/model/model.safetensors") != place.read("whole/model/model.safetensors"));
    let precision = |run: &str| place.json(&format!("{run}/summary.json"))["precision"].clone();
    assert_eq!((precision("whole"), precision("f32")), (json!("bf16"), json!("f32")));
}

#[test]
fn signals_end_a_run_after_its_step() {
    let place = place();
    place.ok(&train("output=whole", &[]));
    let signals = [("-TERM", "output=term", 143), ("-INT", "output=int", 130), ("-HUP", "output=hup", 129)];
    for (name, output, code) in signals {
        let run = output.trim_start_matches("output=");
        let mut child = spawn(&place, &train(output, &[]));
        wait_for_steps(&place, &mut child, run, 3);
        signal(&child, name);
        let ended = child.wait_with_output().unwrap();
        let err = String::from_utf8(ended.stderr).unwrap();
        assert_eq!((ended.status.code(), ended.stdout.len()), (Some(code), 0), "{err}");
        assert!(err.contains("stopping after this step; once more stops at once"), "{err}");
        let step = err.split("error: stopped after step ").nth(1).unwrap().split(';').next().unwrap();
        assert!(place.path(run).join("checkpoints").join(format!("step-{step}")).is_dir(), "{err}");
        let hint = format!("hint: go on with: colrow train recipe.toml --set '{output}' --set 'keep.policy=paper'");
        assert!(err.contains(&hint) && err.trim_end().ends_with("--resume"), "{err}");
        assert!(!place.path(run).join("summary.json").exists());

        // as a machine that lost power leaves it
        let mut metrics = OpenOptions::new().append(true).open(place.path(run).join("metrics.jsonl")).unwrap();
        metrics.write_all(b"{\"kind\":\"train\",\"step\":4,\"lo\xe2").unwrap();
        let err = place.run(&train(output, &["--resume"])).err;
        assert!(err.contains(&format!("going on after step {step}")), "{err}");
        same_run(&place, run);
    }
    let before = (place.read("term/summary.json"), place.read("term/metrics.jsonl"));
    let again = place.run(&train("output=term", &["--resume"]));
    let mut summary = place.json("term/summary.json");
    summary.as_object_mut().unwrap().retain(|key, _| key != "ledger" && key != "timeline");
    assert_eq!((again.code, serde_json::from_str::<Value>(&again.out).unwrap()), (Some(0), summary));
    assert!(again.err.contains("this run has ended"), "{}", again.err);
    assert_eq!((place.read("term/summary.json"), place.read("term/metrics.jsonl")), before);
}

#[test]
fn a_second_signal_ends_a_run_at_once() {
    let place = place();
    let text = tsv(&rows(5000, 1, None));
    let (head, lines) = text.split_once('\n').unwrap();
    place.write("train.tsv", format!("{head}\n{}", lines.repeat(6)));
    // one step of 30,000 batches; the ratios are logged just before it
    let sets = ["train.batch=1", "train.accumulate=30000", "keep.policy=paper", "keep.ratio=auto"];
    let sets: Vec<_> = sets.into_iter().flat_map(|set| ["--set", set]).collect();
    let mut child = spawn(&place, &[&["train", "recipe.toml"], &sets[..]].concat());
    wait_for_steps(&place, &mut child, "run", 1);
    std::thread::sleep(Duration::from_millis(300));
    // as `timeout` does
    let twice = "kill -TERM $0; kill -TERM $0";
    assert!(Command::new("sh").args(["-c", twice, &child.id().to_string()]).status().unwrap().success());
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none(), "the first signal, though it comes by two ways, lets the step finish");
    signal(&child, "-INT");
    let clock = Instant::now();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!(clock.elapsed() < Duration::from_secs(1));
    assert_eq!(place.names("run/checkpoints"), [""; 0]);
}

/// A run that was stopped after some steps, and the name of its newest checkpoint.
fn stopped(place: &Place) -> String {
    let mut child = spawn(place, &train("output=run", &[]));
    wait_for_steps(place, &mut child, "run", 9);
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let steps = place.names("run/checkpoints");
    steps.into_iter().max_by_key(|name| name["step-".len()..].parse::<u64>().unwrap()).unwrap()
}

#[test]
fn full_disks_and_read_only_folders_spare_the_checkpoint() {
    let place = place();
    place.ok(&train("output=whole", &[]));
    let checkpoint = format!("run/checkpoints/{}", stopped(&place));
    let files = place.names(&checkpoint);
    assert_eq!(files, ["model.safetensors", "norms.safetensors", "optimizer.safetensors", "state.json"]);
    let content = || -> Vec<_> { files.iter().map(|f| place.read(&format!("{checkpoint}/{f}"))).collect() };
    let before = content();

    // no file may be longer than 128 or 256 KiB (the unit is the shell's): the weights are
    let script = "trap '' XFSZ; ulimit -f 256; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_colrow")]).args(train("output=run", &["--resume"]));
    let ran = finish(command.current_dir(place.path(".")).stdin(Stdio::null()));
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{}", ran.err);
    assert!(ran.err.contains("error: cannot write: File too large"), "{}", ran.err);
    assert!(ran.err.contains("in run/checkpoints/") && ran.err.contains("hint: "), "{}", ran.err);
    assert_eq!(content(), before);
    assert!(
        place.names("run/checkpoints").iter().all(|name| !name.starts_with('.')),
        "{:?}",
        place.names("run/checkpoints")
    );

    let all = |mode: u32| {
        for name in ["run", "run/checkpoints", "run/metrics.jsonl", "run/lock"] {
            fs::set_permissions(place.path(name), fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    all(0o555);
    let mut command = place.command(&train("output=run", &["--resume"]));
    let program = place.path("colrow");
    if fs::metadata(place.path(".")).unwrap().uid() == 0 {
        // nothing is read-only to root: another user runs a copy of the program
        fs::set_permissions(place.path("."), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_colrow"), &program).unwrap();
        command = Command::new(&program);
        command.args(train("output=run", &["--resume"])).current_dir(place.path(".")).uid(65534).gid(65534);
    }
    let ran = finish(&mut command);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{}", ran.err);
    assert!(ran.err.contains("cannot write to the run folder: Permission denied"), "{}", ran.err);
    assert!(ran.err.contains("in run"), "{}", ran.err);
    assert_eq!(content(), before);
    all(0o755);

    place.ok(&train("output=run", &["--resume"]));
    same_run(&place, "run");
}

#[test]
fn damaged_checkpoints_are_named() {
    let place = place();
    place.ok(&train("output=whole", &[]));
    let newest = stopped(&place);
    let folder = format!("run/checkpoints/{newest}");
    let resume = train("output=run", &["--resume"]);
    for file in ["model.safetensors", "norms.safetensors", "optimizer.safetensors", "state.json"] {
        let path = format!("{folder}/{file}");
        let whole = place.read(&path);
        place.write(&path, &whole[..whole.len() / 2]);
        let ran = place.run(&resume);
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{}", ran.err);
        assert!(ran.err.contains(&format!("in {path}")), "{}", ran.err);
        assert!(ran.err.contains("hint: remove this folder"), "{}", ran.err);
        // a byte that is another makes another run, wherever it is
        for at in (0..16).map(|i| i * (whole.len() - 1) / 15) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            place.write(&path, bytes);
            let ran = place.run(&resume);
            assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{path}, byte {at}: {}", ran.err);
            assert!(ran.err.contains(&format!("in {folder}")) && ran.err.contains("remove this folder"), "{}", ran.err);
        }
        place.write(&path, whole);
    }
    // what the hint says
    fs::remove_dir_all(place.path(&folder)).unwrap();
    place.ok(&resume);
    same_run(&place, "run");
}

/// Ratios move, are logged where they do, and are part of what a checkpoint carries: rows drawn before and after dz is known.
#[test]
fn a_killed_run_whose_ratios_follow_the_gradient_goes_on() {
    let place = place();
    for policy in ["paper", "lean"] {
        let policy_is = format!("keep.policy={policy}");
        let limit = if policy == "paper" { "keep.bytes=300 KiB" } else { "keep.bytes=1GiB" };
        let sets = ["--set", &policy_is, "--set", "keep.ratio=auto", "--set", "keep.auto_every=3", "--set", limit];
        let whole = format!("output=whole-{policy}");
        let summary = place.ok(&train(&whole, &sets));
        let whole = format!("whole-{policy}");
        let ratios: Vec<_> = place.metrics(&whole).into_iter().filter(|m| m["kind"] == "ratios").collect();
        assert!(ratios.len() > 10 && ratios[0]["step"] == 0, "{}", ratios.len());
        assert!(ratios[1..].iter().all(|m| m["step"].as_u64().unwrap() % 3 == 0));
        let values = ratios.iter().flat_map(|m| m["ratios"].as_object().unwrap().values());
        assert!(values.clone().all(|v| (0.02..=1.0).contains(&v.as_f64().unwrap())));
        assert!(values.clone().any(|v| *v != json!(0.3)));
        assert!(summary.contains("pps@auto"), "{summary}");
        let summary = place.json(&format!("{whole}/summary.json"));
        let bytes = |key: &str| summary[key].as_u64().unwrap();
        assert!(
            bytes("kept_bytes") <= bytes("planned_kept_bytes") && bytes("peak_bytes") <= bytes("planned_peak_bytes")
        );
        if policy == "paper" {
            assert_eq!(bytes("planned_kept_bytes"), 300 << 10);
            assert!(bytes("kept_bytes") > 250 << 10, "the limit is used: {}", bytes("kept_bytes"));
        }
        let report = String::from_utf8(place.read(&format!("{whole}/report.html"))).unwrap();
        assert!(report.contains("<h2>Ratios</h2>"));

        let run = format!("killed-{policy}");
        let output = format!("output={run}");
        let mut child = spawn(&place, &train(&output, &sets));
        wait_for_share(&place, &mut child, &run, &whole, 0.6);
        child.kill().unwrap();
        assert!(child.wait().unwrap().code().is_none(), "the run ended before it was killed");
        place.ok(&train(&output, &[&sets[..], &["--resume"]].concat()));
        let file = "model/model.safetensors";
        assert!(place.read(&format!("{run}/{file}")) == place.read(&format!("{whole}/{file}")), "{run}/{file} differs");
        assert_eq!(place.metrics(&run), place.metrics(&whole));
    }
}
