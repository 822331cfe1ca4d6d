//! Runs of several processes under real launchers. `COLROW_TEST_MPI` names the folders, separated by colons, in which MPI is installed
//! (`bin/mpirun`); without it only what needs no MPI is tested. `.ci/run` installs two.

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Place, Ran, config, finish};
use serde_json::{Value, json};

/// Folders with `bin/mpirun`.
fn launchers() -> Vec<PathBuf> {
    let all = std::env::var_os("COLROW_TEST_MPI").unwrap_or_default();
    std::env::split_paths(&all).filter(|path| path.join("bin/mpirun").is_file()).collect()
}

/// `colrow ARGS` by several processes.
fn command(place: &Place, launcher: &Path, processes: usize, args: &[&str]) -> Command {
    let program = place.command(args);
    let mut command = Command::new(launcher.join("bin/mpirun"));
    // what Open MPI asks of who runs as root, or on fewer processors
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    // who waits for this long waits for ever
    command.env("COLROW_MPI_TIMEOUT", "60");
    command.env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe");
    command.arg("-n").arg(processes.to_string()).arg(program.get_program()).args(program.get_args());
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(place.path(".")).stdin(Stdio::null());
    command
}

fn sets<'a>(output: &'a str, sets: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["train", "recipe.toml", "--set", output];
    args.extend(sets.iter().flat_map(|set| ["--set", set]));
    args
}

#[track_caller]
fn trains(place: &Place, launcher: &Path, processes: usize, args: &[&str]) -> Ran {
    let ran = finish(&mut command(place, launcher, processes, args));
    assert_eq!(ran.code, Some(0), "{processes} processes, {args:?}: {}", ran.err);
    ran
}

/// A model with weights of several blocks, so that processes have parts of one.
fn wide() -> Place {
    let place = Place::new();
    let mut config = config();
    config["hidden_size"] = json!(64);
    config["intermediate_size"] = json!(1100);
    place.model("model", &config);
    place
}

/// What a run leaves, but for what is measured.
fn left(place: &Place, run: &str) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![format!("{run}/model/{}", weights(place, run))];
    for step in place.names(&format!("{run}/checkpoints")) {
        let folder = format!("{run}/checkpoints/{step}");
        files.extend(place.names(&folder).into_iter().filter(|n| n != "state.json").map(|n| format!("{folder}/{n}")));
    }
    let mut all: Vec<_> = files.into_iter().map(|file| (file.replacen(run, "", 1), place.read(&file))).collect();
    let lines: Vec<Value> = place.metrics(run).into_iter().map(told).collect();
    all.push(("metrics".into(), serde_json::to_vec(&lines).unwrap()));
    all
}

fn weights(place: &Place, run: &str) -> &'static str {
    let adapter = "adapter_model.safetensors";
    if place.path(&format!("{run}/model/{adapter}")).exists() { adapter } else { "model.safetensors" }
}

fn told(mut line: Value) -> Value {
    let fields = line.as_object_mut().unwrap();
    fields.retain(|key, _| {
        !["step_seconds", "kept_bytes", "peak_bytes", "sent_bytes", "waited_seconds"].contains(&key.as_str())
    });
    line
}

/// Steps of three shards, and of fewer at the end of an epoch: rounds in which some processes have none.
#[test]
fn the_same_bits_at_any_world_size() {
    let place = wide();
    let base = ["train.batch=4", "train.accumulate=3", "train.epochs=1"];
    for (i, more) in [
        &["keep.policy=lean"][..],
        &["keep.policy=paper", "keep.cache=file"],
        &["keep.policy=paper", "keep.norms=running", "optim.clip=0", "train.save_every=2"],
        &["optim.states=8bit", "train.weights=bf16"],
        &["train.method=lora", "lora.rank=4", "keep.policy=recompute"],
        &["train.precision=bf16", "train.freeze=['*.bias']", "train.keep_checkpoints=3", "train.save_every=1"],
    ]
    .into_iter()
    .enumerate()
    {
        let more = [&base, more].concat();
        let alone = format!("alone{i}");
        let output = format!("output={alone}");
        place.ok(&sets(&output, &more));
        let want = left(&place, &alone);
        for (k, launcher) in launchers().iter().enumerate() {
            for processes in [2, 3, 4] {
                let run = format!("run{i}-{k}-{processes}");
                let output = format!("output={run}");
                let ran = trains(&place, launcher, processes, &sets(&output, &more));
                assert_eq!(ran.out.matches("best ").count(), 1, "one process speaks: {}", ran.out);
                for ((file, found), (_, want)) in left(&place, &run).iter().zip(&want) {
                    assert!(found == want, "{more:?}, {processes} processes of {}: {file}", launcher.display());
                }
            }
        }
    }
}

/// A process that is killed ends the others; the run goes on from its checkpoint with as many processes as there are.
#[test]
fn killed_runs_go_on_at_another_world_size() {
    for launcher in launchers() {
        let place = wide();
        let base = ["train.batch=4", "train.accumulate=3", "train.epochs=6", "train.save_every=1"];
        place.ok(&sets("output=alone", &base));
        for (processes, victim, checkpoint) in [(4, 0, 2), (3, 2, 5), (2, 1, 9)] {
            let mut args = sets("output=run", &base);
            args.push("--resume");
            let mut child = command(&place, &launcher, processes, &args).stderr(Stdio::null()).spawn().unwrap();
            let begun = Instant::now();
            let reached = || place.path(&format!("run/checkpoints/step-{checkpoint}")).exists();
            while !reached() && begun.elapsed() < Duration::from_secs(60) {
                std::thread::sleep(Duration::from_millis(2));
            }
            signal(&place, victim, "-KILL");
            assert!(!child.wait().unwrap().success(), "the launcher ends the others");
        }
        let mut args = sets("output=run", &base);
        args.push("--resume");
        place.ok(&args);
        let (found, want) = (left(&place, "run"), left(&place, "alone"));
        assert!(found == want, "{}", launcher.display());
    }
}

/// A process that does not go on ends the others with an error.
#[test]
fn a_process_that_hangs_is_an_error() {
    for launcher in launchers() {
        let place = wide();
        let args =
            sets("output=run", &["train.batch=4", "train.accumulate=3", "train.epochs=9000", "train.save_every=2"]);
        let mut command = command(&place, &launcher, 2, &args);
        let mut child = command.env("COLROW_MPI_TIMEOUT", "2").stderr(Stdio::piped()).spawn().unwrap();
        let begun = Instant::now();
        while !place.path("run/checkpoints/step-2").exists() && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(2));
        }
        signal(&place, 1, "-STOP");
        let mut said = String::new();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        while !said.contains("hint: COLROW_MPI_TIMEOUT") {
            let Some(line) = lines.next() else { break };
            said += &line;
        }
        // which no launcher can end before it goes on, or is killed
        signal(&place, 1, "-KILL");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(said.contains("other processes have not answered for 2 s"), "{said}");
        assert!(said.contains("in process 0 of 2"), "{said}");
    }
}

/// Signals the process of this rank whose folder is the place.
fn signal(place: &Place, rank: usize, signal: &str) {
    let place = place.path(".").canonicalize().unwrap();
    let number = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let ranks = [format!("PMI_RANK={rank}"), format!("OMPI_COMM_WORLD_RANK={rank}")];
    for process in std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()) {
        let Some(id) = number(&process) else { continue };
        let here = std::fs::read_link(process.join("cwd")).is_ok_and(|folder| folder == place);
        let program = std::fs::read_link(process.join("exe")).is_ok_and(|exe| exe.ends_with("colrow"));
        let variables = std::fs::read(process.join("environ")).unwrap_or_default();
        let is_rank = variables.split(|&byte| byte == 0).any(|v| ranks.iter().any(|rank| rank.as_bytes() == v));
        if here && program && is_rank {
            Command::new("kill").args([signal, &id.to_string()]).status().unwrap();
        }
    }
}

/// Each process learns from one of them what is wrong, and one says it.
#[test]
fn processes_that_differ_are_refused() {
    for launcher in launchers() {
        let place = Place::new();
        let fails = |script: &str, needle: &str| {
            let program = env!("CARGO_BIN_EXE_colrow");
            let script = format!(
                "RANK=${{PMI_RANK:-$OMPI_COMM_WORLD_RANK}}; {}",
                script.replace("colrow ", &format!("{program} "))
            );
            let mut command = command(&place, &launcher, 2, &[]);
            let shell: Vec<_> = command.get_args().map(ToOwned::to_owned).take(2).collect();
            let envs: Vec<_> = command.get_envs().filter_map(|(n, v)| Some((n.to_owned(), v?.to_owned()))).collect();
            command = Command::new(command.get_program());
            command.args(shell).args(["sh", "-c", &script]).envs(envs).current_dir(place.path("."));
            let ran = finish(&mut command);
            assert!(ran.code != Some(0), "{script}: {}", ran.err);
            assert_eq!(ran.err.matches(needle).count(), 1, "{script}: {needle}: {}", ran.err);
            assert!(!place.path("run").exists(), "{script}");
        };
        let train = "exec colrow train recipe.toml";
        let differ = "the processes differ in their ";
        let recipes = format!("{differ}recipe: process 1 and process 0:\n    seed: 0 there, 1 here");
        fails(&format!("{train} --set seed=$RANK"), &recipes);
        fails(
            &format!(
                "mkdir -p own$RANK; cp -r model *.tsv recipe.toml own$RANK; [ $RANK = 0 ] || echo 'good\t1' >> own1/dev.tsv; cd own$RANK; {train}"
            ),
            &format!("{differ}development data: process 1 has "),
        );
        fails(&format!("[ $RANK = 0 ] || cd model; {train}"), "in process 1 of 2");
        fails(
            "cp colrow other$RANK; [ $RANK = 0 ] || echo >> other$RANK; exec ./other$RANK train recipe.toml",
            &format!("{differ}program: process 1 has version "),
        );
        fails(
            &format!("[ $RANK = 0 ] || export COLROW_INSTRUCTIONS=portable; {train}"),
            &format!("{differ}processor's instructions: process 1 has portable"),
        );
    }
}

/// The plan of a process is its run: parts of the states, and what travels.
#[test]
fn the_fullest_process_is_planned() {
    let place = wide();
    let plan = |workers: &str, more: &[&str]| {
        let args = ["plan", "recipe.toml", "--json", "--workers", workers, "--set", "train.accumulate=4"];
        place.ok_json(&[&args[..], more].concat())
    };
    let (one, four) = (plan("1", &[]), plan("4", &[]));
    let plain = place.ok_json(&["plan", "recipe.toml", "--json", "--set", "train.accumulate=4"]);
    assert_eq!(one["peak_bytes_by_class"], plain["peak_bytes_by_class"]);
    assert!(one["sent_bytes"].is_null());
    let optimizer = |plan: &Value| plan["peak_bytes_by_class"]["optimizer"].as_f64().unwrap();
    let weights = one["peak_bytes_by_class"]["weights"].as_f64().unwrap();
    // the moments of a quarter, in whole blocks, and a gradient and the weights of three quarters sent
    assert!((optimizer(&four) - optimizer(&one) / 4.0).abs() <= 2.0 * f64::from(2 << 16), "{four}");
    let sent = four["sent_bytes"].as_f64().unwrap();
    assert!((sent / (1.5 * weights) - 1.0).abs() < 0.3, "{sent} {weights}");
    for launcher in launchers() {
        for processes in ["2", "3"] {
            let run = format!("run{processes}");
            let output = format!("output={run}");
            let args = sets(&output, &["train.accumulate=4", "train.epochs=1", "train.batch=5"]);
            trains(&place, &launcher, processes.parse().unwrap(), &args);
            let (summary, plan) =
                (place.json(&format!("{run}/summary.json")), plan(processes, &["--set", "train.batch=5"]));
            assert_eq!(summary["planned_peak_bytes"], plan["peak_bytes"]);
            let [peak, planned] = ["peak_bytes", "planned_peak_bytes"].map(|key| summary[key].as_f64().unwrap());
            assert!(peak <= planned && peak > 0.8 * planned, "{peak} {planned}");
            let sent = place.metrics(&run)[0]["sent_bytes"].as_f64().unwrap();
            let planned = plan["sent_bytes"].as_f64().unwrap();
            assert!((sent / planned - 1.0).abs() < 0.3, "{sent} {planned}");
            std::fs::remove_dir_all(place.path(&run)).unwrap();
        }
    }
}

/// A launcher's variables without a library say what to install.
#[test]
fn a_launcher_without_a_library_is_an_error() {
    let place = Place::new();
    let run = |variables: &[(&str, &str)]| {
        let mut command = place.command(&["train", "recipe.toml"]);
        command.env("PATH", "/nowhere").env("LD_LIBRARY_PATH", "");
        finish(command.envs(variables.iter().copied()))
    };
    let ran = run(&[("PMI_SIZE", "3"), ("PMI_RANK", "0"), ("COLROW_MPI", "/nowhere/libmpi.so")]);
    assert_eq!(ran.code, Some(2), "{}", ran.err);
    let expected = "a launcher started 3 processes, and the library that COLROW_MPI names cannot be loaded\n  in /nowhere/libmpi.so";
    assert!(ran.err.contains(expected), "{}", ran.err);
    assert!(!place.path("run").exists());
    // one process needs none
    assert_eq!(run(&[("PMI_SIZE", "1"), ("PMI_RANK", "0")]).code, Some(0));
}
