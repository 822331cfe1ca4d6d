//! What users' files may be, and what is never written over.

#![cfg(unix)]
#![allow(missing_docs, reason = "tests")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use common::{Place, Ran, config, finish, npy, rows, tsv};

/// The program in the place's folder, ended after 20 seconds.
fn run(place: &Place, args: &[&str]) -> Ran {
    let program = place.command(&[]);
    let mut command = Command::new("timeout");
    command.arg("20").arg(program.get_program()).args(args).current_dir(place.path(""));
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    finish(&mut command)
}

#[track_caller]
fn fails(place: &Place, args: &[&str], code: i32, expected: &[&str]) {
    let ran = run(place, args);
    assert_eq!(ran.code, Some(code), "{args:?}: {}", ran.err);
    for text in expected {
        assert!(ran.err.contains(text), "{args:?}: {:?} does not contain {text:?}", ran.err);
    }
}

/// Puts a pipe that nobody writes in the place of a file.
fn pipe(place: &Place, name: &str) {
    let _ = fs::remove_file(place.path(name));
    assert!(Command::new("mkfifo").arg(place.path(name)).status().unwrap().success());
}

#[test]
fn pipes_are_refused_wherever_a_file_is_expected() {
    let train = ["train", "recipe.toml"];
    let predict = ["predict", "--model", "model", "--data", "dev.tsv"];
    let estimate = ["estimate", "--x", "x.npy", "--dz", "dz.npy"];
    let bench = ["bench", "--model-config", "config.json", "--plan"];
    let lengths = ["bench", "--model-config", "model/config.json", "--lengths-file", "lengths", "--plan"];
    for (name, args, code) in [
        ("recipe.toml", &train[..], 2),
        ("model/config.json", &train, 1),
        ("model/tokenizer.json", &train, 1),
        ("model/model.safetensors", &train, 1),
        ("train.tsv", &train, 1),
        ("dev.tsv", &predict, 1),
        ("x.npy", &estimate, 1),
        ("config.json", &bench, 2),
        ("lengths", &lengths, 2),
    ] {
        let place = Place::new();
        for matrix in ["x.npy", "dz.npy"] {
            place.write(matrix, npy(1, 1, &[1.0]));
        }
        pipe(&place, name);
        fails(&place, args, code, &["expected a file, found a pipe", name]);
        assert!(!place.path("run").exists(), "{name}");
    }
    let place = Place::new();
    fs::remove_file(place.path("model/tokenizer.json")).unwrap();
    symlink("/dev/zero", place.path("model/tokenizer.json")).unwrap();
    fails(&place, &train, 1, &["link that leads out of its folder, to /dev/zero", "model/tokenizer.json"]);
    fails(&place, &predict, 1, &["expected a file, found a device", "model/tokenizer.json"]);
}

#[test]
fn pipes_and_links_in_a_run_folder_are_refused() {
    for (name, expected) in
        [("recipe.toml", "found a pipe"), ("lock", "found a pipe"), ("summary.json", "summary.json")]
    {
        let place = Place::new();
        fs::create_dir(place.path("run")).unwrap();
        pipe(&place, &format!("run/{name}"));
        fails(&place, &["train", "recipe.toml"], 1, &[expected]);
    }
    let place = Place::new();
    fs::create_dir(place.path("run")).unwrap();
    place.write("thesis", "precious");
    symlink("../thesis", place.path("run/lock")).unwrap();
    fails(&place, &["train", "recipe.toml"], 1, &["found a link", "run/lock"]);
    assert_eq!(place.text("thesis"), "precious");
}

#[test]
fn the_base_model_survives_its_run() {
    let place = Place::new();
    symlink("model", place.path("linked")).unwrap();
    let before = place.read("model/model.safetensors");
    for (output, how) in [
        ("model", "is the folder of the model"),
        ("linked", "is the folder of the model"),
        ("model/run", "lies in the folder of the model"),
        ("linked/../model/run", "lies in the folder of the model"),
    ] {
        fails(&place, &["train", "recipe.toml", "--set", &format!("output={output}")], 1, &[how, "./model"]);
        fails(&place, &["train", "recipe.toml", "--resume", "--set", &format!("output={output}")], 1, &[how]);
    }
    fs::create_dir(place.path("outer")).unwrap();
    place.model("outer/base", &config());
    let outer = ["train", "recipe.toml", "--set", "model.path=./outer/base", "--set", "output=outer"];
    fails(&place, &outer, 1, &["holds the folder of the model", "./outer/base"]);
    fs::create_dir(place.path("run")).unwrap();
    symlink("../model", place.path("run/model")).unwrap();
    fails(&place, &["train", "recipe.toml"], 1, &["run/model", "which no run wrote here"]);
    // also for a run that is going on
    fs::remove_file(place.path("run/model")).unwrap();
    place.ok(&["train", "recipe.toml", "--set", "train.epochs=1"]);
    fs::remove_dir_all(place.path("run/model")).unwrap();
    fs::remove_file(place.path("run/summary.json")).unwrap();
    symlink("../model", place.path("run/model")).unwrap();
    let resume = ["train", "recipe.toml", "--set", "train.epochs=1", "--resume"];
    fails(&place, &resume, 1, &["run/model", "is the folder of the model"]);
    assert_eq!(place.read("model/model.safetensors"), before);
    assert_eq!(place.names("model"), ["config.json", "model.safetensors", "tokenizer.json"]);
}

#[test]
fn what_no_run_wrote_is_not_written_over() {
    for name in ["model/notes", "checkpoints/step-1/mine", "metrics.jsonl", "summary.json", "report.html"] {
        let place = Place::new();
        place.write(&format!("run/{name}"), "mine");
        let first = name.split('/').next().unwrap();
        fails(&place, &["train", "recipe.toml"], 1, &["no run wrote here", &format!("run/{first}")]);
        assert_eq!(place.text(&format!("run/{name}")), "mine");
        assert!(!place.path("run/recipe.toml").exists());
    }
}

#[test]
fn outputs_do_not_replace_inputs() {
    let place = Place::new();
    place.ok(&["train", "recipe.toml"]);
    let data = place.text("dev.tsv");
    let predict = ["predict", "--model", "run/model", "--data", "dev.tsv", "--out"];
    for out in ["./dev.tsv", "run/model/config.json"] {
        fails(&place, &[&predict[..], &[out]].concat(), 2, &["this command did not write", out]);
    }
    fails(&place, &[&predict[..], &["run/model/new.csv"]].concat(), 2, &["in a folder that is read"]);
    // predictions may be data
    place.write("own.csv", "index,row,text\n0,0,so good\n");
    let again = ["predict", "--model", "run/model", "--data", "own.csv", "--out", "./own.csv"];
    fails(&place, &again, 2, &["is one that is read", "./own.csv"]);
    for command in ["report", "compare"] {
        for out in ["run/metrics.jsonl", "run/../run/summary.json", "run/recipe.toml", "run/model/config.json"] {
            fails(&place, &[command, "run", "--out", out], 2, &["this command did not write", out]);
        }
    }
    for out in ["train.tsv", "recipe.toml"] {
        fails(&place, &["inspect", "recipe.toml", "--out", out], 2, &["this command did not write", out]);
    }
    assert_eq!(place.text("dev.tsv"), data);
    place.ok(&[&predict[..], &["new.jsonl"]].concat());
    for (out, expected) in [("model", "is the folder of the model"), ("model/q", "lies in the folder of the model")] {
        let quickstart = ["quickstart", "--model", "model", "--data", "train.tsv", "--out", out];
        fails(&place, &quickstart, 1, &[expected]);
    }
    place.write("q/lean@0.3.toml", "mine");
    let quickstart = ["quickstart", "--model", "model", "--data", "train.tsv", "--out", "q"];
    fails(&place, &quickstart, 1, &["exists already", "q/lean@0.3.toml"]);
}

#[test]
fn merge_writes_over_a_model_only_when_told_and_never_over_its_own() {
    let place = Place::new();
    place.ok(&["train", "recipe.toml", "--set", "train.method=lora"]);
    let merge =
        |out: &str, more: &[&str]| run(&place, &[&["merge", "--model", "run/model", "--out", out], more].concat());
    let (base, adapter) = (place.read("model/model.safetensors"), place.names("run/model"));
    for out in ["model", "run/model", "run"] {
        assert!(merge(out, &[]).err.contains("--force"), "{out}");
        let ran = merge(out, &["--force"]);
        assert!(ran.code == Some(1) && ran.err.contains("the folder of the adapter or its base model"), "{}", ran.err);
    }
    assert_eq!((place.read("model/model.safetensors"), place.names("run/model")), (base, adapter));
    fs::create_dir(place.path("merged")).unwrap();
    assert_eq!(merge("merged", &[]).code, Some(0), "an empty folder is as good as none");
    let ran = merge("merged", &[]);
    assert!(ran.code == Some(2) && ran.err.contains("--force"), "{}", ran.err);
    assert_eq!(merge("merged", &["--force"]).code, Some(0));
    place.write("merged/thesis.tex", "");
    assert!(merge("merged", &["--force"]).err.contains("holds more than a model: thesis.tex"));
}

/// Runs the program with a limit on the size of files, in units of 512 or 1,024 bytes.
fn run_limited(place: &Place, limit: u32, args: &[&str]) -> Ran {
    let program = place.command(&[]);
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit -f {limit} && exec \"$0\" \"$@\"")).arg(program.get_program()).args(args);
    command.current_dir(place.path("")).envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    finish(&mut command)
}

#[test]
fn a_norm_cache_without_room_is_an_error_that_names_file_and_bytes() {
    let place = Place::new();
    place.write("train.tsv", tsv(&rows(800, 1, None)));
    let args = ["train", "recipe.toml", "--set", "keep.policy=paper", "--set", "keep.cache=file"];
    let ran = run_limited(&place, 16, &args);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    for text in ["cannot map the norm cache of ", " bytes: ", "run/norms.bin", "keep.cache = \"memory\""] {
        assert!(ran.err.contains(text), "{}", ran.err);
    }
    assert!(!place.path("run/norms.bin").exists());
}

#[test]
fn a_file_beyond_the_limit_is_an_error_and_no_signal() {
    let place = Place::new();
    // enough for the recipe, not for a checkpoint
    let ran = run_limited(&place, 16, &["train", "recipe.toml"]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(ran.err.contains("cannot write") && ran.err.contains("ulimit -f"), "{}", ran.err);
}

/// What the saved model will need is looked at before the first step, not after the last.
#[test]
fn what_saving_copies_is_checked_before_training() {
    for name in ["vocab.txt", "special_tokens_map.json", "added_tokens.json"] {
        let place = Place::new();
        let path = format!("model/{name}");
        fs::create_dir(place.path(&path)).unwrap();
        fails(&place, &["train", "recipe.toml"], 1, &["the saved model will need a copy", "found a folder", &path]);
        fs::remove_dir(place.path(&path)).unwrap();
        pipe(&place, &path);
        fails(&place, &["train", "recipe.toml"], 1, &["the saved model will need a copy", "found a pipe", &path]);
        assert!(!place.path("run").exists(), "{name}");
    }
    // a note that somebody put into the model of a run that goes on
    let place = Place::new();
    place.ok(&["train", "recipe.toml"]);
    place.write("run/model/notes.txt", "mine");
    let longer = ["train", "recipe.toml", "--resume", "--set", "train.epochs=3"];
    fails(&place, &longer, 1, &["holds more than a model: notes.txt", "run/model"]);
    assert_eq!(place.names("run/checkpoints"), ["step-10"]);
    assert!(place.text("run/recipe.toml").contains("epochs = 2"), "nothing is changed");
}

/// A model that cannot be saved costs no step: there is a checkpoint of what was learned, and the resumed run saves.
#[test]
fn a_failure_to_save_the_model_loses_no_step() {
    let place = Place::new();
    let train = |output: &str, steps: u64, resume: bool| {
        let (output, steps) = (format!("output={output}"), format!("train.steps={steps}"));
        let sets = [output.as_str(), &steps, "train.eval_every=1", "train.save_every=4", "train.best_metric=loss"];
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        run(
            &place,
            &["train", "recipe.toml"].into_iter().chain(sets).chain(resume.then_some("--resume")).collect::<Vec<_>>(),
        )
    };
    for output in ["whole", "run"] {
        assert_eq!(train(output, 2, false).code, Some(0));
    }
    assert_eq!(train("whole", 4, true).code, Some(0));
    // no folder can be put in the place of a link that leads nowhere
    fs::remove_dir_all(place.path("run/model")).unwrap();
    symlink("nowhere", place.path("run/model")).unwrap();
    let ran = train("run", 4, true);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    for text in ["cannot replace", "in step 3 of 4", "--resume goes on from run/checkpoints/step-3"] {
        assert!(ran.err.contains(text), "{}", ran.err);
    }
    fs::remove_file(place.path("run/model")).unwrap();
    let ran = train("run", 4, true);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains("going on after step 3"), "{}", ran.err);
    assert_eq!(place.metrics("run"), place.metrics("whole"));
    assert!(place.read("run/model/model.safetensors") == place.read("whole/model/model.safetensors"));
}

#[test]
fn a_dash_is_standard_output() {
    let place = Place::new();
    let predict = ["predict", "--model", "model", "--data", "dev.tsv"];
    let lines = place.ok(&predict);
    assert_eq!(place.ok(&[&predict[..], &["--out", "-"]].concat()), lines);
    assert_eq!(lines.lines().count(), 12);
    let init = ["init", "--data", "train.tsv"];
    assert_eq!(place.ok(&[&init[..], &["--out", "-"]].concat()), place.ok(&init));
    place.ok(&["train", "recipe.toml"]);
    let page = place.ok(&["report", "run", "--out", "-"]);
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"), "{page}");
    for matrix in ["x.npy", "dz.npy"] {
        place.write(matrix, npy(1, 1, &[1.0]));
    }
    let estimate = ["estimate", "--x", "x.npy", "--dz", "dz.npy", "--out", "-"];
    for args in [&estimate[..], &["inspect", "recipe.toml", "--out", "-"], &["compare", "run", "--out", "-"]] {
        let ran = run(&place, args);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{args:?}");
        assert!(ran.err.contains("--out: expected a file for the page, found -"), "{}", ran.err);
    }
    assert!(!place.path("-").exists());
    // a file of that name has a path
    place.ok(&[&predict[..], &["--out", "./-"]].concat());
    assert_eq!(place.text("-"), lines);
}

/// Before models, data and matrices are read: here none of them is there.
#[test]
fn where_a_command_writes_is_checked_first() {
    let place = Place::new();
    place.write("file", "");
    place.ok(&["train", "recipe.toml", "--set", "train.steps=1"]);
    let none = "no such model";
    let merge = ["merge", "--model", none, "--out", "absent/out"];
    let export = ["inspect", "absent.toml", "--export", "classifier", "--export-to", "absent"];
    for args in [
        &["predict", "--model", none, "--data", "none", "--out", "absent/out"][..],
        &["estimate", "--x", "none", "--dz", "none", "--out", "absent/out"],
        &["inspect", "absent.toml", "--out", "absent/out"],
        &export,
        &["compare", "none", "--out", "absent/out"],
        &["report", "none", "--out", "absent/out"],
        &["init", "--data", "none", "--out", "absent/out"],
        &merge,
    ] {
        fails(&place, args, 1, &["cannot write: No such file", "in absent/", "does its folder exist?"]);
    }
    fails(&place, &["predict", "--model", none, "--data", "none", "--out", "model"], 1, &["found a folder"]);
    fails(&place, &["init", "--data", "none", "--out", "file"], 2, &["this file exists"]);
    fails(&place, &["merge", "--model", none, "--out", "file", "--force"], 1, &["found a file"]);
    assert!(!place.path("absent").exists() && place.text("file").is_empty());
}

/// Only what a command wrote itself is written over by it.
#[test]
fn what_somebody_else_wrote_is_not_written_over() {
    let place = Place::new();
    place.ok(&["train", "recipe.toml", "--set", "train.steps=1"]);
    for matrix in ["x.npy", "dz.npy"] {
        place.write(matrix, npy(2, 1, &[1.0, 2.0]));
    }
    let predict = ["predict", "--model", "run", "--data", "dev.tsv", "--out"];
    for (args, own) in [
        (&predict[..], "mine.jsonl"),
        (&predict, "mine.csv"),
        (&predict, "mine.tsv"),
        (&["report", "run", "--out"], "mine.html"),
        (&["compare", "run", "--out"], "mine.html"),
        (&["estimate", "--x", "x.npy", "--dz", "dz.npy", "--trials", "2", "--out"], "mine.html"),
    ] {
        place.write("notes.md", "my own notes");
        let onto = |name: &str| [args, &[name]].concat().iter().map(|&s| s.to_owned()).collect::<Vec<_>>();
        let strs = |args: &[String]| run(&place, &args.iter().map(String::as_str).collect::<Vec<_>>());
        let ran = strs(&onto("notes.md"));
        assert_eq!(ran.code, Some(2), "{args:?}: {}", ran.err);
        assert!(ran.err.contains("this command did not write") && ran.err.contains("in notes.md"), "{}", ran.err);
        assert_eq!(place.text("notes.md"), "my own notes");
        for _ in 0..2 {
            let ran = strs(&onto(own));
            assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.err);
        }
    }
    place.write("classifier.x.npy", "my own notes");
    let inspect = ["inspect", "recipe.toml", "--set", "output=other", "--export", "classifier"];
    fails(&place, &inspect, 2, &["this command did not write", "in ./classifier.x.npy"]);
}

/// A run in a folder of a run's or a model's would be taken for a part of it.
#[test]
fn a_run_does_not_lie_in_another_s_folders() {
    let place = Place::new();
    place.ok(&["train", "recipe.toml", "--set", "train.steps=1"]);
    place.model("other", &common::config());
    for (output, whose) in [
        ("run/model", "a model's"),
        ("run/model/deep/er", "a model's"),
        ("run/checkpoints", "another run's"),
        ("run/checkpoints/new", "another run's"),
        ("other/run", "a model's"),
    ] {
        let before = place.names("run");
        let output = format!("output={output}");
        let args = ["train", "recipe.toml", "--set", &output, "--set", "train.steps=1"];
        fails(&place, &args, 1, &[&format!("the run's folder lies in {whose}"), "choose another folder"]);
        assert_eq!(place.names("run"), before);
    }
    place.ok(&["train", "recipe.toml", "--set", "output=run/again", "--set", "train.steps=1"]);
}

#[cfg(unix)]
#[test]
fn pipes_among_a_run_s_files_and_as_data_are_named() {
    let place = Place::new();
    pipe(&place, "f.csv");
    pipe(&place, "f.jsonl");
    for data in ["f.csv", "f.jsonl"] {
        fails(&place, &["init", "--data", data], 1, &["found a pipe", data]);
        fails(&place, &["quickstart", "--model", "model", "--data", data], 1, &["found a pipe", data]);
    }
    let sets = ["train", "recipe.toml", "--set", "train.steps=4", "--set", "train.save_every=2"];
    place.ok(&sets);
    let state = place.names("run/checkpoints").pop().map(|step| format!("run/checkpoints/{step}/state.json")).unwrap();
    pipe(&place, &state);
    let longer = ["train", "recipe.toml", "--set", "train.steps=6", "--set", "train.save_every=2", "--resume"];
    fails(&place, &longer, 1, &["found a pipe", &state]);
}

#[test]
fn folders_that_are_no_models_are_named() {
    let place = Place::new();
    let sets = |output: &str| format!("output=runs/{output}");
    for (output, method) in [("b", "full"), ("a", "lora")] {
        let (output, method) = (sets(output), format!("train.method={method}"));
        place.ok(&["train", "recipe.toml", "--set", &output, "--set", &method, "--set", "train.steps=1"]);
    }
    let used = |model: &str, expected: &[&str]| {
        fails(&place, &["eval", "--model", model, "--data", "dev.tsv"], 1, expected);
        fails(&place, &["predict", "--model", model, "--data", "dev.tsv"], 1, expected);
        fails(&place, &["train", "recipe.toml", "--set", &format!("model.path={model}")], 1, expected);
    };
    used("./runs", &["expected a model, found a folder of runs: a, b", "hint: name one of them: ./runs/a"]);
    fs::remove_dir_all(place.path("runs/b/model")).unwrap();
    used("./runs/b", &["this run has no model yet", "colrow train ./runs/b/recipe.toml --resume"]);
    let adapter = ["train", "recipe.toml", "--set", "model.path=./runs/a/model"];
    let expected = [
        "found an adapter",
        "colrow merge --model ./runs/a/model --out FOLDER",
        "colrow train ./runs/a/recipe.toml --resume",
    ];
    fails(&place, &adapter, 1, &expected);
    fails(&place, &["train", "recipe.toml", "--set", "model.path=./runs/a"], 1, &expected);
    fails(&place, &["report", "runs"], 1, &["expected a run folder, found a folder of runs: a, b"]);
}
