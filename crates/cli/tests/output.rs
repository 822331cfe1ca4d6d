//! Standard streams that are closed, full or gone, and names that would steer a terminal.

#![cfg(unix)]

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Place, Ran, finish, rows, tsv};

/// Runs the program with its standard streams redirected as a shell does it; what is left of them is returned.
fn redirected(place: &Place, args: &[&str], how: &str) -> Ran {
    let mut command = Command::new("bash");
    let script = format!("set -o pipefail; \"$@\" {how}");
    command.args(["-c", &script, "bash", env!("CARGO_BIN_EXE_colrow")]).args(args);
    finish(command.current_dir(place.path(".")).stdin(Stdio::null()).env("HF_HUB_OFFLINE", "1"))
}

#[test]
fn streams_that_cannot_be_written_end_no_run() {
    let place = Place::new();
    place.ok(&["train", "recipe.toml", "--set", "output=whole"]);
    let ways = [
        (">/dev/full", 1),
        ("2>/dev/full", 0),
        (">/dev/full 2>/dev/full", 1),
        (">&-", 0),
        ("2>&-", 0),
        (">&- 2>&-", 0),
        ("| true", 0),
        ("2>&1 | head -c 1", 0),
        ("2>&1 >/dev/full | true", 1),
    ];
    for (i, (how, code)) in ways.into_iter().enumerate() {
        let output = format!("output=run-{i}");
        let ran = redirected(&place, &["train", "recipe.toml", "--set", &output], how);
        assert_eq!(ran.code, Some(code), "{how}: {}", ran.err);
        assert!(!ran.err.contains("panicked"), "{how}: {}", ran.err);
        // the run itself is whole
        for file in ["model/model.safetensors", "checkpoints/step-10/model.safetensors"] {
            assert!(place.read(&format!("run-{i}/{file}")) == place.read(&format!("whole/{file}")), "{how}: {file}");
        }
        assert!(
            place.json(&format!("run-{i}/summary.json"))["steps"] == 10
                && place.path(&format!("run-{i}/report.html")).exists()
        );
        if how == ">/dev/full" {
            assert!(ran.err.contains("error: cannot write the result: No space left on device"), "{}", ran.err);
        }
    }
    let eval = ["eval", "--model", "whole/model", "--data", "dev.tsv"];
    let predict = ["predict", "--model", "whole/model", "--data", "dev.tsv"];
    for args in [&eval[..], &predict, &["plan", "recipe.toml"], &["--help"], &["--version"], &["completions", "zsh"]] {
        let ran = redirected(&place, args, ">/dev/full");
        assert_eq!(ran.code, Some(1), "{args:?}: {}", ran.err);
        assert!(ran.err.contains("error: cannot write the result: No space left on device"), "{args:?}: {}", ran.err);
        for how in ["| true", ">&-", "2>&-"] {
            assert_eq!(redirected(&place, args, how).code, Some(0), "{args:?} {how}");
        }
    }
    for how in ["2>/dev/full", "2>&-", "2>&1 | true"] {
        assert_eq!(redirected(&place, &["train", "no.toml"], how).code, Some(2), "{how}");
        assert_eq!(redirected(&place, &["train", "--nonsense"], how).code, Some(2), "{how}");
    }
}

/// As Ctrl-C in `colrow train … 2>&1 | tee log`: `tee` is gone by the time the program has something to say.
#[test]
fn a_reader_that_is_gone_costs_no_checkpoint() {
    let place = Place::new();
    place.write("train.tsv", tsv(&rows(600, 1, None)));
    for (i, signal) in ["-INT", "-TERM", "-HUP"].into_iter().enumerate() {
        let output = format!("output=run-{i}");
        let mut command = place.interruptible(&["train", "recipe.toml", "--set", "train.epochs=50", "--set", &output]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        let metrics = place.path(&format!("run-{i}/metrics.jsonl"));
        let clock = Instant::now();
        while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < 3 {
            assert!(clock.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some([130, 143, 129][i]), "{signal}");
        assert_eq!(place.names(&format!("run-{i}/checkpoints")).len(), 1);
    }
}

#[test]
fn signals_that_the_caller_ignores_stay_ignored() {
    let place = Place::new();
    place.write("train.tsv", tsv(&rows(600, 1, None)));
    let mut command = Command::new("bash");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "bash", env!("CARGO_BIN_EXE_colrow")]);
    command.args(["train", "recipe.toml"]).current_dir(place.path(".")).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let clock = Instant::now();
    while fs::read_to_string(place.path("run/metrics.jsonl")).map_or(0, |text| text.lines().count()) < 3 {
        assert!(clock.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-HUP", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn names_cannot_steer_the_terminal() {
    let place = Place::new();
    let (escape, turn) = ("\u{1b}]0;title\u{7}", "\u{202e}");
    let label = |text: &str| if text == "0" { format!("a{escape}") } else { format!("b{turn}\u{9b}31m") };
    let text: String =
        rows(40, 1, None).iter().map(|(text, l)| format!("{text}\t{}\n", label(&l.to_string()))).collect();
    place.write("train.tsv", format!("sentence\tlabel\n{text}"));
    place.write("dev.tsv", format!("sentence\tlabel\n{text}"));
    let folder = format!("output=ru{escape}{turn}n");
    let shown = |ran: &Ran| {
        let steers = |c: char| c.is_control() && c != '\n' || ('\u{202a}'..='\u{202e}').contains(&c);
        for text in [&ran.out, &ran.err] {
            assert!(!text.contains(steers), "{text:?}");
        }
        format!("{}{}", ran.out, ran.err)
    };
    let ran = place.run(&["train", "recipe.toml", "--set", &folder]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(shown(&ran).contains(r"ru\u{1b}]0;title\u{7}\u{202e}n"), "{}", ran.out);
    assert!(!place.text(&format!("ru{escape}{turn}n/report.html")).contains(['\u{1b}', '\u{202e}']));

    let name = format!("{escape}\n  hint: run this.tsv");
    place.write(&name, format!("sen{escape}\tlab{turn}\nx\ty\n"));
    let ran = place.run(&["eval", "--model", "model", "--data", &name]);
    let text = shown(&ran);
    assert!(ran.code == Some(1) && text.contains(r"\u{1b}]0;title") && !text.contains("\n  hint: run this"), "{text}");
    let ran = place.run(&["train", "recipe.toml", "--set", &format!("optim.l{escape}r=1")]);
    assert!(shown(&ran).contains(r"\u{1b}]0;title") && ran.code == Some(2), "{}", ran.err);
    // whoever parses the command line leaves such characters out
    let ran = place.run(&["train", "recipe.toml", &format!("--l{escape}r=1")]);
    assert!(shown(&ran).contains("unexpected argument") && ran.code == Some(2), "{}", ran.err);
    // JSON is what it is: a program reads it
    let run = format!("ru{escape}{turn}n/model");
    let out = place.ok(&["predict", "--model", &run, "--data", "dev.tsv"]);
    let line: serde_json::Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
    assert!([label("0"), label("1")].contains(&line["label"].as_str().unwrap().to_owned()), "{line}");
}
